from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from normlab.cli import app
from normlab.errors import DataError, UsageError
from normlab.explain.networks import trained_networks
from normlab.explain.pictures import SIDE, picture
from normlab.explain.predictions import predict
from normlab.explain.questions import Questions, explain
from normlab.study.running.run import Options, run_study
from normlab.study.spec import make_spec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    spec = make_spec(
        {"norms": "torch-bn,none", "models": "resnet8", "epochs": 1, "seeds": 2, "lrs": 0.05, "batch_sizes": 16,
         "limit_train": 240, "limit_eval": 120}
    )  # fmt: skip
    run_study(spec, directory, Options(inline=True))
    return directory


def test_networks_come_back_as_they_were_trained(study: Path) -> None:
    dataset, networks, records = trained_networks(study)
    assert [(n.norm, n.seed) for n in networks] == [("torch-bn", 0), ("none", 0), ("torch-bn", 1), ("none", 1)]
    for network, cell in zip(networks, records["cells"], strict=True):
        logits = predict(network.load(dataset), dataset.test.images, dataset.channel_mean, dataset.channel_std)
        assert np.mean(logits.argmax(axis=1) == dataset.test.labels) == pytest.approx(cell["test"]["accuracy"])


def test_answers_are_complete_and_the_study_is_untouched(study: Path) -> None:
    weights = {path: path.read_bytes() for path in study.rglob("final.safetensors")}
    state = torch.get_rng_state()
    found = explain(study, Questions(["3", "8"], correct=2, incorrect=1, images=60))
    assert torch.equal(state, torch.get_rng_state())
    assert {path: path.read_bytes() for path in study.rglob("final.safetensors")} == weights
    json.dumps(found, allow_nan=False)
    assert found["images"] == 60
    assert {g["class"] for g in found["galleries"]} <= {"3", "8"}
    for gallery in found["galleries"]:
        for image in gallery["images"]:
            wrong = np.mean([answer["predicted"] != image["truth"] for answer in image["maps"]])
            assert (wrong < 0.5) == (gallery["kind"] == "correct")
            assert [answer["norm"] for answer in image["maps"]] == list(found["confusion"])
            assert all(0 < answer["confidence"] <= 1 for answer in image["maps"])
    assert {(r["a"], r["b"]) for r in found["agreement"]} <= {
        (a, b) for a in found["confusion"] for b in found["confusion"]
    }
    assert [np.sum(matrix) for matrix in found["confusion"].values()] == [120, 120]
    assert {(r["norm"], r["seed"], r["batch_size"]) for r in found["three_ways"]} == {
        ("torch-bn", 0, 16), ("torch-bn", 1, 16)
    }  # fmt: skip
    assert len(found["deletion"]) == 4


def test_the_command_puts_the_answers_into_the_report(study: Path) -> None:
    result = CliRunner().invoke(app, ["explain", str(study), "--class", "3", "--images", "60"])
    assert result.exit_code == 0, result.output
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "What they look at" in page
    assert "3, incorrect" in page or "3, correct" in page
    assert "Why a batch size hurts" in page


def test_unknown_class_is_named(study: Path) -> None:
    with pytest.raises(UsageError, match=r"'cat' is not in the data; it has 0, 1, 2"):
        explain(study, Questions(["cat"]))


# A spec written out has momentum in it, which was refused where no optimizer had any: nothing could be explained.
def test_networks_without_momentum_can_be_asked(tmp_path: Path) -> None:
    spec = make_spec(
        {"norms": "none", "models": "resnet8:width=4", "epochs": 1, "optimizers": "adam", "lrs": 0.001,
         "batch_sizes": 16, "limit_train": 32, "limit_eval": 20}
    )  # fmt: skip
    run_study(spec, tmp_path, Options(inline=True))
    assert [network.norm for network in trained_networks(tmp_path)[1]] == ["none"]


def test_missing_and_damaged_weights_are_named(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    first, *rest = sorted(copy.rglob("final.safetensors"))
    first.write_bytes(first.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(DataError, match="cannot be loaded"):
        explain(copy, Questions(images=20))
    for path in (first, *rest):
        path.unlink()
    with pytest.raises(DataError, match="has no trained network: 4 cells are done"):
        trained_networks(copy)


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"), np.float32)


def test_pictures_are_small_and_brighter_where_it_is_hot() -> None:
    image = np.full((3, 32, 32), 100, np.uint8)
    heat = np.zeros((32, 32), np.float32)
    heat[:16] = 1
    address = picture(image, heat)
    assert address.startswith("data:image/webp;base64,")
    assert len(address) < 6000
    shown = decoded(address)
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown[:40].mean() > shown[56:].mean() + 50
    gray = decoded(picture(np.full((1, 8, 16), 200, np.uint8)))
    assert gray.shape == (SIDE // 2, SIDE, 3)
    assert abs(gray.mean() - 200) < 3
