"""The process that a target runs in: it loads and checks one target and writes events, one JSON line each.

Standard output and error belong to the target; the events go to a file of their own.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any, TextIO


def main(job: dict[str, Any], events: TextIO) -> None:
    """Check the target of a job and write what happens, as it happens."""

    def tell(**event: Any) -> None:
        events.write(json.dumps(event, default=str) + "\n")
        events.flush()

    from normlab.errors import NormlabError

    if job["target"].startswith("keras") or ":" in job["target"]:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import torch  # noqa: F401  (its import takes seconds that are not the target's)

        from normlab.check import checks  # noqa: F401
        from normlab.check.engine import examine, failure
        from normlab.check.process import SideEffects
        from normlab.check.subjects import TargetFailure, load, subject_of

        tell(starting="target.load")
        effects = SideEffects()
        try:
            with effects.watched(seeds=True):
                thing, backward, name = load(job["target"])
            with effects.watched():
                subject = subject_of(thing, name, backward, job["kind"])
        except TargetFailure as e:
            tell(finding=asdict(failure("target.load", e)))
            tell(done={"form": "", "dialect": {}, "seconds": 0.0})
            return
        report = examine(
            subject,
            job["kind"],
            job["dialect"],
            job["quick"],
            elements=job["elements"],
            strict=job["strict"],
            starting=lambda name: tell(starting=name),
            found=lambda finding: tell(finding=asdict(finding)),
            effects=effects,
        )
        tell(done={"form": report.form, "dialect": report.dialect, "seconds": report.seconds})
    except NormlabError as e:
        tell(usage=str(e), code=e.exit_code)


if __name__ == "__main__":
    with open(sys.argv[2], "w") as file:
        main(json.loads(sys.argv[1]), file)
    os._exit(0)  # threads and exit handlers of the target do not get to hold us
