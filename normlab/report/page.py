"""From parts to one HTML file that opens from disk, asks no network, and runs only its own scripts.

Everything that users name is escaped: by Jinja in the markup, by base64 in the data, and by the page's
script, which sets text and never markup. The Content-Security-Policy has no origin in it; scripts are allowed
by their hash, and Vega interprets its expressions instead of evaluating code.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from normlab.errors.files import to_json
from normlab.report import theme
from normlab.report.raw import pack


def render(template: str, *, figures: dict[str, Any], raw: str = "", **context: Any) -> str:
    """The page that `template` makes of its context, with all that its charts need inside.

    `raw` holds the records for download, packed (`normlab.report.raw`).
    """
    from markupsafe import Markup

    code, drawing = script("charts.js", "report.js"), library()
    policy = (
        f"default-src 'none'; script-src {_hash(code)} {_hash(drawing)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(
        policy=policy,
        css=Markup(style_sheet()),
        script=Markup(code),
        payload=pack(to_json({"figures": figures, "config": theme.config()})),
        library=pack(drawing),
        raw=raw,
        **context,
    )


def live_page(name: str, norms: Sequence[str]) -> tuple[str, str]:
    """The page of `normlab serve`, and the Content-Security-Policy to send with it."""
    from markupsafe import Markup

    code = script("charts.js", "live.js")
    policy = (
        f"default-src 'none'; script-src 'self' {_hash(code)}; connect-src 'self'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = (
        _environment()
        .get_template("live.html")
        .render(
            name=name,
            css=Markup(style_sheet()),
            script=Markup(code),
            styles=theme.styles(norms),
            config=Markup(to_json(theme.config()).replace("<", "\\u003c")),
        )
    )
    return html, policy


def style_sheet() -> str:
    """The style sheet that the report and the live page share."""
    return theme.css() + "\n" + _asset("report.css")


def script(*names: str) -> str:
    """Our own scripts, one after the other."""
    return "\n".join(_asset(name) for name in names)


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("normlab.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


@cache
def _asset(name: str) -> str:
    return resources.files("normlab.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def library() -> str:
    """Vega, Vega-Lite and their embedding as one script without imports."""
    import vl_convert

    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
