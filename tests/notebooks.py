"""Notebooks, run from beginning to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], 4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print([o for c in notebook.cells for o in c.get("outputs", ())])
"""


def run_notebook(page: Path) -> str:
    """All outputs of its cells; skips without the libraries that run notebooks."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(page)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
