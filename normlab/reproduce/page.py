"""The page of a result, its figures and its numbers, written to a folder."""

from __future__ import annotations

import base64
import math
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from normlab.errors import DataError, files
from normlab.reproduce import EXPERIMENTS, verdicts
from normlab.reproduce.charts import as_spec
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.finding import Finding

QUICK = (
    "This was a quick run, with fewer images, epochs or repeats than published, which shows that the experiment works "
    "and decides nothing; for its findings run it with --scale small (minutes) or --scale full (as published)."
)
_PLAIN = ("", "any", "quick run")  # scales that need no word on a terminal
_CLASSES = {
    verdicts.HOLDS: "holds",
    verdicts.HERE: "holds",
    verdicts.EQUIVALENT: "holds",
    verdicts.FAILS: "fails",
    verdicts.NOT_HERE: "fails",
    verdicts.UNKNOWN: "unknown",
}


def _memory(size: int | None) -> str:
    return f", {size / 2**30:.0f} GiB" if size else ""


def write(name: str, result: Result, setting: Setting, folder: Path, command: str, seconds: float) -> Path:
    """Write index.html, result.json and each figure (SVG and PNG, or PNG) to `folder`; return the page's path."""
    from normlab.study.keeping.environment import describe_machine

    machine = describe_machine()
    details = {
        **result.setting,
        "seeds": ", ".join(map(str, setting.seed_range)),
        "scale": setting.scale,
        "command": command,
        "time": f"{seconds:.0f} s",
        "hardware": f"{machine['cpu']}, {machine['cores']} cores" + _memory(machine["memory_bytes"]),
        "versions": ", ".join(
            f"{key} {machine[key]}" for key in ("normlab", "python", "numpy", "numba", "torch") if key in machine
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    figures = [_draw(folder, key, chart, result.captions.get(key, "")) for key, chart in result.charts.items()]
    figures += [_show(folder, key, png, result.captions.get(key, "")) for key, png in result.pictures.items()]
    numbers = {
        "experiment": name,
        "question": EXPERIMENTS[name],
        "findings": [vars(finding) for finding in result.findings],
        "setting": details,
        "notes": result.notes,
        "environment": machine,
        "records": result.records,
    }
    files.write_text(folder / "result.json", files.to_json(numbers, indent=1) + "\n")
    page = _template().render(
        name=name,
        question=EXPERIMENTS[name],
        findings=result.findings,
        needs=[_describe_need(f, setting, max(seconds, result.seconds)) for f in result.findings],
        details=details,
        notes=([QUICK] if setting.quick else []) + result.notes,
        figures=figures,
        classes=_CLASSES,
        scale=_common_scale(result.findings),
    )
    path = folder / "index.html"
    files.write_text(path, page)
    return path


def _describe_need(finding: Finding, setting: Setting, seconds: float) -> str:
    """What would decide a finding that could not be decided; empty where that is not known."""
    said = verdicts.describe_need(finding.needs)
    if finding.needs is None or finding.needs >= verdicts.MOST:
        return said
    return f"{said}: {math.ceil(finding.needs * seconds / len(setting.seed_range) / 60)} min on this machine"


def lines(findings: list[Finding]) -> list[str]:
    """The findings as text, a line each; the scale of most of them stands above."""
    common = _common_scale(findings)
    return [
        *([f"scale: {common}"] if common not in _PLAIN else []),
        *(
            f"{f.verdict}{'' if f.scale in (*_PLAIN, common) else f' ({f.scale})'}: {f.claim}; "
            f"reported: {f.reported}; measured: {f.measured}"
            for f in findings
        ),
    ]


def _common_scale(findings: list[Finding]) -> str:
    """The scale of most findings."""
    return Counter(f.scale for f in findings).most_common(1)[0][0] if findings else ""


def _draw(folder: Path, key: str, chart: Any, caption: str) -> dict[str, str]:
    import vl_convert

    # room for the reader's font, which may be wider than the one that the text was measured in here
    spec = {**as_spec(chart), "padding": {"left": 24, "right": 12, "top": 5, "bottom": 5}}
    svg = vl_convert.vegalite_to_svg(spec)
    files.write_text(folder / f"{key}.svg", svg)
    files.write_bytes(folder / f"{key}.png", vl_convert.vegalite_to_png(spec, scale=2))
    return {"uri": _uri("image/svg+xml", svg.encode()), "caption": caption, "key": key}


def _show(folder: Path, key: str, png: bytes, caption: str) -> dict[str, str]:
    files.write_bytes(folder / f"{key}.png", png)
    return {"uri": _uri("image/png", png), "caption": caption, "key": key}


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(resources.files("normlab.reproduce").joinpath("page.html").read_text("utf-8"))
