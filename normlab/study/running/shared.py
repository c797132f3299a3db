"""Training one cell by several processes: each has its share of every batch, all have the same network.

What is learned is what one process alone would learn, up to the rounding of sums that are split in another way:
order and augmentation are those of the whole batch, batch statistics are pooled over the processes
(`normlab.layers.distributed`), and gradients add up to that of the mean loss over the whole batch. Only dropout
differs, each process drawing its own. Evaluation is done by all of them alike, without a message.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normlab.data import Dataset
from normlab.errors import UsageError
from normlab.layers._torch import BatchNormBase
from normlab.layers.distributed import pools_samples, synchronize
from normlab.layers.norms import Norm
from normlab.study.axes import Cell
from normlab.study.training.cell import Training, derive


class SharedTraining(Training):
    """A training that the processes of `torch.distributed`'s group do together; each must do every step of it."""

    def __init__(self, cell: Cell, dataset: Dataset, device: str = "cpu") -> None:
        if cell.compiled:
            raise UsageError("--compile is for cells of one process each; leave it out, or start without torchrun")
        super().__init__(cell, dataset, device)
        check_synchronizable(self.model, device)
        synchronize(self.model)
        if device != "cpu":
            _synchronize_stock(self.model)
        self._parallel = DistributedDataParallel(self.model)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rank, world, count = dist.get_rank(), dist.get_world_size(), len(labels)
        torch.manual_seed(derive(self.cell.seed, "dropout", len(self.records) + 1, self.progress.step, rank))
        own = torch.arange(count, device=self.device).tensor_split(world)[rank]  # of few images some have none
        logits = self.logits(self._parallel, images[own])
        loss = self.loss(logits, labels[own], reduction="sum") / count
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        predictions = torch.zeros(count, dtype=torch.long, device=self.device)
        predictions[own] = logits.detach().argmax(1)
        dist.all_reduce(predictions)
        return loss * world, mean, predictions  # DistributedDataParallel takes the mean of the gradients

    def backend(self) -> str:
        synchronized = any(isinstance(module, Norm) and pools_samples(module) for module in self.model.modules())
        return "reference" if synchronized else super().backend()


def _synchronize_stock(module: nn.Module) -> None:
    """Pool the statistics of torch's own batch norms; the parameters stay the same objects."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormBase) and not isinstance(child, Norm):
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            _synchronize_stock(child)


def check_synchronizable(model: nn.Module, device: str) -> None:
    """Raise UsageError if a model has batch statistics that cannot be pooled over processes on this device."""
    stock = (isinstance(module, BatchNormBase) and not isinstance(module, Norm) for module in model.modules())
    if device == "cpu" and any(stock):
        raise UsageError(
            "torch's own batch norm cannot pool its statistics over processes on a CPU (its SyncBatchNorm needs GPUs); "
            "leave it out, as in --norms bn,in,bin,ln,gn,none, or use normlab's in your model"
        )
