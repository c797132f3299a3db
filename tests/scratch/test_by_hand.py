"""The chapters of docs/by_hand: listings are the code, exercises have the slip they promise, and all of it runs."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normlab.check.engine import examine
from normlab.check.subjects import subject_of
from normlab.scratch import _batch, _standardize, layers
from normlab.scratch.gradient_check import eval_numerical_gradient_array, rel_error
from tests.notebooks import run_notebook

DOCS = Path(__file__).parents[2] / "docs"
CHAPTERS = sorted((DOCS / "by_hand").glob("*.md"))


def module_of(source: str, name: str) -> Any:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def imported(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"by_hand_{name}", DOCS / "by_hand" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


exercises, reshaping = imported("exercises"), imported("reshaping")
EVERY = [(chapter, n) for chapter, some in exercises.EXERCISES.items() for n in range(len(some))]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)
def test_the_listings_are_the_code(page: Path) -> None:
    for listing in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        name = re.search(r"def (\w+)", listing)
        assert name is not None
        where = reshaping if page.stem == "reshaping" else layers
        where = next(m for m in (where, _standardize, _batch) if hasattr(m, name.group(1)))
        assert listing == inspect.getsource(getattr(where, name.group(1)))


def test_every_chapter_has_three_exercises_and_its_place_in_the_site() -> None:
    pages = {p.stem for p in CHAPTERS} - {"index"}
    assert set(exercises.EXERCISES) == pages
    assert {len(some) for some in exercises.EXERCISES.values()} == {3}
    nav = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f"by_hand/{page}.md" in nav for page in pages)


@pytest.mark.parametrize(("chapter", "n"), [e for e in EVERY if e[0] not in exercises.BY_GRADIENT])
def test_the_check_names_the_slip(chapter: str, n: int) -> None:
    exercise = exercises.EXERCISES[chapter][n]
    module = module_of(exercise.source(), f"exercise_{chapter}_{n}")
    backward = getattr(module, exercise.target.replace("forward", "backward"))
    subject = subject_of(getattr(module, exercise.target), exercise.target, backward)
    assert examine(subject, quick=True, only=("values", "gradients"), first_bug=True).cause == exercise.cause


def test_the_spatial_norm_by_rows_is_that_of_the_library() -> None:
    x, dout = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 2))
    gamma, beta = np.arange(1.0, 5.0), np.arange(4.0)
    outs, grads = [], []
    for module in (reshaping, layers):
        out, cache = module.spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
        outs.append(out)
        grads.append(module.spatial_batchnorm_backward(dout, cache))
    np.testing.assert_allclose(*outs)
    for mine, theirs in zip(*grads, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("n", range(3))
def test_an_exercise_on_dropout_shows_in_its_means_or_its_gradient(n: int) -> None:
    def wrong(module: Any) -> set[str]:
        x = np.ones((200, 200))
        param = {"p": 0.5, "seed": 3}
        trained, tested = (module.dropout_forward(x, {**param, "mode": m})[0].mean() for m in ("train", "test"))
        found = {"the mean of the output"} if abs(trained - tested) > 0.1 else set()
        small = np.random.default_rng(0).standard_normal((3, 4))
        _, cache = module.dropout_forward(small, {**param, "mode": "train"})
        numeric = eval_numerical_gradient_array(
            lambda x: module.dropout_forward(x, {**param, "mode": "train"})[0], small, np.ones((3, 4))
        )
        return found | ({"dx"} if rel_error(module.dropout_backward(np.ones((3, 4)), cache), numeric) > 1e-6 else set())

    exercise = exercises.EXERCISES["dropout"][n]
    assert wrong(layers) == set()
    assert exercise.cause in wrong(module_of(exercise.source(), f"exercise_dropout_{n}"))


@pytest.mark.parametrize("n", range(3))
def test_an_exercise_on_convolution_shows_in_its_gradient(n: int) -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 2, 4, 4)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)

    def wrong(module: Any) -> set[str]:
        param = {"stride": 1, "pad": 1}
        out, cache = module.conv_forward_naive(x, w, b, param)
        dout = rng.standard_normal(out.shape)
        found = set()
        for name, value, got in zip(
            ("dx", "dw", "db"), (x, w, b), module.conv_backward_naive(dout, cache), strict=True
        ):
            numeric = eval_numerical_gradient_array(
                lambda v: module.conv_forward_naive(x, w, b, param)[0],  # the value is changed in place
                value,
                dout,
            )
            found |= {name} if rel_error(got, numeric) > 1e-5 else set()
        pool = {"pool_height": 2, "pool_width": 2, "stride": 2}
        out, cache = module.max_pool_forward_naive(x, pool)
        dout = rng.standard_normal(out.shape)
        numeric = eval_numerical_gradient_array(lambda v: module.max_pool_forward_naive(v, pool)[0], x, dout)
        return found | ({"dx"} if rel_error(module.max_pool_backward_naive(dout, cache), numeric) > 1e-5 else set())

    exercise = exercises.EXERCISES["convolution"][n]
    assert wrong(layers) == set()
    assert wrong(module_of(exercise.source(), f"exercise_convolution_{n}")) == {exercise.cause}


def test_an_exercise_is_printed_and_what_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exercises.main(["layer", "1"]) == 0
    assert "def layernorm_forward" in capsys.readouterr().out
    assert exercises.main(["layer", "4"]) == 2
    assert "1 to 3" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    run_notebook(DOCS / "notebooks" / "by_hand.ipynb")
