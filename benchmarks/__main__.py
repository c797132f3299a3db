"""Everything that is measured, losses included: `python -m benchmarks`, or `make bench`.

First `normlab bench --all`, with torch.compile as a third side, then the NumPy engine, the study engine, what a fresh
installation waits for, the backward pass beside the forward pass, and a comparison beside the plain torch loop.
"""

from __future__ import annotations

from benchmarks import cold, comparing, directions, engine, scratch
from normlab.bench.machine import choose_device
from normlab.bench.run import Plan, run
from normlab.errors import UsageError
from normlab.study.training.compiling import check_compiler


def main() -> None:
    """Run all of it, one after the other."""
    device = choose_device("auto")
    try:
        check_compiler(device)
        with_compiled = True
    except UsageError as error:
        with_compiled = False
        print(f"torch.compile is not measured: {error}")
    run(Plan(parts=("layers", "exactness", "memory", "step"), with_compiled=with_compiled, device=device))
    print()
    scratch.main([])
    print()
    engine.main([])
    for part in (cold, directions, comparing):
        print()
        part.main([])


if __name__ == "__main__":
    main()
