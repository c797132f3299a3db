"""Layers with a torch that lacks the private names that normlab uses: the same values, gradients and statistics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import importlib.util, sys, torch
from torch.autograd import forward_ad
from torch.nn.modules import batchnorm, instancenorm

home = importlib.util.find_spec("normlab").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("normlab.layers._torch", home + "/layers/_torch.py")
names = importlib.util.module_from_spec(spec)
hidden = [(torch, "_C"), (batchnorm, "_BatchNorm"), (batchnorm, "_NormBase"), (instancenorm, "_InstanceNorm")]
kept = [(module, name, getattr(module, name)) for module, name in hidden]
for module, name in hidden:
    delattr(module, name)
spec.loader.exec_module(names)
for module, name, value in kept:  # which torch itself goes on with
    setattr(module, name, value)
names._name = lambda path, otherwise: otherwise
sys.modules[spec.name] = names

import normlab
from normlab.layers import operators
assert operators._torch is names
assert names.count_change is names._add_zero and names.dispatch_modes() == 1 and names.graph_task() == -1
assert names.BatchNormBase is batchnorm._BatchNorm and names.NormBase is batchnorm._NormBase
assert names.InstanceNormBase is instancenorm._InstanceNorm
x = torch.randn(4, 6, 5, 5)
theirs = torch.nn.BatchNorm2d(6)
layer = normlab.make_norm("bn", 6)
a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
(layer(a) ** 3).sum().backward()
(theirs(b) ** 3).sum().backward()
torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
torch.testing.assert_close(layer.running_var, theirs.running_var)
torch.testing.assert_close(layer.running_mean, theirs.running_mean)
torch.testing.assert_close(torch.jit.trace(layer.eval(), x)(x), theirs.eval()(x))
assert names.forward_mode() is False
"""


def test_a_torch_without_private_names_will_do() -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, cwd=root)
    assert ended.returncode == 0, ended.stderr[-2000:]
