"""A training step, of ResNet-14 or of a user's model: with our norms, and with torch's eager and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.bench.sides import arrange, arrange_model, compiled, stock
from normlab.bench.timing import in_turns
from normlab.bench.work import LAYOUTS
from normlab.errors import UsageError
from normlab.layers._torch import tree_leaves
from normlab.layers.fuse import fuse_norms
from normlab.layers.recomputing import recomputed_outputs
from normlab.layers.swap import swap_norms
from normlab.models.residual import build_model
from normlab.report import columns
from normlab.study.training.compiling import forget_compiled

MODEL, BATCH, SIZE = "resnet14", 128, 32
OURS = ("ours", "recomputed")


def measure(
    norm: str,
    rounds: int,
    device: str = "cpu",
    with_compiled: bool = False,
    dtype: str = "float32",
    *,
    model: str = MODEL,
    batch: int = BATCH,
    image_size: int = SIZE,
) -> dict[str, Any]:
    """Milliseconds of forward, cross-entropy, backward and SGD with momentum, in each layout and kind.

    In half precision weights stay float32, and the network is run under autocast.

    `ratio` is the fastest of torch's variants over our fastest, the median of each round's; all variants take turns
    in the same rounds and start from the same weights.
    """

    def step(kind: str, layout: str) -> Callable[[], None]:
        return make_step(kind, norm, layout, device, model, batch, image_size, dtype)

    setting = f"{model}, {norm}, batch {batch}, {image_size}x{image_size}, {dtype}"
    facts = {"norm": norm, "model": model, "batch": batch, "image_size": image_size, "setting": setting}
    return {**facts, "loss": "cross-entropy", **_compared(step, rounds, device, with_compiled)}


def measure_model(
    net: nn.Module,
    name: str,
    shape: tuple[int, ...],
    rounds: int,
    device: str = "cpu",
    with_compiled: bool = False,
    dtype: str = "float32",
    *,
    layouts: Sequence[str] = LAYOUTS,
) -> dict[str, Any]:
    """As `measure`, of a model with torch's norms on random inputs of this shape; the loss is its mean squared output.

    Ours is the same model after `normlab.fuse_norms`, or where that is refused (`not_fused` says why), `swap_norms`.
    """
    held = torch.float64 if dtype == "float64" else torch.float32
    net = net.to(device, held).train()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, held)
    ours, not_fused = deepcopy(net), None
    try:
        ours = fuse_norms(ours, x)
    except UsageError as error:
        ours, not_fused = swap_norms(ours), str(error)

    def step(kind: str, layout: str) -> Callable[[], None]:
        made = arrange_model(deepcopy(ours if kind in OURS else net), len(shape), layout)
        return _step(kind, made, arrange(x, layout), _mean_square, dtype)

    facts = {"model": name, "input": list(shape), "setting": f"{name}, input {'x'.join(map(str, shape))}, {dtype}"}
    compared = _compared(step, rounds, device, with_compiled, layouts)
    return {**facts, "loss": "mean square", "not_fused": not_fused, **compared}


def _compared(
    step: Callable[[str, str], Callable[[], None]],
    rounds: int,
    device: str,
    with_compiled: bool,
    layouts: Sequence[str] = LAYOUTS,
) -> dict[str, Any]:
    """The times of a step's variants, `step(kind, layout)`, in turns."""
    forget_compiled()
    kinds = (*OURS, "eager", *(["compiled"] if with_compiled else []))
    variants = {(kind, layout): step(kind, layout) for kind in kinds for layout in layouts}
    times = dict(zip(variants, in_turns(list(variants.values()), rounds, device=device), strict=True))
    medians = {variant: statistics.median(figures) for variant, figures in times.items()}
    ours = min((v for v in medians if v[0] == "ours"), key=lambda v: medians[v])
    best = min((v for v in medians if v[0] not in OURS), key=lambda v: medians[v])
    return {
        "rounds": rounds,
        "variants": [{"kind": kind, "layout": layout, "ms": ms} for (kind, layout), ms in medians.items()],
        "ours": {"layout": ours[1], "ms": medians[ours]},
        "stock": {"kind": best[0], "layout": best[1], "ms": medians[best]},
        "ratio": statistics.median(a / b for a, b in zip(times[best], times[ours], strict=True)),
    }


def make_step(
    kind: str,
    norm: str,
    layout: str,
    device: str,
    model: str = MODEL,
    batch: int = BATCH,
    image_size: int = SIZE,
    dtype: str = "float32",
) -> Callable[[], None]:
    """A training step as a function; `kind` is "ours", "recomputed" (`normlab.recomputed_outputs`), "eager", "compiled"
    or "compiled ours".
    """
    constructor: Any = norm if kind in (*OURS, "compiled ours") else lambda channels: stock(norm, channels)
    made = build_model(
        model, constructor, num_classes=10, in_channels=3, image_size=(image_size, image_size), seed=0
    ).to(device)
    net = arrange_model(made, 4, layout)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, generator=generator).to(device)
    if dtype == "float64":
        net, images = net.double(), images.double()
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    return _step(kind, net, arrange(images, layout), lambda logits: F.cross_entropy(logits, labels), dtype)


def _step(kind: str, net: nn.Module, x: Tensor, loss_of: Callable[[Any], Tensor], dtype: str) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    run = compiled(net) if kind.startswith("compiled") else net
    keeping = recomputed_outputs if kind == "recomputed" else nullcontext
    precision = getattr(torch, dtype)

    def step() -> None:
        optimizer.zero_grad()
        with keeping(), torch.autocast(x.device.type, precision, enabled=precision.itemsize == 2):
            loss = loss_of(run(x))
        loss.backward()
        optimizer.step()

    return step


def _mean_square(answer: Any) -> Tensor:
    """The mean square of all that a model returns: something to differentiate."""
    outputs = [v for v in tree_leaves(answer) if isinstance(v, Tensor) and v.is_floating_point()]
    return torch.stack([v.float().square().mean() for v in outputs]).sum()


def lines(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The results as text."""
    for r in results:
        yield f"training step of {r['setting']} (forward, {r['loss']}, backward, SGD), n = {r['rounds']} rounds"
        if r.get("not_fused"):
            yield f"  ours is swapped, not fused: {r['not_fused']}"
        table = [[f"  {v['kind']}", v["layout"], f"{v['ms']:.2f} ms"] for v in r["variants"]]
        yield from columns.lines(table, left={0, 1})
        best, ours = r["stock"], r["ours"]
        yield (
            f"  ours, {ours['layout']}, beside the best of torch's, {best['kind']} {best['layout']}: "
            f"{r['ratio']:.2f}x" + (" (slower)" if r["ratio"] < 1 else "")
        )
