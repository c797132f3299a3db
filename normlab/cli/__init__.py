"""The command line: names of sub-commands, and what exit codes mean.

A sub-command has a module here, or beside the code it runs, which is imported when it is called, so that
`normlab --help` costs nothing. Adding one takes a row of the table; rows whose module is not installed are not shown.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from normlab.errors import EXTRAS, NormlabError, require, targets

# sub-command -> (where it lives, what it does, extras that it cannot do without ...)
COMMANDS: dict[str, tuple[str, ...]] = {
    "compare": ("normlab.cli.study:compare", "Train a network with each norm and say which one to use.", "study"),
    "plan": ("normlab.cli.study:plan", "Show the cells of a comparison, what is done, how long it takes.", "study"),
    "status": ("normlab.cli.study:status", "Show how far a comparison is.", "study"),
    "export": ("normlab.cli.study:export", "Write a comparison's records as CSV, JSON or Parquet.", "study"),
    "report": ("normlab.cli.report:report", "Write the report of a comparison.", "study", "report"),
    "best": ("normlab.cli.networks:best", "Write the network that a comparison recommends to a file.", "study"),
    "predict": ("normlab.cli.networks:predict", "Name the class of images with a trained network.", "study"),
    "explain": ("normlab.cli.explain:explain", "Show what trained networks look at.", "study", "report"),
    "serve": (
        "normlab.report.serve:serve",
        "Watch a comparison in the browser while it runs.",
        "study",
        "report",
        "serve",
    ),
    "reproduce": (
        "normlab.cli.reproduce:main",
        "Re-run a published experiment and say whether it holds.",
        "study",
        "report",
    ),
    "norms": ("normlab.cli.norms:norms", "List the norms, with their formulas."),
    "check": ("normlab.cli.check:app", "Find the bug in a normalization layer."),
    "lint": ("normlab.cli.check:lint", "Find what goes wrong with normalization in a model."),
    "bench": ("normlab.cli.bench:bench", "Time the layers beside the stock ones."),
    "build": ("normlab.cli.build:build", "Compile the C++ part of the layers: small tensors cost less."),
    "scratch": ("normlab.cli.scratch:app", "Run a course's notebooks on the NumPy engine."),
}

EXIT_CODES = """Exit codes: 0 all done; 1 some cells failed; 2 wrong usage; 3 internal error; 4 the study is busy,
or was written by a newer version; 5 nothing selected; 6 data or disk; 130 interrupted."""


_WRONG_NAME = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what nothing can be called or is
_LONGEST_MESSAGE, _LONGEST_NAME = 10_000, 300  # characters


class LazyGroup(TyperGroup):
    """A group whose sub-commands are imported when they run; listing them imports nothing."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, (home, *_) in COMMANDS.items() if _is_importable(home.partition(":")[0])]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name][1], callback=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name and command else None, rest


def _is_importable(module: str) -> bool:
    # not find_spec: that would import the packages on the way
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _load(name: str) -> Any:
    home, description, *extras = COMMANDS[name]
    module, _, attribute = home.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
        target.command(name, help=function.__doc__ or description)(function)
    command = typer.main.get_command(target)
    command.name = name
    command.callback = _with_extras(f"normlab {name}", extras, command.callback)
    return command


def _with_extras(what: str, extras: Sequence[str], call: Any) -> Any:
    def checked(**values: Any) -> Any:
        for extra in extras:
            require(what, extra)
        return call(**values)

    return checked


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """normlab tells you which normalization layer your network should use, on your data, with error bars."""
    if version:
        from normlab import __version__

        typer.echo(f"normlab {__version__}")
        raise typer.Exit


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line on `args` (default: those of the process) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):  # whatever the locale, and whatever bytes a file's name has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    owner, restore = os.getpid(), targets.notice_exits()
    try:
        app(args, prog_name="normlab")
    except NormlabError as e:
        _fail(str(e), e.exit_code)
    except SystemExit as e:
        if os.getpid() == owner and (where := targets.who_exited(e)) is not None:
            _fail(f"code of your own or of a library ended the process (exit status {e.code}): {where}", 3)
        raise
    except OSError as e:
        if e.filename is None:
            _bug()
        _fail(f"{_spelled(e.filename)}: {e.strerror or e}", 2 if e.errno in _WRONG_NAME else 6)
    except ModuleNotFoundError as e:
        extra = next((extra for extra, modules in EXTRAS.items() if str(e.name).partition(".")[0] in modules), None)
        if extra is None:
            _bug()
        _fail(f"this needs {e.name}: pip install 'normlab[{extra}]'", 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException:  # of a network or norm of the user's own, anything
        _bug()
    finally:
        restore()
    sys.exit(0)


def _fail(text: str, code: int) -> NoReturn:
    """Print a message, one that quotes a very long input cut short, and exit."""
    from normlab.study.plain import escaped

    if (over := len(text) - _LONGEST_MESSAGE) > 0:
        text = f"{text[:_LONGEST_MESSAGE]} ... and {over:,} more characters"
    print(f"error: {escaped(text)}", file=sys.stderr)
    sys.exit(code)


def _spelled(name: object) -> str:
    """The name of a file as a message has it: a very long one cut short."""
    text = repr(os.fsdecode(name) if isinstance(name, bytes) else str(name))
    return text if len(text) <= _LONGEST_NAME else f"{text[:40]}...{text[-40:]}"


def _bug() -> NoReturn:
    import traceback

    traceback.print_exc()
    print("error: this is a bug in normlab, or in a model or norm of your own (see above)", file=sys.stderr)
    sys.exit(3)
