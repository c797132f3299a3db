"""Colours, dashes and type of the charts: readable for the colour-blind, in light, in dark and on paper.

Charts name colours as CSS variables, so that one drawing follows the page's scheme; `resolved` puts the light
scheme's values in for files that stand alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlab.norms.family import describe, norm_names

LIGHT = {
    "ink": "#1d2129", "soft": "#5c6470", "line": "#dfe2e7", "paper": "#ffffff", "accent": "#1f5fa8",
    "c0": "#0072b2", "c1": "#d55e00", "c2": "#a8478a", "c3": "#00845f", "c4": "#b97f00", "c5": "#5c6470",
    "c6": "#3d9ad1", "c7": "#7a4b9e", "c8": "#7d5a3c", "c9": "#4f6f1f", "c10": "#b3353f", "c11": "#2b7f86",
}  # fmt: skip
DARK = {
    "ink": "#e8eaee", "soft": "#a0a8b4", "line": "#343a44", "paper": "#14171c", "accent": "#7db4ee",
    "c0": "#4aa8e8", "c1": "#f08a4b", "c2": "#e08cc4", "c3": "#3cc79a", "c4": "#e8b64c", "c5": "#a0a8b4",
    "c6": "#9ad4f7", "c7": "#b998dc", "c8": "#c49b77", "c9": "#a3c663", "c10": "#f08088", "c11": "#6cc7ce",
}  # fmt: skip

_DASHES = ([1, 0], [8, 3], [3, 2], [8, 3, 2, 3], [2, 3], [12, 3], [5, 2, 1, 2, 1, 2])
_NUM_HUES = 12


@dataclass(frozen=True)
class Style:
    """How one norm is drawn."""

    color: str
    dash: list[int]


Styles = Mapping[str, Style]


def styles(norms: Sequence[str]) -> dict[str, Style]:
    """A hue and a dash for every norm; the pair is unique for up to 84 norms.

    A norm whose entry names them has them in every report; the others take what is left. A spec with options
    ("gn:groups=8") has the hue of its norm and another dash.
    """
    known = {name: entry for name in norm_names() if (entry := describe(name)).hue is not None}
    own = {name: (entry.hue, entry.dash or 0) for name, entry in known.items() if name in norms}
    taken, reserved = set(own.values()), {entry.hue for entry in known.values()}
    found: dict[str, Style] = {}
    for norm in norms:
        base = norm.partition(":")[0]
        if norm in own:
            hue, dash = own[norm]
        else:
            free = sorted(range(_NUM_HUES), key=lambda hue: (hue in reserved, hue))
            preferred = [known[base].hue] if base in known else free
            pairs = [(hue, dash) for dash in range(len(_DASHES)) for hue in preferred]
            hue, dash = next((pair for pair in pairs if pair not in taken), pairs[-1])
            taken.add((hue, dash))
        found[norm] = Style(f"var(--c{hue})", _DASHES[dash % len(_DASHES)])
    return found


def config() -> dict[str, Any]:
    """The Vega-Lite configuration that all charts share."""
    axis = {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "gridColor": "var(--line)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelPadding": 6, "titlePadding": 10, "ticks": False, "domain": False,
    }  # fmt: skip
    return {
        "background": "transparent",
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False, "domain": True},
        "title": {"color": "var(--ink)", "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "legend": {"disable": True},
        "text": {"color": "var(--ink)"},
    }


def resolved(spec: Any, scheme: dict[str, str] = LIGHT) -> Any:
    """A copy of `spec` with the variables replaced by a scheme's colours."""
    text = json.dumps(spec)
    for name, value in sorted(scheme.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"var(--{name})", value)
    return json.loads(text)


def css() -> str:
    """The style sheet's variables for both schemes; paper is always light."""

    def block(scheme: dict[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in scheme.items())

    return (
        f":root {{ color-scheme: light; {block(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {block(DARK)} }} }}"
    )
