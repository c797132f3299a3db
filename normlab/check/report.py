"""What a check found: findings, and the report that gathers them; plain data, no heavy imports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

GROUPS = ("target", "values", "gradients", "numerics", "layouts", "state", "speed")
SIGNS = {"pass": "ok", "bug": "BUG", "note": "note", "skip": "skip"}


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


@dataclass
class Report:
    """All findings about one target, and the dialect it was found to speak."""

    target: str
    form: str = ""
    dialect: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def bugs(self) -> list[Finding]:
        return [f for f in self.findings if f.status == "bug"]

    @property
    def ok(self) -> bool:
        """True when at least one check ran and none found a bug."""
        return not self.bugs and any(f.status == "pass" for f in self.findings)

    @property
    def cause(self) -> str | None:
        """The first bug's diagnosis: checks run from the simplest to the most remote, so the first is the root."""
        return next((f.cause for f in self.bugs if f.cause), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "form": self.form,
            "ok": self.ok,
            "cause": self.cause,
            "dialect": self.dialect,
            "seconds": round(self.seconds, 3),
            "findings": [asdict(f) for f in self.findings],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        return cls(
            data["target"],
            data["form"],
            data["dialect"],
            [Finding(**f) for f in data["findings"]],
            data["seconds"],
        )

    def text(self, verbose: bool = False) -> str:
        """The report for people: the dialect, every bug in full, a line per note, counts of the rest."""
        lines = [f"{self.target}  ({self.form})" if self.form else self.target]
        lines += [f"  {key}: {value}" for key, value in self.dialect.items()]
        for f in self.findings:
            if f.status == "pass" and not verbose:
                continue
            if f.status == "skip" and not verbose:
                continue
            lines += ["", f"{SIGNS[f.status]:5}{f.check}: {f.message}"]
            lines += [f"     right:    {f.formula}"] if f.formula else []
            if f.example:
                first, *rest = f.example.splitlines()
                lines += [f"     smallest: {first}", *(f"               {line}" for line in rest)]
        count = {s: sum(f.status == s for f in self.findings) for s in SIGNS}
        verdict = "conforms" if self.ok else "does not conform"
        lines += [
            "",
            f"{verdict}: {count['pass']} checks passed, {count['bug']} bugs, {count['note']} notes, "
            f"{count['skip']} skipped, {self.seconds:.1f} s",
        ]
        return "\n".join(lines)
