"""`normlab build`: the C++ part of the layers, compiled on request."""

from __future__ import annotations

import time

import typer


def build() -> None:
    """Compile the C++ part of the layers, so that calls on small tensors cost less; it takes a compiler and ninja."""
    from normlab.kernels import backend_for
    from normlab.kernels.native import building

    began = time.monotonic()
    present = building.built() is not None
    place = building.build()
    if not present:
        typer.echo(f"compiled in {time.monotonic() - began:.0f} s")
    import torch

    typer.echo(f"{place}\nlayers on the CPU are called through it: backend {backend_for(torch.zeros(1))!r}")
