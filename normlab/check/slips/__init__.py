"""The library of wrong formulas: what people actually write, each with its name, in words, and the right one.

A slip replaces one stage of the oracle (oracle.py) with the formula that somebody wrote. Its prediction is
compared with what the layer really returned, so that a failing check can say *why* it fails. Two slips with the
same prediction everywhere would be one mistake with two names.
"""

from normlab.check.slips.base import ForwardSlip, GradientSlip, Slip, StateSlip, Update
from normlab.check.slips.forward import FORWARD
from normlab.check.slips.gradient import GRADIENT
from normlab.check.slips.running import STATE

__all__ = ["FORWARD", "GRADIENT", "STATE", "ForwardSlip", "GradientSlip", "Slip", "StateSlip", "Update"]
