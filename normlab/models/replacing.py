"""The norm of a comparison in a network that was written with norms of its own.

A factory that takes a `norm` builds with it. In any other network, and in one that was handed over, every norm is
replaced. "keep" is for such networks alone: it leaves the norms as they are. "frozen" leaves them too, and those with
running statistics use them in training as well. "gn:calibrated" is a norm in the place of the network's own that
starts matched to them (`normlab.layers.convert`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers.convert import convert, replace_norms
from normlab.layers.freezing import freeze
from normlab.models.names import AS_IT_IS, FROZEN, norm_called
from normlab.norms.family import parse, resolve_options

_CLASSES = ("num_classes", "classes", "n_classes", "num_labels", "out_features")
_CHANNELS = ("in_channels", "in_chans", "channels", "input_channels")


def takes_norm(factory: Callable[..., Any]) -> bool:
    """Whether a factory is called as `factory(norm, num_classes, in_channels)`.

    It is if it has an argument `norm`, or takes three whose first is called otherwise than the number of classes or of
    channels are.
    """
    if isinstance(factory, nn.Module):
        return False
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        return False
    if any(p.name == "norm" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    first = positional[0] if len(positional) >= 3 else None
    return first is not None and first.default is first.empty and first.name not in (*_CLASSES, *_CHANNELS)


def build_and_replace(
    factory: Any,
    spec: str,
    norm: str,
    *,
    num_classes: int,
    in_channels: int,
    common: dict[str, Any],
    before: Callable[[nn.Module], None],
) -> nn.Module:
    """The network of a factory without a `norm`, or a copy of one that was handed over, with this norm in it.

    `before` is called with the network while it has its own norms.

    Raises UsageError if it makes no network, or one without a norm that could be replaced.
    """
    if isinstance(factory, nn.Module):
        model: Any = copy.deepcopy(factory)
    else:
        offered = {**dict.fromkeys(_CLASSES, num_classes), **dict.fromkeys(_CHANNELS, in_channels), **common}
        if not common["dropout"]:
            del offered["dropout"]
        model = factory(**_accepted_by_name(factory, offered))
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {spec!r} returned {type(model).__name__}; expected a torch.nn.Module")
    model.register_forward_hook(_logits_of)
    before(model)
    called = norm_called(norm)
    if called == FROZEN:
        entry, options = parse(norm)
        resolve_options(entry, 1, options)  # refuses those that there are not
        return freeze(model)
    if called != AS_IT_IS:
        replace_norms(model, norm)
    return model


def _logits_of(model: nn.Module, inputs: Any, output: Any) -> Any:
    """The `logits` of an output that has several parts, as those of transformers; any other output as it is."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def calibrated(model: nn.Module, norm: str, images: Tensor | None) -> nn.Module:
    """The network with this norm in the place of its own, matched to them on these images, in place.

    Without images nothing is matched, for callers that load the trained weights next.
    """
    return replace_norms(model, norm) if images is None else convert(model, norm, images)


def check_as_it_is(norm: str, spec: str) -> None:
    """Raise UsageError for "keep" where a network is built with the norm that it is given."""
    if norm == AS_IT_IS:
        raise UsageError(
            f"norm {norm!r} is for networks with norms of their own, and {spec} is built with the one it is given"
        )


def _accepted_by_name(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The offered arguments that the factory takes by name."""
    parameters = inspect.signature(factory).parameters
    taken = {name: value for name, value in offered.items() if name in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        taken |= {name: offered[name] for name in ("num_classes", "in_chans")}
    if "dropout" in offered and "dropout" not in taken:
        raise UsageError(f"the model takes no argument 'dropout', but a dropout of {offered['dropout']} was given")
    return taken
