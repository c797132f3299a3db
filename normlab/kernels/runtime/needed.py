"""Kernels by name: who needs one does not import what it is made from, and so neither Numba.

A function of a module makes the kernel and returns its address.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_ssize_t
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from normlab.kernels.runtime.objects import find


class Need(NamedTuple):
    """A function of a module that makes a kernel, and its arguments."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()

    @property
    def symbol(self) -> str:
        """Its name in a library."""
        return f"{self.module}.{self.name}({','.join(map(str, self.arguments))})"


@cache
def address(need: Need) -> int:
    """The address of this kernel, which came compiled, or is compiled if that is not on disk."""
    came = find(need.symbol)
    if came is not None:
        return came
    made: int = getattr(import_module(need.module), need.name)(*need.arguments)
    return made


@cache
def function(need: Need, arguments: int) -> Callable[..., None]:
    """The same as a function of so many integers; it releases the interpreter's lock."""
    return CFUNCTYPE(None, *[c_ssize_t] * arguments)(address(need))
