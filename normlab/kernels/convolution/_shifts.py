"""A convolution as a weighted sum of shifted images, compiled.

Lay the rows of a padded image end to end, `width` elements each. Then the elements that tap (k, l) of a filter
meets, in the order of the outputs, are the image itself from element k * width + l on. So with a `shift` per tap

    out[f, p] = sum over taps of weight[f, tap] * image[shift[tap] + p]           forward
    dw[f, tap] = sum over p of dout[f, p] * image[shift[tap] + p]                 `_correlate`
    dimage[c, q] = sum over f, taps of weight[f, c, tap] * dout[f, q - shift[tap]]   a sum of shifts again

and nothing is gathered or copied. Outputs come in rows of `width` too: the few at the end of each row that lie
over the edge are dropped (forward), or zero (backward). A stride s > 1 is reduced to 1 by cutting the image into
s x s phases, every s-th row and column from (a, b) on: each tap then reads one phase with stride 1.

The sums take tiles of 4 filters (`_tiles`); weights are padded with zeros to a multiple of that, and
the taps of dw by some that shift to a stretch of zeros behind the image. Rows of outputs are padded, too, to a multiple
of 32 elements, so that vectors leave no remainder.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the types of what Numba compiles are those of its arguments)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normlab.kernels.convolution._tiles import (
    ACROSS,
    FILTERS,
    REST,
    VECTOR_BYTES,
    sum_products,
    sum_shifts,
    sum_shifts_rest,
)
from normlab.kernels.runtime.compiling import called, compiled
from normlab.kernels.runtime.counters import next_unit, unit_done

LANES = 32  # a multiple of the elements of two vectors, whatever they are


class Window(NamedTuple):
    """How a window of `height` x `width` moves over an image, and the size of what it leaves."""

    height: int
    width: int
    stride: int
    pad: int
    out_height: int
    out_width: int


class Geometry(NamedTuple):
    """Where things lie. A phase has `height` rows of `width`; there are `down` x `across` of them per channel."""

    stride: int
    pad: int
    down: int
    across: int
    height: int
    width: int
    out_height: int
    out_width: int

    span: int  # elements from the first output to the last, in rows of `width`, and up to a multiple of LANES
    margin: int  # the largest shift within a phase
    phase: int  # elements of a phase, up to a multiple of LANES

    @classmethod
    def of(cls, win: Window) -> Geometry:
        s, rows, columns = win.stride, win.out_height, win.out_width
        height, width = rows + (win.height - 1) // s, columns + (win.width - 1) // s
        span = (rows - 1) * width + columns
        down, across = min(s, win.height), min(s, win.width)
        margin = height * width - span
        return cls(
            s, win.pad, down, across, height, width, rows, columns, _round_up(span), margin, _round_up(height * width)
        )


class Taps(NamedTuple):
    """Weights, a column per output, and the shift of each row; `starts` cuts the rows into phases."""

    weights: np.ndarray
    shifts: np.ndarray
    starts: np.ndarray


def _round_up(size: int) -> int:
    return -(-size // LANES) * LANES


def taps_forward(w: np.ndarray, geo: Geometry) -> Taps:
    """The taps that make the outputs of filters w (F, C, HH, WW) from an image's phases."""
    _, channels, height, width = w.shape
    c, k, line = np.ogrid[:channels, :height, :width]
    plane = (c * geo.down + k % geo.stride) * geo.across + line % geo.stride
    shifts = plane * (geo.height * geo.width) + k // geo.stride * geo.width + line // geo.stride
    zeros = channels * geo.down * geo.across * geo.height * geo.width
    return _padded([w.reshape(len(w), -1)], [shifts.ravel()], zeros)


def taps_backward(w: np.ndarray, geo: Geometry) -> Taps:
    """The taps that make the gradient of each phase of an image from the gradient of the outputs."""
    filters, channels = w.shape[:2]
    length = geo.span + 2 * geo.margin
    weights, shifts = [], []
    for a in range(geo.down):
        for b in range(geo.across):
            part = w[:, :, a :: geo.stride, b :: geo.stride]
            f, k, line = np.ogrid[:filters, : part.shape[2], : part.shape[3]]
            weights.append(part.swapaxes(0, 1).reshape(channels, -1))
            shifts.append((f * length + geo.margin - (k * geo.width + line)).ravel())
    return _padded(weights, shifts, filters * length)


def shares(w: np.ndarray, groups: int) -> np.ndarray:
    """Zeros for each group's share of dw, (groups, filters, taps), both rounded up to what `_correlate` takes."""
    return np.zeros((groups, -(-len(w) // FILTERS) * FILTERS, -(-w[0].size // ACROSS) * ACROSS), w.dtype)


def _padded(weights: list[np.ndarray], shifts: list[np.ndarray], zeros: int) -> Taps:
    outputs = -(-len(weights[0]) // FILTERS) * FILTERS
    starts = np.cumsum([0] + [len(s) for s in shifts])
    all_weights = np.zeros((starts[-1], outputs), weights[0].dtype)
    all_weights[:, : len(weights[0])] = np.concatenate([w.T for w in weights])
    all_shifts = np.full(starts[-1] + ACROSS - 1, zeros)
    all_shifts[: starts[-1]] = np.concatenate(shifts)
    return Taps(all_weights, all_shifts, starts)


@called
def convolve(counters, units, x, taps, bias, geo, out):
    """out[n] for the samples n that are units of this job."""
    planes = x.shape[1] * geo.down * geo.across
    size = planes * geo.height * geo.width
    image = np.zeros(size + geo.span, x.dtype)
    phases = image[:size].reshape(planes, geo.height, geo.width)
    wide = np.empty((taps.weights.shape[1], geo.span), x.dtype)
    n = next_unit(counters)
    while n < units:
        _cut(x[n], phases, geo)
        for f in range(len(wide)):
            wide[f] = bias[f] if f < len(bias) else 0
        _accumulate(image, taps.shifts, 0, len(taps.weights), taps.weights, wide)
        for f in range(out.shape[1]):
            for i in range(geo.out_height):
                row, source = out[n, f, i], wide[f, i * geo.width :]
                for j in range(geo.out_width):
                    row[j] = source[j]
        unit_done(counters)
        n = next_unit(counters)


@called
def convolve_backward(counters, units, x, dout, forward, backward, geo, per_group, dw, db, dx):
    """dx[n] and the group's shares dw[g] and db[g] for the groups g that are units of this job.

    A group is `per_group` samples. An empty dx is left alone.
    """
    samples, channels = x.shape[0], x.shape[1]
    filters = dout.shape[1]
    planes = channels * geo.down * geo.across
    size = planes * geo.height * geo.width
    image = np.zeros(size + geo.span, x.dtype)
    phases = image[:size].reshape(planes, geo.height, geo.width)
    length = geo.span + 2 * geo.margin
    # rows of dout between margins of zeros, then zeros: for padding taps, and for the padding filters of dw
    spread = np.zeros((forward.weights.shape[1] + 1) * length + geo.phase, x.dtype)
    rows = spread[geo.margin :]
    dphase = np.empty((backward.weights.shape[1], geo.phase), x.dtype)
    g = next_unit(counters)
    while g < units:
        for n in range(g * per_group, min(samples, (g + 1) * per_group)):
            for f in range(filters):
                total = x.dtype.type(0)
                for i in range(geo.out_height):
                    row, source = rows[f * length + i * geo.width :], dout[n, f, i]
                    for j in range(geo.out_width):
                        row[j] = source[j]
                        total += source[j]
                db[g, f] += total
            _cut(x[n], phases, geo)
            _correlate(rows, length, image, forward.shifts, geo.span, dw[g])
            if dx.size == 0:
                continue
            dx[n] = 0
            for a in range(geo.down):
                for b in range(geo.across):
                    phase = a * geo.across + b
                    start, stop = backward.starts[phase], backward.starts[phase + 1]
                    dphase[:] = 0
                    _accumulate(spread, backward.shifts, start, stop, backward.weights, dphase)
                    for c in range(channels):
                        exact = dphase[c, : geo.height * geo.width].reshape(geo.height, geo.width)
                        _paste_phase(exact, a, b, geo, dx[n, c])
        unit_done(counters)
        g = next_unit(counters)


@compiled
def _cut(x, phases, geo):
    """Copies the image x (C, H, W) into its phases; what is padding there stays zero."""
    channels, height, width = x.shape
    s = geo.stride
    for c in range(channels):
        for a in range(geo.down):
            i0, i1 = _range_inside(a, s, geo.pad, height, geo.height)
            for b in range(geo.across):
                j0, j1 = _range_inside(b, s, geo.pad, width, geo.width)
                phase = phases[(c * geo.down + a) * geo.across + b]
                for i in range(i0, i1):
                    row = phase[i, j0:j1]
                    source = x[c, i * s + a - geo.pad, j0 * s + b - geo.pad :]
                    if s == 1:
                        for j in range(len(row)):
                            row[j] = source[j]
                    else:
                        for j in range(len(row)):
                            row[j] = source[j * s]


@compiled
def _paste_phase(phase, a, b, geo, x):
    """Copies a phase (a, b) back to its place in the image x (H, W)."""
    s = geo.stride
    i0, i1 = _range_inside(a, s, geo.pad, x.shape[0], geo.height)
    j0, j1 = _range_inside(b, s, geo.pad, x.shape[1], geo.width)
    for i in range(i0, i1):
        row = phase[i, j0:j1]
        target = x[i * s + a - geo.pad, j0 * s + b - geo.pad :]
        for j in range(len(row)):
            target[j * s] = row[j]


@compiled
def _range_inside(a, s, pad, size, count):
    """The range of i in [0, count) whose i * s + a - pad lies in [0, size)."""
    low = max(0, (pad - a + s - 1) // s)
    return low, max(low, min(count, (size - 1 + pad - a) // s + 1))


@compiled
def _accumulate(image, shifts, first, last, weights, out):
    """out[f, p] += sum over k in [first, last) of weights[k, f] * image[shifts[k] + p]."""
    filters, span = out.shape
    lanes = VECTOR_BYTES // out.itemsize
    flat, table = out.reshape(-1), weights.reshape(-1)
    p = 0
    while p + ACROSS * lanes <= span:
        for f in range(0, filters, FILTERS):
            sum_shifts(image, p, shifts, first, last, table, f, filters, flat, span)
        p += ACROSS * lanes
    while p < span:
        for f in range(0, filters, FILTERS):
            sum_shifts_rest(image, p, shifts, first, last, table, f, filters, flat, span)
        p += REST * lanes


@compiled
def _correlate(rows, length, image, shifts, span, out):
    """out[f, k] += sum over p < span of rows[f * length + p] * image[shifts[k] + p]."""
    filters, taps = out.shape
    flat = out.reshape(-1)
    for f in range(0, filters, FILTERS):
        for k in range(0, taps, ACROSS):
            sum_products(rows, f, length, image, shifts, k, span, flat, taps)
