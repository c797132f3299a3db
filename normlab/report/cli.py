"""`normlab report`: write the report of a study, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    directory: Annotated[Path, typer.Argument(help="The --out directory of `normlab compare`.")],
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write the report of a comparison from its records; nothing is trained."""
    from normlab.report import verdict, write

    target = write(directory)
    typer.echo(verdict(directory))
    typer.echo(f"report: {target}")
    if open_:
        typer.launch(target.resolve().as_uri())
