"""A training step of ResNet-14 on images of 32 x 32: with our norms, and with torch's eager and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from normlab.benchmark.sides import arrange, compiled, forget_compiled, stock
from normlab.benchmark.timing import in_turns
from normlab.benchmark.work import LAYOUTS
from normlab.models import build_model
from normlab.recomputing import recomputed_outputs

MODEL, BATCH, SIZE = "resnet14", 128, 32
OURS = ("ours", "recomputed")


def measure(
    norm: str,
    rounds: int,
    device: str = "cpu",
    with_compiled: bool = False,
    *,
    model: str = MODEL,
    batch: int = BATCH,
    image_size: int = SIZE,
) -> dict[str, Any]:
    """Milliseconds of forward, cross-entropy, backward and SGD with momentum, in each layout and kind.

    `ratio` is the fastest of torch's variants over our fastest, the median of each round's; all variants take turns
    in the same rounds and start from the same weights.
    """
    forget_compiled()
    variants: dict[tuple[str, str], Callable[[], None]] = {}
    for kind in (*OURS, "eager", *(["compiled"] if with_compiled else [])):
        for layout in LAYOUTS:
            variants[kind, layout] = make_step(kind, norm, layout, device, model, batch, image_size)
    times = dict(zip(variants, in_turns(list(variants.values()), rounds, device=device), strict=True))
    medians = {variant: statistics.median(figures) for variant, figures in times.items()}
    ours = min((v for v in medians if v[0] == "ours"), key=lambda v: medians[v])
    best = min((v for v in medians if v[0] not in OURS), key=lambda v: medians[v])
    return {
        "norm": norm,
        "model": model,
        "batch": batch,
        "image_size": image_size,
        "rounds": rounds,
        "variants": [{"kind": kind, "layout": layout, "ms": ms} for (kind, layout), ms in medians.items()],
        "ours": {"layout": ours[1], "ms": medians[ours]},
        "stock": {"kind": best[0], "layout": best[1], "ms": medians[best]},
        "ratio": statistics.median(a / b for a, b in zip(times[best], times[ours], strict=True)),
    }


def make_step(
    kind: str, norm: str, layout: str, device: str, model: str = MODEL, batch: int = BATCH, image_size: int = SIZE
) -> Callable[[], None]:
    """A training step as a function; `kind` is "ours", "recomputed" (`normlab.recomputed_outputs`), "eager" or
    "compiled".
    """
    constructor: Any = norm if kind in OURS else lambda channels: stock(norm, channels)
    made = build_model(
        model, constructor, num_classes=10, in_channels=3, image_size=(image_size, image_size), seed=0
    ).to(device)
    last = layout == "channels_last"
    net = made.to(memory_format=torch.channels_last) if last else made  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    run = compiled(net) if kind == "compiled" else net
    keeping = recomputed_outputs if kind == "recomputed" else nullcontext
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, generator=generator).to(device)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    images = arrange(images, layout)

    def step() -> None:
        optimizer.zero_grad()
        with keeping():
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    return step


def lines(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The results as text."""
    for r in results:
        setting = f"{r['model']}, {r['norm']}, batch {r['batch']}, {r['image_size']}x{r['image_size']}"
        yield f"training step of {setting} (forward, loss, backward, SGD), n = {r['rounds']} rounds"
        for variant in r["variants"]:
            yield f"  {variant['kind']:12}{variant['layout']:15}{variant['ms']:9.2f} ms"
        best, ours = r["stock"], r["ours"]
        yield (
            f"  ours, {ours['layout']}, beside the best of torch's, {best['kind']} {best['layout']}: "
            f"{r['ratio']:.2f}x" + (" (slower)" if r["ratio"] < 1 else "")
        )
