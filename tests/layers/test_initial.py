"""Where a norm's weight and bias start, when that is not 1 and 0."""

from __future__ import annotations

import copy

import pytest
import torch

from normlab.errors import UsageError
from normlab.layers import make_norm


@pytest.mark.parametrize("norm", ["bn", "gn:groups=2", "ln", "bin", "torch-bn"])
def test_weight_and_bias_start_where_they_are_told(norm: str) -> None:
    layer = make_norm(f"{norm}:initial_weight=0.5:initial_bias=-1", 4)
    assert (layer.weight.tolist(), layer.bias.tolist()) == ([0.5] * 4, [-1.0] * 4)
    usual = make_norm(norm, 4)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(layer(x), 0.5 * usual(x) - 1)
    assert copy.deepcopy(layer).state_dict().keys() == usual.state_dict().keys()


def test_a_reset_goes_back_to_the_same_start() -> None:
    layer = make_norm("gn", 4, initial_weight=0.5)
    with torch.no_grad():
        layer.weight.fill_(9)
    again = copy.deepcopy(layer)
    again.reset_parameters()
    assert again.weight.tolist() == [0.5] * 4
    assert "initial_weight=0.5" in repr(layer)
    assert "initial" not in repr(make_norm("gn", 4))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("none:initial_weight=1", "initial_weight=1, but there is no weight to start there"),
        ("bn:affine=0:initial_bias=1", "initial_bias=1, but there is no bias to start there"),
        ("bn:initial_weight=large", "initial_weight='large'; expected a finite number"),
        ("bn:initial_weight=nan", "initial_weight=nan; expected a finite number"),
    ],
)
def test_a_start_that_cannot_be_is_named(norm: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_norm(norm, 4)
