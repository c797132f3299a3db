"""Layer objects keep their parameters and gradients in many places: each is found, and a fault in it is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normlab.check import conformance
from normlab.check.report import Report

QUICK = ("target", "values.train", "gradients.train")


def normalized(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, Any]:
    std = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    xhat = (x - x.mean(-1, keepdims=True)) / std
    return gamma * xhat + beta, (xhat, std, gamma)


def gradients(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    xhat, std, gamma = cache
    g = dy * gamma
    dx = (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True)) / std
    return dx, (dy * xhat).sum(0), dy.sum(0)


class Box:
    """A parameter of many courses: a value and its gradient."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.grad = value, np.zeros_like(value)


class Kept:
    """Layer norm; `pair` reads gamma and beta, `leave` writes their gradients."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        y, self.cache = normalized(x, *self.pair())
        return y

    def backward(self, dy: np.ndarray) -> Any:
        dx, dgamma, dbeta = gradients(dy, self.cache)
        return self.leave(dx, dgamma, dbeta)

    def pair(self) -> tuple[Any, Any]:
        raise NotImplementedError

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        raise NotImplementedError


class InBoxes(Kept):
    def __init__(self, n_features: int) -> None:
        self.gamma, self.beta = Box(np.ones(n_features)), Box(np.zeros(n_features))

    def pair(self) -> tuple[Any, Any]:
        return self.gamma.value, self.beta.value

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.gamma.grad, self.beta.grad = dgamma, dbeta
        return dx


class InBoxesOfADictionary(Kept):
    def __init__(self, n_features: int) -> None:
        self.params = {"gamma": Box(np.ones(n_features)), "beta": Box(np.zeros(n_features))}

    def pair(self) -> tuple[Any, Any]:
        return self.params["gamma"].value, self.params["beta"].value

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.params["gamma"].grad, self.params["beta"].grad = dgamma, dbeta
        return dx


class InNestedDictionaries(Kept):
    def __init__(self, n_features: int) -> None:
        self.params: dict[str, dict[str, Any]] = {
            "gamma": {"value": np.ones(n_features), "grad": None},
            "beta": {"value": np.zeros(n_features), "grad": None},
        }

    def pair(self) -> tuple[Any, Any]:
        return self.params["gamma"]["value"], self.params["beta"]["value"]

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.params["gamma"]["grad"], self.params["beta"]["grad"] = dgamma, dbeta
        return dx


class InLists(Kept):
    def __init__(self, n_features: int) -> None:
        self.params = [np.ones(n_features), np.zeros(n_features)]
        self.grads = [np.zeros(n_features), np.zeros(n_features)]

    def pair(self) -> tuple[Any, Any]:
        return self.params[0], self.params[1]

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.grads[0][...], self.grads[1][...] = dgamma, dbeta
        return dx


class InTuples(Kept):
    def __init__(self, n_features: int) -> None:
        self.params = np.ones(n_features), np.zeros(n_features)

    def pair(self) -> tuple[Any, Any]:
        return self.params

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.grads = dgamma, dbeta
        return dx


class SlottedBox:
    __slots__ = ("grad", "value")

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.grad = value, np.zeros_like(value)


class InSlottedBoxes(InBoxes):
    def __init__(self, n_features: int) -> None:
        self.gamma, self.beta = SlottedBox(np.ones(n_features)), SlottedBox(np.zeros(n_features))  # type: ignore[assignment]


class MadeWithTheFirstBatch(Kept):
    def __init__(self) -> None:
        self.params: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}

    def forward(self, x: np.ndarray) -> np.ndarray:
        if not self.params:
            self.params = {"gamma": np.ones(x.shape[-1]), "beta": np.zeros(x.shape[-1])}
        return super().forward(x)

    def pair(self) -> tuple[Any, Any]:
        return self.params["gamma"], self.params["beta"]

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        self.grads = {"gamma": dgamma, "beta": dbeta}
        return dx


class ReturnsADictionary(Kept):
    def __init__(self, n_features: int) -> None:
        self.params = {"W": np.ones(n_features), "b": np.zeros(n_features)}

    def pair(self) -> tuple[Any, Any]:
        return self.params["W"], self.params["b"]

    def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
        return dx, {"W": dgamma, "b": dbeta}


LAYERS = [
    InBoxes,
    InSlottedBoxes,
    InBoxesOfADictionary,
    InNestedDictionaries,
    InLists,
    InTuples,
    MadeWithTheFirstBatch,
    ReturnsADictionary,
]


def checked(layer: Any, backward: Any = None) -> Report:
    from normlab.check.engine import examine
    from normlab.check.subjects import subject_of

    return examine(subject_of(layer, backward=backward, kind="layer"), "layer", quick=True, only=QUICK)


# "affine: none ... conforms": the parameters were not seen, and their gradients never looked at
@pytest.mark.parametrize("layer", LAYERS)
def test_parameters_are_found_where_they_are_kept(layer: Any) -> None:
    report = checked(layer)
    assert report.ok, report.text()
    assert report.dialect["affine"] == "weight (6,), bias (6,)"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_wrong_gradient_is_found_where_it_is_kept(layer: Any) -> None:
    class Wrong(layer):  # type: ignore[misc]
        def leave(self, dx: Any, dgamma: Any, dbeta: Any) -> Any:
            return super().leave(dx, dbeta, dbeta)

    report = checked(Wrong)
    assert [f.cause for f in report.bugs] == ["dweight-is-dbias"], report.text()


def layernorm_of(x: np.ndarray, theta: dict[str, np.ndarray]) -> np.ndarray:
    return normalized(x, theta["gamma"], theta["beta"])[0]


# "the layer takes no input: missing 1 required positional argument"
def test_a_function_of_unknown_arguments_is_told_the_way() -> None:
    report = conformance(layernorm_of, kind="layer", quick=True)
    assert "requires the argument 'theta'" in report.bugs[0].message
    assert "no fault of its mathematics" in report.bugs[0].message


class Lazy(nn.Module):
    def __init__(self, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LazyBatchNorm2d(eps=eps, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


# a traceback of ours: "Attempted to use an uninitialized parameter"
@pytest.mark.parametrize("layer", [Lazy, nn.LazyBatchNorm2d, Lazy()])
def test_lazy_modules_are_given_their_sizes(layer: Any) -> None:
    report = conformance(layer, kind="batch", quick=True)
    assert report.ok, report.text()
    assert report.dialect["affine"] == "weight (6,), bias (6,)"
