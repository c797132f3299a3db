"""Speed: forward and backward milliseconds beside torch's layer and ours. They are noted; no layer fails by them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

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
    """torch's and our layers of the same kind, as the registry names them."""
    import torch

    from normlab import make_norm
    from normlab.bench.sides import stock
    from normlab.norms import describe, norm_names

    recipe = setup.recipe
    if recipe.over == "trailing":
        tail = setup.shape[-recipe.trailing :]
        return {"torch": (torch.nn.LayerNorm if recipe.centers else torch.nn.RMSNorm)(tail)}
    title = f"{recipe.kind} normalization"
    entry = next((e for e in map(describe, norm_names()) if e.title == title), None)
    if entry is None:
        return {}
    norm = f"{entry.name}:groups={groups}" if "groups" in entry.options else entry.name
    return {"torch": stock(norm, channels, len(setup.shape)), "normlab": make_norm(norm, channels)}


@check("speed.beside", slow=True)
def beside(setup: Setup) -> Finding:
    from normlab.bench.timing import in_turns  # brings torch along

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
