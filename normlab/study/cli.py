"""`normlab compare` and its relatives: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str | None, typer.Argument(help="Images: 'digits', a folder, CIFAR, .npz or Parquet.", show_default="digits")
]
Out = Annotated[Path | None, typer.Option("--out", help="Directory of the study.", show_default="runs/<data>")]


def _axis(*names: str, help: str, default: str) -> Any:
    return typer.Option(*names, help=help, show_default=default)


def compare(
    data: Data = None,
    norms: Annotated[str | None, _axis("--norms", help="Norms, as in bn,gn:groups=8.", default="all seven")] = None,
    models: Annotated[
        str | None,
        _axis(
            "--model",
            "--models",
            help="resnet14, resnet20:shortcut=zero-padding, or package.module:factory.",
            default="resnet14",
        ),
    ] = None,
    epochs: Annotated[str | None, _axis("--epochs", help="Epochs.", default="10")] = None,
    batch_sizes: Annotated[
        str | None, _axis("--batch-size", "--batch-sizes", help="Batch sizes.", default="128; 32 for few images")
    ] = None,
    optimizers: Annotated[
        str | None, _axis("--optimizer", "--optimizers", help="sgd, adam, adamw, rmsprop.", default="sgd")
    ] = None,
    lrs: Annotated[str | None, _axis("--lr", "--lrs", help="Learning rates.", default="0.1")] = None,
    schedule: Annotated[
        str | None, _axis("--schedule", help="constant, cosine, step:75,95 or step:75%,95%.", default="step:75%,95%")
    ] = None,
    momentum: Annotated[float | None, _axis("--momentum", help="Momentum of SGD.", default="0.9")] = None,
    weight_decays: Annotated[
        str | None, _axis("--weight-decay", "--weight-decays", help="Weight decays.", default="0.0001")
    ] = None,
    dropout: Annotated[str | None, _axis("--dropout", help="Probabilities of dropping a feature.", default="0")] = None,
    augment: Annotated[
        list[str] | None,
        _axis("--augment", help="crop,flip or none; repeat it to compare settings.", default="crop,flip; digits: crop"),
    ] = None,
    seeds: Annotated[str | None, _axis("--seeds", help="How many seeds, or which (0,1,5).", default="1")] = None,
    image_size: Annotated[int | None, typer.Option(help="Bring images to this size.", show_default=False)] = None,
    limit_train: Annotated[int | None, typer.Option(help="Train on so many images only.", show_default=False)] = None,
    limit_eval: Annotated[
        int | None, typer.Option(help="Validate and test on so many images only.", show_default=False)
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that cannot be read.")] = False,
    split_seed: Annotated[
        int | None, _axis("--split-seed", help="Seed of the split, where the data has none.", default="0")
    ] = None,
    plugins: Annotated[
        str | None, typer.Option("--plugin", help="Modules to import first, for norms of your own.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this norm instead of the best.", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time.", show_default="one per core")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each.", show_default="cores / jobs")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda (all GPUs), or cuda:0,cuda:1.")] = "auto",
    per_gpu: Annotated[int, typer.Option(min=1, help="Cells that share a GPU.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed often.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first cell that fails.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train cells again that are done.")] = False,
    out: Out = None,
) -> None:
    """Train a network with each norm on your images and say which norm to use.

    The same command again goes on where it stopped. Lists are separated by commas.
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in _RUN_ONLY}
    if skip_bad is False:
        del given["skip_bad"]
    from normlab.study.run import Options, run_study
    from normlab.study.spec import make_spec

    spec = make_spec(given)
    directory = out or Path("runs") / (Path(spec.data).stem or "data")
    options = Options(
        jobs=jobs,
        threads=threads,
        device=device,
        per_gpu=per_gpu,
        baseline=baseline,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        force=force,
    )
    results = run_study(spec, directory, options)
    raise typer.Exit(_conclude(results, directory))


_RUN_ONLY = {"out", "jobs", "threads", "device", "per_gpu", "baseline", "retry_failed", "fail_fast", "force"}


def _conclude(results: dict[str, Any], directory: Path) -> int:
    """Print the verdict and where the report is; answer the exit code."""
    verdict = results["verdict"]
    typer.echo(verdict["sentence"])
    for warning in verdict["warnings"]:
        typer.echo(f"warning: {warning}")
    typer.echo(f"report: {directory / 'report.html'}")
    return 1 if any(cell["status"] not in ("done", "diverged") for cell in results["cells"]) else 0
