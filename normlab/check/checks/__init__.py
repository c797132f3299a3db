"""The checks, one module per group; importing this package enrols them all, in the order that they run."""

from normlab.check.checks import gradients, layouts, numerics, speed, state, state_torch, values, values_options

__all__ = ["gradients", "layouts", "numerics", "speed", "state", "state_torch", "values", "values_options"]
