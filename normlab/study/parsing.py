"""Settings files as values: TOML and YAML, within bounds that no study comes near."""

from __future__ import annotations

from typing import Any

from normlab.errors import require

MOST_BYTES = 1 << 18
DEEPEST = 32
MOST_VALUES = 20_000  # of a YAML file, each alias counted as what it stands for


def parse(text: str, suffix: str) -> Any:
    """The values of a TOML or YAML text. Raises ValueError for any other suffix, for nonsense and for bombs."""
    if suffix == ".toml":
        values = _toml(text)
    elif suffix in (".yaml", ".yml"):
        values = _yaml(text)
    else:
        raise ValueError(f"expected a name that ends in .toml, .yaml or .yml, got {suffix!r}")
    if _is_deeper(values, DEEPEST):
        raise ValueError(_too_deep())
    return values


def _toml(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_too_deep()) from None


def _yaml(text: str) -> Any:
    require("a YAML file", "study", "yaml")
    import yaml  # type: ignore[import-untyped]

    try:
        _count(yaml.parse(text, Loader=yaml.SafeLoader), yaml)
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e).replace("\n", " ")) from None


def _count(events: Any, yaml: Any) -> None:
    """Read a YAML file's events, without making its values; raises ValueError where they are too many, or too deep."""
    sizes, open_ = [0], [""]
    named: dict[str, int] = {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            open_.append(event.anchor or "")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), open_.pop()
            named |= {anchor: size} if anchor else {}
            sizes[-1] += size
        elif isinstance(event, yaml.AliasEvent):
            sizes[-1] += named.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            named |= {event.anchor: 1} if event.anchor else {}
            sizes[-1] += 1
        if len(sizes) > DEEPEST:
            raise ValueError(_too_deep())
        if sum(sizes) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values, each alias counted as what it stands for")


def _is_deeper(values: Any, depth: int) -> bool:
    """Whether lists and tables nest deeper than this, without a call for each."""
    level = [values]
    for _ in range(depth):
        level = [v for held in level for v in _children(held)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _too_deep() -> str:
    return f"nested deeper than {DEEPEST} levels; a settings file has three"
