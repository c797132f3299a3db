"""What a trained network keeps of its accuracy when its batch norms are converted, without a label.

python -m benchmarks.convert [IMAGES] [--epochs N | --weights FILE] [--model NAME] [--steps N] [--calibrate N]
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import normlab
from benchmarks.convert.network import pretrained
from normlab.bench.machine import describe, line
from normlab.data import Dataset, Standardizer, augment, load
from normlab.models import build_model

TO = ("gn", "gn:groups=2", "gn:groups=4", "gn:groups=8", "ln", "in", "frn", "rms", "bin")
BATCH, PEAK, DECAY = 64, 0.1, 5e-4
RISING = 0.2  # of the steps


def train(dataset: Dataset, model: str, epochs: int, seed: int = 0) -> nn.Module:
    """A network with batch norm; the rate rises and falls once (Smith & Topin 2018, arXiv:1708.07120)."""
    torch.manual_seed(seed)
    net = build_model(
        model, "bn", num_classes=dataset.num_classes, in_channels=dataset.channels, image_size=dataset.size, seed=seed
    )
    images, labels = (torch.from_numpy(np.array(of)) for of in (dataset.train.images, dataset.train.labels))
    standardize = Standardizer(dataset.channel_mean, dataset.channel_std)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(images) // BATCH
    for epoch in range(epochs):
        for at, rows in enumerate(torch.randperm(len(images), generator=generator)[: per_epoch * BATCH].split(BATCH)):
            spent = (epoch + at / per_epoch) / epochs
            for group in optimizer.param_groups:
                group["lr"] = PEAK * (spent / RISING if spent < RISING else (1 - spent) / (1 - RISING))
            batch = standardize(augment(images[rows], generator, flip=False))
            loss = functional.cross_entropy(net(batch), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return net.eval()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that a network names right, in evaluation mode."""
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(part).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


def main() -> None:
    """Train or load, convert in every way, and print a row for each norm as soon as it is measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="?", default="digits")
    parser.add_argument("--model", default="resnet14:width=8")
    parser.add_argument("--weights", help="of a network that is trained already (benchmarks.convert.pretrain)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="of distillation")
    parser.add_argument("--calibrate", type=int, default=256, help="images")
    parser.add_argument("--to", default=",".join(TO))
    arguments = parser.parse_args()
    dataset = load(arguments.images)
    if arguments.weights:
        net = pretrained(arguments.model, arguments.weights, dataset)
    else:
        net = train(dataset, arguments.model, arguments.epochs)
    standardize = Standardizer(dataset.channel_mean, dataset.channel_std)
    held_out = standardize(torch.from_numpy(np.array(dataset.test.images)))
    labels = torch.from_numpy(np.array(dataset.test.labels))
    unlabelled = standardize(torch.from_numpy(np.array(dataset.train.images[: arguments.calibrate])))
    base = accuracy(net, held_out, labels)
    print(line(describe("cpu")))
    print(f"{arguments.model} with bn on {dataset.name}: test accuracy {base:.4f} ({len(labels)} images)")
    print(
        f"\n| norm | copied | matched on {len(unlabelled)} | + {arguments.steps} steps | is |\n|---|---:|---:|---:|---|"
    )
    for to in arguments.to.split(","):
        kept, spec = [], to
        for ways in ({"match": False}, {}, {"distill": arguments.steps}):
            converted = normlab.convert(copy.deepcopy(net), to, unlabelled, **ways)  # type: ignore[arg-type]
            kept.append(f"{accuracy(converted, held_out, labels) / base:.1%}")
            spec = normlab.convert_report(converted).to
        print(f"| {to} | {' | '.join(kept)} | {spec} |", flush=True)


if __name__ == "__main__":
    main()
