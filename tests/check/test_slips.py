"""Every wrong formula of the library is told from every other by what it predicts, in every kind of norm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from normlab.check import slips
from normlab.check.diagnose import Observation, error, explain_gradient, explain_output, explain_running
from normlab.check.oracle import (
    KINDS,
    Array,
    Case,
    Recipe,
    forward,
    input_gradient,
    parameter_gradients,
)
from normlab.check.probe import sample

TRACKING = ("batch", "batch-instance")


def recipes(kind: str) -> list[Recipe]:
    overs = ("trailing", "sample") if kind in ("layer", "rms") else ("sample",)
    return [Recipe(kind, 6, groups=3, eps=3e-3, tracks=kind in TRACKING, over=over) for over in overs]


def cases(recipe: Recipe, training: bool) -> list[Case]:
    kind = recipe.kind
    rng = np.random.default_rng(4)
    out = []
    shapes = [(5, 4, 6), (7, 6), (5, 4, 3, 6)] if recipe.over == "trailing" else [(5, 6, 4, 3), (5, 6, 4)]
    for seed, (shape, scale) in enumerate([*((s, 2.0) for s in shapes), (shapes[0], 0.01)]):
        signs = np.where(np.arange(6) % 3 == 1, -1, 1)
        out.append(
            Case(
                recipe,
                sample(shape, scale, seed=seed),
                rng.uniform(0.5, 2, 6) * signs,
                rng.uniform(0.2, 1, 6) if recipe.centers else None,
                rng.uniform(0.15, 0.85, 6) if kind == "batch-instance" else None,
                (rng.normal(size=6) * scale, rng.uniform(0.3, 3, 6) * scale**2) if recipe.tracks else None,
                training,
            )
        )
    return out


def ids(library: tuple[slips.Slip, ...]) -> list[str]:
    return [f"{s.cause}-{i}" for i, s in enumerate(library)]


@pytest.mark.parametrize("slip", slips.FORWARD, ids=ids(slips.FORWARD))
def test_a_wrong_output_is_explained(slip: slips.ForwardSlip) -> None:
    evaluation = slip.only_running or slip.cause == "batch-statistics-in-eval"
    told = 0
    for kind in slip.kinds:
        if evaluation and kind not in TRACKING:
            continue
        for recipe in recipes(kind):
            with np.errstate(all="ignore"):
                seen = [Observation(c, slip.predict(c), forward(c)) for c in cases(recipe, not evaluation)]
            if max(error(o.got, o.right) for o in seen) < 1e-8:
                continue  # in this norm the formula is right
            found = explain_output(seen, 1e-8)
            assert found is not None, kind
            assert _same(found, slip, seen), (kind, found.cause, slip.cause)
            told += found.cause == slip.cause
    assert told, "nothing is ever called by this name"


def _same(found: slips.Slip, slip: slips.Slip, seen: list[Observation]) -> bool:
    """The same cause, or another name of the same prediction."""
    if found.cause == slip.cause:
        return True
    return all(error(found.predict(o.case, o.dy), o.got) < 1e-7 for o in seen)


@pytest.mark.parametrize("slip", slips.GRADIENT, ids=ids(slips.GRADIENT))
def test_a_wrong_gradient_is_explained(slip: slips.GradientSlip) -> None:
    evaluation = slip.cause == "dx-training-formula-in-eval"
    told = 0
    for kind in slip.kinds:
        if (evaluation and kind not in TRACKING) or (slip.of == "bias" and kind == "rms"):
            continue
        seen = []
        for seed, case in enumerate(cases(recipes(kind)[0], not evaluation)):
            dy = sample(case.x.shape, 1.0, 0.3, seed=50 + seed)
            right = {"x": input_gradient(case, dy), **parameter_gradients(case, dy)}[slip.of]
            seen.append(Observation(case, slip.predict(case, dy), right, dy))
        if max(error(o.got, o.right) for o in seen) < 1e-8:
            continue  # in this norm the formula is right
        found = explain_gradient(slip.of, seen, 1e-7)
        assert found is not None, kind
        assert _same(found, slip, seen), (kind, found.cause, slip.cause)
        told += found.cause == slip.cause
    assert told, "nothing is ever called by this name"


@pytest.mark.parametrize("index", range(len(slips.STATE)), ids=ids(slips.STATE))
def test_a_wrong_update_is_explained(index: int) -> None:
    slip = slips.STATE[index]
    dialect = replace(recipes("batch")[0], unbiased_running_var=slip.cause != "running-var-unbiased", momentum=0.3)
    steps = [replace(c, recipe=dialect) for c in cases(recipes("batch")[0], True)]
    after: list[tuple[Array, Array]] = []
    for case in steps:
        u = slips.Update.of(case)
        after.append((slip.predict_mean(u), slip.predict_var(u)))
    found = explain_running(steps, after, 1e-8)
    assert found is not None
    assert found.cause == slip.cause


def test_a_right_layer_needs_no_explanation_and_nonsense_gets_none() -> None:
    for kind in KINDS:
        seen = [Observation(c, np.sin(c.x), forward(c)) for c in cases(recipes(kind)[0], True)]
        assert explain_output(seen, 1e-8) is None
        assert explain_gradient("x", [replace(o, dy=o.case.x) for o in seen], 1e-8) is None
    case = cases(recipes("batch")[0], True)[0]
    assert explain_running([case], [(np.arange(6.0), np.arange(6.0))], 1e-8) is None


def test_every_slip_has_words_and_a_formula() -> None:
    for slip in (*slips.FORWARD, *slips.GRADIENT, *slips.STATE):
        assert len(slip.sentence) > 10
        assert len(slip.formula) > 10
        assert set(slip.kinds) <= set(KINDS)
