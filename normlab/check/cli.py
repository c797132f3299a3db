"""`normlab check` and `normlab lint`: arguments and exit codes only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from normlab.errors import UsageError


def check(
    target: Annotated[
        str, typer.Argument(help="package.module:Class, file.py:function, file.py:forward,backward or onnx:Operator")
    ],
    kind: Annotated[
        str | None, typer.Option("--as", help="batch, layer, instance, group, batch-instance or rms (default: told)")
    ] = None,
    dialect: Annotated[str, typer.Option(help="torch, keras, onnx, flax, teaching or auto")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes seconds: compile, export, speed.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show passed and skipped checks too.")] = False,
    limit: Annotated[float, typer.Option(min=1.0, help="Seconds that one check may take.")] = 60.0,
    elements: Annotated[
        int | None, typer.Option(min=1, help="Also try one input of this many elements (2200000000: past 2^31).")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Write the error surface: .html, .svg, .png, .md or .csv.")
    ] = None,
) -> None:
    """Find the bug in a normalization layer and name its cause. Exit codes: 0 conforms, 1 bugs, 2 wrong usage."""
    from normlab.check.contain import check_contained

    if elements is not None and quick:
        raise UsageError("--elements with --quick: a huge input is not quick; leave one of them out")
    report = check_contained(target, kind, dialect, quick, elements, limit)
    if certificate is not None:
        from normlab.check.certificate import write_certificate

        write_certificate(report, certificate)
    typer.echo(json.dumps(report.to_dict(), indent=2, default=str) if as_json else report.text(verbose))
    if not report.ok:
        raise typer.Exit(1)


app = check
