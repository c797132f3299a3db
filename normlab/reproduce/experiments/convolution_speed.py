"""Convolution three ways in one run: nested loops, compiled, and torch on the same cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from normlab.bench.timing import milliseconds, shortest
from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.experiment import Result, Setting
from normlab.scratch import fast_layers, layers

REPORTED = 500


def run(setting: Setting) -> Result:
    import torch

    samples, channels, size, filters = setting.pick((10, 3, 15, 5), (100, 3, 31, 25))
    param = {"stride": 2, "pad": 1}
    repeats = setting.pick(5, 50)
    ratios: dict[str, list[float]] = {}
    records = []
    for seed in setting.seed_range:
        setting.say(f"seed {seed}")
        rng = np.random.RandomState(seed)
        x = rng.randn(samples, channels, size, size).astype(np.float32)
        w, b = rng.randn(filters, channels, 3, 3).astype(np.float32), rng.randn(filters).astype(np.float32)
        out, slow_cache = layers.conv_forward_naive(x, w, b, param)
        fast_cache = fast_layers.conv_forward_fast(x, w, b, param)[1]
        dout = rng.randn(*out.shape).astype(np.float32)
        tdout, tx, tw, tb = (torch.from_numpy(a) for a in (dout, x, w, b))
        geometry = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)
        calls: dict[str, tuple[Callable[[], Any], ...]] = {
            "forward": (
                partial(layers.conv_forward_naive, x, w, b, param),
                partial(fast_layers.conv_forward_fast, x, w, b, param),
                partial(torch.conv2d, tx, tw, tb, stride=2, padding=1),
            ),
            "backward": (
                partial(layers.conv_backward_naive, dout, slow_cache),
                partial(fast_layers.conv_backward_fast, dout, fast_cache),
                partial(torch.ops.aten.convolution_backward, tdout, tx, tw, [filters], *geometry, [True] * 3),
            ),
        }
        for direction, (naive, fast, stock) in calls.items():
            fast_time, torch_time = shortest(repeats, fast, stock)
            naive_time = milliseconds(naive)
            ratios.setdefault(f"{direction} naive", []).append(naive_time / fast_time)
            ratios.setdefault(f"{direction} torch", []).append(torch_time / fast_time)
            records += [
                {"pass": f"{direction}, {name}", "seed": seed, "milliseconds": time}
                for name, time in (("loops", naive_time), ("compiled", fast_time), ("torch", torch_time))
            ]
    findings = [
        verdicts.ratio(
            f"the compiled {direction} pass is at least {REPORTED} times as fast as the nested loops",
            f"fast is ~{REPORTED}x the naive loops",
            ratios[f"{direction} naive"],
            REPORTED,
        )
        for direction in ("forward", "backward")
    ]
    findings += [
        verdicts.ratio(
            f"speed of the compiled {direction} pass over torch's, at least half",
            verdicts.OURS,
            ratios[f"{direction} torch"],
            0.5,
        )
        for direction in ("forward", "backward")
    ]
    return Result(
        findings,
        {
            "arrays": f"float32, x ({samples}, {channels}, {size}, {size}), w ({filters}, {channels}, 3, 3), "
            "stride 2, pad 1; a seed is a fresh set",
            "timing": f"loops once; compiled and torch the shortest of {repeats}, taken in turn",
            "threads": str(torch.get_num_threads()),
        },
        charts={"times": bars(records, "milliseconds", "pass", title="Time of one pass", log=True)},
        captions={"times": "Mean and 95 % interval over seeds."},
        records=records,
        scale="this machine",
    )
