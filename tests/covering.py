"""Fewer cases of a product in `make test`: those that hold every pair of values. `make test-all` runs them all.

Of the cases of a test marked `covering` the rest are marked slow. The values of a case are its parameters, and of a
dataclass among them its fields. `covering("norm", "layout")` keeps every combination of these, and every pair.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import combinations

import pytest

Values = Mapping[str, object]


@pytest.hookimpl(tryfirst=True)  # before pytest looks at what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    families: dict[tuple[object, ...], list[pytest.Function]] = {}
    for item in items:
        mark = item.get_closest_marker("covering")
        if mark and isinstance(item, pytest.Function) and not item.get_closest_marker("slow"):
            families.setdefault((item.path, item.originalname, mark.args), []).append(item)
    for (*_, axes), family in families.items():
        kept = covering([values_of(item) for item in family], axes)  # type: ignore[arg-type]
        for i, item in enumerate(family):
            if i not in kept:
                item.add_marker(pytest.mark.slow)


def values_of(item: pytest.Function) -> Values:
    """The parameters of a case by name, each dataclass replaced by its fields."""
    found: dict[str, object] = {}
    for name, value in item.callspec.params.items():
        if is_dataclass(value):
            found |= {f.name: repr(getattr(value, f.name)) for f in fields(value)}
        else:
            found[name] = repr(value)
    return found


def covering(cases: Sequence[Values], axes: Iterable[str] = ()) -> set[int]:
    """The indices of few cases that hold every pair of values, and every combination of `axes`, in any case.

    Greedy: the case that adds most comes next. What a case adds only ever falls, so that few are looked at again.
    """
    unknown = [name for name in axes if name not in cases[0]]
    if unknown:
        raise ValueError(f"covering: no axis {', '.join(unknown)}; expected one of {', '.join(cases[0])}")
    names = [name for name in cases[0] if len({case[name] for case in cases}) > 1] or list(cases[0])[:1]
    groups = [*combinations(names, 2), *((name,) for name in names), tuple(axes)]
    missing = [{(group, *(case[name] for name in group)) for group in groups} for case in cases]
    queue = [(-len(adds), i) for i, adds in enumerate(missing)]
    heapq.heapify(queue)
    kept: set[int] = set()
    seen: set[object] = set()
    while queue:
        size, i = heapq.heappop(queue)
        missing[i] -= seen
        if len(missing[i]) == -size != 0:
            kept.add(i)
            seen |= missing[i]
        elif missing[i]:
            heapq.heappush(queue, (-len(missing[i]), i))
    return kept
