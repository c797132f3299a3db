"""Layers as people write them, and patches that make them wrong: what the third and the fourth set consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutants.base import module_from_source
from normlab.check.subjects import Subject, subject_of


@dataclass(frozen=True)
class Right:
    """A layer that is right: a file, the names in it, and the kind that a user would give with --as (or None)."""

    file: str
    target: str
    kind: str | None
    backward: str | None
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.file}:{self.target}" + (f",{self.backward}" if self.backward else "")

    def source(self) -> str:
        return (self.folder / f"{self.file}.py").read_text()

    def subject(self, source: str | None = None) -> Subject:
        """The layer as the kit is given it, or what a patched source makes of it."""
        text = self.source() if source is None else source
        module = module_from_source(text, f"_written_{self.file}")
        backward = getattr(module, self.backward) if self.backward else None
        return subject_of(getattr(module, self.target), self.target, backward, self.kind)


@dataclass(frozen=True)
class Wrong:
    """A right layer with patches: `causes` in plain words, one for every fault."""

    name: str
    right: Right
    causes: tuple[str, ...]
    edits: tuple[tuple[str, str], ...]

    def source(self) -> str:
        """The patched source; raises ValueError where a patch does not fit exactly once."""
        text = self.right.source()
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} occurs {text.count(old)} times in {self.right.file}")
            text = text.replace(old, new)
        return text

    def subject(self) -> Subject:
        return self.right.subject(self.source())


def by_name(layers: Iterable[Right]) -> dict[str, Right]:
    return {r.name: r for r in layers}


def right_of(folder: Path) -> Callable[..., Right]:
    """Shorthand of a set: file in the folder, target, kind, backward pass."""

    def right(file: str, target: str, kind: str | None = None, backward: str | None = None) -> Right:
        return Right(file, target, kind, backward, folder)

    return right


def wrong_of(rights: Mapping[str, Right]) -> Callable[..., Wrong]:
    """Shorthand of a set: name, right layer, causes separated by semicolons; edits as old, new, old, new, ..."""

    def wrong(name: str, of: str, causes: str, *edits: str) -> Wrong:
        pairs = tuple(zip(edits[::2], edits[1::2], strict=True))
        return Wrong(name, rights[of], tuple(c.strip() for c in causes.split(";")), pairs)

    return wrong
