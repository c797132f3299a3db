"""What a target changes of the process that imports and runs it: put back, so that it blames no layer, and reported."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normlab.check.report import Finding


@dataclass
class SideEffects:
    """Settings of the process that the target changed, in words; `put_back` after every look."""

    changed: list[str] = field(default_factory=list)

    @contextmanager
    def watched(self, seeds: bool = False) -> Iterator[None]:
        """Put back what is changed inside; `seeds` says that random generators, too, must stay as they are."""
        before = _settings() | (_generators() if seeds else {})
        filters = list(warnings.filters) if seeds else None
        try:
            yield
        finally:
            if "torch" in sys.modules:  # where the target's import is the first, torch was as it always begins
                before = _pristine() | before
            now = _settings() | (_generators() if seeds else {})
            for name, value in before.items():
                if name in now and not _are_equal(now[name], value):
                    _put_back(name, value)
                    self._note(f"{name} ({now[name]} in place of {value})" if isinstance(value, (str, int)) else name)
            if filters is not None and list(warnings.filters) != filters:
                mine = [f for f in warnings.filters if f not in filters]
                if len(mine) and any(f[0] == "ignore" and f[3] is None for f in mine):
                    self._note("the filters of warnings")
                warnings.filters[:] = filters  # type: ignore[index]

    def _note(self, words: str) -> None:
        if words not in self.changed:
            self.changed.append(words)

    def finding(self) -> Finding | None:
        """What is to be said; None where nothing was changed."""
        if not self.changed:
            return None
        return Finding(
            "target.side-effects",
            "bug",
            f"importing or running the target changes the process: {', '.join(self.changed)}; this was put back, so "
            "that the checks are about the layer",
            "side-effects",
            "a layer changes nothing outside itself: with torch.no_grad(): ..., not torch.set_grad_enabled(False)",
        )


def _settings() -> dict[str, Any]:
    """Settings that change what others compute, torch's where it is imported."""
    found: dict[str, Any] = {"np.seterr": np.geterr(), "np.set_printoptions": np.get_printoptions()["precision"]}
    torch = sys.modules.get("torch")
    if torch is not None:
        found |= {
            "torch.set_grad_enabled": torch.is_grad_enabled(),
            "torch.set_default_dtype": torch.get_default_dtype(),
            "torch.set_num_threads": torch.get_num_threads(),
            "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch.autograd.set_detect_anomaly": torch.is_anomaly_enabled(),
            "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch.set_flush_denormal": _flushes(torch),
        }
    return found


def _pristine() -> dict[str, Any]:
    """torch's settings as they are when it is imported, but for the threads, which the machine decides."""
    import torch

    return {
        "torch.set_grad_enabled": True,
        "torch.set_default_dtype": torch.float32,
        "torch.use_deterministic_algorithms": False,
        "torch.autograd.set_detect_anomaly": False,
        "torch.set_float32_matmul_precision": "highest",
        "torch.set_flush_denormal": False,
    }


def _flushes(torch: Any) -> bool:
    """Whether torch takes denormal numbers for zero."""
    return bool((torch.full((1,), 1e-310, dtype=torch.float64) * 1.0).item() == 0.0)


def _generators() -> dict[str, Any]:
    found: dict[str, Any] = {"random.seed": random.getstate(), "np.random.seed": np.random.get_state()}  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch.manual_seed"] = torch.random.get_rng_state()
    return found


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_are_equal(x, y) for x, y in zip(a, b, strict=True))
    same = a == b
    return bool(same if isinstance(same, bool) else np.all(np.asarray(same)))


def _put_back(name: str, value: Any) -> None:
    torch = sys.modules.get("torch")
    if name == "np.seterr":
        np.seterr(**value)
    elif name == "np.set_printoptions":
        np.set_printoptions(precision=value)
    elif name == "random.seed":
        random.setstate(value)
    elif name == "np.random.seed":
        np.random.set_state(value)  # noqa: NPY002
    elif torch is not None:
        put = {
            "torch.set_grad_enabled": torch.set_grad_enabled,
            "torch.set_default_dtype": torch.set_default_dtype,
            "torch.set_num_threads": torch.set_num_threads,
            "torch.use_deterministic_algorithms": torch.use_deterministic_algorithms,
            "torch.autograd.set_detect_anomaly": torch.autograd.set_detect_anomaly,
            "torch.set_float32_matmul_precision": torch.set_float32_matmul_precision,
            "torch.set_flush_denormal": torch.set_flush_denormal,
            "torch.manual_seed": torch.random.set_rng_state,
        }
        put[name](value)
