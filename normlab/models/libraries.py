"""Networks of libraries, with new weights: `timm:resnet18`, `torchvision:resnet18`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from normlab.errors import UsageError, require


def factory_of(library: str, name: str) -> Callable[..., Any]:
    """The factory of a library's network. Raises UsageError if there is none, or the library cannot be imported."""
    return LIBRARIES[library](name)


def _timm(name: str) -> Callable[..., Any]:
    timm = _import("timm", "timm", name)
    _check(name, "timm", timm.is_model(name), timm.list_models)

    def make(num_classes: int, in_chans: int, dropout: float = 0.0) -> Any:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans, drop_rate=dropout)

    return make


def _torchvision(name: str) -> Callable[..., Any]:
    models = _import("torchvision", "torchvision.models", name)
    _check(name, "torchvision", name in models.list_models(models), lambda: models.list_models(models))

    def make(num_classes: int, in_channels: int) -> Any:
        model = models.get_model(name, weights=None, num_classes=num_classes)
        return model if in_channels == 3 else _with_channels(model, in_channels)

    return make


LIBRARIES: dict[str, Callable[[str], Callable[..., Any]]] = {"timm": _timm, "torchvision": _torchvision}


def _import(library: str, module: str, name: str) -> Any:
    """A module of the library; one that is built for another torch may raise anything while it is imported."""
    label = f"model '{library}:{name}'"
    require(label, library)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{label}: importing {module} raised {type(error).__name__}: {text}; "
            "torchvision must be the build for the installed torch (see pytorch.org)"
        ) from error


def _check(name: str, library: str, known: bool, names: Callable[[], Sequence[str]]) -> None:
    if not known:
        near = ", ".join(difflib.get_close_matches(name, names(), 3))
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(f"model '{library}:{name}': {library} has no such network{hint}")


def _with_channels(model: Any, in_channels: int) -> Any:
    """The network with a first convolution for that many channels: torchvision's are made for three."""
    from torch import nn

    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    conv = nn.Conv2d(
        in_channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        first.dilation, bias=first.bias is not None, padding_mode=first.padding_mode,  # type: ignore[arg-type]
    )  # fmt: skip
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, conv)
    return model
