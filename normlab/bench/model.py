"""The normalizations of a user's model: their shapes, and what follows them, watched in one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from normlab.bench.sides import arrange, arrange_model
from normlab.bench.work import ACTIVATIONS, NORMS, Work
from normlab.errors import UsageError
from normlab.layers._torch import BatchNormBase, InstanceNormBase
from normlab.layers.norms import ChannelNorm, Norm
from normlab.models.names import own_factory
from normlab.models.residual import NormConstructor, build_model

_ADDITIONS = ("add", "add_", "__add__", "__iadd__", "__radd__")


def load(spec: str, shape: tuple[int, ...], norm: str | NormConstructor = "bn") -> nn.Module:
    """The model that "package.module:factory" or "file.py:factory" makes, or a built-in one ("resnet14").

    The factory is called with nothing, or, if it needs arguments, as `normlab compare` calls it: with a norm
    constructor (of `norm`), the number of classes and of channels. Raises UsageError for anything that is not a model.
    """
    factory = own_factory(spec)
    try:
        if factory is None or _takes_norm(factory):
            if len(shape) != 4:
                raise UsageError(f"--model {spec!r} takes images; expected an --input of four sizes, got {shape}")
            channels = shape[1]
            return build_model(spec, norm, num_classes=10, in_channels=channels, image_size=(shape[-2], shape[-1]))
        model = factory()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--model {spec!r}: the factory raised {_message(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {spec!r}: the factory returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def works_of(
    model: nn.Module, shape: tuple[int, ...], layout: str, dtype: str, device: str, name: str = "the model"
) -> tuple[list[Work], dict[str, int]]:
    """What the model's normalizations do in one training step, and how many there are of kinds that are not timed.

    The model runs forward once, in training mode, on random values of this shape; an addition and an activation that
    follow a normalization count as part of it. Raises UsageError if the model does not take such an input.
    """
    precision = getattr(torch, dtype)
    model = model.to(device, precision).train()
    x = arrange(torch.randn(shape).to(device, precision), layout)
    model = arrange_model(model, len(shape), layout)
    watch = _NormRecorder()
    hooks = [module.register_forward_hook(watch.record, with_kwargs=True) for module in model.modules()]
    try:
        with watch, torch.no_grad():
            model(x)
    except Exception as error:
        raise UsageError(f"--model {name!r} does not take an --input of {shape}: {_message(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    counts = Counter(replace(work, dtype=dtype) for work in watch.works)
    return [replace(work, count=count) for work, count in counts.items()], dict(watch.others)


class _NormRecorder(TorchFunctionMode):
    """Notes every normalization, and whether its output is added to something or goes into an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work] = []
        self.others: Counter[str] = Counter()
        self._answers: Any = WeakTensorKeyDictionary()  # tensor -> index of the normalization that made it

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Any) -> None:
        """The forward hook of every module."""
        norm = _norm_of(module, args[0]) if args and isinstance(args[0], Tensor) else None
        if norm is None:
            if _looks_like_a_norm(module):
                self.others[type(module).__name__] += 1
            return
        residual = kwargs.get("residual", args[1] if len(args) > 1 else None) is not None
        act = module.act.name if isinstance(module, Norm) and module.act else None
        self.works.append(Work(norm, tuple(args[0].shape), _layout(args[0]), residual, act))
        self._answers[y] = len(self.works) - 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = [self._answers[a] for a in args[:2] if isinstance(a, Tensor) and a in self._answers]
        answer = func(*args, **kwargs)
        if not sources:
            return answer
        index, name = sources[0], getattr(func, "__name__", "")
        work = self.works[index]
        if name in _ADDITIONS and len(args) > 1 and isinstance(args[1], Tensor) and args[1].shape == args[0].shape:
            if not work.residual and work.act is None:
                self.works[index] = replace(work, residual=True)
                self._answers[answer] = index
        elif name.rstrip("_") in ACTIVATIONS and work.act is None and kwargs.get("approximate", "none") == "none":
            self.works[index] = replace(work, act=name.rstrip("_"))
        return answer


def _norm_of(module: nn.Module, x: Tensor) -> str | None:
    """The name of a normalization that can be timed, or None."""
    channels = x.shape[1] if x.dim() > 1 else 0
    if isinstance(module, Norm) and module.norm in NORMS:
        groups = module.options.get("groups")
        return module.norm if groups is None else f"{module.norm}:groups={groups}"
    if isinstance(module, BatchNormBase):
        return "bn"
    if isinstance(module, InstanceNormBase):
        return "in" if x.dim() > 2 and channels == module.num_features else None
    if isinstance(module, nn.GroupNorm):
        return "ln" if module.num_groups == 1 else f"gn:groups={module.num_groups}"
    if isinstance(module, ChannelNorm):
        return "channelnorm"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        name = "rmsnorm" if isinstance(module, nn.RMSNorm) else "layernorm"
        return name if x.shape[-1:] == tuple(module.normalized_shape) else None
    return None


def _looks_like_a_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _layout(x: Tensor) -> str:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    is_last = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return "channels_last" if is_last else "channels_first"


def _takes_norm(factory: Callable[..., Any]) -> bool:
    """Whether the factory must be given something: then it is one for `normlab compare`."""
    return any(
        p.default is Parameter.empty and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        for p in signature(factory).parameters.values()
    )


def _message(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
