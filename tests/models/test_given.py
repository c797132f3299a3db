"""The name of a network that is handed over: the same in every session, and another one for another network."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normlab.errors import UsageError
from normlab.models.given import give


def by_closure(held: Any) -> Callable[..., Any]:
    def make(num_classes: int) -> nn.Module:
        return nn.Linear(held, num_classes)

    return make


def by_default(held: Any) -> Callable[..., Any]:
    def make(num_classes: int, width: Any = held) -> nn.Module:
        return nn.Linear(width, num_classes)

    return make


def by_keyword(held: Any) -> Callable[..., Any]:
    def make(num_classes: int, *, width: Any = held) -> nn.Module:
        return nn.Linear(width, num_classes)

    return make


def by_class(held: Any) -> Callable[..., Any]:
    class Made(nn.Linear):
        def __init__(self, num_classes: int) -> None:
            super().__init__(held, num_classes)

    return Made


def by_attribute(held: Any) -> Callable[..., Any]:
    class Base:
        width = held

    class Made(Base):
        pass

    return Made


class Maker:
    def __init__(self, width: Any) -> None:
        self.width = width

    def __call__(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.width, num_classes)

    def make(self, num_classes: int) -> nn.Module:
        return self(num_classes)


def made(width: Any, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes)


def wrapped(held: Any) -> Callable[..., Any]:
    @functools.wraps(made)
    def inner(num_classes: int) -> nn.Module:
        return made(held, num_classes)

    return inner


def typed(held: Any) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    exec(f"def make(num_classes): return {held!r}", space)  # has no source
    return space["make"]  # type: ignore[no-any-return]


WAYS = {
    "closure": by_closure,
    "default": by_default,
    "keyword": by_keyword,
    "class": by_class,
    "attribute": by_attribute,
    "instance": Maker,
    "method": lambda held: Maker(held).make,
    "partial": lambda held: functools.partial(made, held),
    "keywords of a partial": lambda held: functools.partial(made, width=held),
    "partial of a closure": lambda held: functools.partial(by_closure(held)),
    "nested": lambda held: by_closure(by_closure([{"width": held}])),
    "wrapped": wrapped,
    "no source": typed,
    "weights": lambda held: by_closure(torch.tensor([held])),
    "array": lambda held: by_closure(np.full(2000, held)),
    "set": lambda held: by_closure({held, "a", "b", "c"}),
}


# the digest was that of the source alone (of a partial, of its address): one of the two was trained under both names
@pytest.mark.parametrize("way", WAYS)
def test_what_a_factory_holds_is_in_its_name(way: str) -> None:
    assert give(WAYS[way](8)) == give(WAYS[way](8))
    assert give(WAYS[way](8)) != give(WAYS[way](16))


def test_two_lambdas_of_one_line() -> None:
    one, other = (lambda num_classes: nn.Linear(8, num_classes)), (lambda num_classes: nn.Linear(16, num_classes))
    assert give(one) != give(other)


def recursive() -> Callable[..., Any]:
    def make(depth: int) -> Any:
        return make(depth - 1) if depth else torch.relu

    return make


@pytest.mark.parametrize("held", [torch.relu, nn.functional.relu, np.exp, nn.ReLU, torch, torch.float16, None, ...])
def test_what_may_be_held(held: Any) -> None:
    assert give(by_closure(held)) != give(by_closure(torch.sigmoid))


def test_the_names_are_those_of_another_session() -> None:
    code = (
        "from tests.models.test_given import *\n"
        "print(*(give(way(8)) for way in WAYS.values()), give(recursive()), give(by_closure(torch.relu)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600).stdout
    ours = [*(give(way(8)) for way in WAYS.values()), give(recursive()), give(by_closure(torch.relu))]
    assert found.split() == ours


@pytest.mark.parametrize("held", [object(), threading.Lock(), (n for n in "abc")])
def test_what_has_only_an_address_is_refused(held: Any) -> None:
    for factory in (by_closure(held), functools.partial(made, [held]), Maker({"a": held})):
        with pytest.raises(UsageError, match=r"it holds <.* at 0x.*make anything else inside the function"):
            give(factory)


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


class Halved(Scaled):
    def _get_name(self) -> str:
        return "Scaled"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x / 2


# only parts and weights were in the name: the results of one of the two were shown for the other
def test_what_a_module_does_and_holds_is_in_its_name() -> None:
    nets = [nn.Sequential(part) for part in (Scaled(1.0), Scaled(2.0), Halved(1.0))]
    assert len({give(net) for net in nets}) == 3
    assert give(nn.Sequential(Scaled(1.0))) == give(nets[0])
