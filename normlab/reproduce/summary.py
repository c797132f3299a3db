"""What came of all experiments in a folder: how many findings have which verdict, and which do not hold or are open."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normlab.errors import DataError, UsageError
from normlab.reproduce import verdicts
from normlab.reproduce.verdicts import describe_need

_LISTED = (verdicts.FAILS, verdicts.NOT_HERE, verdicts.UNKNOWN)


def summarize(folder: Path) -> list[str]:
    """Lines that count the findings of FOLDER/*/result.json by verdict, and name those that do not hold or are open.

    Raises UsageError if there are none, and DataError naming a file that is not an experiment's.
    """
    paths = sorted(folder.glob("*/result.json"))
    if not paths:
        raise UsageError(f"no pages of experiments in {str(folder)!r}; expected folders with a result.json each")
    found = [(path.parent.name, finding) for path in paths for finding in _findings(path)]
    counts = Counter(finding["verdict"] for _, finding in found)
    said = ", ".join(
        f"{counts[verdict]} {verdict} ({100 * counts[verdict] / len(found):.0f} %)"
        for verdict in verdicts.VERDICTS
        if counts[verdict]
    )
    lines = [f"{len(found)} findings of {len(paths)} experiments: {said}"]
    for verdict in _LISTED:
        of = [(name, finding) for name, finding in found if finding["verdict"] == verdict]
        lines += ["", f"{verdict}:"] if of else []
        lines += [
            "; ".join(
                filter(None, (f"  {name}: {f['claim']}", f"measured: {f['measured']}", describe_need(f["needs"])))
            )
            for name, f in of
        ]
    return lines


def _findings(path: Path) -> Iterator[dict[str, Any]]:
    try:
        findings = json.loads(path.read_text("utf-8"))["findings"]
        for finding in findings:
            needs = finding.get("needs")
            if finding["verdict"] not in verdicts.VERDICTS or not (needs is None or type(needs) is int):
                raise ValueError("a finding has no verdict")
            yield {
                "claim": finding["claim"],
                "measured": finding["measured"],
                "verdict": finding["verdict"],
                "needs": needs,
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not the result of an experiment ({error}); expected its findings") from error
