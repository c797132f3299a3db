"""What a parameter or a statistic is, where its name does not say so: found by what it does to the output.

A bias moves the output by the same amount whatever the input; a weight by an amount that depends on the input. Running
statistics are what a training step changes; the mean among them follows the batch below zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.subjects.base import Subject, TargetFailure, Unsupported, role_of

LEARNED = ("weight", "bias", "gate")
RUNNING = ("running_mean", "running_var")


def claim(subject: Subject, shape: tuple[int, ...], kind: str | None) -> None:
    """Write the roles of unnamed tensors into the subject's habits; raises nothing."""
    try:
        _claim_running(subject, shape)
        _claim_learned(subject, shape, kind)
        _claim_offset(subject, shape)
        _claim_mode(subject, shape)
    except (TargetFailure, Unsupported):
        return  # what fails here fails in a check, too, and is said there


def _find_unclaimed(subject: Subject, names: list[str]) -> list[str]:
    roles = subject.habits.roles
    return [n for n in names if n not in roles and role_of(n) not in (*LEARNED, *RUNNING)]


def _claim_running(subject: Subject, shape: tuple[int, ...]) -> None:
    if subject.fresh().tracks:
        return
    layer = subject.fresh()
    before = layer.kept()
    names = [n for n in _find_unclaimed(subject, list(before)) if before[n].size == subject.options.channels]
    if not names:
        return
    layer.forward(np.random.default_rng(61).normal(-50.0, 1.0, shape), True)
    after = layer.kept()
    moved = [n for n in names if n in after and not np.array_equal(before[n].ravel(), after[n].ravel())]
    below = [n for n in moved if after[n].max() < 0]
    above = [n for n in moved if after[n].min() >= 0]
    if len(below) == 1 and len(above) == 1:
        subject.habits.roles |= {below[0]: "running_mean", above[0]: "running_var"}


def _claim_learned(subject: Subject, shape: tuple[int, ...], kind: str | None) -> None:
    tensors = subject.fresh().learnable()
    claimed = {subject.habits.roles.get(n) or role_of(n) for n in tensors}
    subject.habits.unknown.clear()
    for name in _find_unclaimed(subject, list(tensors)):
        effect = _measure_effect(subject, name, tensors[name], shape)
        role = {"none": None, "added": "bias", "multiplied": "weight"}[effect]
        if role == "weight" and kind == "batch-instance" and "gate" not in claimed and "weight" in claimed:
            role = "gate"
        if role is None or role in claimed:
            if role is not None or subject.form == "torch Module":
                subject.habits.unknown.append(name)
            continue
        subject.habits.roles[name] = role
        claimed.add(role)


def _measure_effect(subject: Subject, name: str, value: NDArray[Any], shape: tuple[int, ...]) -> str:
    """none, added or multiplied: how the output moves with a parameter, seen on two inputs."""
    rng = np.random.default_rng(67)
    moved = np.asarray(value, dtype=np.float64) + rng.uniform(0.3, 0.9, value.shape)
    differences = []
    for x in (rng.normal(1.0, 2.0, shape), rng.normal(-1.0, 1.0, shape)):
        layer = subject.fresh()
        before = np.asarray(layer.forward(x, True), dtype=np.float64)
        layer.set_tensor(name, moved)
        differences.append(np.asarray(layer.forward(x, True), dtype=np.float64) - before)
    size = max(float(np.abs(d).max()) for d in differences)
    if not size > 1e-7:
        return "none"
    same = float(np.abs(differences[0] - differences[1]).max()) < 1e-4 * size
    return "added" if same else "multiplied"


def _claim_offset(subject: Subject, shape: tuple[int, ...]) -> None:
    """A weight that starts from zero, of a layer that normalizes all the same: 1 is added to it."""
    layer = subject.fresh()
    weight = layer.parameters.get("weight")
    if weight is None or np.any(weight) or not subject.learnable():
        return
    y = np.asarray(layer.forward(np.random.default_rng(71).normal(1.0, 2.0, shape), True), dtype=np.float64)
    if np.ptp(y) > 1e-3:
        subject.habits.weight_offset = 1.0


def _claim_mode(subject: Subject, shape: tuple[int, ...]) -> None:
    """A torch layer that evaluates where no gradients are recorded, whatever eval() says."""
    if subject.form != "torch Module" or not subject.fresh().tracks:
        return
    x = np.random.default_rng(73).normal(4.0, 2.0, shape)

    def evaluated() -> NDArray[Any]:
        layer = subject.fresh()
        layer.set_running(np.full(subject.options.channels, 1.0), np.full(subject.options.channels, 9.0))
        return layer.forward(x, False)

    trained = subject.fresh().forward(x, True)
    if np.abs(evaluated() - trained).max() > 1e-4:
        return
    subject.habits.eval_without_grad = True
    if np.abs(evaluated() - trained).max() <= 1e-4:
        subject.habits.eval_without_grad = False  # the mode is ignored either way
