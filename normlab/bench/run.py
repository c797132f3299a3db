"""The order in which things are measured and printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normlab.bench import chart, exactness, layers, machine, memory, step
from normlab.bench import model as models
from normlab.bench.sides import stock, stock_layer
from normlab.bench.summary import per_step, summarize
from normlab.bench.table import LEGEND, Table, per_step_lines, summary_lines
from normlab.bench.timing import keep_memory
from normlab.bench.work import FORMS, LAYOUTS, NORMS, POSITION_NORMS, SHAPES, Work, grid, shape_above, takes_instances
from normlab.errors import UsageError
from normlab.errors.files import to_json
from normlab.study.keeping.environment import available_cores
from normlab.study.training.compiling import check_compiler

SCHEMA = 1  # of the JSON; grows when a field changes its meaning
_CACHE = 64 << 20  # bytes, where the system does not say


@dataclass(frozen=True)
class Plan:
    """What to measure; the defaults are those of the command line. `norms` None is all five, or bn for a step."""

    parts: Sequence[str] = ("layers",)
    norms: Sequence[str] | None = None
    shapes: Sequence[tuple[int, ...]] = SHAPES
    forms: Sequence[str] = FORMS
    layouts: Sequence[str] = LAYOUTS
    act: str = "relu"
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    rounds: int = 7
    with_compiled: bool = False
    above_cache: bool = False
    model: str | None = None
    model_input: tuple[int, ...] | None = None
    chart: Path | None = None
    as_json: bool = False


def run(plan: Plan) -> dict[str, Any]:
    """Measure and print the plan's parts; returns what `--json` prints. Raises UsageError and DataError."""
    device = machine.choose_device(plan.device)
    if plan.with_compiled:
        check_compiler(device)
    if plan.threads is not None:
        if plan.threads > available_cores():
            raise UsageError(f"--threads {plan.threads} is more than the {available_cores()} cores there are")
        torch.set_num_threads(plan.threads)
    facts = machine.describe(device)
    results: dict[str, Any] = {"schema": SCHEMA, "machine": facts, "freed_memory_kept": keep_memory()}
    out = sys.stderr if plan.as_json else sys.stdout
    _print([machine.line(facts)], out)
    images = [norm for norm in plan.norms or ("bn",) if norm not in POSITION_NORMS]
    for part in plan.parts:
        if part == "layers":
            results[part] = _layers(plan, device, facts, out)
            continue
        if part == "step" and plan.model is not None:
            results[part] = [_step_of_model(plan, device)]
            _print(step.lines(results[part]), out)
            continue
        if not images:
            raise UsageError(f"--norms {','.join(plan.norms or ())}: --{part} is about norms of images, such as bn,gn")
        if part == "step":
            results[part] = [step.measure(norm, plan.rounds, device, plan.with_compiled, plan.dtype) for norm in images]
            _print(step.lines(results[part]), out)
        elif part == "exactness":
            chosen = images if plan.norms else NORMS
            results[part] = [row for norm in chosen for row in exactness.measure(norm, device)]
            _print(exactness.lines(results[part]), out)
        else:
            results[part] = [memory.measure(norm, device) for norm in images]
            _print(memory.lines(results[part]), out)
    if plan.as_json:
        print(to_json(results, indent=1))
    return results


def _layers(plan: Plan, device: str, facts: dict[str, Any], out: Any) -> dict[str, Any]:
    works, others = _list_works(plan, device, facts["cache_bytes"])
    copies = machine.measure_copies(device, plan.rounds)
    speeds = ", ".join(f"{c['bytes_per_s'] / 1e9:.1f} GB/s in {name}" for name, c in copies.items())
    table = Table([w for _, w in works], plan.with_compiled)
    _print([*LEGEND, f"copies: {speeds} (read and written); n = {plan.rounds} rounds", table.head()], out)
    rows = []
    for asked, work in works:
        row = {**layers.measure(work, plan.rounds, device, plan.with_compiled), "layout_asked": asked}
        rows.append(row)
        _print([table.row(row)], out)
    summary = summarize(rows, facts["cache_bytes"])
    _print(summary_lines(summary), out)
    found: dict[str, Any] = {"rows": rows, "summary": summary, "copies": copies, "not_timed": others}
    if others:
        _print(["not timed: " + ", ".join(f"{count} {name}" for name, count in others.items())], out)
    if plan.model is not None:
        found["per_step"] = per_step(rows)
        _print(per_step_lines(found["per_step"]), out)
    if plan.chart is not None:
        caption = f"forward + backward, {plan.dtype}; {machine.line(facts)}; n = {plan.rounds} rounds"
        chart.write(rows, copies, caption, plan.chart)
        _print([f"chart written to {plan.chart}"], out)
    return found


def _step_of_model(plan: Plan, device: str) -> dict[str, Any]:
    assert plan.model is not None
    assert plan.model_input is not None
    net = models.load(plan.model, plan.model_input, lambda channels: stock("bn", channels))
    models.works_of(net, plan.model_input, "channels_first", "float32", device, plan.model)  # refuses a wrong input
    return step.measure_model(
        net, plan.model, plan.model_input, plan.rounds, device, plan.with_compiled, plan.dtype, layouts=plan.layouts
    )  # fmt: skip


def _list_works(plan: Plan, device: str, cache: int | None) -> tuple[list[tuple[str, Work]], dict[str, int]]:
    """(layout asked for, work) of every row, and the model's normalizations that are not timed."""
    if plan.model is None or plan.model_input is None:
        shapes = [*plan.shapes, *([shape_above(cache or _CACHE, plan.dtype)] if plan.above_cache else [])]
        works = grid(plan.norms or NORMS, plan.forms, shapes, plan.layouts, plan.act, plan.dtype)
        if not works:
            raise UsageError(
                "nothing to time: no norm fits the shapes in these layouts (channels_last needs 4 or 5 dimensions, "
                f"{' and '.join(filter(takes_instances, NORMS))} more than one position)"
            )
        for work in works:
            stock_layer(work)  # groups that do not divide the channels are refused now, not after minutes
        return [(work.layout, work) for work in works], {}
    net = models.load(plan.model, plan.model_input)
    found: list[tuple[str, Work]] = []
    others: dict[str, int] = {}
    for layout in plan.layouts:
        seen, others = models.works_of(net, plan.model_input, layout, plan.dtype, device, plan.model)
        found += [(layout, work) for work in seen]
    if not found:
        has = ", ".join(f"{count} {name}" for name, count in others.items()) or "none at all"
        raise UsageError(f"--model {plan.model!r}: no normalization that can be timed; it has {has}")
    return found, others


def _print(lines: Iterable[str], out: Any) -> None:
    for line in lines:
        print(line, file=out, flush=True)
