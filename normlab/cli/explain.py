"""`normlab explain`: what the trained networks of a study look at, added to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normlab.cli.plugins import Plugins, load_plugins
from normlab.errors import files


def explain(
    directory: Annotated[Path, typer.Argument(help="The --out directory of `normlab compare`.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class to show; repeat it for several.", show_default="those mistaken most"),
    ] = None,
    correct: Annotated[int, typer.Option(min=0, help="Images of each class that most norms get right.")] = 2,
    incorrect: Annotated[int, typer.Option(min=0, help="Images of each class that most norms get wrong.")] = 2,
    images: Annotated[int, typer.Option(min=10, help="Test images to ask about.")] = 2000,
    study: Annotated[
        int | None,
        typer.Option(min=1, help="Of several, by its number in `normlab status`.", show_default="the last begun"),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Show what trained networks look at and mistake: Grad-CAM, agreement, confusions, kinds of batch statistics."""
    from normlab.explain.questions import Questions
    from normlab.explain.questions import explain as ask
    from normlab.report import write
    from normlab.report.records import EXPLAINED

    load_plugins(plugins)
    found = ask(directory, Questions(classes or (), correct, incorrect, images), typer.echo, study)
    target = directory / EXPLAINED
    files.write_text(target, files.to_json(found))
    typer.echo(f"findings: {target}")
    typer.echo(f"report: {write(directory, number=study)}")
