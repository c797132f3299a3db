"""The laboratory from Python: the same studies as the command line's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import normlab
from normlab.errors import DataError, UsageError
from normlab.report import verdict
from normlab.report.lab import Study
from tests.photographs import picture
from tests.study.fakes import Silent


class Quiet(Silent):
    """A console that shows nothing."""

    def data(self, done: int, total: int, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def test_a_study_says_what_the_command_line_says(compared: Study) -> None:
    assert str(compared.verdict) == verdict(compared.path)
    assert str(compared.verdict) in " ".join(str(compared).split())
    table = compared.table()
    assert [row[0] for row in table.rows] == [compared.best.norm, *({"bn", "gn"} - {compared.best.norm})]
    assert "test accuracy (%)" in str(table)
    assert "<table>" in compared._repr_html_()
    assert repr(normlab.open_study(compared.path)) == repr(compared)


def test_rows_for_pandas(compared: Study) -> None:
    pandas = pytest.importorskip("pandas")
    frame = compared.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 2 * 2
    assert set(frame.norm) == {"bn", "gn"}


def test_the_same_call_trains_nothing_again(compared: Study, photographs: Path) -> None:
    console = Quiet()
    normlab.compare(
        str(photographs), "bn,gn", "resnet8:width=4", seeds=2, epochs=1, batch_size=8, lr=0.02, inline=True,
        out=compared.path, console=console,
    )  # fmt: skip
    assert console.notices == ["4 of 4 cells are done already"]


def kinds() -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """The same images and labels, as people hold them."""
    return {
        "arrays": lambda x, y: (x, y),
        "channels last": lambda x, y: (x.transpose(0, 2, 3, 1), y),
        "floats": lambda x, y: (x / 255, y),
        "tensors": lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)),
        "lists": lambda x, y: (list(x), y.tolist()),
        "by name": lambda x, y: {"x": x, "y": y},
        "training part": lambda x, y: {"x_train": x, "y_train": y},
        "splits": lambda x, y: {"train": (x, y)},
        "a dict of tensors": lambda x, y: {"x_train": torch.from_numpy(x), "y_train": torch.from_numpy(y)},
        "a dataset of pictures": lambda x, y: [
            (Image.fromarray(p.transpose(1, 2, 0)), int(k)) for p, k in zip(x, y, strict=True)
        ],
        "a subset": lambda x, y: Subset(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), range(len(y))),
        "items by name": lambda x, y: [{"image": p, "label": k} for p, k in zip(x, y, strict=True)],
        "torch dataset": lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        "one-hot": lambda x, y: (x, np.eye(2)[y]),
        "from 1": lambda x, y: (x, y + 1),
        "text": lambda x, y: (x, np.array(["a", "b"])[y]),
        "a column": lambda x, y: (x, y[:, None].astype(float)),
    }


@pytest.mark.parametrize("kind", kinds())
def test_images_in_memory_are_those_images(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = np.stack([picture(k, rng, 8).transpose(2, 0, 1) for k in y])
    held = normlab.data.held(kinds()[kind](x, y))
    found = normlab.data.load(held.write(tmp_path), cache_dir=tmp_path / "cache")
    expected = normlab.data.load(normlab.data.held((x, y)).write(tmp_path / "e"), cache_dir=tmp_path / "cache")
    assert found.hash == expected.hash
    names = {"from 1": ("1", "2"), "text": ("a", "b")}
    assert found.class_names == names.get(kind, ("0", "1"))


def test_a_table_of_files_in_each_form(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    files = sorted(photographs.rglob("*.png"))
    table = pandas.DataFrame({"file": files, "class": [file.parent.name for file in files]})
    table.to_csv(tmp_path / "table.csv", index=False)
    monkeypatch.chdir(photographs)
    relative = [file.relative_to(photographs) for file in files]
    ways = [
        normlab.data.held(table).write(tmp_path),
        normlab.data.held(table.assign(file=relative)).write(tmp_path),
        normlab.data.held((relative, table["class"])).write(tmp_path),
        tmp_path / "table.csv",
    ]
    found = {normlab.data.load(way, cache_dir=tmp_path / "cache").hash for way in ways}
    assert len(found) == 1
    assert normlab.data.load(ways[0], cache_dir=tmp_path / "cache").class_names == ("leaf", "sky")


def test_a_split_that_is_given_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(12) % 2
    x = np.stack([picture(k, rng, 8) for k in y])
    data = {"train": (x, y), "validation": (x[:4], y[:4]), "test": (x[4:10], y[4:10]), "class_names": ["leaf", "sky"]}
    found = normlab.data.load(normlab.data.held(data).write(tmp_path), cache_dir=tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (12, 4, 6)
    assert found.class_names == ("leaf", "sky")


PATHS = ["a.png", "b.png", "c.png"]


# the names were dropped without a word
@pytest.mark.parametrize("data", [(PATHS, [0, 1, 0]), {"x": PATHS, "y": [0, 1, 0], "class_names": ["leaf", "sky"]}])
def test_files_have_no_class_names(data: Any) -> None:
    names = ["leaf", "sky"] if isinstance(data, tuple) else None
    with pytest.raises(UsageError, match="class_names is for arrays"):
        normlab.data.held(data, names)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UsageError, match="class_names is for arrays"):
        normlab.data.held(pandas.DataFrame({"path": PATHS, "label": [0, 1, 0]}), ["leaf", "sky"])


# a tensor's labels were written as "tensor(0)"
@pytest.mark.parametrize("labels", [[0, 1, 0], torch.tensor([0, 1, 0]), np.eye(2)[[0, 1, 0]]])
def test_labels_of_paths_are_those_of_arrays(labels: Any) -> None:
    table = normlab.data.held((PATHS, labels)).content.decode()
    assert [line.rpartition(",")[2] for line in table.splitlines()] == ["label", "0", "1", "0"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((PATHS, [0, 1]), ["3 images", "2 labels"]),
        (3, ["int", "(x, y)"]),
        ({"pictures": 1}, ["pictures", "x_train"]),
        ({"x_train": np.zeros((4, 8, 8), np.uint8)}, ["y_train"]),
        ({"test": (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])}, ["training"]),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1, 0]), ["4 images", "3 labels"]),
        ((np.zeros((4, 8, 8)) - 2, [0, 1, 0, 1]), ["-2.0", "Normalize"]),
        ((np.zeros((4, 8, 8), np.uint8), [0.5, 1, 0, 1]), ["whole numbers"]),
        ((np.zeros((4, 8, 8), np.uint8), np.ones((4, 2))), ["one 1"]),
        ((np.zeros((4, 8), np.uint8), [0, 1, 0, 1]), ["(4, 8)"]),
        ([1, 2, 3], ["item 0", "(image, label)"]),
    ],
)
def test_what_is_no_data_is_told(data: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises((UsageError, DataError)) as caught:
        normlab.compare(data, out=tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"nroms": "bn"}, "nroms"),
        ({"norms": "batch"}, "batch"),
        ({"model": 3}, "3"),
        ({"model": "resnet9"}, "6n + 2"),
        ({"model": "gone@12345678"}, "hand it over again"),
        ({"class_names": ["a"]}, "class_names"),
        ({"lr": 0.1, "lrs": [0.1]}, "same setting"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word.replace("+", r"\+")):
        normlab.compare("digits", out=tmp_path, **settings)


def test_a_directory_without_a_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no study"):
        normlab.open_study(tmp_path)


def test_the_report_shows_how_to_load_the_winner(compared: Study) -> None:
    page = compared.report().read_text(encoding="utf-8")
    head, _, _ = page.partition("<nav")
    assert f"open_study(&#39;{compared.path}&#39;).best.model()" in head
