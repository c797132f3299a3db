"""`normlab report`: write the report of a study, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normlab.errors import UsageError


def report(
    directory: Annotated[Path, typer.Argument(help="The --out directory of `normlab compare`.")],
    format: Annotated[str, typer.Option(help="html, md (verdict and tables) or svg (charts, for print).")] = "html",
    against: Annotated[
        Path | None, typer.Option(help="Another study's directory, to show both side by side.", show_default=False)
    ] = None,
    matters: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Percentage points of accuracy below which norms are the same.",
            show_default="as the study",
        ),
    ] = None,
    study: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of several in DIRECTORY, by its number in `normlab status`.", show_default="the last begun"
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open what was written.")] = False,
) -> None:
    """Write the report of a comparison from its records; nothing is trained."""
    from normlab.report import verdict, write, write_side_by_side

    if against is not None:
        if format != "html" or matters is not None:
            given = "--format" if format != "html" else "--matters"
            raise UsageError(f"--against writes one page of two studies' intervals; leave out {given}")
        target = write_side_by_side(directory, against, number=study)
    else:
        share = None if matters is None else matters / 100
        target = write(directory, format, matters=share, number=study)
        typer.echo(verdict(directory, matters=share, number=study))
    typer.echo(f"report: {target}")
    if open_:
        typer.launch(str(target.resolve()))
