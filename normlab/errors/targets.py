"""Code of the user's own, by name: `package.module:name`, `file.py:name`, `./file.py:name`, `/a/path/file.py:name`.

Every command reads such names here. A file is imported under its own name, from its own folder or that of its package,
so that it may import what lies beside it and is not run twice; modules are looked for in the working directory too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from normlab.errors import NormlabError, UsageError

FORMS = "package.module:name or file.py:name"


def split(text: str) -> tuple[str, str]:
    """The module or file, and the name in it ("" where there is none), of a target as it is written."""
    place, colon, name = text.rpartition(":")
    if not colon or "/" in name or "\\" in name:  # C:\nets.py has a colon of its own
        return text, ""
    return place, name


def is_file(place: str) -> bool:
    """Whether the first part of a target names a file, not a module."""
    return place.endswith(".py") or "/" in place or "\\" in place


def load(text: str, what: str) -> Any:
    """The object that a target names; `what` is the option that it was given to, for messages.

    Raises UsageError for a target of another form, a file, module or name that is not there, and code that raises
    while it is imported.
    """
    place, name = split(text)
    if not place or not name:
        raise UsageError(f"{what} {text!r}: expected {FORMS}, with a colon between the two")
    return find(load_module(place, f"{what} {text!r}"), name, f"{what} {text!r}")


def find(module: ModuleType, name: str, label: str) -> Any:
    """The object of this name, perhaps a dotted one, in a module; raises UsageError with the names that are there."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = ", ".join(n for n in dir(module) if not n.startswith("_"))[:200]
            raise UsageError(f"{label}: {module.__name__} has no {part!r}; it has {known or 'no names at all'}")
        value = getattr(value, part)
    return value


def load_module(place: str, label: str) -> ModuleType:
    """Import a module by name or by file, once in a process; raises UsageError, whose message begins with `label`."""
    if is_file(place):
        return _from_file(place, label)
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"{label}: {place!r} is neither the name of a module nor that of a file; expected {FORMS}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    return _import(place, place, label)


def _from_file(place: str, label: str) -> ModuleType:
    path = Path(place).expanduser()
    if path.suffix != ".py":
        raise UsageError(f"{label}: {place!r} is not a Python file; expected {FORMS}")
    if not path.is_file():
        raise UsageError(f"{label}: there is no file {place} in {Path.cwd()}")
    path = path.resolve()
    root, own_name = _package(path)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    with _catch_errors(place, label):
        at_home = _is_at(own_name, path)
    if at_home:
        return _import(own_name, place, label)
    # the name belongs to another module, or is no name at all
    name = f"_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _catch_errors(place, label):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package(path: Path) -> tuple[Path, str]:
    """The folder to import a file from, and its name from there: packages are the folders with an `__init__.py`."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        root, name = root.parent, f"{root.name}.{name}"
    return root, name


def _is_at(name: str, path: Path) -> bool:
    """Whether importing this name imports this file."""
    if not name.rpartition(".")[2].isidentifier():
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ModuleNotFoundError):  # a module without a spec, as __main__; another package of this name
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _import(name: str, place: str, label: str) -> ModuleType:
    with _catch_errors(place, label):
        return importlib.import_module(name)


def notice_exits() -> Callable[[], None]:
    """Make `os._exit` raise SystemExit in this process, not in those that it starts; returns what takes that back."""
    owner, leave = os.getpid(), os._exit

    def exit_noticed(status: int) -> NoReturn:
        if os.getpid() != owner:
            leave(status)
        raise SystemExit(status)

    def restore() -> None:
        os._exit = leave

    os._exit = exit_noticed
    return restore


def who_exited(error: SystemExit) -> str | None:
    """The file and line of the code that ended the process, of the user's or of a library; None where we did."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_of(f.filename, (_OURS, *_PARSERS))]
    outside = [f for f in frames if Path(f.filename).is_file() and not _is_of(f.filename, _PYTHON)]
    return f"{outside[-1].filename}, line {outside[-1].lineno}" if outside else None


@contextmanager
def one_process() -> Iterator[None]:
    """A process that the code within forks, and that comes back to do all that follows once more, ends here."""
    owner, leave = os.getpid(), os._exit
    try:
        yield
    finally:
        if os.getpid() != owner:
            leave(0)


@contextmanager
def _catch_errors(place: str, label: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that says where; an exit of the process is no success."""
    restore = notice_exits()
    try:
        with one_process():
            yield
    except (KeyboardInterrupt, NormlabError):
        raise
    except SystemExit as e:
        raise NormlabError(
            f"{label}: {place} ended the process while it was imported (exit status {e.code}); "
            'put what it runs behind `if __name__ == "__main__":`'
        ) from e
    except ModuleNotFoundError as e:
        if e.name and f"{place}.".startswith(f"{e.name}."):
            raise UsageError(
                f"{label}: there is no module {e.name!r}; is it installed, or a file in {Path.cwd()}?"
            ) from e
        raise UsageError(_format_error(place, label, e)) from e
    except BaseException as e:
        raise UsageError(_format_error(place, label, e)) from e
    finally:
        restore()


def _format_error(place: str, label: str, error: BaseException) -> str:
    """The user's exception, and the line of their code that raised it."""
    text = " ".join(str(error).split()) or "(no message)"
    where = ""
    if not isinstance(error, SyntaxError):  # whose message names the line
        own = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if _is_own(frame.filename)]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{label}: importing {place} raised {type(error).__name__}: {text}{where}"


def _is_own(file: str) -> bool:
    """Whether a file is the user's, not one of Python's, an installed package's, or of ours."""
    path = Path(file)
    return path.is_file() and "site-packages" not in path.parts and not _is_of(file, (_OURS, *_PYTHON))


def _is_of(file: str, folders: Iterable[Path]) -> bool:
    """Whether a file lies in one of these folders; of Python's, those of packages are no part."""
    return any(Path(file).is_relative_to(f) and "site-packages" not in Path(file).relative_to(f).parts for f in folders)


_OURS = Path(__file__).resolve().parents[1]
_PYTHON = (Path(os.__file__).parent,)
# what reads the command line, and ends the process when it has
_PARSERS = tuple(
    Path(s.origin).parent for name in ("typer", "click") if (s := importlib.util.find_spec(name)) and s.origin
)
