"""Keras's own tests of its normalization layers, over ours: `KERAS_BACKEND=torch python -m benchmarks.keras_tests`.

Keras's wheel ships its tests. A thin adapter has its layers compute by ours: they keep their constructors, weights and
configurations, and `call` takes their numbers to our layer and back. Prints how many tests pass by file, with ours and
with Keras's own computation. What our layers have no counterpart of is left to Keras: renorm with statistics of its
own, a mask of channels, `rms_scaling`, which divides by a deviation and subtracts nothing, and the shapes alone, on the
meta device. A mask is given to ours in training; in evaluation Keras does not look at it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import normlab
from normlab.errors import require

FILES = ("batch", "layer", "group", "rms")


def main() -> None:
    """Print the counts."""
    require("benchmarks.keras_tests", "keras", "keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    home = Path(keras.__file__).parent / "src" / "layers" / "normalization"
    called: Counter[str] = Counter()
    print(f"Keras {keras.__version__}, torch {torch.__version__}")
    for name in FILES:
        file = home / f"{name}_normalization_test.py"
        own, _ = outcomes(file)
        with ours(keras.layers, called):
            passed, failed = outcomes(file)
        print(f"{file.name}: {passed} of {passed + len(failed)} pass with ours, {own} with Keras's own")
        for test in failed:
            print(f"    {test}")
    print("calls of ours: " + ", ".join(f"{name} {count}" for name, count in called.items()))


class _Counted:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test that has no outcome but a pass is one that passed."""
        if report.failed:
            self.failed.append(report.nodeid.rpartition("::")[2] + ": " + str(report.longrepr).splitlines()[-1])
        self.passed += report.when == "call" and report.passed


def outcomes(file: Path) -> tuple[int, list[str]]:
    """How many tests of a file pass, and which fail."""
    counted = _Counted()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(file)], plugins=[counted])
    return counted.passed, counted.failed


@contextlib.contextmanager
def ours(layers: Any, called: Counter[str]) -> Iterator[None]:
    """Keras's layers compute by ours within the block."""
    adapters: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "GroupNormalization": _group,
        "LayerNormalization": _layer,
        "RMSNormalization": _rms,
    }
    kept = {name: getattr(layers, name).call for name in ("BatchNormalization", *adapters)}

    def adapted(name: str, adapter: Callable[[Any, Tensor], Tensor]) -> Callable[..., Any]:
        def call(layer: Any, inputs: Any) -> Any:
            if inputs.device.type == "meta" or getattr(layer, "rms_scaling", False):
                return kept[name](layer, inputs)
            called[name] += 1
            return adapter(layer, inputs)

        return call

    def batch(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        of_channels = mask is not None and mask.dim() > layer.axis % inputs.dim()
        if inputs.device.type == "meta" or layer.renorm or of_channels:
            return kept["BatchNormalization"](layer, inputs, training=training, mask=mask)
        called["BatchNormalization"] += 1
        return _batch(layer, inputs, bool(training and layer.trainable), mask)

    for name, adapter in adapters.items():
        getattr(layers, name).call = adapted(name, adapter)
    layers.BatchNormalization.call = batch
    try:
        yield
    finally:
        for name, call in kept.items():
            getattr(layers, name).call = call


def _run(layer: nn.Module, x: Tensor, held: dict[str, Any], **more: Any) -> Tensor:
    """Our layer on Keras's numbers, where it has them."""
    there = {k: v.value if hasattr(v, "value") else v for k, v in held.items() if v is not None}
    y: Tensor = functional_call(layer, there, (x,), more)
    return y


def _batch(layer: Any, x: Tensor, training: bool, mask: Any) -> Tensor:
    x = x.movedim(layer.axis, 1)
    made = normlab.layers.BatchNorm(x.shape[1], layer.epsilon, 1 - layer.momentum).train(training)
    old = {f"running_{k}": v.value.detach().clone() for k, v in
           (("mean", layer.moving_mean), ("var", layer.moving_variance))}  # fmt: skip
    moved = {k: v.clone() for k, v in old.items()}
    kept = None if mask is None or not training else mask.bool().expand(x.shape[0], *x.shape[2:])
    y = _run(made, x, {"weight": layer.gamma, "bias": layer.beta, **moved}, mask=kept)
    if training:  # ours averages the unbiased variance, Keras the biased one
        count = x.numel() // x.shape[1] if kept is None else int(kept.sum())
        before = layer.momentum * old["running_var"]
        layer.moving_mean.assign(moved["running_mean"])
        layer.moving_variance.assign(before + (moved["running_var"] - before) * (max(count - 1, 1) / max(count, 1)))
    return y.movedim(1, layer.axis)


def _group(layer: Any, x: Tensor) -> Tensor:
    x = x.movedim(layer.axis, 1)
    made = normlab.layers.GroupNorm(layer.groups, x.shape[1], layer.epsilon)
    return _run(made, x, {"weight": layer.gamma, "bias": layer.beta}).movedim(1, layer.axis)


def _layer(layer: Any, x: Tensor) -> Tensor:
    return _positions(layer, x, normlab.layers.LayerNorm, {"weight": layer.gamma, "bias": layer.beta})


def _rms(layer: Any, x: Tensor) -> Tensor:
    return _positions(layer, x, normlab.layers.RMSNorm, {"weight": layer.scale})


def _positions(layer: Any, x: Tensor, kind: Any, held: dict[str, Any]) -> Tensor:
    axes = sorted(a % x.dim() for a in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    last = list(range(x.dim() - len(axes), x.dim()))
    x = x.movedim(axes, last)
    return _run(kind(x.shape[last[0] :], layer.epsilon), x, held).movedim(last, axes)


if __name__ == "__main__":
    main()
