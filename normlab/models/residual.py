"""Residual networks with a pluggable norm, and the door for networks of the user's own.

A *norm constructor* is a function `norm(channels) -> nn.Module`; a network calls it wherever a normalization
belongs and knows nothing else about it, except that normlab's own layers take the ReLU and the addition that
follow them into their pass over memory. The networks here are those of He et al. 2016 (arXiv:1512.03385):
depth 6n + 2 for small images, three stages of 16, 32 and 64 channels. Images of more than 64 pixels meet a
7x7 convolution of stride 2 and a max pooling first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.errors import UsageError
from normlab.kernels.activations import activation
from normlab.layers.norms import make_norm, takes_act
from normlab.layers.weights import normalize_weights
from normlab.models.given import title
from normlab.models.names import AS_IT_IS, SHORTCUTS, own_factory, parse_resnet
from normlab.models.replacing import build_and_replace, calibrated, check_as_it_is, takes_norm
from normlab.models.weights import load_weights, read_weights
from normlab.norms.family import parse, uncalibrated, weights_of

NormConstructor = Callable[[int], nn.Module]
_AVX2_FLOATS = 8  # in one register
_LARGE = 64  # pixels; beyond this the stem shrinks the image four times before the first stage


class Stem(nn.Sequential):
    """What an image meets first: relu(norm(conv(x))), and max pooling if it is large.

    (N, C_in, H, W) -> (N, C_out, H, W), or a quarter of H and W.
    """

    def __init__(self, norm: NormConstructor, in_channels: int, channels: int, large: bool) -> None:
        layer = _before_relu(norm(channels))
        size, stride = (7, 2) if large else (3, 1)
        pooling = [nn.MaxPool2d(3, stride=2, padding=1)] if large else []
        super().__init__(_conv(in_channels, channels, size, stride, layer), layer, *pooling)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, *pooling = self
        x = _rectified(norm, conv(x))
        for layer in pooling:
            x = layer(x)
        return x


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut: y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    (N, C_in, H, W) -> (N, C_out, H / stride, W / stride). With `behind` the sum is normalized before its ReLU.
    """

    def __init__(
        self,
        norm: NormConstructor,
        in_channels: int,
        channels: int,
        stride: int,
        shortcut: str,
        behind: NormConstructor | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = _before_relu(norm(channels)), norm(channels)
        if behind is None:
            _before_relu(self.norm2)
        self.behind = None if behind is None else _before_relu(behind(channels))
        self.conv1 = _conv(in_channels, channels, 3, stride, self.norm1)
        self.conv2 = _conv(channels, channels, 3, 1, self.norm2)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = (
                Projection(norm, in_channels, channels, stride)
                if shortcut == "projection"
                else ZeroPadding(channels - in_channels, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(_rectified(self.norm1, self.conv1(x)))
        if self.behind is None:
            return _rectified(self.norm2, y, self.shortcut(x))
        return _rectified(self.behind, self.norm2(y) + self.shortcut(x))


class Projection(nn.Module):
    """Shortcut by a normalized 1x1 convolution (option B of the paper)."""

    def __init__(self, norm: NormConstructor, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        # On CPUs with AVX2 alone, torch's strided 1x1 convolution of fewer than 8 channels, channels-last, writes past
        # its buffers in the backward pass (torch 2.13, oneDNN): the pixels are taken beforehand.
        self.every = stride if in_channels < _AVX2_FLOATS else 1
        self.norm = norm(channels)
        self.conv = _conv(in_channels, channels, 1, stride // self.every, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.every > 1:
            x = x[:, :, :: self.every, :: self.every]
        y: Tensor = self.norm(self.conv(x))
        return y


class ZeroPadding(nn.Module):
    """Shortcut without parameters: every stride-th pixel, new channels zero (option A of the paper)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        after = self.new_channels - before
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))


class ResNet(nn.Module):
    """Residual network of depth 6n + 2, (N, in_channels, H, W) -> logits (N, num_classes).

    `norm` makes a normalization for a number of channels. `image_size` (H, W) decides on the stem only; any
    size may be fed. `shortcut` is "projection" or "zero-padding"; `width` the channels of the first stage;
    `dropout` the probability of dropping a feature before the classifier. Convolutions in front of a norm
    have no bias, since the norm would remove it; where there is no norm they have one, starting at zero. With `behind`
    the last block of the first and of the second stage normalizes its sum by it.
    Raises UsageError if the depth is not 6n + 2 or the shortcut is unknown.
    """

    def __init__(
        self,
        depth: int,
        norm: NormConstructor,
        num_classes: int,
        in_channels: int = 3,
        *,
        image_size: tuple[int, int] = (32, 32),
        shortcut: str = "projection",
        width: int = 16,
        dropout: float = 0.0,
        behind: NormConstructor | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(f"resnet{depth}: the depth must be 6n + 2, as in resnet8, resnet14, resnet20")
        if shortcut not in SHORTCUTS:
            raise UsageError(f"shortcut {shortcut!r} is not known; expected one of: {', '.join(SHORTCUTS)}")
        self.stem = Stem(norm, in_channels, width, large=max(image_size) > _LARGE)
        blocks: list[nn.Module] = []
        channels = width
        in_stage = (depth - 2) // 6
        for stage in range(3):
            for index in range(in_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                last = stage < 2 and index == in_stage - 1
                blocks.append(Block(norm, channels, width * 2**stage, stride, shortcut, behind if last else None))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the classifier sees: the last block's planes averaged, (N, channels)."""
        y: Tensor = self.blocks(self.stem(x))
        return y.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.features(x)))
        return logits


def build_model(
    spec: str | Callable[..., Any],
    norm: str | NormConstructor,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] = (32, 32),
    dropout: float = 0.0,
    seed: int | None = None,
    weights: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    calibrate: Callable[[], Tensor] | None = None,
) -> nn.Module:
    """The network that `spec` names, with `norm` (a name such as "gn:groups=8", or a constructor).

    `spec` is "resnet20", "resnet14:shortcut=zero-padding:width=32", or a factory of the user's own,
    "package.module:factory" or "file.py:factory", or the factory or network itself. A factory is called
    `factory(norm, num_classes, in_channels)` and, if it takes them, with `image_size=(H, W)` and `dropout=p`. One that
    takes no norm, a network of a library ("timm:resnet18") and a network that was handed over get theirs replaced
    (`normlab.models.replacing`), and for them `norm` may be "keep" or "frozen". With a `seed` the initial weights
    depend on it and on the network alone: a norm gets the generator's state back after it is made, so that every norm
    meets the same convolutions. A name such as "gn+ws" also normalizes the weights of the convolutions. `weights` is a
    file of pretrained weights for the network, its own norms included (`normlab.models.weights`); `say` is called with
    what starts otherwise than in the file. "gn:calibrated" builds the network with its own norms, or with batch norm,
    and replaces them, matched on the inputs that `calibrate` returns. Raises UsageError for a name or an option that is
    not known, and for weights that do not fit.
    """
    common: dict[str, Any] = {"image_size": image_size, "dropout": dropout}
    factory = own_factory(spec) if isinstance(spec, str) else spec
    spec = spec if isinstance(spec, str) else title(spec)
    replaces = factory is not None and not callable(norm) and not takes_norm(factory)
    if isinstance(norm, str) and (put := uncalibrated(norm)) is not None:
        made = build_model(
            spec if factory is None else factory, AS_IT_IS if replaces else "bn",
            num_classes=num_classes, in_channels=in_channels, **common, seed=seed, weights=weights, say=say,
        )  # fmt: skip
        return calibrated(made, put, None if calibrate is None else calibrate())
    if isinstance(norm, str) and not replaces:
        check_as_it_is(norm, spec)
    constructor = norm if callable(norm) else _constructor(norm)

    def pretrained(model: nn.Module) -> None:
        if weights:
            load_weights(model, read_weights(weights), num_classes, say, f"--weights {weights}")

    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        aside = _keeping_random_state(constructor)
        if factory is None:
            depth, options = parse_resnet(spec)
            behind = None
            if isinstance(norm, str) and (branches := parse(norm)[0].behind_addition_of):
                aside, behind = _keeping_random_state(_constructor(branches)), aside
            model: Any = ResNet(depth, aside, num_classes, in_channels, **common, **options, behind=behind)
        elif replaces:
            model = build_and_replace(
                factory, spec, str(norm), num_classes=num_classes, in_channels=in_channels, common=common,
                before=pretrained,
            )  # fmt: skip
        else:
            model = factory(aside, num_classes, in_channels, **_accepted_arguments(factory, spec, common))
        if not isinstance(model, nn.Module):
            raise UsageError(f"model {spec!r} returned {type(model).__name__}; expected a torch.nn.Module")
        if not replaces:
            pretrained(model)
        of_weights = weights_of(norm) if isinstance(norm, str) and norm != AS_IT_IS else None
        if of_weights is not None:
            normalize_weights(model, of_weights, linear=False)
    return model


def _before_relu(layer: nn.Module) -> nn.Module:
    """The layer, set to apply the ReLU that follows it if it is one of ours and has no activation of its own."""
    if takes_act(layer):
        layer.act = activation("relu")
        layer.applies_relu = True  # type: ignore[assignment]
    return layer


def _rectified(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(x) + residual): in one pass over memory by a layer that was set so, else one after the other."""
    if getattr(norm, "applies_relu", False):
        y: Tensor = norm(x, residual)
        return y
    y = norm(x)
    return functional.relu(y if residual is None else y + residual)


def _conv(in_channels: int, channels: int, size: int, stride: int, followed_by: nn.Module) -> nn.Conv2d:
    """A convolution that keeps the size up to the stride, initialized after He et al. 2015 (arXiv:1502.01852)."""
    bare = isinstance(followed_by, nn.Identity)
    conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if bare:
        conv.bias = nn.Parameter(torch.zeros(channels))
    return conv


def _constructor(spec: str) -> NormConstructor:
    return lambda channels: make_norm(spec, channels)


def _keeping_random_state(norm: NormConstructor) -> NormConstructor:
    """The same constructor, leaving the random generator as it found it."""

    def construct(channels: int) -> nn.Module:
        state = torch.get_rng_state()
        try:
            return norm(channels)
        finally:
            torch.set_rng_state(state)

    return construct


def _accepted_arguments(factory: Callable[..., Any], spec: str, common: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return common
    if common["dropout"] and "dropout" not in parameters:
        raise UsageError(f"model {spec!r} takes no argument 'dropout', but --dropout {common['dropout']} was given")
    return {k: v for k, v in common.items() if k in parameters}
