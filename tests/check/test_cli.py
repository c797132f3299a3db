"""`normlab check` and `normlab lint` on the command line: output, exit codes, time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from normlab.cli import main

ORIGINALS = Path(__file__).parents[2] / "benchmarks" / "mutants" / "originals"


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def normlab(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process (`check` starts one of its own for the target)."""

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        told = capsys.readouterr()
        return Done(int(ended.value.code or 0), told.out, told.err)

    return run


def test_a_right_layer_exits_with_0_and_tells_its_dialect(normlab: Callable[..., Done]) -> None:
    done = normlab("check", "torch.nn:BatchNorm2d", "--quick")
    assert done.code == 0, done.out + done.err
    assert "momentum: 0.1 on the new batch, 0.9 on the old" in done.out
    assert "running variance: unbiased (n - 1)" in done.out
    assert "conforms: " in done.out


def test_a_bug_exits_with_1_and_is_named(normlab: Callable[..., Done], tmp_path: Path) -> None:
    source = (ORIGINALS / "layer_numpy.py").read_text().replace("np.sqrt(var + eps)", "np.sqrt(var) + eps")
    (tmp_path / "mine.py").write_text(source)
    done = normlab("check", f"{tmp_path}/mine.py:layernorm_forward", "--quick")
    assert done.code == 1
    assert "eps is added outside the square root" in done.out
    assert "right:" in done.out
    assert "smallest: x = " in done.out
    assert "does not conform" in done.out


NOTED = """
import os, sys
def note():
    with open(os.environ["IMPORTED"], "a") as file:
        large = "torch", "sympy", "torch._dynamo", "numba", "triton"
        threads = os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        file.write(" ".join([threads, *(m for m in large if m in sys.modules)]) + ";")
"""
PAIR = (
    NOTED
    + """
import numpy as np
def batchnorm_forward(x, gamma, beta, bn_param):
    note()
    n, d = x.shape
    old = [bn_param.get(name, np.zeros(d)) for name in ("running_mean", "running_var")]
    mean, var = (x.mean(0), x.var(0)) if bn_param["mode"] == "train" else old
    if bn_param["mode"] == "train":
        p = bn_param.get("momentum", 0.9)
        bn_param["running_mean"], bn_param["running_var"] = p * old[0] + (1 - p) * mean, p * old[1] + (1 - p) * var
    std = np.sqrt(var + bn_param.get("eps", 1e-5))
    xhat = (x - mean) / std
    return gamma * xhat + beta, (xhat, gamma, std)
def batchnorm_backward(dy, cache):
    note()
    xhat, gamma, std = cache
    dxhat = dy * gamma
    dx = (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)) / std
    return dx, (dy * xhat).sum(0), dy.sum(0)
"""
)
LAYER = (
    NOTED
    + """
import torch
class BatchNorm(torch.nn.BatchNorm2d):
    def forward(self, x):
        note()
        return super().forward(x)
"""
)


# `--quick` took 5 to 7 s of processor time, most of it for what torch imports; and with more than one thread, torch's
# compiler keeps a process in a session of its own, which torch's own batch norm was said to leave
@pytest.mark.parametrize(
    ("text", "name", "imported"), [(PAIR, "batchnorm_forward", "1"), (LAYER, "BatchNorm", "1 torch")]
)
def test_quick_imports_no_more_than_its_target_needs(
    text: str, name: str, imported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noted.py").write_text(text)
    monkeypatch.setenv("IMPORTED", str(tmp_path / "imported"))
    check = (
        "import sys; from normlab.check.contain import check_contained; "
        f"assert check_contained('noted.py:{name}', quick=True).ok; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "imported").read_text().strip(";").split(";")) == {imported}


@pytest.mark.slow  # a limit of processor time depends on the machine
def test_quick_is_quick_and_the_process_answers_by_itself() -> None:
    command = [sys.executable, "-m", "normlab", "check", "torch.nn:LayerNorm", "--quick", "--json"]
    before = _seconds_of_children()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _seconds_of_children() - before < 30  # processor time, whatever else runs; 5 s of it where little does


def _seconds_of_children() -> float:
    """Processor time of the processes that ended."""
    used = os.times()
    return used.children_user + used.children_system


def test_json_is_json(normlab: Callable[..., Done], tmp_path: Path) -> None:
    done = normlab("check", f"{ORIGINALS}/rms_torch.py:RMSNorm", "--quick", "--json")
    report = json.loads(done.out)
    assert report["ok"] is True
    assert report["form"] == "torch Module"
    assert {f["check"] for f in report["findings"]} >= {"values.train", "gradients.train", "state.pickle"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "nowhere.py:Norm"), "there is no file nowhere.py"),
        (("check", "torch.nn:BatchNorm2d", "--as", "spectral"), "--as spectral: not checked as itself"),
        (("check", "torch.nn:BatchNorm2d", "--dialect", "numpy"), "--dialect 'numpy': expected auto or one of torch"),
        (("check", "torch.nn:BatchNorm2d", "--quick", "--elements", "10"), "--elements with --quick"),
        (("lint", "torch.nn:Linear"), "the factory raised TypeError"),
        (("lint", "math:sqrt"), "the factory raised TypeError"),
        (("lint", "time:time"), "returned float; expected a torch.nn.Module"),
        (("lint", "torch.nn:Identity", "--batch-size", "0"), "--batch-size 0: expected 1 or more"),
        (("lint", "torch.nn:Identity", "--last-batch", "64"), "--last-batch 64: expected at most --batch-size 32"),
        (("lint", "torch.nn:Identity", "--weight-decay", "-1"), "--weight-decay -1.0: expected 0 or more"),
        (("lint", "torch.nn:Identity", "--input", "3xk"), "--input '3xk': expected positive sizes"),
    ],
)
def test_wrong_usage_exits_with_2_and_no_traceback(
    normlab: Callable[..., Done], arguments: tuple[str, ...], words: str
) -> None:
    done = normlab(*arguments)
    assert done.code == 2, done.out + done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_certificates(tmp_path: Path) -> None:
    from torch import nn

    from normlab.check import conformance
    from normlab.check.certificate import SUFFIXES, write_certificate
    from normlab.errors import UsageError

    report = conformance(nn.LayerNorm, quick=True)
    for suffix in SUFFIXES:
        path = tmp_path / f"surface{suffix}"
        write_certificate(report, path)
        assert path.stat().st_size > 500
    table = (tmp_path / "surface.md").read_text()
    assert "| mean \\ std | 1e-36 | 1e-20 | 1e-08 |" in table  # to the ends of the exponent, where squares do not fit
    assert " inf |" in table  # torch's layer norm squares in float32
    assert (tmp_path / "surface.csv").read_text().startswith("mean,std,rounding_units,error\n")
    assert "<svg" in (tmp_path / "surface.svg").read_text()
    with pytest.raises(UsageError, match=r"expected a name that ends in \.html"):
        write_certificate(report, tmp_path / "surface.doc")
    assert next(f for f in report.findings if f.check == "numerics.surface").status == "pass"
    report.findings = []
    with pytest.raises(UsageError, match="was not measured"):
        write_certificate(report, tmp_path / "surface.md")


def test_certificate_on_the_command_line(normlab: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "surface.md"
    done = normlab("check", "torch.nn:RMSNorm", "--quick", "--certificate", str(path))
    assert done.code == 0, done.err
    assert "float32 error in rounding units" in path.read_text()


def test_lint_on_the_command_line(normlab: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())\n"
        "def sound():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())\n"
    )
    done = normlab("lint", f"{tmp_path}/nets.py:small", "--batch-size", "8", "--last-batch", "1", "--accumulate", "4")
    assert done.code == 1, done.err
    for rule in ("one-sample-batch", "accumulation-is-no-large-batch", "bias-before-norm"):
        assert f"{rule}: " in done.out
    assert "shown by:" in done.out
    assert "fix: " in done.out
    brief = normlab("lint", f"{tmp_path}/nets.py:small", "--brief", "--json")
    assert [w["rule"] for w in json.loads(brief.out)] == ["bias-before-norm"]
    sound = normlab("lint", f"{tmp_path}/nets.py:sound")
    assert sound.code == 0
    assert "no warnings" in sound.out
