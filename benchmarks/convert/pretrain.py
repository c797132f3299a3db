"""The network that is converted: a residual network with batch norm, trained for a given processor time on one thread.

python -m benchmarks.convert.pretrain IMAGES OUT.safetensors [--minutes N] [--model NAME] [--start FILE [--peak RATE]]

The rate rises and falls once over the time there is (Smith & Topin 2018, arXiv:1708.07120), so the network is finished
when the time is, however fast the machine. Half the time goes by on crops of three quarters of the width, which are
faster (Howard, DAWNBench 2018). After every epoch the weights are written, with the accuracy in their metadata. With
`--start` an earlier file's network goes on (warm restarts: Loshchilov & Hutter 2017, arXiv:1608.03983).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from normlab.data import Dataset, Standardizer, augment, load
from normlab.models import build_model

BATCH, PEAK, DECAY = 128, 0.2, 5e-4
RISING = 0.2  # of the time
SMALL = 0.5  # of the time, on small crops


def pretrain(
    dataset: Dataset,
    model: str,
    minutes: float,
    out: Path,
    *,
    start: Path | None = None,
    peak: float = PEAK,
    seed: int = 0,
) -> nn.Module:
    """Train for `minutes` from the weights in `start`, and write them after every epoch and at the end."""
    torch.manual_seed(seed)
    net = build_model(
        model, "bn", num_classes=dataset.num_classes, in_channels=dataset.channels, image_size=dataset.size, seed=seed
    )
    if start:
        net.load_state_dict(load_file(start))  # half precision is widened
    net = net.to(memory_format=torch.channels_last)
    images, labels = (torch.from_numpy(np.array(of)) for of in (dataset.train.images, dataset.train.labels))
    held_out, expected = (torch.from_numpy(np.array(of)) for of in (dataset.test.images, dataset.test.labels))
    standardize = Standardizer(dataset.channel_mean, dataset.channel_std)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=DECAY, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    began, epoch, spent = time.process_time(), 0, 0.0
    while spent < 1:
        net.train()
        for rows in torch.randperm(len(images), generator=generator)[: len(images) // BATCH * BATCH].split(BATCH):
            spent = (time.process_time() - began) / (60 * minutes)
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = peak * (spent / RISING if spent < RISING else (1 - spent) / (1 - RISING))
            batch = augment(images[rows], generator)
            if spent < SMALL:
                batch = _smaller(batch, generator)
            batch = standardize(batch).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(net(batch), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        else:
            epoch += 1
        found = accuracy(net, standardize, held_out, expected)
        save(net, out, model=model, data=dataset.name, epochs=str(epoch), test_accuracy=f"{found:.4f}")
        print(f"{60 * minutes * spent:.0f} s: epoch {epoch}: test accuracy {found:.4f}", flush=True)
    return net.eval()


def _smaller(images: Tensor, generator: torch.Generator) -> Tensor:
    """A crop of three quarters of height and width, in one place for the whole batch."""
    height, width = (of * 3 // 4 for of in images.shape[2:])
    top, left = (int(torch.randint(of // 4 + 1, (), generator=generator)) for of in images.shape[2:])
    return images[:, :, top : top + height, left : left + width]


def accuracy(net: nn.Module, standardize: Standardizer, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 images that a network names right, in evaluation mode."""
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(standardize(part)).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


def save(net: nn.Module, out: Path, **facts: str) -> None:
    """Write the weights in half precision, which halves the file and changes no accuracy that is printed."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    save_file({name: value.contiguous() for name, value in half.items()}, out, metadata=facts)


def main() -> None:
    """Train, and print the test accuracy after every epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="benchmarks/convert/network.py:network")
    parser.add_argument("--minutes", type=float, default=60, help="of processor time")
    parser.add_argument("--start", type=Path, help="weights of an earlier run")
    parser.add_argument("--peak", type=float, default=PEAK, help="highest learning rate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(arguments.images)
    pretrain(dataset, arguments.model, arguments.minutes, arguments.out, start=arguments.start, peak=arguments.peak)


if __name__ == "__main__":
    main()
