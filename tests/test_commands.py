"""Every command of the documentation exists, with its options."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from normlab import cli
from tests.commands import PAGES, ROOT, in_text, of_listings

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def check(program: str, *given: str) -> None:
    """Raise an error if a program, a sub-command or an option does not exist; nothing is run."""
    if program == "make":
        target, *settings = given
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
        assert all(f"$({setting.partition('=')[0]})" in MAKEFILE for setting in settings)
    elif program == "normlab":
        group: Any = typer.main.get_command(cli.app)
        if given[0].startswith("-"):
            assert given[0] in [option for param in group.params for option in param.opts]
            return
        root = group.make_context("normlab", list(given))
        name, command, rest = group.resolve_command(root, list(given))
        if rest not in ([], ["--help"]):  # in the text a sub-command stands alone
            command.make_context(name, rest, parent=root)
    elif given[0] == "-m":
        assert find_spec(given[1]) is not None
    elif given[0] != "-i":  # which looks at what a reader wrote
        assert (ROOT / given[0]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for command in (*of_listings(text), *in_text(text)):
        try:
            check(*command[: command.index(">")] if ">" in command else command)
        except BaseException as error:
            error.add_note(f"the command is: {' '.join(command)}")
            raise


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "normlab no-such-command",
        "normlab compare photos --no-such-option",
        "normlab --no-such-option",
        "python -m benchmarks.none",
        "python no-such-file.py",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"."):
        check(*command.split())


def test_commands_are_read_from_listings_and_from_the_text() -> None:
    page = "A `make it` and\n```sh\n$ normlab a \\\n    b  # c\nnormlab d ; normlab e\n```\n```python\nnormlab f\n```\n"
    assert of_listings(page) == [["normlab", "a", "b"], ["normlab", "d"], ["normlab", "e"]]
    assert in_text(page) == [["make", "it"]]
