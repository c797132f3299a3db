"""Where figures were measured, and what its memory can do."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from normlab.bench.timing import in_turns
from normlab.errors import UsageError
from normlab.study.keeping.environment import describe_machine, describe_torch

_SMALLEST, _LARGEST = 64 << 20, 1 << 30  # bytes of the tensor that is copied to measure memory


def choose_device(name: str) -> str:
    """ "cpu", "cuda" or "cuda:1"; "auto" is the GPU if there is one. Raises UsageError if it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"--device {name!r} is not known; expected auto, cpu, cuda or cuda:1")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return name


def describe(device: str) -> dict[str, Any]:
    """Processor, versions, threads, and the size of the last-level cache."""
    return {**describe_machine(), **describe_torch(device), "cache_bytes": last_level_cache(device)}


def line(machine: dict[str, Any]) -> str:
    """The line that stands above every figure."""
    on = machine.get("gpu") or f"{machine['cpu']} ({machine['cores']} cores, {machine['threads']} threads)"
    cache = machine["cache_bytes"]
    parts = [
        on,
        f"last-level cache {cache / 2**20:.0f} MiB" if cache else "last-level cache unknown",
        *(f"{name} {machine[name]}" for name in ("normlab", "torch", "numba", "triton") if name in machine),
        f"Python {machine['python']}",
    ]
    return ", ".join(parts)


def last_level_cache(device: str) -> int | None:
    """Bytes of the largest cache, or None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text))
    return max(sizes, default=None)


def measure_copies(device: str, rounds: int, limit: int = _LARGEST) -> dict[str, dict[str, float]]:
    """Bytes a second, read and written, of a copy beyond the last-level cache and of one that fits in it.

    The large one copies a tensor as large as the cache (of 64 MiB to `limit`) to another; the small one moves a
    quarter of the cache, or a MiB where its size is not known.
    """
    cache = last_level_cache(device)
    sizes = {
        "memory": min(limit, max(_SMALLEST, cache or 0)),
        "cache": max(1 << 16, min(limit, (cache or 8 << 20) // 8)),
    }
    answer = {}
    for name, nbytes in sizes.items():
        source, target = (torch.ones(nbytes // 4, device=device) for _ in range(2))
        (times,) = in_turns([lambda s=source, t=target: t.copy_(s)], rounds, device=device)  # type: ignore[misc]
        answer[name] = {"tensor_bytes": nbytes, "bytes_per_s": 2e3 * nbytes / statistics.median(times)}
    return answer
