"""`normlab scratch`: the NumPy engine in the place of a teaching assignment's package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def scratch() -> None:
    """The network from nothing but NumPy, for the notebooks of a course."""


@app.command("install-as")
def install_as(
    name: Annotated[str, typer.Argument(help="The package that the notebooks import, such as cs231n.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the notebooks.")],
) -> None:
    """Write a package NAME into DIR whose modules are those of normlab.scratch.course.

    Example: normlab scratch install-as cs231n assignment2/
    """
    from normlab.scratch.course.install import install_as as install

    package = install(name, folder)
    typer.echo(f"wrote {package}: notebooks in {folder} now import {name} from normlab.scratch.course")
