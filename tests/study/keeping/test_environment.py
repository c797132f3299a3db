"""What a study says about where it ran."""

from __future__ import annotations

import sys

import pytest

from normlab.study.keeping.environment import command_line


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["/usr/bin/normlab", "compare", "my photos"], "normlab compare 'my photos'"),
        (["/lib/normlab/__main__.py", "compare"], "python -m normlab compare"),
    ],
)
def test_a_command_stands_as_one_would_type_it(
    arguments: list[str], typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert command_line() == typed
