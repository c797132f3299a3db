"""Run by test_triton.py: launches that reach no device, to see what would have been launched, and by which way.

The first call of a kind goes through Triton's dispatch, later ones straight to the compiled kernel: which the
interpreter does not show, since it compiles nothing.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlab.kernels import stages
from normlab.kernels.gpu import planes as triton_gpu
from normlab.norms import family as norms

launched: list[tuple[Any, ...]] = []
dispatched: list[str] = []


class Launcher:
    """Takes down what a launch is given, after the numbers that Triton adds for itself."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *args: Any) -> None:
        launched.append((self.name, args[:3], args[9:]))


class Absent:
    """A driver of a device that is not there."""

    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))
    launcher_cls = Launcher
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448},
        load_binary=lambda name, kernel, shared, device: (0, 0, 0, 0, 1024),
    )


def call(norm: str, x: torch.Tensor, momentum: Any = 0.1) -> list[tuple[Any, ...]]:
    """The launches of forward and backward."""
    channels = x.shape[1]
    params = {k: torch.ones(channels) for k in norms.describe(norm).parameters}
    running = torch.zeros(channels), torch.ones(channels)
    update = (*running, momentum) if norms.describe(norm).running else None
    launched.clear()
    _, cache = stages.forward(norm, x, params, act="relu", residual=x, update=update)
    stages.backward(x, cache)
    return [(name, grid, tuple(map(_shown, args))) for name, grid, args in launched]


def _shown(arg: Any) -> Any:
    """A tensor by what does not change from call to call."""
    if isinstance(arg, tuple):
        return tuple(map(_shown, arg))
    return (arg.dtype, arg.shape, arg.stride()) if isinstance(arg, torch.Tensor) else arg


def main() -> None:
    driver.set_active(Absent())
    triton_gpu.processors = lambda device: 132  # type: ignore[assignment]
    stages.planes_for = lambda x, entry=None: triton_gpu  # type: ignore[assignment,return-value,misc]
    run = JITFunction.run

    def counted(kernel: Any, *args: Any, **options: Any) -> Any:
        dispatched.append(kernel.fn.__name__)
        return run(kernel, *args, **options)

    JITFunction.run = counted
    for norm in sys.argv[1:]:
        x = torch.empty(32, 64, 28, 28)
        off = torch.empty(x.numel() + 1)[1:].view(x.shape)
        first = call(norm, x)
        print(norm, "first:", len(first), "launched,", counted_since(), "dispatched")
        again = call(norm, x)
        print(norm, "again:", "the same," if again == first else f"{first} and then {again},", counted_since(), end="")
        print(" dispatched")
        for _ in range(2):
            print(norm, "off a boundary:", len(call(norm, off)), "launched,", counted_since(), "dispatched")
        call(norm, x)
        print(norm, "back on it:", counted_since(), "dispatched")


def counted_since() -> int:
    """How often Triton's dispatch was asked since this was called before."""
    count = len(dispatched)
    dispatched.clear()
    return count


if __name__ == "__main__":
    sys.exit(main())
