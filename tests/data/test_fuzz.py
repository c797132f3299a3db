"""Every reader on damaged input: images or words that a user can act on, and nothing else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normlab.data import load
from normlab.errors import DataError, NormlabError
from tests.data.makers import encoded, images

NAMES = [f"{'ab'[number % 2]}/{number}.{'png' if number < 14 else 'jpg'}" for number in range(20)]


def contents() -> list[bytes]:
    return [encoded(image, "PNG" if n < 14 else "JPEG") for n, image in enumerate(images(20))]


def make_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in zip(NAMES, contents(), strict=True):
            archive.writestr(name, data)
    return file.getvalue()


def make_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in zip(NAMES, contents(), strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x_train=images(20), y_train=np.arange(20) % 2)
    return file.getvalue()


def make_csv() -> bytes:
    return "".join(["path,label,split\n", *(f"{name},{name[0]},train\n" for name in NAMES)]).encode()


def make_parquet() -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"image": contents(), "label": [n % 2 for n in range(20)]}), file)
    return file.getvalue()


MAKERS = {
    "zip": make_zip,
    "tar.gz": make_tar,
    "npz": make_npz,
    "csv": make_csv,
    "parquet": make_parquet,
    "png": lambda: contents()[0],
    "jpg": lambda: contents()[-1],
}


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[float, bytes | int]]:
    """Places, as shares of a file, and what happens there: other bytes, or so many that are cut out."""
    what = st.one_of(st.binary(min_size=1, max_size=8), st.integers(1, 400))
    return draw(st.lists(st.tuples(st.floats(0, 1), what), min_size=1, max_size=4))


def damaged(whole: bytes, changes: list[tuple[float, bytes | int]]) -> bytes:
    found = bytearray(whole)
    for share, what in changes:
        at = int(share * len(found))
        if isinstance(what, int):
            del found[at : at + what]
        else:
            found[at : at + len(what)] = what
    return bytes(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# A zip whose directory was damaged ended in a traceback: it was opened to look for arrays, and nobody caught that.
def test_a_zip_with_a_damaged_directory_ends_in_words(folder: Path) -> None:
    path = folder / "directory.zip"
    path.write_bytes(make_zip().replace(b"PK\x01\x02", b"PK\x01\x00"))
    with pytest.raises(DataError, match="cannot read the archive"):
        load(path, cache_dir=folder / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damages(), skip_bad=st.booleans())
def test_damaged_input_ends_in_words(kind: str, folder: Path, changes: list[tuple[float, bytes | int]], skip_bad: bool):
    whole = MAKERS[kind]()
    data = damaged(whole, changes)
    if kind in ("png", "jpg"):
        path = folder / f"of-{kind}"
        for name, content in zip(NAMES, contents(), strict=True):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        (path / NAMES[0 if kind == "png" else -1]).write_bytes(data)
    else:
        path = folder / f"data.{kind}"
        path.write_bytes(data)
    try:
        found = load(path, skip_bad=skip_bad, cache_dir=folder / "cache")
    except NormlabError:
        return
    assert found.train.images.dtype == np.uint8
    assert found.num_classes >= 2
