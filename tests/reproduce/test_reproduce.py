"""Every experiment at quick scale: its findings, its page, its figures and its numbers."""

from __future__ import annotations

import contextlib
import functools
import html.parser
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normlab.cli import main
from normlab.reproduce import EXPERIMENTS, experiment, page, verdicts
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments.lr_by_weight_scale import chosen_apart
from normlab.reproduce.finding import Finding
from normlab.reproduce.images import load_images

VERDICTS = set(verdicts.VERDICTS)


class _Page(html.parser.HTMLParser):
    """Tags, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def _run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


Written = Callable[..., tuple[Path, str]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Runs an experiment at quick scale, once: the folder with its page, and what was printed."""

    @functools.cache
    def written(name: str, seeds: int = 1) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(name)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert _run(["reproduce", name, "--out", str(folder), "--seeds", str(seeds)]) == 0
        return folder, printed.getvalue()

    return written


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        *((name, 1) for name in EXPERIMENTS),
        ("dropout", 2),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in EXPERIMENTS if name != "dropout"),
    ],
)
def test_every_experiment_writes_its_page(name: str, seeds: int, written: Written) -> None:
    folder, printed = written(name, seeds)
    numbers = json.loads((folder / "result.json").read_text())
    assert numbers["experiment"] == name
    assert numbers["findings"]
    for finding in numbers["findings"]:
        assert finding["verdict"] in VERDICTS
        assert finding["rule"]
    for key in ("hardware", "versions", "command", "seeds", "scale"):
        assert numbers["setting"][key]
    text = (folder / "index.html").read_text()
    seen = _Page(text)
    assert [cell for cell in seen.cells if cell in VERDICTS] == [f["verdict"] for f in numbers["findings"]]
    for finding in numbers["findings"]:
        assert finding["reported"] in seen.cells
        assert finding["measured"] in seen.cells
    images = [attrs["src"] or "" for tag, attrs in seen.tags if tag == "img"]
    assert images
    assert all(src.startswith("data:image/") for src in images)
    assert all(attrs.get("alt") for tag, attrs in seen.tags if tag == "img")
    for tag, attrs in seen.tags:
        assert tag != "script"
        assert not any(str(value).startswith(("http:", "https:", "//")) for value in attrs.values())
    assert list(folder.glob("*.png"))
    assert printed.count(numbers["findings"][0]["claim"]) == 1
    if "data" in numbers["setting"]:
        assert "digits that come with normlab" in numbers["setting"]["data"], (
            "without data it says that these are digits"
        )


def test_the_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batchnrm", "--out", "x"], "experiment 'batchnrm' is not known; expected one of: gradients, "),
        (["batchnorm"], "needs --out DIR"),
        (["batchnorm", "--summary", "x"], "takes the NAME of one experiment, or --all"),
        (["--summary", "no/such/place"], "no pages of experiments in 'no/such/place'"),
        ([], "takes the NAME of one experiment, or --all"),
        (["batchnorm", "--all", "--out", "x"], "takes the NAME of one experiment, or --all"),
        (["batchnorm", "--scale", "huge", "--out", "x"], "scale is 'huge'; expected one of: quick, small, full"),
        (["batchnorm", "--data", "no/such/place", "--out", "x"], "no/such/place"),
        (["grad-cam", "--data", "no/such/place", "--out", "x"], "no/such/place"),
        (["feature-evolution", "--data", "no/such/place", "--out", "x"], "no/such/place"),
        (["feature-evolution", "--seeds", "0", "--out", "x"], "--seeds"),
        (["batchnorm", "--scale", "full", "--epochs", "2", "--out", "x"], "--epochs cannot be chosen for 'batchnorm'"),
        (["photographs", "--epochs", "2", "--limit-train", "9", "--out", "x"], "--epochs and --limit-train shorten"),
        (["photographs", "--epochs", "2", "--out", "x"], "a quick run is short already; add --scale full"),
        (["photographs", "--scale", "full", "--epochs", "0", "--out", "x"], "--epochs"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_summary_counts_findings_and_names_the_open_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_ = verdicts.beyond("unclear", "r", [0.1, -0.05, 0.1, 0.02], 0.0)
    findings = [verdicts.exact("clear", "r", "m", True, "rule"), open_, verdicts.exact("no", "r", "m", False, "rule")]
    page.write("batchnorm", Result(findings, {"data": "d"}), Setting(), tmp_path / "one", "c", 1.0)
    page.write("dropout", Result(findings[:1], {"data": "d"}), Setting(), tmp_path / "two", "c", 1.0)
    assert _run(["reproduce", "--summary", str(tmp_path)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == ("4 findings of 2 experiments: 2 holds (50 %), 1 does not hold (25 %), 1 cannot tell (25 %)")
    assert f"  one: unclear; measured: {open_.measured}; about {open_.needs} seeds would decide it" in rest
    assert not any("clear;" in line and "unclear" not in line for line in rest)
    one = {"claim": "c", "measured": "m", "verdict": "holds"}
    strange = [
        json.dumps({"findings": [{**one, **odd}]}) for odd in ({"verdict": []}, {"verdict": "?"}, {"needs": "1"})
    ]
    for damaged in ("{", "[]", '{"findings": [{}]}', '{"findings": 3}', '{"findings": ["a"]}', *strange):
        (tmp_path / "two" / "result.json").write_text(damaged)
        assert _run(["reproduce", "--summary", str(tmp_path)]) == 6
        assert "is not the result of an experiment" in capsys.readouterr().err


def test_a_small_run_takes_what_its_experiment_chooses() -> None:
    chosen = experiment.complete("resnet-variants", Setting(scale="small", epochs=2))
    assert (chosen.epochs, chosen.model, chosen.image_size) == (2, "resnet8:width=8", 16), "what is given goes first"
    assert chosen.shorter["models"] == "resnet8:width=8"
    assert list(chosen.seed_range) == list(range(12))
    assert list(experiment.complete("batchnorm", Setting(scale="small")).seed_range) == list(range(30))
    full = Setting(scale="full", model="resnet8")
    assert experiment.complete("resnet-variants", full) == full
    assert full.shortened({"models": "resnet14", "epochs": 9}) == "resnet8"
    assert experiment.complete("feature-evolution", Setting(scale="small")) == experiment.complete(
        "resnet-variants", Setting(scale="small")
    ), "they share their networks"


@pytest.mark.slow
def test_a_small_comparison_decides_and_says_at_which_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--scale", "small", "--epochs", "1", "--seeds", "2", "--limit-train", "64", "--model", "resnet8:width=4"]
    assert _run(["reproduce", "initial-affine", *small, "--image-size", "8", "--out", "page"]) == 0
    numbers = json.loads((tmp_path / "page" / "result.json").read_text())
    assert numbers["setting"]["scale"] == "small"
    assert {"resnet8:width=4", "1 of 100 epochs"} <= set(numbers["findings"][0]["scale"].split(", "))
    assert (tmp_path / "runs" / "reproduce" / "initial-affine-small" / "results.json").is_file()


def test_an_open_finding_says_how_many_seeds_would_decide_it(tmp_path: Path) -> None:
    values = [0.52, 0.50, 0.53, 0.49]
    near = verdicts.greater("c", "r", values, [0.50] * 4, images=10**6)
    assert near.verdict == verdicts.UNKNOWN
    assert near.needs is not None
    # as many values of the same mean and spread do decide it, half as many do not
    rng = np.random.default_rng(0)

    def share(count: int) -> float:
        draws = rng.normal(np.mean(values), np.std(values, ddof=1), (400, count))
        return float(np.mean([verdicts.beyond("c", "r", list(x), 0.5).verdict == verdicts.HOLDS for x in draws]))

    assert 0.7 < share(near.needs) < 0.9
    assert share(near.needs // 2) < 0.65
    assert verdicts.greater("c", "r", [0.8, 0.82, 0.81], [0.7, 0.71, 0.72]).needs is None
    assert verdicts.greater("c", "r", [0.8], [0.7]).needs is None
    assert verdicts.withheld(near, "of a reason").needs is None
    tiny = verdicts.beyond("c", "r", [0.1, -0.1, 0.1, -0.0999], 0.0)
    assert tiny.needs == verdicts.MOST
    setting = {"data": "d"}
    text = page.write("batchnorm", Result([near, tiny], setting), Setting(seeds=4), tmp_path, "c", 120.0).read_text()
    assert f"about {near.needs} seeds would decide it: {near.needs // 2 + near.needs % 2} min on this machine" in text
    assert "not with 1,000 seeds: too small a difference" in text


def test_what_users_name_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    finding = Finding(evil, evil, evil, verdicts.HOLDS, evil)
    result = Result([finding], {"data": evil}, notes=[evil], pictures={"p": b""}, captions={"p": f'"{evil}'})
    path = page.write("batchnorm", result, Setting(), tmp_path, evil, 1.0)
    assert "<script" not in path.read_text()
    assert all(tag != "script" for tag, _ in _Page(path.read_text()).tags)


def test_the_same_seeds_give_the_same_accuracies() -> None:
    one, two = (experiment.run("optimizers", Setting(seeds=1)).records for _ in range(2))
    assert one == two


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "less", "margin", "expected"),
    [
        ([0.8, 0.82, 0.81], [0.7, 0.71, 0.72], 0.0, verdicts.HOLDS),
        ([0.7, 0.71, 0.72], [0.8, 0.82, 0.81], 0.0, verdicts.FAILS),
        ([0.7, 0.9, 0.5], [0.69, 0.8, 0.6], 0.0, verdicts.UNKNOWN),
        ([0.8], [0.1], 0.0, verdicts.UNKNOWN),
        ([0.79, 0.80, 0.81], [0.80, 0.81, 0.82], 0.02, verdicts.HOLDS),
        ([0.70, 0.71, 0.72], [0.80, 0.82, 0.81], 0.02, verdicts.FAILS),
    ],
)
def test_differences_are_judged_by_their_interval(
    more: list[float], less: list[float], margin: float, expected: str
) -> None:
    assert verdicts.greater("c", "r", more, less, margin=margin).verdict == expected


def test_intervals_are_students() -> None:
    from scipy import stats

    values = [0.3, 0.5, 0.4, 0.7]
    low, high = verdicts.interval(values)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reported", "original", "expected"),
    [(0.72, True, verdicts.HOLDS), (0.9, True, verdicts.FAILS), (0.72, False, verdicts.UNKNOWN)],
)
def test_single_figures_are_judged_as_one_more_run(reported: float, original: bool, expected: str) -> None:
    finding = verdicts.like_one_run("c", reported, [0.70, 0.73, 0.71, 0.72], original=original)
    assert finding.verdict == expected


def test_few_seeds_are_no_reason_to_hold() -> None:
    """A further run of three seeds could be anything, so that every reported figure "held"."""
    finding = verdicts.like_one_run("c", 0.72, [0.57, 0.72, 0.65], original=True)
    assert finding.verdict == verdicts.UNKNOWN
    assert finding.measured.endswith("-7.3 points from the reported figure, known to ± 18.6 %")
    values = [0.70, 0.73, 0.71, 0.72]
    assert verdicts.like_one_run("c", 0.72, values * 3, original=True, within=0.02).verdict == verdicts.HOLDS
    assert verdicts.like_one_run("c", 0.72, values[:2], original=True, within=0.02).verdict == verdicts.UNKNOWN


@pytest.mark.parametrize(
    ("more", "less"),
    [([0.51, 0.53], [0.50, 0.52]), ([0.5, 0.5], [0.49, 0.49]), ([1.0, 1.0], [0.9998, 0.9998])],
)
def test_seeds_that_happen_to_agree_are_not_certain(more: list[float], less: list[float]) -> None:
    """Two differences of one point each were "+1.0 ± 0.0 points"."""
    finding = verdicts.greater("c", "r", more, less)
    assert finding.verdict != verdicts.HOLDS
    assert "± 0.0 " not in finding.measured


def test_the_floor_is_lower_for_more_images() -> None:
    assert verdicts.greater("c", "r", [0.51, 0.53, 0.52], [0.50, 0.52, 0.51], images=1000).verdict == verdicts.UNKNOWN
    assert verdicts.greater("c", "r", [0.51, 0.53, 0.52], [0.50, 0.52, 0.51], images=10**5).verdict == verdicts.HOLDS


def test_differences_too_small_to_matter_are_equivalent() -> None:
    one, other = [0.80, 0.81, 0.79, 0.80], [0.801, 0.809, 0.79, 0.801]
    assert verdicts.greater("c", "r", one, other, images=10**5).verdict == verdicts.EQUIVALENT
    assert verdicts.alike("c", "r", one, other, margin=0.01).verdict == verdicts.EQUIVALENT
    assert verdicts.alike("c", "r", one, [0.7, 0.71, 0.69, 0.70], margin=0.01).verdict == verdicts.FAILS
    assert verdicts.alike("c", "r", one, [0.7, 0.91, 0.8, 0.79], margin=0.01).verdict == verdicts.UNKNOWN


def test_about_six_times_is_not_once_and_a_third() -> None:
    """ "About 6 times as long" held at 1.34 times."""
    assert verdicts.about("c", "r", [1.33, 1.35, 1.34], 6).verdict == verdicts.FAILS
    assert verdicts.about("c", "r", [5.5, 6.2, 6.5], 6).verdict == verdicts.HOLDS
    assert verdicts.about("c", "r", [2.0, 12.0, 6.5], 6).verdict == verdicts.UNKNOWN
    assert verdicts.about("c", "r", [6.0], 6).verdict == verdicts.UNKNOWN


def test_a_verdict_names_its_scale() -> None:
    better = verdicts.greater("c", "r", [0.8, 0.82, 0.81], [0.7, 0.71, 0.72])
    worse = verdicts.greater("c", "r", [0.7, 0.71, 0.72], [0.8, 0.82, 0.81])
    assert verdicts.at_scale(better, "").verdict == verdicts.HOLDS
    assert verdicts.at_scale(better, "").scale == "as published"
    here = verdicts.at_scale(better, "3 of 100 epochs")
    assert (here.verdict, here.scale) == (verdicts.HERE, "3 of 100 epochs")
    assert verdicts.at_scale(worse, "3 of 100 epochs").verdict == verdicts.NOT_HERE
    assert verdicts.at_scale(worse, "3 of 100 epochs", quick=True).verdict == verdicts.UNKNOWN
    exact = verdicts.exact("c", "r", "m", True, "rule")
    assert verdicts.at_scale(exact, "digits", quick=True).verdict == verdicts.HOLDS


def test_best_and_worst_are_not_chosen_on_what_judges_them() -> None:
    """Of six equal cells the best and the worst of three seeds were "apart" in a quarter of all cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        cells = {(float(i), 0.0): list(rng.normal(0.5, 0.02, 6)) for i in range(6)}
        best, worst, rest = chosen_apart(cells)
        assert len(rest[best]) == 3
        held += verdicts.greater("c", "r", rest[best], rest[worst]).verdict == verdicts.HOLDS
    assert held <= 0.05 * 300
    one = {(0.0, 0.0): [0.4], (1.0, 0.0): [0.6]}
    best, worst, rest = chosen_apart(one)
    assert verdicts.greater("c", "r", rest[best], rest[worst]).verdict == verdicts.UNKNOWN


def test_a_quick_run_says_that_it_decides_nothing(written: Written) -> None:
    folder, printed = written("batchnorm")
    assert "decides nothing" in printed
    found = json.loads((folder / "result.json").read_text())["findings"]
    assert {finding["verdict"] for finding in found} == {verdicts.UNKNOWN}
    assert {finding["scale"] for finding in found} == {"quick run"}


def test_gradients_are_compared_with_what_arithmetic_gives(written: Written) -> None:
    """Errors of 1e-11 were "cannot tell" where 7e-12 was reported."""
    assert verdicts.within_order("c", 7e-12, [1e-11, 8e-11], [1e-10, 1e-10]).verdict == verdicts.HOLDS
    assert verdicts.within_order("c", 7e-12, [1e-11, 8e-9], [1e-10, 1e-10]).verdict == verdicts.FAILS
    findings = json.loads((written("gradients")[0] / "result.json").read_text())["findings"]
    assert {finding["verdict"] for finding in findings} == {verdicts.HOLDS}


def test_ratios_are_averaged_as_logarithms() -> None:
    assert verdicts.ratio("c", "r", [4.0, 16.0], 2.0).measured.startswith("8 x ")
    assert verdicts.ratio("c", "r", [9.0, 12.0, 10.0], 2.0).verdict == verdicts.HOLDS
    assert verdicts.ratio("c", "r", [9.0, 12.0, 10.0], 2.0, below=True).verdict == verdicts.FAILS
    assert verdicts.ratio("c", "r", [0.5, 0.6, 0.4], 2.0, below=True).verdict == verdicts.HOLDS
    assert verdicts.ratio("c", "r", [0.1, 30.0, 2.0], 2.0).verdict == verdicts.UNKNOWN
    assert verdicts.ratio("c", "r", [9.0], 2.0).verdict == verdicts.UNKNOWN


def test_bounds() -> None:
    assert verdicts.beyond("c", "r", [2.0, 2.1, 1.9], 1.0).verdict == verdicts.HOLDS
    assert verdicts.beyond("c", "r", [0.5, 0.6, 0.55], 1.0).verdict == verdicts.FAILS


# --- the images -------------------------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, 256, size=(60, 3, 5, 4), dtype=np.uint8)
    y = np.arange(60) % 3
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    images = load_images(str(tmp_path / "set.npz"), 20, 10)
    assert np.array_equal(images.y_train, y[:20])
    assert np.array_equal(images.y_val, y[50:])
    mean = x[:50].mean(0)
    np.testing.assert_allclose(images.X_train, x[:20] - mean, atol=1e-3)
    np.testing.assert_allclose(images.X_val, x[50:] - mean, atol=1e-3)
    assert not images.original
    assert re.search("20 training and 10 validation images of 3 x 5 x 4, not the images", images.describe())


@pytest.mark.data
def test_the_original_images_are_recognized() -> None:
    folder = os.environ.get("NORMLAB_TEST_DATA")
    if not folder:
        pytest.skip("NORMLAB_TEST_DATA does not name a folder with the real image sets")
    assert load_images(str(Path(folder) / "cifar10-exact.npz"), 1000, 1000).original
