"""Two processes that train together (gloo), and a way to call functions in them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WORLD = 2
SECONDS = 600  # nothing here takes a tenth of it on any machine, unless kernels are compiled first: what does hangs


class Ranks:
    """Two processes in one group; `run` lets both call a function that can be imported.

    Processes that do not return in time, or of which one was left waiting, are ended, and new ones take their place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._processes: list[Any] = []
        self._lines: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, *arguments)` returns in each process; AssertionError if one raised or did not end."""
        if not self._processes:
            self._start()
        for line in self._lines:
            line.send((function, arguments))
        answers = []
        for rank, line in enumerate(self._lines):
            if not line.poll(SECONDS):
                self.close()
                raise AssertionError(f"rank {rank} did not end within {SECONDS} s")
            problem, answer = line.recv()
            if problem:
                self.close()
                raise AssertionError(f"rank {rank} raised\n{problem}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for line in self._lines:
            line.close()
        self._processes, self._lines = [], []

    def _start(self) -> None:
        self._started += 1
        context = get_context("spawn")
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            meeting = self._folder / f"meeting-{self._started}"
            process = context.Process(target=_work, args=(rank, f"file://{meeting}", theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)


def _work(rank: int, meeting: str, line: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, timedelta(seconds=SECONDS), WORLD, rank)
    while True:
        function, arguments = line.recv()
        try:
            line.send((None, function(rank, *arguments)))
        except Exception:
            line.send((traceback.format_exc(), None))
