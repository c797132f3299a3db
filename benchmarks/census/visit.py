"""One model of the census: what is taken, and how far outputs, gradients and statistics are from float64's."""

from __future__ import annotations

import copy
import random
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normlab
from benchmarks.census.models import built, tensors, unbuilt

DRAWS = 12


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
    row["torch"] = distances(measured((stock, inputs)), precise)
    row["ours"] = distances(measured((swapped, inputs)), precise)
    exact = distances(measured(_doubled(swapped, inputs)), precise)
    if fused is not None:
        row["with_fused"] = distances(measured((fused, inputs)), precise)
        exact = _larger(exact, distances(measured(_doubled(fused, inputs)), precise))
    row["in_float64"] = exact
    _see_rounding(row, stock, inputs, precise, list(normlab.swap_report(swapped).taken))
    row["restored"] = type(normlab.restore_norms(swapped)) is type(stock) and [type(m) for m in swapped.modules()] == [
        type(m) for m in stock.modules()
    ]
    return row


def _see_rounding(
    row: dict[str, Any], stock: nn.Module, inputs: dict[str, Any], precise: dict[str, list[Tensor]], norms: list[str]
) -> None:
    """Where ours is further from float64 than torch, how far torch is where it rounds otherwise: `row["torch_moved"]`.

    The largest of torch's other memory layout, if the input is of images, and of draws in which every number that a
    norm is given is moved by one last bit, up or down: until ours is no further off, or there were `DRAWS`.
    """
    ours = [row[who] for who in ("ours", "with_fused") if who in row]
    moved = row["torch"]
    for draw in range(-1, DRAWS):
        if all(distance <= moved[kind] for one in ours for kind, distance in one.items()):
            break
        tried = copy.deepcopy(stock), inputs
        if draw >= 0:
            chance = np.random.default_rng(draw)
            for name in norms:
                tried[0].get_submodule(name).register_forward_pre_hook(partial(_move_last_bits, chance))
        elif all(v.dim() == 4 for v in inputs.values()):
            last = torch.channels_last
            images = {k: v.contiguous(memory_format=last) for k, v in inputs.items()}
            tried = tried[0].to(memory_format=last), images  # type: ignore[call-overload]
        moved = row["torch_moved"] = _larger(moved, distances(measured(tried), precise))


def _move_last_bits(chance: np.random.Generator, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The input of a norm, each number moved up or down by one last bit; its gradient passes through."""
    x: Tensor = given[0]
    up = torch.from_numpy(chance.random(tuple(x.shape), dtype=np.float32) < 0.5)
    ends = torch.where(up, torch.tensor(float("inf")), torch.tensor(-float("inf"))).to(x)
    return (x + (torch.nextafter(x.detach(), ends) - x.detach()), *given[1:])


def _doubled(model: nn.Module, inputs: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a model in float64, and its input."""
    return copy.deepcopy(model).double(), {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def _larger(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {kind: max(v, b[kind]) for kind, v in a.items()}


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
