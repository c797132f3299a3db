"""What a page is made of: sections, and groups of figures in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from normlab.report.figures.parts import Figure, Table


@dataclass(frozen=True)
class Group:
    """Figures that are shown together; where a section has several groups, the reader picks one."""

    label: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Tile:
    """A picture with its words; `mark` is "right", "wrong" or "", `data` a data: address."""

    data: str
    alt: str
    lines: Sequence[str]
    mark: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures under a heading."""

    title: str
    rows: Sequence[Sequence[Tile]]


@dataclass(frozen=True)
class Section:
    """A heading, words, tables, figures (one group at a time), galleries and facts, in this order."""

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    groups: Sequence[Group] = ()
    more: tuple[str, Table] | None = None
    pick: str = "Shown"
    layout: str = ""
    after: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    download: str = ""

    @property
    def figures(self) -> list[Figure]:
        """The figures of all groups."""
        return [figure for group in self.groups for figure in group.figures] + list(self.after)
