"""Learning-rate schedules as pure functions of the epoch, so that nothing about them needs saving."""

from __future__ import annotations

import math
import re

from normlab.errors import UsageError

FACTOR = 0.1  # of each step


def learning_rate_factor(schedule: str, epoch: int, epochs: int) -> float:
    """What to multiply the learning rate by in `epoch` (counted from 1) of `epochs`.

    "constant": 1. "cosine": (1 + cos(pi * (epoch - 1) / epochs)) / 2. "step:75,95": x0.1 after epoch 75 and
    again after 95; "step:75%,95%": the same at a share of the epochs, rounded up. Raises UsageError for
    anything else.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
    return FACTOR ** sum(epoch > milestone for milestone in _milestones(schedule, epochs))


def warmup_factor(step: int, steps: int) -> float:
    """What to multiply the learning rate by at a step (counted from 1 over all epochs) of a warm-up of `steps`.

    It rises in a straight line to 1 at the last of them, and is 1 after it.
    """
    return min(1.0, step / steps) if steps else 1.0


def check_schedule(schedule: str) -> str:
    """The schedule itself; raises UsageError if `learning_rate_factor` would refuse it."""
    learning_rate_factor(schedule, 1, 1)
    return schedule


def _milestones(schedule: str, epochs: int) -> list[int]:
    name, _, rest = schedule.partition(":")
    items = rest.split(",")
    if name != "step" or not all(re.fullmatch(r"\d+(\.\d+)?%|\d+", item) for item in items):
        raise UsageError(f"schedule {schedule!r} is not known; expected constant, cosine, step:75,95 or step:75%,95%")
    return [math.ceil(epochs * float(item[:-1]) / 100) if item.endswith("%") else int(item) for item in items]
