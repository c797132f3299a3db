"""What papers claim of the family's members, held to the studies in results/members: the tables of docs/members.md.

python -m benchmarks.claims [--slim STUDY/results.json FILE]

With --slim it writes the records of a study with the last epoch of each training alone. A claim is one
difference between two norms that a paper speaks of. Its interval is that of the study's verdict
(`normlab.study.spreads`: on all images of which so many were the test images), but for these claims alone: all of them
hold together with 95 %, by Šidák's correction. A claim of more holds if the interval is above zero, and does not if it
is below; one of no less holds if it is above -1 point.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normlab.study.spreads import fitted

FOLDER = Path(__file__).parents[1] / "results" / "members"
STUDIES = {"members": FOLDER / "results.json", "batch-2": FOLDER / "batch-2.json"}
LESS = 0.01  # that is no loss


@dataclass(frozen=True)
class Claim:
    """`norm` is more accurate than `other`, or with `least` no less accurate, in one of the studies."""

    study: str
    norm: str
    other: str
    paper: str
    least: bool = False

    def __str__(self) -> str:
        return f"{self.norm} {'≥' if self.least else '>'} {self.other}"


CLAIMS = (
    Claim("members", "bn", "none", "Ioffe & Szegedy 2015"),
    Claim("members", "bn", "gn", "Wu & He 2018, at usual batches"),
    Claim("members", "bin", "bn", "Nam & Kim 2018", least=True),
    Claim("members", "ghost", "bn", "Hoffer et al. 2017, of large batches"),
    Claim("members", "sn", "bn", "Luo et al. 2019", least=True),
    Claim("members", "ibn-a", "bn", "Pan et al. 2018, where the style is the same", least=True),
    Claim("members", "sws", "bn", "Brock et al. 2021, of NFNets"),
    Claim("members", "frn-tlu", "bn", "Singh & Krishnan 2020"),
    Claim("members", "divisive", "bn", "Ren et al. 2017, with a penalty beside it"),
    Claim("members", "evonorm-b0", "bn", "Liu et al. 2020, of networks without a ReLU behind it"),
    Claim("members", "evonorm-s0", "gn", "Liu et al. 2020, of networks without a ReLU behind it"),
    Claim("members", "adanorm", "channel-ln", "Xu et al. 2019, of transformers"),
    Claim("members", "dyt", "channel-ln", "Zhu et al. 2025, of transformers", least=True),
    Claim("members", "bn", "dyt", "Zhu et al. 2025, of convolutional networks"),
    Claim("members", "derf", "dyt", "Chen et al. 2025, of transformers"),
    Claim("batch-2", "gn", "bn", "Wu & He 2018, at small batches"),
    Claim("batch-2", "brn:r_max=3:d_max=5", "bn", "Ioffe 2017"),
    Claim("batch-2", "gn+ws", "gn", "Qiao et al. 2019, at one or two images"),
    Claim("batch-2", "frn-tlu", "gn", "Singh & Krishnan 2020"),
    Claim("batch-2", "frn", "gn", "the same without the threshold", least=True),
)


def main(args: list[str] | None = None) -> None:
    """Print the tables, or write a study's records without their percentiles."""
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["--slim"]:
        Path(given[2]).write_text(json.dumps(slim(json.loads(Path(given[1]).read_text())), ensure_ascii=False) + "\n")
        return
    print("\n\n".join(tables()))


def tables() -> list[str]:
    """The accuracies of each study, then the claims, in Markdown."""
    found = {name: json.loads(path.read_text()) for name, path in STUDIES.items()}
    return [*(accuracies(results) for results in found.values()), claims(found)]


def accuracies(results: Mapping[str, Any]) -> str:
    """A row for each norm: its accuracy, how far from the one to prefer, and where it stands."""
    verdict = results["verdict"]
    best, floor = verdict["best"], (verdict["floors"] or {}).get("linear classifier", 0.0)
    rows = [f"| norm | test accuracy, % | points from {best or 'the best'} | seeds | |", "|---|---|---|---:|---|"]
    names = sorted({c["norm"] for c in results["cells"]}, key=lambda n: (-_mean(verdict, n), n))
    for name in names:
        own, away = verdict["intervals"].get(name), verdict["differences"].get(name)
        failed, seeds = verdict["failures"][name]
        if failed:
            place = f"failed to learn in {failed} of {seeds} seeds"
        elif name in verdict["best_set"]:
            place = "in the best set"
        else:
            places = ["behind"] if name in verdict["behind"] else ["not distinguished"] if best else []
            place = ", ".join([*places, *(["below a linear classifier"] if own["mean"] <= floor else [])])
        rows.append(f"| `{name}` | {_percent(own)} | {_points(away) if away else ''} | {seeds - failed} | {place} |")
    return "\n".join(rows)


def claims(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each claim: its difference, and whether it holds."""
    rows = ["| claim | whose, of what | study | difference, points | |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        low, mean, high = difference(found[claim.study], claim)
        if low is None or high is None:
            told, said = "cannot tell: failed to learn", ""
        else:
            holds = low > (-LESS if claim.least else 0.0)
            told = "holds" if holds else "does not hold" if high < 0 else "cannot tell"
            said = _points({"mean": mean, "low": low, "high": high})
        rows.append(f"| {claim} | {claim.paper} | {claim.study} | {said} | {told} |")
    return "\n".join(rows)


def difference(results: Mapping[str, Any], claim: Claim) -> tuple[float | None, float, float | None]:
    """The claim's difference of accuracies, between the ends of its interval; no ends where either failed to learn."""
    failures = results["verdict"]["failures"]
    arms: dict[str, list[float]] = {}
    for cell in sorted(results["cells"], key=lambda c: int(c["seed"])):
        if not failures[cell["norm"]][0]:
            arms.setdefault(cell["norm"], []).append(cell["test"]["accuracy"])
    if claim.norm not in arms or claim.other not in arms:
        return None, 0.0, None
    images = results["environment"]["test_images"]
    spreads = fitted([np.array(v) for v in arms.values()], 1 / images, images)
    names = list(arms)
    a, b = (np.array([names.index(name)]) for name in (claim.norm, claim.other))
    reach = spreads.reach(a, b, 1 - 0.95 ** (1 / len(CLAIMS)))
    middle = spreads.logits[a] - spreads.logits[b]
    low, high = (float(spreads.differences(a, b, middle + sign * reach)[0]) for sign in (-1, 1))
    return low, float(np.mean(arms[claim.norm]) - np.mean(arms[claim.other])), high


def slim(results: Mapping[str, Any]) -> dict[str, Any]:
    """The records with the last epoch of each training alone, and of it no percentiles."""
    percentiles = ("features", "gradients")
    cells = []
    for cell in results["cells"]:
        last = [{k: v for k, v in epoch.items() if k not in percentiles} for epoch in cell["epochs"][-1:]]
        cells.append({**cell, "epochs": last})
    return {**results, "cells": cells}


def _mean(verdict: Mapping[str, Any], name: str) -> float:
    own = verdict["intervals"].get(name)
    return -1.0 if own is None or own["mean"] is None else float(own["mean"])


def _percent(own: Mapping[str, float] | None) -> str:
    if own is None:
        return ""
    return f"{100 * own['mean']:.1f}" + (
        "" if own["low"] is None else f" [{100 * own['low']:.1f}, {100 * own['high']:.1f}]"
    )


def _points(difference: Mapping[str, float]) -> str:
    mean, low, high = (f"{100 * difference[key]:+.1f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
