"""The kernels of a wheel run without Numba, and are all that layers need in float32."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch

from normlab.kernels import stages
from normlab.kernels.activations import NAMES, activation
from normlab.kernels.cpu import planes
from normlab.kernels.layout import Layout
from normlab.kernels.runtime.needed import Need
from normlab.kernels.runtime.objects import SETS, processor
from normlab.norms.family import describe, norm_names, resolve_options
from wheels.objects import build, kernels

ROOT = Path(__file__).parents[2]
SET = "x86-64-v3"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="a wheel has compiled kernels for Linux on x86-64, and a C compiler links them",
)


@pytest.fixture(scope="module")
def layer_norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels of a LayerNorm over rows."""
    folder = tmp_path_factory.mktemp("objects")
    module = "normlab.kernels.cpu._position_work"
    directions = [Need(module, "direction", (backward, 4)) for backward in (False, True)]
    build(folder, [SET], [*directions, *(Need(module, "work", ("float32", True, b)) for b in (False, True))])
    return folder


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them raises
import torch
from torch.nn.functional import layer_norm
from normlab.layers import LayerNorm

x = torch.randn(64, 33, requires_grad=True)
layer, g = LayerNorm(33), torch.randn(64, 33)
with torch.no_grad():
    layer.weight.uniform_(), layer.bias.uniform_()
found = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], g)
wanted = torch.autograd.grad(layer_norm(x, (33,), layer.weight, layer.bias), [x, layer.weight, layer.bias], g)
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
try:
    layer.double()(x.double())
except ImportError:
    print("float64 is compiled")
"""


@pytest.mark.skipif(not SETS[SET] <= processor(), reason=f"this processor has not all of {SET}")
def test_forward_and_backward_run_where_nothing_can_be_compiled(layer_norm: Path) -> None:
    environment = {**os.environ, "NORMLAB_OBJECTS": str(layer_norm)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "float64 is compiled\n", done.stderr


def test_a_library_needs_no_other(layer_norm: Path) -> None:
    """Nor a certain version of the C library: the wheel's platform says so."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf reads what a library needs")
    command = ["readelf", "--dynamic", "--version-info", str(layer_norm / f"{SET}.so")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "(SYMTAB)" in said
    assert "NEEDED" not in said
    assert "GLIBC" not in said
    assert "TEXTREL" not in said


def test_the_wheel_takes_them_along(layer_norm: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install 'normlab[test]'")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    environment = {**os.environ, "NORMLAB_WHEEL": str(layer_norm)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"normlab/kernels/objects/objects.json", f"normlab/kernels/objects/{SET}.so"} <= set(names)
    assert "normlab/kernels/cpu/_kernels.py" in names, "what is compiled where none of them fits"


def test_all_that_layers_need_in_float32_is_in_it() -> None:
    there = set(kernels())
    assert len(there) > 50
    needs = set()
    for norm, samples, form, training in product(norm_names(), (2, planes.MANY), "fl", (True, False)):
        entry = describe(norm)
        if entry.grid is None:
            continue
        x = torch.ones(samples, 4, 3, 3)
        layout, x = Layout.dense_of(x if form == "f" else x.to(memory_format=torch.channels_last), entry.per_channel)
        options = tuple(resolve_options(entry, 4, {}).items())
        recipe = stages.recipe(norm, options, tuple(entry.parameters), training, not training)
        for act in (None, *map(activation, NAMES)):
            plan = planes._plan(recipe, layout, x, act)
            for backward, adds in product((False, True), (False, True)):
                needs |= set(planes._needs(plan, backward, adds).values())
    assert len(needs) > 30
    assert needs <= there, needs - there
