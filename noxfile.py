"""The tests with several versions of torch: `nox`, or `nox -s "tests(torch='2.9.1')"`."""

from __future__ import annotations

from pathlib import Path

import nox

TORCH = ("2.9.1", "2.13.0", "2.14.1")  # the lowest, the pinned one, the newest


@nox.session
@nox.parametrize("torch", TORCH)
def tests(session: nox.Session, torch: str) -> None:
    """Every test but the slow ones; other arguments go to pytest."""
    # first, alone and exactly: with others the resolver may take a newer one, and with it what that one wants of triton
    session.install(f"torch=={torch}")
    pinned = Path("constraints.txt").read_text().splitlines()
    others = [line for line in pinned if not line.startswith(("torch==", "triton=="))]
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join([*others, f"torch=={torch}"]))
    session.install("--constraint", str(constraints), "--editable", ".[study,report,parquet,serve,test]")
    session.run("python", "-m", "pytest", "-m", "not slow", *session.posargs)


@nox.session
def core(session: nox.Session) -> None:
    """The layers as a user gets them who installs no extra."""
    session.install(".")
    session.run(
        "python", "-c", "import torch, normlab; normlab.make_norm('bn', 4)(torch.randn(2, 4, 3, 3)).sum().backward()"
    )
