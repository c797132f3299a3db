"""Pretrained weights from a file into a network whose norms, and whose number of classes, may be others.

Loading executes nothing. Every tensor must find its place, with three exceptions: a classifier of another size starts
afresh, a first convolution for colour images is summed up for gray ones, and norms of another kind take what they have
names for.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normlab.errors import UsageError, require
from normlab.layers.swap import norms_in

_WRAPPED = ("state_dict", "model_state_dict", "model")  # where a checkpoint of a training keeps its weights
_PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SHOWN = 4


def head_of(model: nn.Module, num_classes: int) -> str | None:
    """The name of the classifier: of the last linear layer or convolution with one output for each class."""
    named = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == num_classes
    ]
    return named[-1] if named else None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt or .pth file of plain tensors.

    Raises UsageError for a file that is not there, of another kind, damaged, or with objects besides tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--weights {path}: there is no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            require(f"--weights {path}", "study", "safetensors")
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt"):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
            found = next((found[key] for key in _WRAPPED if isinstance(found, Mapping) and key in found), found)
            if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
                return {str(name): value for name, value in found.items()}
            raise UsageError(f"--weights {path}: it holds {type(found).__name__}; expected a state_dict of tensors")
    except UsageError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(
            f"--weights {path}: it holds objects besides tensors, which are never loaded; "
            "save model.state_dict(), or a .safetensors file"
        ) from None
    except Exception as error:  # safetensors has errors of its own, and torch raises almost anything
        raise UsageError(f"--weights {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    raise UsageError(f"--weights {path}: expected a name that ends in .safetensors, .pt or .pth")


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], num_classes: int, say: Callable[[str], None], label: str
) -> None:
    """Copy the weights into the model; `say` is called with a sentence for everything that is not as in the file.

    Raises UsageError that names the tensors without a place, the places without a tensor, and the shapes that differ.
    """
    own = model.state_dict()
    found = _strip_prefix(weights, own)
    head = head_of(model, num_classes)
    norms = {name for name, _ in norms_in(model)}
    bare = {name for name, module in model.named_modules() if isinstance(module, nn.Identity)}
    taken: dict[str, Tensor] = {}
    differ: list[str] = []
    fresh = False
    for name, tensor in found.items():
        place = own.get(name)
        if place is None:
            continue
        if place.shape == tensor.shape:
            taken[name] = tensor
        elif _module(name) == head and place.shape[1:] == tensor.shape[1:]:
            fresh = True
            if name.endswith("weight"):
                say(f"{head} starts afresh: {label} has {len(tensor)} classes, the data {num_classes}")
        elif tensor.dim() == 4 and (place.shape[1], tensor.shape[1]) == (1, 3) and place.shape[0] == len(tensor):
            taken[name] = tensor.sum(1, keepdim=True)
            say(f"{name} is summed over its colours: the images are gray")
        elif _module(name) in norms:
            say(f"{name} starts afresh: {label} has {tuple(tensor.shape)}, the model {tuple(place.shape)}")
        else:
            differ.append(f"{name} is {tuple(tensor.shape)} there and {tuple(place.shape)} in the model")
    lacking = [name for name in own if name not in found]
    if head is not None and all(name not in found for name in own if _module(name) == head):
        fresh = True
        say(f"{head} starts afresh: {label} has none")
    of_norms = [name for name in lacking if _module(name) in norms]
    if of_norms:
        say(f"{len(of_norms)} tensors of norms start afresh: {label} has none, as of {of_norms[0]}")
    biases = [
        name
        for name in lacking
        if name not in of_norms and name.endswith("bias") and not (fresh and _module(name) == head)
    ]
    if biases:
        say(f"{len(biases)} biases start afresh: {label} has none, as of {biases[0]}")
    missing = [
        name
        for name in lacking
        if name not in of_norms and not (fresh and _module(name) == head) and not name.endswith("bias")
    ]
    left = [
        name
        for name in found
        if name not in own and _module(name) not in norms | bare and name.rpartition(".")[2] not in _STATISTICS
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (("of other shapes", differ), ("missing in the file", missing), ("unknown to it", left))
        if names
    ]
    if faults:
        raise UsageError(
            f"{label} does not fit the model ({len(taken)} of its {len(own)} tensors found): {'; '.join(faults)}; "
            "give the file of this network, or the model of this file"
        )
    model.load_state_dict(taken, strict=False)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _strip_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of the model: what wraps a network puts its own name in front."""
    ways = [{name.removeprefix(prefix): tensor for name, tensor in weights.items()} for prefix in ("", *_PREFIXES)]
    return max(ways, key=lambda way: len(way.keys() & own.keys()))
