"""What the core does without any extra, and what a command says whose extra is not installed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from normlab.cli import COMMANDS
from normlab.errors import EXTRAS, UsageError, require
from normlab.study.running.exporting import TRACKERS

PACKAGE = Path(__file__).parents[1] / "normlab"
CORE = {"torch", "numpy", "numba", "llvmlite"}  # llvmlite is a part of Numba
# folders that are entered by commands of these extras alone, where a module may import them when it is loaded
ROOMS = {
    "cli": {"study"},
    "study": {"study"},
    "explain": {"study"},
    "trained": {"study"},
    "report": {"study", "report"},
    "reproduce": {"study", "report"},
}
BROUGHT = {
    "triton": "torch, or not there: the GPU's backend says so",
    "markupsafe": "jinja2",
    "pytest": "whoever loads the plug-in of pytest",
}


def imports(node: ast.AST, at_top: bool = True) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported as soon as the file is) of the absolute imports in a file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module, at_top
        yield from imports(child, at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def faults(path: Path, source: str) -> list[str]:
    """What a file (its path below normlab/) imports that no extra installs, or that it should import later."""
    found = []
    extra_of = {module: extra for extra, modules in EXTRAS.items() for module in modules}
    for module, at_top in imports(ast.parse(source)):
        root = module.partition(".")[0]
        if root in CORE | {"normlab"} | BROUGHT.keys() or root in sys.stdlib_module_names:
            continue
        if root not in extra_of:
            found.append(f"{path} imports {module}, which no extra installs")
        elif at_top and extra_of[root] not in ROOMS.get(path.parts[0], ()):
            found.append(f"{path} imports {module} when it is loaded; import it in the function that needs it")
    return found


def test_every_import_is_in_an_extra_and_late() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert [fault for f in files for fault in faults(f.relative_to(PACKAGE), f.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("layers/norms.py", "import scipy", "when it is loaded"),
        ("layers/norms.py", "if True:\n    from scipy import stats", "when it is loaded"),
        ("data/_npz.py", "import pyarrow.parquet as pq", "when it is loaded"),
        ("layers/norms.py", "def f():\n    import einops", "no extra"),
    ],
)
def test_an_import_in_the_wrong_place_is_found(path: str, source: str, word: str) -> None:
    (fault,) = faults(Path(path), source)
    assert word in fault
    assert faults(Path("layers/norms.py"), "def f():\n    import scipy") == []


def without(modules: Sequence[str], program: str, *, directory: Path) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own in which these modules cannot be imported."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({list(modules)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", hidden + program],
        cwd=directory,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "", "HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


CALLS = """
import contextlib, io, json
from normlab.__main__ import main
found = []
for words in {calls!r}:
    sys.argv[1:] = words
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    found.append((code, err.getvalue()))
print(json.dumps(found))
"""

ARGUMENTS = {
    "compare": ["digits"],
    "plan": ["digits"],
    "check": ["normlab.layers:BatchNorm", "--certificate", "x.svg"],
    "bench": ["--chart", "x.svg"],
    "lint": ["normlab.layers:BatchNorm"],
    "reproduce": ["--list"],
    "predict": [".", "a.jpg"],
}
NO_COMMAND = {"pandas", "lightning", "transformers"}  # what a method or a callback needs
# a command that needs an extra for one of its options only
SOMETIMES = [
    ("report", ["compare", "digits"]),
    ("report", ["check", "normlab.layers:BatchNorm", "--certificate", "x.svg"]),
    ("report", ["bench", "--chart", "x.svg"]),
    ("parquet", ["plan", "images.parquet"]),
    ("parquet", ["export", ".", "--format", "parquet"]),
    ("ray", ["compare", "digits", "--limit-train", "20", "--backend", "ray"]),
    ("ray", ["compare", "digits", "--limit-train", "20", "--checkpoints", "memory://x"]),
    ("study", ["plan", "--config", "a.yaml"]),
    ("timm", ["plan", "digits", "--model", "timm:resnet18"]),
    ("torchvision", ["plan", "digits", "--model", "torchvision:resnet18"]),
    ("hf", ["plan", "hf:owner/name"]),
    ("onnx", ["best", ".", "--export", "a.onnx"]),
    *((tracker, ["compare", "digits", "--log", tracker]) for tracker in TRACKERS),
]


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - NO_COMMAND))
def test_a_command_says_which_extra_is_missing(extra: str, tmp_path: Path) -> None:
    """In one line, with exit code 2 and no traceback."""
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.yaml").write_text("data: digits")
    calls = [
        *([name, *ARGUMENTS.get(name, ["."])] for name, (_, _, *needed) in COMMANDS.items() if extra in needed),
        *(words for needed, words in SOMETIMES if needed == extra),
    ]
    assert calls
    # the command line itself cannot do without these; the test after this one hides them
    hidden = set(EXTRAS[extra]) - {"typer", "rich", "pydantic"}
    done = without(sorted(hidden), CALLS.format(calls=calls), directory=tmp_path)
    assert done.returncode == 0, done.stderr
    for words, (code, said) in zip(calls, json.loads(done.stdout), strict=True):
        assert code == 2, (words, said)
        assert said.count("\n") == 1, (words, said)
        assert f"pip install 'normlab[{extra}]'" in said, (words, said)


def test_the_program_without_its_command_line(tmp_path: Path) -> None:
    for modules in (EXTRAS["study"], ["typer"], ["pydantic"]):
        done = without(modules, "from normlab.__main__ import main\nmain()", directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"normlab needs {modules[0] if len(modules) == 1 else 'typer'}")
        assert done.stderr.endswith(": pip install 'normlab[study]'\n")
        assert done.stderr.count("\n") == 1


def test_a_module_that_is_missed_late_is_told_too(tmp_path: Path) -> None:
    """A library's own import of it, for one."""
    program = "from normlab import cli\ncli._load = lambda name: __import__('scipy')\ncli.main(['lint', 'x'])"
    done = without(["scipy"], program, directory=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: this needs scipy: pip install 'normlab[study]'\n")


def test_require() -> None:
    require("this", "study", "scipy")
    with pytest.raises(UsageError, match=r"^this needs not_there, nor_this: pip install 'normlab\[study\]'$"):
        require("this", "study", "scipy", "not_there", "nor_this")


CORE_WORKS = """
import torch
import normlab, normlab.models, normlab.data, normlab.scratch, normlab.check
from torch import nn
from normlab.layers import swap_norms

for name in normlab.norm_names():
    entry = normlab.norms.describe(name)
    if entry.given is not None:
        continue
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    options = {} if entry.grid is None else {"act": "gelu"}
    normlab.make_norm(name + ":groups=3" if name == "gn" else name, 6, **options)(x).sum().backward()
    assert x.grad.isfinite().all(), name
with normlab.use_backend("reference"):
    for act in ("relu", "silu", "gelu"):
        normlab.make_norm("bn", 6, act=act)(torch.randn(4, 6, 5, 5)).sum().backward()
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.LayerNorm(6))
x = torch.randn(2, 3, 8, 8)
before = model.eval()(x)
after = swap_norms(model)(x)
torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
assert len(normlab.data.load("digits").train) == 1259
print("works")
"""


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    """Every layer, `swap_norms`, the embedded data: torch, NumPy and Numba do."""
    hidden = sorted({module for modules in EXTRAS.values() for module in modules} | {"sklearn", "captum", "matplotlib"})
    done = without(hidden, CORE_WORKS, directory=tmp_path)
    assert done.stdout == "works\n", done.stderr
