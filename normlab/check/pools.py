"""Which inputs a layer takes, and what it pools over: measured by moving one value and looking which outputs move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.oracle import Recipe
from normlab.check.subjects import Subject, TargetFailure

PER_SAMPLE = ("layer", "rms")
Shapes = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Reach:
    """What one value reaches: the axes along which outputs move, the channels, and whether every value does alike."""

    axes: frozenset[int]
    channels: tuple[int, ...]
    alike: bool
    channel_axis: int
    shape: tuple[int, ...]

    @property
    def positions(self) -> frozenset[int]:
        """The axes that are neither the batch nor the channels."""
        return frozenset(range(1, len(self.shape))) - {self.channel_axis}

    @property
    def batch(self) -> bool:
        return 0 in self.axes

    @property
    def all_channels(self) -> bool:
        return len(self.channels) == self.shape[self.channel_axis] > 1

    def words(self, recipe: Recipe) -> str:
        """The pooled axes in words; where values differ in what they reach, that is said."""
        if not self.alike:
            return "not the same axes everywhere"
        if not self.axes:
            return "nothing"
        if recipe.over == "trailing" and recipe.kind in PER_SAMPLE:
            return " and ".join(f"axis {a - len(self.shape)}" for a in sorted(self.axes))
        parts = ["the batch"] if self.batch else []
        if self.all_channels:
            parts.append("all channels")
        elif len(self.channels) > 1:
            parts.append("channels " + ", ".join(map(str, self.channels)))
        pooled = self.axes & self.positions
        if pooled == self.positions and pooled:
            parts.append("positions")
        elif pooled:
            left = ", ".join(str(a) for a in sorted(self.positions - pooled))
            parts.append("axis " + " and ".join(str(a) for a in sorted(pooled)) + f" (not axis {left})")
        elif self.batch and self.positions:
            parts[-1] += " alone, each position by itself"
        return " and ".join(parts)


def reach(subject: Subject, shape: tuple[int, ...], channel_axis: int) -> Reach:
    """What the first and the last value reach in training."""
    x = np.random.default_rng(3).normal(1.0, 2.0, shape)
    base = _output(subject, x)
    channel = channel_axis % len(shape)
    found = []
    for index in ((0,) * x.ndim, tuple(s - 1 for s in shape)):
        moved = x.copy()
        moved[index] += 0.5
        changed = np.abs(_output(subject, moved) - base) > 1e-7
        where = np.argwhere(changed)
        axes = frozenset(a for a in range(x.ndim) if len(where) and np.any(where[:, a] != index[a]))
        found.append((axes, tuple(int(c) for c in np.unique(where[:, channel]))))
    (axes, channels), (other_axes, _) = found
    return Reach(axes, channels, axes == other_axes, channel, shape)


def _output(subject: Subject, x: NDArray[Any]) -> NDArray[Any]:
    """A new layer's output in training; parameters that hide the input, such as a weight of zero, are set to 0.75."""
    layer = subject.fresh()
    y = np.asarray(layer.forward(x, True), dtype=np.float64)
    if not layer.parameters or np.ptp(y) > 0:
        return y
    layer = subject.fresh()
    layer.set_parameters({role: np.full(value.shape, 0.75) for role, value in layer.parameters.items()})
    return np.asarray(layer.forward(x, True), dtype=np.float64)


def kind_of(found: Reach, subject: Subject) -> str | None:
    """The kind whose pool that is; None where there is no such kind."""
    if found.batch:
        if len(found.channels) > 1:
            return None
        return "batch-instance" if "gate" in subject.parameters else "batch"
    x = np.random.default_rng(5).normal(0, 1, found.shape)
    shifted = np.abs(subject.fresh().forward(x + 3.0, True) - subject.fresh().forward(x, True)).max() > 1e-3
    if found.all_channels:
        return "rms" if shifted else "layer"
    if len(found.channels) > 1:
        return "group"
    return "instance" if found.axes else None


def candidate_shapes(subject: Subject, over: str, channel_axis: int) -> Shapes:
    """Rank -> a shape with sizes that differ from each other, for ranks 4, 2, 3 and 5."""
    c = subject.options.channels
    if over == "trailing":
        tail = tail_of(subject)
        leads = {len(tail) + 1: (7,), len(tail) + 2: (5, 4), len(tail) + 3: (5, 4, 3)}
        return {rank: (*lead, *tail) for rank, lead in leads.items()}
    # no other axis may have the channels' size: an input without a batch axis would pass for one with it
    a, b = [s for s in (4, 3, 5) if s != c][:2]  # of two values, the normalized ones are always -1 and 1
    spatial = {4: (a, b), 2: (), 3: (a,), 5: (b, a, b)}
    batch = {rank: n + 1 if n == c else n for rank, n in {4: 5, 2: 8, 3: 5, 5: 3}.items()}
    if channel_axis == -1:
        return {rank: (batch[rank], *s, c) for rank, s in spatial.items()}
    return {rank: (batch[rank], c, *s) for rank, s in spatial.items()}


def tail_of(subject: Subject) -> tuple[int, ...]:
    """The trailing axes that a layer or RMS norm normalizes: those of its parameters."""
    for value in (*subject.parameters.values(), *subject.learnable().values()):
        if value.size == 1 < subject.options.channels:
            continue
        return tuple(n for n in value.shape if n > 1) or tuple(value.shape) or (subject.options.channels,)
    return subject.declared_shape or (subject.options.channels,)


def accepted(subject: Subject, shapes: Shapes) -> tuple[Shapes, list[str]]:
    """The shapes that the layer takes in training, and what it raised for the others."""
    taken, refused = {}, []
    for rank, shape in shapes.items():
        failure = _refusal(subject, shape)
        if failure is None:
            taken[rank] = shape
        else:
            refused.append(f"shape {shape}: {failure}")
    return taken, refused


def _refusal(subject: Subject, shape: tuple[int, ...]) -> TargetFailure | None:
    layer = subject.fresh(rank=len(shape)) if "rank" in subject.settable else subject.fresh()
    try:
        layer.forward(np.random.default_rng(1).normal(1, 2, shape), True)
    except TargetFailure as e:
        return e
    return None


@dataclass(frozen=True)
class Inputs:
    """The inputs that a layer is checked on: a shape per rank, where the channels are, over what it pools."""

    shapes: Shapes
    over: str
    channel_axis: int


def inputs_of(subject: Subject, kind: str | None) -> Inputs:
    """The inputs that the layer's convention promises; raises TargetFailure where it takes none.

    Channels come first, or last (functions and objects that take (N, D) alone so), or are the axes that a layer norm
    pools over. Some functions want their parameters with the input's rank.
    """
    axis = subject.channel_axis
    first, refused = accepted(subject, candidate_shapes(subject, "sample", axis))
    parameters = (*subject.parameters.values(), *subject.learnable().values())
    trails = any(p.ndim > 1 for p in parameters) or _last_axis_alone(subject, first)
    if kind in (*PER_SAMPLE, None) and (set(first) <= {2} or trails):
        trailing, more = accepted(subject, candidate_shapes(subject, "trailing", axis))
        if len(trailing) > len(first) or (trailing and not first) or (kind and trailing):
            return _trailing_or_sample(subject, trailing)
        refused += more
    if axis == 1 and set(first) <= {2}:
        last = {} if kind in PER_SAMPLE else _higher_ranks(subject, -1)
        found = {r: reach(subject, s, -1) for r, s in last.items()}
        sound = {r: s for r, s in last.items() if _is_plausible(found[r], kind)}
        if sound:
            return Inputs(first | sound, "sample", -1)
        full = _full(subject)
        sound = {r: s for r, s in full.items() if _is_plausible(reach(subject, s, 1), kind)}
        partly = {r: s for r, s in last.items() if found[r].axes & found[r].positions}
        kept = sound or ({} if first or partly else full)
        subject.habits.full_ranks &= set(kept)
        if kept or not partly:
            first |= kept
        else:
            return Inputs(first | partly, "sample", -1)
    if not first:
        raise TargetFailure("takes no input: " + "; ".join(refused[:2]))
    return Inputs(first, "sample", axis)


def _last_axis_alone(subject: Subject, shapes: Shapes) -> bool:
    """Whether a layer without a parameter per channel, which takes any sizes, pools the last axis whichever it is."""
    if any(p.size > 1 for p in (*subject.parameters.values(), *subject.learnable().values())):
        return False
    return {3, 4} <= set(shapes) and all(reach(subject, shapes[r], 1).axes == {r - 1} for r in (3, 4))


def _higher_ranks(subject: Subject, channel_axis: int) -> Shapes:
    shapes = candidate_shapes(subject, "sample", channel_axis)
    return accepted(subject, {r: s for r, s in shapes.items() if r > 2})[0]


def _full(subject: Subject) -> Shapes:
    """What a function takes with parameters of the input's rank, (1, C, 1, 1); leaves the ranks in its habits."""
    if subject.form in ("torch Module", "NumPy layer object"):
        return {}
    subject.habits.full_ranks |= {3, 4, 5}
    taken = _higher_ranks(subject, 1)
    subject.habits.full_ranks &= set(taken)
    return taken


def _is_plausible(found: Reach, kind: str | None) -> bool:
    """Whether the pool is that of some norm, of this one where it is named."""
    if not found.alike or not found.axes >= found.positions:
        return False
    if kind in ("batch", "batch-instance"):
        return found.batch and len(found.channels) == 1
    if kind == "instance":
        return not found.batch and len(found.channels) == 1
    if kind == "group":
        return not found.batch and not found.all_channels
    return not found.batch or (kind is None and len(found.channels) == 1)


def _trailing_or_sample(subject: Subject, shapes: Shapes) -> Inputs:
    """A layer norm with one weight per feature may pool over the last axes, or over all but the batch."""
    trailing = len(tail_of(subject))
    found = {rank: reach(subject, shape, -1) for rank, shape in shapes.items()}
    if any(r.axes == set(range(rank - trailing, rank)) for rank, r in found.items()):
        return Inputs(shapes, "trailing", subject.channel_axis)
    whole = {rank: shapes[rank] for rank, r in found.items() if r.axes == set(range(1, rank)) and rank > 2}
    if whole and trailing == 1:
        return Inputs(whole, "sample", -1)
    return Inputs(shapes, "trailing", subject.channel_axis)


def over_of(recipe: Recipe, found: Reach) -> str:
    """Over what a layer or RMS norm pools: trailing axes, the whole sample, or the channels at each position."""
    if recipe.kind not in PER_SAMPLE:
        return "sample"
    if recipe.over == "trailing":
        return "trailing"
    return "channels" if found.axes == {found.channel_axis} and found.positions else "sample"


def computes_in_float64(subject: Subject, shape: tuple[int, ...]) -> bool:
    """Whether the layer computes in float64: its output does not fit float32, and moves smoothly with the input.

    Where statistics alone are rounded to float32, the output jumps: their last bit turns.
    """
    x = np.random.default_rng(7).normal(1.0, 2.0, shape)
    if subject.fresh().forward(x, True).dtype != np.float64:
        return False
    y = _output(subject, x)
    with np.errstate(over="ignore"):
        if not np.any(y.astype(np.float32).astype(np.float64) != y):
            return not np.any(y)
    moved = [_output(subject, x * (1 + 2e-8 * i)) for i in range(8)]
    jumps = np.abs(np.diff(moved, n=2, axis=0)).max()
    return bool(jumps <= 1e-10 * np.abs(y).max())
