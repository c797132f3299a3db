"""Copies of images among the splits: found, named, left out when asked. Classes that are too small likewise."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normlab.data import Dataset, Split
from normlab.data._leaks import find_copies
from normlab.errors import DataError
from normlab.study.source import open_data
from normlab.study.spec import make_spec
from tests.data.makers import encoded, write_folder
from tests.photographs import picture

Load = Callable[..., Dataset]


def smooth(count: int, seed: int, size: int = 24) -> np.ndarray:
    """Pictures with something in them, uint8 (count, 3, size, size)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size))).transpose(2, 0, 1) for c in coarse])


def split(images: np.ndarray) -> Split:
    return Split(images, np.zeros(len(images), np.int64))


def as_jpeg(image: np.ndarray) -> np.ndarray:
    data = io.BytesIO(encoded(image, "JPEG", quality=60))
    return np.asarray(Image.open(data)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        (lambda x: x, True),
        (as_jpeg, False),
        (lambda x: np.clip(x.astype(int) + 20, 0, 255).astype(np.uint8), False),
    ],
)
def test_a_copy_is_found(change: Callable[[np.ndarray], np.ndarray], exact: bool) -> None:
    train, val, test = smooth(40, 0), smooth(10, 1), smooth(10, 2)
    train[7] = change(test[3])
    val[5] = change(test[9])
    (one, other) = find_copies({"train": split(train), "val": split(val), "test": split(test)})
    assert (one.of, one.among, one.rows) == ("test", "train", ((3, 7, exact),))
    assert (other.of, other.among, other.rows) == ("test", "val", ((9, 5, exact),))


def test_other_pictures_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (60, 1, 9, 7), dtype=np.uint8) for _ in range(3)]
    pictures = [smooth(60, seed) for seed in range(3)]
    turned = [pictures[0], pictures[0][..., ::-1].copy(), pictures[0][..., ::-1, :].copy()]
    for images in (noise, pictures, turned):
        assert find_copies(dict(zip(("train", "val", "test"), map(split, images), strict=True))) == []


@pytest.fixture
def leaking(root: Path) -> Path:
    """A folder with a split, whose training images have two of the test images."""
    for name in ("train", "test"):
        for kind, label in enumerate(("leaf", "sky")):
            rng = np.random.default_rng([kind, len(name)])
            (root / name / label).mkdir(parents=True)
            for number in range(8):
                Image.fromarray(picture(kind, rng)).save(root / name / label / f"{number}.png")
    for number in (2, 5):
        image = (root / "test" / "sky" / f"{number}.png").read_bytes()
        (root / "train" / "sky" / f"copy{number}.png").write_bytes(image)
    return root


def test_leaks_are_told_and_dropped(leaking: Path, load: Load) -> None:
    found = load(leaking)
    told = " ".join(found.notes)
    assert "are copies of test images" in told
    assert "'train/sky/copy2.png' is 'test/sky/2.png'" in told
    assert "--drop-leaks" in told
    assert load(leaking).copies == found.copies, "also out of the cache"
    clean = load(leaking, drop_leaks=True)
    assert len(clean.test) == len(found.test)
    assert len(clean.train) + len(clean.val) == len(found.train) + len(found.val) - 2
    pixels = {image.tobytes() for image in clean.test.images}
    assert not any(image.tobytes() in pixels for own in (clean.train, clean.val) for image in own.images)
    assert clean.hash != found.hash
    assert "2 images of the train and val splits were left out" in " ".join(clean.notes)


def test_nothing_but_copies(leaking: Path, load: Load) -> None:
    for file in (leaking / "train" / "sky").iterdir():
        file.unlink()
    for number in range(8):
        image = (leaking / "test" / "sky" / f"{number}.png").read_bytes()
        (leaking / "train" / "sky" / f"{number}.png").write_bytes(image)
    with pytest.raises(DataError, match="--drop-leaks leaves no image of 'sky' in the train split"):
        load(leaking, drop_leaks=True)


def test_the_flags_of_a_study(leaking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, dropped = (
        open_data(make_spec({"data": str(leaking), "drop_leaks": drop}).data_choice()) for drop in (False, True)
    )
    assert len(dropped.train) + len(dropped.val) == len(plain.train) + len(plain.val) - 2
    assert plain.hash != dropped.hash


def test_a_class_of_one_image_is_left_out(root: Path, load: Load) -> None:
    write_folder(root, ("cat", "dog"))
    write_folder(root, ("bird",), each=1)
    with pytest.raises(DataError, match=r"--drop-rare(?s:.)*'bird': 1"):
        load(root)
    found = load(root, drop_rare=True)
    assert found.class_names == ("cat", "dog")
    assert "classes with fewer than 3 training images were left out: 'bird' (1)" in found.notes
    assert set(found.train.labels.tolist()) == {0, 1}
    (root / "bird" / "000.png").rename(root / "cat" / "999.png")
    (root / "bird").rmdir()
    for name in found.class_names:
        assert name in load(root).class_names


def test_what_drop_rare_leaves_is_the_same_data(root: Path, load: Load, tmp_path: Path) -> None:
    write_folder(root, ("ant", "cat", "dog"))
    before = load(root)
    write_folder(root, ("zebra",), each=2)
    after = load(root, drop_rare=True)
    assert after.hash == before.hash
