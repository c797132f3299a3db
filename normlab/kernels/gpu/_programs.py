"""A grid program inside a Triton kernel: as generated source, or where it does not fit, in torch's arithmetic.

What a program can see decides who can run it. One that reduces over the samples needs a channel's numbers for every
sample; one that reduces over groups of channels needs those of a group; one that does neither, a plane's. Each of
these fits into the registers of one kernel instance and is written as straight-line Triton code. A program that
reduces over both, or over groups of two sizes, is performed between the launches.
"""

from __future__ import annotations

import linecache
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlab.norms.program import INPUTS, OPS, Program

ACROSS = 0  # in the place of a number of planes: all samples of a channel

_HEADER = {
    "forward": ("mean", "var"),
    "backward": ("mean", "var", "sum_g", "sum_gx", "scale", "center"),
}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_CALL = {"sqrt": "tl.sqrt({a})", "rsqrt": "tl.rsqrt({a})", "exp": "tl.exp({a})",
         "max": "tl.where({a} < {b}, {b}, {a})", "greater": "tl.where({a} > {b}, 1.0, 0.0)"}  # fmt: skip


def unit(program: Program, channels: int) -> int | None:
    """How many neighbouring planes a program couples, ACROSS for a channel's planes of all samples, None for more."""
    widths = set()
    for op, argument in program.code[:, [0, 4]]:
        if OPS[op] in ("mean_n", "sum_n"):
            widths.add(ACROSS)
        elif OPS[op] in ("mean_c", "sum_c"):
            widths.add(channels // int(argument))
    return widths.pop() if len(widths) == 1 else None if widths else 1


def source(program: Program, direction: str, per_channel: tuple[bool, ...]) -> str:
    """Triton source of `solve`, which runs a program on a block of registers and returns its outputs.

    `per_channel` says of each parameter whether it has a number per channel. Everything is float64.
    """
    names = {INPUTS.index(name): name for name in _HEADER[direction]}
    pinned = len(INPUTS) + len(per_channel)
    lines: list[str] = []

    def operand(register: int) -> str:
        """The name of what a register holds; inputs are loaded when first used."""
        if register not in names:
            name, text = _loaded(register, program, per_channel)
            names[register] = name
            lines.append(f"{name} = {text}")
        return names[register]

    for line, (op, out, a, b, _, _) in enumerate(program.code.tolist()):
        operation = OPS[op]
        if operation == "pow":
            text = _power(operand(a), float(program.constants[b - pinned]))
        elif operation in _INFIX:
            text = f"{operand(a)} {_INFIX[operation]} {operand(b)}"
        elif operation in _CALL:
            text = _CALL[operation].format(a=operand(a), b=operand(b))
        else:
            axis, merged = (0, "N") if operation.endswith("_n") else (1, "W")
            text = f"tl.sum(tl.where(own, {operand(a)}, 0.0), {axis}, keep_dims=True)"
            if operation.startswith("mean"):
                text += f" / {merged}"
        lines.append(f"v{line} = {text}")
        names[out] = f"v{line}"
    answer = ", ".join(operand(register) for register in program.outputs[:, 0].tolist())
    signature = ", ".join(
        (*_HEADER[direction], "learned, running, channel, known, own, N, S, W: tl.constexpr, EPS: tl.constexpr")
    )
    return "\n    ".join([f"def solve({signature}):", *lines, f"return ({answer},)"]) + "\n"


def _loaded(register: int, program: Program, per_channel: tuple[bool, ...]) -> tuple[str, str]:
    """(name, expression) of an input that is not an argument of `solve`, a parameter or a constant."""
    i = register - len(INPUTS)
    if i >= len(per_channel):
        k = i - len(per_channel)
        return f"k{k}", f"tl.full([1, 1], {_literal(float(program.constants[k]))}, tl.float64)"
    if i >= 0:
        where = f"learned[{i}] + channel, mask=known, other=0.0" if per_channel[i] else f"learned[{i}]"
        return f"p{i}", f"tl.load({where}).to(tl.float64)"
    name = INPUTS[register]
    if name in ("size", "eps"):
        return name, f"tl.full([1, 1], {'S' if name == 'size' else 'EPS'}, tl.float64)"
    at = ("running_mean", "running_var").index(name)
    return name, f"tl.load(running[{at}] + channel, mask=known, other=1.0).to(tl.float64)"


def _power(a: str, exponent: float) -> str:
    """a ** exponent, by products where the exponent is a small whole number."""
    if exponent.is_integer() and abs(exponent) <= 8:
        product = " * ".join([a] * abs(int(exponent))) or f"({a} * 0.0 + 1.0)"
        return product if exponent >= 0 else f"1.0 / ({product})"
    if abs(exponent) == 0.5:
        return f"tl.sqrt({a})" if exponent > 0 else f"tl.rsqrt({a})"
    return f"tl.exp({_literal(exponent)} * tl.log({a}))"


def _literal(number: float) -> str:
    text = repr(number)
    return text if text.strip("-").replace(".", "").replace("e", "").replace("-", "").isdigit() else f'float("{text}")'


@lru_cache(maxsize=1024)
def compiled(text: str) -> Any:
    """The jitted function of a source text; the text is kept where `inspect`, and so Triton, finds it."""
    name = f"<normlab grid program {sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    return triton.jit(scope["solve"])


def perform(program: Program, inputs: dict[str, Tensor], params: list[Tensor], eps: float, size: int) -> list[Tensor]:
    """A program in torch's arithmetic on grids (N, C): its outputs, broadcast to (N, C)."""
    any_grid = next(iter(inputs.values()))
    shape = any_grid.shape
    bare = {"size": float(size), "eps": eps}
    registers: dict[int, Any] = {}
    for i, name in enumerate(INPUTS):
        registers[i] = inputs.get(name, bare.get(name))
    for v in (*params, *program.constants.tolist()):
        registers[len(registers)] = v.to(any_grid.dtype).reshape(1, -1) if isinstance(v, Tensor) else v
    for op, out, a, b, argument, _ in program.code.tolist():
        registers[out] = _performed(OPS[op], registers[a], registers[b], argument, any_grid)
    return [_as_grid(registers[r], any_grid).expand(shape) for r in program.outputs[:, 0].tolist()]


def _performed(op: str, a: Any, b: Any, argument: int, like: Tensor) -> Any:
    if op == "add":
        return a + b
    if op == "sub":
        return a - b
    if op == "mul":
        return a * b
    if op == "div":
        return a / b
    if op == "pow":
        return a**b
    a = _as_grid(a, like)
    if op == "max":
        return a.clip(min=b)
    if op == "greater":
        return (a > b).to(like.dtype)
    if op in ("sqrt", "rsqrt", "exp"):
        return getattr(torch, op)(a)
    a = a.expand(like.shape)
    if op in ("mean_n", "sum_n"):
        return a.mean(0, keepdim=True) if op == "mean_n" else a.sum(0, keepdim=True)
    groups = a.reshape(a.shape[0], argument, -1)
    each = groups.mean(2, keepdim=True) if op == "mean_c" else groups.sum(2, keepdim=True)
    return each.expand(groups.shape).reshape(a.shape)


def _as_grid(v: Any, like: Tensor) -> Tensor:
    return v if isinstance(v, Tensor) else torch.full((1, 1), float(v), dtype=like.dtype, device=like.device)
