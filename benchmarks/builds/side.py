"""One build's side of the comparison: a process that times the rows that it is sent, a line of JSON each.

It runs by its path, with the root of a checkout as its argument, and imports that checkout's normlab: of that it uses
no more than older ones have, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TURN = 0.04  # seconds of calls, at least
WARM = 0.1  # seconds of calls that are not timed: they compile, and meet their memory


def main(root: str) -> None:
    """Prepare the row that a line names (`{"norm": "bn", ...}`); time a turn of it for each line `{}`.

    The reply to either is `{"ms": milliseconds of a call}`.
    """
    sys.path.insert(0, root)
    import torch

    from normlab.bench.sides import make_step, our_layer
    from normlab.bench.timing import keep_memory
    from normlab.bench.work import Work

    torch.set_num_threads(1)
    keep_memory()
    step: Callable[[], None] = lambda: None  # noqa: E731
    calls = 1
    for asked in _lines():
        if asked:
            work = Work(**{**asked, "shape": tuple(asked["shape"])})
            step = make_step(our_layer(work), work, "cpu")
            step()
            calls = max(1, round(_calls_in(step, WARM) * TURN / WARM))
        print(json.dumps({"ms": _milliseconds(step, calls)}), flush=True)


def _lines() -> Iterator[dict[str, Any]]:
    for text in sys.stdin:
        yield json.loads(text)


def _calls_in(step: Callable[[], None], seconds: float) -> int:
    calls, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        step()
        calls += 1
    return calls


def _milliseconds(step: Callable[[], None], calls: int) -> float:
    """Of the processor, for a call."""
    began = time.process_time()
    for _ in range(calls):
        step()
    return 1e3 * (time.process_time() - began) / calls


if __name__ == "__main__":
    main(sys.argv[1])
