"""Errors that a user can cause, each with the command line's exit code, and the message about a missing package."""

from __future__ import annotations

import importlib.util

# extra -> the modules that it installs; the core needs torch, NumPy and Numba alone
EXTRAS = {
    "study": ("scipy", "pydantic", "typer", "rich", "safetensors", "PIL", "optuna", "yaml"),
    "report": ("altair", "vl_convert", "jinja2"),
    "parquet": ("pyarrow",),
    "serve": ("starlette", "uvicorn"),
    "ray": ("ray", "fsspec"),
    "onnx": ("onnx", "onnxscript"),
    "pandas": ("pandas",),
    "hf": ("datasets",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "lightning": ("pytorch_lightning",),
    "transformers": ("transformers", "accelerate"),
    "timm": ("timm", "torchvision"),
    "torchvision": ("torchvision",),
}


class NormlabError(Exception):
    """Something a user can put right; the message names what came, what was expected, and the fix."""

    exit_code = 3


class UsageError(NormlabError, ValueError):
    """An argument is wrong: an unknown name, a path that does not exist, a contradiction (exit code 2)."""

    exit_code = 2


class DataError(NormlabError, ValueError):
    """The data cannot be used: unreadable, of the wrong shape, hostile, or out of disk (exit code 6)."""

    exit_code = 6


def require(what: str, extra: str, *modules: str) -> None:
    """Raise UsageError, naming `extra`, if `what` cannot run: if one of `modules` is not installed.

    Without `modules` every module of the extra is needed. Nothing is imported.
    """
    missing = [name for name in modules or EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{what} needs {', '.join(missing)}: pip install 'normlab[{extra}]'")


class InputError(NormlabError, ValueError, RuntimeError):
    """A layer is not defined on this input, parameter or buffer.

    torch raises ValueError for some of these and RuntimeError for others; this is both, so whoever catches torch's
    error catches this one.
    """


class DtypeError(InputError, NotImplementedError):
    """The layer does not compute with this dtype; torch raises NotImplementedError."""
