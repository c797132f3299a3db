"""The newcomer's way in the README runs: from a folder of photographs to a prediction, twice."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.photographs import CLASSES

ROOT = Path(__file__).parents[1]
TITLE = "From a folder of photographs to a prediction"


def listings() -> list[tuple[str, str]]:
    """(language, code) of that section's listings."""
    _, _, rest = (ROOT / "README.md").read_text().partition(f"## {TITLE}\n")
    return re.findall(r"^```(\w+)\n(.*?)^```$", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_from_a_folder_to_a_prediction(photographs: Path, tmp_path: Path) -> None:
    (_, script), (_, commands) = listings()
    assert len(script.splitlines()) <= 11
    shutil.copytree(photographs, tmp_path / "photos")
    shutil.copy(photographs / "sky" / "0.png", tmp_path / "new.jpg")
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run("script.py")
    assert any(name in first.splitlines()[-1] for name in CLASSES)
    said = [run("-m", "normlab", *shlex.split(line)[1:]) for line in commands.splitlines()]
    assert first.splitlines()[0] in " ".join(said[0].split()), "the verdict of the same study"
    assert any(name in said[1] for name in CLASSES)
    assert "photos.safetensors" in said[2]
