"""`python -m benchmarks.verdicts [--studies 100] [--only NAME]`: the tables of docs/statistics.md, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.verdicts import ours
from benchmarks.verdicts.cells import tables
from benchmarks.verdicts.markdown import markdown
from benchmarks.verdicts.measures import AT, LOOKS, changes, errors, power
from benchmarks.verdicts.measures import wrong as is_wrong
from benchmarks.verdicts.procedures import TEXTBOOK, Procedure, textbook
from benchmarks.verdicts.replay import Spent, draws, far_behind, replayed, steadiness, until_sure
from benchmarks.verdicts.worlds import POWER_WORLD, WORLDS
from normlab.study.running.until_sure import MOST

OURS = "normlab"
PROCEDURES = {name: textbook(judge) for name, judge in TEXTBOOK.items()} | {OURS: Procedure(ours.judge, ours.behind_at)}
Found = Mapping[str, Mapping[str, float]]  # what `errors` returns, for each world
POWER_AT = (2, 3, 4, 5, 6, 7, 8, 10, 12)
REPLAYED_AT = (3, 5)
REPLAYS = 12  # of --until-sure
STEADY = 30  # draws whose norms are dropped and reordered


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.add_argument("--studies", type=int, default=100, help="simulated studies of each world")
    parser.add_argument("--only", help="procedures whose name contains this")
    options = parser.parse_args(arguments)
    chosen = {name: p for name, p in PROCEDURES.items() if options.only is None or options.only in name}
    rng = np.random.default_rng(0)
    drawn = {world.name: world.draw(options.studies, rng) for world in WORLDS}
    worst, wheres, found = _simulate_all(chosen, drawn)
    print(f"Simulated, {options.studies} studies of each of {len(WORLDS)} worlds; in each column the worst world.\n")
    print(markdown(worst))
    print("\nA wrong statement with 3 seeds / at any look from 3 to 12, world by world, in percent.\n")
    print(markdown(wheres))
    print("\nReal cells: small studies drawn from large ones.\n")
    print(markdown(_real(chosen, options.studies)))
    print("\nTrainings of --until-sure (at most as many seeds as there are, or 12) beside 5 seeds of every norm.\n")
    spent = _replay_until_sure(options.studies)
    print(markdown(_count_trainings(spent)))
    if OURS in found:
        steady = {table.name: steadiness(table, draws(table, min(options.studies, STEADY), 3)) for table in tables()}
        print("\nThe aims, and what was found of normlab.\n")
        print(markdown(_compare_with_aims(found[OURS], spent, steady, options.studies)))


def _simulate_all(
    procedures: Mapping[str, Procedure], drawn: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, Found]]:
    worst, by_world = [], {world.name: {"world": world.name} for world in WORLDS}
    every: dict[str, Found] = {}
    for name, procedure in procedures.items():
        found = every[name] = {world.name: errors(procedure, world, *drawn[world.name]) for world in WORLDS}
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
    return worst, list(by_world.values()), every


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


def _replay_until_sure(count: int) -> dict[str, list[Spent]]:
    most = {table.name: min(MOST, table.seeds) for table in tables()}
    return {
        table.name: [
            until_sure(table, order, most[table.name]) for order in draws(table, min(count, REPLAYS), most[table.name])
        ]
        for table in tables()
    }


def _count_trainings(spent: Mapping[str, Sequence[Spent]]) -> list[dict[str, str]]:
    return [
        {
            "cells": table.name,
            "trainings, median": f"{np.median([one.trainings for one in spent[table.name]]):.0f}",
            "until the right set, median": f"{np.median([one.until_right for one in spent[table.name]]):.0f}",
            "of 5 seeds each": str(5 * len(table.norms)),
            "all that are as good stay in": _percent(float(np.mean([one.kept for one in spent[table.name]]))),
        }
        for table in tables()
    ]


def _compare_with_aims(
    found: Found, spent: Mapping[str, Sequence[Spent]], steady: Mapping[str, Mapping[str, float]], count: int
) -> list[dict[str, str]]:
    """A row for each aim, with the worst of what was found.

    The worst of many worlds is so by chance, too: it is drawn once more.
    """
    world = max(WORLDS, key=lambda world: found[world.name]["wrong at any look"])
    again = 3 * count
    test, val = world.draw(again, np.random.default_rng(1))
    said = [ours.one_by_one(test[:, :, :n], val[:, :, :n], world.images).behind for n in LOOKS]
    wrong = float(np.any([is_wrong(behind, world) for behind in said], 0).mean())
    covered = min(of[f"cover at {n}"] for of in found.values() for n in AT)
    (digits,) = (table for table in tables() if table.name == "digits")
    named = replayed(PROCEDURES[OURS], digits, 3, count)["far"]
    kept = min(share for of in steady.values() for share in of.values())
    until = max(
        float(np.median([one.until_right for one in spent[table.name]])) / (5 * len(table.norms)) for table in tables()
    )
    rows = (
        (
            f"a wrong statement, any look, {again} further studies of {world.name!r}",
            "at most 5 %",
            wrong,
            wrong <= 0.05,
        ),
        ("all printed intervals hold together, worst world", "at least 93 %", covered, covered >= 0.93),
        ("digits: names ln and none at 3 seeds", "at least 90 %", named, named >= 0.9),
        ("the same recommendation reordered or without a far norm", "at least 95 %", kept, kept >= 0.95),
        ("trainings until the right set, of 5 seeds each, median", "at most 25 %", until, until <= 0.25),
    )
    return [
        {"aim": what, "asked": asked, "found": _percent(value), "met": "yes" if met else "no"}
        for what, asked, value, met in rows
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bare(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
