"""What is timed: combinations that there are, bytes that must move, and words that are refused by name."""

from __future__ import annotations

import pytest

from normlab.bench import work
from normlab.bench.work import Work, grid
from normlab.errors import UsageError

SHAPE = (2, 8, 4, 4)
TENSOR = 2 * 8 * 4 * 4


def test_the_grid_has_every_combination_once() -> None:
    works = grid(work.NORMS, work.FORMS, work.SHAPES, work.LAYOUTS)
    assert len(works) == len(set(works)) == 5 * 3 * len(work.SHAPES) * 2
    assert {w.form for w in works} == {"norm", "norm + relu", "norm + res + relu"}


@pytest.mark.parametrize(
    ("norms", "shape", "layouts"),
    [
        (["bn", "ln"], (4, 8), ["channels_first"]),  # one position: instances of one element are no instances
        (["bn", "in", "bin", "ln"], (4, 8, 6), ["channels_first"]),
        (["bn", "in", "bin", "ln"], (4, 8, 3, 3, 3), ["channels_first", "channels_last"]),
    ],
)
def test_the_grid_leaves_out_what_does_not_exist(norms: list[str], shape: tuple[int, ...], layouts: list[str]) -> None:
    found = grid(["bn", "in", "bin", "ln"], ["plain"], [shape], work.LAYOUTS)
    assert {(w.norm, w.layout) for w in found} == {(norm, layout) for norm in norms for layout in layouts}


@pytest.mark.parametrize(
    ("residual", "act", "tensors", "bits"),
    [
        (False, None, 5, 0),  # x, y; x, dy, dx
        (False, "relu", 5, 0),  # the mask follows from x
        (True, None, 6, 0),  # the residual's gradient is dy
        (True, "relu", 7, 2),  # a bit an element, written and read
        (True, "silu", 8, 0),  # the residual is read again
    ],
)
def test_bytes_that_must_move(residual: bool, act: str | None, tensors: int, bits: int) -> None:
    for dtype, size in work.DTYPES.items():
        moved = Work("bn", SHAPE, residual=residual, act=act, dtype=dtype).bytes_moved
        assert moved == TENSOR * (tensors * size) + TENSOR * bits // 8


@pytest.mark.parametrize("cache", [1 << 20, 32 << 20, (64 * 112 * 112) * 4])
@pytest.mark.parametrize("dtype", list(work.DTYPES))
def test_the_shape_above_the_cache_is_the_first_that_is(cache: int, dtype: str) -> None:
    n, *rest = work.shape_above(cache, dtype)
    assert Work("bn", (n, *rest), dtype=dtype).tensor_bytes > cache
    assert n == 1 or Work("bn", (n - 1, *rest), dtype=dtype).tensor_bytes <= cache


def test_words_are_read() -> None:
    assert work.parse_norms(" bn, gn:groups=8,bn") == ["bn", "gn:groups=8"]
    assert work.parse_shapes("2x3,4x5x6") == [(2, 3), (4, 5, 6)]
    assert work.parse_input("2, 3,8,8") == work.parse_input("2x3x8x8") == (2, 3, 8, 8)
    assert work.parse_choices("act,plain", "--forms", work.FORMS) == ["act", "plain"]
    assert work.parse_choice("gelu", "--act", work.ACTIVATIONS) == "gelu"


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (work.parse_norms, "sw", ["--norms", "'sw'", "bn, in, bin, ln, gn"]),
        (work.parse_norms, "bn:groups=2", ["'bn:groups=2'"]),
        (work.parse_norms, "gn:groups=0", ["'gn:groups=0'", "gn:groups=8"]),
        (work.parse_norms, "gn:groups=two", ["gn:groups=two"]),
        (work.parse_norms, " , ", ["--norms", "commas"]),
        (work.parse_shapes, "8", ["'8'", "2 to 5"]),
        (work.parse_shapes, "2x0x4x4", ["'2x0x4x4'"]),
        (work.parse_shapes, "2x-3", ["'2x-3'"]),
        (work.parse_shapes, "2x٣", ["2x٣"]),
        (work.parse_shapes, "2x3x4x5x6x7", ["2 to 5"]),
        (work.parse_input, "2,3,a,8", ["--input", "'2,3,a,8'"]),
        (work.parse_input, "", ["--input", "''"]),
    ],
)
def test_other_words_are_refused_by_name(read: object, text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)  # type: ignore[operator]
    for word in words:
        assert word in str(caught.value)
