"""Nobody asks a norm for its name: what a layer, a chart or a benchmark needs of it stands in its entry."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from normlab.norms import norm_names

PACKAGE = Path(__file__).parents[2] / "normlab"
# the registry; figures that were published; and two that have no part in the registry
FREE = {PACKAGE / name for name in ("norms", "reproduce", "check", "scratch")}
# words that mean something else as well, as in `approximate="none"` of torch's GELU
NAMES = {*norm_names()} - {"none", "rms", "frozen", "spectral"}


def compared(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each norm that code compares a value with, or looks up by its name."""
    for node in ast.walk(ast.parse(source)):
        held: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            held = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            held = [*node.keys]
        elif isinstance(node, ast.match_case):
            held = [node.pattern]
        constants = [c for part in held if part is not None for c in ast.walk(part) if isinstance(c, ast.Constant)]
        yield from ((c.lineno, c.value) for c in constants if isinstance(c.value, str) and c.value in NAMES)


# layers, charts and benchmarks had lists of names of their own, and a norm that was added stood in none of them
def test_no_norm_is_compared_by_name() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if not FREE & {*path.parents}]
    assert len(files) > 100
    assert [(path.name, *found) for path in files for found in compared(path.read_text("utf-8"))] == []


def test_a_comparison_by_name_is_found() -> None:
    lines = [
        'a = norm == "bn"',
        'b = norm in ("gn", "x")',
        'c = {"ln": 1}',
        'd = f("bn")',
        "match norm:",
        '    case "in": pass',
    ]
    source = "\n".join(lines)
    assert sorted(compared(source)) == [(1, "bn"), (2, "gn"), (3, "ln"), (6, "in")]
