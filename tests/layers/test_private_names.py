"""Layers with a torch that lacks the private names that normlab uses: the same values, gradients and statistics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import normlab

CODE = """
import collections, importlib.util, sys, torch
from torch.autograd import forward_ad
from torch.nn.modules import batchnorm, instancenorm

home = importlib.util.find_spec("normlab").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("normlab.layers._torch", home + "/layers/_torch.py")
names = importlib.util.module_from_spec(spec)
hidden = [(torch, "_C"), (torch, "ops"), (torch.utils, "_pytree")]
hidden += [(batchnorm, "_BatchNorm"), (batchnorm, "_NormBase"), (instancenorm, "_InstanceNorm")]
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

from torch.utils import _pytree
from normlab.layers import fuse
from normlab.study.training import precision
assert fuse.tree_map is names._tree_map and fuse.tree_leaves is names._tree_leaves
Pair = collections.namedtuple("Pair", "a b")
nested = {"a": [1, (2, None)], "b": Pair((3,), collections.OrderedDict(c=4))}
assert fuse.tree_leaves(nested) == _pytree.tree_leaves(nested)
doubled = fuse.tree_map(lambda v: v and 2 * v, nested)
assert doubled == _pytree.tree_map(lambda v: v and 2 * v, nested) and type(doubled["b"]) is Pair
network = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU()).eval()
torch.testing.assert_close(normlab.fuse_norms(network, x)(x), network(x))
assert precision._has_bf16(torch.device("cpu")) is False
"""


# Names were used elsewhere, too, and a torch without them could not import the layers.
def test_private_names_are_used_in_one_module() -> None:
    home, module = Path(normlab.__file__).parent, "layers/_torch.py"
    private = re.compile(r"\btorch(\.[a-z]\w*)*\._(?!_)|from torch[.\w]* import .*\b_[a-zA-Z]|from torch[.\w]*\._")
    found = [path.relative_to(home).as_posix() for path in home.rglob("*.py") if private.search(path.read_text())]
    assert found == [module]


def test_a_torch_without_private_names_will_do() -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, cwd=root)
    assert ended.returncode == 0, ended.stderr[-2000:]
