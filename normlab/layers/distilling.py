"""A network trained to repeat another one, layer by layer, on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.layers.modes import in_mode

BATCH, RATE = 32, 1e-3
_TINY = 1e-8


def distill(
    student: nn.Module, teacher: nn.Module, images: Tensor, layers: Sequence[str], *, steps: int, seed: int = 0
) -> None:
    """Train `student`, in place, to have the outputs of `teacher`, at the named layers and at the end.

    The loss is the mean over the layers of the squared distance of their outputs over the variance of the teacher's,
    plus that of the models' outputs. Adam, whose rate falls to 0 along a cosine, on random batches of the images; the
    student is in evaluation mode meanwhile, so that running statistics stay. Its parts get their modes back.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen: dict[nn.Module, dict[str, Tensor]] = {student: {}, teacher: {}}
    handles = [
        model.get_submodule(name).register_forward_hook(_output_hook(seen[model], name))
        for model in (student, teacher)
        for name in layers
    ]
    try:
        with in_mode(student, False):
            for _ in range(steps):
                batch = images[torch.randperm(len(images), generator=generator)[:BATCH]]
                with torch.no_grad():
                    expected = teacher(batch)
                loss = _distance(student(batch), expected)
                loss = loss + sum(_distance(seen[student][name], seen[teacher][name]) for name in layers) / len(layers)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        for handle in handles:
            handle.remove()


def _output_hook(into: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        into[name] = output

    return keep


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    return functional.mse_loss(found, expected) / expected.var().clamp_min(_TINY)
