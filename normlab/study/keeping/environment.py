"""Where a study ran: versions, hardware, threads and the command, without importing torch."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from normlab.kernels.runtime.system import available_cores

__all__ = ["available_cores", "command_line", "describe_machine", "describe_torch", "memory_bytes"]

_PACKAGES = ("normlab", "torch", "numpy", "numba", "scipy", "triton")


@cache
def describe_machine() -> dict[str, Any]:
    """Versions, processor, cores and memory of this machine."""
    return {
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_bytes": memory_bytes(),
    }


def describe_torch(device: str) -> dict[str, Any]:
    """What only torch can say: the device it computes on, the threads it uses, and how many processes share a cell."""
    import torch
    import torch.distributed as dist

    facts: dict[str, Any] = {"device": device, "threads": torch.get_num_threads()}
    if dist.is_available() and dist.is_initialized():
        facts["processes"] = dist.get_world_size()
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def command_line() -> str:
    """The command that this process was started with, as one would type it."""
    program = Path(sys.argv[0])
    by_module = program.name == "__main__.py"  # python -m PACKAGE
    name = ["python", "-m", program.parent.name] if by_module else [program.name]
    command = shlex.join([*name, *sys.argv[1:]])
    return command.encode(errors="surrogateescape").decode(
        errors="backslashreplace"
    )  # also of a file whose name is not UTF-8


def memory_bytes(pages: str = "SC_PHYS_PAGES") -> int | None:
    """Memory of this machine, or with "SC_AVPHYS_PAGES" what is free of it; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
