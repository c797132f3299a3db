"""`normlab predict` and `normlab best`: what to do with the networks that a comparison trained."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normlab.cli.plugins import Plugins, load_plugins
from normlab.errors import UsageError, require
from normlab.study.plain import escaped

if TYPE_CHECKING:
    from normlab.study.trained import Prediction, Trained

FORMATS = ("table", "csv", "json")

Run = Annotated[str, typer.Argument(metavar="RUN", help="The --out of a comparison, or a file of `normlab best`.")]
Norm = Annotated[str | None, typer.Option(help="This norm's network.", show_default="the recommended one's")]
Seed = Annotated[int | None, typer.Option(min=0, help="This seed's network.", show_default="best by validation")]
Number = Annotated[
    int | None,
    typer.Option(
        "--study", min=1, help="Of several, by its number in `normlab status`.", show_default="the last begun"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Of a file whose network is code of your own: package.module:factory.", show_default=False),
]


def predict(
    run: Run,
    images: Annotated[list[str], typer.Argument(help="Image files, and folders of them.")],
    norm: Norm = None,
    seed: Seed = None,
    study: Number = None,
    model: Model = None,
    plugins: Plugins = None,
    format: Annotated[str, typer.Option(help="table, csv or json.")] = "table",
) -> None:
    """Name the class of images with a trained network of a comparison."""
    if format not in FORMATS:
        raise UsageError(f"--format {format!r} is not known; expected one of: {', '.join(FORMATS)}")
    load_plugins(plugins)
    found = _network(run, norm, seed, study).model(model).predict(images)
    {"table": _table, "csv": _csv, "json": _json}[format](found)


def best(
    run: Run,
    export: Annotated[
        Path | None, typer.Option(help="Write it: a name ending in .safetensors or .onnx.", show_default=False)
    ] = None,
    card: Annotated[Path | None, typer.Option(help="Write a model card, in Markdown.", show_default=False)] = None,
    norm: Norm = None,
    seed: Seed = None,
    study: Number = None,
    model: Model = None,
    plugins: Plugins = None,
) -> None:
    """Show the network that a comparison recommends, and write it to a file."""
    if export is not None:
        if export.suffix.lower() not in (".safetensors", ".onnx"):
            raise UsageError(f"--export {export}: expected a name that ends in .safetensors or .onnx")
        if export.suffix.lower() == ".onnx":
            require(f"--export {export}", "onnx")
    load_plugins(plugins)
    network = _network(run, norm, seed, study)
    about = f"{network.facts.model} with {network.norm}, seed {network.facts.settings.get('seed')}"
    typer.echo(escaped(about))
    for name, value in network.metrics.items():
        if name.endswith("accuracy"):
            typer.echo(escaped(f"{name.replace('_', ' ')}: {value:.4f}"))
    if export is not None:
        if export.suffix.lower() == ".onnx":
            network.export_onnx(export, model)
        else:
            network.save(export)
        typer.echo(f"written: {export}")
        if export.suffix.lower() == ".safetensors":
            typer.echo(f'in Python: net = normlab.load("{export}").model(); net.predict("picture.jpg")')
    if card is not None:
        network.card(card)
        typer.echo(f"written: {card}")


def _network(run: str, norm: str | None, seed: int | None, study: int | None) -> Trained:
    from normlab.study.trained import load, trained_in

    if Path(run).is_file():
        if (norm, seed, study) != (None, None, None):
            raise UsageError(f"{run} is one network; --norm, --seed and --study are for the directory of a comparison")
        return load(run)
    return trained_in(Path(run), norm, seed, study=study)


def _table(found: list[Prediction]) -> None:
    width = max(len(escaped(one.source)) for one in found)
    label = max(len(escaped(one.label)) for one in found)
    for one in found:
        typer.echo(f"{escaped(one.source):<{width}}  {escaped(one.label):<{label}}  {one.confidence:6.1%}")


def _csv(found: list[Prediction]) -> None:
    classes = list(found[0].probabilities)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "label", "confidence", *(f"p({name})" for name in classes)])
    for one in found:
        shares = (f"{one.probabilities[name]:.6f}" for name in classes)
        writer.writerow([one.source, one.label, f"{one.confidence:.6f}", *shares])


def _json(found: list[Prediction]) -> None:
    typer.echo(json.dumps([vars(one) for one in found], indent=1))
