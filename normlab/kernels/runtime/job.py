"""A job as plain numbers: one direction of one layer, as compiled code reads it on any thread.

The numbers lie in one array of int64; addresses are of memory that outlives the job, floats are there by their bits.
From `TABLE` on, three numbers a row: (address, bytes of a number, how many), first of the running mean and variance
that stand in for the batch's, then of the parameters, then of where the parameters' gradients go.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack, unpack

(
    WORK,  # address of `void work(job)`, which does units of this job
    CONTROL, HELPERS, PARALLEL, NUMBER, SHARES, PAUSE,  # see `normlab.kernels.runtime.sharing`
    KIND, UNITS,  # of the part of the job that is under way
    X, G, Y, RESIDUAL, TO_RESIDUAL,  # input, upstream gradient, output (y or dx), and z's other summand, or 0
    ITEMSIZE, REAL,  # bytes of an element, and of a number that is computed with
    SAMPLES, CHANNELS, SIZE, LAST, LANES,  # (N, C, S), whether channels-last, elements of a joined row
    FOLDED, STRETCH,  # samples in memory that are one of these N; elements of a plane that lie side by side
    EXTENT, CHUNKS,  # samples in a block and 0; or planes (channels-last: rows) in a part, and parts in a sample
    GROUP,  # samples in a part, where there is one part in a sample
    CODE, LENGTH, CONSTANTS, CONSTANT_COUNT, REGISTERS, OUTPUTS, OUTPUT_COUNT,  # a program
    PERFORM, MEASURE, APPLY, PULL, DOT, COMBINE, ROUND,  # addresses of what is done (`normlab.kernels.cpu`), or 0
    SPARE,  # whether dz or z is kept in no tensor, but in numbers in a thread's own memory
    ACT, SLOPE,  # 0, or the activation's number or address; the constant that it takes
    EPS, TINY,  # and the least variance that is precise enough in float32 squares
    MEMORY, ROWS,  # grids (5, N, C), rows (running mean, running variance, parameters; C each), pooled (2, C)
    SUMS, SUMS_1, SUMS_2,  # sum_g, sum_gx, b, c, parameters' gradients (k, N, C); or partial sums
    RUNNING_MEAN, RUNNING_VAR, RUNNING_BYTES, MOMENTUM,  # running statistics to update with the batch's, or 0
    TABLE,
) = range(55)  # fmt: skip

RELU, LEAKY_RELU, SILU, GELU = 1, 2, 3, 4


@lru_cache(maxsize=1024)
def bits(number: float) -> int:
    """The int64 whose bits are those of a float64."""
    return int(unpack("q", pack("d", number))[0])
