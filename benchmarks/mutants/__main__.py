"""`python -m benchmarks.mutants`: the mutation table as Markdown; `--list` names every mutant."""

from __future__ import annotations

import sys


def main() -> int:
    import torch

    from benchmarks.mutants.held_out import HELD_OUT
    from benchmarks.mutants.table import markdown, scores

    torch.set_num_threads(1)
    results, held_out = scores(), scores(HELD_OUT)
    if "--list" in sys.argv[1:]:
        for s in [*results, *held_out]:
            verdict = "" if s.named else f"  (the kit says {s.cause})"
            print(f"{s.mutant.name:36} {s.mutant.aspect:9} {s.mutant.cause}{verdict}")
        print()
    print(markdown(results, held_out))
    survivors = [s.mutant.name for s in [*results, *held_out] if not s.killed]
    if survivors:
        print("\nsurvivors: " + ", ".join(survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
