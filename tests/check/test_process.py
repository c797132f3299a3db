"""What a target changes of the process is put back and reported; no check blames the layer for it."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normlab.check.contain import check_contained
from normlab.check.process import SideEffects

TARGET = """
import random, warnings
import numpy as np
import torch
{line}

def layernorm_forward(x, gamma, beta, ln_param):
    xc = x - x.mean(1, keepdims=True)
    xhat = xc / np.sqrt((xc**2).mean(1, keepdims=True) + ln_param.get("eps", 1e-5))
    return gamma * xhat + beta, None
"""


# of a NumPy pair, torch is imported by what the target imports: its settings were then nobody's
def test_settings_are_those_of_torch_at_its_first_import(tmp_path: Path) -> None:
    (tmp_path / "helps.py").write_text("import torch\ntorch.set_grad_enabled(False)\n")
    path = tmp_path / "target.py"
    path.write_text("from helps import *\n" + TARGET.replace("import torch\n{line}\n", ""))
    report = check_contained(f"{path}:layernorm_forward", "layer", quick=True)
    assert report.ok, report.text()
    (said,) = (f for f in report.findings if f.check == "target.side-effects")
    assert "torch.set_grad_enabled" in said.message


# gradients switched off at import made six bugs of a right layer
def test_gradients_switched_off_at_import_are_no_fault_of_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "target.py"
    lines = "torch.set_grad_enabled(False); torch.manual_seed(3); np.seterr(all='raise')"
    path.write_text(f"import numpy as np, torch\n{lines}\nclass MyNorm(torch.nn.LayerNorm):\n    pass\n")
    report = check_contained(f"{path}:MyNorm", "layer", quick=True)
    assert report.ok, report.text()
    (said,) = (f for f in report.findings if f.check == "target.side-effects")
    for name in ("torch.set_grad_enabled", "torch.manual_seed", "np.seterr"):
        assert name in said.message


def settings() -> tuple[Any, ...]:
    """Everything that a target may have changed, to be compared."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    drawing = random.getstate(), (name, keys.tolist(), *rest), torch.random.get_rng_state().tolist()
    torchs = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    return *torchs, np.geterr(), list(warnings.filters), *drawing


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("torch.set_grad_enabled(False)", "torch.set_grad_enabled"),
        ("torch.set_default_dtype(torch.float64)", "torch.set_default_dtype"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch.set_num_threads"),
        ("torch.manual_seed(7)", "torch.manual_seed"),
        ("np.random.seed(7)", "np.random.seed"),
        ("random.seed(7)", "random.seed"),
        ("np.seterr(all='raise')", "np.seterr"),
        ("warnings.filterwarnings('ignore')", "the filters of warnings"),
    ],
)
def test_every_setting_is_put_back(line: str, name: str) -> None:
    effects = SideEffects()
    before = settings()
    with effects.watched(seeds=True):
        exec(TARGET.format(line=line), {})
    assert settings() == before
    assert effects.changed
    assert name in effects.changed[0]
    assert len(effects.changed) == 1


def test_nothing_is_said_of_a_target_that_changes_nothing() -> None:
    effects = SideEffects()
    with effects.watched(seeds=True):
        exec(TARGET.format(line=""), {})
    assert effects.finding() is None
