"""The family as torch modules: torch's own signatures, defaults and `state_dict` keys, any rank from 2 to 5.

A checkpoint of `torch.nn.BatchNorm2d`, `InstanceNorm2d`, `GroupNorm` or `LayerNorm` loads unchanged, and code that
looks for those layers by their class (`swa_utils.update_bn`, weight initializers) finds these. Inputs and outputs keep
their memory format: channels-last stays channels-last. The gradient is written by hand
(`normlab.kernels.stages.backward`); further derivatives, and the transforms of `torch.func`, are torch's
(`normlab.layers.derivatives`).
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, ClassVar, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from normlab.errors import InputError, UsageError
from normlab.kernels.activations import Activation, activation
from normlab.layers import bounds, checks, functional, guards, plain
from normlab.layers._torch import BatchNormBase, InstanceNormBase
from normlab.layers.leaves import as_leaf, finished, is_root, refuse_script, traces
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
    of the norm's entry, (C,) each; with `affine=False` there is no weight and bias. eps is the entry's unless given.
    `act` names an activation of `normlab.kernels.activations` that is applied to the result, and a `residual` of the
    input's shape given to `forward` is added before it: y = act(norm(x) + residual), in one pass over memory. A norm
    with running statistics keeps `running_mean`, `running_var` (unbiased, as torch) and `num_batches_tracked`, updated
    as `(1 - momentum) * running + momentum * batch`, or as the average of all batches if `momentum` is None.

    Every attribute is read at every call, as torch's layers do: `eps`, `momentum`, `training`, `track_running_stats`,
    parameters and buffers may be changed or replaced at any time. Raises InputError (a ValueError and a RuntimeError)
    for an input, a parameter or a buffer that the norm is not defined on. An `act` given to `forward` stands in for the
    layer's, in that call.

    A `mask` given to `forward`, (N, *) or (N, 1, *), says which positions there are: statistics are taken over those
    where it is true, each plane counts by how many it has, and y is zero elsewhere.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    counts_once = True  # under activation checkpointing, `normlab lint` asks
    takes_act: ClassVar[bool] = True
    is_local: ClassVar[bool] = False  # its statistics are not to be those of several processes together
    most_dimensions: ClassVar[int | None] = 5
    initial: Mapping[str, float] = MappingProxyType({})  # where weight and bias start, if not as the norm says

    def __init__(
        self,
        norm: str,
        num_features: int,
        eps: float | None = None,
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
        if track_running_stats and not entry.running and entry.in_evaluation is None:
            raise UsageError(
                f"Norm({self.norm!r}): it is the same in training and evaluation, and keeps no running statistics; "
                "leave out track_running_stats"
            )
        self.options = norms.resolve_options(self.entry, num_features, {**given, **options})
        self.num_features = num_features
        self.eps = entry.eps if eps is None else eps
        self.momentum = momentum
        self.affine = affine
        self.act = activation(act)
        self.track_running_stats = self.entry.running if track_running_stats is None else track_running_stats
        left_out = (() if affine else ("weight", "bias")) + (() if bias else ("bias",))
        self.learned = tuple(self.entry.parameters)
        for name, learned in self.entry.parameters.items():
            shape = (num_features if learned.per_channel else 1,)
            value = None if name in left_out else torch.empty(shape, device=device, dtype=dtype)
            if learned.trained:
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            elif not hasattr(type(self), name):  # a class may compute it
                self.register_buffer(name, value, persistent=False)
        for name in ("running_mean", "running_var"):
            buffer = torch.empty(num_features, device=device, dtype=dtype) if self.track_running_stats else None
            self.register_buffer(name, buffer)
        count = torch.tensor(0, dtype=torch.long, device=device) if self.track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()
        self._keep_in_bounds()

    @classmethod
    def for_channels(cls, norm: str, channels: int, **options: Any) -> Norm:
        """The layer that `make_norm` builds: every norm has a weight and bias unless the options say otherwise."""
        return cls(norm, channels, **options)

    @property
    def entry(self) -> norms.NormEntry:
        """The norm's entry in the family."""
        return norms.describe(self.norm)

    def bounded(self) -> dict[str, tuple[float, float]]:
        """The bounds of the parameters that have some."""
        return {k: v.bounds for k, v in self.entry.parameters.items() if v.bounds is not None}

    def _keep_in_bounds(self) -> None:
        if self.bounded():
            bounds.keep(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, or out of a file
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._keep_in_bounds()

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
            held = None if hasattr(type(self), name) else getattr(self, name)
            if held is not None:
                values = learned.values(held.numel(), self.options)
                if name in self.initial:
                    values = [self.initial[name]] * held.numel()
                with torch.no_grad():
                    held.copy_(torch.tensor(values, dtype=held.dtype).reshape(held.shape))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if self._buffers.get("num_batches_tracked") is None:  # torch adds a count to a file of an older version
            local_metadata = {**local_metadata, "version": 2}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        for name, learned in self.entry.parameters.items():
            held = None if learned.trained else self._buffers.get(name)
            if held is not None:  # a constant is in no file: a layer without memory has it from its norm
                others = [v for v in (*self._parameters.values(), *self._buffers.values()) if v is not None]
                device = next((v.device for v in others if not v.is_meta), held.device)
                values = learned.values(held.numel(), self.options)
                self._buffers[name] = torch.tensor(values, dtype=held.dtype, device=device)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        act: Activation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if traces(input):
            return self._trace(input, residual, act, mask)
        self._check_input(input)
        if mask is not None:
            checks.mask(input, mask)
        if input.dim() > 5:
            return self._flattened(input, residual, act, mask)
        training, tracked, eps = self.training, self.track_running_stats, self.eps
        held = self._buffers
        try:  # to ask the module takes three times as long
            mean, var, count = held["running_mean"], held["running_var"], held["num_batches_tracked"]
        except KeyError:  # one is something else now
            mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if type(eps) is not float:
            eps = checks.number(self._title(), eps)
        use_batch = training or (mean is None and var is None)
        if eps <= 0.0 and self.entry.running:
            checks.positive(eps, use_batch)
        if (mean is None) != (var is None) and (tracked or not training):  # otherwise the statistics are left alone
            checks.both_running(mean, var, training)
        running = None if mean is None or var is None else (mean, var)
        if use_batch and not (training and tracked):
            running = None
        momentum = self.momentum
        if momentum is None and count is None:
            momentum = 0.0  # an average over nothing counted: torch leaves the statistics alone
        if momentum is not None and type(momentum) is not float:
            momentum = checks.number(self._title(), momentum, "momentum")
        return self._normalize(input, residual, act, self.norm, use_batch, running, momentum, count, eps, mask)

    def _flattened(
        self, input: Tensor, residual: Tensor | None, act: Activation | None, mask: Tensor | None
    ) -> Tensor:  # fmt: skip
        """The forward pass of more dimensions than kernels have a layout for, all positions in a row."""
        if residual is not None and residual.shape != input.shape:
            raise InputError(
                f"residual: expected the input's shape {tuple(input.shape)}, got shape {tuple(residual.shape)}"
            )
        flat, kept = (None if v is None else v.flatten(v.dim() - input.dim() + 2) for v in (residual, mask))
        return Norm.forward(self, input.flatten(2), flat, act, kept).view(input.shape)

    def _trace(self, input: Any, residual: Any, act: Any, mask: Any) -> Tensor:
        """What torch.fx writes down."""
        if not is_root(self, input):
            return as_leaf(self, input, residual, act, mask)
        function = plain.function_of(self.entry)
        if function is None or self.entry.running:
            raise TraceError(
                f"{self._title()}: torch.fx follows it as a part of a module, not by itself; trace "
                "torch.nn.Sequential(layer)"
            )
        y = function(input, self.weight, self.bias, self.options, None, True, 0.0, self._eps())
        node: Tensor = input.tracer.create_proxy("call_function", finished, (y, residual, act, self.act, mask), {})
        return node

    def _check_input(self, x: Tensor) -> None:
        if not 2 <= x.dim() <= 5:
            checks.rank(self._title(), x, self.most_dimensions)
        if x.shape[1] != self.num_features and not self._is_resized(x.shape[1]):
            checks.channels(self._title(), x, self.num_features)
        if not x.is_floating_point():
            checks.floats(self._title(), x)

    def _is_resized(self, channels: int) -> bool:
        """Whether parameters and buffers have been replaced by others of this length, as torch's layers allow."""
        held = [getattr(self, k) for k in (*self.learned, "running_mean", "running_var")]
        lengths = {v.numel() for v in held if v is not None}
        return lengths == {channels}

    def _check_parameters(self, x: Tensor, held: dict[str, Tensor]) -> None:
        for name, v in held.items():
            learned = self.entry.parameters[name]
            checks.lengths(self._title(), x, {name: v}, x.shape[1] if learned.per_channel else 1)
            if learned.trained:
                checks.dtypes(self._title(), x, {name: v})

    def _refusal_of_one(self) -> str:
        """What is said where a mask keeps one value of a batch; the norms of a sample take any."""
        return ""

    def _check_running(self, x: Tensor, running: tuple[Tensor, Tensor]) -> None:
        held = {"running_mean": running[0], "running_var": running[1]}
        checks.constants(self._title(), held)
        checks.lengths(self._title(), x, held, x.shape[1])
        checks.dtypes(self._title(), x, held)

    def _normalize(
        self,
        x: Tensor,
        residual: Tensor | None,
        act: Activation | None,
        norm: str,
        use_batch: bool,
        running: tuple[Tensor, Tensor] | None,
        momentum: float | None,
        count: Tensor | None,
        eps: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        """act(norm(x) + residual); `running` is updated with the batch's statistics, or stands in for them."""
        own = self._parameters
        params = {k: v for k in self.learned if (v := own[k] if k in own else getattr(self, k)) is not None}
        wrapped = False
        if not checks.fit(x, params.values()):
            self._check_parameters(x, params)
            wrapped = checks.any_wrapped(params.values())
        if running is not None and not checks.fit(x, running, checks.BUFFER):
            self._check_running(x, running)
            wrapped = wrapped or checks.any_wrapped(running)
        return functional.normalize(
            norm,
            x,
            params,
            options=tuple(self.options.items()) if norm == self.norm else (),
            running=running,
            use_batch=use_batch,
            update=use_batch and running is not None,
            seen=count,
            momentum=momentum,
            eps=eps,
            act=self.act if act is None else act,
            residual=residual,
            mask=mask,
            refusal=self._refusal_of_one() if mask is not None and use_batch else "",
            wrapped=wrapped,
        )

    def _eps(self) -> float:
        return self.eps if type(self.eps) is float else checks.number(self._title(), self.eps)

    def _title(self) -> str:
        return type(self).__name__ if not self._is_by_name() else f"{type(self).__name__}({self.entry.name!r})"

    def apply(self, fn: Callable[[nn.Module], Any]) -> Norm:
        """As `torch.nn.Module.apply`; warns where an attribution method of captum looks for activation modules."""
        if self.act is not None and type(getattr(fn, "__self__", None)).__module__.startswith("captum."):
            warnings.warn(
                f"{self._title()} applies act={str(self.act)!r} itself, which {type(fn.__self__).__name__} does not "  # type: ignore[attr-defined]
                "find: it would give plain gradients; put modules of their own back with "
                "normlab.restore_norms(model) first",
                stacklevel=3,
            )
        super().apply(fn)
        return self

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(self)

    def _is_by_name(self) -> bool:
        """Whether the class says less than the norm's name."""
        return type(self) in (Norm, RunningNorm)

    def extra_repr(self) -> str:
        parts = [str(self.num_features), *(f"{k}={v}" for k, v in self.options.items()), f"eps={self.eps}"]
        if self.entry.running:
            parts.append(f"momentum={self.momentum}")
        parts.append(f"affine={self.affine}")
        parts += [f"initial_{name}={value}" for name, value in self.initial.items()]
        if self.act is not None:
            parts.append(f"act={str(self.act)!r}")
        return ", ".join([repr(self.norm), *parts] if self._is_by_name() else parts)


class RunningNorm(Norm, BatchNormBase):
    """A norm of the family that pools over the samples and keeps running statistics for evaluation.

    Whoever looks for such layers by torch's class, as `swa_utils.update_bn` does, finds it. Arguments as `Norm`.
    """

    takes_act = True


class BatchStatistics(RunningNorm):
    """A norm that takes statistics of a batch: one value per channel is refused."""

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.shape[0] == 1 and (self.training or (self.running_mean is None and self.running_var is None)):
            checks.more_than_one_value(self._title(), x, self.training)

    def _refusal_of_one(self) -> str:
        return checks.refusal_of_one(self._title(), self.training)


class _Named(BatchStatistics):
    """What batch and batch-instance norm share: torch's arguments."""

    name: ClassVar[str]  # of the norm

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
        super().__init__(
            self.name, num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, act=act
        )

    @classmethod
    def for_channels(cls, norm: str, channels: int, **options: Any) -> Norm:
        return cls(channels, **options)


class BatchNorm(_Named):
    """Batch normalization over (N, *) for each channel.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    The variance that normalizes is the biased one, `running_var` averages the unbiased one. Input (N, C, *), 2 to
    5 dimensions. Arguments and `state_dict` as `torch.nn.BatchNorm1d/2d/3d`. Raises ValueError in training if
    there is one value per channel. Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    takes_act = True
    name = "bn"


class BatchInstanceNorm(_Named):
    """Batch-instance normalization: a learned gate per channel between batch and instance normalization.

        y = weight * (rho * batch(x) + (1 - rho) * instance(x)) + bias

    `rho` (C,) starts at 1 and is clamped to [0, 1] after each step of a torch optimizer that holds it (`constrain` does
    so by hand); it learns at ten times the learning rate without weight decay (`parameter_groups`). Other arguments as
    `BatchNorm`. Input (N, C, *) of 3 to 5 dimensions: an instance of one position has no variance.
    Nam & Kim 2018, arXiv:1805.07925.
    """

    takes_act = True
    name = "bin"

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        checks.more_than_one_position(self._title(), x, self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # the authors' implementation calls the gate `gate`
        if f"{prefix}gate" in state_dict and f"{prefix}rho" not in state_dict:
            state_dict[f"{prefix}rho"] = state_dict.pop(f"{prefix}gate")
        # a batch norm's checkpoint: what it computes is rho = 1
        if f"{prefix}running_mean" in state_dict and f"{prefix}rho" not in state_dict and isinstance(self.rho, Tensor):
            state_dict[f"{prefix}rho"] = torch.ones_like(self.rho)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InstanceNorm(Norm, InstanceNormBase):
    """Instance normalization over the positions of each sample and channel.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Input (N, C, *) of 3 to 5 dimensions. Arguments, defaults and `state_dict` as `torch.nn.InstanceNorm1d/2d/3d`:
    no affine and no running statistics unless asked for; where they are kept, they average the instances'
    statistics and normalize in evaluation. Raises ValueError in training if there is one position.
    Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """

    takes_act = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
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

    @classmethod
    def for_channels(cls, norm: str, channels: int, **options: Any) -> Norm:
        return cls(channels, **{"affine": True, **options})

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        act: Activation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if traces(input):
            return self._trace(input, residual, act, mask)
        self._check_input(input)
        if mask is not None:
            checks.mask(input, mask)
        mean, var, eps = self.running_mean, self.running_var, self._eps()
        use_instances = self.training or not self.track_running_stats
        if not use_instances and (mean is None or var is None):
            raise InputError("Expected running_mean and running_var to be defined when use_input_stats is false")
        checks.both_running(mean, var, True)
        running = None if mean is None or var is None else (mean, var)
        # torch's instance norm has the counter and leaves it at zero; without a momentum it leaves the statistics too
        momentum = 0.0 if self.momentum is None else self.momentum
        if type(momentum) is not float:
            momentum = checks.number(self._title(), momentum, "momentum")
        norm = self.norm if use_instances else self.entry.in_evaluation or self.norm
        return self._normalize(input, residual, act, norm, use_instances, running, momentum, None, eps, mask)

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if (self.training or not self.track_running_stats) and (x.dim() < 3 or x.shape[2] == 1):
            checks.more_than_one_position(self._title(), x, self.training, self.running_mean is not None)

    def _check_parameters(self, x: Tensor, held: dict[str, Tensor]) -> None:
        checks.lengths(self._title(), x, held, x.shape[1], x.shape[0])
        checks.dtypes(self._title(), x, held)

    def _check_running(self, x: Tensor, running: tuple[Tensor, Tensor]) -> None:
        held = {"running_mean": running[0], "running_var": running[1]}
        checks.constants(self._title(), held)
        checks.lengths(self._title(), x, held, x.shape[1], x.shape[0])


class GroupNorm(Norm, nn.GroupNorm):
    """Group normalization over the channels of each group and all positions of each sample.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Input (N, C, *), 2 dimensions or more. Arguments and `state_dict` as `torch.nn.GroupNorm`. Raises ValueError if
    `num_channels` is not divisible by `num_groups`. Wu & He 2018, arXiv:1803.08494.
    """

    takes_act = True
    most_dimensions = None

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
        if not hasattr(num_groups, "__index__") or num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_channels={num_channels} must be divisible by num_groups={num_groups}")
        super().__init__(
            "gn", num_channels, eps, affine=affine, device=device, dtype=dtype, bias=bias, act=act, groups=num_groups
        )
        self.num_groups = num_groups
        self.num_channels = num_channels

    @classmethod
    def for_channels(cls, norm: str, channels: int, **options: Any) -> Norm:
        return cls(options.pop("groups", norms.default_groups(channels)), channels, **options)

    @property
    def options(self) -> dict[str, Any]:
        """The norm's options: `num_groups`, as it is now."""
        return {"groups": operator.index(self.num_groups)}

    @options.setter
    def options(self, value: dict[str, Any]) -> None:
        self.num_groups = value["groups"]

    def _check_input(self, x: Tensor) -> None:
        if x.dim() < 2:
            checks.rank(self._title(), x, self.most_dimensions)
        channels = x.shape[1]
        if not (channels == self.num_features or self._is_resized(channels) or self.weight is self.bias is None):
            checks.channels(self._title(), x, self.num_features)
        if not x.is_floating_point():
            checks.floats(self._title(), x)
        groups = self.num_groups
        if groups < 1 or channels % groups or x.numel() == groups:
            checks.more_than_one_in_group(self._title(), x, groups)

    def _check_parameters(self, x: Tensor, held: dict[str, Tensor]) -> None:
        checks.vectors(self._title(), x, held)
        checks.dtypes(self._title(), x, held)


def takes_act(layer: nn.Module) -> TypeGuard[Norm]:
    """Whether a layer can be given an activation, and a residual before it: one of ours that applies none.

    Not of a subclass, which may do more than its base.
    """
    return isinstance(layer, Norm) and "takes_act" in vars(type(layer)) and layer.act is None


def make_norm(spec: str, channels: int, **options: Any) -> nn.Module:
    """A norm layer for this many channels, by name: "bn", "gn:groups=8", "torch-bn", "none", or a registered one.

    `options` are the norm's own (groups) and the layer's (eps, momentum, affine, ...); those written in `spec`
    after colons count the same. Every norm of the family has a learned weight and bias unless `affine=False`; they
    start at `initial_weight` and `initial_bias`, as in "bn:initial_weight=0.5", where these are given.
    Raises UsageError (a ValueError) for an unknown name or option, or channels that do not divide into the groups.
    """
    entry, given = norms.parse(spec)
    if norms.uncalibrated(spec) is not None:
        raise UsageError(
            f"norm {spec!r}: a layer by itself has nothing to be calibrated to; it is for networks that are compared, "
            "or normlab.convert(model, to=..., calibrate=images)"
        )
    options = {**given, **options}
    starts = {name: f"initial_{name}" for name in norms.AFFINE if f"initial_{name}" not in entry.options}
    initial = {name: options.pop(option) for name, option in starts.items() if option in options}
    make: Callable[..., Any] = _class_of(entry) if entry.module is None else factory(entry.module)
    if type(channels) is bool or not hasattr(channels, "__index__") or channels < 0:
        raise UsageError(f"norm {spec!r}: channels={channels!r}; expected a whole number")
    try:
        _check_options(make, entry, options)
        made: nn.Module = (
            _class_of(entry).for_channels(entry.name, channels, **options)
            if entry.module is None
            else make(channels, **options)
        )
        _start_at(made, initial)
        return made
    except (TypeError, ValueError) as error:
        raise UsageError(f"norm {spec!r}: {error}") from None


def _check_options(make: Callable[..., Any], entry: norms.NormEntry, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the layer does not take, or for words where it takes a number."""
    taken = signature(make).parameters
    named = {name: p.default for name, p in taken.items() if p.default is not p.empty} | dict(entry.options)
    named |= {f"initial_{name}": 1.0 for name in norms.AFFINE}
    for name, value in options.items():
        if name not in named and name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise ValueError(f"it has no option {name!r}; its options: {', '.join(sorted(named))}")
        usual = named.get(name)
        if isinstance(value, str) and (isinstance(usual, bool | int | float) or name == "groups"):
            raise ValueError(f"{name}={value!r}; expected {'true or false' if isinstance(usual, bool) else 'a number'}")


def _start_at(layer: nn.Module, initial: Mapping[str, float]) -> None:
    """Set a new layer's weight and bias to these values. Raises ValueError for one that it does not have."""
    for name, value in initial.items():
        held = getattr(layer, name, None)
        if not isinstance(held, Tensor):
            raise ValueError(f"initial_{name}={value!r}, but there is no {name} to start there; leave it out")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"initial_{name}={value!r}; expected a finite number")
        nn.init.constant_(held, value)
    if initial and isinstance(layer, Norm):
        layer.initial = dict(initial)


def _class_of(entry: norms.NormEntry) -> type[Norm]:
    """The class that wears a norm: the one that its entry names, or a general one."""
    if entry.layer is not None:
        return cast(type[Norm], factory(entry.layer))
    return RunningNorm if entry.running else Norm


def no_norm(channels: int) -> nn.Module:
    """The layer "none"; `torch.nn.Identity` by itself would take any option and drop it."""
    return nn.Identity()


def factory(module: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function, or the one of this name: \"package.module:name\"."""
    if not isinstance(module, str):
        return module
    package, _, name = module.partition(":")
    found: Callable[..., Any] = getattr(import_module(package), name)
    return found


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


def constrain(model: nn.Module) -> None:
    """Clamp every bounded norm parameter into its bounds.

    The step of a torch optimizer does so by itself, for the parameters that it holds; this is for those that somebody
    changes in another way.
    """
    for module in model.modules():
        if isinstance(module, Norm):
            bounds.clamp(module)


def _not_readable(layer: Any) -> str | None:
    """Why a layer's weight, bias and statistics do not say all that it computes, or None."""
    if not isinstance(layer, Norm):
        return None
    if layer.act is not None:
        return f"{layer._title()}: a layer of torch's in its place would leave out act={str(layer.act)!r}"
    if isinstance(layer, RunningNorm) and not isinstance(layer, BatchNorm):
        return f"{layer._title()}: a batch norm in its place would compute something else"
    return None


guards.install(_not_readable)
