"""A convolution as a weighted sum of shifted images, compiled.

Lay the rows of a padded image end to end, `width` elements each. Then the elements that tap (k, l) of a filter
meets, in the order of the outputs, are the image itself from element k * width + l on. So with a `shift` per tap

    out[f, p] = sum over taps of weight[f, tap] * image[shift[tap] + p]           forward
    dw[f, tap] = sum over p of dout[f, p] * image[shift[tap] + p]                 `_correlate`
    dimage[c, q] = sum over f, taps of weight[f, c, tap] * dout[f, q - shift[tap]]   a sum of shifts again

and nothing is gathered or copied. Outputs come in rows of `width` too: the few at the end of each row that lie
over the edge are dropped (forward), or zero (backward). A stride s > 1 is reduced to 1 by cutting the image into
s x s phases, every s-th row and column from (a, b) on: each tap then reads one phase with stride 1.

The sums take 4 filters by 7 taps at a time, which keeps their weights in registers; weights are padded with zeros to
those multiples, and padding taps shift to a stretch of zeros behind the image. Rows of outputs are padded, too, to a
multiple of 32 elements, so that the vectorized loops leave no remainder.
"""

# mypy: allow-untyped-defs
# (the types of what Numba compiles are those of its arguments)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from normlab.planes._threads import next_unit, unit_done
from normlab.scratch._images import Window

FILTERS, TAPS, LANES = 4, 7, 32  # what `_accumulate` takes at a time, and the multiple that it likes
_CHUNK = 64 * LANES  # outputs at a time: what is read and written of them stays in the second-level cache
# sums may be reordered, so that they vectorize; NaN and infinity keep their meaning
_compile = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


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
        return cls(s, win.pad, down, across, height, width, rows, columns, _up(span), margin, _up(height * width))


class Taps(NamedTuple):
    """Weights, a row per output, and the shift of each column; `starts` cuts the columns into phases."""

    weights: np.ndarray
    shifts: np.ndarray
    starts: np.ndarray


def _up(size: int) -> int:
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
    return np.zeros((groups, -(-len(w) // FILTERS) * FILTERS, -(-w[0].size // 3) * 3), w.dtype)


def _padded(weights: list[np.ndarray], shifts: list[np.ndarray], zeros: int) -> Taps:
    rows = -(-len(weights[0]) // FILTERS) * FILTERS
    starts = np.cumsum([0] + [-(-len(s) // TAPS) * TAPS for s in shifts])
    all_weights = np.zeros((rows, starts[-1]), weights[0].dtype)
    all_shifts = np.full(starts[-1] + 2, zeros)  # two more: `_correlate` takes three at a time
    for w, s, start in zip(weights, shifts, starts, strict=False):
        all_weights[: len(w), start : start + len(s)] = w
        all_shifts[start : start + len(s)] = s
    return Taps(all_weights, all_shifts, starts)


@_compile
def convolve(counters, units, x, taps, bias, geo, out):
    """out[n] for the samples n that are units of this job."""
    planes = x.shape[1] * geo.down * geo.across
    size = planes * geo.height * geo.width
    image = np.zeros(size + geo.span, x.dtype)
    phases = image[:size].reshape(planes, geo.height, geo.width)
    wide = np.empty((len(taps.weights), geo.span), x.dtype)
    n = next_unit(counters)
    while n < units:
        _cut(x[n], phases, geo)
        for f in range(len(wide)):
            wide[f] = bias[f] if f < len(bias) else 0
        _accumulate(image, taps.shifts, taps.weights, wide)
        for f in range(out.shape[1]):
            for i in range(geo.out_height):
                row, source = out[n, f, i], wide[f, i * geo.width :]
                for j in range(geo.out_width):
                    row[j] = source[j]
        unit_done(counters)
        n = next_unit(counters)


@_compile
def convolve_backward(counters, units, x, dout, forward, backward, geo, per_group, dw, dx):
    """dx[n] and the group's share dw[g] for the groups g, of `per_group` samples each, that are units of this job.

    An empty dx is left alone.
    """
    samples, channels = x.shape[0], x.shape[1]
    filters = dout.shape[1]
    planes = channels * geo.down * geo.across
    size = planes * geo.height * geo.width
    image = np.zeros(size + geo.span, x.dtype)
    phases = image[:size].reshape(planes, geo.height, geo.width)
    length = geo.span + 2 * geo.margin
    # rows of dout between margins of zeros, then zeros: for padding taps, and for the padding filters of dw
    spread = np.zeros((len(forward.weights) + 1) * length + geo.phase, x.dtype)
    rows = spread[geo.margin :]
    dphase = np.empty((len(backward.weights), geo.phase), x.dtype)
    g = next_unit(counters)
    while g < units:
        for n in range(g * per_group, min(samples, (g + 1) * per_group)):
            for f in range(filters):
                for i in range(geo.out_height):
                    row, source = rows[f * length + i * geo.width :], dout[n, f, i]
                    for j in range(geo.out_width):
                        row[j] = source[j]
            _cut(x[n], phases, geo)
            _correlate(rows, length, image, forward.shifts, geo.span, dw[g])
            if dx.size == 0:
                continue
            for a in range(geo.down):
                for b in range(geo.across):
                    phase = a * geo.across + b
                    start, stop = backward.starts[phase], backward.starts[phase + 1]
                    dphase[:] = 0
                    _accumulate(spread, backward.shifts[start:stop], backward.weights[:, start:stop], dphase)
                    for c in range(channels):
                        exact = dphase[c, : geo.height * geo.width].reshape(geo.height, geo.width)
                        _paste(exact, a, b, geo, dx[n, c])
        unit_done(counters)
        g = next_unit(counters)


@_compile
def _cut(x, phases, geo):
    """Copies the image x (C, H, W) into its phases; what is padding there stays zero."""
    channels, height, width = x.shape
    s = geo.stride
    for c in range(channels):
        for a in range(geo.down):
            i0, i1 = _inside(a, s, geo.pad, height, geo.height)
            for b in range(geo.across):
                j0, j1 = _inside(b, s, geo.pad, width, geo.width)
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


@_compile
def _paste(phase, a, b, geo, x):
    """Copies a phase (a, b) back to its place in the image x (H, W)."""
    s = geo.stride
    i0, i1 = _inside(a, s, geo.pad, x.shape[0], geo.height)
    j0, j1 = _inside(b, s, geo.pad, x.shape[1], geo.width)
    for i in range(i0, i1):
        row = phase[i, j0:j1]
        target = x[i * s + a - geo.pad, j0 * s + b - geo.pad :]
        for j in range(len(row)):
            target[j * s] = row[j]


@_compile
def _inside(a, s, pad, size, count):
    """The range of i in [0, count) whose i * s + a - pad lies in [0, size)."""
    low = max(0, (pad - a + s - 1) // s)
    return low, max(low, min(count, (size - 1 + pad - a) // s + 1))


@_compile
def _accumulate(image, shifts, weights, out):
    """out[f, p] += sum over k of weights[f, k] * image[shifts[k] + p], four f and seven k at a time."""
    filters, taps = weights.shape
    for p0 in range(0, out.shape[1], _CHUNK):
        span = min(_CHUNK, out.shape[1] - p0)
        for k in range(0, taps, 7):
            s = shifts[k : k + 7] + p0
            x0, x1, x2, x3 = image[s[0] :], image[s[1] :], image[s[2] :], image[s[3] :]
            x4, x5, x6 = image[s[4] :], image[s[5] :], image[s[6] :]
            for f in range(0, filters, 4):
                # fmt: off
                a, b, c, d = weights[f, k:], weights[f + 1, k:], weights[f + 2, k:], weights[f + 3, k:]
                a0, a1, a2, a3, a4, a5, a6 = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
                b0, b1, b2, b3, b4, b5, b6 = b[0], b[1], b[2], b[3], b[4], b[5], b[6]
                c0, c1, c2, c3, c4, c5, c6 = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
                d0, d1, d2, d3, d4, d5, d6 = d[0], d[1], d[2], d[3], d[4], d[5], d[6]
                oa, ob, oc, od = out[f, p0:], out[f + 1, p0:], out[f + 2, p0:], out[f + 3, p0:]
                for p in range(span):
                    v0, v1, v2, v3, v4, v5, v6 = x0[p], x1[p], x2[p], x3[p], x4[p], x5[p], x6[p]
                    oa[p] += a0*v0 + a1*v1 + a2*v2 + a3*v3 + a4*v4 + a5*v5 + a6*v6
                    ob[p] += b0*v0 + b1*v1 + b2*v2 + b3*v3 + b4*v4 + b5*v5 + b6*v6
                    oc[p] += c0*v0 + c1*v1 + c2*v2 + c3*v3 + c4*v4 + c5*v5 + c6*v6
                    od[p] += d0*v0 + d1*v1 + d2*v2 + d3*v3 + d4*v4 + d5*v5 + d6*v6
                # fmt: on


@_compile
def _correlate(rows, length, image, shifts, span, out):
    """out[f, k] += sum over p < span of rows[f * length + p] * image[shifts[k] + p], four f and three k at a time."""
    filters, taps = out.shape
    zero = out.dtype.type(0)
    for p0 in range(0, span, _CHUNK):
        chunk = min(_CHUNK, span - p0)
        for k in range(0, taps, 3):
            x0, x1, x2 = image[shifts[k] + p0 :], image[shifts[k + 1] + p0 :], image[shifts[k + 2] + p0 :]
            for f in range(0, filters, 4):
                q = f * length + p0
                a, b, c, d = rows[q:], rows[q + length :], rows[q + 2 * length :], rows[q + 3 * length :]
                a0, a1, a2, b0, b1, b2 = zero, zero, zero, zero, zero, zero
                c0, c1, c2, d0, d1, d2 = zero, zero, zero, zero, zero, zero
                for p in range(chunk):
                    v0, v1, v2 = x0[p], x1[p], x2[p]
                    ap, bp, cp, dp = a[p], b[p], c[p], d[p]
                    a0 += ap * v0
                    a1 += ap * v1
                    a2 += ap * v2
                    b0 += bp * v0
                    b1 += bp * v1
                    b2 += bp * v2
                    c0 += cp * v0
                    c1 += cp * v1
                    c2 += cp * v2
                    d0 += dp * v0
                    d1 += dp * v1
                    d2 += dp * v2
                _add(out[f, k:], a0, a1, a2)
                _add(out[f + 1, k:], b0, b1, b2)
                _add(out[f + 2, k:], c0, c1, c2)
                _add(out[f + 3, k:], d0, d1, d2)


@_compile
def _add(out, a, b, c):
    out[0] += a
    out[1] += b
    out[2] += c
