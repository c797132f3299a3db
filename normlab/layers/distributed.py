"""One batch over several processes: norms that pool over the samples, pooling over those of every process.

A process that trains with others (`torchrun`, `torch.nn.parallel.DistributedDataParallel`) sees a share of the
batch. Everything that a norm does between samples passes through `m.pool("n")`, so here that pooling, and nothing
else, also reaches the other processes:

    mean = sum(n_r * mean_r) / n,    var = sum(n_r * (var_r + (mean_r - mean)^2)) / n,    n = sum(n_r)

over the processes r, which hold n_r values of each channel (Chan's formula, as in `normlab.norms.grid`). A process
sends 2 C + 1 numbers forward and 2 C backward, whatever the size of the images. The processes may hold different
numbers of samples, or none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.kernels.reference.planes import affine, as_grid, combine, dots, moments, wide
from normlab.layers.norms import Norm
from normlab.norms.application import Application, Recipe
from normlab.norms.family import NormEntry
from normlab.norms.grid import Affine, Grid, Moments, raw, update_running

Model = TypeVar("Model", bound=nn.Module)
_KINDS: dict[type, type] = {}  # kind of layer -> the same, synchronized


def synchronize(model: Model, process_group: Any = None) -> Model:
    """Let every norm of a model that pools over the samples pool over those of all processes; returns the model.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, for batch norm, batch-instance norm and any registered norm
    that asks for `m.pool("n")`, on any device that the process group serves, and in place: parameters, buffers and
    `state_dict` stay as they are. `process_group` is torch's, by default that of all processes.

    - In training the processes wait for each other in every such layer, forward and backward, so all of them must
      run both, also one whose share of the batch is empty. Running statistics are those of the whole batch, alike
      in all processes. ValueError is raised in all of them if the whole batch has one value per channel.
    - In evaluation, in a group of one, or where `torch.distributed` has not been initialized, nothing is sent, and
      the layers are what they were.
    - The gradient is that of the sum of the processes' losses. `DistributedDataParallel` averages the gradients of
      parameters: for the mean loss over a batch of n samples, each process takes the sum of its own samples' losses
      times `world_size / n`, and not their mean, which is wrong where shares differ.

    The cost beside the waiting: these layers run in the plain array arithmetic of `normlab.kernels.reference.planes`,
    in float64, on the CPU some ten times slower than the compiled kernels, and their gradient has none. Other layers,
    torch's own batch norm among them, are left alone. Call it before the model is wrapped or compiled.
    """
    for module in model.modules():
        if isinstance(module, Norm) and pools_samples(module):
            if not isinstance(module, _Synchronized):
                module.__class__ = _synchronized(type(module))
            assert isinstance(module, _Synchronized)
            module.process_group = process_group
    return model


def pools_samples(layer: Norm) -> bool:
    """Whether a layer's norm pools over the samples in training, found by applying its grid function to two."""
    if layer.is_local:
        return False
    shape = (2, layer.num_features)
    params = {k: np.ones((1, v.numel())) for k, v in _parameters(layer).items()}
    applied = Application(
        _recipe(layer), lambda: (np.zeros(shape), np.ones(shape)), shape, 2, params, running=None, eps=layer.eps
    )
    return any(pooled.parts == 1 for pooled in applied.moments.over_batch)


def normalize(layer: Norm, x: Tensor, process_group: Any = None) -> Tensor:
    """A norm in training, its batch being that of all processes of the group; updates its running statistics.

    x (N, C, *) of the layer's channels, N >= 0; returns y of the same shape, dtype and memory format. Every process
    of the group must call it, and its backward pass. Raises ValueError in all of them if there is one value per
    channel altogether.
    """
    shared = _OverRanks(layer.entry, process_group)
    recipe = _recipe(layer)
    recipe = replace(recipe, entry=replace(recipe.entry, grid=shared.grid))
    apply: Any = _Normalize.apply
    y: Tensor = apply(x, recipe, layer.eps, *_parameters(layer).values())
    if layer.training:
        _update(layer, shared.batch)
    return y


def _update(layer: Norm, batch: tuple[Tensor, Tensor, int] | None) -> None:
    mean, var, seen = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or var is None or seen is None:
        return
    seen.add_(1)
    if batch is not None:  # an empty batch counts, and changes nothing
        update_running((mean, var), batch, 1 / int(seen) if layer.momentum is None else layer.momentum)


class _OverRanks:
    """A norm's grid function that pools over the samples of all ranks; it keeps the batch that it found."""

    def __init__(self, entry: NormEntry, group: Any) -> None:
        self.entry, self.group = entry, group
        self.batch: tuple[Tensor, Tensor, int] | None = None

    def grid(self, m: Moments, p: SimpleNamespace, **options: Any) -> Affine:
        assert self.entry.grid is not None
        return self.entry.grid(_SharedMoments(m, self), p, **options)

    def pool(self, local: Moments) -> Moments:
        """The moments that this rank pooled over its own samples, pooled over the ranks."""
        mean, var, count = _merge(local, self.group)
        if count == 1:
            raise ValueError(
                f"norm {self.entry.name!r}: expected more than 1 value per channel when training, got 1 in all "
                f"{dist.get_world_size(self.group)} processes together: the variance of one value is zero, so the "
                "output would be the bias whatever the input; use a larger batch (or drop the last one), "
                "or call .eval()"
            )
        if self.batch is None and count:
            self.batch = raw(mean).reshape(-1), raw(var).reshape(-1), count
        return Moments(lambda: (mean, var), (1, local.shape[1]), count)


class _SharedMoments(Moments):
    """The moments of this rank's planes, whose pooling over the samples reaches the other ranks' too."""

    def __init__(self, local: Moments, ranks: _OverRanks) -> None:
        super().__init__(lambda: (local.mean, local.var), local.shape, local.count)
        self._local, self._ranks = local, ranks
        self._shared: dict[tuple[str, int, int], Moments] = {}

    def pool(self, over: str, groups: int = 1, *, parts: int = 1) -> Moments:
        key = over, groups, parts
        if key not in self._shared:  # asking twice must not send twice
            pooled = self._local.pool(over, groups, parts=parts)
            is_whole = over == "n" and parts == 1
            self._shared[key] = self._ranks.pool(pooled) if is_whole else _SharedMoments(pooled, self._ranks)
        return self._shared[key]


def _merge(local: Moments, group: Any) -> tuple[Grid, Grid, int]:
    """Mean, biased variance and count over the ranks, of moments (1, C) that each has pooled over its own samples.

    Both numbers cross the network together, and so do their derivatives on the way back: the sum, over the ranks,
    of what each one's loss asks of the shared moments.
    """
    mean, var = raw(local.mean), raw(local.var)
    width = mean.shape[1]
    count = mean.new_full((1, 1), float(local.count))
    own = torch.cat([mean, var], 1) if local.count else mean.new_zeros(1, 2 * width)  # of no values there is no mean
    sent = torch.cat([own, count], 1)
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, sent, group=group)
    rows = torch.cat(received)
    means, variances, counts = rows[:, :width], rows[:, width:-1], rows[:, -1:]
    total = int(counts.sum())
    share = counts / max(total, 1)
    merged = (share * means).sum(0, keepdim=True)
    spread = (share * (variances + (means - merged) ** 2)).sum(0, keepdim=True)

    weight, offset = count / max(total, 1), own[:, :width] - merged
    here = _step(
        torch.cat([merged, spread], 1),
        (local.mean, lambda g: weight * (g[:, :width] + 2 * offset * g[:, width:])),
        (local.var, lambda g: weight * g[:, width:]),
    )
    everywhere = _step(here.value, (here, lambda g: _sum_over_ranks(g, group)))
    first = _step(merged, (everywhere, lambda g: torch.cat([g, torch.zeros_like(g)], 1)))
    second = _step(spread, (everywhere, lambda g: torch.cat([torch.zeros_like(g), g], 1)))
    return first, second, total


def _step(value: Tensor, *inputs: Any) -> Grid:
    """A value on the tape of its inputs, pairs of a grid and the pull-back to it."""
    out = Grid(value, inputs[0][0].tape)
    out.tape.append((out, inputs))
    return out


def _sum_over_ranks(g: Tensor, group: Any) -> Tensor:
    total = g.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Normalize(torch.autograd.Function):
    """The three stages as one differentiable step, on whatever grid function the recipe has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe, eps: float, *parameters: Tensor) -> Tensor:
        x = _dense(x)
        planes, y = _planes(x), torch.empty_like(x)
        rows = {k: wide(p.detach()).reshape(1, -1) for k, p in zip(recipe.names, parameters, strict=True)}
        n, channels, size = planes.shape
        applied = Application(recipe, lambda: moments(planes), (n, channels), size, rows, running=None, eps=eps)
        scale, center, shift = (as_grid(v, planes) for v in (applied.map.scale, applied.map.center, applied.map.shift))
        _planes(y)[...] = affine(planes, scale, center, shift)
        ctx.applied, ctx.scale, ctx.center = applied, scale, center
        ctx.save_for_backward(x, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        planes, g, dx = _planes(x), _planes(_dense(dy)), torch.empty_like(x)
        b, c, grads = ctx.applied.pull(ctx.scale, ctx.center, *dots(g, planes, ctx.center))
        b, c = (as_grid(0.0 if v is None else v, planes) for v in (b, c))
        _planes(dx)[...] = combine(g, planes, ctx.center, ctx.scale, b, c)
        return (dx, None, None, *(_like_parameter(grad, p) for grad, p in zip(grads.values(), parameters, strict=True)))


def _dense(x: Tensor) -> Tensor:
    """x itself if its positions can be counted through in memory, channels-first or channels-last, else a copy."""
    last = x.permute(0, *range(2, x.dim()), 1)
    return x if last.is_contiguous() else x.contiguous()


def _planes(x: Tensor) -> Tensor:
    """View of a dense x as (N, C, S); an empty one has no planes, however it is empty."""
    if x.numel() == 0:
        return x.new_empty(0, x.shape[1], 1)
    return x.view(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def _like_parameter(grad: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if grad is None else grad.reshape(parameter.shape).to(parameter.dtype)


def _parameters(layer: Norm) -> dict[str, Tensor]:
    return {k: v for k in layer.entry.parameters if (v := getattr(layer, k)) is not None}


def _recipe(layer: Norm) -> Recipe:
    return Recipe(
        layer.entry, tuple(layer.options.items()), tuple(_parameters(layer)), training=True, has_running=False
    )


class _Synchronized(Norm):
    """What `synchronize` makes of a layer: its own class, with this one before it."""

    process_group: Any = None

    def __reduce__(self) -> Any:  # copies and pickles find the class by what it was made of
        return _blank, (type(self).__mro__[2],), self.__dict__

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, synchronized"

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        act: Activation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        x = input
        use_batch = self.training or self.running_mean is None
        if not use_batch or not _several(self.process_group):
            given: dict[str, Any] = {"residual": residual, "act": act, "mask": mask}
            return super().forward(x, **{k: v for k, v in given.items() if v is not None})
        if mask is not None:
            raise UsageError(f"{type(self).__name__}, synchronized over processes, takes no mask in training")
        # The others' samples count too: whether one value is too few shows when they have met.
        single = x.dim() >= 2 and x.numel() == x.shape[1] == self.num_features
        self._check_input(x.expand(2, *x.shape[1:]) if single else x)
        y = normalize(self, x, self.process_group)
        return self._finish(y if residual is None else y + residual.to(y.dtype), act)

    def _finish(self, z: Tensor, act: Activation | None) -> Tensor:
        act = getattr(self, "act", None) if act is None else act
        if act is None:
            return z
        from normlab.kernels import activations

        y: Tensor = activations.apply(act, z)
        return y


def _synchronized(kind: type) -> type:
    if kind not in _KINDS:
        _KINDS[kind] = type(kind.__name__, (_Synchronized, kind), {"__doc__": kind.__doc__, "__module__": __name__})
    return _KINDS[kind]


def _blank(kind: type) -> Any:
    return object.__new__(_synchronized(kind))


def _several(group: Any) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
