"""The command line of `normlab reproduce`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from normlab.errors import UsageError
from normlab.reproduce import EXPERIMENTS


def main(
    name: Annotated[str | None, typer.Argument(help="Which experiment; --list names them.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments and exit.")] = False,
    summary: Annotated[
        Path | None, typer.Option(help="Count the findings of the pages in this folder, and name those left open.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run every experiment, each into OUT/NAME.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Images to train on, anything that `compare` reads; digits without it.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds (default: 3 quick, 8 or more small, 5 full).", min=1)
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="quick (seconds; decides nothing), small (minutes: smaller images and networks, more seeds) or full "
            "(as published)."
        ),
    ] = "quick",
    epochs: Annotated[
        int | None,
        typer.Option(help="With --scale small or full: epochs of a comparison, fewer than published.", min=1),
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option(help="With --scale small or full: training images of a comparison.", min=2)
    ] = None,
    limit_eval: Annotated[
        int | None, typer.Option(help="With --scale small or full: validation and test images of a comparison.", min=1)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="With --scale small or full: bring images of a comparison to this size.", min=1)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --scale small or full: the network of a comparison, such as resnet8:width=8."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, its figures and its numbers.")] = None,
) -> None:
    """Re-run a published experiment and say whether its findings hold."""
    if list_:
        for key, question in EXPERIMENTS.items():
            typer.echo(f"{key:26}{question}")
        return
    if (name is not None) + all_ + (summary is not None) != 1:
        raise UsageError("reproduce takes the NAME of one experiment, or --all, or --summary DIR; --list names them")
    if summary is not None:
        from normlab.reproduce.summary import summarize

        typer.echo("\n".join(summarize(summary)))
        return
    if out is None:
        raise UsageError("reproduce needs --out DIR, a folder for the page; it is made if it does not exist")
    from normlab.reproduce import page
    from normlab.reproduce.experiment import Setting, complete, run
    from normlab.study.keeping.environment import command_line

    setting = Setting(
        data=data,
        seeds=seeds,
        scale=scale,
        epochs=epochs,
        limit_train=limit_train,
        limit_eval=limit_eval,
        image_size=image_size,
        model=model,
        say=lambda text: typer.echo(f"  {text}", err=True),
    )
    for key in [name] if name else EXPERIMENTS:
        chosen = complete(key, setting)
        typer.echo(f"{key}:", err=True)
        start = time.perf_counter()
        result = run(key, chosen)
        folder = out / key if all_ else out
        path = page.write(key, result, chosen, folder, command_line(), time.perf_counter() - start)
        for line in page.lines(result.findings):
            typer.echo(line)
        if setting.quick:
            typer.echo(page.QUICK)
        typer.echo(f"written to {path}")
    if all_:
        from normlab.reproduce.summary import summarize

        typer.echo(summarize(out)[0])
