"""The commands of the documentation: those of its listings, and those between backticks in its text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PROGRAMS = ("normlab", "python", "make")
_LISTING = re.compile(r"^[ \t]*```(\w*)[^\n]*\n(.*?)^[ \t]*```$", re.MULTILINE | re.DOTALL)
_IN_TEXT = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`")


def words(line: str) -> list[str]:
    """A command's words; a comment behind it is left out."""
    return shlex.split(line.removeprefix("$ ").replace(r"\|", "|"), comments=True)


def of_listings(page: str) -> list[list[str]]:
    """The commands of a page's listings, each as its words."""
    lines = [
        part.strip()
        for language, listing in _LISTING.findall(page)
        if language in ("", "sh", "bash", "console")
        for line in re.sub(r"\\\n\s*", "", listing).splitlines()
        for part in re.split(r" ; | && ", line)
    ]
    return [words(line) for line in lines if line.removeprefix("$ ").split(" ")[0] in PROGRAMS]


def in_text(page: str) -> list[list[str]]:
    """The commands between backticks; none of those that only show a form, as `normlab norms [NAME]`."""
    found = [" ".join(command.split()) for command in _IN_TEXT.findall(page)]
    return [words(command) for command in found if not re.search(r"[\[{]|\.\.\.|…|\\\|", command)]
