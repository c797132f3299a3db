"""Update rules against torch's optimizers, step after step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from normlab.errors import UsageError
from normlab.scratch import optim

# rule, its settings, torch's counterpart
RULES: dict[str, tuple[Any, dict[str, float], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (optim.sgd, {"learning_rate": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd_momentum": (
        optim.sgd_momentum,
        {"learning_rate": 0.1, "momentum": 0.8},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    ),
    "rmsprop": (
        optim.rmsprop,
        {"learning_rate": 0.01, "decay_rate": 0.9},
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9),
    ),
    "adam": (optim.adam, {"learning_rate": 0.01, "beta1": 0.8}, lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.999))),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RULES)
def test_rules_are_torchs(name: str, dtype: type) -> None:
    rule, settings, counterpart = RULES[name]
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 4)).astype(dtype)
    tensor = torch.tensor(w, requires_grad=True)
    optimizer = counterpart([tensor])
    config = {key: np.float64(value) for key, value in settings.items()}  # must not upcast
    for _ in range(5):
        dw = rng.normal(size=(3, 4)).astype(dtype)
        tensor.grad = torch.tensor(dw)
        optimizer.step()
        before = w.copy()
        next_w, config = rule(w, dw, config)
        assert np.array_equal(w, before), "w is not changed in place"
        w = next_w
        assert w.dtype == dtype
        np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_defaults_are_the_usual_ones() -> None:
    w, dw = np.ones(2), np.ones(2)
    expected = {
        "sgd": {"learning_rate": 1e-2},
        "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9},
        "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8},
        "adam": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1},
    }
    for name, settings in expected.items():
        _, config = optim.rule(name)(w, dw, None)
        assert {key: config[key] for key in settings} == settings


def test_adam_counts_before_it_corrects() -> None:
    """With t = 5 steps done, the sixth is corrected by 1 - beta^6, as published."""
    n, d = 4, 5
    w = np.linspace(-0.4, 0.6, num=n * d).reshape(n, d)
    dw = np.linspace(-0.6, 0.4, num=n * d).reshape(n, d)
    m, v = np.linspace(0.6, 0.9, num=n * d).reshape(n, d), np.linspace(0.7, 0.5, num=n * d).reshape(n, d)
    next_w, config = optim.adam(w, dw, {"learning_rate": 1e-2, "m": m, "v": v, "t": 5})
    np.testing.assert_allclose(next_w[0], [-0.40094747, -0.34836187, -0.29577703, -0.24319299, -0.19060977], rtol=1e-6)
    np.testing.assert_allclose(config["v"][0], [0.69966, 0.68908382, 0.67851319, 0.66794809, 0.65738853], rtol=1e-6)
    assert config["t"] == 6


def test_unknown_rules_and_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"update_rule must be one of 'sgd'.*got 'sdg'"):
        optim.rule("sdg")
    with pytest.raises(UsageError, match=r"config\['learning_rate'\] must be a number.*got -1"):
        optim.sgd(np.ones(2), np.ones(2), {"learning_rate": -1})
    with pytest.raises(UsageError, match=r"dw has shape \(3,\); expected \(2,\)"):
        optim.sgd(np.ones(2), np.ones(3))
    with pytest.raises(UsageError, match=r"config\['velocity'\] has shape \(1,\); expected \(2,\)"):
        optim.sgd_momentum(np.ones(2), np.ones(2), {"velocity": np.ones(1)})
