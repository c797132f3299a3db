"""A whole comparison beside the plain torch loop, and where an epoch's time goes.

python -m benchmarks.comparing [--rounds 1] [--epochs 1] [--data FILE.npz]

`normlab compare` and the two forms of the plain loop (`benchmarks.plain`: channels-first and channels-last) take turns
on the same images, as processes of their own, start-up included. Seconds are those of a comparison as it is by default,
images a second those of its cells one at a time with all cores, as in the plain loop (`--jobs 1`). Without --data the
images are noise, 4,068 of 32 x 32. Kernels are compiled before.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plain import NORMS

IMAGES, CLASSES = 4068, 10
STOCK = "torch-bn"  # of a comparison: the one norm that is torch's own there
WANTED = {"grid": 1.6, "bn": 1.15, "others": 1.4, "rest": 0.08}


def main(args: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--data", type=Path)
    chosen = parser.parse_args(args)
    from normlab.bench.machine import describe, line

    print(line(describe("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        data = chosen.data or _noise(Path(folder))
        epochs = str(chosen.epochs)
        compare = ["-m", "normlab", "compare", str(data), "--norms", ",".join(NORMS), "--models", "resnet14",
                   "--batch-sizes", "128", "--seeds", "1"]  # fmt: skip
        run([*compare, "--epochs", "1", "--limit-train", "256", "--out", str(Path(folder) / "warm")])
        rounds = []
        for i in range(chosen.rounds):
            ours = run([*compare, "--epochs", epochs, "--out", str(Path(folder) / f"study{i}")])
            alone = [*compare, "--epochs", epochs, "--jobs", "1", "--out", str(Path(folder) / f"alone{i}")]
            ours = {**run(alone), "total": ours["total"]}
            plain = [run(["-m", "benchmarks.plain", str(data), epochs, form]) for form in ("", "channels_last")]
            rounds.append((ours, *plain))
    print(f"seven norms, resnet14, batch 128, {epochs} epochs; {chosen.rounds} rounds in turns")
    print("\n".join(lines(rounds)))
    share = rest_of_epoch()
    print(f"of an epoch with bn, {100 * share:.1f} % is not steps (wanted: at most {100 * WANTED['rest']:g} %)")


def lines(rounds: list[tuple[dict[str, float], ...]]) -> list[str]:
    """The table, of the three sides' figures in every round: medians of the rounds' ratios."""
    found = [f"{'':10s} {'compare':>9s} {'plain':>9s} {'channels-last':>14s} {'ratio':>7s} {'wanted':>7s}"]
    for name in rounds[0][0]:
        ours, first, last = (statistics.median(side[name] for side in sides) for sides in zip(*rounds, strict=True))
        ratios = []
        for sides in rounds:
            if name == "total":  # seconds: less is better
                ratios.append(min(side[name] for side in sides[1:]) / sides[0][name])
            else:
                ratios.append(sides[0][name] / max(side[name] for side in sides[1:]))
        wanted = WANTED["grid"] if name == "total" else WANTED["bn"] if name == "bn" else WANTED["others"]
        unit = "s" if name == "total" else "im/s"
        aim = f"{wanted:7.2f}" if name not in ("none", STOCK) else " " * 7
        found.append(
            f"{name + ', ' + unit:15s}{ours:5.0f} {first:9.0f} {last:14.0f} {statistics.median(ratios):6.2f}x {aim}"
        )
    own = [sides[0]["bn"] / sides[0][STOCK] for sides in rounds]
    found.append(f"in the comparison itself, bn over {STOCK}: {statistics.median(own):.2f}x (wanted: {WANTED['bn']})")
    return found


def run(command: list[str]) -> dict[str, float]:
    """Images a second by norm, as a process prints them (the median of its epochs), and its seconds as "total"."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - started
    return {**rates(done.stdout.decode()), "total": seconds}


def rates(printed: str) -> dict[str, float]:
    """Images a second by norm: the medians of what was printed."""
    found: dict[str, list[float]] = {}
    for line in printed.splitlines():
        speed = re.search(r"(\d+) images/s", line)
        names = [name for name in NORMS if re.search(rf"(?<![\w-]){name}(?![\w-])", line)]
        if speed and len(names) == 1:
            found.setdefault(names[0], []).append(float(speed[1]))
    return {name: statistics.median(values) for name, values in found.items()}


def rest_of_epoch() -> float:
    """The share of an epoch of a comparison's cell that is not its steps: evaluation, watching, checkpoints."""
    from normlab.study.keeping.checkpoint import CheckpointDirectory
    from normlab.study.source import open_data
    from normlab.study.spec import make_spec
    from normlab.study.training.cell import Training

    with tempfile.TemporaryDirectory() as folder:
        data = _noise(Path(folder))
        spec = make_spec({"data": str(data), "models": "resnet14", "norms": "bn", "epochs": 3, "batch_sizes": 128})
        dataset = open_data(spec.data_choice())
        training = Training(spec.cells(len(dataset.train))[0], dataset)
        checkpoints = CheckpointDirectory(Path(folder) / "kept", print)
        steps: list[float] = []
        step = training.step

        def timed(*arguments: Any) -> None:
            started = time.perf_counter()
            step(*arguments)
            steps.append(time.perf_counter() - started)

        training.step = timed  # type: ignore[method-assign]
        training.run_epoch()  # which meets its memory
        steps.clear()
        started = time.perf_counter()
        training.run_epoch(checkpoints)
        checkpoints.keep(training)
        return 1 - sum(steps) / (time.perf_counter() - started)


def _noise(folder: Path) -> Path:
    """A data file of random images."""
    generator = np.random.default_rng(0)
    path = folder / "noise.npz"
    images = generator.integers(0, 256, (IMAGES, 3, 32, 32), np.uint8)
    np.savez(path, x_train=images, y_train=np.arange(IMAGES) % CLASSES)
    return path


if __name__ == "__main__":
    main()
