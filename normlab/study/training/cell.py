"""Training one cell: the same function for every caller, in this process, in a worker or on a cluster.

Everything random is a pure function of the seed and of where training stands (epoch, step), so that every
norm meets the same initial convolutions, the same order of images and the same augmentation, and a training
that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.data import Dataset, Split, Standardizer, standardize
from normlab.errors import DataError
from normlab.layers.norms import constrain, parameter_groups
from normlab.models.residual import ResNet, build_model
from normlab.study.axes import Cell
from normlab.study.ending import best_of, is_over
from normlab.study.schedule import learning_rate_factor, warmup_factor
from normlab.study.training import precision
from normlab.study.training.augmenting import augmentation_named
from normlab.study.training.compiling import begin_step, compiled
from normlab.study.training.features import Watch
from normlab.study.training.feed import Feed
from normlab.study.training.memory import peak_bytes, reset_peak
from normlab.study.training.metrics import classification_metrics
from normlab.study.training.recipe import body_of, head_epochs

EVALUATION_BATCH = 500
CALIBRATION = 256  # images, without their labels, that a norm such as "gn:calibrated" is matched on
LOOK_EVERY = {"cpu": 1, "cuda": 50}  # steps; on a GPU, looking at a loss waits for it


class Checkpoints(Protocol):
    """Where a training keeps its state, so that it can be taken up again."""

    def restore(self, training: Training) -> None:
        """Bring `training` to the last state that was kept, if there is one."""

    def due(self) -> bool:
        """Whether the state should be kept although the epoch is not over."""

    def keep(self, training: Training) -> None:
        """Keep the state of `training`."""

    def finish(self, training: Training) -> None:
        """Keep what is worth keeping of a training that has ended."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended: "done" with the test split's metrics, "diverged" with a reason, or "paused".

    `peak_memory_bytes` is the most memory held meanwhile (`normlab.study.training.memory`), None where nobody counts.
    """

    status: str
    epochs: list[dict[str, Any]]
    test: dict[str, float] | None = None
    reason: str | None = None
    parameters: int = 0
    backend: str = ""
    peak_memory_bytes: int | None = None


class Diverged(Exception):
    """The loss is not finite any more."""


def train_cell(
    cell: Cell,
    dataset: Dataset,
    *,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    checkpoints: Checkpoints | None = None,
    until: int | None = None,
    device: str = "cpu",
    kind: type[Training] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train one cell and return how it ended; `on_epoch` receives the record of every epoch, in order.

    With `checkpoints` it goes on from the last state kept, replaying the records of the epochs before. With
    `until` it pauses after that many epochs. The test split is looked at once, at the end. A loss that is not
    finite ends it as "diverged". Whatever else goes wrong is raised. `kind` trains in another way than `Training`.
    `on_step` is called after every step, and after every batch that is evaluated.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's generator is not ours to move
        training = (kind or Training)(cell, dataset, device)
        training.on_step = on_step
        return _train(training, on_epoch, checkpoints, until)


def _train(
    training: Training,
    on_epoch: Callable[[dict[str, Any]], None],
    checkpoints: Checkpoints | None,
    until: int | None,
) -> Outcome:
    cell = training.cell
    reset_peak(training.device)
    if checkpoints is not None:
        checkpoints.restore(training)
    for record in training.records:
        on_epoch(record)
    last = cell.epochs if until is None else min(until, cell.epochs)
    try:
        while len(training.records) < last and not training.is_over():
            training.run_epoch(checkpoints)
            if training.is_over():
                training.take_best()
            if checkpoints is not None:  # first, so that a listener can rely on it when an epoch is reported
                (checkpoints.finish if training.is_over() else checkpoints.keep)(training)
            on_epoch(training.records[-1])
    except Diverged as e:
        return training.outcome("diverged", reason=str(e))
    if not training.is_over():
        return training.outcome("paused")
    test = training.evaluate(training.dataset.test)
    if not math.isfinite(test["loss"]):
        return training.outcome("diverged", reason=f"epoch {len(training.records)}: the test loss is {test['loss']}")
    return training.outcome("done", test=test)


@dataclass
class Progress:
    """What is known of an epoch that is under way; `unseen` are the last steps' mean losses and numbers of images."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    predictions: list[Tensor] = field(default_factory=list)
    unseen: list[tuple[Tensor, int]] = field(default_factory=list)


class Training:
    """A network in training: model, optimizer, position, and the records of the epochs so far."""

    def __init__(self, cell: Cell, dataset: Dataset, device: str = "cpu") -> None:
        self.cell, self.dataset, self.device = cell, dataset, torch.device(device)
        self.model = build_model(
            cell.model,
            cell.norm,
            num_classes=dataset.num_classes,
            in_channels=dataset.channels,
            image_size=dataset.size,
            dropout=cell.dropout,
            seed=derive(cell.seed, "initial weights"),
            weights=cell.weights or None,
            calibrate=lambda: standardize(
                torch.from_numpy(np.array(dataset.train.images[:CALIBRATION])),
                dataset.channel_mean,
                dataset.channel_std,
            ),
        )
        self.memory_format = memory_format(self.model, self.device, cell.precision)
        self.model.to(self.device)
        if self.memory_format is not torch.contiguous_format:  # else a network's own arrangement stays
            self.model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.norms_dtype = precision.check(cell.precision, self.device)
        self.in_steps: Any = compiled(self.model, self.device) if cell.compiled else self.model
        self.optimizer = make_optimizer(self.model, cell)
        self.standardize = Standardizer(dataset.channel_mean, dataset.channel_std, self.device)
        self.augment = augmentation_named(cell.augment)
        self.train_feed, self.val_feed = (Feed(split, self.device) for split in (dataset.train, dataset.val))
        self.watch = Watch(self.model, dataset, self.device)
        self.class_weights = balanced_weights(dataset, self.device) if cell.class_weights == "balanced" else None
        self.body = body_of(self.model, dataset.num_classes) if head_epochs(cell) else []
        self.records: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}  # the network's state at its best epoch so far, where that is what is tested
        self.progress = Progress()
        self.on_step: Callable[[], None] = lambda: None

    def is_over(self) -> bool:
        """Whether no epoch is left to train."""
        return is_over(self.records, self.cell.epochs, self.cell.patience)

    def take_best(self) -> None:
        """Go back to the network of the best epoch, where the cell says so."""
        if self.best:
            self.model.load_state_dict(self.best)
            self.best = {}

    def run_epoch(self, checkpoints: Checkpoints | None = None) -> None:
        """Train one epoch, from wherever `progress` stands, evaluate, and append its record."""
        epoch = len(self.records) + 1
        factor = learning_rate_factor(self.cell.schedule, epoch, self.cell.epochs)
        self.set_rate(factor)
        labels = self.dataset.train.labels
        order = shuffled(len(labels), self.cell.seed, epoch)
        batches = split_batches(order, self.cell.batch_size)
        before, warmup = (epoch - 1) * len(batches), math.ceil(self.cell.warmup * len(batches))
        started = time.perf_counter()
        self.model.train()
        for index in batches[self.progress.step :]:
            if warmup:
                self.set_rate(factor * warmup_factor(before + self.progress.step + 1, warmup))
            self.step(index, epoch)
            if self.progress.step < len(batches) and checkpoints is not None and checkpoints.due():
                now = time.perf_counter()
                self.progress.seconds += now - started
                self.see_losses(epoch)
                checkpoints.keep(self)
                started = time.perf_counter()
        self.see_losses(epoch)
        train_seconds = self.progress.seconds + time.perf_counter() - started
        observed = self.watch.record(epoch)
        predictions = torch.cat(self.progress.predictions).cpu().numpy()
        trained = scores(self.progress.loss_sum / len(order), labels[order], predictions, self.dataset.num_classes)
        started = time.perf_counter()
        validated = self.evaluate(self.dataset.val)
        if not math.isfinite(validated["loss"]):
            raise Diverged(f"epoch {epoch}: the validation loss is {validated['loss']}")
        self.records.append(
            {
                "epoch": epoch,
                **{f"train_{name}": value for name, value in trained.items()},
                **{f"val_{name}": value for name, value in validated.items()},
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": train_seconds + time.perf_counter() - started,
                "images_per_second": len(order) / train_seconds,
                **observed,
            }
        )
        if self.cell.best_epoch and best_of(self.records) is self.records[-1]:
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.progress = Progress()

    def step(self, index: np.ndarray, epoch: int) -> None:
        """One update from the images at `index`; the generator's state depends on seed, epoch and step alone."""
        generator = torch.Generator().manual_seed(derive(self.cell.seed, "augmentation", epoch, self.progress.step))
        if self.cell.compiled:
            begin_step(self.device)
        images, labels = self.train_feed[index]
        images = self.augment(images, generator)
        torch.manual_seed(derive(self.cell.seed, "dropout", epoch, self.progress.step))
        if self.cell.mixup:
            images, labels = self.mixed(images, labels, epoch)
        loss, mean, predictions = self.forward(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if epoch <= head_epochs(self.cell):
            for p in self.body:
                p.grad = None  # which no optimizer moves
        self.optimizer.step()
        constrain(self.model)
        self.progress.unseen.append((mean, len(index)))
        self.progress.predictions.append(predictions)
        self.progress.step += 1
        if len(self.progress.unseen) >= LOOK_EVERY.get(self.device.type, 1):
            self.see_losses(epoch)
        self.on_step()

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the optimizer began with by this factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def see_losses(self, epoch: int) -> None:
        """Add up the losses of the steps since the last time; raises Diverged, naming the first that is not finite."""
        unseen, self.progress.unseen = self.progress.unseen, []
        if not unseen:
            return
        first = self.progress.step - len(unseen) + 1
        values = torch.stack([mean for mean, _ in unseen]).tolist()
        for step, (value, (_, count)) in enumerate(zip(values, unseen, strict=True), start=first):
            if not math.isfinite(value):
                raise Diverged(f"epoch {epoch}: the training loss is {value} at step {step}")
            self.progress.loss_sum += value * count

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate, the mean loss over the batch, and the predicted classes."""
        logits = self.logits(self.in_steps, images)
        loss = self.loss(logits, labels)
        return loss, loss.detach(), logits.detach().argmax(1)

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of logits (N, classes) with labels (N,) or shares (N, classes), as the cell says."""
        return functional.cross_entropy(
            logits, labels, self.class_weights, reduction=reduction, label_smoothing=self.cell.label_smoothing
        )

    def mixed(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images, each mixed with another of the batch, and the shares of the classes in them (Zhang et al. 2018)."""
        rng = np.random.default_rng(derive(self.cell.seed, "mixup", epoch, self.progress.step))
        share = float(rng.beta(self.cell.mixup, self.cell.mixup))
        other = torch.from_numpy(rng.permutation(len(images))).to(self.device)
        classes = functional.one_hot(labels, self.dataset.num_classes).float()
        both = share * images.float() + (1 - share) * images[other].float()
        return both.round().to(images.dtype), share * classes + (1 - share) * classes[other]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """A model's output for images, uint8 (N, C, H, W), in the cell's precision: float32 (N, classes)."""
        with precision.autocast(self.cell.precision, self.device):
            return model(self.inputs(images)).float()

    def inputs(self, images: Tensor) -> Tensor:
        """Images, uint8 (N, C, H, W), as the network takes them."""
        return self.standardize(images.contiguous(memory_format=self.memory_format))

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss, accuracy, micro-F1 and macro-F1 on a split, in evaluation mode."""
        self.model.eval()
        # what is looked at once need not stay on the device
        feed = self.val_feed if split is self.dataset.val else Feed(split, self.device, resident=False)
        losses, predictions = [], []
        with torch.no_grad():
            for start in range(0, len(split), EVALUATION_BATCH):
                images, labels = feed[start : start + EVALUATION_BATCH]
                logits = self.model(self.inputs(images))
                losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
                predictions.append(logits.argmax(1))
                self.on_step()
        return scores(
            sum(torch.stack(losses).tolist()) / len(split),
            np.asarray(split.labels),
            torch.cat(predictions).cpu().numpy(),
            self.dataset.num_classes,
        )

    def outcome(self, status: str, **facts: Any) -> Outcome:
        """How this training ended, with what is known about the network."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return Outcome(
            status,
            self.records,
            parameters=parameters,
            backend=self.backend(),
            peak_memory_bytes=peak_bytes(self.device),
            **facts,
        )

    def backend(self) -> str:
        """Name of the kernels that serve this training's norms."""
        from normlab.kernels import backend_for

        return backend_for(torch.empty(1, 1, 1, 1, dtype=self.norms_dtype, device=self.device))


def balanced_weights(dataset: Dataset, device: torch.device) -> Tensor:
    """What the loss of an image counts, by its class (classes,): in proportion to 1 / its share of the images."""
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    weights = len(dataset.train) / (dataset.num_classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=device)


def memory_format(model: nn.Module, device: torch.device, precision: str) -> torch.memory_format:
    """Channels-last for our networks where their convolutions are faster so: on a CPU, and in bfloat16.

    A network of the user's own may view its planes as rows, which channels-last ones are not.
    """
    last = isinstance(model, ResNet) and (device.type == "cpu" or precision == "bf16")
    return torch.channels_last if last else torch.contiguous_format


def derive(seed: int, *path: Any) -> int:
    """An independent seed (63 bits) for a place in training, named by `path`."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch: a function of the seed and the epoch alone."""
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(size)


def split_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an order into batches; a last batch of one image joins the batch before.

    Batch statistics of one sample are no statistics, and dropping it would lose an image. (With batches of one
    by choice nothing is joined.) Raises DataError if there are no images.
    """
    if len(order) == 0:
        raise DataError("the training split is empty; at least two images are needed")
    cuts = list(range(batch_size, len(order), batch_size))
    if batch_size > 1 and cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)


def scores(loss: float, labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> dict[str, float]:
    """Loss, accuracy, micro-F1, macro-F1 and balanced accuracy by name."""
    found = classification_metrics(labels, predictions, num_classes)
    # with one label per image every wrong prediction is one false positive and one false negative
    assert math.isclose(found.micro_f1, found.accuracy), "micro-F1 must equal accuracy"
    return {
        "loss": float(loss),
        "accuracy": float(found.accuracy),
        "micro_f1": float(found.micro_f1),
        "macro_f1": float(found.macro_f1),
        "balanced_accuracy": float(found.balanced_accuracy),
    }


def make_optimizer(model: nn.Module, cell: Cell) -> torch.optim.Optimizer:
    """The cell's optimizer, over groups that treat each norm's parameters as its paper says."""
    groups = parameter_groups(model, lr=cell.lr, weight_decay=cell.weight_decay)
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda g: torch.optim.SGD(g, lr=cell.lr, momentum=cell.momentum),
        "adam": lambda g: torch.optim.Adam(g, lr=cell.lr),
        "adamw": lambda g: torch.optim.AdamW(g, lr=cell.lr),
        "rmsprop": lambda g: torch.optim.RMSprop(g, lr=cell.lr),
    }
    optimizer = makers[cell.optimizer](groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
