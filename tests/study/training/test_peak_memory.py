from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from normlab.study.training.memory import peak_bytes, reset_peak


@pytest.mark.skipif(sys.platform != "linux", reason="the process's peak is counted on Linux only")
def test_peak_is_of_what_ran_since_the_reset() -> None:
    device = torch.device("cpu")
    large = np.ones(40_000_000, np.uint8)
    del large
    reset_peak(device)
    before = peak_bytes(device)
    assert before is not None
    block = np.ones(64_000_000, np.uint8)
    del block
    after = peak_bytes(device)
    assert after is not None
    assert 60_000_000 < after - before < 80_000_000
    reset_peak(device)
    again = peak_bytes(device)
    assert again is not None
    assert again < after - 40_000_000
