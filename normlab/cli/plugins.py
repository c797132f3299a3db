"""The option `--plugin` of commands that use norms: the user's own modules, imported before any norm is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="Norms of your own: package.module or file.py, or one of these and :name; repeat it for several.",
        show_default=False,
    ),
]


def load_plugins(plugins: Sequence[str] | None) -> None:
    """Import them; each may be several, separated by commas, as in `compare`."""
    from normlab.study.axes import listed
    from normlab.study.plugins import load_plugin

    for text in plugins or ():
        for plugin in listed(text):
            load_plugin(plugin)
