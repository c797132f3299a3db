"""The model card: what a trained network is, how good it was, and how to load it, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normlab.data import SIXTEEN_BITS

if TYPE_CHECKING:
    from normlab.study.trained.facts import Facts

_SHOWN = 20  # classes that are named


def card(facts: Facts) -> str:
    """The card as Markdown, with the YAML header that model hubs read."""
    channels, height, width = facts.image_shape
    names = ", ".join(facts.class_names[:_SHOWN]) + (", ..." if len(facts.class_names) > _SHOWN else "")
    settings = {k: v for k, v in facts.settings.items() if k not in ("model", "norm") and v not in (None, "")}
    figures = {k.replace("_", " "): f"{v:.4f}" for k, v in facts.metrics.items()}
    lines = [
        "---",
        "library_name: normlab",
        "pipeline_tag: image-classification",
        "tags: [image-classification, normalization]",
        "---",
        "",
        f"# {facts.model} with {facts.norm}, trained on {facts.data.get('name', 'images')}",
        "",
        f"Names one of {len(facts.class_names)} classes: {names}.",
        "",
        "```python",
        loading("model.safetensors"),
        "```",
        "",
        f"Images are {channels} x {height} x {width}, uint8; other sizes are cropped about their centre and resized. "
        f"Pixels / 255 are standardized with mean {_numbers(facts.mean)} and deviation {_numbers(facts.std)}.",
        *_deep(facts.levels),
        "",
        *_table("measured", figures),
        *_table("trained with", {k: str(v) for k, v in settings.items()}),
        *_table("versions", dict(facts.versions)),
    ]
    if "hash" in facts.data:
        lines += [f"The images have the hash `{facts.data['hash']}`.", ""]
    lines.append("Its settings were chosen by validation accuracy; the test split was looked at once, at the end.")
    return "\n".join(lines) + "\n"


def _deep(levels: tuple[int, int]) -> list[str]:
    if levels == SIXTEEN_BITS:
        return []
    return [f"Images of 16 bits are brought to 8 bits first: {levels[0]} becomes 0, and {levels[1]} becomes 255."]


def loading(path: str) -> str:
    """The lines that load a saved network and use it."""
    return f'import normlab\n\nnet = normlab.load("{path}").model()\nprint(net.predict("picture.jpg")[0])'


def _table(title: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
