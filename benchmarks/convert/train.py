"""The network that is converted: a residual network with batch norm, trained on CIFAR-10 within minutes of one thread.

python -m benchmarks.convert.train IMAGES WEIGHTS [--minutes 25]

The rate rises and falls once (Smith & Topin 2018, arXiv:1708.07120), by the processor time spent and not by epochs, so
that training ends annealed whatever the machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from normlab.data import Dataset, Standardizer, augment, load
from normlab.models import build_model

MODEL, BATCH, PEAK, DECAY, SMOOTHING = "resnet14", 128, 0.4, 5e-4, 0.05
RISING = 0.2  # of the time


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images, standardized, that a model names right, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


def rate(spent: float) -> float:
    """The learning rate when this share of the time is spent."""
    return PEAK * (spent / RISING if spent < RISING else max(0.0, (1 - spent) / (1 - RISING)))


def train(dataset: Dataset, minutes: float) -> tuple[torch.nn.Module, float]:
    """The trained network, and its accuracy on the test images; trained on all others."""
    torch.manual_seed(0)
    splits = (dataset.train, dataset.val)
    images = torch.from_numpy(np.concatenate([np.array(split.images) for split in splits]))
    labels = torch.from_numpy(np.concatenate([np.array(split.labels) for split in splits]))
    model = build_model(MODEL, "bn", num_classes=dataset.num_classes, in_channels=dataset.channels, seed=0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    standardize = Standardizer(dataset.channel_mean, dataset.channel_std)
    held_out = standardize(torch.from_numpy(np.array(dataset.test.images))), torch.from_numpy(dataset.test.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(0)
    started, spent, epoch = time.process_time(), 0.0, 0
    while spent < 1:
        for rows in torch.randperm(len(images), generator=generator)[: len(images) // BATCH * BATCH].split(BATCH):
            spent = (time.process_time() - started) / (60 * minutes)
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(spent)
            model.train()
            batch = standardize(augment(images[rows], generator).contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(model(batch), labels[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        epoch += 1
        print(f"{epoch} epochs, {spent:.0%} of the time: test accuracy {accuracy(model, *held_out):.4f}", flush=True)
    return model.eval(), accuracy(model, *held_out)


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0, help="of processor time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from safetensors.torch import save_file

    model, reached = train(load(arguments.images), arguments.minutes)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, arguments.weights, {"accuracy": f"{reached:.4f}", "model": MODEL, "norm": "bn"})
    print(f"{arguments.weights}: test accuracy {reached:.4f}")


if __name__ == "__main__":
    main()
