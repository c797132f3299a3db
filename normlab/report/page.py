"""From parts to one HTML file that opens from disk, asks no network, and runs only its own scripts.

Everything that users name is escaped: by Jinja in the markup, by base64 in the data, and by the page's
script, which sets text and never markup. The Content-Security-Policy has no origin in it; scripts are allowed
by their hash, and Vega interprets its expressions instead of evaluating code.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from functools import cache
from importlib import resources
from typing import Any

from normlab.report import theme


def render(template: str, *, figures: dict[str, Any], raw: Any = None, **context: Any) -> str:
    """The page that `template` makes of its context, with all that its charts need inside."""
    from markupsafe import Markup

    code, library = script("charts.js", "report.js"), _library()
    payload = json.dumps(_plain({"figures": figures, "config": theme.config(), "raw": raw}), allow_nan=False)
    policy = (
        f"default-src 'none'; script-src {_hash(code)} {_hash(library)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(
        policy=policy,
        css=Markup(style_sheet()),
        script=Markup(code),
        payload=_packed(payload),
        library=_packed(library),
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

    code: str = vl_convert.javascript_bundle(None)
    return code


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    # mtime=0: the same study makes the same bytes
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _plain(value: Any) -> Any:
    """JSON without NaN and infinity, which browsers refuse: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
