"""Statistics per position: the kernels and the calls of `normlab.kernels.cpu.positions`."""

from normlab.kernels.cpu.positions import KEPT_NUMBERS, backward, forward, kept_dtype, parameter_dtype, restored

__all__ = ["KEPT_NUMBERS", "backward", "forward", "kept_dtype", "parameter_dtype", "restored"]
