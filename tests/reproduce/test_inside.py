"""The experiments that look inside trained networks: how features evolve, and what Grad-CAM shows."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normlab.explain.pictures import SIDE, picture
from normlab.report.theme import LIGHT
from normlab.reproduce import verdicts
from normlab.reproduce.charts import as_spec, curves, evolution
from normlab.reproduce.comparisons import Comparison, scale_of, trained
from normlab.reproduce.experiment import Setting
from normlab.reproduce.experiments import feature_evolution, first_layer_filters, grad_cam
from normlab.reproduce.galleries import draw


def _layer(width: float) -> dict[str, Any]:
    return {"percentiles": [-width / 2, -width / 4, 0.0, width / 4, width / 2], "mean": 0.0, "std": 1.0, "dead": 0.0}


def _cell(norm: str, seed: int, widths: Sequence[float], status: str = "done") -> dict[str, Any]:
    layers = [{"stage 3": _layer(1.0), "features": _layer(width)} for width in widths]
    epochs = [{"epoch": epoch, "features": features} for epoch, features in enumerate(layers, start=1)]
    return {"norm": norm, "seed": seed, "status": status, "epochs": epochs}


def _found(cells: Sequence[dict[str, Any]]) -> Comparison:
    return Comparison(list(cells), {})


def _verdicts(found: Comparison) -> dict[str, str]:
    return {f.claim: f.verdict for f in feature_evolution._findings(found, "features", "it")}


# --- features over the epochs -----------------------------------------------------------------------------------------


def test_what_widens_drifts_and_what_does_not_stays() -> None:
    wide = [_cell("none", seed, [1.0, 3.0, 8.0 + seed]) for seed in range(3)]
    same = [_cell(norm, seed, [2.0, 2.2, 2.1 + seed / 10]) for norm in ("bn", "bin") for seed in range(3)]
    assert _verdicts(_found(wide + same)) == {
        "it drifts without a norm": verdicts.HOLDS,
        "it stays as it is with bn": verdicts.HOLDS,
        "it stays as it is with bin": verdicts.HOLDS,
        "it widens more without a norm than with bn": verdicts.HOLDS,
    }
    turned = [_cell("none", c["seed"], [2.0, 2.0 + c["seed"] / 10]) for c in wide]
    turned += [_cell("bn", seed, [1.0, 8.0 + seed]) for seed in range(3)]
    assert set(_verdicts(_found(turned)).values()) == {verdicts.FAILS}


def test_trainings_that_diverged_and_layers_that_died_are_left_out() -> None:
    cells = [_cell("none", 0, [1.0, 4.0]), _cell("none", 1, [0.0, 4.0]), _cell("none", 2, [1.0, 9.0], "diverged")]
    finding = feature_evolution._findings(_found(cells), "features", "it")[0]
    assert finding.values == {"values": [4.0]}
    assert _found(cells).unfinished() == ["none: 1 trainings diverged"]
    assert feature_evolution._findings(_found(cells[2:]), "features", "it") == []
    assert feature_evolution._panels(_found(cells[2:]), "features") == {}


def test_the_last_norm_is_that_of_the_last_stage() -> None:
    assert list(feature_evolution._layers([_cell("bn", 0, [1.0])])) == ["features", "stage 3"]
    assert list(feature_evolution._layers([])) == ["features"]


def test_panels_share_a_scale_unless_one_outgrows_it() -> None:
    def rows(width: float) -> list[dict[str, Any]]:
        return [{"epoch": epoch, **_layer(width * epoch)} for epoch in (1, 2)]

    def domains(panels: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        charts = as_spec(evolution(panels))["concat"]
        return {c["title"]: c["layer"][0]["encoding"]["y"]["scale"].get("domain") for c in charts}

    assert domains({"bn": rows(1), "gn": rows(2), "none": rows(5)}) == {n: [-5, 5] for n in ("bn", "gn", "none")}
    assert domains({"bn": rows(1), "gn": rows(2), "none": rows(500)}) == {
        "bn": [-2, 2], "gn": [-2, 2], "none (its own scale)": None
    }  # fmt: skip


def test_few_epochs_are_each_named_once() -> None:
    rows = [{"epoch": epoch, **_layer(1.0)} for epoch in (1, 2, 3)]
    panel = as_spec(evolution({"bn": rows}))["concat"][0]["layer"][0]
    assert panel["encoding"]["x"]["axis"]["values"] == [1, 2, 3]
    records = [{"series": "bn", "epoch": epoch, "val_accuracy": 0.5} for epoch in (1, 2, 3)]
    line = as_spec(curves(records, "epoch", "val_accuracy", "series"))["layer"][0]
    assert line["encoding"]["x"]["axis"]["values"] == [1, 2, 3]


# --- galleries --------------------------------------------------------------------------------------------------------


def _gallery(name: str, kind: str, answers: dict[str, str]) -> dict[str, Any]:
    shown = picture(np.full((3, 12, 12), 128, np.uint8))
    maps = [{"norm": norm, "predicted": said, "confidence": 0.5, "picture": shown} for norm, said in answers.items()]
    return {"class": name, "kind": kind, "images": [{"index": 7, "truth": name, "picture": shown, "maps": maps}]}


def _colors(png: bytes) -> set[tuple[int, ...]]:
    return {color for _, color in Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or []}


def _near(colors: set[tuple[int, ...]], name: str) -> bool:
    wanted = [int(LIGHT[name][i : i + 2], 16) for i in (1, 3, 5)]
    return any(math.dist(color, wanted) < 8 for color in colors)


def test_there_is_a_picture_for_each_class_with_a_row_for_each_image() -> None:
    right = _gallery("rose", "correct", {"bn": "rose", "gn": "rose"})
    wrong = _gallery("rose", "incorrect", {"bn": "tulip", "gn": "tulip"})
    other = _gallery("daisy", "correct", {"bn": "daisy", "gn": "daisy"})
    pictures = draw([right, wrong, other])
    assert list(pictures) == ["rose", "daisy"]
    tall, low = (Image.open(io.BytesIO(png)).size for png in pictures.values())
    assert tall[0] == low[0] > 3 * SIDE
    assert tall[1] - low[1] > SIDE


@pytest.mark.parametrize(("said", "right"), [("rose", True), ("tulip", False)])
def test_frames_tell_right_from_wrong(said: str, right: bool) -> None:
    colors = _colors(draw([_gallery("rose", "correct", {"bn": said})])["rose"])
    assert _near(colors, "c3") == right
    assert _near(colors, "c10") != right


def test_any_name_of_a_class_can_be_drawn() -> None:
    for name in ("a name much longer than any tile is wide " * 3, "鳥", "", "a/b\n<c>"):
        assert list(draw([_gallery(name, "correct", {"bn": name})])) == [name]


def test_galleries_that_lack_a_kind_say_which() -> None:
    right, wrong = (_gallery("rose", kind, {"bn": "rose"}) for kind in ("correct", "incorrect"))
    assert grad_cam._right_and_wrong([right, wrong]).verdict == verdicts.HOLDS
    lacking = grad_cam._right_and_wrong([right])
    assert lacking.verdict == verdicts.UNKNOWN
    assert "none of rose (incorrect)" in lacking.measured
    assert grad_cam._right_and_wrong([]).verdict == verdicts.UNKNOWN


def test_filters_are_drawn_beside_each_other_whatever_their_channels() -> None:
    rng = np.random.default_rng(0)
    gray, coloured = rng.normal(size=(2, 1, 3, 3)), rng.normal(size=(2, 3, 5, 5))
    drawn = first_layer_filters.sheet([gray, coloured])
    assert drawn.shape == (3, 60, 60)
    assert drawn.min() >= 0
    assert drawn.max() == 255
    assert np.array_equal(drawn[0, :28], drawn[1, :28])
    assert not np.array_equal(drawn[0, 32:], drawn[1, 32:])
    assert (first_layer_filters.sheet([np.zeros((1, 1, 3, 3))]) == 127.5).all()


def test_how_far_filters_moved_is_relative_to_their_length() -> None:
    start = np.array([3.0, 4.0]).reshape(2, 1, 1, 1)
    assert first_layer_filters.distance(start, start) == 0
    assert first_layer_filters.distance(start, 2 * start) == pytest.approx(1)


# --- the directory ----------------------------------------------------------------------------------------------------


def test_networks_can_be_asked_before_a_quick_study_is_gone() -> None:
    threads = torch.get_num_threads()
    tiny = {"models": "resnet8:width=4", "norms": "none", "limit_train": 16, "limit_eval": 16, "batch_sizes": 8}
    with trained("tiny", Setting(seeds=1), {}, {**tiny, "epochs": 1}) as (found, directory):
        assert [cell["status"] for cell in found.cells] == ["done"]
        assert list(directory.rglob("final.safetensors"))
    assert not directory.exists()
    assert torch.get_num_threads() == threads


def test_lengths_go_before_the_specs_and_a_full_study_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {"models": "resnet8:width=4", "norms": "none", "batch_sizes": 8, "epochs": 50}
    setting = Setting(seeds=1, scale="full", epochs=2, limit_train=16, limit_eval=12)
    with trained("tiny", setting, tiny) as (found, directory):
        pass
    assert (tmp_path / directory / "results.json").is_file()
    assert [len(cell["epochs"]) for cell in found.cells] == [2]
    assert [found.environment[f"{split}_images"] for split in ("train", "val", "test")] == [16, 12, 12]
    assert found.length(tiny) == "2 of 50 epochs"
    assert found.length({"epochs": 2}) == "2 epochs"


def test_a_shorter_run_on_other_images_says_so() -> None:
    spec = {"epochs": 100}
    whole = Setting(data="x", scale="full", epochs=100)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    cifar10 = Comparison([], {"data": "/images/cifar10", "class_names": names, "image_shape": [3, 32, 32]})
    flowers = Comparison([], {"data": "/images/flowers", "class_names": ["a", "b"], "image_shape": [3, 32, 32]})
    assert scale_of(cifar10, whole, spec) == ""
    short = replace(whole, epochs=3, limit_train=64)
    assert scale_of(cifar10, short, spec) == "3 of 100 epochs, 64 training images"
    assert scale_of(flowers, whole, spec) == "on flowers instead of CIFAR-10"
    assert scale_of(flowers, whole, spec, like="birds") == "on flowers instead of birds"
    assert replace(whole, image_size=64).shortened({**spec, "image_size": 128}) == "64 x 64 pixels"
    assert replace(whole, image_size=64).shortened(spec) == "64 x 64 pixels"
    assert replace(whole, image_size=64).shortened({**spec, "image_size": 64}) == ""


@pytest.mark.parametrize(("noted", "name"), [(("stored as JPEG",), "CIFAR-10 (JPEG): "), ((), "CIFAR-10: ")])
def test_data_is_called_what_it_is(noted: Sequence[str], name: str) -> None:
    counts = {f"{split}_images": 7 for split in ("train", "val", "test")}
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    facts = {"data": "images", "notes": noted, "image_shape": [3, 32, 32], "class_names": classes, **counts}
    assert Comparison([], facts).describe_data(Setting(data="images")).startswith(name)
    other = Comparison([], {**facts, "image_shape": [3, 64, 64]})
    assert other.describe_data(Setting(data="images")).startswith("images: ")
