"""The open-ended model in torch: written twice with equal outputs, and its settings varied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars, curves, side_by_side
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.finding import Finding
from normlab.reproduce.images import Images


@dataclass(frozen=True)
class Recipe:
    """The settings that are varied; the defaults are the reported best."""

    lr: float = 1e-3
    weight_decay: float = 1e-4
    channels: tuple[int, int] = (64, 32)
    filters: tuple[int, int] = (5, 3)
    widths: tuple[int, int] = (256, 128)


BASE = Recipe()
VARIANTS = {
    "as reported best": BASE,
    "lr 1e-2": replace(BASE, lr=1e-2),
    "lr 1e-4": replace(BASE, lr=1e-4),
    "weight decay 5e-4": replace(BASE, weight_decay=5e-4),
    "weight decay 1e-2": replace(BASE, weight_decay=1e-2),
    "channels 32/16": replace(BASE, channels=(32, 16)),
    "filters 3 and 1": replace(BASE, filters=(3, 1)),
    "filters 5 and 1": replace(BASE, filters=(5, 1)),
    "widths 128-64": replace(BASE, widths=(128, 64)),
    "widths 256-64": replace(BASE, widths=(256, 64)),
}
SMALL = {"seeds": 12}
MARGIN = 0.02


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(200, 4000, 2000), setting.pick(100, 1000))
    epochs = setting.pick(1, 4)
    scale = setting.pick(8, 1, 4)  # what all widths are divided by
    best: dict[str, list[float]] = {name: [] for name in VARIANTS}
    records, by_epoch = [], []
    for seed in setting.seed_range:
        for name, recipe in VARIANTS.items():
            setting.say(f"seed {seed}, {name}")
            epochs_of = _train(_narrow(recipe, scale), images, seed, epochs)
            best[name].append(max(record["val_accuracy"] for record in epochs_of))
            records.append({"variant": name, "seed": seed, "accuracy": best[name][-1]})
            by_epoch += [{"variant": name, "seed": seed, **record} for record in epochs_of]
    base = best["as reported best"]

    def against(claim: str, reported: str, other: str) -> Finding:
        names = ("as reported best", other)
        return verdicts.greater(claim, reported, base, best[other], images=len(images.y_val), names=names)

    def alike(claim: str, reported: str, one: str, other: str = "as reported best") -> Finding:
        return verdicts.alike(
            f"{claim} (within {verdicts.percent(MARGIN)})",
            reported,
            best[one],
            best[other],
            margin=MARGIN,
            images=len(images.y_val),
            names=(one, other),
        )

    findings = [
        _compute_both(images, scale),
        against("learning rate 1e-3 beats 1e-2", "lr 1e-3 best", "lr 1e-2"),
        against("learning rate 1e-3 beats 1e-4", "lr 1e-3 best", "lr 1e-4"),
        against("256-128-10 beats 128-64-10", "256-128-10 better", "widths 128-64"),
        against("256-128-10 beats 256-64-10", "256-128-10 better", "widths 256-64"),
        alike("filters (3, 1) and (5, 3) are alike", "filters (3, 1) and (5, 3) alike", "filters 3 and 1"),
        alike("128-64-10 and 256-64-10 are alike", "128-64-10 and 256-64-10 alike", "widths 128-64", "widths 256-64"),
        against("filters (5, 1) are poorer than (5, 3)", "(5, 1) poor", "filters 5 and 1"),
        against("channels 64/32 beat 32/16", "channels 64/32 good", "channels 32/16"),
        alike("weight decays 1e-4 and 5e-4 are alike", "1e-4 to 5e-4 good", "weight decay 5e-4"),
        against("weight decay 1e-4 beats 1e-2", "1e-4 to 5e-4 good", "weight decay 1e-2"),
    ]
    return Result(
        findings,
        {
            "network": "conv 64 (5x5, pad 2) - BN - ReLU - pool, conv 32 (3x3, pad 1) - BN - ReLU - pool, "
            "256-128-classes with ReLU and dropout 0.5" + (f"; all widths divided by {scale}" if scale > 1 else ""),
            "training": f"Adam, learning rate 1e-3, weight decay 1e-4, {epochs} epochs, batch 100; accuracy is the "
            "best of any epoch on the validation images; one setting varied at a time",
            "data": images.describe(),
        },
        charts={
            "variants": bars(records, "accuracy", "variant", title="Best validation accuracy", percent=True),
            "curves": side_by_side(
                curves(by_epoch, "epoch", "val_accuracy", "variant"),
                curves(by_epoch, "epoch", "loss", "variant", percent=False),
            ),
        },
        captions=dict.fromkeys(("variants", "curves"), "Mean and 95 % interval over seeds."),
        records=[*records, *by_epoch],
        scale=", ".join(filter(None, [setting.pick("", "", "a quarter of the widths, 2000 images"), images.scale])),
    )


def _narrow(recipe: Recipe, scale: int) -> Recipe:
    first, second = recipe.channels
    wide, narrow = recipe.widths
    return replace(recipe, channels=(first // scale, second // scale), widths=(wide // scale, narrow // scale))


def build_sequential(recipe: Recipe, shape: tuple[int, ...], num_classes: int) -> Any:
    """The model as a list of layers."""
    from torch import nn

    (c1, c2), (k1, k2), (w1, w2) = recipe.channels, recipe.filters, recipe.widths
    return nn.Sequential(
        nn.Conv2d(shape[0], c1, k1, padding=k1 // 2),
        nn.BatchNorm2d(c1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(c1, c2, k2, padding=k2 // 2),
        nn.BatchNorm2d(c2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(c2 * (shape[1] // 4) * (shape[2] // 4), w1),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(w1, w2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(w2, num_classes),
    )


def build_module(recipe: Recipe, shape: tuple[int, ...], num_classes: int) -> Any:
    """The same model as a class with a forward method."""
    import torch.nn.functional as F
    from torch import Tensor, nn

    class OpenEnded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            (c1, c2), (k1, k2), (w1, w2) = recipe.channels, recipe.filters, recipe.widths
            self.conv1, self.norm1 = nn.Conv2d(shape[0], c1, k1, padding=k1 // 2), nn.BatchNorm2d(c1)
            self.conv2, self.norm2 = nn.Conv2d(c1, c2, k2, padding=k2 // 2), nn.BatchNorm2d(c2)
            self.full1 = nn.Linear(c2 * (shape[1] // 4) * (shape[2] // 4), w1)
            self.full2 = nn.Linear(w1, w2)
            self.scores = nn.Linear(w2, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
            x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
            x = F.dropout(F.relu(self.full1(x.flatten(1))), 0.5, self.training)
            x = F.dropout(F.relu(self.full2(x)), 0.5, self.training)
            scores: Tensor = self.scores(x)
            return scores

    return OpenEnded()


def _compute_both(images: Images, scale: int) -> Any:
    """Both ways of writing it, with the same weights, on the same images, in training and in evaluation."""
    import torch

    recipe = _narrow(BASE, scale)
    torch.manual_seed(0)
    one = build_sequential(recipe, images.shape, images.num_classes)
    two = build_module(recipe, images.shape, images.num_classes)
    two.load_state_dict(dict(zip(two.state_dict(), _by_owner(one, two), strict=True)))
    x = torch.from_numpy(images.X_train[:20]) / 255
    largest = 0.0
    for training in (True, False):
        outputs = []
        for model in (one, two):
            torch.manual_seed(1)  # the same dropout masks
            outputs.append(model.train(training)(x).detach())
        largest = max(largest, float((outputs[0] - outputs[1]).abs().max()))
    return verdicts.exact(
        "written as a Module and as a Sequential, the model gives equal outputs",
        "equal",
        f"largest difference {largest:.1g}, training and evaluation",
        largest == 0,
        "holds if not one bit differs",
    )


def _by_owner(sequential: Any, module: Any) -> list[Any]:
    # the layers with weights come in another order: the class names its norms beside their convolutions
    order = {"conv1": 0, "norm1": 1, "conv2": 4, "norm2": 5, "full1": 9, "full2": 12, "scores": 15}
    state = sequential.state_dict()
    return [state[f"{order[owner]}.{name}"] for owner, _, name in (key.partition(".") for key in module.state_dict())]


def _train(recipe: Recipe, images: Images, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A record for each epoch of a training; weights, batches and dropout come from the seed."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_sequential(recipe, images.shape, images.num_classes).to(device)
    # pixels of about unit size, as torch's initial weights expect
    x, y, x_val, y_val = (
        torch.from_numpy(np.ascontiguousarray(a)).to(device)
        for a in (images.X_train / 64, images.y_train, images.X_val / 64, images.y_val)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    records = []
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for chosen in torch.randperm(len(x), device="cpu").to(device).split(100):
            if len(chosen) < 2:
                continue  # batch norm needs two samples
            optimizer.zero_grad()
            loss = cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.inference_mode():
            right = sum(
                int((model(a).argmax(1) == b).sum()) for a, b in zip(x_val.split(500), y_val.split(500), strict=True)
            )
        records.append({"epoch": epoch, "val_accuracy": right / len(y_val), "loss": sum(losses) / len(losses)})
    return records
