"""The teeth of `test_positions`: each mistake planted in the kernels of statistics per position makes `check` raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from normlab.kernels.cpu import positions as numba_positions
from normlab.kernels.reference import positions as reference_positions
from normlab.layers import norms as layers
from tests.kernels.test_positions import check
from tests.layers.parity import BACKENDS, backend

Plant = Callable[[pytest.MonkeyPatch, Any], None]
MODULES = {"numba_cpu": numba_positions, "reference": reference_positions}


def before(change: Callable[..., tuple]) -> Plant:
    """`change(x, weight, bias, eps, centred)` answers what the kernel forward is given in their place."""

    def plant(patch: pytest.MonkeyPatch, module: Any) -> None:
        original = module.forward
        patch.setattr(module, "forward", lambda *args: original(*change(*args[:5]), args[5]))

    return plant


def after(change: Callable[..., None]) -> Plant:
    """`change(x, weight, bias, eps, centred, y)` spoils y."""

    def plant(patch: pytest.MonkeyPatch, module: Any) -> None:
        original = module.forward

        def spoiled(*args: Any) -> Any:
            saved = original(*args)
            change(*args)
            return saved

        patch.setattr(module, "forward", spoiled)

    return plant


def back(change: Callable[..., None]) -> Plant:
    """`change(saved, x, weight, g, dx, d_weight, d_bias)` spoils the gradients."""

    def plant(patch: pytest.MonkeyPatch, module: Any) -> None:
        original = module.backward

        def spoiled(*args: Any) -> None:
            original(*args)
            change(*args)

        patch.setattr(module, "backward", spoiled)

    return plant


def rstd(x: torch.Tensor) -> torch.Tensor:
    return (x.var(1, keepdim=True, unbiased=False) + 1e-5) ** -0.5


def along(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return weight.reshape((1, -1, 1)[: x.dim()])


def mean_is_constant(saved: Any, x: Any, weight: Any, g: Any, dx: Any, *_: Any) -> None:
    dx += rstd(x) * (g * along(weight, x)).mean(1, keepdim=True)


def variance_is_constant(saved: Any, x: Any, weight: Any, g: Any, dx: Any, *_: Any) -> None:
    h = (x - x.mean(1, keepdim=True)) * rstd(x)
    dx += rstd(x) * h * (g * along(weight, x) * h).mean(1, keepdim=True)


def unit_left_out(saved: Any, x: Any, weight: Any, g: Any, dx: Any, d_weight: Any, d_bias: Any) -> None:
    """The last position is missing in the gradient of the bias."""
    d_bias -= g[-1] if x.dim() == 2 else g[-1, :, -1]


ROWS, COLUMNS = ("layer", (70, 33)), ("channel", (2, 9, 5, 5))
SABOTAGE: dict[str, tuple[Plant, Any]] = {
    "eps of another size": (before(lambda x, w, b, eps, centred: (x, w, b, eps + 1e-3, centred)), ROWS),
    "mean is kept": (before(lambda x, w, b, eps, centred: (x, w, b, eps, False)), ROWS),
    "mean is taken off": (before(lambda x, w, b, eps, centred: (x, w, b, eps, True)), ("rms", (70, 33))),
    "no bias": (before(lambda x, w, b, eps, centred: (x, w, None, eps, centred)), COLUMNS),
    "no weight": (before(lambda x, w, b, eps, centred: (x, None, b, eps, centred)), COLUMNS),
    "weight and bias exchanged": (before(lambda x, w, b, eps, centred: (x, b, w, eps, centred)), ROWS),
    "unbiased variance": (
        after(lambda x, w, b, eps, centred, y: y.sub_(along(b, x)).mul_((1 - 1 / x.shape[1]) ** 0.5).add_(along(b, x))),
        COLUMNS,
    ),
    "last element is not written": (after(lambda *args: args[5][-1, -1].zero_()), ROWS),
    "mean is taken as a constant": (back(mean_is_constant), ROWS),
    "variance is taken as a constant": (back(variance_is_constant), COLUMNS),
    "gradient of the weight halved": (back(lambda *args: args[5].mul_(0.5)), ROWS),
    "gradient of the bias missing": (back(lambda *args: args[6].zero_()), COLUMNS),
    "last position left out, of rows": (back(unit_left_out), ROWS),
    "last position left out, of columns": (back(unit_left_out), COLUMNS),
    "gradients exchanged": (back(lambda *args: args[5].copy_(args[6])), COLUMNS),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("mistake", SABOTAGE)
def test_sabotage(mistake: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, case = SABOTAGE[mistake]
    plant(monkeypatch, MODULES[name])
    with backend(name), pytest.raises(AssertionError):
        check(*case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", [ROWS, COLUMNS, ("rms", (70, 33))], ids=str)
def test_control(case: Any, name: str) -> None:
    with backend(name):
        check(*case)


def test_wrong_dimension_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A square input hides which dimension is normalized from every comparison of shapes."""
    forward = layers.LayerNorm.forward
    monkeypatch.setattr(layers.LayerNorm, "forward", lambda self, x: forward(self, x.mT).mT)
    with pytest.raises(AssertionError):
        check("layer", (6, 6))
