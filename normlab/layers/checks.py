"""What a layer refuses before any kernel runs: the errors of torch's own functions, type and first words alike.

A kernel reads as many numbers as the input has channels, from wherever a parameter lies. So the length of every
parameter and buffer is checked here, at every call: pruning, sharding and assignment change them after the layer was
built.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlab.errors import DtypeError, InputError, UsageError

Held = Mapping[str, Tensor | None]  # parameters or buffers by name
BUFFER = (Tensor,)
PLAIN = (*BUFFER, nn.Parameter)  # a subclass may have its numbers elsewhere, or nowhere


def module(title: str, model: object) -> None:
    """Raise UsageError unless a model is a module."""
    if not isinstance(model, nn.Module):
        what = "None" if model is None else f"a {type(model).__name__}"
        if isinstance(model, type):
            what = f"the class {model.__name__}; build one first"
        raise UsageError(f"{title}: expected a torch.nn.Module, got {what}")


def whole(title: str, name: str, value: object, least: int = 0) -> None:
    """Raise UsageError unless an argument is a whole number, and at least so many."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{title}: {name}={value!r}; expected a whole number, {least} or more")


def floats(title: str, x: Tensor) -> None:
    """Raise DtypeError unless x has floating-point numbers."""
    if not x.is_floating_point():
        fix = (
            "put torch's own layers back before, normlab.restore_norms(model)" if x.is_quantized else "convert it first"
        )
        raise DtypeError(f"{title}: expected a floating-point input, got {x.dtype}; {fix}")


def rank(title: str, x: Tensor, most: int | None) -> None:
    """Raise InputError unless x is (N, C, *), of at most `most` dimensions."""
    found = x.dim()
    if found < 2 or (most is not None and found > most):
        wanted = "at least 2" if most is None else f"2 to {most}"
        raise InputError(f"{title}: expected an input of {wanted} dimensions (N, C, *), got {found}D")


def channels(title: str, x: Tensor, expected: int) -> None:
    """Raise InputError unless x (N, C, *) has the expected number of channels."""
    if x.shape[1] != expected:
        raise InputError(
            f"{title}: expected {expected} channels in dimension 1, got {x.shape[1]} "
            f"in an input of shape {tuple(x.shape)}"
        )


def fit(x: Tensor, held: Iterable[Tensor], kinds: tuple[type, ...] = PLAIN) -> bool:
    """Whether each is of these classes, a vector with one number per channel of x, of x's dtype and on its device.

    So it is nearly always, and no other check of these needs to be made.
    """
    channels, dtype, on_cpu = x.shape[1], x.dtype, x.is_cpu
    for v in held:
        if type(v) not in kinds or v.numel() != channels or v.dim() != 1 or v.dtype is not dtype:
            return False
        if not v.is_cpu if on_cpu else v.device != x.device:  # there is one CPU
            return False
    return True


def match(x: Tensor, v: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether a plain tensor has this shape, x's dtype and device, or is None: then nothing else is to be checked."""
    return v is None or (type(v) in PLAIN and v.shape == shape and v.dtype is x.dtype and v.device == x.device)


def any_wrapped(held: Iterable[Tensor | None]) -> bool:
    """Whether one of these is of a subclass of torch's tensors, whose memory is nobody else's to read."""
    return any(v is not None and type(v) not in PLAIN for v in held)


def _given(title: str, held: Held) -> Iterator[tuple[str, Tensor]]:
    """Those that are not None; raises TypeError, as torch, for what is no tensor."""
    for name, v in held.items():
        if v is None:
            continue
        if not isinstance(v, Tensor):
            raise TypeError(f"{title}: {name} must be Tensor, not {type(v).__name__}")
        yield name, v


def lengths(title: str, x: Tensor, held: Held, expected: int, copies: int = 1) -> None:
    """Raise InputError unless each tensor is a vector of `expected` numbers and lies on x's device.

    torch's instance norm repeats parameters and buffers for every sample, and counts `copies` of each.
    """
    for name, v in _given(title, held):
        if v.numel() != expected:
            raise InputError(
                f"{name} should contain {copies * expected} elements not {copies * v.numel()}: {title} has a {name} of "
                f"shape {tuple(v.shape)}, and the input {x.shape[1]} channels"
            )
        if v.dim() != 1:
            raise InputError(f"{title}: expected {name} to have shape ({expected},), got {tuple(v.shape)}; flatten it")
        device(title, x, name, v)


def vectors(title: str, x: Tensor, held: Held) -> None:
    """Raise InputError unless each tensor is a vector with one number per channel: torch's check in group norm."""
    for name, v in _given(title, held):
        if v.dim() != 1 or v.numel() != x.shape[1]:
            raise InputError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(v.shape)} and input of shape {list(x.shape)} ({title})"
            )
        device(title, x, name, v)


def elements(title: str, x: Tensor, held: Held, shape: tuple[int, ...]) -> None:
    """Raise InputError unless each tensor has the normalized shape: torch's check in layer and RMS norm."""
    for name, v in _given(title, held):
        if v.shape != shape:
            raise InputError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape {list(v.shape)} "
                f"and normalized_shape = {list(shape)} ({title})"
            )
        device(title, x, name, v)


def device(title: str, x: Tensor, name: str, v: Tensor) -> None:
    """Raise InputError if a parameter or buffer lies on another device than x."""
    if v.device != x.device:
        raise InputError(
            f"Expected all tensors to be on the same device, but {title} has its {name} on {v.device} and the input is "
            f"on {x.device}; move one of them"
        )


def dtypes(title: str, x: Tensor, held: Held) -> None:
    """Raise InputError unless each tensor has x's dtype, or float32 where x is of half precision: torch's rule.

    Its RMS norm computes any mixture, and its instance norm does with running statistics.
    """
    for name, v in held.items():
        if v is None or v.dtype == x.dtype or (v.dtype == torch.float32 and x.element_size() < 4):
            continue
        raise InputError(
            f"mixed dtype: {title} has a {name} of {v.dtype}, and the input is of {x.dtype}; convert the input, "
            f"x.to({v.dtype}), or the layer, layer.to({x.dtype})"
        )


def constants(title: str, held: Held) -> None:
    """Raise InputError where a gradient of running statistics is asked for, which there is not in torch either."""
    for name, v in _given(title, held):
        if v.requires_grad:
            raise InputError(
                f"The function '{title}' is not differentiable with respect to argument '{name}'. This input cannot "
                "have requires_grad True: register it as a buffer"
            )


def both_running(mean: Tensor | None, var: Tensor | None, training: bool) -> None:
    """Raise InputError where only one of the running statistics is there."""
    if (mean is None) == (var is None):
        return
    if training:
        raise InputError("running_mean and running_var must either both be None or neither be None")
    missing = "running_mean" if mean is None else "running_var"
    raise InputError(f"{missing} must be defined in evaluation mode")


def positive(eps: float, uses_batch: bool) -> None:
    """Raise InputError for an eps that torch's batch norm refuses: the variance of a constant channel is zero."""
    if uses_batch and eps <= 0.0:
        raise InputError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0.0:
        raise InputError(f"batch_norm eps must be non-negative, but got {eps}")


def more_than_one_value(title: str, x: Tensor, training: bool) -> None:
    """Raise InputError if each channel of x has one value."""
    if x.shape[0] == 1 and x.numel() == x.shape[1]:
        when, fix = _name_mode(training)
        raise InputError(
            f"{title}: expected more than 1 value per channel when {when}, got input size "
            f"{tuple(x.shape)}: the variance of one value is zero, so the output would be the bias whatever "
            f"the input; use a larger batch (or drop the last one){fix}"
        )


def mask(x: Tensor, given: Any) -> None:
    """Raise InputError unless a mask says of each position of x (N, C, *) whether it is there."""
    n, sizes = x.shape[0], tuple(x.shape[2:])
    if not isinstance(given, Tensor) or tuple(given.shape) not in ((n, *sizes), (n, 1, *sizes)):
        found = tuple(given.shape) if isinstance(given, Tensor) else repr(given)
        raise InputError(
            f"mask: expected shape {(n, *sizes)} or {(n, 1, *sizes)} for an input of shape {tuple(x.shape)}, "
            f"got {found}"
        )


def zeros_and_ones(mask: Tensor) -> None:
    """Raise InputError for a mask of other numbers, such as that of attention: 0 and -inf, which says the opposite."""
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"mask: expected true and false, or 1 and 0, got other numbers of {mask.dtype}; compare first")


def refusal_of_one(title: str, training: bool) -> str:
    """What `more_than_one_kept` says for this layer, but for the shape of the mask."""
    when, fix = _name_mode(training)
    return (
        f"{title}: expected more than 1 value per channel when {when}, got a mask of shape {{shape}} that keeps 1: the "
        "variance of one value is zero, so the output would be the bias whatever the input; use a larger batch (or "
        f"drop this one){fix}"
    )


def more_than_one_kept(refusal: str, mask: Tensor) -> None:
    """Raise InputError if a mask leaves one value of each channel."""
    if int(torch.count_nonzero(mask)) == 1:
        raise InputError(refusal.format(shape=tuple(mask.shape)))


def more_than_one_position(title: str, x: Tensor, training: bool, has_running: bool = False) -> None:
    """Raise InputError if each plane of x has one element."""
    if math.prod(x.shape[2:]) == 1:
        when, fix = _name_mode(training)
        raise InputError(
            f"{title}: expected more than 1 spatial element when {when}, got input size "
            f"{tuple(x.shape)}: the variance of one value is zero{fix if has_running else ''}"
        )


def more_than_one_in_group(title: str, x: Tensor, groups: int) -> None:
    """Raise InputError if each group of a sample has one value, or the channels do not divide into groups."""
    n, found = x.shape[:2]
    if groups < 1 or found % groups:
        raise InputError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(x.shape)} and num_groups={groups} ({title})"
        )
    if n * found // groups * math.prod(x.shape[2:]) == 1:
        raise InputError(
            f"{title}: expected more than 1 value per channel, got input size {tuple(x.shape)} in {groups} groups: "
            "the variance of one value is zero; use fewer groups"
        )


def number(title: str, value: Any, name: str = "eps") -> float:
    """eps, or another value, as a float; raises TypeError, as torch, if it is not a number or has a gradient."""
    if isinstance(value, float | int | torch.SymFloat):
        return value  # type: ignore[return-value]
    of_numpy = isinstance(value, np.floating | np.integer)
    if not (of_numpy or (isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad)):
        raise TypeError(f"{title}: {name} must be float, not {type(value).__name__}")
    return float(value)


def _name_mode(training: bool) -> tuple[str, str]:
    """When an input of one value is refused, and what helps then."""
    if training:
        return "training", ", or call .eval()"
    return "the layer keeps no running statistics", ""
