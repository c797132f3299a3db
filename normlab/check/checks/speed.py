"""Speed: forward and backward milliseconds beside torch's layer and ours. Tells; never fails a layer."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from normlab.bench.timing import in_turns
from normlab.check.dialect import Setup
from normlab.check.probe import check, note, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import TargetFailure


def step(module: Any, shape: tuple[int, ...]) -> Callable[[], object]:
    """One forward and backward pass in training, float32."""
    import torch

    x = torch.randn(shape, requires_grad=True)
    dy = torch.randn(shape)
    module.train()
    return lambda: torch.autograd.grad(module(x), x, dy)


def rivals(setup: Setup, channels: int, groups: int) -> dict[str, Any]:
    """torch's and our layers of the same kind."""
    import torch

    rank = len(setup.shape)
    dimension = {3: "1d", 4: "2d", 5: "3d"}.get(rank, "1d")
    kind = setup.recipe.kind
    found: dict[str, Any] = {}
    if setup.recipe.over == "trailing":
        tail = setup.shape[-setup.recipe.trailing :]
        found["torch"] = (torch.nn.RMSNorm if kind == "rms" else torch.nn.LayerNorm)(tail)
        return found
    if kind in ("batch", "instance"):
        name = {"batch": "BatchNorm", "instance": "InstanceNorm"}[kind] + dimension
        found["torch"] = getattr(torch.nn, name)(channels, affine=True)
    elif kind in ("group", "layer"):
        found["torch"] = torch.nn.GroupNorm(groups if kind == "group" else 1, channels)
    ours = {"batch": "bn", "instance": "in", "group": "gn", "layer": "ln", "batch-instance": "bin"}.get(kind)
    if ours:
        from normlab import make_norm

        found["normlab"] = make_norm(ours, channels, **({"groups": groups} if kind == "group" else {}))
    return found


@check("speed.beside", slow=True)
def beside(setup: Setup) -> Finding:
    layer = torch_layer(setup, dtype="float32")
    if layer.channel_axis != 1:
        return skip("channels are not axis 1")
    c, groups = setup.recipe.channels, setup.recipe.groups
    if setup.recipe.over == "trailing":
        shape: tuple[int, ...] = (2048, *setup.shape[1:])
    else:
        shape = {2: (4096, c), 3: (32, c, 4096), 4: (32, c, 64, 64), 5: (8, c, 16, 32, 32)}[len(setup.shape)]
    sides = {"this layer": step(layer.module, shape)}
    try:
        sides["this layer"]()
    except Exception as e:
        raise TargetFailure(f"raised {type(e).__name__}: {e} (float32, shape {shape})", e) from e
    sides |= {name: step(module, shape) for name, module in rivals(setup, c, groups).items()}
    figures = in_turns(list(sides.values()), rounds=7, budget=0)
    timed = {name: statistics.median(times) for name, times in zip(sides, figures, strict=True)}
    words = ", ".join(f"{name} {ms:.3g} ms" for name, ms in timed.items())
    measured: dict[str, Any] = {k.replace(" ", "_"): v for k, v in timed.items()}
    return note(f"forward and backward on {shape}, float32: {words}", **measured)
