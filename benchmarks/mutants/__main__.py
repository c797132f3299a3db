"""`python -m benchmarks.mutants`: the mutation table as Markdown; `--list` names every mutant.

`--third` scores the third and the fourth set in place of the mutants.
"""

from __future__ import annotations

import sys


def main() -> int:
    import torch

    torch.set_num_threads(1)
    listed = "--list" in sys.argv[1:]
    return _layers(listed) if "--third" in sys.argv[1:] else _mutants(listed)


def _mutants(listed: bool) -> int:
    from benchmarks.mutants.held_out import HELD_OUT
    from benchmarks.mutants.table import markdown, scores

    results, held_out = scores(), scores(HELD_OUT)
    if listed:
        for s in [*results, *held_out]:
            verdict = "" if s.named else f"  (the kit says {s.cause})"
            print(f"{s.mutant.name:36} {s.mutant.aspect:9} {s.mutant.cause}{verdict}")
        print()
    print(markdown(results, held_out))
    survivors = [s.mutant.name for s in [*results, *held_out] if not s.killed]
    if survivors:
        print("\nsurvivors: " + ", ".join(survivors))
    return 1 if survivors else 0


def _layers(listed: bool) -> int:
    from benchmarks.mutants.scored import Outcome, markdown, scored
    from benchmarks.mutants.written import Wrong

    def told(o: Outcome) -> None:
        expected = "; ".join(o.layer.causes) if isinstance(o.layer, Wrong) else "right"
        print(f"{o.layer.name:36} {expected}: the kit says {', '.join(o.causes) or 'nothing'}", flush=True)

    found = scored(told if listed else lambda o: None)
    print(markdown(found))
    survivors = [o.layer.name for wrong, _ in found.values() for o in wrong if not o.killed]
    blamed = [o.layer.name for _, right in found.values() for o in right if o.killed]
    for title, names in (("survivors", survivors), ("right, and called wrong", blamed)):
        if names:
            print(f"\n{title}: {', '.join(names)}")
    return 1 if survivors or blamed else 0


if __name__ == "__main__":
    raise SystemExit(main())
