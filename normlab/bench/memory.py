"""The memory that a training step takes at its peak: with our norms, and with torch's.

On a GPU the allocator counts. On the CPU each variant runs in a process of its own, and the kernel's high-water mark
of resident memory counts, so that nothing escapes it: tensors, NumPy arrays, scratch of convolutions.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from normlab.bench import step as training
from normlab.bench.work import LAYOUTS
from normlab.errors import DataError
from normlab.report import columns

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(
    norm: str,
    device: str = "cpu",
    *,
    model: str = training.MODEL,
    batch: int = training.BATCH,
    image_size: int = training.SIZE,
) -> dict[str, Any] | None:
    """Peak bytes of a step over what weights and optimizer hold already, per kind and layout.

    `ratio` is our smallest over torch's smallest, `recomputed_ratio` likewise within `normlab.recomputed_outputs`. None
    where the system has no such count (it takes Linux, or a GPU).
    """
    if not device.startswith("cuda") and not _CLEAR.exists():
        return None
    variants = []
    for kind in (*training.OURS, "eager"):
        for layout in LAYOUTS:
            arguments = [kind, norm, layout, device, model, str(batch), str(image_size)]
            done = subprocess.run([sys.executable, "-m", __name__, *arguments], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise DataError(f"the memory of a step ({kind}, {layout}) could not be measured: {reason}")
            variants.append({"kind": kind, "layout": layout, "peak_bytes": json.loads(done.stdout.splitlines()[-1])})
    least = {v["kind"]: min(w["peak_bytes"] for w in variants if w["kind"] == v["kind"]) for v in variants}
    return {
        "norm": norm,
        "model": model,
        "batch": batch,
        "image_size": image_size,
        "variants": variants,
        "ratio": least["ours"] / least["eager"],
        "recomputed_ratio": least["recomputed"] / least["eager"],
    }


def lines(results: Sequence[dict[str, Any] | None]) -> Iterator[str]:
    """The results as text."""
    for r in results:
        if r is None:
            yield "peak memory: not measured; on the CPU it takes Linux's /proc/self/clear_refs"
            continue
        setting = f"{r['model']}, {r['norm']}, batch {r['batch']}, {r['image_size']}x{r['image_size']}"
        yield f"peak memory of a training step of {setting}, over weights and optimizer"
        table = [[f"  {v['kind']}", v["layout"], f"{v['peak_bytes'] / 2**20:.1f} MiB"] for v in r["variants"]]
        yield from columns.lines(table, left={0, 1})
        yield (
            f"  our smallest over torch's: {r['ratio']:.2f}x; with recomputed outputs (`normlab.recomputed_outputs`) "
            f"{r['recomputed_ratio']:.2f}x"
        )


def _peak(step: Callable[[], None], device: str) -> int:
    """Bytes that a call of `step` adds at its peak, after one that has loaded all code."""
    if device.startswith("cuda"):
        import torch

        step()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # every array of more than 64 KiB is given back at once, so that the mark follows what is alive
    ctypes.CDLL(None).mallopt(-3, 64 << 10)
    step()
    before = _kib("VmRSS")
    _CLEAR.write_text("5")
    step()
    return (_kib("VmHWM") - before) * 1024


def _kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


if __name__ == "__main__":
    kind, norm, layout, device, model, batch, image_size = sys.argv[1:]
    print(_peak(training.make_step(kind, norm, layout, device, model, int(batch), int(image_size)), device))
