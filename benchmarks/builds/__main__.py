"""`python -m benchmarks.builds PATH`: this checkout's layers beside those of the checkout at PATH, row by row.

Two processes, one for each checkout, take turns of some hundredths of a second, on one thread; what is counted is the
processor's time, so that other work on the machine matters little. A row's ratio is this checkout's time over the
other's, the median over the rounds. `git worktree add PATH COMMIT` makes such a checkout. With `.` as PATH both are the
same: what it prints then is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.builds import side
from normlab.bench.machine import describe, line
from normlab.bench.work import (
    FORMS,
    LAYOUTS,
    NORMS,
    POSITION_NORMS,
    SHAPES,
    Work,
    grid,
    parse_norms,
    parse_shapes,
    size,
)
from normlab.report import columns

SLOWER = 1.03
ROOT = Path(__file__).parents[2]


class Build:
    """The process of one checkout."""

    def __init__(self, root: Path) -> None:
        one = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, "-P", side.__file__, str(root)]
        self._process = subprocess.Popen(
            command, cwd=root, env=one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def prepare(self, work: Work) -> None:
        """Compile and warm up a row."""
        named = {key: getattr(work, key) for key in ("norm", "shape", "layout", "residual", "act", "dtype")}
        self._ask(named)

    def turn(self) -> float:
        """Milliseconds of the processor for a forward and backward pass."""
        return self._ask({})

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, what: dict[str, Any]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise SystemExit(f"the process of {self._process.args[-1]} has ended")  # type: ignore[index]
        return float(json.loads(reply)["ms"])


def measure(before: Build, now: Build, work: Work, rounds: int, turns: int = 3) -> tuple[float, float, float]:
    """Milliseconds before and now, and now over before: medians over the rounds, each the best of its turns."""
    pair = (before, now)
    for build in pair:
        build.prepare(work)
    times: list[tuple[float, float]] = []
    for round_ in range(rounds):
        best = [float("inf")] * 2
        for turn in range(turns):
            for i in (0, 1) if (round_ + turn) % 2 else (1, 0):
                best[i] = min(best[i], pair[i].turn())
        times.append((best[0], best[1]))
    first, second = (statistics.median(t) for t in zip(*times, strict=True))
    return first, second, statistics.median(b / a for a, b in times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows, then those that are slower; returns 1 if there are such."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__)
    parser.add_argument("path", type=Path, help="the root of the other checkout")
    parser.add_argument("--norms", default=",".join([*NORMS, *POSITION_NORMS]))
    parser.add_argument("--shapes", default=",".join(map(size, SHAPES)))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    works = grid(parse_norms(given.norms), FORMS, parse_shapes(given.shapes), LAYOUTS)
    before, now = Build(given.path.resolve()), Build(ROOT)
    print(line({**describe("cpu"), "threads": 1}) + f"; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"forward + backward, milliseconds of the processor: n = {given.rounds} rounds; ratio: now over before")
    cells = [["norm", "form", "shape"], *([w.norm, w.form, size(w.shape)] for w in works)]
    widths = [*columns.widths(cells), 14, 9, 9, 6]
    print(columns.line(["norm", "form", "shape", "layout", "before", "now", "ratio"], widths, {0, 1, 3}), flush=True)
    rows: list[tuple[Work, float]] = []
    for work in works:
        first, second, ratio = measure(before, now, work, given.rounds)
        rows.append((work, ratio))
        figures = [f"{first:.3f}", f"{second:.3f}", f"{ratio:.3f}"]
        place = [work.norm, work.form, size(work.shape), work.layout]
        print(columns.line([*place, *figures], widths, {0, 1, 3}), flush=True)
    print(f"geometric mean of the ratios {statistics.geometric_mean(r for _, r in rows):.3f} over {len(rows)} rows")
    suspects = [work for work, ratio in rows if ratio > SLOWER]
    print(f"slower by more than 3 %: {len(suspects)}; measured again with three times the rounds:")
    slower = 0
    for work in suspects:
        ratio = measure(before, now, work, 3 * given.rounds)[2]
        slower += ratio > SLOWER
        print(f"  {ratio:.3f}  {work.name}", flush=True)
    print(f"slower by more than 3 % in both: {slower}; load of the machine {os.getloadavg()[0]:.1f}")
    before.close()
    now.close()
    return int(slower > 0)


if __name__ == "__main__":
    raise SystemExit(main())
