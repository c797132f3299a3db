"""Performs a `normlab.norms.program.Program`: a loop over its instructions, and for each a loop over numbers.

It is compiled once, for all norms, layouts and dtypes: the grid is in float64, and a job says where the program lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from normlab.kernels.runtime.compiling import address_of, compiled
from normlab.kernels.runtime.job import (
    CHANNELS,
    CODE,
    CONSTANT_COUNT,
    CONSTANTS,
    LENGTH,
    MEMORY,
    ROWS,
    SAMPLES,
    SIZE,
)
from normlab.kernels.runtime.job import EPS as EPS_OF_JOB
from normlab.kernels.runtime.unaliased import elements_at
from normlab.norms.program import INPUTS, OPS

(_ADD, _SUB, _MUL, _DIV, _POW, _MAX, _GREATER, _SQRT, _RSQRT, _EXP, _MEAN_N, _SUM_N, _MEAN_C, _SUM_C) = range(len(OPS))
_RUNNING_MEAN, _RUNNING_VAR, _SIZE, _EPS = (
    INPUTS.index(name) for name in ("running_mean", "running_var", "size", "eps")
)
_FIRST_PARAMETER = len(INPUTS)
SAMPLES_HERE, READY, REGISTERS_AT = range(3)  # of what a call says beside the job


def perform() -> int:
    """Address of `void perform(job, call)`, which runs the job's program on registers (R, samples, C)."""
    return address_of(_run_program, types.void(types.intp, types.intp))


def _run_program(address: int, call_address: int) -> None:
    job, call = elements_at(address, np.int64), elements_at(call_address, np.int64)
    samples, channels, registers = call[SAMPLES_HERE], job[CHANNELS], elements_at(call[REGISTERS_AT], np.float64)
    code, plane = elements_at(job[CODE], np.int64), samples * channels
    if call[READY] == 0:
        _load(job, elements_at(address, np.float64)[EPS_OF_JOB], registers, samples)
        call[READY] = 1
    for i in range(0, 6 * job[LENGTH], 6):
        op, out, a, b = code[i], code[i + 1] * plane, code[i + 2] * plane, code[i + 3] * plane
        argument, varies = code[i + 4], code[i + 5]
        if op in (_MEAN_N, _SUM_N):
            _over_samples(op, registers, a, channels if varies & 2 else 0, samples, channels, out)
            continue
        together = varies == 7  # all three have a number for every plane: one long loop
        rows = samples if varies & 1 and not together else 1
        width = plane if together else channels
        for n in range(rows):
            first = a + (n * channels if varies & 2 else 0)
            second = b + (n * channels if varies & 4 else 0)
            to = out + n * channels
            if op in (_MEAN_C, _SUM_C):
                _over_channels(op, registers, first, width, channels // argument, to)
            else:
                _apply_each(op, registers, first, second, width, to)


@compiled
def _load(job: Any, eps: float, registers: Any, copies: int) -> None:
    """Fill the registers that stay: running statistics, S, eps, parameters, constants; one row for all samples."""
    channels, parameters = job[CHANNELS], job[ROWS] - 2
    rows = elements_at(job[MEMORY] + 8 * 5 * job[SAMPLES] * channels, np.float64)
    constants = elements_at(job[CONSTANTS], np.float64)
    plane = copies * channels
    for i in range(2 + parameters):
        to = _RUNNING_MEAN if i == 0 else _RUNNING_VAR if i == 1 else _FIRST_PARAMETER + i - 2
        for k in range(to * plane, (to + 1) * plane, channels):
            for c in range(channels):
                registers[k + c] = rows[i * channels + c]
    _fill(registers, _SIZE, plane, float(job[SIZE]))
    _fill(registers, _EPS, plane, eps)
    for i in range(job[CONSTANT_COUNT]):
        _fill(registers, _FIRST_PARAMETER + parameters + i, plane, constants[i])


@compiled
def _fill(registers: Any, to: int, plane: int, value: float) -> None:
    for k in range(to * plane, (to + 1) * plane):
        registers[k] = value


@compiled
def _over_samples(op: int, registers: Any, a: int, step: int, samples: int, channels: int, out: int) -> None:
    for c in range(channels):
        registers[out + c] = registers[a + c]
    for n in range(1, samples):
        for c in range(channels):
            registers[out + c] += registers[a + n * step + c]
    if op == _MEAN_N:
        for c in range(channels):
            registers[out + c] /= samples


@compiled
def _over_channels(op: int, registers: Any, a: int, count: int, width: int, out: int) -> None:
    for start in range(0, count, width):
        total = 0.0
        for c in range(start, start + width):
            total += registers[a + c]
        if op == _MEAN_C:
            total /= width
        for c in range(start, start + width):
            registers[out + c] = total


@compiled
def _apply_each(op: int, r: Any, a: int, b: int, count: int, out: int) -> None:
    if op == _ADD:
        for k in range(count):
            r[out + k] = r[a + k] + r[b + k]
    elif op == _SUB:
        for k in range(count):
            r[out + k] = r[a + k] - r[b + k]
    elif op == _MUL:
        for k in range(count):
            r[out + k] = r[a + k] * r[b + k]
    elif op == _DIV:
        for k in range(count):
            r[out + k] = r[a + k] / r[b + k]
    elif op == _SQRT:
        for k in range(count):
            r[out + k] = np.sqrt(r[a + k])
    elif op == _RSQRT:
        for k in range(count):
            r[out + k] = 1 / np.sqrt(r[a + k])
    elif op == _POW:
        for k in range(count):
            r[out + k] = r[a + k] ** r[b + k]
    elif op == _MAX:
        for k in range(count):
            v = r[a + k]
            r[out + k] = v if v != v else max(v, r[b + k])
    elif op == _GREATER:
        for k in range(count):
            r[out + k] = 1.0 if r[a + k] > r[b + k] else 0.0
    elif op == _EXP:
        for k in range(count):
            r[out + k] = np.exp(r[a + k])
