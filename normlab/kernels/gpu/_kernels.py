"""Both directions as Triton kernels, for either memory order and any norm of the family.

A launch performs one or more steps; which, it is compiled for:

| step | forward | backward |
|---|---|---|
| MEASURE | x -> mean and variance of parts of planes | sums of g and of g * (x - center) over parts of planes |
| SOLVE | the program: moments -> scale, center, shift | the program: sums -> b, c, parameters' gradients |
| APPLY | y = act(scale * (x - center) + shift + residual) | dx = scale * g + b * (x - center) + c |

A norm that stays within samples takes all three in one launch; one that pools over the batch measures first, and each
instance of the second launch solves for the channels that it is going to write. Instances that need the same numbers
compute them alike, so nothing is locked, counted or waited for, and every result is the same from run to run.

Planes are numbered p = n * C + c, and grids hold a number for each, in float64: next to the elements they are few.
Elements are computed on in float32 (float64 if that is what they are). Squares of float32 overflow from 1.8e19 on and
lose digits below 1e-19, and so do products and coefficients; what they lead to may well be a float32. So every
instance looks at its sums and coefficients, which are few, and where one has left float32 repeats the step in float64,
in tiles of a 32nd (FEW positions), which take no more registers. An instance covers planes `first` to `last`,
`width` of them every `step`, and positions `start` to `stop`; it holds BLOCK_P planes by BLOCK_S positions at a time.
SOLVE works on R x J registers: rows are units of W planes, or with ACROSS samples, columns then channels.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM102, SIM300 (what the compiler decides stands by itself, and a dtype in upper case is no constant)
from __future__ import annotations

import triton
import triton.language as tl

_LARGEST = tl.constexpr(2.0**120)  # of sums of products: beyond, one of them may have overflowed
_LARGE, _SMALL = tl.constexpr(2.0**90), tl.constexpr(2.0**-100)  # of coefficients
_FAR = tl.constexpr(2.0**100)  # of centers: float32 holds the difference of any element from a nearer one
# numbers of which no load depends, or whose divisibility `EVEN` gives: they need no variant of the kernel each
_PLAIN = ["momentum", "N", "S", "samples", "part", "part_count", "parts_at"]
_EPS, _TINY = tl.constexpr(1e-20), tl.constexpr(1e-30)  # beside such an eps the digits of smaller sums do not matter


@triton.jit(do_not_specialize=_PLAIN)
def forward(
    x, y, residual, grids, learned, running, momentum,
    N, C, S, stride_c, stride_s, chunk, samples, part, part_count, parts_at,
    UPDATE: tl.constexpr, ADD: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, EPS: tl.constexpr,
    MEASURED: tl.constexpr, POOLS: tl.constexpr,
    SOLVE: tl.constexpr, MEASURE: tl.constexpr, APPLY: tl.constexpr, ACROSS: tl.constexpr, W: tl.constexpr,
    R: tl.constexpr, J: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
    TILES: tl.constexpr, EVEN: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """From x to y, or part of the way; the grids are mean, var, scale, center and shift, then come the batch's mean and
    variance, and `parts_at` numbers after the first grid the parts."""
    if EVEN > 1:  # says no more than that they are multiples, by which loads are wider
        S = S // EVEN * EVEN
        stride_c = stride_c // EVEN * EVEN
    planes = tl.full([], N, tl.int64) * C
    batch = grids + 5 * planes
    parts = grids + parts_at
    first, last, step, width, start, stop = _extent(planes, N, C, S, chunk, samples, MEASURE, ACROSS, W, R, J, BLOCK_P)

    if MEASURE:
        to = parts + tl.program_id(1).to(tl.int64) * planes
        for p0 in range(first, last, step):
            p, own = _planes(p0, last, width, BLOCK_P)
            origin = _origin(p, C, S, stride_c)
            mean, var = _moments(x, origin, own, start, stop, stride_s, EPS, BLOCK_P, BLOCK_S, TILES, REAL)
            tl.store(to + p, mean, mask=own)
            tl.store(to + part_count * planes + p, var, mask=own)

    if SOLVE is not None:
        if MEASURE:
            tl.debug_barrier()  # what one thread has measured another reads
        _solve_forward(
            parts, grids, batch, learned, running, momentum, planes, N, C, S, samples, part, part_count,
            SOLVE, MEASURE, ACROSS, MEASURED, POOLS, UPDATE, EPS, W, R, J, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()

    if APPLY:
        FEW: tl.constexpr = BLOCK_S // 32 if BLOCK_S > 32 else 1
        for p0 in range(first, last, step):
            p, own = _planes(p0, last, width, BLOCK_P)
            origin = _origin(p, C, S, stride_c)
            scale, center, shift = _affine(grids, p, own, planes)
            if REAL == tl.float64:
                _write(
                    x, y, residual, scale, center, shift, own, origin, start, stop, stride_s,
                    ADD, ACT, SLOPE, BLOCK_S, tl.float64,
                )  # fmt: skip
            elif _beyond(scale, center, shift):
                _write(
                    x, y, residual, scale, center, shift, own, origin, start, stop, stride_s,
                    ADD, ACT, SLOPE, FEW, tl.float64,
                )  # fmt: skip
            else:
                _write(
                    x, y, residual, scale, center, shift, own, origin, start, stop, stride_s,
                    ADD, ACT, SLOPE, BLOCK_S, REAL,
                )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def backward(
    x, g, dx, residual, dz, grids, slopes, grads, learned, running,
    N, C, S, stride_c, stride_s, chunk, samples, part_count,
    GRADS: tl.constexpr, LINEAR: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr,
    SLOPE: tl.constexpr, EPS: tl.constexpr,
    SOLVE: tl.constexpr, MEASURE: tl.constexpr, APPLY: tl.constexpr, ACROSS: tl.constexpr, W: tl.constexpr,
    R: tl.constexpr, J: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
    TILES: tl.constexpr, EVEN: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """From g to dx, or part of the way; the slopes are b and c, then come the parts. With KEEP, dz is written, and then
    read."""
    if EVEN > 1:
        S = S // EVEN * EVEN
        stride_c = stride_c // EVEN * EVEN
    planes = tl.full([], N, tl.int64) * C
    parts = slopes + 2 * planes
    first, last, step, width, start, stop = _extent(planes, N, C, S, chunk, samples, MEASURE, ACROSS, W, R, J, BLOCK_P)

    if MEASURE:
        to = parts + tl.program_id(1).to(tl.int64) * planes
        for p0 in range(first, last, step):
            p, own = _planes(p0, last, width, BLOCK_P)
            origin = _origin(p, C, S, stride_c)
            sum_g, sum_gx = _dots(
                x, g, residual, dz, grids, p, own, planes, origin, start, stop, stride_s,
                ADD, KEEP, ACT, SLOPE, EPS, BLOCK_P, BLOCK_S, TILES, REAL,
            )  # fmt: skip
            tl.store(to + p, sum_g, mask=own)
            tl.store(to + part_count * planes + p, sum_gx, mask=own)

    if SOLVE is not None:
        if MEASURE:
            tl.debug_barrier()
        _solve_backward(
            parts, grids, slopes, grads, learned, running, planes, N, C, S, samples, part_count,
            SOLVE, MEASURE, ACROSS, GRADS, LINEAR, EPS, W, R, J, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()

    if APPLY:
        FEW: tl.constexpr = BLOCK_S // 32 if BLOCK_S > 32 else 1
        for p0 in range(first, last, step):
            p, own = _planes(p0, last, width, BLOCK_P)
            origin = _origin(p, C, S, stride_c)
            scale, center, shift = _affine(grids, p, own, planes)
            b, c = _slopes(slopes, p, own, planes, LINEAR)
            if REAL == tl.float64:
                _write_dx(
                    x, g, dx, residual, dz, scale, center, shift, b, c, own, origin, start, stop, stride_s,
                    ADD, KEEP, ACT, SLOPE, BLOCK_S, tl.float64,
                )  # fmt: skip
            elif _beyond(scale, center, shift) | _beyond(b, center, c):
                _write_dx(
                    x, g, dx, residual, dz, scale, center, shift, b, c, own, origin, start, stop, stride_s,
                    ADD, KEEP, ACT, SLOPE, FEW, tl.float64,
                )  # fmt: skip
            else:
                _write_dx(
                    x, g, dx, residual, dz, scale, center, shift, b, c, own, origin, start, stop, stride_s,
                    ADD, KEEP, ACT, SLOPE, BLOCK_S, REAL,
                )  # fmt: skip


# --- the program in the middle ---------------------------------------------------------------------------------------


@triton.jit
def _solve_forward(
    parts, grids, batch, learned, running, momentum, planes, N, C, S, samples, part, part_count,
    SOLVE: tl.constexpr, MEASURE: tl.constexpr, ACROSS: tl.constexpr, MEASURED: tl.constexpr, POOLS: tl.constexpr,
    UPDATE: tl.constexpr, EPS: tl.constexpr, W: tl.constexpr, R: tl.constexpr, J: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Moments -> scale, center and shift, and the batch's moments."""
    q, channel, own, mine, known = _registers(planes, C, N, samples, MEASURE, ACROSS, W, R, J)
    mean = tl.zeros([1, 1], tl.float64)
    var = mean
    if MEASURED:
        mean, var = _merged_moments(parts, q, own, planes, S, part, part_count, BLOCK_K, R, J)
        tl.store(grids + q, mean, mask=mine)
        tl.store(grids + planes + q, var, mask=mine)
    solved = SOLVE(mean, var, learned, running, channel, known, own, N, S, W, EPS)
    tl.store(grids + 2 * planes + q, solved[0], mask=mine)
    tl.store(grids + 3 * planes + q, solved[1], mask=mine)
    tl.store(grids + 4 * planes + q, solved[2], mask=mine)
    if POOLS:
        tl.store(batch + channel, solved[3], mask=known)
        tl.store(batch + C + channel, solved[4], mask=known)
    if UPDATE:
        _update(running, solved[3], solved[4], momentum, channel, known, tl.full([], N, tl.int64) * S)


@triton.jit
def _update(running, mean, var, momentum, channel, known, count):
    """running = (1 - momentum) * running + momentum * batch, the variance unbiased; by one instance per channel.

    `momentum` is a float64 as the integer of the same bits: a float argument would come as float32.
    """
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        share = momentum.to(tl.int64).to(tl.float64, bitcast=True)
        unbiased = var * (count.to(tl.float64) / tl.maximum(count - 1, 1).to(tl.float64))
        old_mean = tl.load(running[0] + channel, mask=known, other=0.0).to(tl.float64)
        old_var = tl.load(running[1] + channel, mask=known, other=0.0).to(tl.float64)
        _store(running[0] + channel, (1.0 - share) * old_mean + share * mean, known)
        _store(running[1] + channel, (1.0 - share) * old_var + share * unbiased, known)


@triton.jit
def _store(to, v, known):
    """Store what may be float64 where something narrower may be kept; to half precision it goes by way of float32, as
    not every version and device of Triton rounds from float64."""
    if to.dtype.scalar.element_ty.primitive_bitwidth < 32:
        v = v.to(tl.float32)
    tl.store(to, v, mask=known)


@triton.jit
def _solve_backward(
    parts, grids, slopes, grads, learned, running, planes, N, C, S, samples, part_count,
    SOLVE: tl.constexpr, MEASURE: tl.constexpr, ACROSS: tl.constexpr, GRADS: tl.constexpr, LINEAR: tl.constexpr,
    EPS: tl.constexpr, W: tl.constexpr, R: tl.constexpr, J: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over planes -> b and c, and the parameters' gradients: summed over the samples, if all of them are here."""
    q, channel, own, mine, known = _registers(planes, C, N, samples, MEASURE, ACROSS, W, R, J)
    sum_g = _merged_sum(parts, q, own, planes, part_count, BLOCK_K, R, J)
    sum_gx = _merged_sum(parts + part_count * planes, q, own, planes, part_count, BLOCK_K, R, J)
    mean = tl.load(grids + q, mask=own, other=0.0)
    var = tl.load(grids + planes + q, mask=own, other=0.0)
    scale = tl.load(grids + 2 * planes + q, mask=own, other=0.0)
    center = tl.load(grids + 3 * planes + q, mask=own, other=0.0)
    solved = SOLVE(mean, var, sum_g, sum_gx, scale, center, learned, running, channel, known, own, N, S, W, EPS)
    if not LINEAR:
        tl.store(slopes + q, solved[0], mask=mine)
        tl.store(slopes + planes + q, solved[1], mask=mine)
    for i in tl.static_range(GRADS):
        if ACROSS:
            total = tl.sum(tl.where(own, solved[2 + i], 0.0), 0, keep_dims=True)
            tl.store(grads + i * C + channel, total, mask=known)
        else:
            tl.store(grads + i * planes + q, solved[2 + i], mask=own)


@triton.jit
def _registers(
    planes, C, N, samples,
    MEASURE: tl.constexpr, ACROSS: tl.constexpr, W: tl.constexpr, R: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Planes in the registers of the program, and their channels: which planes are real, which of them this instance
    will read again, and which channels are real."""
    block = _instance(0, MEASURE)
    r = tl.arange(0, R).to(tl.int64)[:, None]
    j = tl.arange(0, J)[None, :]
    if ACROSS:
        channel = block * J + j
        known = channel < C
        q = r * C + channel
        own = (r < N) & known
        n = _instance(2, MEASURE) * samples
        mine = own & (r >= n) & (r < n + samples)
    else:
        q = (block * R + r) * W + j
        channel = q % C
        own = (j < W) & (q < planes)
        known = own
        mine = own
    return q, channel, own, mine, known


# --- where things lie ------------------------------------------------------------------------------------------------


@triton.jit
def _instance(axis: tl.constexpr, MEASURE: tl.constexpr):
    """Which instance this is. A launch that reads again what another has measured begins at its end, which is still in
    the cache."""
    i = tl.program_id(axis)
    if not MEASURE:
        i = tl.num_programs(axis) - 1 - i
    return i.to(tl.int64)


@triton.jit
def _extent(
    planes, N, C, S, chunk, samples,
    MEASURE: tl.constexpr, ACROSS: tl.constexpr, W: tl.constexpr, R: tl.constexpr, J: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Planes and positions of this instance: (first, last, step, width, start, stop)."""
    block = _instance(0, MEASURE)
    start = _instance(1, MEASURE) * chunk
    stop = tl.minimum(start + chunk, S)
    if ACROSS:  # J channels of some samples
        n = _instance(2, MEASURE) * samples
        first = n * C + block * J
        last = tl.minimum(n + samples, N) * C
        step = tl.full([], C, tl.int64)
        width = tl.minimum(C - block * J, J)
    else:  # R units, end to end
        first = block * (R * W)
        last = tl.minimum(first + R * W, planes)
        step = tl.full([], BLOCK_P, tl.int64)
        width = step
    return first, last, step, width, start, stop


@triton.jit
def _planes(p0, last, width, BLOCK_P: tl.constexpr):
    """Numbers of the planes from p0 on, and which of them are this instance's."""
    i = tl.arange(0, BLOCK_P)
    return p0 + i, (i < width) & (p0 + i < last)


@triton.jit
def _origin(p, C, S, stride_c):
    """Where planes begin."""
    return p // C * C * S + p % C * stride_c


@triton.jit
def _tile(origin, own, s0, stop, stride_s, BLOCK_S: tl.constexpr):
    """Offsets of BLOCK_S positions of some planes, and which of them are this instance's."""
    s = s0 + tl.arange(0, BLOCK_S)
    return origin[:, None] + (s * stride_s)[None, :], own[:, None] & (s < stop)[None, :]


# --- sums over planes ------------------------------------------------------------------------------------------------


@triton.jit
def _moments(
    x, origin, own, start, stop, stride_s,
    EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of the positions from `start` to `stop` of some planes."""
    mean, var = _moments_in(x, origin, own, start, stop, stride_s, BLOCK_P, BLOCK_S, TILES, REAL)
    FEW: tl.constexpr = BLOCK_S // 32 if BLOCK_S > 32 else 1
    if REAL == tl.float32:
        if _any(own & _is_far(var, EPS)):
            mean, var = _moments_in(x, origin, own, start, stop, stride_s, BLOCK_P, FEW, TILES, tl.float64)
    return mean, var


@triton.jit
def _moments_in(
    x, origin, own, start, stop, stride_s,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance, computed in REAL.

    Block by block of some tiles: the mean of its first tile, then the deviations from it and their squares, which every
    thread adds up for itself. The deviations correct that mean; blocks are merged by Chan's formula. As the first tile
    is a share of the block, its mean is no further off than the block varies: few digits of the squares cancel.
    """
    BLOCK: tl.constexpr = BLOCK_S * TILES
    mean = tl.zeros([BLOCK_P], tl.float64)
    square = tl.zeros([BLOCK_P], tl.float64)
    for b0 in range(start, stop, BLOCK):
        end = tl.minimum(b0 + BLOCK, stop)
        at, inside = _tile(origin, own, b0, end, stride_s, BLOCK_S)
        v = tl.load(x + at, mask=inside, other=0.0).to(REAL)
        rough = (tl.sum(v, 1).to(tl.float64) * (1.0 / tl.minimum(end - b0, BLOCK_S).to(tl.float64))).to(REAL)
        d = tl.where(inside, v - rough[:, None], 0.0)
        deviations, squares = d, d * d
        if TILES > 1:
            for s0 in range(b0 + BLOCK_S, end, BLOCK_S):
                at, inside = _tile(origin, own, s0, end, stride_s, BLOCK_S)
                d = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(REAL) - rough[:, None], 0.0)
                deviations += d
                squares += d * d
        known = (b0 - start).to(tl.float64)
        count = (end - b0).to(tl.float64)
        off = tl.sum(deviations, 1).to(tl.float64) * (1.0 / count)
        share = count / (known + count)  # divisions of numbers, not of tensors: they take some forty instructions
        between = rough.to(tl.float64) + off - mean
        mean += between * share
        square += tl.sum(squares, 1).to(tl.float64) - off * off * count
        square += between * between * (known * share)
    var = square * (1.0 / (stop - start).to(tl.float64))
    return mean, tl.where(var < 0.0, 0.0, var)


@triton.jit
def _dots(
    x, g, residual, dz, grids, p, own, planes, origin, start, stop, stride_s,
    ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, EPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums of g * act'(z) and of that times x - center, over the positions from `start` to `stop` of some planes."""
    sum_g, sum_gx = _dots_in(
        x, g, residual, dz, grids, p, own, planes, origin, start, stop, stride_s,
        ADD, KEEP, ACT, SLOPE, BLOCK_P, BLOCK_S, TILES, REAL,
    )  # fmt: skip
    FEW: tl.constexpr = BLOCK_S // 32 if BLOCK_S > 32 else 1
    if REAL == tl.float32:
        far = _any(own & (_is_far(sum_g, 1.0) | _is_far(sum_gx, EPS)))
        if ACT is not None or not KEEP:
            scale, center, shift = _affine(grids, p, own, planes)  # again: they need not be held meanwhile
            far = far | _beyond(scale, center, shift)
        if far:
            tl.debug_barrier()  # what one thread has kept of dz another replaces
            sum_g, sum_gx = _dots_in(
                x, g, residual, dz, grids, p, own, planes, origin, start, stop, stride_s,
                ADD, KEEP, ACT, SLOPE, BLOCK_P, FEW, TILES, tl.float64,
            )  # fmt: skip
    return sum_g, sum_gx


@triton.jit
def _dots_in(
    x, g, residual, dz, grids, p, own, planes, origin, start, stop, stride_s,
    ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, TILES: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The sums, computed in REAL."""
    scale, center, shift = _affine(grids, p, own, planes)
    a, near, t = _rounded(scale, center, shift, REAL)
    BLOCK: tl.constexpr = BLOCK_S * TILES
    sum_g = tl.zeros([BLOCK_P], tl.float64)
    sum_gx = tl.zeros([BLOCK_P], tl.float64)
    for b0 in range(start, stop, BLOCK):
        end = tl.minimum(b0 + BLOCK, stop)
        ups, products = _products(
            x, g, residual, dz, a, near, t, own, origin, b0, end, stride_s, ADD, KEEP, ACT, SLOPE, BLOCK_S, REAL
        )  # fmt: skip
        if TILES > 1:  # every thread adds up for itself
            for s0 in range(b0 + BLOCK_S, end, BLOCK_S):
                up, product = _products(
                    x, g, residual, dz, a, near, t, own, origin, s0, end, stride_s, ADD, KEEP, ACT, SLOPE, BLOCK_S, REAL
                )  # fmt: skip
                ups += up
                products += product
        sum_up = tl.sum(ups, 1).to(tl.float64)
        sum_g += sum_up
        center = tl.load(grids + 3 * planes + p, mask=own, other=0.0)
        # (after the loop this would be the same, and fails an assertion of Triton's in float64)
        sum_gx += tl.sum(products, 1).to(tl.float64) + (center.to(REAL).to(tl.float64) - center) * sum_up
    return sum_g, sum_gx


@triton.jit
def _products(
    x, g, residual, dz, a, near, t, own, origin, s0, end, stride_s,
    ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, BLOCK_S: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """g * act'(z) and that times x - center of a tile, zero outside; with KEEP, the former is written."""
    at, inside = _tile(origin, own, s0, end, stride_s, BLOCK_S)
    d = tl.load(x + at, mask=inside, other=0.0).to(REAL) - near
    up = tl.load(g + at, mask=inside, other=0.0).to(REAL) * _slope(d, a, t, residual, at, inside, ADD, ACT, SLOPE, REAL)
    if KEEP:
        _store(dz + at, up, inside)
    return up, up * d


@triton.jit
def _merged_moments(
    parts, q, own, planes, S, part, part_count, BLOCK_K: tl.constexpr, R: tl.constexpr, J: tl.constexpr
):  # fmt: skip
    """Chan's formula over the parts of each plane, `part` positions each; the last may be shorter."""
    mean = tl.zeros([R, J], tl.float64)
    for k0 in range(0, part_count, BLOCK_K):
        at, there, weight = _some_parts(k0, q, own, planes, S, part, part_count, BLOCK_K)
        mean += tl.sum(weight * tl.load(parts + at, mask=there, other=0.0), 0)
    var = tl.zeros([R, J], tl.float64)
    for k0 in range(0, part_count, BLOCK_K):
        at, there, weight = _some_parts(k0, q, own, planes, S, part, part_count, BLOCK_K)
        between = tl.load(parts + at, mask=there, other=0.0) - mean[None, :, :]
        within = tl.load(parts + part_count * planes + at, mask=there, other=0.0)
        var += tl.sum(weight * (within + between * between), 0)
    return mean, var


@triton.jit
def _some_parts(k0, q, own, planes, S, part, part_count, BLOCK_K: tl.constexpr):
    """(offsets, which are real, their share of the plane) of BLOCK_K parts."""
    k = (k0 + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None, None]
    there = (k < part_count) & own[None, :, :]
    count = tl.where(k < part_count, tl.minimum(S - k * part, part), 0)
    return k * planes + q[None, :, :], there, count.to(tl.float64) / tl.full([], S, tl.float64)


@triton.jit
def _merged_sum(parts, q, own, planes, part_count, BLOCK_K: tl.constexpr, R: tl.constexpr, J: tl.constexpr):
    total = tl.zeros([R, J], tl.float64)
    for k0 in range(0, part_count, BLOCK_K):
        k = (k0 + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None, None]
        there = (k < part_count) & own[None, :, :]
        total += tl.sum(tl.load(parts + k * planes + q[None, :, :], mask=there, other=0.0), 0)
    return total


# --- what leaves float32 ----------------------------------------------------------------------------------------------


@triton.jit
def _is_far(v, EPS: tl.constexpr):
    """Whether a sum is not finite, or so large, or beside eps so small, that products have left float32."""
    far = ~(tl.abs(v) <= _LARGEST)
    if EPS < _EPS:
        far |= tl.abs(v) < _TINY
    return far


@triton.jit
def _beyond(a, center, t):
    """Whether a coefficient, the center, or what is added, of any plane here, may make products leave float32."""
    held = (tl.abs(a) <= _LARGE) & ((tl.abs(a) >= _SMALL) | (a == 0.0))
    return _any(~(held & (tl.abs(center) <= _FAR) & (tl.abs(t) <= _LARGE)))


@triton.jit
def _any(v):
    return tl.max(v.to(tl.int32), 0) > 0


# --- elements --------------------------------------------------------------------------------------------------------


@triton.jit
def _affine(grids, p, own, planes):
    """(scale, center, shift) of some planes."""
    scale = tl.load(grids + 2 * planes + p, mask=own, other=0.0)
    center = tl.load(grids + 3 * planes + p, mask=own, other=0.0)
    shift = tl.load(grids + 4 * planes + p, mask=own, other=0.0)
    return scale, center, shift


@triton.jit
def _slopes(slopes, p, own, planes, LINEAR: tl.constexpr):
    """(b, c) of some planes."""
    b = tl.zeros_like(p).to(tl.float64)
    c = b
    if not LINEAR:
        b = tl.load(slopes + p, mask=own, other=0.0)
        c = tl.load(slopes + planes + p, mask=own, other=0.0)
    return b, c


@triton.jit
def _rounded(a, center, t, REAL: tl.constexpr):
    """(a, center, t) as columns. The center is rounded to the elements' precision, where the subtraction of an element
    near it is exact; what the rounding lost goes into t."""
    near = center.to(REAL)
    t += a * (near.to(tl.float64) - center)
    return a.to(REAL)[:, None], near[:, None], t.to(REAL)[:, None]


@triton.jit
def _write(
    x, y, residual, scale, center, shift, own, origin, start, stop, stride_s,
    ADD: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, BLOCK_S: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """y = act(scale * (x - center) + shift + residual), computed in REAL."""
    a, near, t = _rounded(scale, center, shift, REAL)
    for s0 in range(start, stop, BLOCK_S):
        at, inside = _tile(origin, own, s0, stop, stride_s, BLOCK_S)
        z = a * (tl.load(x + at, mask=inside, other=0.0).to(REAL) - near) + t
        if ADD:
            z += tl.load(residual + at, mask=inside, other=0.0).to(REAL)
        _store(y + at, _act(z, ACT, SLOPE), inside)


@triton.jit
def _write_dx(
    x, g, dx, residual, dz, scale, center, shift, b, c, own, origin, start, stop, stride_s,
    ADD: tl.constexpr, KEEP: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, BLOCK_S: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """dx = scale * g * act'(z) + b * (x - center) + c, computed in REAL."""
    a, near, t = _rounded(scale, center, shift, REAL)
    b, _, c = _rounded(b, center, c, REAL)
    for s0 in range(start, stop, BLOCK_S):
        at, inside = _tile(origin, own, s0, stop, stride_s, BLOCK_S)
        d = tl.load(x + at, mask=inside, other=0.0).to(REAL) - near
        if KEEP:
            up = tl.load(dz + at, mask=inside, other=0.0).to(REAL)
        else:
            up = tl.load(g + at, mask=inside, other=0.0).to(REAL)
            up *= _slope(d, a, t, residual, at, inside, ADD, ACT, SLOPE, REAL)
        _store(dx + at, a * up + (b * d + c), inside)


@triton.jit
def _slope(
    d, scale, shift, residual, at, inside, ADD: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """act'(z), with z = scale * d + shift + residual computed again; 1 without an activation."""
    slope = 1.0
    if ACT is not None:
        z = scale * d + shift
        if ADD:
            z += tl.load(residual + at, mask=inside, other=0.0).to(REAL)
        slope = _derivative(z, ACT, SLOPE)
    return slope


@triton.jit
def _act(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    if ACT == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACT == "leaky_relu":
        z = tl.where(z > 0.0, z, SLOPE * z)
    elif ACT == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif ACT == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == "relu6":
        z = tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACT == "hardsigmoid":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, (z + 3.0) * 0.16666666666666666))
    elif ACT == "hardswish":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, z, z * ((z + 3.0) * 0.16666666666666666)))
    elif ACT == "elu":
        z = tl.where(z <= 0.0, SLOPE * _expm1(tl.where(z <= 0.0, z, 0.0)), z)
    elif ACT == "tlu":
        z = tl.where(z <= SLOPE, tl.full([], SLOPE, z.dtype), z)
    elif ACT == "mish":
        e = tl.exp(tl.where(z > 20.0, 20.0, z))
        n = e * (e + 2.0)
        z = z * (n / (n + 2.0))
    elif ACT == "quick_gelu":
        z = z / (1.0 + tl.exp(-1.702 * z))
    return z


@triton.jit
def _expm1(z):
    """exp(z) - 1 for z <= 0: where that would lose digits, by its series."""
    series = z * 0.0
    for i in tl.static_range(14):
        series = z / (14 - i) * (1.0 + series)
    return tl.where(z > -0.35, series, tl.exp(z) - 1.0)


@triton.jit
def _derivative(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    if ACT == "relu":
        slope = tl.where(z > 0.0, 1.0, 0.0)
    elif ACT == "leaky_relu":  # between two bare numbers the choice would be made in float32
        slope = tl.where(z > 0.0, tl.full([], 1.0, z.dtype), tl.full([], SLOPE, z.dtype))
    elif ACT == "silu":
        s = 1.0 / (1.0 + tl.exp(-z))
        slope = s * (1.0 + z * (1.0 - s))
    elif ACT == "relu6":
        slope = tl.where((z <= 0.0) | (z >= 6.0), 0.0, 1.0)
    elif ACT == "hardsigmoid":
        slope = tl.where((z > -3.0) & (z < 3.0), 1.0, 0.0).to(z.dtype) * 0.16666666666666666
    elif ACT == "hardswish":
        slope = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, z * 0.3333333333333333 + 0.5))
    elif ACT == "elu":
        slope = tl.where(z <= 0.0, SLOPE * tl.exp(tl.where(z <= 0.0, z, 0.0)), 1.0)
    elif ACT == "tlu":
        slope = tl.where(z <= SLOPE, 0.0, 1.0)
    elif ACT == "mish":
        v = tl.where(z > 20.0, 20.0, z)
        e = tl.exp(v)
        n = e * (e + 2.0)
        slope = n / (n + 2.0) + v * (e / (1.0 + e)) * (4.0 / (n + 2.0)) * ((n + 1.0) / (n + 2.0))
    elif ACT == "quick_gelu":
        v = 1.702 * z
        s = 1.0 / (1.0 + tl.exp(-v))
        slope = s * (1.0 + v * (1.0 - s))
    else:
        bell = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        slope = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * bell
    return slope
