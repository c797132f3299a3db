"""Batch and instance norm for inputs of one rank: torch's own classes, and their checks of the input.

`swap_norms` puts these in the place of torch's layers: what was a `torch.nn.BatchNorm2d` is one afterwards, for
code that freezes, counts or converts layers by their class.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from normlab.errors import InputError
from normlab.kernels.activations import Activation
from normlab.layers import checks
from normlab.layers.leaves import traces
from normlab.layers.norms import BatchNorm, InstanceNorm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class _RankedBatchNorm(BatchNorm):
    """Batch norm as torch's class of the same name: any number of channels that its parameters and buffers have."""

    _check_input_dim: Any

    def _check_input(self, x: Tensor) -> None:
        self._check_input_dim(x)
        if not x.is_floating_point():
            checks.floats(self._title(), x)
        if x.shape[0] == 1 and (self.training or (self.running_mean is None and self.running_var is None)):
            checks.more_than_one_value(self._title(), x, self.training)


class BatchNorm1d(_RankedBatchNorm, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L): a `torch.nn.BatchNorm1d`. Otherwise as `BatchNorm`."""

    takes_act = True


class BatchNorm2d(_RankedBatchNorm, nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W): a `torch.nn.BatchNorm2d`. Otherwise as `BatchNorm`."""

    takes_act = True


class BatchNorm3d(_RankedBatchNorm, nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W): a `torch.nn.BatchNorm3d`. Otherwise as `BatchNorm`."""

    takes_act = True


class _RankedInstanceNorm(InstanceNorm):
    """Instance norm as torch's class of the same name, which takes a single sample without a batch too."""

    _check_input_dim: Any
    _get_no_batch_dim: Any

    def forward(
        self, input: Tensor, residual: Tensor | None = None, act: Activation | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if traces(input):
            return self._trace(input, residual, act, mask)
        self._check_input_dim(input)
        if input.dim() != self._get_no_batch_dim():
            return super().forward(input, residual, act, mask)
        added, kept = (None if v is None else v.unsqueeze(0) for v in (residual, mask))
        return super().forward(input.unsqueeze(0), added, act, kept).squeeze(0)

    def _check_input(self, x: Tensor) -> None:
        if x.shape[1] != self.num_features:
            self._check_channels(x)
        if not x.is_floating_point():
            checks.floats(self._title(), x)
        if (self.training or not self.track_running_stats) and x.shape[2] == 1:
            checks.more_than_one_position(self._title(), x, self.training, self.running_mean is not None)

    def _check_channels(self, x: Tensor) -> None:
        """As torch: another number of channels is a warning where there is no weight."""
        if self.affine:
            raise InputError(
                f"expected input's size at dim=1 to match num_features ({self.num_features}), but got: {x.shape[1]}."
            )
        warnings.warn(
            "input's size at dim=1 does not match num_features. You can silence this warning by not passing in "
            "num_features, which is not used because affine=False",
            stacklevel=6,
        )


class InstanceNorm1d(_RankedInstanceNorm, nn.InstanceNorm1d):
    """Instance normalization of (N, C, L) or (C, L): a `torch.nn.InstanceNorm1d`. Otherwise as `InstanceNorm`."""

    takes_act = True


class InstanceNorm2d(_RankedInstanceNorm, nn.InstanceNorm2d):
    """Instance normalization of (N, C, H, W) or (C, H, W): a `torch.nn.InstanceNorm2d`. Otherwise as `InstanceNorm`."""

    takes_act = True


class InstanceNorm3d(_RankedInstanceNorm, nn.InstanceNorm3d):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W): a `torch.nn.InstanceNorm3d`.

    Otherwise as `InstanceNorm`.
    """

    takes_act = True
