"""The family as torch modules: torch's own signatures, defaults and `state_dict` keys, any rank from 2 to 5.

A checkpoint of `torch.nn.BatchNorm2d`, `InstanceNorm2d`, `GroupNorm` or `LayerNorm` loads unchanged, and whoever looks
for those layers by their class (`swa_utils.update_bn`, weight initializers) finds these. Inputs and
outputs keep their memory format: channels-last stays channels-last. The gradient is written by hand
(`normlab.kernels.stages.backward`); further derivatives, and the transforms of `torch.func`, are torch's
(`normlab.layers.derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normlab.errors import UsageError
from normlab.kernels.activations import Activation, activation
from normlab.layers import functional
from normlab.layers.positions import ChannelNorm, LayerNorm, RMSNorm
from normlab.norms import family as norms

__all__ = [
    "BatchInstanceNorm",
    "BatchNorm",
    "ChannelNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "constrain",
    "make_norm",
    "parameter_groups",
]


class Norm(nn.Module):
    """Any norm of the family as a layer, by name.

    Input (N, C, *) of 2 to 5 dimensions, output of the same shape, dtype and memory format. Parameters are those
    of the norm's entry, (C,) each; with `affine=False` there is no weight and bias. `act` names an activation of
    `normlab.kernels.activations` that is applied to the result, and a `residual` of the input's shape given to
    `forward` is added before it: y = act(norm(x) + residual), in one pass over memory. A norm with running statistics
    keeps `running_mean`, `running_var` (unbiased, as torch) and `num_batches_tracked`, updated as `(1 - momentum) *
    running + momentum * batch`, or as the average of all batches if `momentum` is None. Raises ValueError for an
    input that the norm is not defined on. An `act` given to `forward` stands in for the layer's, in that call.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    counts_once = True  # under activation checkpointing, `normlab lint` asks

    def __init__(
        self,
        norm: str,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str | Activation | None = None,
        **options: Any,
    ) -> None:
        nn.Module.__init__(self)  # of torch's own layer, which may come next, only the class is wanted
        entry, given = norms.parse(norm)
        self.norm = entry.name
        if entry.grid is None:
            raise UsageError(f"Norm: {norm!r} is a module of its own; build it with make_norm({norm!r}, ...)")
        self.options = norms.resolve_options(self.entry, num_features, {**given, **options})
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.act = activation(act)
        self.track_running_stats = self.entry.running if track_running_stats is None else track_running_stats
        left_out = (() if affine else ("weight", "bias")) + (() if bias else ("bias",))
        self.learned = tuple(self.entry.parameters)
        for name, learned in self.entry.parameters.items():
            shape = (num_features if learned.per_channel else 1,)
            value = None if name in left_out else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        for name in ("running_mean", "running_var"):
            buffer = torch.empty(num_features, device=device, dtype=dtype) if self.track_running_stats else None
            self.register_buffer(name, buffer)
        count = torch.tensor(0, dtype=torch.long, device=device) if self.track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    @property
    def entry(self) -> norms.NormEntry:
        """The norm's entry in the family."""
        return norms.describe(self.norm)

    def reset_running_stats(self) -> None:
        """Forget the batches seen: mean 0, variance 1."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set every parameter to its initial value, and forget the batches seen."""
        self.reset_running_stats()
        for name, learned in self.entry.parameters.items():
            parameter = getattr(self, name)
            if parameter is not None:
                nn.init.constant_(parameter, learned.initial)

    def forward(self, x: Tensor, residual: Tensor | None = None, act: Activation | None = None) -> Tensor:
        self._check_input(x)
        has_running = self._buffers["running_mean"] is not None
        use_batch = self.training or not has_running
        return self._normalize(x, residual, act, self.norm, use_batch, self.training and has_running)

    def _check_input(self, x: Tensor) -> None:
        shape = x.shape
        if not 2 <= len(shape) <= 5:
            raise ValueError(f"{self._title()}: expected an input of 2 to 5 dimensions (N, C, *), got {x.dim()}D")
        if shape[1] != self.num_features:
            raise ValueError(
                f"{self._title()}: expected {self.num_features} channels in dimension 1, got {shape[1]} "
                f"in an input of shape {tuple(shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{self._title()}: expected a floating-point input, got {x.dtype}; convert it first")

    def _normalize(
        self, x: Tensor, residual: Tensor | None, act: Activation | None, norm: str, use_batch: bool, update: bool
    ) -> Tensor:
        held, buffers = self._parameters, self._buffers
        params: Any = {k: held[k] for k in self.learned if held[k] is not None}
        return functional.normalize(
            norm,
            x,
            params,
            options=tuple(self.options.items()),
            running=(buffers["running_mean"], buffers["running_var"]) if update or not use_batch else None,  # type: ignore[arg-type]
            use_batch=use_batch,
            update=update,
            seen=buffers["num_batches_tracked"],
            momentum=self.momentum,
            eps=self.eps,
            act=self.act if act is None else act,
            residual=residual,
        )

    def _title(self) -> str:
        return type(self).__name__ if type(self) is not Norm else f"Norm({self.entry.name!r})"

    def extra_repr(self) -> str:
        parts = [str(self.num_features), *(f"{k}={v}" for k, v in self.options.items()), f"eps={self.eps}"]
        if self.entry.running:
            parts.append(f"momentum={self.momentum}")
        parts.append(f"affine={self.affine}")
        if self.act is not None:
            parts.append(f"act={str(self.act)!r}")
        return ", ".join([repr(self.norm), *parts] if type(self) is Norm else parts)


class _BatchStatistics(Norm):
    """What batch and batch-instance norm share: running statistics, and a batch of one value is refused."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str | Activation | None = None,
    ) -> None:
        name = "bn" if isinstance(self, BatchNorm) else "bin"
        super().__init__(
            name, num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, act=act
        )

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.shape[0] == 1 and x.numel() == x.shape[1] and (self.training or self.running_mean is None):
            raise ValueError(
                f"{self._title()}: expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)}: the variance of one value is zero, so the output would be the bias whatever "
                "the input; use a larger batch (or drop the last one), or call .eval()"
            )


class BatchNorm(_BatchStatistics, _BatchNorm):
    """Batch normalization over (N, *) for each channel.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    The variance that normalizes is the biased one, `running_var` averages the unbiased one. Input (N, C, *), 2 to
    5 dimensions. Arguments and `state_dict` as `torch.nn.BatchNorm1d/2d/3d`. Raises ValueError in training if
    there is one value per channel. Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    @property
    def qconfig(self) -> Any:
        """How torch would quantize the layer. Its converters to other layers ask whether there is such a thing; they
        would lose the activation, so of a layer that has one they are refused with a RuntimeError.
        """
        if self.act is not None:
            raise RuntimeError(
                f"{self._title()}: a layer of torch's in its place would leave out act={str(self.act)!r}; "
                "normlab.layers.distributed.synchronize pools statistics over processes"
            )
        if "_qconfig" not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__["_qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["_qconfig"] = value


class BatchInstanceNorm(_BatchStatistics):
    """Batch-instance normalization: a learned gate per channel between batch and instance normalization.

        y = weight * (rho * batch(x) + (1 - rho) * instance(x)) + bias

    `rho` (C,) starts at 1 and is kept in [0, 1] by `constrain(model)` after each optimizer step; it learns at ten
    times the learning rate without weight decay (`parameter_groups`). Other arguments as `BatchNorm`. Input
    (N, C, *) of 3 to 5 dimensions: an instance of one position has no variance. Nam & Kim 2018, arXiv:1805.07925.
    """

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        _check_positions(self, x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # the authors' implementation calls the gate `gate`
        if f"{prefix}gate" in state_dict and f"{prefix}rho" not in state_dict:
            state_dict[f"{prefix}rho"] = state_dict.pop(f"{prefix}gate")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InstanceNorm(Norm, _InstanceNorm):
    """Instance normalization over the positions of each sample and channel.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Input (N, C, *) of 3 to 5 dimensions. Arguments, defaults and `state_dict` as `torch.nn.InstanceNorm1d/2d/3d`:
    no affine and no running statistics unless asked for; where they are kept, they average the instances'
    statistics and normalize in evaluation. Raises ValueError in training if there is one position.
    Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """

    rank: int | None = None  # how many dimensions an input must have, where torch would read fewer in another way

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str | Activation | None = None,
    ) -> None:
        super().__init__(
            "in", num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, act=act
        )

    def forward(self, x: Tensor, residual: Tensor | None = None, act: Activation | None = None) -> Tensor:
        self._check_input(x)
        if self.running_mean is not None and not self.training:
            return self._normalize(x, residual, act, "bn", use_batch=False, update=False)
        return self._normalize(x, residual, act, "in", use_batch=True, update=self.running_mean is not None)

    def _check_input(self, x: Tensor) -> None:
        if self.rank is not None and x.dim() != self.rank:
            raise ValueError(
                f"InstanceNorm: expected an input of {self.rank} dimensions (N, C, *), got {x.dim()}; "
                "it stands for a layer of torch's that takes single samples too: x.unsqueeze(0) makes a batch of one"
            )
        super()._check_input(x)
        if self.training or self.running_mean is None:
            _check_positions(self, x)


class GroupNorm(Norm, nn.GroupNorm):
    """Group normalization over the channels of each group and all positions of each sample.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Input (N, C, *), 2 to 5 dimensions. Arguments and `state_dict` as `torch.nn.GroupNorm`. Raises ValueError if
    `num_channels` is not divisible by `num_groups`. Wu & He 2018, arXiv:1803.08494.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str | Activation | None = None,
    ) -> None:
        if not isinstance(num_groups, int) or num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_channels={num_channels} must be divisible by num_groups={num_groups}")
        super().__init__(
            "gn", num_channels, eps, affine=affine, device=device, dtype=dtype, bias=bias, act=act, groups=num_groups
        )
        self.num_groups = num_groups
        self.num_channels = num_channels

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.shape[0] == 1 and x.numel() == self.num_groups:
            raise ValueError(
                "GroupNorm: expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)} in {self.num_groups} groups: the variance of one value is zero; use fewer groups"
            )


def takes_act(layer: nn.Module) -> TypeGuard[Norm]:
    """Whether a layer can be told to apply an activation, and a residual before it: one of ours that applies none.

    Not of a subclass, which may do more than its base.
    """
    return type(layer) in _FUSING and layer.act is None


_FUSING = (Norm, BatchNorm, BatchInstanceNorm, InstanceNorm, GroupNorm)


def make_norm(spec: str, channels: int, **options: Any) -> nn.Module:
    """A norm layer for this many channels, by name: "bn", "gn:groups=8", "torch-bn", "none", or a registered one.

    `options` are the norm's own (groups) and the layer's (eps, momentum, affine, ...); those written in `spec`
    after colons count the same. Every norm of the family has a learned weight and bias unless `affine=False`.
    Raises UsageError (a ValueError) for an unknown name or option, or channels that do not divide into the groups.
    """
    entry, given = norms.parse(spec)
    options = {**given, **options}
    try:
        if entry.module is not None:
            return _factory(entry.module)(channels, **options)
        if entry.name == "bn":
            return BatchNorm(channels, **options)
        if entry.name == "bin":
            return BatchInstanceNorm(channels, **options)
        if entry.name == "in":
            return InstanceNorm(channels, **{"affine": True, **options})
        if entry.name == "gn":
            return GroupNorm(options.pop("groups", norms.default_groups(channels)), channels, **options)
        return Norm(entry.name, channels, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"norm {spec!r}: {error}") from None


def _factory(module: Callable[..., nn.Module] | str) -> Callable[..., nn.Module]:
    if not isinstance(module, str):
        return module
    package, _, name = module.partition(":")
    factory: Callable[..., nn.Module] = getattr(import_module(package), name)
    return factory


def parameter_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups of a model's parameters, with the learning rate and decay that its norms ask for.

    The first group holds everything ordinary; parameters with a rate of their own (the gate of batch-instance
    norm: ten times `lr`, no weight decay) follow in a group each.
    """
    special = {
        id(p): learned
        for module in model.modules()
        if isinstance(module, Norm)
        for name, learned in module.entry.parameters.items()
        if (p := getattr(module, name)) is not None and (learned.lr_scale != 1 or not learned.decay)
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): []}
    for p in model.parameters():
        learned = special.get(id(p))
        key = (1.0, True) if learned is None else (learned.lr_scale, learned.decay)
        groups.setdefault(key, []).append(p)
    return [
        {"params": params, "lr": lr * scale, "weight_decay": weight_decay if decay else 0.0}
        for (scale, decay), params in groups.items()
    ]


@torch.no_grad()
def constrain(model: nn.Module) -> None:
    """Clamp every bounded norm parameter into its bounds; call it after each optimizer step."""
    for module in model.modules():
        if isinstance(module, Norm):
            for name, learned in module.entry.parameters.items():
                parameter = getattr(module, name)
                if learned.bounds is not None and parameter is not None:
                    parameter.clamp_(*learned.bounds)


def _check_positions(layer: Norm, x: Tensor) -> None:
    if x.dim() == 2 or x[0:1, 0:1].numel() == 1:
        raise ValueError(
            f"{layer._title()}: expected more than 1 spatial element when training, got input size "
            f"{tuple(x.shape)}: the variance of one value is zero"
        )
