"""`python -m benchmarks.verdicts [--studies 100] [--only NAME]`: the tables of docs/statistics.md, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.verdicts import ours
from benchmarks.verdicts.cells import tables
from benchmarks.verdicts.markdown import markdown
from benchmarks.verdicts.measures import AT, changes, errors, power
from benchmarks.verdicts.procedures import TEXTBOOK, Procedure, textbook
from benchmarks.verdicts.replay import draws, far_behind, replayed, until_sure
from benchmarks.verdicts.worlds import POWER_WORLD, WORLDS
from normlab.study.running.until_sure import MOST

PROCEDURES = {name: textbook(judge) for name, judge in TEXTBOOK.items()} | {
    "normlab": Procedure(ours.judge, ours.behind_at)
}
POWER_AT = (2, 3, 4, 5, 6, 7, 8, 10, 12)
REPLAYED_AT = (3, 5)
REPLAYS = 12  # of --until-sure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.add_argument("--studies", type=int, default=100, help="simulated studies of each world")
    parser.add_argument("--only", help="procedures whose name contains this")
    options = parser.parse_args(arguments)
    chosen = {name: p for name, p in PROCEDURES.items() if options.only is None or options.only in name}
    rng = np.random.default_rng(0)
    drawn = {world.name: world.draw(options.studies, rng) for world in WORLDS}
    worst, wheres = _simulate_all(chosen, drawn)
    print(f"Simulated, {options.studies} studies of each of {len(WORLDS)} worlds; in each column the worst world.\n")
    print(markdown(worst))
    print("\nA wrong statement with 3 seeds / at any look from 3 to 12, world by world, in percent.\n")
    print(markdown(wheres))
    print("\nReal cells: small studies drawn from large ones.\n")
    print(markdown(_real(chosen, options.studies)))
    print("\nTrainings of --until-sure (at most as many seeds as there are, or 12) beside 5 seeds of every norm.\n")
    print(markdown(_count_trainings(options.studies)))


def _simulate_all(
    procedures: Mapping[str, Procedure], drawn: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    worst, by_world = [], {world.name: {"world": world.name} for world in WORLDS}
    for name, procedure in procedures.items():
        found = {world.name: errors(procedure, world, *drawn[world.name]) for world in WORLDS}
        powers = power(procedure, POWER_WORLD, *drawn[POWER_WORLD.name], POWER_AT)
        needed = next((str(n) for n, p in zip(POWER_AT, powers, strict=True) if p >= 0.8), f"> {POWER_AT[-1]}")
        mind = changes(procedure, POWER_WORLD, *drawn[POWER_WORLD.name])
        worst.append(
            {
                "procedure": name,
                **{
                    key: _percent(max(of[key] for of in found.values()))
                    for key in (*(f"wrong at {n}" for n in AT), "wrong at any look")
                },
                **{f"intervals hold at {n}": _percent(min(of[f"cover at {n}"] for of in found.values())) for n in AT},
                "finds 5 points with 3 seeds": _percent(powers[POWER_AT.index(3)]),
                "seeds for 80 %": needed,
                "changes when a far norm is dropped": _percent(mind["dropping"]),
                "takes back with one more seed": _percent(mind["one more"]),
            }
        )
        for world, of in found.items():
            by_world[world][name] = f"{_bare(of['wrong at 3'])} / {_bare(of['wrong at any look'])}"
    return worst, list(by_world.values())


def _real(procedures: Mapping[str, Procedure], count: int) -> list[dict[str, str]]:
    rows = []
    for table in tables():
        far = " and ".join(np.array(table.norms)[far_behind(table)])
        for name, procedure in procedures.items():
            row = {
                "cells": f"{table.name}, {len(table.norms)} norms x {table.seeds} seeds; last: {far}",
                "procedure": name,
            }
            for seeds in REPLAYED_AT:
                of = replayed(procedure, table, seeds, count)
                row[f"names a norm behind, {seeds} seeds"] = _percent(of["any"])
                row[f"both of the last, {seeds} seeds"] = _percent(of["far"])
                row[f"one as good as the best, {seeds} seeds"] = _percent(of["wrong"])
            rows.append(row)
    return rows


def _count_trainings(count: int) -> list[dict[str, str]]:
    rows = []
    for table in tables():
        most = min(MOST, table.seeds)
        found = [until_sure(table, order, most) for order in draws(table, min(count, REPLAYS), most)]
        rows.append(
            {
                "cells": table.name,
                "trainings, median": f"{np.median([trainings for trainings, _ in found]):.0f}",
                "of 5 seeds each": str(5 * len(table.norms)),
                "all that are as good stay in": _percent(float(np.mean([kept for _, kept in found]))),
            }
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bare(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
