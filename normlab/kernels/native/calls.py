"""What every call through C++ needs: the compiled part, told where a job's numbers stand, and addresses."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from ctypes import c_void_p, cast
from typing import Any

from normlab.kernels.native.building import extension
from normlab.kernels.runtime import job
from normlab.kernels.runtime.control import LINE, SIZE
from normlab.kernels.runtime.sharing import GRAIN_AWAKE

_PLACES = ("HELPERS", "SHARES", "CONTROL", "PARALLEL", "NUMBER")

compiled = extension()
compiled.set_up(
    {**{name: getattr(job, name) for name in _PLACES}, "line": LINE, "counters": SIZE, "grain": GRAIN_AWAKE}
)


class Kept(list[Any]):
    """C functions, which live as long as the plan that has their addresses."""

    def addressed(self, function: Callable[[int], None], numbers: array[int]) -> tuple[array[int], int]:
        """A prepared job as C++ takes it: its numbers, and the address of its direction."""
        self.append(function)
        return numbers, cast(function, c_void_p).value or 0  # type: ignore[arg-type]
