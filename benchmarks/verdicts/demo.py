"""`python -m benchmarks.verdicts.demo [--studies 10] [--kept FOLDER]`: how often `make demo` changes its mind.

The demo runs on seeds 0 to 2 with split 0, on 3 to 5 with split 1, and so on: no two have a seed in common, and each
divides the digits anew. A folder keeps what was trained, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import normlab
from benchmarks.verdicts.markdown import markdown
from normlab.bench.machine import describe, line
from normlab.study.running.console import PlainLines
from normlab.study.verdict import Verdict, percent

DATA, EPOCHS, SEEDS = "digits", 4, 3  # as in the Makefile


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demos, and print what each recommends and avoids, and how often they agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts.demo", description=__doc__)
    parser.add_argument("--studies", type=int, default=10, help="how many demos")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training")
    parser.add_argument("--limit-train", type=int, help="training images, where not all")
    parser.add_argument("--kept", type=Path, help="a folder for what was trained")
    options = parser.parse_args(arguments)
    verdicts, seconds = [], []
    with ExitStack() as stack:
        folder = options.kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(options.studies):
            study = normlab.compare(
                DATA,
                seeds=seeds_of(number),
                split_seed=number,
                epochs=options.epochs,
                limit_train=options.limit_train,
                out=folder / str(number),
                device="cpu",
                inline=True,
                console=PlainLines(),
            )
            verdicts.append(study.verdict)
            seconds.append(sum(epoch["seconds"] for cell in study.results["cells"] for epoch in cell["epochs"]))
    print(markdown(rows(verdicts)))
    print(f"\n{agreement(verdicts)}\n\nTraining of a demo: {min(seconds):.0f} to {max(seconds):.0f} s.")
    print(line(describe("cpu")))


def seeds_of(number: int) -> list[int]:
    """The seeds of a demo, which no other has."""
    return list(range(number * SEEDS, (number + 1) * SEEDS))


def rows(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """A row for each demo: what to use, with its accuracy, what to avoid, what is open."""
    return [
        {
            "seeds": f"{seeds_of(number)[0]}–{seeds_of(number)[-1]}",
            "use": verdict.best or "no verdict",
            "test accuracy": percent(verdict.accuracy.mean) if verdict.accuracy else "–",
            "avoid": ", ".join(sorted(verdict.avoid)) or "–",
            "not distinguished from it": ", ".join(sorted(set(verdict.best_set) - {verdict.best})) or "–",
        }
        for number, verdict in enumerate(verdicts)
    ]


def agreement(verdicts: Sequence[Verdict]) -> str:
    """How many demos recommend the same norm, and how often each other norm is to be avoided or open."""
    chosen = Counter(verdict.best or "no verdict" for verdict in verdicts)
    ((most, count),) = chosen.most_common(1)
    said = [f"The recommendation is {most} in {count} of {len(verdicts)} demos."]
    for norm in sorted({norm for verdict in verdicts for norm in (*verdict.avoid, *verdict.best_set)} - {most}):
        avoided = sum(norm in verdict.avoid for verdict in verdicts)
        said.append(f"{norm}: to be avoided in {avoided}.")
    return " ".join(said)


if __name__ == "__main__":
    main()
