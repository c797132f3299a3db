"""Update rules: (w, dw, config) -> (next_w, config), state and settings in `config`, which may be None at first.

w and dw have one shape; next_w is a new array in the dtype of w. Missing settings take the defaults below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normlab.scratch import _checks as check

Config = dict[str, Any]
UpdateRule = Callable[[np.ndarray, np.ndarray, Config | None], tuple[np.ndarray, Config]]


def sgd(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Stochastic gradient descent: next_w = w - learning_rate * dw. Setting: learning_rate (1e-2)."""
    w, dw, config, (lr,) = _read_config(w, dw, config, learning_rate=1e-2)
    return w - lr * dw, config


def sgd_momentum(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Gradient descent with momentum: v = momentum * v - learning_rate * dw, next_w = w + v.

    Settings: learning_rate (1e-2), momentum (0.9). State: velocity (zeros).
    """
    w, dw, config, (lr, momentum) = _read_config(w, dw, config, learning_rate=1e-2, momentum=0.9)
    velocity = momentum * _state(config, "velocity", w) - lr * dw
    config["velocity"] = velocity
    return w + velocity, config


def rmsprop(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """RMSProp: steps scaled by a running mean of squared gradients.

        cache = decay_rate * cache + (1 - decay_rate) * dw^2
        next_w = w - learning_rate * dw / (sqrt(cache) + epsilon)

    Settings: learning_rate (1e-2), decay_rate (0.99), epsilon (1e-8). State: cache (zeros). Tieleman and Hinton,
    Coursera lecture 6.5, 2012.
    """
    w, dw, config, (lr, decay, epsilon) = _read_config(w, dw, config, learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8)
    cache = decay * _state(config, "cache", w) + (1 - decay) * dw**2
    config["cache"] = cache
    return w - lr * dw / (np.sqrt(cache) + epsilon), config


def adam(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Adam: momentum and RMSProp together, both corrected for having started at zero.

        t = t + 1
        m = beta1 * m + (1 - beta1) * dw          mhat = m / (1 - beta1^t)
        v = beta2 * v + (1 - beta2) * dw^2        vhat = v / (1 - beta2^t)
        next_w = w - learning_rate * mhat / (sqrt(vhat) + epsilon)

    Settings: learning_rate (1e-3), beta1 (0.9), beta2 (0.999), epsilon (1e-8). State: m, v (zeros), t (0).
    Kingma and Ba, arXiv:1412.6980.
    """
    w, dw, config, (lr, beta1, beta2, epsilon) = _read_config(
        w, dw, config, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8
    )
    t = check.integer("config['t']", config.get("t", 0), 0) + 1
    m = beta1 * _state(config, "m", w)
    m += (1 - beta1) * dw
    v = beta2 * _state(config, "v", w)
    v += (1 - beta2) * dw**2
    config.update(t=t, m=m, v=v)
    # in place: fresh memory costs more than the arithmetic
    scale = v / (1 - beta2**t)
    np.sqrt(scale, out=scale)
    scale += epsilon
    step = m / (1 - beta1**t)
    step *= lr
    step /= scale
    return np.subtract(w, step, out=step), config


RULES: dict[str, UpdateRule] = {"sgd": sgd, "sgd_momentum": sgd_momentum, "rmsprop": rmsprop, "adam": adam}


def rule(update_rule: str | UpdateRule) -> UpdateRule:
    """The update rule of a name, or the function itself; raises UsageError naming the ones that exist."""
    if callable(update_rule):
        return update_rule
    return RULES[check.one_of("update_rule", update_rule, tuple(RULES))]


def _read_config(
    w: np.ndarray, dw: np.ndarray, config: Config | None, **defaults: float
) -> tuple[np.ndarray, np.ndarray, Config, list[float]]:
    w = check.floats("w", w)
    dw = check.like("dw", dw, w, w.shape)
    config = {} if config is None else config
    settings = []
    for key, default in defaults.items():
        high = 1.0 if key in ("momentum", "decay_rate", "beta1", "beta2") else float("inf")
        settings.append(check.number(f"config[{key!r}]", config.setdefault(key, default), 0, high))
    return w, dw, config, settings


def _state(config: Config, key: str, w: np.ndarray) -> np.ndarray:
    state = config.get(key)
    return np.zeros_like(w) if state is None else check.like(f"config[{key!r}]", state, w, w.shape)
