"""`normlab compare` and its relatives: arguments only."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from normlab.errors import UsageError, require
from normlab.errors.files import read_text
from normlab.study.axes import AXES, alternatives, switch
from normlab.study.metric import DEFAULT, METRICS
from normlab.study.parsing import MOST_BYTES
from normlab.study.plain import escaped
from normlab.study.spec import StudySpec, make_spec, merge, plural, read_config
from normlab.study.verdict import MATTERS

# of the settings that are no axes: flags and defaults that do not follow from their fields
_FLAGS = {"plugins": "--plugin"}
_SHOWN: dict[str, str | bool] = {"trials": "9 for lr, 12 for more"}

Directory = Annotated[Path, typer.Argument(help="The --out of a comparison.")]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the data argument, a flag for every setting and those of `_options`.

    It gets the study's spec, its directory, and the options.
    """
    settings = {parameter.name: parameter for parameter in _settings()}
    options = inspect.signature(_options, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def run(data: str | None, config: Path | None, out: Path | None, **rest: Any) -> None:
        flags = {name: rest.pop(name) for name in settings}
        spec = _read_spec(data, config, flags)
        chosen = _options(**{name: rest.pop(name) for name in options})
        command(spec, out or Path("runs") / (Path(spec.data).stem or "data"), chosen, **rest)

    source = Annotated[
        str | None, typer.Argument(help="Images: 'digits', a folder, CIFAR, .npz or Parquet.", show_default="digits")
    ]
    parameters = [
        inspect.Parameter("data", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=source),
        *settings.values(),
        _option("config", Path, "--config", help="Settings in a TOML or YAML file.", shown=False),
        *options.values(),
        *(parameter for name, parameter in own.items() if name not in ("spec", "directory", "options")),
        _option("out", Path, "--out", help="Directory of the study.", shown="runs/<data>"),
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if i else p for i, p in enumerate(parameters)]
    )
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _settings() -> Iterator[inspect.Parameter]:
    """An option for every setting of a study: the axes as their table has them, then the others."""
    for axis in AXES:
        kind: Any = bool if axis.parse is switch else list[str] if axis.split is alternatives else str
        yield _option(axis.setting, kind, *axis.flags, help=axis.help, shown=axis.shown)
    for name, field in StudySpec.model_fields.items():
        if field.description and name not in {axis.setting for axis in AXES}:
            kind = bool if field.annotation is bool else int if field.annotation in (int, int | None) else str
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            shown = _SHOWN.get(name, str(field.default) if kind is int and field.default is not None else False)
            yield _option(name, kind, flag, help=field.description, shown=shown)


def _option(name: str, kind: Any, *flags: str, help: str, shown: str | bool) -> inspect.Parameter:
    annotation = Annotated[kind | None, typer.Option(*flags, help=help, show_default=shown)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _options(
    *,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time.", show_default="one per core")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each.", show_default="cores / jobs")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda (all GPUs), or cuda:0,cuda:1.")] = "auto",
    per_gpu: Annotated[int, typer.Option(min=1, help="Cells that share a GPU.")] = 1,
    backend: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster.", show_default="a cluster of this machine")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that a cell takes on a Ray cluster.")] = 0,
    placement: Annotated[str, typer.Option(help="Ray's scheduling strategy: DEFAULT or SPREAD.")] = "DEFAULT",
    runtime_env: Annotated[
        Path | None, typer.Option(help="Ray's runtime environment, a JSON file.", show_default=False)
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="Path or fsspec URL that all machines can reach.", show_default="<out>/checkpoints"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this norm instead of the best.", show_default=False)
    ] = None,
    matters: Annotated[
        float, typer.Option(min=0, max=100, help="Percentage points of accuracy below which norms are the same.")
    ] = 100 * MATTERS,
    metric: Annotated[str, typer.Option(help=f"What is compared: {', '.join(METRICS)} (as exp(-loss)).")] = DEFAULT,
    budget: Annotated[
        str | None, typer.Option(help="Time to spend where it tells most: 90s, 10m, 1.5h.", show_default=False)
    ] = None,
    until_sure: Annotated[
        bool | None,
        typer.Option(
            "--until-sure",
            help="Add seeds where the question is open; stop when it is settled.",
            show_default="on without --seeds, for two norms or more",
        ),
    ] = None,
    log: Annotated[
        str, typer.Option(help="Trackers that get the curves: tensorboard, wandb, mlflow, trackio.", show_default=False)
    ] = "",
    stall: Annotated[
        str, typer.Option(help="A training without a step for so long has failed: 30m, 2h, or never.")
    ] = "30m",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed often.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first cell that fails.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train cells again that are done.")] = False,
) -> Any:
    """How to run a study, from the flags that `compare` and `plan` share."""
    from normlab.study.running.budget import parse_time
    from normlab.study.running.cluster import ClusterOptions
    from normlab.study.running.run import Options

    if backend != "ray" and (address or gpus or runtime_env or placement != "DEFAULT"):
        raise UsageError(
            "--address, --gpus, --placement and --runtime-env are for --backend ray; add it, or leave them"
        )
    return Options(
        jobs=jobs,
        threads=threads,
        device=device,
        per_gpu=per_gpu,
        baseline=baseline,
        matters=matters / 100,
        metric=metric,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        force=force,
        backend=backend,
        cluster=ClusterOptions(address, gpus=gpus, placement=placement, runtime_env=_read_runtime_env(runtime_env)),
        checkpoints=checkpoints,
        budget=None if budget is None else parse_time(budget),
        stall=None if stall == "never" else parse_time(stall, "--stall"),
        until_sure=until_sure,
        log=log,
    )


@_with_settings
def compare(
    spec: Any,
    directory: Path,
    options: Any,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html.")] = False,
    second: Annotated[
        Path | None, typer.Argument(help="Where data is a study's directory, another one: show both side by side.")
    ] = None,
) -> None:
    """Train a network with each norm on your images and say which norm to use.

    The same command again goes on where it stopped. Lists are separated by commas.
    """
    if second is not None:
        _side_by_side(spec, options, second)
        return
    from normlab.study.running.run import check_names, find_devices, or_until_sure, run_study
    from normlab.study.running.torchrun import follow, follows

    if follows():
        check_names(spec)
        follow(spec, find_devices(options.device))
        return
    if not no_report:
        require("normlab compare", "report")
    try:
        results = run_study(spec, directory, or_until_sure(spec, options))
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if not no_report:
        from normlab import report

        report.write(directory, number=results["study"])
    raise typer.Exit(_conclude(results, directory, not no_report))


@_with_settings
def plan(
    spec: Any,
    directory: Path,
    options: Any,
    no_report: Annotated[bool, typer.Option("--no-report", help="As of compare; a plan writes none.")] = False,
) -> None:
    """Show the cells of a comparison, which are done, and about how long the others take; train nothing.

    It takes what `normlab compare` takes.
    """
    from normlab.study.running.overview import plan_lines
    from normlab.study.running.run import or_until_sure

    for line in plan_lines(spec, directory, or_until_sure(spec, options)):
        typer.echo(escaped(line))


def status(
    directory: Directory,
    verify: Annotated[bool, typer.Option("--verify", help="Check every record and checkpoint; save the rest.")] = False,
) -> None:
    """Show how far a comparison is: cells by status, what is running, what failed and why."""
    from normlab.study.running.overview import status_lines

    if verify:
        from normlab.study.keeping.verify import verify as check

        for line in check(directory):
            typer.echo(escaped(line))
    for line in status_lines(directory):
        typer.echo(escaped(line))


def export(
    directory: Directory,
    format: Annotated[str, typer.Option(help="csv, json or parquet.")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to.", show_default="DIRECTORY/export.<format>")
    ] = None,
    study: Annotated[
        int | None,
        typer.Option(min=1, help="Of several, by its number in `normlab status`.", show_default="the last begun"),
    ] = None,
) -> None:
    """Write a comparison's records as a file, also while it runs."""
    from normlab.study.keeping.records import WRITERS, collect
    from normlab.study.keeping.store import Store

    if format not in WRITERS:
        raise UsageError(f"--format {format!r} is not known; expected one of: {', '.join(WRITERS)}")
    if format == "parquet":
        require("--format parquet", "parquet")
    path = output or directory / f"export.{format}"
    with Store(directory, readonly=True) as store:
        WRITERS[format](collect(store, study), path)
    typer.echo(f"records: {path}")


def _read_spec(data: str | None, config: Path | None, flags: dict[str, Any]) -> Any:
    """The spec that the file and the flags describe together."""
    given = {name: value for name, value in {"data": data, **flags}.items() if value not in (None, [])}
    return make_spec(given if config is None else merge(plural(read_config(config)), given, config))


def _read_runtime_env(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import json

    try:
        found = json.loads(read_text(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"--runtime-env {path} is no JSON file: {e}") from None
    if not isinstance(found, dict):
        raise UsageError(f'--runtime-env {path}: expected an object of JSON, as in {{"pip": ["einops"]}}')
    return found


def _side_by_side(spec: Any, options: Any, second: Path) -> None:
    """Write the page that compares two studies, the first of which was given in the place of the data."""
    from normlab.report import write_side_by_side

    usual = type(options)(cluster=options.cluster)
    pairs = {f.name: (getattr(options, f.name), getattr(usual, f.name)) for f in dataclasses.fields(options)}
    changed = {name for name, (given, default) in pairs.items() if given != default and (given or default)}
    if found := sorted((spec.model_fields_set - {"data"}) | (changed - {"metric"})):
        given = ", ".join(name.replace("_", "-") for name in found)
        raise UsageError(f"compare {spec.data} {second} shows two studies side by side; leave out: {given}")
    metric = options.metric if "metric" in changed else None
    typer.echo(f"report: {write_side_by_side(spec.data, second, metric=metric)}")


def _conclude(results: dict[str, Any], directory: Path, report: bool) -> int:
    """Print the verdict, a table, warnings, and where the report is; return the exit code."""
    from normlab.report import summary

    number = results["study"]
    typer.echo(f"\n{escaped(summary(directory, number))}\n")
    if results["studies"] > 1:
        typer.echo(f"study: {number} of {results['studies']} in this directory; normlab status lists them")
    typer.echo(f"records: {directory / 'results.json'}")
    if report:
        typer.echo(f"report: {directory / 'report.html'}")
    # within a budget, cells that were set aside are as intended
    return 1 if any(cell["status"] not in ("done", "diverged", "paused") for cell in results["cells"]) else 0
