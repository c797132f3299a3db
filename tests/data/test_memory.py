"""Labels and tables that a program holds: what is missing, or no label, is said and never made a class."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from normlab.data._memory import held
from normlab.errors import DataError, UsageError

X = np.zeros((6, 1, 4, 4), np.uint8)
Y = np.arange(6) % 3


# None and NaN became the classes 'None' and 'nan', infinity the class '-9223372036854775808'; the last two were
# tracebacks
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, 0, 1, None], "the labels of train: 2 are missing\n  row 2\n  row 5"),
        (["a", "b", float("nan"), "a", "b", "c"], "1 are missing\n  row 2"),
        (np.array(["a", "b", float("nan"), "a", "b", "c"], object), "1 are missing\n  row 2"),
        (np.where(Y == 1, np.inf, Y), "are not whole numbers"),
        (np.where(Y == 1, 1e30, Y), "are not whole numbers"),
        (np.where(Y == 1, 2**63, Y).astype(np.uint64), "are as large as 9223372036854775808"),
        ([[1], [1, 2], [3], [1], [2], [3]], "are no array"),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        held((X, labels))


def test_texts_that_look_missing_are_labels() -> None:
    assert b"None" in held((["a.png", "b.png"], ["None", "nan"])).content


# a path of NaN was a TypeError, and a label of NaN the class 'nan'
@pytest.mark.parametrize(("column", "lost"), [("path", float("nan")), ("label", None), ("label", float("nan"))])
def test_missing_cells_of_a_table_are_named(column: str, lost: Any, frame: Callable[..., Any]) -> None:
    cells: dict[str, list[Any]] = {"path": ["a.png", "b.png", "c.png"], "label": ["x", "y", "x"]}
    cells[column][1] = lost
    with pytest.raises(DataError, match=f"the table's column '{column}': 1 are missing\n  row 1"):
        held(frame(cells))


@pytest.fixture
def frame() -> Callable[..., Any]:
    class Frame(dict[str, list[Any]]):
        """What is used of a DataFrame."""

        columns = property(lambda self: list(self))

        def itertuples(self) -> None: ...

    return Frame


# the later of the two took the place of the former
def test_a_split_under_two_names_is_refused() -> None:
    with pytest.raises(UsageError, match="the val split twice, the second time as 'validation'"):
        held({"train": (X, Y), "dev": (X, Y), "validation": (X, Y)})


class Named(Dataset[Any]):
    """As a data set of torchvision: it has its class names."""

    classes = ("cat", "dog", "owl")

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        return X[at][0], int(Y[at])


# a subset's classes were called 0, 1, 2
def test_parts_of_a_data_set_have_its_class_names() -> None:
    whole = Named()
    names = [
        np.load(io.BytesIO(held(data).content))["class_names"].tolist()
        for data in (whole, Subset(whole, range(5)), ConcatDataset([whole, whole]))
    ]
    assert names == [list(Named.classes)] * 3


def test_a_loader_is_asked_for_its_data_set() -> None:
    with pytest.raises(UsageError, match=r"data is DataLoader; .*; give its \.dataset"):
        held(DataLoader(Named()))
