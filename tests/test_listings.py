"""The commands in the documentation's listings run as they stand, on small data and for one epoch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PAGES, ROOT, of_listings
from tests.photographs import write_folder

# what a reader has at hand
FILES = {
    "my_layers.py": """
from torch import nn

class MyBatchNorm(nn.BatchNorm2d):
    pass
""",
    "my_numpy.py": """
from normlab.scratch.course.layers import batchnorm_backward, batchnorm_forward
""",
    "package/module.py": """
from normlab.scratch.course.layers import layernorm_backward as backward, layernorm_forward as forward
""",
    "my_nets.py": """
from torch import nn

def factory():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
""",
    "my_norms.py": """
from normlab import Affine, register_norm

def grid(m, p):
    return Affine(p.weight, m.mean, p.bias)

for name in ("mean-only", "rms-plane"):
    register_norm(name)(grid)
""",
}
SMALL = ("--epochs", "1", "--seeds", "1", "--limit-train", "64", "--limit-eval", "32", "--image-size", "12")
# another machine or processor, a server, hours, or a package that few have
NOT_HERE = {
    "make",
    "serve",
    "bf16",
    "--address",
    "--compile",
    "--log",
    "timm:resnet18",
    "keras.layers:BatchNormalization",
}


def is_run(command: list[str]) -> bool:
    return not NOT_HERE & set(command)


RUN = [page for page in PAGES if any(map(is_run, of_listings(page.read_text("utf-8"))))]


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the listings name: photographs, code, two finished comparisons."""
    home = tmp_path_factory.mktemp("reader")
    for name in ("photos", "cifar10"):
        write_folder(home / name, 40)
    (home / "photos" / "sky").rename(home / "photos" / "peacock")
    shutil.copy(home / "photos" / "leaf" / "0.png", home / "new.jpg")
    for name, source in FILES.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(source)
    for run in ("runs/photos", "runs/photos-2"):
        execute(home, ["normlab", "compare", "photos", "--norms", "bn,gn", "--seeds", "1", "--out", run])
    return home


def execute(home: Path, command: list[str]) -> None:
    """Run a command in a folder; a failed run, and a crash of `check` or `lint`, is an error."""
    program, *given = command
    target = home / given.pop() if ">" in given else None
    given = [word for word in given if word != ">"]
    if program == "normlab":
        more = [*SMALL] if given[0] == "compare" else []
        for option, value in (("--model", "resnet8:width=4"), ("--norms", "bn")) if more else ():
            more += [] if option in given else [option, value]
        given = ["-m", "normlab", *given, *more]
    elif given[0].startswith("docs/"):
        given[0] = str(ROOT / given[0])
    done = subprocess.run(
        [sys.executable, *given], cwd=home, input="", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    allowed = (0, 1) if given[2:3] in (["check"], ["lint"]) else (0,)  # 1: a bug in what was given
    assert done.returncode in allowed, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    if target is not None:
        target.write_text(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_listings_of_a_page_run(page: Path, reader: Path, tmp_path: Path) -> None:
    shutil.copytree(reader, tmp_path, dirs_exist_ok=True)
    for command in filter(is_run, of_listings(page.read_text("utf-8"))):
        execute(tmp_path, command)
