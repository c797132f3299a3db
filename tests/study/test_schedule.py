"""Learning-rate schedules against torch's own, epoch by epoch."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from normlab.errors import UsageError
from normlab.study.schedule import learning_rate_factor


def rates(schedule: str, epochs: int) -> list[float]:
    return [learning_rate_factor(schedule, epoch, epochs) for epoch in range(1, epochs + 1)]


def torch_rates(epochs: int, make) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_steps_are_those_of_torch() -> None:
    expected = torch_rates(100, lambda o: lr_scheduler.MultiStepLR(o, [75, 95]))
    assert rates("step:75,95", 100) == pytest.approx(expected)
    assert rates("step:75%,95%", 100) == pytest.approx(expected)


def test_cosine_is_that_of_torch() -> None:
    expected = torch_rates(30, lambda o: lr_scheduler.CosineAnnealingLR(o, 30))
    assert rates("cosine", 30) == pytest.approx(expected)


def test_shares_are_rounded_up_so_that_short_runs_train_before_they_step() -> None:
    assert rates("step:75%,95%", 4) == pytest.approx([1, 1, 1, 0.1])
    assert rates("step:75%,95%", 1) == [1]


@pytest.mark.parametrize("schedule", ["", "linear", "step", "step:", "step:a", "step:75,", "step:-1", "cosine:3"])
def test_unknown_schedules_are_told(schedule: str) -> None:
    with pytest.raises(UsageError, match="step:75,95"):
        learning_rate_factor(schedule, 1, 10)
