"""`normlab bench`: tables, JSON and charts, rows that are lost, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from normlab import cli
from normlab.bench import memory, run, step
from normlab.bench.machine import choose_device
from normlab.errors import UsageError
from tests.bench.conftest import Turns

SMALL = ("bench", "--norms", "bn,gn", "--shapes", "2x8x4x4,2x8x32x32", "--forms", "plain,residual", "--rounds", "2")
ROWS = 2 * 2 * 2 * 2
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = {name: {"tensor_bytes": 1 << 20, "bytes_per_s": 1e10} for name in ("memory", "cache")}
    monkeypatch.setattr(run.machine, "measure_copies", lambda device, rounds: copies)


def call(*arguments: str, capsys: Capture) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_a_table_has_a_line_per_row_and_a_summary(capsys: Capture) -> None:
    code, out, err = call(*SMALL, capsys=capsys)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(line.startswith(("bn ", "gn ")) for line in lines) == ROWS
    assert "torch" in lines[0]
    assert "eager / ours: geometric mean" in out
    assert "compiled" not in out


def test_rows_that_are_lost_are_marked_and_listed(timed: Turns, capsys: Capture) -> None:
    timed([1.0, 2.0, 4.0])
    code, out, _ = call(*SMALL, capsys=capsys)
    assert code == 0, "slow is no error"
    assert out.count("0.50x<") == ROWS
    assert f"{ROWS} of {ROWS} rows lost to eager:" in out
    assert out.count("    0.50x  ") == ROWS
    assert "geometric mean 0.50x" in out


def test_rows_that_are_won_are_not(timed: Turns, capsys: Capture) -> None:
    timed([1.0, 8.0, 4.0])
    _, out, _ = call(*SMALL, capsys=capsys)
    assert "<" not in out.partition("of floor")[2]
    assert f"0 of {ROWS} rows lost to eager" in out
    assert "geometric mean 2.00x" in out


def test_what_the_floor_allows_is_said(timed: Turns, capsys: Capture) -> None:
    timed([1.0, 10.0, 5.0])  # 2.5 copies: the floor of a plain row
    _, out, _ = call("bench", "--norms", "bn", "--shapes", "2x8x32x32", "--forms", "plain", capsys=capsys)
    assert "at the floor it would be 4.00x" in out
    assert "50 %" in out


def test_the_compiled_side_is_a_column_and_a_list_of_its_own(
    timed: Turns, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(run, "check_compiler", lambda device: None)
    monkeypatch.setattr(run.layers, "compiled", lambda layer: layer)
    timed([1.0, 8.0, 4.0, 2.0])
    code, out, _ = call(*SMALL, "--compile", capsys=capsys)
    assert code == 0
    assert f"0 of {ROWS} rows lost to eager" in out
    assert f"{ROWS} of {ROWS} rows lost to compiled:" in out


def test_json_is_all_there_is_on_standard_output(timed: Turns, capsys: Capture) -> None:
    timed([1.0, 8.0, 4.0])
    code, out, err = call(*SMALL, "--json", capsys=capsys)
    assert code == 0
    assert "geometric mean" in err
    found = json.loads(out)
    assert found["schema"] == run.SCHEMA
    assert {"cpu", "cores", "threads", "torch", "python", "cache_bytes"} <= found["machine"].keys()
    layers = found["layers"]
    assert len(layers["rows"]) == layers["summary"]["rows"] == ROWS
    assert layers["summary"]["eager"]["lost"] == []
    assert layers["summary"]["eager"]["by"]["norm"] == {"bn": 2.0, "gn": 2.0}
    assert layers["copies"].keys() == {"memory", "cache"}
    assert {
        "norm",
        "form",
        "shape",
        "layout",
        "residual",
        "act",
        "dtype",
        "bytes_moved",
        "tensor_bytes",
        "rounds",
        "ours_ms",
        "eager_ms",
        "compiled_ms",
        "floor_ms",
        "copy_ms",
        "eager_ratio",
        "compiled_ratio",
        "floor_share",
    } <= layers["rows"][0].keys()


@pytest.mark.parametrize(("name", "begins"), [("rows.svg", b"<svg"), ("rows.png", b"\x89PNG")])
def test_a_chart_is_written(timed: Turns, tmp_path: Path, capsys: Capture, name: str, begins: bytes) -> None:
    timed([1.0, 8.0, 4.0])
    code, out, _ = call(*SMALL, "--chart", str(tmp_path / name), capsys=capsys)
    assert code == 0
    assert f"chart written to {tmp_path / name}" in out
    content = (tmp_path / name).read_bytes()
    assert content.startswith(begins)
    if name.endswith("svg"):
        assert all(words in content.decode() for words in ("gn: norm + res + relu", "ours", "eager", "GB/s"))


def test_a_chart_that_cannot_be_written_is_said(timed: Turns, tmp_path: Path, capsys: Capture) -> None:
    timed([1.0, 8.0, 4.0])
    (tmp_path / "taken.svg").mkdir()
    code, _, err = call(*SMALL, "--chart", str(tmp_path / "taken.svg"), capsys=capsys)
    assert code == 6
    assert "cannot write '" in err
    assert "taken.svg" in err


def test_a_model_of_the_user(timed: Turns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / "net_of_a_user.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    block = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), *block, *block, nn.LocalResponseNorm(3))\n"
    )
    monkeypatch.chdir(tmp_path)
    timed([1.0, 8.0, 4.0])
    code, out, _ = call("bench", "--model", "net_of_a_user:make", "--input", "2,3,8,8", capsys=capsys)
    assert code == 0
    assert "bn    norm + relu  2x8x6x6" in out
    assert "not timed: 1 LocalResponseNorm" in out
    assert "all 2 normalizations of a training step, channels_last: ours 8.00 ms, eager 16.00 ms" in out


MODELS = """
from torch import nn
from torch.nn import functional as F
class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    def forward(self, x):
        return F.dropout(F.relu(self.norm(self.conv(x))), 0.5, self.training)
def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
def pluggable(norm, num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), norm(8), nn.ReLU())
"""


@pytest.mark.parametrize("factory", ["plain", "pluggable", "Dropping"])
def test_a_step_of_a_model_of_the_user(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / f"nets_{factory.lower()}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    name = f"nets_{factory.lower()}:{factory}"
    options = ("--model", name, "--input", "2,3,8,8", "--rounds", "1", "--layouts", "channels_last", "--json")
    code, out, err = call("bench", "--step", *options, capsys=capsys)
    assert code == 0
    (found,) = json.loads(out)["step"]
    assert [(v["kind"], v["layout"]) for v in found["variants"]] == [
        (kind, "channels_last") for kind in ("ours", "recomputed", "eager")
    ]
    assert f"training step of {name}, input 2x3x8x8, float32 (forward, mean square" in err
    assert "ours is swapped, not fused" not in err, "what is dropped in training is fused too"
    wrong = ("--step", "--model", name, "--input", "2,5,8,8")
    code, _, err = call("bench", *wrong, capsys=capsys)
    assert code == 2 if factory != "pluggable" else code == 0
    assert code == 0 or "does not take an --input of (2, 5, 8, 8)" in err


def test_every_part_is_run_by_all(timed: Turns, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    timed([1.0, 8.0, 4.0])
    variant = {"kind": "ours", "layout": "channels_first", "ms": 2.0, "peak_bytes": 1 << 20}
    setting = {"norm": "bn", "model": "resnet14", "batch": 128, "image_size": 32, "rounds": 7, "ratio": 0.5}
    setting |= {"recomputed_ratio": 0.5, "setting": "resnet14, bn", "loss": "cross-entropy"}
    result = {**setting, "variants": [variant], "ours": variant, "stock": variant}
    monkeypatch.setattr(step, "measure", lambda *args: result)
    monkeypatch.setattr(memory, "measure", lambda *args: result)
    code, out, err = call(*SMALL, "--norms", "bn", "--all", "--json", capsys=capsys)
    assert code == 0
    found = json.loads(out)
    assert {"layers", "step", "exactness", "memory"} <= found.keys()
    for words in ("geometric mean", "0.50x (slower)", "against float64", "torch's: 0.50x"):
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norms", "sw"], ["--norms 'sw'"]),
        (["--norms", ""], ["--norms ''"]),
        (["--shapes", "2x64x"], ["--shapes '2x64x'"]),
        (["--shapes", ""], ["--shapes ''"]),
        (["--forms", "norm"], ["--forms 'norm'", "plain, act, residual"]),
        (["--layouts", "nhwc"], ["--layouts 'nhwc'", "channels_last"]),
        (["--act", "relu6"], ["--act 'relu6'", "gelu"]),
        (["--dtype", "int8"], ["--dtype 'int8'", "bfloat16"]),
        (["--device", "tpu"], ["--device 'tpu'", "cuda:1"]),
        (["--threads", "100000"], ["--threads 100000", "cores"]),
        (["--threads", "0"], ["--threads"]),
        (["--rounds", "0"], ["--rounds"]),
        (["--chart", "rows.pdf"], ["--chart rows.pdf", ".svg or .png"]),
        (["--chart", "/no/such/folder/rows.svg"], ["no folder /no/such/folder"]),
        (["--step", "--chart", "rows.svg"], ["--chart is about the layers"]),
        (["--exactness", "--model", "resnet14", "--input", "2,3,8,8"], ["--model is about the layers and the step"]),
        (["--step", "--model", "resnet14", "--input", "2,3,8"], ["expected an --input of four sizes"]),
        (["--exactness", "--norms", "layernorm"], ["--norms layernorm"]),
        (["--model", "resnet14"], ["--model and --input belong together"]),
        (["--model", "resnet14", "--input", "2,3,8,8", "--norms", "bn"], ["leave out --norms"]),
        (["--model", "resnet14", "--input", "2,3,a,8"], ["--input '2,3,a,8'"]),
        (["--model", "resnet14", "--input", "2,3,8"], ["four sizes"]),
        (["--model", "nosuch:thing", "--input", "2,3,8,8"], ["nosuch"]),
        (["--model", "torch.nn:ReLU", "--input", "2,3,8,8"], ["no normalization that can be timed"]),
        (["--norms", "in", "--shapes", "2x64"], ["nothing to time"]),
        (["--norms", "gn:groups=7", "--shapes", "2x64"], ["'gn:groups=7' on 64 channels"]),
        (["--norms", "bn", "--shapes", "1x64x1x1"], ["1x64x1x1", "more than 1 value per channel"]),
    ],
)
def test_every_mistake_is_named(arguments: list[str], words: list[str], capsys: Capture) -> None:
    code, _, err = call("bench", *arguments, capsys=capsys)
    assert code == 2
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(UsageError, match="sees no CUDA device; use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert choose_device("auto") == "cuda"
    with pytest.raises(UsageError, match="cuda:1: there are 1 CUDA devices"):
        choose_device("cuda:1")


def test_help_says_what_there_is(capsys: Capture) -> None:
    code, out, _ = call("bench", "--help", capsys=capsys)
    assert code == 0
    for option in ("--norms", "--shapes", "--compile", "--model", "--input", "--chart", "--json", "--all"):
        assert option in out
