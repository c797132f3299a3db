"""`normlab norms`: the family, with formulas, as its entries have them."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from normlab.cli.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from normlab.norms import NormEntry


def norms(
    name: Annotated[str | None, typer.Argument(help="One norm, as in gn.", show_default="all of them")] = None,
    plugins: Plugins = None,
) -> None:
    """List the norms that can be compared, with their formulas; or say everything about one."""
    from normlab.norms import describe, norm_names, parse

    load_plugins(plugins)
    if name is not None:
        entry, _ = parse(name)
        typer.echo("\n".join(_format_entry(entry)))
        return
    entries = [describe(known) for known in norm_names()]
    widths = [max(len(text) for text in column) for column in zip(*((e.name, e.title) for e in entries), strict=True)]
    for entry in entries:
        typer.echo(f"{entry.name:<{widths[0]}}  {entry.title:<{widths[1]}}  {entry.formula}")
    indices = "n samples, p those of a part, c channels, g channels of a group, s positions"
    typer.echo(f"\nIndices: {indices}. In full: normlab norms gn")


def _format_entry(entry: NormEntry) -> list[str]:
    lines = [f"{entry.name}: {entry.title}", "", f"  {entry.formula}", ""]
    if entry.grid is not None and (words := inspect.getdoc(entry.grid)) and words != entry.formula:
        lines += [words, ""]
    rows = {
        "paper": entry.paper,
        "options": ", ".join(f"{k}={'by channels' if callable(v) else v}" for k, v in entry.options.items()),
        "learned": ", ".join(f"{k} (starts at {v.initial:g})" for k, v in entry.parameters.items() if v.trained),
        "in evaluation": "running statistics stand in for the batch's" if entry.running else "",
        "eps": f"{entry.eps:g}" if entry.grid is not None else "",
    }
    lines += [f"{what + ':':<15}{text}" for what, text in rows.items() if text]
    if entry.when:
        lines += ["", *textwrap.wrap(entry.when, 100)]
    if entry.aliases:
        lines += ["", f"Also found as {', '.join(entry.aliases)}."]
    if entry.of_weights:
        return [*lines, "", f'normalize_weights(model, "{entry.name}")  or  --norms gn+{entry.name}']
    if entry.given is not None:
        return [*lines, "", f'make_norm("{entry.name}", channels), with a {entry.given} beside x']
    option, value = next(iter(entry.options.items()), ("", None))
    example = f"{entry.name}:{option}={value if isinstance(value, int | float) else 4}" if option else entry.name
    return [*lines, "", f'make_norm("{example}", channels)  or  --norms {example}']
