"""Normalization at one position or many, compiled: rows whose elements are normalized together, or columns.

A row lies in the first-level cache, and a tile of columns in the second, while it is gone over: for the moments about
the mean of its first few elements, once more about the mean just found where that was further off than two deviations
(the shifted, and the corrected two-pass algorithm of Chan, Golub & LeVeque 1983), and to write y. Sums run in the
elements' precision over blocks short enough to lose nothing, and in float64 over the blocks.

Kept for the backward pass are, for every position, the centre m (in the elements' precision, where subtracting it from
an element near it is exact), r = 1 / sqrt(var + eps), and t = r * (m - mean), so that weight and bias are applied to
h = (x - m) * r + t. Then, with averages over the row,

    dx = r * (w * g - average(w * g) - h * average(w * g * h)) = r * w * g + b * (x - m) + c,

where b and c are numbers of the position; without centring (root mean square) m, t and the first average are zero.

A position whose squares, products or coefficients leave the range of float32 is gone over in float64 (`_exact`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.kernels.cpu._exact import is_beyond, is_far, least_variance, moments
from normlab.kernels.runtime.ahead import read_soon, write_soon
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.narrow import element, number
from normlab.kernels.runtime.unaliased import load, store

_BLOCK = 2048  # elements of a row that are summed in the elements' own precision; vectors make it some 64 in a line
_ROWS = 64  # rows of a tile likewise
_FEW = 8  # elements whose mean is the first estimate

# Tensors are pointers to elements: numbers of the type `real`, or x, g, y and dx halves
# (`normlab.kernels.runtime.narrow`). Roles of what they point to (`normlab.kernels.runtime.unaliased`):
X, G, WEIGHT, BIAS, OUT, D_WEIGHT, D_BIAS, CENTER, RSTD, SHIFT, FIRST, SECOND = range(12)


# --- rows -------------------------------------------------------------------------------------------------------------
#
# They follow each other in memory, as the processor expects by itself: to ask for what lies ahead took longer.


@compiled
def normalize_row(
    real: Any, x: Any, at: int, size: int, weight: Any, bias: Any, centred: bool, eps: float, y: Any, to: int,
    kept: Any, i: int,
) -> None:  # fmt: skip
    """y = h * weight + bias, for the row of x from `at` on; m, r and t are kept in place i."""
    m = real(0)
    if centred:
        first = number(load(x, at, X))
        few = min(_FEW, size)
        for k in range(few):
            m += number(load(x, at + k, X)) - first
        m = first + m / real(few)
    left, square = _mean_square_about(real, x, at, size, m)
    if centred and _is_far_off(left, square):
        m += real(left)
        left, square = _mean_square_about(real, x, at, size, m)
    if is_far(square, least_variance(eps)):
        _normalize_apart(real, x, at, 1, size, weight, bias, centred, eps, y, to, 1, kept, i)
        return
    if not centred:
        left = 0.0
    exact = _rstd(square - left * left, eps)
    r, t = real(exact), real(-left * exact)
    for k in range(size):
        h = (number(load(x, at + k, X)) - m) * r + t
        store(y, to + k, element(h * load(weight, k, WEIGHT) + load(bias, k, BIAS), y), OUT)
    store(kept[0], i, m, CENTER)
    store(kept[1], i, r, RSTD)
    store(kept[2], i, t, SHIFT)


@compiled
def _mean_square_about(real: Any, x: Any, at: int, size: int, m: Any) -> Any:
    """Means of (x - m) and of its square."""
    total = 0.0
    square = 0.0
    for start in range(0, size, _BLOCK):
        part = real(0)
        part_square = real(0)
        for k in range(start, min(start + _BLOCK, size)):
            d = number(load(x, at + k, X)) - m
            part += d
            part_square += d * d
        total += part
        square += part_square
    return total / size, square / size


@compiled
def _normalize_apart(
    real: Any, x: Any, at: int, step: int, size: int, weight: Any, bias: Any, centred: bool, eps: float, y: Any,
    to: int, to_step: int, kept: Any, i: int,
) -> None:  # fmt: skip
    """A position whose squares leave float32, in float64; its elements are `step` apart."""
    mean, var = moments(x, at, step, size)
    if not centred:
        mean, var = 0.0, var + mean * mean
    r, m = _rstd(var, eps), real(mean)
    for k in range(size):
        h = (np.float64(number(load(x, at + k * step, X))) - mean) * r
        store(y, to + k * to_step, element(real(h * load(weight, k, WEIGHT) + load(bias, k, BIAS)), y), OUT)
    store(kept[0], i, m, CENTER)
    store(kept[1], i, real(r), RSTD)
    store(kept[2], i, real(r * (np.float64(m) - mean)), SHIFT)


@compiled
def _pull_apart(
    real: Any, g: Any, g_at: int, g_step: int, x: Any, at: int, step: int, size: int, weight: Any, centred: bool,
    kept: Any, i: int, learns: bool, d_weight: Any, d_bias: Any, dx: Any, to: int, to_step: int,
) -> None:  # fmt: skip
    """`pull_row` of a position whose sums or coefficients leave float32."""
    m, r, t = np.float64(load(kept[0], i, CENTER)), load(kept[1], i, RSTD), load(kept[2], i, SHIFT)
    sum_g = 0.0
    sum_gx = 0.0
    for k in range(size):
        a = np.float64(number(load(g, g_at + k * g_step, G))) * load(weight, k, WEIGHT)
        sum_g += a
        sum_gx += a * (np.float64(number(load(x, at + k * step, X))) - m)
    b, c = _coefficients(sum_g, sum_gx, size, centred, r, t)
    for k in range(size):
        up, d = np.float64(number(load(g, g_at + k * g_step, G))), np.float64(number(load(x, at + k * step, X))) - m
        if learns:
            store(d_weight, k, real(load(d_weight, k, D_WEIGHT) + up * (d * r + t)), D_WEIGHT)
            store(d_bias, k, real(load(d_bias, k, D_BIAS) + up), D_BIAS)
        store(dx, to + k * to_step, element(real(r * (load(weight, k, WEIGHT) * up) + (b * d + c)), dx), OUT)


@compiled
def _loses_precision(sum_g: float, sum_gx: float, m: Any, r: Any, b: float, c: float) -> bool:
    """Whether a sum of the backward pass, or a coefficient, leaves float32 or has lost digits in it."""
    tiny = least_variance(1 / (np.float64(r) * r))
    return is_far(sum_g, 0.0) or is_far(sum_gx, tiny) or is_beyond(r, m) or is_beyond(b, c)


@compiled
def _is_far_off(left: float, square: float) -> bool:
    """Whether a centre at distance `left` from the mean would cost the variance precision: over two deviations."""
    return left * left > 0.8 * square


@compiled
def pull_row(
    real: Any, g: Any, g_at: int, x: Any, at: int, size: int, weight: Any, centred: bool, kept: Any, i: int,
    learns: bool, d_weight: Any, d_bias: Any, dx: Any, to: int,
) -> None:  # fmt: skip
    """dx of a row; if it `learns`, the gradients of weight and bias are added to."""
    m, r, t = load(kept[0], i, CENTER), load(kept[1], i, RSTD), load(kept[2], i, SHIFT)
    sum_g = 0.0
    sum_gx = 0.0
    for start in range(0, size, _BLOCK):
        part = real(0)
        part_x = real(0)
        for k in range(start, min(start + _BLOCK, size)):
            a = number(load(g, g_at + k, G)) * load(weight, k, WEIGHT)
            part += a
            part_x += a * (number(load(x, at + k, X)) - m)
        sum_g += part
        sum_gx += part_x
    exact_b, exact_c = _coefficients(sum_g, sum_gx, size, centred, r, t)
    if _loses_precision(sum_g, sum_gx, m, r, exact_b, exact_c):
        _pull_apart(
            real, g, g_at, 1, x, at, 1, size, weight, centred, kept, i, learns, d_weight, d_bias, dx, to, 1
        )  # fmt: skip
        return
    b, c = real(exact_b), real(exact_c)
    if learns:
        for k in range(size):
            up, d = number(load(g, g_at + k, G)), number(load(x, at + k, X)) - m
            store(d_weight, k, load(d_weight, k, D_WEIGHT) + up * (d * r + t), D_WEIGHT)
            store(d_bias, k, load(d_bias, k, D_BIAS) + up, D_BIAS)
            store(dx, to + k, element(r * (load(weight, k, WEIGHT) * up) + (b * d + c), dx), OUT)
    else:
        for k in range(size):
            a = number(load(g, g_at + k, G)) * load(weight, k, WEIGHT)
            store(dx, to + k, element(r * a + (b * (number(load(x, at + k, X)) - m) + c), dx), OUT)


@compiled
def _rstd(var: float, eps: float) -> float:
    return 1 / np.sqrt((0.0 if var < 0 else var) + eps)


@compiled
def _coefficients(sum_g: float, sum_gx: float, size: int, centred: bool, r: Any, t: Any) -> Any:
    """b and c of dx = r * w * g + b * (x - m) + c."""
    scale, shift = np.float64(r), np.float64(t)
    mean_gh = (sum_gx * scale + sum_g * shift) / size
    mean_g = sum_g / size if centred else 0.0
    return -scale * scale * mean_gh, -scale * (mean_g + shift * mean_gh)


# --- columns: a tile of `width` columns, whose rows are `step` elements apart ---------------------------------------


@compiled
def normalize_columns(
    real: Any, x: Any, at: int, step: int, size: int, width: int, weight: Any, bias: Any, centred: bool, eps: float,
    y: Any, to: int, to_step: int, kept: Any, i: int, first: Any, second: Any, totals: Any,
) -> None:  # fmt: skip
    """As `normalize_row`, for each column; m, r and t are kept from place i on."""
    m, r, t = kept
    _center_columns(real, x, at, step, min(_FEW, size) if centred else 0, width, m, i)
    _add_rows(x, at, step, size, width, m, i, first, second, totals)
    if centred:
        for k in range(width):
            if _is_far_off(totals[0, k] / size, totals[1, k] / size):
                for j in range(width):
                    store(m, i + j, load(m, i + j, CENTER) + real(totals[0, j] / size), CENTER)
                _add_rows(x, at, step, size, width, m, i, first, second, totals)
                break
    tiny = least_variance(eps)
    far = 0
    for k in range(width):
        far += is_far(totals[1, k] / size, tiny)
    for k in range(width):
        left = totals[0, k] / size if centred else 0.0
        exact = _rstd(totals[1, k] / size - left * left, eps)
        store(r, i + k, exact, RSTD)
        store(t, i + k, -left * exact, SHIFT)
    for c in range(size):
        here, there, w, b = at + c * step, to + c * to_step, load(weight, c, WEIGHT), load(bias, c, BIAS)
        write_soon(y, there + to_step, width)
        for k in range(width):
            h = (number(load(x, here + k, X)) - load(m, i + k, CENTER)) * load(r, i + k, RSTD) + load(t, i + k, SHIFT)
            store(y, there + k, element(h * w + b, y), OUT)
    if far > 0:
        for k in range(width):
            if is_far(totals[1, k] / size, tiny):
                _normalize_apart(
                    real, x, at + k, step, size, weight, bias, centred, eps, y, to + k, to_step, kept, i + k
                )  # fmt: skip


@compiled
def _center_columns(real: Any, x: Any, at: int, step: int, few: int, width: int, m: Any, i: int) -> None:
    """m is the mean of the first few elements of each column, or zero."""
    for k in range(width):
        store(m, i + k, real(0), CENTER)
    for c in range(1, few):
        for k in range(width):
            d = number(load(x, at + c * step + k, X)) - number(load(x, at + k, X))
            store(m, i + k, load(m, i + k, CENTER) + d, CENTER)
    if few > 0:
        for k in range(width):
            store(m, i + k, number(load(x, at + k, X)) + load(m, i + k, CENTER) / real(few), CENTER)


@compiled
def _add_rows(
    x: Any, at: int, step: int, size: int, width: int, m: Any, i: int, first: Any, second: Any, totals: Any
) -> None:
    """Sums over the rows of (x - m) and of its square."""
    _set_to_zero(totals[0], totals[1], width)
    for start in range(0, size, _ROWS):
        _set_to_zero(first, second, width)
        for c in range(start, min(start + _ROWS, size)):
            here = at + c * step
            read_soon(x, here + step, width)
            for k in range(width):
                d = number(load(x, here + k, X)) - load(m, i + k, CENTER)
                store(first, k, load(first, k, FIRST) + d, FIRST)
                store(second, k, load(second, k, SECOND) + d * d, SECOND)
        _flush(first, second, totals, width)


@compiled
def pull_columns(
    real: Any, g: Any, g_at: int, g_step: int, x: Any, at: int, step: int, size: int, width: int, weight: Any,
    centred: bool, kept: Any, i: int, learns: bool, d_weight: Any, d_bias: Any, dx: Any, to: int, to_step: int,
    first: Any, second: Any, totals: Any,
) -> None:  # fmt: skip
    """As `pull_row`, for each column."""
    m, r, t = kept
    far = 0
    for k in range(width):
        far += is_beyond(load(r, i + k, RSTD), load(m, i + k, CENTER))
    if far > 0:  # differences from the center may overflow
        for k in range(width):
            _pull_apart(
                real, g, g_at + k, g_step, x, at + k, step, size, weight, centred, kept, i + k, learns, d_weight,
                d_bias, dx, to + k, to_step,
            )  # fmt: skip
        return
    _set_to_zero(totals[0], totals[1], width)
    for start in range(0, size, _ROWS):
        _set_to_zero(first, second, width)
        for c in range(start, min(start + _ROWS, size)):
            here, there, w = at + c * step, g_at + c * g_step, load(weight, c, WEIGHT)
            read_soon(x, here + step, width)
            read_soon(g, there + g_step, width)
            part_weight = real(0)
            part_bias = real(0)
            for k in range(width):
                up, d = number(load(g, there + k, G)), number(load(x, here + k, X)) - load(m, i + k, CENTER)
                a = up * w
                store(first, k, load(first, k, FIRST) + a, FIRST)
                store(second, k, load(second, k, SECOND) + a * d, SECOND)
                part_weight += up * (d * load(r, i + k, RSTD) + load(t, i + k, SHIFT))
                part_bias += up
            if learns:
                store(d_weight, c, load(d_weight, c, D_WEIGHT) + part_weight, D_WEIGHT)
                store(d_bias, c, load(d_bias, c, D_BIAS) + part_bias, D_BIAS)
        _flush(first, second, totals, width)
    for k in range(width):
        b, c = _coefficients(totals[0, k], totals[1, k], size, centred, load(r, i + k, RSTD), load(t, i + k, SHIFT))
        far += _loses_precision(totals[0, k], totals[1, k], load(m, i + k, CENTER), load(r, i + k, RSTD), b, c)
        first[k], second[k] = b, c
    for c in range(size):
        here, there, out, w = at + c * step, g_at + c * g_step, to + c * to_step, load(weight, c, WEIGHT)
        write_soon(dx, out + to_step, width)
        for k in range(width):
            a = load(r, i + k, RSTD) * (number(load(g, there + k, G)) * w)
            d = number(load(x, here + k, X)) - load(m, i + k, CENTER)
            store(dx, out + k, element(a + (load(first, k, FIRST) * d + load(second, k, SECOND)), dx), OUT)
    if far > 0:
        for k in range(width):
            b, c = _coefficients(totals[0, k], totals[1, k], size, centred, load(r, i + k, RSTD), load(t, i + k, SHIFT))
            if _loses_precision(totals[0, k], totals[1, k], load(m, i + k, CENTER), load(r, i + k, RSTD), b, c):
                _pull_apart(
                    real, g, g_at + k, g_step, x, at + k, step, size, weight, centred, kept, i + k, False, d_weight,
                    d_bias, dx, to + k, to_step,
                )  # fmt: skip


@compiled
def _set_to_zero(first: Any, second: Any, width: int) -> None:
    for k in range(width):
        first[k] = 0
        second[k] = 0


@compiled
def _flush(first: Any, second: Any, totals: Any, width: int) -> None:
    for k in range(width):
        totals[0, k] += first[k]
        totals[1, k] += second[k]
