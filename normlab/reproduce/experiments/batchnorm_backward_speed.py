"""The two backward passes of batch norm, timed in turn on the same arrays."""

from __future__ import annotations

from functools import partial

import numpy as np

from normlab.bench.timing import shortest
from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.experiment import Result, Setting
from normlab.scratch.gradient_check import rel_error
from normlab.scratch.layers import batchnorm_backward, batchnorm_backward_alt, batchnorm_forward

SHAPES = ((100, 500), (500, 2000))


def run(setting: Setting) -> Result:
    findings, records = [], []
    repeats = setting.pick(20, 200)
    for shape in SHAPES[: setting.pick(1, None)]:
        ratios, differences = [], []
        for seed in setting.seed_range:
            rng = np.random.RandomState(seed)
            x, dout = 5 * rng.randn(*shape) + 12, rng.randn(*shape)
            _, cache = batchnorm_forward(x, rng.randn(shape[1]), rng.randn(shape[1]), {"mode": "train"})
            vanilla, simplified = shortest(
                repeats,
                partial(batchnorm_backward, dout, cache),
                partial(batchnorm_backward_alt, dout, cache),
            )
            ratios.append(vanilla / simplified)
            differences.append(rel_error(batchnorm_backward(dout, cache)[0], batchnorm_backward_alt(dout, cache)[0]))
            records += [
                {"pass": f"{name} {shape}", "seed": seed, "milliseconds": time}
                for name, time in (("vanilla", vanilla), ("simplified", simplified))
            ]
        findings.append(
            verdicts.ratio(
                f"simplified is faster than vanilla, float64 {shape} (time of vanilla over simplified)",
                "simplified is faster",
                ratios,
                1.0,
            )
        )
        findings.append(
            verdicts.exact(
                f"both give the same dx, float64 {shape}",
                "the same",
                f"largest relative difference {max(differences):.1g}",
                max(differences) < 1e-8,
                "holds if the relative difference of every seed lies below 1e-8",
            )
        )
    return Result(
        findings,
        {"timing": f"the shortest of {repeats} calls of each, taken in turn; a seed is a fresh pair of arrays"},
        charts={"times": bars(records, "milliseconds", "pass", title="Time of one backward pass")},
        captions={"times": "Mean and 95 % interval over seeds."},
        notes=[
            "Both are array arithmetic: the vanilla pass a step of the graph at a time, the simplified one the same "
            "steps multiplied out."
        ],
        records=records,
        scale="this machine",
    )
