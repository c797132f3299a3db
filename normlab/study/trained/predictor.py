"""A network with its preprocessing: images in, class names out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlab.data import SIXTEEN_BITS, Standardizer, as_pixels
from normlab.errors import UsageError

BATCH = 500  # images at once; the study's own evaluation takes as many


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image: the likeliest class, and how likely it holds each.

    `source` is the file's path, or the image's place among those that were given. `confidence` is the probability of
    `label`, and `probabilities` has one for every class.
    """

    source: str
    label: str
    confidence: float
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return f"{self.source}: {self.label} ({self.confidence:.1%})"


class Predictor(nn.Module):
    """A trained network, in evaluation mode, that takes images as they are stored.

    Called with images, uint8 (N, C, H, W), it returns logits, float32 (N, classes). `predict` takes files and arrays of
    any size. The trained network itself is `net`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        levels: tuple[int, int] = SIXTEEN_BITS,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.net = net
        self.class_names, self.image_shape, self.levels = tuple(class_names), image_shape, levels
        self.memory_format = memory_format
        self._statistics = list(mean), list(std)
        self._standardizers = {torch.device("cpu"): Standardizer(mean, std)}
        if memory_format is not torch.contiguous_format:
            self.net.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, classes), for images, uint8 (N, C, H, W) on the network's device."""
        standardize = self._standardizers.get(images.device)
        if standardize is None:
            standardize = self._standardizers[images.device] = Standardizer(*self._statistics, images.device)
        return self.net(standardize(images.contiguous(memory_format=self.memory_format))).float()

    def probabilities(self, images: Tensor) -> Tensor:
        """The probability of each class, float32 (N, classes), in batches and without gradients."""
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        with torch.no_grad():
            logits = [self(part.to(device)).cpu() for part in images.split(BATCH)]
        return torch.cat(logits).softmax(1)

    def predict(self, images: Any) -> list[Prediction]:
        """What the network says about each image.

        `images` is a path, a folder, an array, or a list of these. An array is uint8 (or floats in [0, 1]) of shape
        (H, W), (H, W, C) or (C, H, W), with a dimension in front for several; NumPy, torch and Pillow serve. Images of
        another size are cropped about their centre and resized, as those of the training were. Raises UsageError
        for what is no image, DataError naming the files that cannot be read.
        """
        named = as_pixels(images, self.image_shape, self.levels)
        if not named:
            raise UsageError("predict: there is no image; expected at least one path or array")
        pixels = torch.from_numpy(np.stack([image for _, image in named]))
        return [
            Prediction(source, self.class_names[int(row.argmax())], float(row.max()), self._name_probabilities(row))
            for (source, _), row in zip(named, self.probabilities(pixels), strict=True)
        ]

    def accuracy(self, images: Any, labels: Any) -> float:
        """The share of images, uint8 (N, C, H, W), whose label, a class number (N,), the network names."""
        found = self.probabilities(torch.from_numpy(np.array(images))).argmax(1).numpy()
        return float((found == np.asarray(labels)).mean())

    def _name_probabilities(self, row: Tensor) -> dict[str, float]:
        return dict(zip(self.class_names, row.tolist(), strict=True))
