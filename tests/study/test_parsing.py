"""Settings files that are bombs are refused at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from normlab.errors import UsageError
from normlab.study.parsing import DEEPEST, parse
from normlab.study.spec import read_config

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
BOMBS = {
    "aliases.yaml": LAUGHS,
    "itself.yaml": "a: &a [*a]\n",
    "deep.yaml": "norms: " + "[" * 5000 + "]" * 5000,
    "blocks.yaml": "- " * 5000 + "x",
    "maps.yml": "norms: " + "{a: " * 5000 + "1" + "}" * 5000,
    "deep.toml": "norms = " + "[" * 5000 + "]" * 5000,
    "tables.toml": "[" + ".".join(["a"] * 5000) + "]\nx = 1\n",
    "inline.toml": "norms = " + "{a = " * 5000 + "1" + "}" * 5000,
    "long.yaml": "norms: [" + "a, " * 90_000 + "a]",
    "long.toml": "norms = [" + "1, " * 90_000 + "1]",
}


# more than 40 s in 1 GB, or "a bug in normlab"
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_wrong_usage(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(BOMBS[name])
    began = time.process_time()
    with pytest.raises(UsageError, match="is not what its name says") as e:
        read_config(tmp_path / name)
    assert time.process_time() - began < 20  # of the processor, and a machine that is a tenth as fast
    assert len(str(e.value)) < 500


def test_what_people_write_is_read() -> None:
    assert parse("norms: &n [bn, gn]\nbatch_sizes: [2, 8]\n", ".yaml") == {"norms": ["bn", "gn"], "batch_sizes": [2, 8]}
    assert parse("a: &a {x: 1}\nb: *a\n", ".yml") == {"a": {"x": 1}, "b": {"x": 1}}
    assert parse("norms = ['bn']\n[a.b]\nc = 1\n", ".toml") == {"norms": ["bn"], "a": {"b": {"c": 1}}}
    nested = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert parse(f"x = {nested}\n", ".toml")
    with pytest.raises(ValueError, match=r"ends in \.toml"):
        parse("", ".json")
