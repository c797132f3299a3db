"""Where a layer object keeps its arrays: attributes, entries of containers, boxes of a value and its gradient.

A box is what many courses call a parameter: an object or a dictionary with the value beside its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES = ("value", "data", "val", "array", "param", "w")
GRADIENTS = ("grad", "gradient", "grads", "dvalue", "dval", "d", "dw")


@dataclass(frozen=True)
class Place:
    """An entry of an object, a dictionary or a list; `path` is its name in the layer."""

    path: str
    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return _entry(self.holder, self.key)

    def put(self, value: Any) -> None:
        """Have the place hold this value."""
        if isinstance(self.holder, tuple):  # in place, where it can be nowhere else
            self.value[...] = value
        elif isinstance(self.holder, (dict, list)):
            self.holder[self.key] = value
        else:
            setattr(self.holder, self.key, value)

    def fill(self, values: NDArray[Any]) -> None:
        """Set an array or a tensor to these values, in its own shape and precision."""
        old = self.value
        if is_tensor(old):
            import torch

            self.put(torch.from_numpy(np.array(values)).to(old.dtype).reshape(old.shape))
        elif old is None:
            self.put(np.array(values, dtype=np.float64).reshape(-1))
        else:
            self.put(np.array(values, dtype=np.asarray(old).dtype).reshape(np.shape(old)))


def places(layer: Any) -> Iterator[Place]:
    """Every place that holds an array, a tensor, or nothing yet."""
    for name, value in list(vars(layer).items()):
        if value is None or is_array(value):
            yield Place(name, layer, name)
        elif (key := _box_key(value)) is not None:
            yield Place(name, value, key)
        elif isinstance(value, (dict, list, tuple)) and "grad" not in name:
            if not isinstance(value, dict) and "param" not in name and "weight" not in name:
                continue  # of inputs, or of what the backward pass needs
            for key, held in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if is_array(held):
                    yield Place(f"{name}.{key}", value, key)
                elif (inner := _box_key(held)) is not None:
                    yield Place(f"{name}.{key}", held, inner)


def place(layer: Any, path: str) -> Place:
    """The place of this path; KeyError where there is none."""
    found = next((p for p in places(layer) if p.path == path), None)
    if found is None:
        raise KeyError(path)
    return found


def gradient(layer: Any, path: str) -> Any:
    """The gradient that a backward pass left for the parameter at a place, or None."""
    at = place(layer, path)
    if path.rpartition(".")[2] != str(at.key):  # a box
        return next((g for name in GRADIENTS if (g := _entry(at.holder, name)) is not None), None)
    spellings = spelled(path)
    for name in spellings:
        if getattr(layer, name, None) is not None:
            return getattr(layer, name)
    for name, container in vars(layer).items():
        if container is at.holder:
            container = {k: v for k, v in container.items() if k != at.key} if isinstance(container, dict) else None
        if isinstance(container, dict):
            for spelling in (*spellings, at.key):
                if container.get(spelling) is not None:
                    return container[spelling]
        if (
            isinstance(container, (list, tuple))
            and isinstance(at.key, int)
            and "grad" in name
            and at.key < len(container)
        ):
            return container[at.key]
    return None


def spelled(path: str) -> list[str]:
    """Names of the gradient of the parameter at a path."""
    key = path.rpartition(".")[2]
    return [f"d{key}", f"d_{key}", f"{key}_grad", f"grad_{key}", f"{key}_gradient"]


def _box_key(thing: Any) -> str | None:
    """Under which name a thing holds a value beside its gradient; None for what is no box."""
    if isinstance(thing, (list, tuple, str, bytes, int, float)):
        return None
    if not any(name in thing if isinstance(thing, dict) else hasattr(thing, name) for name in GRADIENTS):
        return None
    return next((name for name in VALUES if is_array(_entry(thing, name))), None)


def _entry(holder: Any, key: Any) -> Any:
    if isinstance(holder, (list, tuple)):
        return holder[key]
    return holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)


def is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "requires_grad_")


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)
