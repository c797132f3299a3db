"""Studies that stop when the question is settled."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import normlab
from normlab import cli
from normlab.errors import UsageError
from normlab.study.keeping.records import collect
from normlab.study.running.driver import Study
from normlab.study.running.jobs import Event, Job
from normlab.study.running.run import Options, or_until_sure
from normlab.study.running.until_sure import look, run_until_sure
from normlab.study.spec import make_spec
from normlab.study.verdict import judge
from tests.study.running.test_tuning import study, trained


def noisy(means: dict[str, float], spread: float = 0.01) -> Callable[[Job], list[Event]]:
    """Trainings that reach a norm's mean and luck that comes from norm and seed."""

    def answer(job: Job) -> list[Event]:
        luck = np.random.default_rng([job.cell.seed, *job.cell.norm.encode()]).normal()
        return trained(job, lambda job: means[job.cell.norm] + spread * float(luck))

    return answer


def seeds_of(under_way: Study) -> Counter[str]:
    return Counter(stored.cell.norm for stored in under_way.driver.store.cells() if stored.status == "done")


SPEC = make_spec({"norms": "bn,gn,ln,none", "epochs": 8, "seeds": 12, "batch_sizes": 32})


def test_norms_that_are_behind_get_no_more_seeds(tmp_path: Path) -> None:
    means = {"bn": 0.95, "gn": 0.9, "ln": 0.7, "none": 0.5}
    with study(tmp_path, noisy(means)) as (under_way, _):
        run_until_sure(under_way, SPEC.cells(100))
        seeds = seeds_of(under_way)
        verdict = collect(under_way.driver.store)["verdict"]
        notices = under_way.driver.listener.notices
    assert seeds["ln"] <= 3
    assert seeds["none"] <= 3
    assert seeds["ln"] < seeds["bn"] < 12
    assert verdict["best_set"] == ["bn"]
    assert notices[-1].endswith("settled: bn")
    assert any("still open: bn, gn" in notice and "behind: " in notice for notice in notices)


def test_norms_that_do_not_differ_by_more_than_matters_are_settled(tmp_path: Path) -> None:
    means = {"bn": 0.95, "gn": 0.95, "ln": 0.7, "none": 0.5}
    with study(tmp_path, noisy(means, 0.002)) as (under_way, _):
        run_until_sure(under_way, SPEC.cells(100))
        assert seeds_of(under_way)["bn"] < 12
        assert sorted(collect(under_way.driver.store)["verdict"]["best_set"]) == ["bn", "gn"]


# the best two of the digits are a tie, and all twelve seeds of both were trained to see it
def test_a_tie_that_more_seeds_would_not_break_ends_the_study(tmp_path: Path) -> None:
    means = {"bn": 0.95, "gn": 0.95, "ln": 0.7, "none": 0.5}
    with study(tmp_path, noisy(means, 0.02)) as (under_way, _):
        run_until_sure(under_way, SPEC.cells(100))
        notices = under_way.driver.listener.notices
        assert seeds_of(under_way)["bn"] <= 6
    assert notices[-1].endswith("(a tie: more seeds would hardly tell them apart)")


def test_it_ends_with_the_seeds_that_there_are(tmp_path: Path) -> None:
    few = make_spec({"norms": "bn,gn", "epochs": 8, "seeds": 3, "batch_sizes": 32})
    with study(tmp_path, noisy({"bn": 0.9, "gn": 0.9}, 0.05)) as (under_way, _):
        run_until_sure(under_way, few.cells(100))
        assert seeds_of(under_way) == {"bn": 3, "gn": 3}


def test_with_one_seed_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    one = make_spec({"norms": "bn,gn", "epochs": 8, "batch_sizes": 32})
    with study(tmp_path, noisy({"bn": 0.9, "gn": 0.5})) as (under_way, _):
        run_until_sure(under_way, one.cells(100))
        assert seeds_of(under_way) == {"bn": 1, "gn": 1}


def test_it_goes_on_where_it_stopped_and_stops_when_the_time_is_up(tmp_path: Path) -> None:
    means = {"bn": 0.95, "gn": 0.925, "ln": 0.7, "none": 0.5}
    under_way: Study

    def answer(job: Job) -> list[Event]:
        if len(executor.jobs) == 10:
            under_way.driver.deadline = time.monotonic() - 1
        return noisy(means)(job)

    with study(tmp_path, answer) as (under_way, executor):
        run_until_sure(under_way, SPEC.cells(100))
        assert len(executor.jobs) == 10
        assert collect(under_way.driver.store)["verdict"]["sentence"]
    with study(tmp_path, noisy(means)) as (under_way, executor):
        run_until_sure(under_way, SPEC.cells(100))
        resumed = seeds_of(under_way)
    (tmp_path / "fresh").mkdir()
    with study(tmp_path / "fresh", noisy(means)) as (under_way, _):
        run_until_sure(under_way, SPEC.cells(100))
        assert seeds_of(under_way) == resumed


# a study in which nothing had learned was called settled after two seeds
def test_nothing_is_settled_while_nothing_has_learned(tmp_path: Path) -> None:
    few = make_spec({"norms": "bn,gn", "epochs": 8, "seeds": 3, "batch_sizes": 32})
    with study(tmp_path, noisy({"bn": math.nan, "gn": math.nan})) as (under_way, _):
        run_until_sure(under_way, few.cells(100))
        notices = under_way.driver.listener.notices
        assert len(under_way.driver.store.cells()) == 6
    assert not any("settled" in notice for notice in notices)
    assert any("still open: every norm" in notice for notice in notices)


# --force forgot the first two seeds alone, and later ones of an earlier run entered the verdict
def test_what_is_forced_is_forgotten_once_whatever_its_seed(tmp_path: Path) -> None:
    forgotten: list[int] = []
    with study(tmp_path, noisy({"bn": 0.9, "gn": 0.9}, 0.05)) as (under_way, _):
        under_way.prepare = forgotten.extend
        few = make_spec({"norms": "bn,gn", "epochs": 8, "seeds": 4, "batch_sizes": 32})
        run_until_sure(under_way, few.cells(100))
        assert sorted(forgotten) == sorted(stored.id for stored in under_way.driver.store.cells())


def test_how_much_is_trained_is_said_before_and_how_long_it_takes_after_the_first_seed(tmp_path: Path) -> None:
    with study(tmp_path, noisy({"bn": 0.95, "gn": 0.9, "ln": 0.7, "none": 0.5})) as (under_way, _):
        run_until_sure(under_way, SPEC.cells(100))
        said, soon, *_ = under_way.driver.listener.notices
    assert said.startswith("until it is sure: at least 8 trainings, 2 seeds of each, and at most 48;")
    assert soon.startswith("another seed of these takes about ")
    assert soon.endswith(" at most")


@pytest.mark.parametrize(
    ("values", "until_sure", "sure"),
    [
        ({}, None, True),
        ({"norms": "bn,gn"}, None, True),
        ({"norms": "bn"}, None, False),
        ({"seeds": 1}, None, False),
        ({"seeds": [0, 1, 2]}, None, False),
        ({"seeds": 3}, True, True),
        ({}, False, False),
    ],
)
def test_a_study_without_seeds_trains_until_it_is_sure(
    values: dict[str, Any], until_sure: bool | None, sure: bool
) -> None:
    assert or_until_sure(make_spec(values), Options(until_sure=until_sure)).until_sure is sure


# `compare` without seeds trained one, which has no verdict
def test_compare_without_seeds_trains_until_it_is_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool | None] = []

    def stop(spec: Any, directory: Path, options: Options, **_: Any) -> None:
        seen.append(options.until_sure)
        raise UsageError("enough")

    monkeypatch.setattr("normlab.study.running.run.run_study", stop)
    monkeypatch.setattr("normlab.report.lab.run_study", stop)
    for arguments in ([], ["--seeds", "1"]):
        with pytest.raises(SystemExit):
            cli.main(["compare", "digits", "--out", str(tmp_path), *arguments])
    for seeds in (None, 1):
        with pytest.raises(UsageError):
            normlab.compare("digits", seeds=seeds, out=tmp_path)
    assert seen == [True, False, True, False]


# at two seeds every norm whose mean was below a linear classifier's was out, and the question settled
def test_a_norm_that_may_be_better_than_a_linear_classifier_is_open() -> None:
    values = {"bn": [0.955, 0.965], "in": [0.91, 0.945], "ln": [0.5, 0.52]}
    rows = [
        {"norm": norm, "seed": seed, "test": {"accuracy": value}}
        for norm, of in values.items()
        for seed, value in enumerate(of)
    ]
    verdict = judge(rows, floors={"chance": 0.1, "linear classifier": 0.937})
    assert verdict.best_set == ["bn"]
    assert look(verdict, 12).open == ("bn", "in")
