"""Data sets of the hub, made on disk with the package that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normlab.data import held, load
from normlab.errors import DataError, UsageError
from tests.photographs import CLASSES, picture

datasets = pytest.importorskip("datasets")


def a_set(columns: tuple[str, str] = ("photo", "kind"), each: int = 8) -> Any:
    rng = np.random.default_rng(0)
    kinds = [k for k in range(2) for _ in range(each)]
    image, label = columns
    return datasets.Dataset.from_dict(
        {"id": list(range(len(kinds))), image: [Image.fromarray(picture(k, rng)) for k in kinds], label: kinds},
        features=datasets.Features(
            {"id": datasets.Value("int32"), image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))}
        ),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `save_to_disk` leaves it, with two splits."""
    folder = tmp_path_factory.mktemp("hub") / "pictures"
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": a_set(), "test": a_set(each=3), "extra": a_set(each=1)}).save_to_disk(str(folder))
    datasets.enable_progress_bars()
    return folder


def test_a_set_that_was_saved(saved: Path, tmp_path: Path) -> None:
    found = load(f"hf:{saved}", cache_dir=tmp_path)
    assert found.class_names == CLASSES
    assert (found.name, len(found.train) + len(found.val), len(found.test)) == ("pictures", 16, 6)
    expected = held(datasets.DatasetDict({"train": a_set(), "test": a_set(each=3)})).write(tmp_path)
    assert load(expected, cache_dir=tmp_path).hash == found.hash


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(path: str, configuration: str | None, revision: str | None) -> Any:
        asked.append((path, configuration, revision))
        return datasets.DatasetDict({"train": a_set(("image", "label"))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    one, other = (load("hf:owner/name@v1:small", cache_dir=tmp_path) for _ in range(2))
    assert one.hash == other.hash
    assert asked == [("owner/name", "small", "v1")]
    assert datasets.is_progress_bar_enabled()


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(*names: object, **options: object) -> Any:
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(DataError, match="'hf:owner/name' cannot be had: ConnectionError: no network here; expected"):
        load("hf:owner/name", cache_dir=tmp_path)
    with pytest.raises(UsageError, match="expected hf:owner/name"):
        load("hf:", cache_dir=tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": a_set().remove_columns("photo")})
    with pytest.raises(DataError, match=r"id \(Value\), kind \(ClassLabel\); expected one of images"):
        load("hf:owner/name", cache_dir=tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"everything": a_set()})
    with pytest.raises(DataError, match="its splits are everything"):
        load("hf:owner/name", cache_dir=tmp_path)
    assert not list(tmp_path.glob("hub/*/*"))


def test_a_set_that_was_saved_is_told_from_a_folder_of_images(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a data set that the package datasets saved; name it hf:"):
        load(saved, cache_dir=tmp_path)


# hf:folder@rev ignored the revision
def test_a_folder_has_no_revision_and_what_was_saved_no_configuration(saved: Path, tmp_path: Path) -> None:
    for name, what in ((f"hf:{saved}@v1", "revision"), (f"hf:{saved}:small", "configuration")):
        with pytest.raises(UsageError, match=f"a folder has no {what}; expected hf:"):
            load(name, cache_dir=tmp_path)


# of two splits that mean the same the last one was taken
def test_two_splits_that_mean_the_same_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    datasets.DatasetDict({"train": a_set(), "dev": a_set(each=1), "validation": a_set(each=2)}).save_to_disk(folder)
    with pytest.raises(DataError, match="its splits dev and validation are both the val split"):
        load(f"hf:{folder}", cache_dir=tmp_path / "cache")
