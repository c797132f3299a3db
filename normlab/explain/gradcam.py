"""What a network looks at: Grad-CAM, how much two networks' maps agree, and whether the maps are true to them.

Selvaraju et al. 2017, *Grad-CAM: Visual Explanations from Deep Networks* (arXiv:1610.02391). The deletion
curve is from Petsiuk et al. 2018, *RISE* (arXiv:1806.07421).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from normlab.errors import UsageError
from normlab.study.training.features import evaluating

DELETED = tuple(step / 10 for step in range(11))  # shares of the pixels that the deletion curve removes


def grad_cam(
    model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, layer: str | None = None
) -> NDArray[np.float32]:
    """Where the evidence for class `targets[n]` lies in image n, at the resolution of the layer's planes.

        map = relu(sum_c w_c A_c),   w_c = mean over positions of d logit[target] / d A_c

    `images` is (N, C, H, W), standardized; the maps (N, h, w) are not negative and not scaled. `layer` names the
    module whose output A is used, by default the last one that still has positions (`last_planes`). Evaluation
    mode and running statistics are used; modes, statistics and gradients of the model are left as they were.
    Raises UsageError for a layer that the model does not have.
    """
    name = layer if layer is not None else last_planes(model, images[:1])
    modules = dict(model.named_modules())
    if name not in modules:
        raise UsageError(f"the model has no layer {name!r}; it has {', '.join(filter(None, modules))}")
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1].clone()  # what follows may write over its input

    with evaluating(model), torch.enable_grad(), modules[name].register_forward_hook(keep):
        logits = model(images)
        chosen = torch.as_tensor(targets, device=logits.device)[:, None]
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen).sum(), kept[-1])
    maps = (gradient.mean((2, 3), keepdim=True) * kept[-1]).sum(1).relu()
    return maps.detach().float().cpu().numpy()


def last_planes(model: nn.Module, image: Tensor) -> str:
    """The last module, in the order of the forward pass, whose output still has positions (H * W > 1)."""
    found: list[str] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:

                def note(_: nn.Module, __: object, output: object, path: str = path) -> None:
                    if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
                        found.append(path)

                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(evaluating(model))
        model(image)
    if not found:
        raise UsageError("Grad-CAM needs a layer whose output is (N, C, H, W) with H * W > 1; the model has none")
    return found[-1]


def enlarged(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Maps (N, h, w) brought to `size` (bilinear) and each scaled to a maximum of 1; an empty map stays 0."""
    large = functional.interpolate(torch.as_tensor(maps)[:, None], size=size, mode="bilinear", align_corners=False)[
        :, 0
    ].numpy()
    top = large.max(axis=(1, 2), keepdims=True)
    return np.divide(large, top, out=np.zeros_like(large), where=top > 0)


def agreement(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's rank correlation of two networks' maps, image by image: (N, h, w) twice -> (N,).

    Compare the maps at their own resolution, since enlarging makes neighbours agree by construction. A map
    that is the same everywhere says nothing about places: NaN.
    """
    from scipy.stats import rankdata

    if a.shape != b.shape:
        raise UsageError(f"agreement needs maps of one shape, got {a.shape} and {b.shape}")
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b)]
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    product = (x * y).sum(axis=1)
    return np.divide(product, scale, out=np.full(product.shape, np.nan), where=scale > 0)


@dataclass(frozen=True)
class Deletion:
    """Mean probability of the explained class after the most important share of the pixels is removed.

    `by_map` and `at_random` have one value per share in `DELETED`. A faithful map removes what the network uses
    first, so that `by_map` falls faster than `at_random`.
    """

    by_map: NDArray[np.float64]
    at_random: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """The area between both curves, in [-1, 1]; above zero the map beats chance."""
        return float(np.trapezoid(self.at_random - self.by_map, DELETED))


def deletion(
    model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, maps: NDArray[np.float32], seed: int = 0
) -> Deletion:
    """The deletion curve of `maps` (any resolution) for standardized images; removed pixels become the mean, 0."""
    classes = torch.as_tensor(targets)
    count, positions = len(images), images.shape[2] * images.shape[3]
    importance = torch.as_tensor(enlarged(maps, (images.shape[2], images.shape[3]))).reshape(count, positions)
    chance = torch.rand(count, positions, generator=torch.Generator().manual_seed(seed))
    curves = []
    with evaluating(model):
        for order in (importance + 1e-6 * chance, chance):  # ties, such as a map's zeros, fall by chance
            rank = order.argsort(dim=1, descending=True).argsort(dim=1).reshape(count, 1, *images.shape[2:])
            curve = []
            for share in DELETED:
                probabilities = model(images * (rank >= round(share * positions))).softmax(1)
                curve.append(float(probabilities[torch.arange(count), classes].mean()))
            curves.append(np.array(curve))
    return Deletion(*curves)
