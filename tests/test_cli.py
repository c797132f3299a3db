"""The command line: quick help, lazy sub-commands, exit codes, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from normlab import cli
from normlab.report import verdict
from normlab.study.keeping.records import COLUMNS
from normlab.study.keeping.store import FILE, Store

TINY = [
    "compare", "digits", "--model", "resnet8:width=4", "--limit-train", "60", "--limit-eval", "20",
    "--batch-size", "16", "--epochs", "2", "--lr", "0.01", "--seeds", "1",
    "--jobs", "1", "--threads", "1", "--no-report",
]  # fmt: skip


def call(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


# Bug: an interrupt while the command line was imported ended in a traceback (found by the soak test).
def test_an_interrupt_while_importing_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "normlab", "norms"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """What takes its time are imports: they are counted, for a clock would measure the machine."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "normlab", "--help"], check=True, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert len([name for name in imported if name.partition(".")[0] == "normlab"]) < 10
    assert len(imported) < 300
    assert not imported & {"torch", "scipy", "numba", "numpy", "pydantic", "rich", "altair", "pandas", "sklearn"}


@pytest.mark.parametrize(
    ("words", "position", "found"), [("normlab co", 1, ["compare"]), ("normlab compare --batch-s", 2, ["--batch-size"])]
)
def test_a_shell_completes_commands_and_options(
    words: str, position: int, found: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COMP_WORDS", words), ("COMP_CWORD", position), ("_NORMLAB_COMPLETE", "complete_bash")):
        monkeypatch.setenv(name, str(value))
    code, out, _ = call(capsys=capsys)
    assert code == 0
    assert set(found) <= set(out.split())


def test_help_lists_the_commands_there_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "dance", ("normlab.dance.cli:main", "Dance."))
    code, out, _ = call("--help", capsys=capsys)
    assert code == 0
    for command in ("compare", "plan", "status", "export"):
        assert command in out
    assert "dance" not in out
    assert "130 interrupted" in out


@pytest.mark.parametrize("command", ["compare", "plan", "status", "export"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(command, "--help", capsys=capsys)
    assert code == 0
    assert "Usage: normlab " + command in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import normlab

    assert call("--version", capsys=capsys) == (0, f"normlab {normlab.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], ["dance"]),
        (["compare", "--dance"], ["--dance"]),
        (["compare", "/no/such/folder"], ["/no/such/folder"]),
        (["compare", "--norms", "bn,batch"], ["'batch'", "torch-bn"]),
        (["compare", "--norms", "gn:groups"], ["groups"]),
        (["compare", "--model", "resnet15"], ["resnet15", "6n + 2"]),
        (["compare", "--epochs", "many"], ["epochs", "many"]),
        (["compare", "--optimizer", "lion"], ["lion", "rmsprop"]),
        (["compare", "--schedule", "linear"], ["linear", "cosine"]),
        (["compare", "--momentum", "0.5", "--optimizer", "adam"], ["momentum", "adam"]),
        (["compare", "--baseline", "gn", "--norms", "bn"], ["gn", "baseline"]),
        (["compare", "--plugin", "no_such_module"], ["no_such_module"]),
        (["compare", "--jobs", "1000"], ["1000", "cores"]),
        (["compare", "--device", "cuda:99"], ["cuda:99"]),
        (["compare", "--config", "nowhere.toml"], ["nowhere.toml"]),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments, capsys=capsys)
    assert code == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_settings_come_from_a_file_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toml = tmp_path / "study.toml"
    toml.write_text('data = "digits"\nnorms = ["bn", "gn"]\nlr = [0.1, 0.01]\nseeds = 2\n')
    yaml = tmp_path / "study.yaml"
    yaml.write_text("data: digits\nnorms: [bn, gn]\nlrs: [0.1, 0.01]\nseeds: 2\n")
    small = ["--model", "resnet8:width=4", "--limit-train", "40", "--batch-size", "8", "--out", str(tmp_path / "out")]
    code, from_toml, err = call("plan", "--config", str(toml), *small, capsys=capsys)
    assert code == 0, err
    assert from_toml.count("to do  ") == 8
    _, from_yaml, _ = call("plan", "--config", str(yaml), *small, capsys=capsys)
    assert from_toml.splitlines()[:8] == from_yaml.splitlines()[:8]
    assert "8 cells, 0 done, 8 to do" in from_toml
    assert "about" in from_toml
    code, _, err = call("plan", "--config", str(toml), "--norms", "in", capsys=capsys)
    assert code == 2
    assert "norms" in err
    assert "command line" in err


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.toml", "norms = [", "a.toml"),
        ("a.yaml", "norms: [", "a.yaml"),
        ("a.yaml", "- bn", "by name"),
        ("a.json", "{}", ".toml"),
        ("a.toml", 'nroms = "bn"\ncolour = 3', "colour"),
        ("a.toml", "lr = 0.1\nlrs = [0.1]", "same setting"),
    ],
)
def test_a_file_that_is_wrong_is_told(
    name: str, text: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    code, _, err = call("compare", "--config", str(tmp_path / name), capsys=capsys)
    assert code == 2
    assert word in err


def test_yaml_executes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f'data: !!python/object/apply:os.mkdir ["{tmp_path}/exploded"]\n')
    assert call("compare", "--config", str(path), capsys=capsys)[0] == 2
    assert not (tmp_path / "exploded").exists()


def test_data_that_cannot_be_used_is_exit_code_6(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call("compare", str(tmp_path / "empty"), "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 6
    assert "empty" in err


# File names that no system takes were called a bug in normlab, with a traceback.
@pytest.mark.parametrize("command", ["compare", "plan", "status", "export", "report", "predict", "explain", "best"])
def test_a_name_that_is_too_long_is_wrong_usage(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(command, "x" * 5000, *(["x.png"] if command == "predict" else []), capsys=capsys)
    assert code == 2, err
    assert "Traceback" not in err
    assert "File name too long" in err
    assert len(err) < 1500


def test_what_the_system_refuses_is_no_bug(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    monkeypatch.setattr("normlab.study.running.overview.status_lines", refuse)
    code, _, err = call("status", str(tmp_path), capsys=capsys)
    assert (code, err) == (6, f"error: '{tmp_path}/closed': Permission denied\n")


# Settings of /dev/zero filled the memory; JSON nested deep was a bug in normlab.
def test_a_file_of_settings_without_an_end_is_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    deep, listed = tmp_path / "deep.json", tmp_path / "list.json"
    deep.write_text("[" * 100_000)
    listed.write_text("[1]")
    for option, path in (
        ("--config", "/dev/zero"), ("--runtime-env", "/dev/zero"), ("--runtime-env", deep), ("--runtime-env", listed),
    ):  # fmt: skip
        code, _, err = call("plan", "digits", "--backend", "ray", option, str(path), capsys=capsys)
        assert (code, option in err, "Traceback" in err) == (2, True, False), err


def test_a_message_neither_controls_the_terminal_nor_fills_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "columns.csv"
    table.write_text("a\x1b[31m," * 100_000 + "\n")
    code, _, err = call("compare", str(table), "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 6
    assert "\x1b" not in err
    assert len(err) < 30_000


def test_a_bug_is_exit_code_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normlab.study.running.run.run_study", lambda *a, **k: 1 / 0)
    code, _, err = call("compare", capsys=capsys)
    assert code == 3
    assert "ZeroDivisionError" in err
    assert "bug" in err


def test_a_directory_without_a_study(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("status", str(tmp_path), capsys=capsys)[0] == 6
    Store(tmp_path).close()
    for command in ("status", "export"):
        code, _, err = call(command, str(tmp_path), capsys=capsys)
        assert code == 5
        assert "normlab compare" in err


def test_a_store_of_a_newer_version_is_exit_code_4(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Store(tmp_path).close()
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("PRAGMA user_version = 1000")
    raw.close()
    assert call(*TINY, "--out", str(tmp_path), capsys=capsys)[0] == 4
    assert call("status", str(tmp_path), capsys=capsys)[0] == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of four variants, by the command line."""
    directory = tmp_path_factory.mktemp("study")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "normlab",
            *TINY,
            "--norms",
            "bn,gn,none,torch-bn",
            "--seeds",
            "2",
            "--out",
            str(directory),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "\x1b" not in done.stderr, "plain lines where there is no terminal"
    (directory / "said.txt").write_text(done.stdout)
    return directory


def test_results_are_as_promised(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert len(results["cells"]) == 8
    for cell in results["cells"]:
        assert {"norm", "seed", "batch_size", "optimizer", "lr", "status", "epochs", "test"} <= cell.keys()
        assert cell["status"] == "done"
        assert set(cell["test"]) == {"loss", "accuracy", "balanced_accuracy", "micro_f1", "macro_f1"}
        assert cell["backend"]
        assert cell["peak_memory_bytes"] > 1e6 or not sys.platform.startswith("linux")
        for record in cell["epochs"]:
            assert {
                "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_micro_f1", "val_macro_f1",
                "seconds", "images_per_second",
            } <= record.keys()  # fmt: skip
    expected = {
        "command", "cpu", "torch", "numpy", "python", "threads", "device", "backend", "data_hash", "platform",
    }  # fmt: skip
    assert expected <= results["environment"].keys()
    assert results["environment"]["threads"] == 1


def test_it_ends_with_what_the_report_says(finished: Path) -> None:
    said = (finished / "said.txt").read_text()
    assert verdict(finished) in said.replace("\n", " ")
    table = [line.split() for line in said.splitlines()]
    for norm in ("bn", "gn", "none", "torch-bn"):
        assert sum(line[:2] == [norm, "2"] for line in table) == 1
    assert said.splitlines()[-1] == f"records: {finished / 'results.json'}"
    assert max(map(len, said.splitlines()[:-1])) <= 100


def test_two_studies_are_shown_side_by_side(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("compare", str(finished), str(finished), capsys=capsys)
    page = finished / f"beside-{finished.name}.html"
    assert (code, out) == (0, f"report: {page}\n"), err
    assert page.stat().st_size > 1000
    code, _, err = call("compare", str(finished), str(finished), "--epochs", "3", capsys=capsys)
    assert code == 2
    assert "epochs" in err
    code, _, err = call("compare", str(finished), str(finished / "nowhere"), capsys=capsys)
    assert code == 2
    assert "nowhere" in err
    code, _, err = call("compare", str(finished), str(finished), "--metric", "macro-f1", "--until-sure", capsys=capsys)
    assert code == 2
    assert "leave out: until-sure" in err
    assert call("compare", str(finished), str(finished), "--metric", "macro-f1", capsys=capsys)[0] == 0
    assert "Test macro-F1 in percent" in page.read_text(encoding="utf-8")


# --format, --matters and --study were ignored
def test_report_against_refuses_what_it_does_not_use(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ("report", str(finished), "--against", str(finished))
    for option in (("--format", "md"), ("--matters", "1"), ("--study", "9")):
        code, _, err = call(*against, *option, capsys=capsys)
        assert (code, option[0] in err) == (2, True), err
    assert call(*against, "--study", "1", capsys=capsys)[0] == 0


def test_the_norms_of_a_seed_start_alike(finished: Path) -> None:
    cells = json.loads((finished / "results.json").read_text())["cells"]
    ours, stock = (next(c for c in cells if c["norm"] == n and c["seed"] == 0) for n in ("bn", "torch-bn"))
    assert ours["epochs"][0]["train_loss"] == pytest.approx(stock["epochs"][0]["train_loss"], rel=1e-3)


def test_export_says_the_same_in_every_format(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("csv", "json", "parquet"):
        assert call("export", str(finished), "--format", name, capsys=capsys)[0] == 0
    assert (finished / "export.json").read_text() == (finished / "results.json").read_text()
    assert (finished / "export.csv").read_text() == (finished / "results.csv").read_text()
    header, *rows = (finished / "export.csv").read_text().splitlines()
    assert tuple(header.split(",")) == COLUMNS
    assert len(rows) == 8 * 2
    table = pyarrow.parquet.read_table(finished / "export.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == len(rows)
    assert call("export", str(finished), "--format", "xlsx", capsys=capsys)[0] == 2


def test_status_counts(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("status", str(finished), capsys=capsys)
    assert code == 0
    assert "8 cells: 8 done" in out


def test_force_trains_again(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"  # whose checkpoints were found again: nothing was trained
    flags = [*TINY, "--norms", "none", "--out", str(tmp_path / "study"), "--checkpoints", str(kept)]
    written = []
    for force in ([], [], ["--force"]):
        assert call(*flags, *force, capsys=capsys)[0] == 0
        (final,) = kept.rglob("final.safetensors")
        written.append(final.stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]
    with Store(tmp_path / "study", readonly=True) as store:
        assert len(store.attempts(1)) == 2, "once, not again, and once by force"


def test_a_norm_of_ones_own_by_plug_in(tmp_path: Path) -> None:
    (tmp_path / "own_norms.py").write_text(
        "from normlab import register_norm\n"
        "from normlab.norms.grid import standardize\n"
        "@register_norm('mine')\n"
        "def mine(m, p):\n"
        "    return standardize(m.pool('c'), p)\n"
    )
    command = [sys.executable, "-m", "normlab", *TINY, "--norms", "mine,ln", "--plugin", "own_norms", "--out", "study"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mine, layer = json.loads((tmp_path / "study" / "results.json").read_text())["cells"]
    assert mine["norm"] == "mine"
    assert mine["test"] == layer["test"], "it pools what layer norm pools"

    # its network could be neither asked nor explained: nothing took the plug-in
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    uses = (
        ["best", "study", "--norm", "mine", "--export", "mine.safetensors"],
        ["predict", "study", "one.png", "--norm", "mine"],
        ["predict", "mine.safetensors", "one.png"],
        ["explain", "study", "--correct", "0", "--incorrect", "0", "--images", "10"],
    )
    for use in uses:
        command = [sys.executable, "-m", "normlab", *use]
        done = subprocess.run(
            [*command, "--plugin", "own_norms"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (use, done.stderr)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "norm 'mine' is not known" in done.stderr
    assert "--plugin" in done.stderr


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "normlab", *TINY, "--norms", "none", "--out", str(tmp_path / "study")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    process.communicate()
    os.close(leader)
    assert process.returncode == 0
    assert b"cells" in seen
    assert b"\x1b[" in seen
