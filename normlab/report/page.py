"""From parts to one HTML file that opens from disk, asks no network, and runs only its own scripts.

Everything that users name is escaped: by Jinja in the markup, by base64 in the data, and by the page's
script, which sets text and never markup. The Content-Security-Policy has no origin in it; scripts are allowed
by their hash, and Vega interprets its expressions instead of evaluating code.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from normlab.report import theme
from normlab.report.raw import pack, to_json


def render(template: str, *, figures: dict[str, Any], raw: str = "", **context: Any) -> str:
    """The page that `template` makes of its context, with all that its charts need inside.

    `raw` holds the records for download, packed (`normlab.report.raw`).
    """
    from markupsafe import Markup

    code, library = script("charts.js", "report.js"), _library()
    policy = (
        f"default-src 'none'; script-src {_hash(code)} {_hash(library)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(
        policy=policy,
        css=Markup(style_sheet()),
        script=Markup(code),
        payload=pack(to_json({"figures": figures, "config": theme.config()})),
        library=pack(library),
        raw=raw,
        **context,
    )


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
def _library() -> str:
    """Vega, Vega-Lite and their embedding as one script without imports."""
    import vl_convert

    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
