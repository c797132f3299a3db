"""The four kernels on part of a sample, compiled; `x`, `g` and what is written are that part as contiguous elements.

Channels-first, a part is some planes: rows of `size` elements. Channels-last it is rows of C elements, one for each
position; so that short rows fill vector registers, some of them are worked on as one row of `lanes` elements, with
the grid repeated to match.

Sums run in the elements' precision over blocks short enough to lose nothing, and in float64 over the blocks. The
variance is taken about a value near the mean, whose distance from it is then corrected for; where that value turns
out to be far off, once more about the mean just found (the shifted, and the corrected two-pass
algorithm of Chan, Golub & LeVeque 1983).

Elements may be halves, which are widened as they are loaded and rounded as they are stored
(`normlab.kernels.runtime.narrow`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.kernels.runtime.ahead import read_ahead, write_ahead
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.narrow import element, number, numbers_for, real

_BLOCK = 512  # elements of a row that are summed in the elements' own precision
_ROWS = 8  # joined rows likewise, where there are more than
_FEW = 64  # of them
_STRIP = 256  # elements of a joined row that are summed side by side
_ROW_FAR = 0.5  # of the mean square may be due to the centre: it is off by no more than a deviation
_ROWS_FAR = 0.8  # likewise, two deviations; channels-last, one channel costs another pass over all
_FAR = -1.0  # in the place of a variance: to be computed once more, about the mean just found


# Inner loops run over slices, from zero: an index that might be negative would keep them from vectorizing.


# --- channels-first: rows of `size` elements ---------------------------------------------------------------------
#
# What a call decides once is decided outside of the loops over rows: a branch, or a call, costs as much as a short row.


@compiled
def moments_first(x: Any, size: int, mean: Any, var: Any) -> None:
    far = _moments_short(x, size, mean, var) if size <= _BLOCK else _moments_long(x, size, mean, var)
    if far == 0:
        return
    for c in range(mean.size):
        if var[c] == _FAR:
            row = x[c * size : (c + 1) * size]
            near = real(x, mean[c])
            left, square = _mean_square_about(row, near)
            mean[c] = near + left
            var[c] = _not_negative(square - left * left)


@compiled
def _moments_short(x: Any, size: int, mean: Any, var: Any) -> int:
    """Moments of rows that are summed in one go; returns how many were `_FAR`, and leaves their mean near the mean."""
    share = 1.0 / size
    far = 0
    for c in range(mean.size):
        read_ahead(x, c * size, size)
        row = x[c * size : (c + 1) * size]
        near = _guess_mean(row)
        part = real(x, 0)
        part_square = real(x, 0)
        for k in range(size):
            d = number(row[k]) - near
            part += d
            part_square += d * d
        left = share * part
        square = share * part_square
        mean[c] = near + left
        var[c] = _FAR if _is_far_off(left, square, _ROW_FAR) else _not_negative(square - left * left)
        far += _is_far_off(left, square, _ROW_FAR)
    return far


@compiled
def _moments_long(x: Any, size: int, mean: Any, var: Any) -> int:
    far = 0
    for c in range(mean.size):
        row = x[c * size : (c + 1) * size]
        near = _guess_mean(row)
        left, square = _mean_square_about(row, near)
        mean[c] = near + left
        var[c] = _FAR if _is_far_off(left, square, _ROW_FAR) else _not_negative(square - left * left)
        far += _is_far_off(left, square, _ROW_FAR)
    return far


@compiled
def _mean_square_about(row: Any, near: Any) -> Any:
    """Means of (x - near) and of its square."""
    left = 0.0
    square = 0.0
    for at in range(0, row.size, _BLOCK):
        block = row[at : at + _BLOCK]
        read_ahead(row, at, block.size)
        part = real(row, 0)
        part_square = real(row, 0)
        for k in range(block.size):
            d = number(block[k]) - near
            part += d
            part_square += d * d
        left += part
        square += part_square
    return left / row.size, square / row.size


@compiled
def _guess_mean(row: Any) -> Any:
    """A value near the mean of a row: that of four elements, where there are four."""
    if row.size < 4:
        return number(row[0])
    q = row.size // 4
    first, second = number(row[0]) + number(row[q]), number(row[2 * q]) + number(row[3 * q])
    return real(row, 0.25) * (first + second)


@compiled
def _is_far_off(left: float, square: float, share: float) -> bool:
    """Whether a centre at distance `left` from the mean would cost the variance precision."""
    return left * left > share * square


@compiled
def _not_negative(v: float) -> float:
    return v if v > 0 or v != v else 0.0


@compiled
def affine_first(
    x: Any, residual: Any, add: bool, relu: bool, size: int, scale: Any, center: Any, shift: Any, y: Any
) -> None:
    """scale * (x - center) + shift, with the residual added if `add`, and at least zero if `relu`."""
    nothing = real(x, 0)
    for c in range(scale.size):
        first, last = c * size, (c + 1) * size
        row, other, out = x[first:last], residual[first:last], y[first:last]
        a, m, t = scale[c], center[c], shift[c]
        read_ahead(x, first, size)
        write_ahead(y, first, size)
        if add:
            read_ahead(residual, first, size)
        for k in range(size):
            z = a * (number(row[k]) - m) + t
            if add:
                z += number(other[k])
            if relu:
                z = nothing if z <= nothing else z
            out[k] = element(z, out)


@compiled
def dots_first(g: Any, x: Any, size: int, center: Any, sum_g: Any, sum_gx: Any) -> None:
    if size <= _BLOCK:
        for c in range(center.size):
            row, up = x[c * size : (c + 1) * size], g[c * size : (c + 1) * size]
            read_ahead(x, c * size, size)
            read_ahead(g, c * size, size)
            m = center[c]
            part = real(x, 0)
            part_product = real(x, 0)
            for k in range(size):
                part += number(up[k])
                part_product += number(up[k]) * (number(row[k]) - m)
            sum_g[c] = part
            sum_gx[c] = part_product
    else:
        for c in range(center.size):
            total = 0.0
            product = 0.0
            for at in range(c * size, (c + 1) * size, _BLOCK):
                stop = min(at + _BLOCK, (c + 1) * size)
                read_ahead(x, at, stop - at)
                read_ahead(g, at, stop - at)
                part, part_product = _dots(g[at:stop], x[at:stop], center[c])
                total += part
                product += part_product
            sum_g[c] = total
            sum_gx[c] = product


@compiled
def _dots(g: Any, x: Any, center: Any) -> Any:
    total = real(x, 0)
    product = real(x, 0)
    for k in range(x.size):
        total += number(g[k])
        product += number(g[k]) * (number(x[k]) - center)
    return total, product


@compiled
def combine_first(g: Any, x: Any, size: int, center: Any, a: Any, b: Any, c: Any, dx: Any) -> None:
    for i in range(a.size):
        first, last = i * size, (i + 1) * size
        up, row, out = g[first:last], x[first:last], dx[first:last]
        m, a_i, b_i, c_i = center[i], a[i], b[i], c[i]
        read_ahead(x, first, size)
        read_ahead(g, first, size)
        write_ahead(dx, first, size)
        for k in range(size):
            out[k] = element(a_i * number(up[k]) + (b_i * (number(row[k]) - m) + c_i), out)


@compiled
def recombine_first(x: Any, size: int, center: Any, a: Any, b: Any, c: Any, dx: Any) -> None:
    """`combine_first` where g lies in dx: with the same memory under two names, its loop would not vectorize."""
    for i in range(a.size):
        first, last = i * size, (i + 1) * size
        row, out = x[first:last], dx[first:last]
        read_ahead(x, first, size)
        m, a_i, b_i, c_i = center[i], a[i], b[i], c[i]
        for k in range(size):
            out[k] = element(a_i * number(out[k]) + (b_i * (number(row[k]) - m) + c_i), out)


# --- channels-last: whole rows of C, `lanes` elements at a time -------------------------------------------------------


@compiled
def fold(lanes: Any, channels: int, result: Any) -> None:
    """Add up the joined rows: one number per channel."""
    for c in range(channels):
        total = 0.0
        for k in range(c, lanes.size, channels):
            total += lanes[k]
        result[c] = total


@compiled
def moments_last(x: Any, channels: int, lanes: int, mean: Any, var: Any) -> None:
    count = x.size // channels
    near = numbers_for(x, 1, lanes)[0]
    _mean_of_a_few(x, channels, near)
    _moments_about(x, channels, lanes, near, mean, var)
    share = 1.0 / count
    for c in range(channels):
        if _is_far_off(share * mean[c], share * var[c], _ROWS_FAR):
            for k in range(channels):
                near[k] += real(x, share * mean[k])
            _moments_about(x, channels, lanes, near, mean, var)
            break
    for c in range(channels):
        left = share * mean[c]
        mean[c] = near[c] + left
        var[c] = _not_negative(share * var[c] - left * left)


@compiled
def _mean_of_a_few(x: Any, channels: int, near: Any) -> None:
    """A value near each channel's mean: of four rows' mean, where there are four."""
    if x.size < 4 * channels:
        for c in range(channels):
            near[c] = number(x[c])
        return
    a, b, c, d = x, x[channels:], x[2 * channels :], x[3 * channels :]
    quarter = real(x, 0.25)
    for k in range(channels):
        near[k] = quarter * ((number(a[k]) + number(b[k])) + (number(c[k]) + number(d[k])))


@compiled
def _moments_about(x: Any, channels: int, lanes: int, near: Any, sums: Any, squares: Any) -> None:
    """Sums of (x - near) and of its square for each channel."""
    part = np.zeros(2 * _STRIP, near.dtype)
    for at in range(channels, lanes, channels):
        for c in range(channels):
            near[at + c] = near[c]
    if lanes <= _STRIP and x.size <= _FEW * lanes:
        _few_rows(x, lanes, near, part)
        fold(part[:lanes], channels, sums)
        fold(part[_STRIP : _STRIP + lanes], channels, squares)
        return
    totals = np.zeros((2, lanes))
    flat = totals.reshape(2 * lanes)
    for strip in range(0, lanes, _STRIP):
        width = min(_STRIP, lanes - strip)
        center = near[strip : strip + width]
        step = lanes * _ROWS
        for at in range(strip, x.size, step):
            if lanes == _STRIP and at + step <= x.size:
                read_ahead(x, at, step)
                _add_eight(x[at : at + step], center, flat)
            else:
                for row in range(at, min(at + step, x.size), lanes):
                    read_ahead(x, row, width)
                    _add_one(x[row : min(row + width, x.size)], center, part)
                _flush(part, totals, strip, width)
    fold(totals[0], channels, sums)
    fold(totals[1], channels, squares)


# Where a joined row is exactly a strip, eight rows at a time, so that the running sums are seldom loaded and stored.
# Distances between what is read and what is written are constants: without them the compiler checks for overlap, or
# does not vectorize at all. That is also why both sums lie in one array, the second from _STRIP on.
_1, _2, _3, _4, _5, _6, _7 = (i * _STRIP for i in range(1, _ROWS))


@compiled
def _add_eight(x: Any, center: Any, totals: Any) -> None:
    for k in range(_STRIP):
        m = center[k]
        d0, d1, d2, d3 = number(x[k]) - m, number(x[k + _1]) - m, number(x[k + _2]) - m, number(x[k + _3]) - m
        d4, d5, d6, d7 = number(x[k + _4]) - m, number(x[k + _5]) - m, number(x[k + _6]) - m, number(x[k + _7]) - m
        first, second = (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3), (d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7)
        totals[k] += np.float64(((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7)))
        totals[k + _STRIP] += np.float64(first + second)


@compiled
def _add_eight_dots(g: Any, x: Any, center: Any, totals: Any) -> None:
    for k in range(_STRIP):
        m = center[k]
        g0, g1, g2, g3 = number(g[k]), number(g[k + _1]), number(g[k + _2]), number(g[k + _3])
        g4, g5, g6, g7 = number(g[k + _4]), number(g[k + _5]), number(g[k + _6]), number(g[k + _7])
        p01, p23 = g0 * (number(x[k]) - m) + g1 * (number(x[k + _1]) - m), g2 * (number(x[k + _2]) - m)
        p34, p56 = g3 * (number(x[k + _3]) - m) + g4 * (number(x[k + _4]) - m), g5 * (number(x[k + _5]) - m)
        p67 = g6 * (number(x[k + _6]) - m) + g7 * (number(x[k + _7]) - m)
        totals[k] += np.float64(((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7)))
        totals[k + _STRIP] += np.float64((p01 + p23) + (p34 + p56) + p67)


@compiled
def _few_rows(x: Any, lanes: int, center: Any, part: Any) -> None:
    """Sums over so few joined rows that the elements' precision is enough."""
    step = 4 * lanes
    whole = x.size // step * step if lanes == _STRIP else 0
    for at in range(0, whole, step):
        read_ahead(x, at, step)
        _add_four(x[at : at + step], center, part)
    for at in range(whole, x.size, lanes):
        read_ahead(x, at, lanes)
        _add_one(x[at : min(at + lanes, x.size)], center, part)


@compiled
def _few_rows_dots(g: Any, x: Any, lanes: int, center: Any, part: Any) -> None:
    step = 4 * lanes
    whole = x.size // step * step if lanes == _STRIP else 0
    for at in range(0, whole, step):
        read_ahead(x, at, step)
        read_ahead(g, at, step)
        _add_four_dots(g[at : at + step], x[at : at + step], center, part)
    for at in range(whole, x.size, lanes):
        stop = min(at + lanes, x.size)
        read_ahead(x, at, lanes)
        read_ahead(g, at, lanes)
        _add_one_dots(g[at:stop], x[at:stop], center, part)


@compiled
def _add_four(x: Any, center: Any, part: Any) -> None:
    for k in range(_STRIP):
        m = center[k]
        d0, d1, d2, d3 = number(x[k]) - m, number(x[k + _1]) - m, number(x[k + _2]) - m, number(x[k + _3]) - m
        part[k] += (d0 + d1) + (d2 + d3)
        part[k + _STRIP] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@compiled
def _add_four_dots(g: Any, x: Any, center: Any, part: Any) -> None:
    for k in range(_STRIP):
        m = center[k]
        g0, g1, g2, g3 = number(g[k]), number(g[k + _1]), number(g[k + _2]), number(g[k + _3])
        p01 = g0 * (number(x[k]) - m) + g1 * (number(x[k + _1]) - m)
        p23 = g2 * (number(x[k + _2]) - m) + g3 * (number(x[k + _3]) - m)
        part[k] += (g0 + g1) + (g2 + g3)
        part[k + _STRIP] += p01 + p23


@compiled
def _add_one(row: Any, center: Any, part: Any) -> None:
    for k in range(row.size):
        d = number(row[k]) - center[k]
        part[k] += d
        part[k + _STRIP] += d * d


@compiled
def _add_one_dots(g: Any, x: Any, center: Any, part: Any) -> None:
    for k in range(x.size):
        part[k] += number(g[k])
        part[k + _STRIP] += number(g[k]) * (number(x[k]) - center[k])


@compiled
def _flush(part: Any, totals: Any, strip: int, width: int) -> None:
    """Add the sums of a few rows to the totals, and start again from zero."""
    for i in range(2):
        total, few = totals[i, strip : strip + width], part[i * _STRIP : i * _STRIP + width]
        for k in range(width):
            total[k] += few[k]
            few[k] = 0


@compiled
def affine_last(
    x: Any, residual: Any, add: bool, relu: bool, lanes: int, scale: Any, center: Any, shift: Any, y: Any
) -> None:
    nothing = real(x, 0)
    for at in range(0, x.size, lanes):
        stop = min(at + lanes, x.size)
        row, other, out = x[at:stop], residual[at:stop], y[at:stop]
        read_ahead(x, at, lanes)
        write_ahead(y, at, lanes)
        if add:
            read_ahead(residual, at, lanes)
        for k in range(row.size):
            z = scale[k] * (number(row[k]) - center[k]) + shift[k]
            if add:
                z += number(other[k])
            if relu:
                z = nothing if z <= nothing else z
            out[k] = element(z, out)


@compiled
def dots_last(g: Any, x: Any, channels: int, lanes: int, center: Any, sum_g: Any, sum_gx: Any) -> None:
    part = np.zeros(2 * _STRIP, center.dtype)
    if lanes <= _STRIP and x.size <= _FEW * lanes:
        _few_rows_dots(g, x, lanes, center, part)
        fold(part[:lanes], channels, sum_g)
        fold(part[_STRIP : _STRIP + lanes], channels, sum_gx)
        return
    totals = np.zeros((2, lanes))
    flat = totals.reshape(2 * lanes)
    for strip in range(0, lanes, _STRIP):
        width = min(_STRIP, lanes - strip)
        near = center[strip : strip + width]
        step = lanes * _ROWS
        for at in range(strip, x.size, step):
            if lanes == _STRIP and at + step <= x.size:
                read_ahead(x, at, step)
                read_ahead(g, at, step)
                _add_eight_dots(g[at : at + step], x[at : at + step], near, flat)
            else:
                for row in range(at, min(at + step, x.size), lanes):
                    end = min(row + width, x.size)
                    read_ahead(x, row, width)
                    read_ahead(g, row, width)
                    _add_one_dots(g[row:end], x[row:end], near, part)
                _flush(part, totals, strip, width)
    fold(totals[0], channels, sum_g)
    fold(totals[1], channels, sum_gx)


@compiled
def combine_last(g: Any, x: Any, lanes: int, center: Any, a: Any, b: Any, c: Any, dx: Any) -> None:
    for at in range(0, x.size, lanes):
        stop = min(at + lanes, x.size)
        up, row, out = g[at:stop], x[at:stop], dx[at:stop]
        read_ahead(x, at, lanes)
        read_ahead(g, at, lanes)
        write_ahead(dx, at, lanes)
        for k in range(row.size):
            out[k] = element(a[k] * number(up[k]) + (b[k] * (number(row[k]) - center[k]) + c[k]), out)


@compiled
def recombine_last(x: Any, lanes: int, center: Any, a: Any, b: Any, c: Any, dx: Any) -> None:
    """`combine_last` where g lies in dx."""
    for at in range(0, x.size, lanes):
        stop = min(at + lanes, x.size)
        row, out = x[at:stop], dx[at:stop]
        read_ahead(x, at, lanes)
        for k in range(row.size):
            out[k] = element(a[k] * number(out[k]) + (b[k] * (number(row[k]) - center[k]) + c[k]), out)
