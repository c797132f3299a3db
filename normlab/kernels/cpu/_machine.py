"""Performs a `normlab.norms.program.Program`: a loop over its instructions, and for each a loop over numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.kernels.runtime.compiling import compiled
from normlab.norms.program import INPUTS, OPS

(_ADD, _SUB, _MUL, _DIV, _POW, _MAX, _GREATER, _SQRT, _RSQRT, _EXP, _MEAN_N, _SUM_N, _MEAN_C, _SUM_C) = range(len(OPS))
_RUNNING_MEAN, _RUNNING_VAR, _SIZE, _EPS = (
    INPUTS.index(name) for name in ("running_mean", "running_var", "size", "eps")
)
_FIRST_PARAMETER = len(INPUTS)


@compiled
def load(registers: Any, copies: int, rows: Any, size: float, eps: float, constants: Any) -> None:
    """Fill the registers that stay: running statistics, S, eps, parameters, constants; so many times the same row."""
    # (loops, here and elsewhere: assigning slices would more than double the time to compile)
    channels = registers.shape[2]
    parameters = rows.shape[0] - 2
    for n in range(copies):
        for c in range(channels):
            registers[_RUNNING_MEAN, n, c] = rows[0, c]
            registers[_RUNNING_VAR, n, c] = rows[1, c]
            registers[_SIZE, n, c] = size
            registers[_EPS, n, c] = eps
            for i in range(parameters):
                registers[_FIRST_PARAMETER + i, n, c] = rows[2 + i, c]
            for i in range(constants.size):
                registers[_FIRST_PARAMETER + parameters + i, n, c] = constants[i]


@compiled
def perform(code: Any, registers: Any) -> None:
    """Run a program on registers (R, N, C). What does not vary over samples is computed for the first, and read there
    by what does; with one sample, or in a program that stays within samples, everything may as well vary."""
    _, samples, channels = registers.shape
    for i in range(code.shape[0]):
        op, out, a, b, argument, varies = code[i]
        if op in (_MEAN_N, _SUM_N):
            _over_samples(op, registers[a], varies & 2 != 0, registers[out, 0])
        elif op in (_MEAN_C, _SUM_C):
            for n in range(samples if varies & 1 else 1):
                _over_channels(op, registers[a, n], argument, registers[out, n])
        elif varies == 7:  # all three have a number for every plane: one long loop
            size = samples * channels
            _each(op, registers[a].reshape(size), registers[b].reshape(size), registers[out].reshape(size))
        else:
            for n in range(samples if varies & 1 else 1):
                _each(op, registers[a, n if varies & 2 else 0], registers[b, n if varies & 4 else 0], registers[out, n])


@compiled
def _over_samples(op: int, a: Any, varies: bool, out: Any) -> None:
    samples, channels = a.shape
    for c in range(channels):
        out[c] = a[0, c]
    for n in range(1, samples):
        row = a[n if varies else 0]
        for c in range(channels):
            out[c] += row[c]
    if op == _MEAN_N:
        for c in range(channels):
            out[c] /= samples


@compiled
def _over_channels(op: int, a: Any, groups: int, out: Any) -> None:
    width = a.size // groups
    for start in range(0, a.size, width):
        row, to = a[start : start + width], out[start : start + width]
        total = 0.0
        for c in range(width):
            total += row[c]
        if op == _MEAN_C:
            total /= width
        for c in range(width):
            to[c] = total


@compiled
def _each(op: int, a: Any, b: Any, out: Any) -> None:
    if op == _ADD:
        for k in range(out.size):
            out[k] = a[k] + b[k]
    elif op == _SUB:
        for k in range(out.size):
            out[k] = a[k] - b[k]
    elif op == _MUL:
        for k in range(out.size):
            out[k] = a[k] * b[k]
    elif op == _DIV:
        for k in range(out.size):
            out[k] = a[k] / b[k]
    elif op == _SQRT:
        for k in range(out.size):
            out[k] = np.sqrt(a[k])
    elif op == _RSQRT:
        for k in range(out.size):
            out[k] = 1 / np.sqrt(a[k])
    elif op == _POW:
        for k in range(out.size):
            out[k] = a[k] ** b[k]
    elif op == _MAX:
        for k in range(out.size):
            out[k] = a[k] if a[k] != a[k] else max(a[k], b[k])
    elif op == _GREATER:
        for k in range(out.size):
            out[k] = 1.0 if a[k] > b[k] else 0.0
    elif op == _EXP:
        for k in range(out.size):
            out[k] = np.exp(a[k])
