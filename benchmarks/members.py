"""What each member of the family needs: lines of code of its entry, and of a layer that is its own.

python -m benchmarks.members [--markdown]

Blank lines, comments and docstrings are left out. The entry of a norm that is a grid function is that function with
its decorator; of any other it is its registration. Formula, paper and the paragraph on its use are in it. Norms that
share a layer, as in and ibn-b, both have its lines.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from statistics import median
from typing import Any

from normlab.norms import describe, family, members, modules, norm_names
from normlab.norms.family import NormEntry


def main(args: list[str] | None = None) -> None:
    """Print a row for each norm."""
    rows: list[tuple[str, ...]] = [("norm", "entry", "its function", "own layer")]
    rows += [(name, *(str(n) if n else "" for n in sizes(describe(name)))) for name in norm_names()]
    if "--markdown" in (sys.argv[1:] if args is None else args):
        rows.insert(1, ("---", "---:", "---:", "---:"))
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        return
    for name, *figures in rows:
        print(f"{name:16}" + "".join(f"{figure:>14}" for figure in figures).rstrip())
    print(summary())


def summary() -> str:
    """Medians and extremes, in words."""
    found = [sizes(describe(name)) for name in norm_names()]
    functions = [(entry, code, own) for entry, code, own in found if code]
    others = [(entry, own) for entry, code, own in found if own and not code]
    return (
        f"{len(functions)} are grid functions of {median(code for _, code, _ in functions):g} lines in the median, "
        f"{max(code for _, code, _ in functions)} at most; their entries have "
        f"{median(entry for entry, _, _ in functions):g}, and {sum(not own for *_, own in functions)} need no layer of "
        f"their own. {len(others)} are modules of {median(own for _, own in others):g} lines in the median, "
        f"{max(own for _, own in others)} at most, and entries of {median(entry for entry, _ in others):g}."
    )


def sizes(entry: NormEntry) -> tuple[int, int, int]:
    """Lines of an entry, those of its grid function alone, and those of the layer that only it has."""
    own = sum(code_lines(inspect.getsource(part)) for part in _layer(entry))
    if entry.grid is None:
        return _registration(entry.name), 0, own
    source = textwrap.dedent(inspect.getsource(entry.grid))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    return code_lines(source), code_lines(source, function.lineno), own


def code_lines(source: str, first: int = 1) -> int:
    """Lines with code on them, from the `first` on, docstrings left out."""
    tree = ast.parse(textwrap.dedent(source))
    said = {line for node in ast.walk(tree) for line in _docstring(node)}
    lines = enumerate(source.splitlines(), start=1)
    return sum(i >= first and i not in said and text.strip()[:1] not in ("", "#") for i, text in lines)


def _docstring(node: ast.AST) -> range:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) or ast.get_docstring(node) is None:
        return range(0)
    return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def _layer(entry: NormEntry) -> list[Any]:
    """The class of a layer that is not a general one; of a norm of weights, its function and the class that it uses."""
    where = entry.layer if entry.grid is not None else entry.of_weights or entry.module
    if not isinstance(where, str):
        return []
    home, _, name = where.partition(":")
    module = importlib.import_module(home)
    found: Any = getattr(module, name)
    if not entry.of_weights:
        return [found] if isinstance(found, type) else []
    used = (getattr(module, other, None) for other in found.__code__.co_names)
    return [found, *(one for one in used if isinstance(one, type) and one.__module__ == home)]


def _registration(name: str) -> int:
    """Lines of the call, or the row of a table, that registers a norm which is a module."""
    for module in (family, members, modules):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if not isinstance(node, ast.Call | ast.Tuple):
                continue
            given = node.args if isinstance(node, ast.Call) else node.elts
            if given and isinstance(given[0], ast.Constant) and given[0].value == name:
                return (node.end_lineno or node.lineno) - node.lineno + 1
    return 0


if __name__ == "__main__":
    main()
