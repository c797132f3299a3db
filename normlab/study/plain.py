"""Text from elsewhere (file names, messages of other libraries) made fit to be shown."""

from __future__ import annotations


def escaped(text: str) -> str:
    """The text with everything spelled out that would control a terminal, lines excepted."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
