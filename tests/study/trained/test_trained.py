"""What comes out of a comparison: the same accuracy to the last digit, from one file, which executes nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import given as given_examples
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import normlab
from normlab.errors import DataError, UsageError
from normlab.models import given
from normlab.report.lab import Study
from normlab.study.keeping.digests import digest_of
from normlab.study.trained import Trained
from normlab.study.trained.stored import images_of, weights_in
from tests.photographs import CLASSES, picture


@pytest.fixture(scope="module")
def saved(compared: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compared.best.save(tmp_path_factory.mktemp("saved") / "photos.safetensors")


def test_the_test_accuracy_is_reproduced_to_the_last_digit(compared: Study, saved: Path) -> None:
    records, finished = weights_in(compared.path)
    test = images_of(records, compared.path).test
    for stored, _ in finished:
        trained = compared.trained(stored.cell.norm, stored.cell.seed)
        assert trained.model().accuracy(test.images, test.labels) == trained.metrics["test_accuracy"]
        with torch.no_grad():
            logits = trained.model()(torch.from_numpy(np.array(test.images)))
        loss = functional.cross_entropy(logits, torch.from_numpy(np.array(test.labels)), reduction="sum")
        assert loss.item() / len(test) == trained.metrics["test_loss"]
    again = normlab.load(saved)
    assert again.model().accuracy(test.images, test.labels) == again.metrics["test_accuracy"]
    assert again.metrics == compared.best.metrics


def test_the_file_has_everything(compared: Study, saved: Path) -> None:
    facts = normlab.load(saved).facts
    assert facts == compared.best.facts
    assert facts.class_names == CLASSES
    assert facts.image_shape == (3, 12, 12)
    assert facts.data["hash"] == compared.results["environment"]["data_hash"]
    assert {"normlab", "torch"} <= facts.versions.keys()
    assert facts.settings["planned_epochs"] == 1
    assert set(load_file(saved)) == set(compared.best.model().net.state_dict())


def test_predictions_of_files_arrays_and_tensors(compared: Study, photographs: Path, tmp_path: Path) -> None:
    net = compared.best.model()
    assert not net.training
    leaf = picture(0, np.random.default_rng(7))
    path = tmp_path / "one.png"
    Image.fromarray(leaf).save(path)
    (of_path,) = net.predict(path)
    (of_array,) = net.predict(leaf)
    (of_planes,) = net.predict(torch.from_numpy(leaf).movedim(2, 0))
    (of_floats,) = net.predict(leaf / 255)
    assert of_path.probabilities == of_array.probabilities == of_planes.probabilities == of_floats.probabilities
    assert of_path.source == str(path)
    assert of_path.confidence == max(of_path.probabilities.values())
    assert sum(of_path.probabilities.values()) == pytest.approx(1)
    assert of_path.label in CLASSES
    several = net.predict([path, leaf, np.stack([leaf, leaf])])
    assert len(several) == 4
    assert all(one.probabilities == pytest.approx(of_path.probabilities, abs=1e-6) for one in several)
    assert len(net.predict(photographs / "sky")) == 20
    assert len(net.predict(Image.fromarray(leaf).resize((40, 30)))) == 1
    logits = net(torch.from_numpy(leaf).movedim(2, 0)[None])
    assert logits.shape == (1, 2)
    torch.testing.assert_close(logits.detach().softmax(1)[0], torch.tensor(list(of_path.probabilities.values())))


@pytest.mark.parametrize(
    ("images", "error", "word"),
    [
        ("nowhere.png", DataError, "nowhere.png"),
        ([], UsageError, "no image"),
        (np.zeros((5, 5, 7, 2), np.uint8), UsageError, "(5, 5, 7, 2)"),
        (np.full((5, 5), 3.5), UsageError, "3.5"),
        (np.zeros((5, 5), np.int64) + 300, UsageError, "int64"),
        (object(), UsageError, "object"),
    ],
)
def test_what_is_no_image_is_told(compared: Study, images: object, error: type[Exception], word: str) -> None:
    with pytest.raises(error) as caught:
        compared.best.model().predict(images)
    assert word in str(caught.value)


def test_a_file_that_is_none_is_told(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        normlab.load(tmp_path / "nothing.safetensors")
    (tmp_path / "words.safetensors").write_text("words")
    with pytest.raises(DataError, match="no safetensors"):
        normlab.load(tmp_path / "words.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(DataError, match="nothing else"):
        normlab.load(tmp_path / "bare.safetensors")
    for header in ("{", "[]", '{"format": 99}', '{"format": 1, "model": "resnet8"}'):
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"normlab": header})
        with pytest.raises(DataError, match=r"format 99|header"):
            normlab.load(tmp_path / "bad.safetensors")
    with pytest.raises(UsageError, match=r"\.safetensors"):
        normlab.load(saved).save(tmp_path / "a.pt")


# A changed byte of the weights was predicted with.
@given_examples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.none() | st.floats(0, 1),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_told_or_reads_as_it_was(
    saved: Path, tmp_path: Path, changes: list[tuple[float, int]], cut: float | None
) -> None:
    data = bytearray(saved.read_bytes())
    length = int.from_bytes(data[:8], "little")
    for where, byte in changes:
        # half of them in the header, which is small
        place = int(where * 2 * (8 + length)) if where < 0.5 else int((2 * where - 1) * len(data))
        data[min(place, len(data) - 1)] = byte
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        found = normlab.load(path)
    except DataError:
        return
    whole = normlab.load(saved)
    assert found.facts == whole.facts
    assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
_WRONG = {
    "model": [None, 3, "", ["resnet8"]],
    "norm": [None, 3, "", {}],
    "class_names": ["ab", [], [1, 2], None, {"a": 1}, 2],
    "image_shape": [[3, 12], [3, 12, 12.5], [3, "12", 12], [0, 12, 12], [3, 12, 10**9], 3, None, [True, 12, 12]],
    "mean": [[0.5], [0.5, 0.5, "0.5"], [0.5, 0.5, math.inf], 0.5, None, [0.5, 0.5, 10**400], [[0.5] * 3] * 3],
    "std": [[0.5, 0.5, 0], [0.5, 0.5, -1.0], [0.5, 0.5, math.nan], "0.5", [True, True, True]],
    "levels": [[0], [255, 0], [0, 70000], [0.0, 255.0], "09", None, [0, 255, 3]],
    "settings": [None, 3, [["dropout", 0.1]], {"dropout": "much"}, {"dropout": 1.5}, {"dropout": [0.1]}],
    "metrics": [None, [0.5], {"test_accuracy": "0.5"}, {"test_accuracy": None}, {"test_accuracy": 10**400}],
    "data": [None, "digits", {"name": 3}],
    "versions": [None, "2.13", {"torch": 2.13}],
    "more": [1],
}


def with_header(saved: Path, path: Path, **changed: object) -> Path:
    """The saved network with other facts, and the digest of these."""
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["normlab"])
    weights, text = load_file(saved), json.dumps({**header, **changed})
    save_file(weights, path, {"normlab": text, "digest": digest_of(weights, text)})
    return path


# Facts of the wrong type and a right digest were tracebacks, some of them only when the network was used.
@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in _WRONG.items() for value in values])
def test_a_wrong_fact_is_told_by_its_name(saved: Path, tmp_path: Path, field: str, value: object) -> None:
    path = with_header(saved, tmp_path / "wrong.safetensors", **{field: value})
    with pytest.raises(DataError, match=f"(?s)the header of .*wrong.safetensors.*{field}"):
        normlab.load(path)


# Training and saving allow such names, and the file was refused: "class_names has a class twice".
def test_any_text_names_a_class(saved: Path, tmp_path: Path) -> None:
    names = ["", "a", "a", *CLASSES][: len(CLASSES)]
    path = with_header(saved, tmp_path / "names.safetensors", class_names=names)
    assert list(normlab.load(path).facts.class_names) == names


@given_examples(st.sampled_from([name for name in _WRONG if name != "more"]), _VALUES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_stands_in_a_header_is_told_or_serves(saved: Path, tmp_path: Path, field: str, value: object) -> None:
    path = with_header(saved, tmp_path / "drawn.safetensors", **{field: value})
    told = ""
    try:
        found = normlab.load(path)
        assert found.card().startswith("---")
        told = "model, norm, class_names, image_shape or settings: "  # what does not fit the weights is told by them
        found.model().predict(np.zeros((12, 12, 3), np.uint8))
    except (DataError, UsageError) as error:
        told += str(error)
        refused = True
    else:
        refused = False
    assert not refused or field in told


def test_a_file_of_an_earlier_version_has_no_digest(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved)
    with safe_open(saved, "pt") as file:
        text = file.metadata()["normlab"]
    save_file(weights, tmp_path / "older.safetensors", {"normlab": text})
    assert normlab.load(tmp_path / "older.safetensors").facts == normlab.load(saved).facts


def mine(norm: object, num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),  # type: ignore[operator]
        nn.Linear(4, num_classes),
    )  # fmt: skip


def test_a_network_of_ones_own_comes_back_with_its_code(photographs: Path, tmp_path: Path) -> None:
    study = normlab.compare(photographs, "bn", mine, epochs=1, batch_size=16, out=tmp_path / "own")
    best = study.best
    picture_ = photographs / "sky" / "0.png"
    expected = best.model().predict(picture_)
    again = normlab.load(best.save(tmp_path / "own.safetensors"))
    with pytest.raises(UsageError, match="loading executes none"):
        again.model()
    assert again.model(mine).predict(picture_) == expected
    norm = normlab.make_norm
    assert again.model(mine(lambda c: norm("bn", c), 2, 3)).predict(picture_) == expected
    with pytest.raises(DataError, match="do not fit"):
        again.model(nn.Linear(1, 1))


def test_a_damaged_study_is_told(compared: Study) -> None:
    with pytest.raises(UsageError, match=r"norm 'in' has no finished training .* there are: (bn, gn|gn, bn)"):
        compared.trained("in")
    with pytest.raises(UsageError, match=r"gn, seed 9, has no weights"):
        compared.trained("gn", 9)


def test_the_card_says_how_to_load_it(compared: Study, tmp_path: Path) -> None:
    text = compared.best.card(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text
    for word in ("normlab.load(", "leaf, sky", "test accuracy", f"{compared.best.metrics['test_accuracy']:.4f}"):
        assert word in text


# the card of a norm that the user had named said that it was chosen by validation accuracy
def test_the_card_claims_no_choice_of_the_norm(compared: Study) -> None:
    for norm in ("bn", "gn"):
        assert "The norm was chosen" not in compared.trained(norm).card()


# the network and a copy of all its weights stayed in memory for the rest of the process
def test_a_network_is_not_kept_by_being_loaded_into(compared: Study, photographs: Path) -> None:
    kept = dict(given._GIVEN)
    best = compared.best
    net = best.model().net
    assert best.model(net).predict(photographs / "sky") == best.model().predict(photographs / "sky")
    with pytest.raises(UsageError, match="model is 3"):
        best.model(3)  # type: ignore[arg-type]
    assert kept == given._GIVEN


# it imported Ray's executor, the console and the rest of what runs a comparison
def test_loading_a_file_imports_nothing_that_runs_a_study() -> None:
    code = "import sys, normlab; normlab.load; sys.exit('normlab.study.running' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_onnx_computes_the_same(compared: Study, photographs: Path, tmp_path: Path, norm: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    trained: Trained = compared.trained(norm)
    session = runtime.InferenceSession(trained.export_onnx(tmp_path / "a.onnx"))
    images = np.stack([picture(k % 2, np.random.default_rng(k)).transpose(2, 0, 1) for k in range(5)])
    (logits,) = session.run(None, {"images": images})
    with torch.no_grad():
        expected = trained.model()(torch.from_numpy(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(CLASSES)


# 12-bit pictures in 16-bit files were nearly black, to the network and to what it predicted
def test_the_range_of_sixteen_bit_images_goes_with_the_network(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 2000)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(low, low + 2000, (8, 8), dtype=np.uint16)
            pixels[0, 0], pixels[1, 1] = 0, 4095
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    study = normlab.compare(
        tmp_path / "images", norms=["bn"], model="resnet8:width=4", seeds=1, epochs=1, full_range=True, jobs=1,
        out=tmp_path / "out",
    )  # fmt: skip
    net = normlab.load(study.best.save(tmp_path / "net.safetensors")).model()
    assert net.levels == (0, 4095)
    (of_file,) = net.predict(tmp_path / "images" / "light" / "0.png")
    pixels = np.array(Image.open(tmp_path / "images" / "light" / "0.png")).astype(int)
    (of_array,) = net.predict((pixels * 256 // 4096).astype(np.uint8))
    assert of_file.probabilities == of_array.probabilities
    assert "4095" in study.best.card()
    assert normlab.open_study(study.path).best.facts == study.best.facts
