"""Norms of the user's own: the modules that `--plugin` names, imported before anything is looked up."""

from __future__ import annotations

from normlab.errors import UsageError, targets
from normlab.norms.family import is_registered, register_norm


def load_plugin(text: str) -> None:
    """Import a plug-in: `package.module` or `file.py`, whose norms register themselves, or one of these and `:name`.

    A grid function or layer class that is named, and not registered yet, becomes the norm of that name. Raises
    UsageError where there is no such file, module or name, or no norm can be made of it.
    """
    place, name = targets.split(text)
    label = f"--plugin {text!r}"
    module = targets.load_module(place, label)
    if not name:
        return
    norm = targets.find(module, name, label)
    if not callable(norm):
        raise UsageError(f"{label}: this is a {type(norm).__name__}; expected a grid function or a layer class")
    if not is_registered(norm):
        try:
            register_norm(name.rpartition(".")[2])(norm)
        except ValueError as e:
            raise UsageError(f"{label}: {e}") from e
