"""A CSV of image files and their labels: `path,label`, and perhaps `split`; relative paths start at the table."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from normlab.data._files import fingerprint, read_files, stamp
from normlab.data._folder import SPLIT_NAMES
from normlab.data._limits import MOST_ROWS, check_rows
from normlab.data._pixels import SUFFIXES
from normlab.data._source import WHOLE, Part, Source, in_blocks, listing, printable
from normlab.errors import DataError

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img")
LABELS = ("label", "class", "target", "category", "species", "y")
SPLITS = ("split", "subset", "fold", "set")

Row = tuple[str, str, str]  # path, label, split or ""


def open_table(path: Path) -> Source:
    """The source of a table; classes are the labels in order, of numbers in their numerical order."""
    rows = _rows(path)
    names = ordered({label for _, label, _ in rows})
    number = {name: k for k, name in enumerate(names)}
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row[2] or WHOLE, []).append(row)
    if WHOLE in by_part and len(by_part) > 1:
        raise DataError(f"{len(by_part[WHOLE])} rows have no split and others have one; fill it in, or leave it out")
    parts = {
        part: _part(path.parent, [file for file, _, _ in own], np.array([number[label] for _, label, _ in own]))
        for part, own in by_part.items()
    }
    return Source(tuple(map(printable, names)), parts)


def table_mark(path: Path) -> str:
    """Changes with the table, and with the sizes and times of the files that it names."""
    sha = hashlib.sha256(fingerprint(path).encode())
    for file, _, _ in _rows(path):
        sha.update(stamp(path.parent / file))
    return sha.hexdigest()


def ordered(labels: set[str]) -> list[str]:
    """Labels in the order of their numbers, if all are whole numbers, else (or of one number) of their letters."""
    numbers = all(re.fullmatch(r"-?[0-9]{1,300}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if numbers else sorted(labels)


def _part(root: Path, files: Sequence[str], labels: np.ndarray) -> Part:
    return Part(labels.astype(np.int64), lambda: in_blocks(read_files(root, files)), lambda row: repr(files[row]))


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            filled = (line for line in csv.reader(file) if any(cell.strip() for cell in line))
            lines = list(islice(filled, MOST_ROWS + 2))
            check_rows(len(lines) - 1, "the table")
            lines.extend(filled)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a CSV file in UTF-8: {error}") from error
    if not lines:
        raise DataError("an empty table; expected path,label and a row for every image")
    head = [cell.strip().lower() for cell in lines[0]]
    if len(head) >= 2 and head[0].endswith(SUFFIXES):  # no header
        columns: Mapping[str, int | None] = {"path": 0, "label": 1, "split": 2 if len(head) > 2 else None}
        body = lines
    else:
        columns = {
            name: next((head.index(known) for known in choice if known in head), None)
            for name, choice in (("path", PATHS), ("label", LABELS), ("split", SPLITS))
        }
        body = lines[1:]
    missing = [f"{name} (or {', '.join(choice[1:4])})" for name, choice in (("path", PATHS), ("label", LABELS))
               if columns[name] is None]  # fmt: skip
    if missing:
        raise DataError(f"no column {' and '.join(missing)}; found {', '.join(lines[0])}")
    rows, bad = [], []
    for number, line in enumerate(body, start=1 + len(lines) - len(body)):
        cells = {
            name: "" if at is None else (line[at].strip() if at < len(line) else "") for name, at in columns.items()
        }
        split = SPLIT_NAMES.get(cells["split"].lower(), "")
        if not (cells["path"] and cells["label"]):
            bad.append(f"row {number}: no {'path' if not cells['path'] else 'label'}")
        elif "\0" in cells["path"]:
            bad.append(f"row {number}: a zero byte in the path {cells['path']!r}")
        elif cells["split"] and not split:
            bad.append(f"row {number}: split {cells['split']!r}; expected one of {', '.join(SPLIT_NAMES)}")
        rows.append((cells["path"], cells["label"], split))
    if bad:
        raise DataError(f"{len(bad)} of {len(body)} rows cannot be used" + listing(bad, len(bad)))
    return rows
