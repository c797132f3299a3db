"""`normlab check` and `normlab lint`: arguments and exit codes only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normlab.errors import UsageError, require
from normlab.errors.files import to_json

if TYPE_CHECKING:
    from normlab.check.lint import Input


def check(
    target: Annotated[
        str, typer.Argument(help="package.module:Class, file.py:function, file.py:forward,backward or onnx:Operator")
    ],
    kind: Annotated[
        str | None,
        typer.Option("--as", help="batch, layer, instance, group, batch-instance, rms, frn, ... (default: told)"),
    ] = None,
    dialect: Annotated[str, typer.Option(help="torch, keras, onnx, flax, teaching or auto")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes seconds: compile, export, checkpointing, speed.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Demand the engineering and the numerics too, not the mathematics alone.")
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
    """Find the bug in a normalization layer and name its cause.

    Exit codes: 0 the mathematics is right (with --strict: everything), 1 it is not, 2 wrong usage.
    """
    from normlab.check.contain import check_contained

    if elements is not None and quick:
        raise UsageError("--elements with --quick: a huge input is not quick; leave one of them out")
    if certificate is not None and certificate.suffix not in (".md", ".csv"):
        require("--certificate as a chart", "report", "altair", "vl_convert")
    report = check_contained(target, kind, dialect, quick, elements, limit, strict)
    if certificate is not None:
        from normlab.check.certificate import write_certificate

        write_certificate(report, certificate)
    typer.echo(to_json(report.to_dict(), indent=2, default=str) if as_json else report.text(verbose))
    if not report.ok:
        raise typer.Exit(1)


app = check


def lint(
    target: Annotated[
        str, typer.Argument(help="package.module:factory or file.py:factory; it returns a model, or (model, optimizer)")
    ],
    batch_size: Annotated[int, typer.Option(help="Samples that one process puts through the model at once.")] = 32,
    last_batch: Annotated[int | None, typer.Option(help="Size of the last batch, where it is not dropped.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches per optimizer step.")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Activations are recomputed.")] = False,
    ddp: Annotated[bool, typer.Option("--ddp", help="Several processes, DistributedDataParallel.")] = False,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay on all parameters (an optimizer tells its own).")
    ] = 0.0,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="One sample's shape, such as 3,224,224 (default: guessed); once for every argument; 16:int holds "
            "integers; ids=16:int is handed by name.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the warnings as JSON.")] = False,
    brief: Annotated[bool, typer.Option("--brief", help="Leave out the programs that show each warning.")] = False,
) -> None:
    """Find what normalization will do to a model and a plan. Exit codes: 0 nothing, 1 warnings, 2 wrong usage."""
    from normlab.check.lint import Plan, load_model
    from normlab.check.lint import lint as lint_model

    plan = Plan(batch_size, last_batch, accumulate, checkpointing, ddp, weight_decay)
    shape = [_input(text) for text in size or []] or None
    model, optimizer = load_model(target)
    warnings = lint_model(model, plan, optimizer=optimizer, size=shape)
    if as_json:
        typer.echo(to_json([w.to_dict() for w in warnings], indent=2))
    else:
        for w in warnings:
            typer.echo(w.text(case=not brief) + "\n")
        typer.echo(f"{len(warnings)} warnings" if warnings else "nothing will bite: no warnings")
    if warnings:
        raise typer.Exit(1)


def _input(text: str) -> Input:
    """One `--input`: [NAME=]SIZES[:int]."""
    from normlab.check.lint import Input

    name, _, rest = text.rpartition("=")
    sizes, colon, dtype = rest.partition(":")
    parts = sizes.split(",")
    if not all(p.strip().isdigit() and int(p) > 0 for p in parts) or dtype not in (("int",) if colon else ("",)):
        raise UsageError(
            f"--input {text!r}: expected positive sizes with commas, such as 3,224,224, with :int behind them for "
            "integers, or NAME= before them"
        )
    return Input(tuple(int(p) for p in parts), name or None, True if colon else None)
