"""What a comparison expects of a network of the user's own, found out with one batch before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.data import Dataset, standardize
from normlab.errors import NormlabError, UsageError
from normlab.errors.targets import one_process
from normlab.layers.norms import make_norm
from normlab.layers.swap import norms_in
from normlab.models import build_model
from normlab.models.names import AS_IT_IS, BARE, FROZEN, norm_called, own_factory
from normlab.models.replacing import takes_norm
from normlab.norms.family import uncalibrated

IMAGES = 4
_RATE = 0.1


def check_contract(spec: str, norms: Sequence[str], dataset: Dataset, weights: str = "") -> list[str]:
    """Build the network with one of the norms and train it for one step; a built-in network is taken as it is.

    Returns sentences on what starts otherwise than in the file of pretrained `weights`.

    Expected are logits, (N, classes); a finite loss; a norm that is called, or norms that are replaced; a gradient for
    every parameter; and outputs that a step changes. Raises UsageError that says which is missing, and the fix.
    """
    factory = own_factory(spec)
    notes: list[str] = []
    if factory is None and not weights:
        return notes
    norm = next((n for n in norms if norm_called(n) not in (AS_IT_IS, FROZEN, BARE)), norms[0])
    norm = uncalibrated(norm) or norm
    asked: list[int] = []

    def constructor(channels: int) -> nn.Module:
        asked.append(channels)
        return make_norm(norm, channels)

    with one_process(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = factory is None or takes_norm(factory)
        try:
            model = build_model(
                spec, constructor if built else norm,
                num_classes=dataset.num_classes, in_channels=dataset.channels, image_size=dataset.size,
                weights=weights or None, say=notes.append,
            )  # fmt: skip
        except (NormlabError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise UsageError(f"model {spec!r}: making it raised {type(error).__name__}: {error}") from error
        # where norms were replaced there were some, though none may be left: "none" takes them out
        if not asked and (built or norm == AS_IT_IS) and not any(True for _ in norms_in(model)):
            raise UsageError(
                f"model {spec!r} has no norm that could differ: it never calls norm(channels) and has no norm layer of "
                "its own; call it where a normalization belongs"
            )
        rows = np.array(dataset.train.images[:IMAGES])
        images = standardize(torch.from_numpy(rows), dataset.channel_mean, dataset.channel_std)
        _step(f"model {spec!r}", model, images, torch.from_numpy(np.array(dataset.train.labels[:IMAGES])), dataset)
    return notes


def _step(label: str, model: nn.Module, images: Tensor, targets: Tensor, dataset: Dataset) -> None:
    model.train()
    before = _logits(label, model, images, dataset.num_classes)
    loss = functional.cross_entropy(before.float(), targets)
    if not bool(loss.isfinite()):
        raise UsageError(f"{label}: the loss of {len(images)} images is {loss.item()} at the start; expected a number")
    if not before.requires_grad:
        raise UsageError(f"{label}: its output has no gradient; is it computed under torch.no_grad()?")
    loss.backward()
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    missed = [name for name, p in learned if p.grad is None]
    if missed:
        shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise UsageError(
            f"{label}: no gradient reaches {shown}; leave out what the output does not use, or set requires_grad=False"
        )
    torch.optim.SGD([p for _, p in learned], lr=_RATE).step()
    with torch.no_grad():
        model.eval()
        after = model(images)
        for _, p in learned:
            p.add_(p.grad, alpha=_RATE)  # type: ignore[arg-type]
        if torch.equal(after, model(images)):
            raise UsageError(f"{label}: a training step changes nothing of its output; are its parameters used?")


def _logits(label: str, model: nn.Module, images: Tensor, classes: int) -> Tensor:
    came = f"images {tuple(images.shape)}, float32"
    try:
        y = model(images)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UsageError(f"{label}: its forward pass raised {type(error).__name__} for {came}: {error}") from error
    expected = f"expected logits ({len(images)}, {classes})"
    if not isinstance(y, Tensor):
        raise UsageError(f"{label} returned {type(y).__name__} for {came}; {expected}, as a tensor")
    if tuple(y.shape) != (len(images), classes):
        raise UsageError(f"{label} returned shape {tuple(y.shape)} for {came}; {expected}")
    return y
