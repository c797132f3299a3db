"""CIFAR-10 as the assignments read it: the folder cifar-10-batches-py, or an .npz file of the same images."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from normlab.errors import DataError
from normlab.scratch import _checks as check

__all__ = ["get_CIFAR10_data", "load_CIFAR10", "load_CIFAR_batch", "load_pickle"]

Split = tuple[np.ndarray, np.ndarray]

PLACES = tuple(
    folder + name for name in ("cifar-10-batches-py", "cifar10.npz") for folder in ("cs231n/datasets/", "datasets/", "")
)
# what a pickle of the batches needs to rebuild its arrays; anything else that it names is refused
_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def get_CIFAR10_data(
    num_training: int = 49000,
    num_validation: int = 1000,
    num_test: int = 1000,
    subtract_mean: bool = True,
    root: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Returns X_train, y_train, X_val, y_val, X_test, y_test: images float64 (N, 3, 32, 32), labels (N,).

    The first `num_training` training images train, the next `num_validation` validate; `subtract_mean` takes the mean
    image of the former off all of them. `root` is the folder of the batches or an .npz file with x_train, y_train,
    x_test, y_test (images uint8, (N, 3, 32, 32)); by default the usual places below the working directory are tried.
    Raises DataError if there is no such data, or too little of it.
    """
    counts = [
        check.integer(name, count, 0)
        for name, count in (("num_training", num_training), ("num_validation", num_validation), ("num_test", num_test))
    ]
    train, test = _read(_find_root(root))
    for name, wanted, (images, _) in (("training", sum(counts[:2]), train), ("test", counts[2], test)):
        if wanted > len(images):
            raise DataError(f"{wanted} {name} images are asked for, and there are {len(images)}; ask for fewer")
    first, second = counts[0], counts[0] + counts[1]
    parts = {
        "train": (train[0][:first], train[1][:first]),
        "val": (train[0][first:second], train[1][first:second]),
        "test": (test[0][: counts[2]], test[1][: counts[2]]),
    }
    mean = parts["train"][0].mean(0) if subtract_mean and first else 0.0
    data = {}
    for part, (images, labels) in parts.items():
        data[f"X_{part}"] = np.ascontiguousarray((images - mean).transpose(0, 3, 1, 2))
        data[f"y_{part}"] = labels
    return data


def load_CIFAR10(ROOT: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (Xtr, Ytr, Xte, Yte): images float64 (N, 32, 32, 3), labels (N,), from the folder of the batches."""
    (images, labels), (test_images, test_labels) = _read(Path(ROOT))
    return images, labels, test_images, test_labels


def load_CIFAR_batch(filename: str | os.PathLike[str]) -> Split:
    """Returns (X, Y) of one batch: images float64 (N, 32, 32, 3), labels (N,)."""
    path = Path(filename)
    try:
        batch = load_pickle(io.BytesIO(path.read_bytes()))
        planes = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.array(batch["labels"])
    except (OSError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is not a batch of CIFAR-10: {error}") from error
    return _as_images(planes), labels


def load_pickle(f: Any) -> Any:
    """Returns what a binary file holds: numbers, strings, lists, dictionaries and arrays. Anything else is refused."""
    return _Unpickler(f, encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before NumPy 2
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a batch of images has no use for")
        return super().find_class(module, name)


def _read(root: Path) -> tuple[Split, Split]:
    if root.suffix != ".npz":
        batches = [load_CIFAR_batch(root / f"data_batch_{number}") for number in range(1, 6)]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return (images, labels), load_CIFAR_batch(root / "test_batch")
    try:
        with np.load(root, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{root} does not hold x_train, y_train, x_test, y_test: {error}") from error
    for name in ("x_train", "x_test"):
        check.check_shape(name, arrays[name], ("N", 3, 32, 32))
    return (_as_images(arrays["x_train"]), arrays["y_train"]), (_as_images(arrays["x_test"]), arrays["y_test"])


def _as_images(planes: np.ndarray) -> np.ndarray:
    return planes.transpose(0, 2, 3, 1).astype(np.float64)


def _find_root(root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        return Path(root)
    for place in PLACES:
        if Path(place).exists():
            return Path(place)
    raise DataError(
        f"no CIFAR-10 below {Path.cwd()}: put it into one of {', '.join(PLACES)}, or call get_CIFAR10_data(root=...)"
    )
