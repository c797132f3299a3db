"""One model of the census: what is taken, and how far outputs, gradients and statistics are from float64's."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normlab
from benchmarks.census.models import built, tensors, unbuilt


def visit(name: str) -> dict[str, Any]:
    """The row of one model, which runs."""
    warnings.simplefilter("ignore")
    stock, inputs = built(name)
    swapped = copy.deepcopy(stock)
    row = _swap_row(name, swapped)
    row["input"] = list(next(iter(inputs.values())).shape)
    row["parameters"] = sum(p.numel() for p in stock.parameters())
    torch.manual_seed(2)
    try:
        fused = normlab.fuse_norms(stock, **inputs) if ":" in name and "x" not in inputs else normlab.fuse_norms(
            stock, *inputs.values()
        )  # fmt: skip
        row["fused"] = len(normlab.swap_report(fused).fused)
    except Exception as error:
        row["fused"], row["refused"] = 0, str(error).splitlines()[0]
        fused = None
    precise = measured(built(name, torch.float64))
    theirs = measured((stock, inputs))
    row["torch"] = distances(theirs, precise)
    row["ours"] = distances(measured((swapped, inputs)), precise)
    if fused is not None:
        row["with_fused"] = distances(measured((fused, inputs)), precise)
    _see_layouts(row, stock, inputs, precise)
    row["restored"] = type(normlab.restore_norms(swapped)) is type(stock) and [type(m) for m in swapped.modules()] == [
        type(m) for m in stock.modules()
    ]
    return row


def _see_layouts(
    row: dict[str, Any], stock: nn.Module, inputs: dict[str, Any], precise: dict[str, list[Tensor]]
) -> None:
    """Where ours is further from float64 than torch, what torch's other layout gives: the larger of each distance."""
    ours = max(max(row[who].values()) for who in ("ours", "with_fused") if who in row)
    if ours <= max(row["torch"].values()) or any(v.dim() != 4 for v in inputs.values()):
        return
    last = torch.channels_last
    images = {k: v.contiguous(memory_format=last) for k, v in inputs.items()}
    other = distances(measured((copy.deepcopy(stock).to(memory_format=last), images)), precise)
    row["torch"] = {kind: max(v, other[kind]) for kind, v in row["torch"].items()}
    row["layouts"] = 2


def count(name: str) -> dict[str, Any]:
    """The row of one model that is swapped and not run."""
    warnings.simplefilter("ignore")
    with normlab.use_backend("reference"):  # which has nothing to compile
        return _swap_row(name, unbuilt(name))


def _swap_row(name: str, model: nn.Module) -> dict[str, Any]:
    names = looks_like_norms(model)
    report = normlab.swap_report(normlab.swap_norms(model))
    silent = [n for n in names if n not in report.left and n not in report.taken]
    return {
        "model": name,
        "architecture": model.architecture,
        "taken": len(report.taken),
        "left": report.left,
        "silent": silent,
    }


def looks_like_norms(model: nn.Module) -> list[str]:
    """Names of whatever looks like a normalization layer, judged apart from normlab."""
    return [
        name
        for name, module in model.named_modules()
        if any(word in type(module).__name__.lower() for word in ("norm", "grn"))
        and not type(module).__name__.startswith("_")  # the parametrization of torch's weight_norm
        and not any(p.dim() > 1 and max(p.shape) != p.numel() for p in module.parameters())
        and not any("norm" in type(m).__name__.lower() for m in module.modules() if m is not module)
    ]


def measured(given: tuple[nn.Module, dict[str, Any]]) -> dict[str, list[Tensor]]:
    """Outputs in both modes, gradients and statistics of a copy of a model."""
    model, inputs = copy.deepcopy(given[0]), given[1]
    found: dict[str, list[Tensor]] = {}
    _seed(3)
    with torch.no_grad():
        found["outputs"] = [v.double() for v in tensors(model.eval()(**inputs))]
    _seed(3)
    outputs = tensors(model.train()(**inputs))
    _seed(4)
    loss = sum((v.double() * torch.randn(v.shape, dtype=torch.float64)).mean() for v in outputs)
    loss.backward()  # type: ignore[union-attr]
    found["gradients"] = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    found["statistics"] = [b.double() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    return found


def _seed(seed: int) -> None:
    """Of every generator that a model may draw from."""
    for plant in (torch.manual_seed, np.random.seed, random.seed):
        plant(seed)


def distances(got: dict[str, list[Tensor]], want: dict[str, list[Tensor]]) -> dict[str, float]:
    """The relative distance of each kind of numbers, the largest of its tensors; of gradients, of all together."""
    found = {}
    for kind, exact in want.items():
        if len(got[kind]) != len(exact):
            found[kind] = float("inf")
        elif exact:
            a, b = ([torch.cat(v)] if kind == "gradients" else v for v in (got[kind], exact))
            found[kind] = max(float((p - q).norm() / q.norm().clamp_min(1e-30)) for p, q in zip(a, b, strict=True))
    return found
