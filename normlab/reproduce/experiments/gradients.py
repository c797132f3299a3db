"""Every hand-written gradient against centred differences, and the moments that normalization leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.finding import Finding
from normlab.scratch import fast_layers, layers
from normlab.scratch.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, rel_error

SMALL = {"seeds": 20}
# the reported errors
REPORTED = {
    "spatial batch norm dx": 2.7866e-07,
    "spatial batch norm dgamma": 7.0975e-12,
    "spatial batch norm dbeta": 3.2756e-12,
    "spatial group norm dx": 7.4131e-08,
    "spatial group norm dgamma": 9.4682e-12,
    "spatial group norm dbeta": 3.3545e-12,
    "layer norm dx": 1.43e-09,
    "layer norm dgamma": 4.52e-12,
    "layer norm dbeta": 2.28e-12,
}
STEP = 1e-5  # of the centred differences
USUAL = 1e-6  # the customary bound of an error, where none was reported


def run(setting: Setting) -> Result:
    errors: dict[str, list[float]] = {}
    allowed: dict[str, list[float]] = {}
    for seed in setting.seed_range:
        for name, error, bound in _errors(np.random.RandomState(seed)):
            errors.setdefault(name, []).append(error)
            allowed.setdefault(name, []).append(bound)
    findings = [
        verdicts.within_order(f"relative error of {name}", reported, errors[name], allowed[name])
        for name, reported in REPORTED.items()
    ]
    others = [max(values) for name, values in errors.items() if name not in REPORTED]
    findings.append(
        Finding(
            f"the other {len(others)} gradients agree with numerical ones",
            verdicts.OURS,
            f"largest error of any seed {max(others):.2g}",
            verdicts.HOLDS if max(others) < USUAL else verdicts.FAILS,
            f"holds if every error of every seed lies below {USUAL:g}, the field's custom",
            {"largest": others},
            exact=True,
        )
    )
    findings += _moments(len(setting.seed_range))
    records = [{"gradient": name, "error": e} for name, values in errors.items() for e in values]
    return Result(
        findings,
        {
            "arrays": "float64, small random ones as in the teaching assignment, drawn anew for each seed",
            "numerical gradient": "centred differences, h = 1e-5",
            "error": "max |a - b| / max(1e-8, |a| + |b|)",
        },
        charts={"errors": bars(records, "error", "gradient", title="Relative error of each gradient", log=True)},
        captions={"errors": "Hand-written against numerical gradients; mean and 95 % interval over seeds."},
        records=records,
    )


def _errors(rng: np.random.RandomState) -> Iterator[tuple[str, float, float]]:
    """(name of the gradient, its relative error, what arithmetic allows of it) for every function of the engine."""
    x, w, b = rng.randn(10, 2, 3), rng.randn(6, 5), rng.randn(5)
    yield from _compare("affine", layers.affine_forward, layers.affine_backward, [x, w, b], ["x", "w", "b"], rng)
    x = _away_from_zero(rng.randn(10, 10))
    yield from _compare("ReLU", layers.relu_forward, layers.relu_backward, [x], ["x"], rng)
    for kind in ("inverted", "vanilla"):
        param = {"mode": "train", "p": 0.2, "seed": 123, "kind": kind}
        yield from _compare(
            f"{kind} dropout",
            _bind(layers.dropout_forward, param),
            layers.dropout_backward,
            [rng.randn(10, 10) + 10],
            ["x"],
            rng,
        )
    affine = ["x", "gamma", "beta"]
    x, gamma, beta = 5 * rng.randn(4, 5) + 12, rng.randn(5), rng.randn(5)
    for name, backward in (
        ("batch norm (vanilla)", layers.batchnorm_backward),
        ("batch norm (simplified)", layers.batchnorm_backward_alt),
    ):
        forward = _bind(layers.batchnorm_forward, {"mode": "train"})
        yield from _compare(name, forward, backward, [x, gamma, beta], affine, rng)
    forward = _bind(layers.layernorm_forward, {})
    yield from _compare("layer norm", forward, layers.layernorm_backward, [x, gamma, beta], affine, rng)
    x = 5 * rng.randn(2, 3, 4, 5) + 12
    forward, backward = _bind(layers.spatial_batchnorm_forward, {"mode": "train"}), layers.spatial_batchnorm_backward
    arrays = [x, rng.randn(3), rng.randn(3)]
    yield from _compare("spatial batch norm", forward, backward, arrays, affine, rng)
    x = 5 * rng.randn(2, 6, 4, 5) + 12
    arrays = [x, rng.randn(1, 6, 1, 1), rng.randn(1, 6, 1, 1)]
    forward, backward = _bind(layers.spatial_groupnorm_forward, 2, {}), layers.spatial_groupnorm_backward
    yield from _compare("spatial group norm", forward, backward, arrays, affine, rng)
    arrays = [rng.randn(4, 3, 5, 5), rng.randn(2, 3, 3, 3), rng.randn(2)]
    for name, module, suffix in (("loops", layers, "naive"), ("compiled", fast_layers, "fast")):
        forward = _bind(getattr(module, f"conv_forward_{suffix}"), {"stride": 1, "pad": 1})
        backward = getattr(module, f"conv_backward_{suffix}")
        yield from _compare(f"convolution ({name})", forward, backward, arrays, ["x", "w", "b"], rng)
        forward = _bind(getattr(module, f"max_pool_forward_{suffix}"), {"pool_height": 2, "pool_width": 2, "stride": 2})
        backward = getattr(module, f"max_pool_backward_{suffix}")
        yield from _compare(f"max pooling ({name})", forward, backward, [rng.randn(3, 2, 8, 8)], ["x"], rng)
    scores, targets = 0.001 * rng.randn(50, 10), rng.randint(10, size=50)
    for name, loss in (("softmax loss", layers.softmax_loss), ("hinge loss", layers.svm_loss)):
        grad, value = loss(scores, targets)[1], _value(loss, targets)
        numerical, wider = (eval_numerical_gradient(value, scores, h=h) for h in (STEP, 2 * STEP))
        yield f"{name} dx", rel_error(grad, numerical), _allowed_error(grad, numerical, wider, abs(value(scores)))


def _compare(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    arrays: list[np.ndarray],
    names: list[str],
    rng: np.random.RandomState,
) -> Iterator[tuple[str, float, float]]:
    out, cache = forward(*arrays)
    dout = rng.randn(*out.shape)
    grads = backward(dout, cache)
    for i, (label, grad) in enumerate(zip(names, grads if isinstance(grads, tuple) else (grads,), strict=True)):

        def with_changed(a: np.ndarray, i: int = i) -> np.ndarray:
            answer: np.ndarray = forward(*arrays[:i], a, *arrays[i + 1 :])[0]
            return answer

        numerical, wider = (
            eval_numerical_gradient_array(with_changed, arrays[i].copy(), dout, h) for h in (STEP, 2 * STEP)
        )
        size = float(np.abs(dout * with_changed(arrays[i])).sum())
        yield f"{name} d{label}", rel_error(grad, numerical), _allowed_error(grad, numerical, wider, size)


def _allowed_error(grad: np.ndarray, numerical: np.ndarray, wider: np.ndarray, size: float) -> float:
    """The largest relative error that the arithmetic of centred differences explains.

    Their truncation is a third of what they change by when the step doubles; the sum of `size` that they subtract from
    itself is rounded.
    """
    off = np.abs(numerical - wider) + 2 * np.finfo(np.float64).eps * size / STEP
    return float(np.max(off / np.maximum(1e-8, np.abs(grad) + np.abs(numerical))))


def _bind(forward: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    return lambda *arrays: forward(*arrays, *settings)


def _value(loss: Callable[..., Any], targets: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda x: loss(x, targets)[0]


def _away_from_zero(x: np.ndarray) -> np.ndarray:
    # a centred difference across the corner of the rectifier is no gradient
    return x + np.sign(x) * 1e-2


def _moments(seeds: int) -> list[Finding]:
    """Means and standard deviations after normalization, plain and with gamma = [3, 4, 5], beta = [6, 7, 8]."""
    stds: dict[str, list[float]] = {"batch": [], "group": []}
    shifted_mean, shifted_std, group_mean, plain_mean = [], [], [], []
    gamma, beta = np.array([3.0, 4.0, 5.0]), np.array([6.0, 7.0, 8.0])
    for seed in range(seeds):
        rng = np.random.RandomState(seed)
        x = 4 * rng.randn(2, 3, 4, 5) + 10
        axes = (0, 2, 3)
        out, _ = layers.spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), {"mode": "train"})
        stds["batch"].append(float(out.std(axes).mean()))
        plain_mean.append(float(abs(out.mean(axes)).max()))
        out, _ = layers.spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
        shifted_mean.append(float(abs(out.mean(axes) - beta).max()))
        shifted_std.append(float(abs(out.std(axes) / gamma - 1).max()))
        x = 4 * rng.randn(2, 6, 4, 5) + 10
        ones = np.ones((1, 6, 1, 1))
        out, _ = layers.spatial_groupnorm_forward(x, ones, 0 * ones, 2, {})
        rows = out.reshape(4, -1)
        stds["group"].append(float(rows.std(1).mean()))
        group_mean.append(float(abs(rows.mean(1)).max()))
    rule = "holds if in every seed no mean is off by more than 1e-14 and no standard deviation by more than 1e-6"
    findings = []
    for name, reported, means in (
        ("batch", "means about 6e-16, stds 0.9999996", plain_mean),
        ("group", "means about 1e-16, stds 0.9999996", group_mean),
    ):
        off = max(abs(1 - s) for s in stds[name])
        measured = f"means within {max(means):.1g}, stds {verdicts.estimate(stds[name], '{:.8f}'.format)}"
        true = max(means) < 1e-14 and off < 1e-6
        findings.append(
            verdicts.exact(f"spatial {name} norm leaves mean 0 and std 1, less eps", reported, measured, true, rule)
        )
    measured = f"means within {max(shifted_mean):.1g}, stds within {max(shifted_std):.1g} of gamma"
    true = max(shifted_mean) < 1e-13 and max(shifted_std) < 1e-6
    rule = "holds if in every seed no mean is off by more than 1e-13 and no std by more than a part in 1e6"
    claim = "with gamma [3, 4, 5] and beta [6, 7, 8], means are beta and stds gamma"
    findings.append(verdicts.exact(claim, "means 6, 7, 8; stds 2.999999, 3.999999, 4.999998", measured, true, rule))
    return findings
