"""How the features of a network drift while it trains: percentiles per layer and epoch on fixed images.

This is the view of Wu & He 2018, *Group Normalization* (arXiv:1803.08494, figure 6): where no norm holds them,
the distributions of what the layers see drift apart during training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlab.data import Dataset, standardize
from normlab.errors import UsageError

PERCENTILES = (1, 20, 50, 80, 99)
CLASSIFIER_INPUT = "features"
_MOST_VALUES = 1_000_000  # per layer; fewer of the sample's images are used where a layer is larger


class FeatureRecorder:
    """Records what chosen layers of one model see, always on the same images.

    `images` is a standardized float tensor (N, C, H, W), a fixed sample of the validation split (`sample_size`
    says how many keep the cost low). `layers` names modules whose input is recorded; by default those are the
    last norm of each stage, a stage being a run of norms over planes of one size, and the classifier, whose
    input is recorded as "features". Raises UsageError for a layer that the model does not have.
    """

    def __init__(self, model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> None:
        self._model, self._images = model, images
        modules = dict(model.named_modules())
        for name in layers or ():
            if name not in modules:
                raise UsageError(f"the model has no layer {name!r}; it has {', '.join(filter(None, modules))}")
        self._layers = {name: name for name in layers} if layers else _default_layers(model, images[:1])

    @property
    def layers(self) -> dict[str, str]:
        """What is recorded: its name in the records -> the name of the module whose input it is."""
        return dict(self._layers)

    def record(self, epoch: int) -> dict[str, Any]:
        """The distributions after `epoch` as JSON-able numbers.

        `{"epoch": e, "layers": {name: {"percentiles": [1st, 20th, 50th, 80th, 99th], "mean", "std", "dead"}}}`,
        over all images, channels and positions. `dead` is the share of channels that stay at or below zero after
        the module (for the classifier: in its input) on every image and position, so that a ReLU passes
        nothing. The model runs in evaluation mode without gradients; its modes, running statistics and the
        generator are left as they were.
        """
        answer: dict[str, Any] = {}
        modules = dict(self._model.named_modules())
        with ExitStack() as stack:
            for name, path in self._layers.items():
                module = modules[path]

                def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                    seen = inputs[0] if name == CLASSIFIER_INPUT else _without_activation(layer, inputs[0], output)
                    answer[name] = _summary(inputs[0]) | {"dead": _dead(seen)}

                stack.callback(module.register_forward_hook(keep).remove)
            stack.enter_context(evaluating(self._model))
            self._model(self._images)
        return {"epoch": epoch, "layers": {name: answer[name] for name in self._layers if name in answer}}


class Watch:
    """What a training loop keeps beside a model: distributions and gradients, ready for an epoch's record.

    The sample is spread evenly over the validation split of `dataset` and standardized as in training.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, device: torch.device | str = "cpu") -> None:
        count = min(len(dataset.val.labels), sample_size(len(dataset.train.labels)))
        which = np.linspace(0, len(dataset.val.labels) - 1, count).round().astype(int)
        mean, std = (torch.as_tensor(v, device=device) for v in (dataset.channel_mean, dataset.channel_std))
        images = standardize(torch.from_numpy(np.array(dataset.val.images[which])).to(device), mean, std)
        self._model, self._recorder = model, FeatureRecorder(model, images)

    def record(self, epoch: int) -> dict[str, Any]:
        """{"features": {layer: distribution}, "gradients": {layer: norm}}, after the last step of an epoch."""
        return {"features": self._recorder.record(epoch)["layers"], "gradients": gradient_norms(self._model)}


def sample_size(train_images: int) -> int:
    """How many validation images to record on: 1 % of the training images, at least 16 and at most 128."""
    return int(np.clip(train_images // 100, 16, 128))


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of every layer with a weight of two or more dimensions, by name.

    Call it after a backward pass. Layers without a gradient are left out. A layer whose weight is computed from
    another, as by weight standardization, has the gradient of that one.
    """
    return {
        name.removesuffix(".weight").partition(".parametrizations.")[0]: _short(
            float(torch.linalg.vector_norm(parameter.grad))
        )
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and parameter.grad is not None
    }


def growth(epochs: Sequence[Mapping[str, Any]], layer: str = CLASSIFIER_INPUT) -> float:
    """How many times as wide the middle 98 % of a layer's values is after the last epoch as after the first.

    `epochs` are the records of one cell (`Watch.record` in each, under "features"). About 1: the features stay;
    much above: they drift. NaN where the layer was not recorded.
    """
    found = [record["features"][layer]["percentiles"] for record in epochs if layer in (record.get("features") or {})]
    if not found or found[0][-1] == found[0][0]:
        return float("nan")
    first, last = found[0], found[-1]
    return float((last[-1] - last[0]) / (first[-1] - first[0]))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _summary(x: Tensor) -> dict[str, Any]:
    images = max(1, _MOST_VALUES // max(1, x[0].numel()))
    values: np.ndarray = x.detach()[:images].float().cpu().numpy().ravel()
    return {
        "percentiles": [_short(value) for value in np.percentile(values, PERCENTILES)],
        "mean": _short(values.mean(dtype=np.float64)),
        "std": _short(values.std(dtype=np.float64)),
    }


def _short(value: float) -> float:
    """Six digits, since thousands of these are stored and sent."""
    return float(f"{value:.6g}")


def _without_activation(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A layer's output y; that of a norm which adds and activates as well, before it does, as of any other norm."""
    from normlab.layers.norms import Norm

    if not isinstance(layer, Norm) or layer.act is None:
        return y
    act, layer.act = layer.act, None
    try:
        return layer.forward(x)  # in evaluation mode, which changes no statistics; not the call that is being watched
    finally:
        layer.act = act


def _dead(x: Tensor) -> float:
    channels = x.detach().amax(dim=[d for d in range(x.dim()) if d != 1])
    return _short(float((channels <= 0).float().mean()))


def _default_layers(model: nn.Module, image: Tensor) -> dict[str, str]:
    """The last norm of each stage and the classifier, found by watching one image pass."""
    calls: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if not any(module.children()):
                stack.callback(module.register_forward_hook(_recording_hook(calls, path)).remove)
        stack.enter_context(evaluating(model))
        model(image)
    main = [call for call in calls if "shortcut" not in call[0] and "downsample" not in call[0]]
    # A network without norms has no norm to watch where users name it otherwise: then its convolutions' own.
    stages = _last_of_each_size([c for c in main if _is_norm(c[0], c[1])]) or _last_of_each_size(
        [call for call in main if isinstance(call[1], nn.Conv2d)]
    )
    layers = {f"stage {number}": path for number, path in enumerate(stages, start=1)}
    linear = [path for path, module, _ in calls if isinstance(module, nn.Linear)]
    if linear:
        layers[CLASSIFIER_INPUT] = linear[-1]
    return layers


def _recording_hook(calls: list[tuple[str, nn.Module, tuple[int, ...]]], path: str) -> Callable[..., None]:
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((path, module, tuple(inputs[0].shape[2:])))

    return note


def _last_of_each_size(calls: Sequence[tuple[str, nn.Module, tuple[int, ...]]]) -> list[str]:
    return list({size: path for path, _, size in calls if size}.values())


def _is_norm(path: str, module: nn.Module) -> bool:
    """By kind, or by the name of the place, since "no norm" is an identity there."""
    from normlab.layers._torch import NormBase
    from normlab.layers.norms import Norm

    stock = (NormBase, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, (Norm, *stock)) or "norm" in path.rpartition(".")[2].lower()
