"""What an experiment finds about one reported claim."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One line of the verdict: what was reported, what was measured, and by which rule they were compared.

    `exact` is one that has no chance in it. `needs` is about how many seeds would decide one that cannot be told, where
    that is known, and at most `verdicts.MOST`. `scale` says in words at which scale the verdict was reached.
    """

    claim: str
    reported: str
    measured: str
    verdict: str
    rule: str
    values: dict[str, list[float]] = field(default_factory=dict)
    exact: bool = False
    needs: int | None = None
    scale: str = ""
