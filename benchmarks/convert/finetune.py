"""One epoch on another task from a converted network, in batches of several sizes, beside batch norm kept and frozen.

python -m benchmarks.convert.finetune WEIGHTS PRETRAINED_ON IMAGES [--train N] [--seeds N] [--model NAME]

The classifier is new. SGD with momentum; its rate is proportional to the batch and falls to zero.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import normlab
from benchmarks.convert.network import pretrained
from normlab.bench.machine import describe, line
from normlab.data import Standardizer, load

BATCHES = (1, 2, 4, 8, 32)
RATE = 0.02  # at 32
UNLABELLED = 256
Form = Callable[[nn.Module, Tensor], nn.Module]
FORMS: dict[str, Form] = {
    "keep": lambda net, images: net,
    "frozen": lambda net, images: normlab.freeze(net),
    "recalibrated, frozen": lambda net, images: normlab.freeze(normlab.recalibrate(net, images)),
    "gn copied": lambda net, images: normlab.convert(net, "gn:groups=1", match=False),
    "gn matched": lambda net, images: normlab.convert(net, "gn", images),
    "gn matched, distilled": lambda net, images: normlab.convert(net, "gn", images, distill=200),
    "frn matched, distilled": lambda net, images: normlab.convert(net, "frn", images, distill=200),
}


def tune(net: nn.Module, images: Tensor, labels: Tensor, batch: int, seed: int) -> nn.Module:
    """The network after one epoch of these images, in this order."""
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.0, momentum=0.9)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split(batch)
    net.train()
    for step, rows in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = RATE * batch / 32 * (1 - step / len(order))
        loss = functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net.eval()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that a network names right."""
    with torch.no_grad():
        return float((torch.cat([net(part).argmax(1) for part in images.split(250)]) == labels).float().mean())


def main() -> None:
    """Print a row for each form as soon as it is measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("pretrained_on")
    parser.add_argument("images")
    parser.add_argument("--model", default="benchmarks/convert/network.py:network")
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before, after = load(arguments.pretrained_on), load(arguments.images, image_size=32)
    standardize = Standardizer(before.channel_mean, before.channel_std)
    images, held_out = (
        standardize(torch.from_numpy(np.array(part.images))).contiguous(memory_format=torch.channels_last)
        for part in (after.train, after.test)
    )
    labels, expected = (torch.from_numpy(np.array(part.labels)) for part in (after.train, after.test))
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: arguments.train]
    images, labels = images[chosen], labels[chosen]
    print(line(describe("cpu")))
    print(f"one epoch of {len(images)} images of {after.name}, {len(held_out)} held out; n = {arguments.seeds} seeds\n")
    print(f"| form | {' | '.join(f'batch {b}' for b in BATCHES)} |\n|---|{'---:|' * len(BATCHES)}")
    for name, form in FORMS.items():
        start = pretrained(arguments.model, arguments.weights, before).to(memory_format=torch.channels_last)
        start = form(start, images[:UNLABELLED])
        cells = []
        for batch in BATCHES:
            found = []
            for seed in range(arguments.seeds):
                net = copy.deepcopy(start)
                torch.manual_seed(seed)
                net[-1] = nn.Linear(net[-1].in_features, after.num_classes)  # type: ignore[operator, union-attr, index]
                found.append(accuracy(tune(net, images, labels, batch, seed), held_out, expected))
            spread = f" ± {100 * statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{100 * statistics.mean(found):.1f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
