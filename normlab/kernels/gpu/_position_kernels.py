"""Statistics per position as Triton kernels, both directions, for rows and for columns.

Both are shown as (N, E, S), normalized over E: columns as they are, rows (R, D) as N = 1, E = D and S = R. An instance
holds BLOCK_P positions by BLOCK_E elements at a time. Where these are all elements of its positions (WHOLE), it reads
them once; otherwise it goes over the elements twice, for sums and to write, and what it reads again is in the caches.

A position's mean is kept rounded to the elements' precision, m, where subtracting it from an element near it is exact;
with r = 1 / sqrt(var + eps) and t = r * (m - mean) kept beside it, h = (x - m) * r + t is x standardized. So

    y = weight * h + bias
    dx = r * (u - average(u) - h * average(u * h)),    u = weight * g

(without centring m, t and the first average are zero). Where x is so large that x - m or r would leave float32, x and m
are first multiplied by a power of two (`_standardized`), and so is g where its sums do: that loses nothing.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM102, SIM300 (what the compiler decides stands by itself, and a dtype in upper case is no constant)
from __future__ import annotations

import triton
import triton.language as tl

from normlab.kernels.gpu._kernels import _any, _is_far, _moments, _moments_in, _store, _tile

_TILES = tl.constexpr(8)  # within which threads add up for themselves
_LARGE = tl.constexpr(2.0**60)  # of deviations and of gradients: from here on they are multiplied by this
_LESS, _MORE = tl.constexpr(2.0**-64), tl.constexpr(2.0**64)


@triton.jit
def forward(
    x, y, weight, bias, kept,
    N, E, S, x_n, x_e, x_s, y_n, y_e, y_s, tiles,
    EPS: tl.constexpr, CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, EVEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """From x to y; m, r and t are kept, one after the other, for every position."""
    E, S, x_n, x_e, x_s = _even(E, S, x_n, x_e, x_s, ROWS, EVEN)
    _, _, y_n, y_e, y_s = _even(E, S, y_n, y_e, y_s, ROWS, EVEN)
    n, s, own = _positions(tl.program_id(0), tiles, S, BLOCK_P)
    origin, to = n * x_n + s * x_s, n * y_n + s * y_s
    zero = tl.zeros([], tl.int64)
    held = tl.zeros([1, 1], REAL)
    if WHOLE:
        at, inside = _tile(origin, own, zero, E, x_e, BLOCK_E)
        held = tl.load(x + at, mask=inside, other=0.0).to(REAL)
        mean, var = _held_moments(held, x, origin, own, inside, E, x_e, EPS, CENTRED, BLOCK_P, BLOCK_E, REAL)
    elif CENTRED:
        mean, var = _moments(x, origin, own, zero, zero + E, x_e, EPS, BLOCK_P, BLOCK_E, _TILES, REAL)
    else:
        mean, var = _squares(x, origin, own, E, x_e, EPS, BLOCK_P, BLOCK_E, REAL)
    r = tl.rsqrt(var + EPS)
    m = mean.to(REAL)
    t = r * (m.to(tl.float64) - mean)
    place, count = n * S + s, tl.full([], N, tl.int64) * S
    tl.store(kept + place, m, mask=own)
    tl.store(kept + count + place, r.to(REAL), mask=own)
    tl.store(kept + 2 * count + place, t.to(REAL), mask=own)
    if WHOLE:
        h = _standardized(held, m, r, t, REAL)
        h = h * _row(weight, zero, E, WEIGHT, 1.0, BLOCK_E, REAL) + _row(bias, zero, E, BIAS, 0.0, BLOCK_E, REAL)
        at, inside = _tile(to, own, zero, E, y_e, BLOCK_E)
        _store(y + at, h, inside)
    else:
        for e0 in range(zero, zero + E, BLOCK_E):
            at, inside = _tile(origin, own, e0, E, x_e, BLOCK_E)
            v = _standardized(tl.load(x + at, mask=inside, other=0.0), m, r, t, REAL)
            v = v * _row(weight, e0, E, WEIGHT, 1.0, BLOCK_E, REAL) + _row(bias, e0, E, BIAS, 0.0, BLOCK_E, REAL)
            at, inside = _tile(to, own, e0, E, y_e, BLOCK_E)
            _store(y + at, v, inside)


@triton.jit
def backward(
    x, g, dx, weight, kept, parts,
    N, E, S, x_n, x_e, x_s, g_n, g_e, g_s, y_n, y_e, y_s, tiles,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, LEARNS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """From x and g to dx; with LEARNS, which takes WHOLE, each instance leaves its sums of g * h and of g over the
    positions in `parts` (instances, 2, E)."""
    E, S, x_n, x_e, x_s = _even(E, S, x_n, x_e, x_s, ROWS, EVEN)
    _, _, g_n, g_e, g_s = _even(E, S, g_n, g_e, g_s, ROWS, EVEN)
    _, _, y_n, y_e, y_s = _even(E, S, y_n, y_e, y_s, ROWS, EVEN)
    d_weight = tl.zeros([BLOCK_E], REAL)
    d_bias = tl.zeros([BLOCK_E], REAL)
    zero = tl.zeros([], tl.int64)
    share = _share(E)
    stride = tl.num_programs(0)
    for first in range(tl.program_id(0), N * tiles, stride * _TILES):
        products = tl.zeros([BLOCK_P, BLOCK_E], REAL)  # every thread adds up for itself
        ups = tl.zeros([BLOCK_P, BLOCK_E], REAL)
        for block in range(first, tl.minimum(first + stride * _TILES, N * tiles), stride):
            n, s, own = _positions(block, tiles, S, BLOCK_P)
            origin, from_g, to = n * x_n + s * x_s, n * g_n + s * g_s, n * y_n + s * y_s
            m, r, t = _kept(kept, n, s, own, N, S)
            less, more = tl.full([], 1.0, REAL), tl.full([], 1.0, tl.float64)
            if WHOLE:
                h, up = _pair(x, g, origin, from_g, own, m, r, t, less, zero, E, x_e, g_e, BLOCK_E, REAL)
                row = _row(weight, zero, E, WEIGHT, 1.0, BLOCK_E, REAL)
                sum_u, sum_uh = _held_sums(up * row, h)
                far = _any(own & (_is_far(sum_u, 1.0) | _is_far(sum_uh, 1.0)))
                if far:
                    less, more = tl.full([], _LESS, REAL), tl.full([], _MORE, tl.float64)
                    up *= less
                    sum_u, sum_uh = _held_sums(up * row, h)
                b, c, back = _coefficients(sum_u, sum_uh, r, more, share, REAL)
                v = up * row - h * b
                if CENTRED:
                    v -= c
                at, inside = _tile(to, own, zero, E, y_e, BLOCK_E)
                _store(dx + at, back * v, inside)
                if LEARNS:
                    if far:
                        d_weight += (tl.sum(up * h, 0).to(tl.float64) * more).to(REAL)
                        d_bias += (tl.sum(up, 0).to(tl.float64) * more).to(REAL)
                    else:
                        products += up * h
                        ups += up
            else:
                sum_u, sum_uh = _sums(
                    x, g, weight, origin, from_g, own, m, r, t, less, E, x_e, g_e, WEIGHT, BLOCK_P, BLOCK_E, REAL
                )  # fmt: skip
                if _any(own & (_is_far(sum_u, 1.0) | _is_far(sum_uh, 1.0))):
                    less, more = tl.full([], _LESS, REAL), tl.full([], _MORE, tl.float64)
                    sum_u, sum_uh = _sums(
                        x, g, weight, origin, from_g, own, m, r, t, less, E, x_e, g_e, WEIGHT, BLOCK_P, BLOCK_E, REAL
                    )  # fmt: skip
                b, c, back = _coefficients(sum_u, sum_uh, r, more, share, REAL)
                for e0 in range(zero, zero + E, BLOCK_E):
                    h, up = _pair(x, g, origin, from_g, own, m, r, t, less, e0, E, x_e, g_e, BLOCK_E, REAL)
                    v = up * _row(weight, e0, E, WEIGHT, 1.0, BLOCK_E, REAL) - h * b
                    if CENTRED:
                        v -= c
                    at, inside = _tile(to, own, e0, E, y_e, BLOCK_E)
                    _store(dx + at, back * v, inside)
        if LEARNS:
            d_weight += tl.sum(products, 0)
            d_bias += tl.sum(ups, 0)
    if LEARNS:
        _leave(parts, tl.program_id(0), d_weight, d_bias, zero, E, BLOCK_E)


@triton.jit
def learn(
    x, g, kept, parts,
    N, E, S, x_n, x_e, x_s, g_n, g_e, g_s, tiles,
    ROWS: tl.constexpr, EVEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The sums that `backward` leaves, for positions with more elements than an instance holds."""
    E, S, x_n, x_e, x_s = _even(E, S, x_n, x_e, x_s, ROWS, EVEN)
    _, _, g_n, g_e, g_s = _even(E, S, g_n, g_e, g_s, ROWS, EVEN)
    e0 = tl.program_id(1).to(tl.int64) * BLOCK_E
    d_weight = tl.zeros([BLOCK_E], tl.float64)
    d_bias = tl.zeros([BLOCK_E], tl.float64)
    stride = tl.num_programs(0)
    for first in range(tl.program_id(0), N * tiles, stride * _TILES):
        last = tl.minimum(first + stride * _TILES, N * tiles)
        sum_w, sum_b = _learned(
            x, g, kept, first, last, stride, 1.0, e0, N, E, S, x_n, x_e, x_s, g_n, g_e, g_s, tiles,
            BLOCK_P, BLOCK_E, REAL,
        )  # fmt: skip
        if _any(_is_far(sum_w, 1.0) | _is_far(sum_b, 1.0)):
            sum_w, sum_b = _learned(
                x, g, kept, first, last, stride, _LESS, e0, N, E, S, x_n, x_e, x_s, g_n, g_e, g_s, tiles,
                BLOCK_P, BLOCK_E, REAL,
            )  # fmt: skip
        d_weight += sum_w
        d_bias += sum_b
    _leave(parts, tl.program_id(0), d_weight, d_bias, e0, E, BLOCK_E)


@triton.jit
def _learned(
    x, g, kept, first, last, stride, LESS: tl.constexpr, e0, N, E, S, x_n, x_e, x_s, g_n, g_e, g_s, tiles,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums of g * h and of g over every `stride`-th block of positions; g is multiplied by LESS on the way."""
    products = tl.zeros([BLOCK_P, BLOCK_E], REAL)
    ups = tl.zeros([BLOCK_P, BLOCK_E], REAL)
    less = tl.full([], LESS, REAL)
    for block in range(first, last, stride):
        n, s, own = _positions(block, tiles, S, BLOCK_P)
        m, r, t = _kept(kept, n, s, own, N, S)
        h, up = _pair(
            x, g, n * x_n + s * x_s, n * g_n + s * g_s, own, m, r, t, less, e0, E, x_e, g_e, BLOCK_E, REAL
        )  # fmt: skip
        products += up * h
        ups += up
    more = tl.full([], 1.0 / LESS, tl.float64)
    return tl.sum(products, 0).to(tl.float64) * more, tl.sum(ups, 0).to(tl.float64) * more


@triton.jit
def total(
    parts, d_weight, d_bias, count, E, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The sums of all instances."""
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    of_w = tl.zeros([BLOCK_K, BLOCK_E], tl.float64)
    of_b = tl.zeros([BLOCK_K, BLOCK_E], tl.float64)
    for k0 in range(0, count, BLOCK_K):
        k = (k0 + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None]
        there = (k < count) & (e < E)[None, :]
        at = 2 * k * E + e[None, :]
        of_w += tl.load(parts + at, mask=there, other=0.0).to(tl.float64)
        of_b += tl.load(parts + at + E, mask=there, other=0.0).to(tl.float64)
    sum_w, sum_b = tl.sum(of_w, 0), tl.sum(of_b, 0)
    if WEIGHT:
        tl.store(d_weight + e, sum_w, mask=e < E)
    if BIAS:
        tl.store(d_bias + e, sum_b, mask=e < E)


@triton.jit
def _even(E, S, stride_n, stride_e, stride_s, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """The same numbers; where what is contiguous comes in multiples of EVEN, loads are wider for being shown it."""
    if EVEN > 1:
        if ROWS:
            E = E // EVEN * EVEN
            stride_s = stride_s // EVEN * EVEN
        else:
            S = S // EVEN * EVEN
            stride_e = stride_e // EVEN * EVEN
            stride_n = stride_n // EVEN * EVEN
    return E, S, stride_n, stride_e, stride_s


@triton.jit
def _positions(block, tiles, S, BLOCK_P: tl.constexpr):
    """(n, s, which of them are positions) of a tile."""
    s = block % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    return tl.full([], block // tiles, tl.int64), s.to(tl.int64), s < S


@triton.jit
def _squares(
    x, origin, own, E, x_e, EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """Zero in the place of a mean, and the mean of squares, of some positions."""
    FEW: tl.constexpr = BLOCK_E // 32 if BLOCK_E > 32 else 1
    square = _squares_in(x, origin, own, E, x_e, BLOCK_P, BLOCK_E, REAL)
    if REAL == tl.float32:
        if _any(own & _is_far(square, EPS)):
            square = _squares_in(x, origin, own, E, x_e, BLOCK_P, FEW, tl.float64)
    return tl.zeros([BLOCK_P], tl.float64), square


@triton.jit
def _squares_in(x, origin, own, E, x_e, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr):
    """The mean of squares, computed in REAL."""
    zero = tl.zeros([], tl.int64)
    squares = tl.zeros([BLOCK_P, BLOCK_E], REAL)
    for e0 in range(zero, zero + E, BLOCK_E):
        at, inside = _tile(origin, own, e0, E, x_e, BLOCK_E)
        v = tl.load(x + at, mask=inside, other=0.0).to(REAL)
        squares += v * v
    return tl.sum(squares, 1).to(tl.float64) * _share(E)


@triton.jit
def _share(E):
    """1 / E, once, and multiplied by: a division of float64 takes some forty instructions."""
    return tl.full([], 1.0, tl.float64) / tl.full([], E, tl.float64)


@triton.jit
def _held_moments(
    v, x, origin, own, inside, E, x_e,
    EPS: tl.constexpr, CENTRED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of positions all of whose elements are here, or zero and the mean of squares."""
    FEW: tl.constexpr = BLOCK_E // 32 if BLOCK_E > 32 else 1
    share = _share(E)
    zero = tl.zeros([], tl.int64)
    mean = tl.zeros([BLOCK_P], tl.float64)
    if CENTRED:
        rough = (tl.sum(v, 1).to(tl.float64) * share).to(REAL)
        d = tl.where(inside, v - rough[:, None], 0.0)
        off = tl.sum(d, 1).to(tl.float64) * share
        mean = rough.to(tl.float64) + off
        var = tl.sum(d * d, 1).to(tl.float64) * share - off * off
        var = tl.where(var < 0.0, 0.0, var)
    else:
        var = tl.sum(v * v, 1).to(tl.float64) * share
    if REAL == tl.float32:
        if _any(own & _is_far(var, EPS)):
            if CENTRED:
                mean, var = _moments_in(x, origin, own, zero, zero + E, x_e, BLOCK_P, FEW, _TILES, tl.float64)
            else:
                var = _squares_in(x, origin, own, E, x_e, BLOCK_P, FEW, tl.float64)
    return mean, var


@triton.jit
def _kept(kept, n, s, own, N, S):
    """(m, r, t) of some positions."""
    place, count = n * S + s, tl.full([], N, tl.int64) * S
    m = tl.load(kept + place, mask=own, other=0.0)
    r = tl.load(kept + count + place, mask=own, other=0.0).to(tl.float64)
    t = tl.load(kept + 2 * count + place, mask=own, other=0.0).to(tl.float64)
    return m, r, t


@triton.jit
def _standardized(x, m, r, t, REAL: tl.constexpr):
    """h = (x - m) * r + t."""
    small = r * _LARGE < 1.0
    less = tl.where(small, _LESS, 1.0).to(REAL)
    slope = tl.where(small, r * _MORE, r).to(REAL)
    return (x.to(REAL) * less[:, None] - (m * less)[:, None]) * slope[:, None] + t.to(REAL)[:, None]


@triton.jit
def _pair(x, g, origin, from_g, own, m, r, t, less, e0, E, x_e, g_e, BLOCK_E: tl.constexpr, REAL: tl.constexpr):
    """(h, less * g) of a tile; g is zero outside."""
    at, inside = _tile(origin, own, e0, E, x_e, BLOCK_E)
    h = _standardized(tl.load(x + at, mask=inside, other=0.0), m, r, t, REAL)
    at, inside = _tile(from_g, own, e0, E, g_e, BLOCK_E)
    return h, tl.load(g + at, mask=inside, other=0.0).to(REAL) * less


@triton.jit
def _sums(
    x, g, weight, origin, from_g, own, m, r, t, less, E, x_e, g_e,
    WEIGHT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums of less * u and of that times h over each position."""
    zero = tl.zeros([], tl.int64)
    us = tl.zeros([BLOCK_P, BLOCK_E], REAL)
    products = tl.zeros([BLOCK_P, BLOCK_E], REAL)
    for e0 in range(zero, zero + E, BLOCK_E):
        h, up = _pair(x, g, origin, from_g, own, m, r, t, less, e0, E, x_e, g_e, BLOCK_E, REAL)
        up *= _row(weight, e0, E, WEIGHT, 1.0, BLOCK_E, REAL)
        us += up
        products += up * h
    return tl.sum(us, 1).to(tl.float64), tl.sum(products, 1).to(tl.float64)


@triton.jit
def _held_sums(u, h):
    """Sums of u and of u * h over each position, all of whose elements are here."""
    return tl.sum(u, 1).to(tl.float64), tl.sum(u * h, 1).to(tl.float64)


@triton.jit
def _coefficients(sum_u, sum_uh, r, more, share, REAL: tl.constexpr):
    """(b, c, back) as columns: dx = back * (u - h * b - c)."""
    return (sum_uh * share).to(REAL)[:, None], (sum_u * share).to(REAL)[:, None], (r * more).to(REAL)[:, None]


@triton.jit
def _row(
    parameter, e0, E, GIVEN: tl.constexpr, OTHERWISE: tl.constexpr, BLOCK_E: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """Weight or bias of some elements, or what stands for it."""
    if GIVEN:
        e = e0 + tl.arange(0, BLOCK_E)
        v = tl.load(parameter + e, mask=e < E, other=0.0).to(REAL)[None, :]
    else:
        v = tl.full([1, BLOCK_E], OTHERWISE, REAL)
    return v


@triton.jit
def _leave(parts, instance, d_weight, d_bias, e0, E, BLOCK_E: tl.constexpr):
    e = e0 + tl.arange(0, BLOCK_E)
    to = parts + 2 * tl.full([], instance, tl.int64) * E + e
    tl.store(to, d_weight, mask=e < E)
    tl.store(to + E, d_bias, mask=e < E)
