"""From a TARGET as a user writes it to a `Subject`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
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
        pair = _static_pair(thing)
        if pair is not None:
            return subject_of(pair, name, None, kind, options)
        if not hasattr(thing, "forward") and "__call__" not in vars(thing):
            raise UsageError(
                f"{name} is a class without forward and backward; expected a torch Module, a Keras or Flax layer, "
                "or functions"
            )
        from normlab.check.subjects.objects import ObjectSubject

        return ObjectSubject(name, thing, options)
    if not callable(thing):
        raise UsageError(f"{name} is a {type(thing).__name__}; expected a layer class, a layer or a function")
    if backward is None and _builds_module(thing):
        return _built(name, thing, options)
    from normlab.check.subjects.functions import FunctionSubject

    return FunctionSubject(name, thing, backward, options, kind)


def _static_pair(cls: type) -> tuple[Any, Any] | None:
    """forward and backward of a class that is only a namespace for them."""
    methods = [inspect.getattr_static(cls, name, None) for name in ("forward", "backward")]
    if not all(isinstance(m, staticmethod) for m in methods):
        return None
    return cls.forward, cls.backward  # type: ignore[attr-defined]


def _built(name: str, factory: Any, options: Options) -> Subject:
    """The subject of what a factory builds: a Module, or any other kind of layer."""
    from normlab.check.subjects.base import call_by_roles
    from normlab.check.subjects.torch_module import TorchSubject

    made, _ = call_by_roles(factory, options)
    family = {base.__module__.split(".")[0] for base in _bases(made)}
    if "torch" in family:
        return TorchSubject.from_callable(name, factory, options)
    if family & {"keras", "flax"} or isinstance(made, tuple):
        return subject_of(made, name, None, None, options)
    if inspect.isfunction(made):
        return subject_of(made, name, None, None, options)
    if isinstance(made, type):
        return subject_of(made, name, None, None, options)
    if not (hasattr(made, "forward") or callable(made)):
        raise TargetFailure(f"built a {type(made).__name__}; expected a torch.nn.Module or another layer")
    from normlab.check.subjects.objects import ObjectSubject

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
