"""From a TARGET as a user writes it to a `Subject`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from normlab.check.subjects.base import Options, Subject, TargetFailure, guarded, kind_from_name
from normlab.errors import UsageError


def load(target: str) -> tuple[Any, Any, str]:
    """The object that TARGET names, its backward partner or None, and its name.

    TARGET is `package.module:Name`, `file.py:Name`, `file.py:forward,backward` or `onnx:Operator`.
    """
    where, colon, names = target.partition(":") if not _drive(target) else target.rpartition(":")
    if not colon or not names or not where:
        raise UsageError(f"TARGET {target!r}: expected package.module:Class or file.py:function (a colon and a name)")
    if where == "onnx":
        from normlab.check.subjects.onnx_reference import operator

        return operator(names), None, names
    module = _import_file(Path(where), target) if where.endswith(".py") else _import_module(where, target)
    forward, _, backward = names.partition(",")
    found = _attribute(module, forward.strip(), target)
    partner = _attribute(module, backward.strip(), target) if backward else None
    if partner is None and "forward" in forward:
        partner = getattr(module, forward.replace("forward", "backward"), None)
    return found, partner, forward.strip()


def _drive(target: str) -> bool:
    return len(target) > 2 and target[1] == ":" and target[2] in "\\/"


def _import_file(path: Path, target: str) -> Any:
    if not path.is_file():
        raise UsageError(f"TARGET {target!r}: there is no file {path}")
    name = f"_normlab_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    guarded(spec.loader.exec_module, module)
    return module


def _import_module(name: str, target: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return guarded(importlib.import_module, name)
    except TargetFailure as e:
        missing = e.original
        if isinstance(missing, ModuleNotFoundError) and missing.name and name.startswith(missing.name):
            raise UsageError(f"TARGET {target!r}: there is no module {missing.name}") from e
        raise


def _attribute(module: Any, name: str, target: str) -> Any:
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = ", ".join(n for n in dir(module) if not n.startswith("_"))[:200]
            raise UsageError(f"TARGET {target!r}: {module.__name__} has no {part!r}; it has {known}")
        value = getattr(value, part)
    return value


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
    kind = kind or kind_from_name(name)
    family = {base.__module__.split(".")[0] for base in _bases(thing)}
    if "keras" in family:
        from normlab.check.subjects.keras_layer import KerasSubject

        return KerasSubject(name, thing, options)
    if "flax" in family:
        from normlab.check.subjects.flax_module import FlaxSubject

        return FlaxSubject(name, thing, options)
    if "torch" in family:
        from normlab.check.subjects.torch_module import TorchSubject

        made: Subject = (TorchSubject.from_callable if isinstance(thing, type) else TorchSubject.from_instance)(
            name, thing, options
        )
        return made
    if isinstance(thing, type):
        if not (hasattr(thing, "forward") and hasattr(thing, "backward")):
            raise UsageError(
                f"{name} is a class without forward and backward; expected a torch Module, a Keras or Flax layer, "
                "or functions"
            )
        from normlab.check.subjects.objects import ObjectSubject

        return ObjectSubject(name, thing, options)
    if not callable(thing):
        raise UsageError(f"{name} is a {type(thing).__name__}; expected a layer class, a layer or a function")
    from normlab.check.subjects.functions import FunctionSubject

    if backward is None and _builds_module(thing):
        from normlab.check.subjects.torch_module import TorchSubject

        return TorchSubject.from_callable(name, thing, options)
    return FunctionSubject(name, thing, backward, options, kind)


def _bases(thing: Any) -> tuple[type, ...]:
    return thing.__mro__ if isinstance(thing, type) else type(thing).__mro__


def _builds_module(function: Any) -> bool:
    """Whether a function builds a layer, by its annotation or its arguments: a builder takes no input."""
    import inspect

    from normlab.check.subjects.base import role_of

    signature = inspect.signature(function)
    if "Module" in str(signature.return_annotation):
        return True
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    names = list(signature.parameters)
    first = role_of(names[0]) if names else None
    return len(names) == 0 or (first in ("channels", "groups") and len(required) <= 2)
