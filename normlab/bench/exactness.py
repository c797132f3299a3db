"""Errors against float64, for inputs far from zero and of any size, beside the better of torch's two layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlab.bench.sides import arrange, stock
from normlab.bench.work import LAYOUTS
from normlab.layers.norms import make_norm
from normlab.report import columns

MEANS = (0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0)
SIZES = (1e-20, 1e15, 1e20, 1e30, 1e37)  # standard deviations, about zero: their squares leave float32
POINTS = (*((mean, 1.0) for mean in MEANS), *((0.0, size) for size in SIZES))
SHAPE = (8, 32, 28, 28)


def measure(norm: str, device: str = "cpu", shape: tuple[int, ...] = SHAPE) -> list[dict[str, Any]]:
    """One row per layout and mean or size: the largest absolute errors of y and of every gradient, ours and torch's.

    Inputs and parameters are float32, the truth is torch's own layer in float64 on the same numbers. `ratio` is our
    error over the smaller of torch's two, for the worst of y and the gradients; an error of torch's below half a
    rounding unit of the largest value counts as that half unit.
    """
    rows = []
    for mean, size in POINTS:
        generator = torch.Generator().manual_seed(int(mean))
        x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
        x = size * x + mean
        theirs, ours = stock(norm, shape[1], len(shape)), make_norm(norm, shape[1])
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            value = torch.rand(parameter.shape, generator=generator)  # a gate lies between 0 and 1
            parameter.data, other.data = value, value.clone()
        truth = _run(theirs.double(), x.double(), dy.double(), "cpu")
        theirs.float()
        references = [_run(theirs, arrange(x, layout), arrange(dy, layout), device) for layout in LAYOUTS]
        for layout in LAYOUTS:
            got = _run(ours, arrange(x, layout), arrange(dy, layout), device)
            errors = {k: _errors(truth[k], got[k], [t[k] for t in references]) for k in truth}
            worst = max(errors, key=lambda k: errors[k]["ratio"])
            ratio = errors[worst]["ratio"]
            row = {"norm": norm, "layout": layout, "mean": mean, "size": size}
            rows.append({**row, "errors": errors, "worst": worst, "ratio": ratio})
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line per norm and layout, a column per mean and size."""
    points = list(dict.fromkeys((r["mean"], r["size"]) for r in rows))
    yield "largest error of y against float64, for x ~ N(mean, size^2), float32; behind it our error over the better of"
    yield "torch's two layouts, for the worst of y, dx and the parameters' gradients (below 1: ours is closer)"
    table = [["norm", "layout", *map(_name, points)]]
    for norm, layout in dict.fromkeys((r["norm"], r["layout"]) for r in rows):
        here = [r for r in rows if (r["norm"], r["layout"]) == (norm, layout)]
        table.append([norm, layout, *(f"{r['errors']['y']['ours']:.1e} ({r['ratio']:4.2f}x)" for r in here)])
    yield from columns.lines(table, left={0, 1})
    rows = [r for r in rows if r["size"] == 1]
    worst = max(rows, key=lambda r: r["ratio"])
    off = max((r for r in rows), key=lambda r: max(r["errors"]["y"]["torch"]))
    yield (
        f"worst ratio {worst['ratio']:.2f}x ({worst['worst']} of {worst['norm']}, {worst['layout']}, mean "
        f"{worst['mean']:g}); torch's worst error of y {max(off['errors']['y']['torch']):.1e} ({off['norm']}, mean "
        f"{off['mean']:g})"
    )


def _name(point: tuple[float, float]) -> str:
    mean, size = point
    return f"mean {mean:g}" if size == 1 else f"size {size:g}"


def _run(layer: nn.Module, x: Tensor, dy: Tensor, device: str) -> dict[str, Tensor]:
    layer = layer.to(device)
    x = x.detach().to(device).requires_grad_()
    y = layer(x)
    names = ["dx", *(f"d{name}" for name, _ in layer.named_parameters())]
    grads = torch.autograd.grad(y, [x, *layer.parameters()], dy.to(device))
    values = [y.detach(), *grads]
    # our gate is called rho
    return {name.replace("gate", "rho"): v.double().cpu() for name, v in zip(["y", *names], values, strict=True)}


def _errors(truth: Tensor, ours: Tensor, references: Sequence[Tensor]) -> dict[str, Any]:
    error, *others = (float((v - truth).abs().max().nan_to_num(torch.inf)) for v in (ours, *references))
    rounding = torch.finfo(torch.float32).eps / 2 * float(truth.abs().max())
    return {"ours": error, "torch": others, "ratio": error / max(min(others), rounding)}
