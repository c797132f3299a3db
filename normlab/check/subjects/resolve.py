"""From a TARGET as a user writes it to a `Subject`."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from normlab.check.relatives import base_of
from normlab.check.subjects.base import Options, Subject, TargetFailure, kind_from_name
from normlab.errors import UsageError, targets


def load(target: str) -> tuple[Any, Any, str]:
    """The object that TARGET names, its backward partner or None, and its name.

    TARGET is `package.module:Name`, `file.py:Name`, `file.py:forward,backward` or `onnx:Operator`. Raises UsageError
    where it names nothing, or where the file raises while it is imported.
    """
    where, names = targets.split(target)
    label = f"TARGET {target!r}"
    if not where or not names:
        raise UsageError(f"{label}: expected {targets.FORMS}, with a colon between the two")
    if where == "onnx":
        from normlab.check.subjects.onnx_reference import operator

        return operator(names), None, names
    module = targets.load_module(where, label)
    forward, _, backward = (name.strip() for name in names.partition(","))
    found = targets.find(module, forward, label)
    partner = targets.find(module, backward, label) if backward else None
    if partner is None and "forward" in forward:
        partner = getattr(module, forward.replace("forward", "backward"), None)
    return found, partner, forward


def subject_of(
    thing: Any, name: str | None = None, backward: Any = None, kind: str | None = None, options: Options | None = None
) -> Subject:
    """The adapter that fits an object: Module class or instance, factory, function, pair, Keras or Flax layer."""
    if isinstance(thing, Subject):
        return thing
    options = options or Options()
    if isinstance(thing, tuple) and len(thing) == 2 and all(callable(t) for t in thing):
        thing, backward = thing
    name = str(name or getattr(thing, "__name__", type(thing).__name__))
    kind = base_of(kind) or kind_from_name(name)
    family = {base.__module__.split(".")[0] for base in _bases(thing)}
    if "keras" in family:
        from normlab.check.subjects.keras_layer import KerasSubject

        return KerasSubject(name, thing, options)
    if "flax" in family:
        from normlab.check.subjects.flax_module import FlaxSubject

        return FlaxSubject(name, thing, options)
    if "torch" in family:
        from normlab.check.subjects.torch_module import TorchSubject, as_function, is_operation

        if is_operation(thing):
            return subject_of(as_function(thing), name, None, kind, options)
        made: Subject = (TorchSubject.from_callable if isinstance(thing, type) else TorchSubject.from_instance)(
            name, thing, options
        )
        return made
    if isinstance(thing, type):
        pair = _static_pair(thing)
        if pair is not None:
            return subject_of(pair, name, None, kind, options)
        from normlab.check.subjects.objects import FORWARDS, ObjectSubject, method

        if method(thing, FORWARDS) is None and "__call__" not in vars(thing):
            raise UsageError(
                f"{name} is a class without forward and backward; expected a torch Module, a Keras or Flax layer, "
                "or functions"
            )
        return ObjectSubject(name, thing, options)
    if _is_layer_object(thing):
        from normlab.check.subjects.objects import ObjectSubject

        return ObjectSubject(name, lambda: copy.deepcopy(thing), options)
    if not callable(thing):
        raise UsageError(f"{name} is a {type(thing).__name__}; expected a layer class, a layer or a function")
    if backward is None and _builds_module(thing):
        return _built(name, thing, options)
    from normlab.check.subjects.functions import FunctionSubject

    return FunctionSubject(name, thing, backward, options, kind)


def _is_layer_object(thing: Any) -> bool:
    """Whether a thing is a layer that was built already, not a function."""
    from normlab.check.subjects.objects import BACKWARDS, FORWARDS, method

    return not inspect.isroutine(thing) and method(thing, (*FORWARDS, *BACKWARDS)) is not None


def _static_pair(cls: type) -> tuple[Any, Any] | None:
    """forward and backward of a class that is only a namespace for them."""
    methods = [inspect.getattr_static(cls, name, None) for name in ("forward", "backward")]
    if not all(isinstance(m, staticmethod) for m in methods):
        return None
    return cls.forward, cls.backward  # type: ignore[attr-defined]


def _built(name: str, factory: Any, options: Options) -> Subject:
    """The subject of what a factory builds: a Module, or any other kind of layer."""
    from normlab.check.subjects.base import call_by_roles

    made, _ = call_by_roles(factory, options)
    family = {base.__module__.split(".")[0] for base in _bases(made)}
    if "torch" in family:
        from normlab.check.subjects.torch_module import TorchSubject

        return TorchSubject.from_callable(name, factory, options)
    if family & {"keras", "flax"} or isinstance(made, tuple):
        return subject_of(made, name, None, None, options)
    if inspect.isfunction(made):
        return subject_of(made, name, None, None, options)
    if isinstance(made, type):
        return subject_of(made, name, None, None, options)
    from normlab.check.subjects.objects import FORWARDS, ObjectSubject, method

    if method(made, FORWARDS) is None and not callable(made):
        raise TargetFailure(f"built a {type(made).__name__}; expected a torch.nn.Module or another layer")

    return ObjectSubject(name, factory, options)


def _bases(thing: Any) -> tuple[type, ...]:
    return thing.__mro__ if isinstance(thing, type) else type(thing).__mro__


def _builds_module(function: Any) -> bool:
    """Whether a function builds a layer, by its annotation or its arguments: a builder takes no input."""
    from normlab.check.subjects.base import role_of

    signature = inspect.signature(function)
    if "Module" in str(signature.return_annotation):
        return True
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    names = list(signature.parameters)
    first = role_of(names[0]) if names else None
    return len(names) == 0 or (first in ("channels", "groups") and len(required) <= 2)
