"""What a check found: findings, and the report that gathers them; plain data, no heavy imports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

GROUPS = ("target", "values", "gradients", "numerics", "layouts", "state", "speed")
SIGNS = {"pass": "ok", "bug": "BUG", "note": "note", "skip": "skip"}
PARTS = ("mathematics", "engineering", "numerics")
FAULT_OF_THE_CHECK = "fault-of-the-check"
# a group belongs to one part; these checks belong to another than their group
_PART_OF_GROUP = {"target": "mathematics", "values": "mathematics", "gradients": "mathematics", "numerics": "numerics"}
_PART_OF_CHECK = {
    "gradients.repeat": "engineering",
    "gradients.running-detached": "engineering",
    "gradients.degenerate": "numerics",
    "layouts.channels-last-mean": "numerics",
    "layouts.one-sample": "mathematics",
    "layouts.one-position": "mathematics",
    "layouts.other-sizes": "mathematics",
    "layouts.long": "mathematics",
    "state.eval-leaves-state": "mathematics",
    "state.history": "mathematics",
    "state.input-kept": "mathematics",
    "target.side-effects": "engineering",
    "target.children": "engineering",
}


def part_of(check: str) -> str:
    """The part of a report that a check belongs to: mathematics, engineering or numerics."""
    return _PART_OF_CHECK.get(check) or _PART_OF_GROUP.get(check.split(".")[0], "engineering")


@dataclass
class Finding:
    """One check's outcome.

    `check` is "group.name", `status` one of pass, bug, note (true, but no error of the layer) and skip (could not
    be checked, the message says why); `cause` the identifier of the diagnosis, `formula` the right formula,
    `example` the smallest input that shows it, `measured` numbers behind it.
    """

    check: str
    status: str
    message: str
    cause: str | None = None
    formula: str | None = None
    example: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """mathematics, engineering or numerics."""
        return part_of(self.check)


@dataclass
class Report:
    """All findings about one target, in three parts, and the dialect it was found to speak.

    The mathematics decides whether the target conforms; with `strict` the engineering and the numerics do, too. A
    report is `complete` unless the target ended the checks: what was not run is not right.
    """

    target: str
    form: str = ""
    dialect: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    strict: bool = False
    complete: bool = True

    @property
    def bugs(self) -> list[Finding]:
        return [f for f in self.findings if f.status == "bug"]

    def of_part(self, part: str) -> list[Finding]:
        """The findings of mathematics, engineering or numerics."""
        return [f for f in self.findings if f.part == part]

    @property
    def mathematics_ok(self) -> bool:
        """Whether formula, gradients and running statistics are right: something was checked, and no bug was found."""
        found = self.of_part("mathematics")
        return any(f.status == "pass" for f in found) and not any(f.status == "bug" for f in found)

    @property
    def ok(self) -> bool:
        """Whether the target conforms: all checks ran, and found its mathematics right; with `strict`, everything."""
        return self.complete and self.mathematics_ok and not (self.strict and self.bugs)

    @property
    def cause(self) -> str | None:
        """The first bug's diagnosis, the mathematics first: what is simplest is checked first, so that is the root."""
        ordered = sorted(self.bugs, key=lambda f: PARTS.index(f.part))
        return next((f.cause.split(" + ")[0] for f in ordered if f.cause), None)

    @property
    def causes(self) -> list[str]:
        """The diagnoses of all bugs, each once; two slips in one formula are two."""
        named = (c for f in self.bugs for c in (f.cause or "").split(" + ") if c)
        return list(dict.fromkeys(named))

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "form": self.form,
            "ok": self.ok,
            "strict": self.strict,
            "complete": self.complete,
            "parts": {part: self._verdict(part) for part in PARTS},
            "cause": self.cause,
            "causes": self.causes,
            "dialect": self.dialect,
            "seconds": round(self.seconds, 3),
            "findings": [asdict(f) | {"part": f.part} for f in self.findings],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        return cls(
            data["target"],
            data["form"],
            data["dialect"],
            [Finding(**{k: v for k, v in f.items() if k != "part"}) for f in data["findings"]],
            data["seconds"],
            data.get("strict", False),
            data.get("complete", True),
        )

    def _verdict(self, part: str) -> str:
        """right, wrong, or not checked."""
        statuses = {f.status for f in self.of_part(part)}
        return "wrong" if "bug" in statuses else "right" if "pass" in statuses else "not checked"

    def text(self, verbose: bool = False) -> str:
        """The report for people: the dialect, then each part with its bugs in full and a line per note."""
        lines = [f"{self.target}  ({self.form})" if self.form else self.target]
        lines += [f"  {key}: {value}" for key, value in self.dialect.items()]
        for part in PARTS:
            found = self.of_part(part)
            if found:
                lines += ["", f"{part}: {self._verdict(part)}{self._counts(found)}"]
            for f in found:
                quiet = f.status == "pass" or (f.status == "skip" and f.cause != FAULT_OF_THE_CHECK)
                if verbose or not quiet:
                    lines += self._lines(f)
        verdict = "conforms" if self.ok else "does not conform"
        lines += ["", f"{verdict}: {self._explain_verdict()}{self._counts(self.findings)}, {self.seconds:.1f} s"]
        return "\n".join(lines)

    def _explain_verdict(self) -> str:
        """What the verdict rests on, in a few words."""
        parts = [f"{part} {self._verdict(part)}" for part in PARTS if self.of_part(part)]
        return ", ".join(parts if self.complete else [*parts, "the checks after the last one did not run"])

    @staticmethod
    def _counts(found: list[Finding]) -> str:
        count = {s: sum(f.status == s for f in found) for s in SIGNS}
        said = [f"{count['pass']} checks passed", f"{count['bug']} bugs", f"{count['note']} notes"]
        return f" ({', '.join(said)}, {count['skip']} skipped)"

    @staticmethod
    def _lines(f: Finding) -> list[str]:
        lines = ["", f"{SIGNS[f.status]:5}{f.check}: {f.message}"]
        lines += [f"     right:    {f.formula}"] if f.formula else []
        if f.example:
            first, *rest = f.example.splitlines()
            lines += [f"     smallest: {first}", *(f"               {line}" for line in rest)]
        return lines
