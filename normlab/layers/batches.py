"""Members of the family with a layer of their own: what they keep between calls, or which names their authors use.

What is computed is in `normlab.norms.members`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlab.errors import UsageError
from normlab.kernels.activations import Activation
from normlab.layers import checks
from normlab.layers.checkpoints import flatten
from normlab.layers.norms import BatchStatistics, Norm, RunningNorm
from normlab.norms.grid import part_size, parts_of

__all__ = [
    "BatchRenorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GlobalResponseNorm",
    "InstanceBatchNorm",
    "SwitchableNorm",
]


class BatchRenorm(BatchStatistics):
    """Batch renormalization: batch statistics, corrected towards the running ones.

        y = weight * ((x - mean) / s * r + d) + bias,   s = sqrt(var + eps), s' = sqrt(running_var + eps)
        r = clip(s / s', 1 / r_max, r_max),   d = clip((mean - running_mean) / s', -d_max, d_max)

    r and d are constants of the derivative. Options `r_max` and `d_max` fix the clips; without them they follow the
    paper's schedule by the batches seen: 1 and 0 for 5000 steps, then up to 3 at step 40000 and 5 at step 25000. The
    momentum is 0.01 unless given, as in the paper. Raises UsageError without running statistics.
    Ioffe 2017, arXiv:1702.03275.
    """

    takes_act = True

    def __init__(
        self,
        norm: str,
        num_features: int,
        eps: float | None = None,
        momentum: float | None = 0.01,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(norm, num_features, eps, momentum, *args, **kwargs)
        if self.running_mean is None:
            raise UsageError("BatchRenorm: track_running_stats=False; batch renormalization needs running statistics")
        for name in ("r_max", "d_max"):
            given = self.options[name]
            least = 1 if name == "r_max" else 0
            if given is not None and not (isinstance(given, int | float) and given >= least):
                raise UsageError(f"BatchRenorm: {name}={given!r}; expected a number of at least {least}, or None")

    @property
    def known_mean(self) -> Tensor:
        """The running mean before this batch."""
        return self._running_copy("running_mean")

    @property
    def known_var(self) -> Tensor:
        """The running variance before this batch."""
        return self._running_copy("running_var")

    @property
    def largest_r(self) -> Tensor:
        """The clip of r now: r_max, or as scheduled."""
        return self._clip("r_max", 1.0, 3.0, 40000)

    @property
    def largest_d(self) -> Tensor:
        """The clip of d now: d_max, or as scheduled."""
        return self._clip("d_max", 0.0, 5.0, 25000)

    def _running_copy(self, name: str) -> Tensor:
        held: Tensor = getattr(self, name)
        return held.detach().clone() if self.training else held  # the buffer changes before the backward pass

    def _clip(self, name: str, first: float, last: float, until: int) -> Tensor:
        given, seen = self.options[name], self.num_batches_tracked
        assert self.running_mean is not None
        fixed = last if given is None else float(given)
        if given is not None or seen is None:
            return torch.full((1,), fixed, dtype=torch.float64, device=self.running_mean.device).to(torch.float32)
        share = ((seen - 5000) / (until - 5000)).clamp(0, 1)
        return (first + (last - first) * share).reshape(1).to(torch.float32)


class GhostBatchNorm(BatchStatistics):
    """Batch norm on parts of the batch: of `size` samples, or as many as `parts` says; cut as by `torch.chunk`.

        y = weight * (x - mean_part) / sqrt(var_part + eps) + bias

    Running statistics move by each part's in turn, and `num_batches_tracked` counts parts. In evaluation it is batch
    norm. Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.
    """

    takes_act = True
    is_local = True

    def __init__(self, norm: str, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(norm, num_features, *args, **kwargs)
        for name, given in self.options.items():
            if not (name == "parts" and given is None) and not (type(given) is int and given >= 1):
                raise UsageError(f"GhostBatchNorm: {name}={given!r}; expected a whole number of at least 1")

    def _normalize(
        self,
        x: Tensor,
        residual: Tensor | None,
        act: Activation | None,
        norm: str,
        use_batch: bool,
        running: tuple[Tensor, Tensor] | None,
        momentum: float | None,
        count: Tensor | None,
        eps: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        n, parts = x.shape[0], self.options["parts"]
        size = part_size(n, parts_of(n, self.options["size"], parts))
        if not use_batch or size >= n:
            return super()._normalize(x, residual, act, "bn", use_batch, running, momentum, count, eps, mask)
        pieces = x.split(size)
        others = [v.split(size) if v is not None else (None,) * len(pieces) for v in (residual, mask)]
        done = []
        for piece, other, kept in zip(pieces, *others, strict=True):
            checks.more_than_one_value(f"{self._title()}, a part of the batch", piece, self.training)
            done.append(super()._normalize(piece, other, act, "bn", use_batch, running, momentum, count, eps, kept))
        return torch.cat(done)


class SwitchableNorm(BatchStatistics):
    """Switchable normalization: mean and variance of instance, layer and batch norm, each mixed by a softmax.

    Six logits, one number each: `mean_weight_in`, `_ln`, `_bn`, and `var_weight_...`; the authors' checkpoints, with
    `mean_weight` and `var_weight` of three numbers, load. Luo et al. 2019, arXiv:1806.10779.
    """

    takes_act = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for moment in ("mean", "var"):
            together = state_dict.pop(f"{prefix}{moment}_weight", None)
            if together is not None:
                for over, logit in zip(("in", "ln", "bn"), together, strict=True):
                    state_dict[f"{prefix}{moment}_weight_{over}"] = logit.reshape(1)
        flatten(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InstanceBatchNorm(BatchStatistics):
    """IBN-Net's layer a: instance norm of the first `ratio` of the channels, batch norm of the others.

    Weight, bias and running statistics cover all channels; the authors' checkpoints, with those of `IN` and `BN` apart,
    load. Pan, Luo, Shi & Tang 2018, arXiv:1807.09441.
    """

    takes_act = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, absent in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            second = state_dict.pop(f"{prefix}BN.{name}", None)
            first = state_dict.pop(f"{prefix}IN.{name}", None)
            if second is not None:
                missing = second.new_full((self.num_features - len(second),), absent)
                state_dict[f"{prefix}{name}"] = torch.cat([missing if first is None else first, second])
        if (count := state_dict.pop(f"{prefix}BN.num_batches_tracked", None)) is not None:
            state_dict[f"{prefix}num_batches_tracked"] = count
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class GlobalResponseNorm(Norm):
    """Global response normalization of ConvNeXt V2, with its residual.

        y = weight * x * g / (mean_c(g) + eps) + bias + x,   g = sqrt(sum_s(x^2))

    Weight and bias start at 0. Checkpoints with `gamma` and `beta` of any shape with C numbers load.
    Woo et al. 2023, arXiv:2301.00808.
    """

    takes_act = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flatten(self, state_dict, prefix, {"gamma": "weight", "beta": "bias"})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FrozenBatchNorm(RunningNorm):
    """Batch norm that stays in evaluation: weight, bias and running statistics are constants, also in training.

        y = weight * (x - running_mean) / sqrt(running_var + eps) + bias

    As `torchvision.ops.FrozenBatchNorm2d`: nothing is trained, and `num_batches_tracked` of a checkpoint is dropped.
    """

    takes_act = True
    is_local = True

    def __init__(self, norm: str, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(norm, num_features, *args, **kwargs)
        if self.running_mean is None:
            raise UsageError("FrozenBatchNorm: track_running_stats=False; it normalizes by running statistics")
        self.num_batches_tracked = None
        for name in self.learned:
            held = self._parameters.pop(name, None)
            self.register_buffer(name, None if held is None else held.data)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Evaluation, whatever the mode."""
        super().train(False)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
