"""A trained network: its weights, and all that is to be known to use them again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from normlab.errors import DataError, UsageError, files
from normlab.models import build_model
from normlab.models.names import is_code
from normlab.study.keeping.digests import digest_of
from normlab.study.trained.card import card
from normlab.study.trained.export import export_onnx
from normlab.study.trained.facts import Facts
from normlab.study.trained.predictor import Predictor
from normlab.study.training.cell import memory_format

KEY, FORMAT = "normlab", 1  # the entry of the header that holds the facts, and the version of what stands there
DIGEST = "digest"  # the entry that holds the digest of the weights and of the facts


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network. `facts` says what it is; `model()` makes it, `save` writes it into one file.

    `factory` is the function that makes the network where it is one of the user's own and at hand: a network that was
    read from a file has none, since loading executes nothing.
    """

    facts: Facts
    weights: Mapping[str, Tensor]
    factory: Callable[..., Any] | str | None = None

    @property
    def norm(self) -> str:
        """The norm that it was trained with, as in "gn:groups=8"."""
        return self.facts.norm

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.facts.class_names

    @property
    def metrics(self) -> Mapping[str, float]:
        """Validation and test figures by name, as "test_accuracy"."""
        return self.facts.metrics

    def model(self, model: Callable[..., Any] | nn.Module | str | None = None) -> Predictor:
        """The network with its preprocessing, in evaluation mode.

        A network of your own that comes out of a file needs `model`: the function that made it, its name
        ("package.module:factory"), or the network itself with the same parameters. Raises UsageError without, and
        DataError if the weights do not fit.
        """
        facts = self.facts
        net = self._build_loaded(self.factory if model is None else model)
        return Predictor(
            net,
            class_names=facts.class_names,
            image_shape=facts.image_shape,
            mean=facts.mean,
            std=facts.std,
            levels=facts.levels,
            memory_format=memory_format(net, torch.device("cpu"), "float32"),
        )

    def _build_loaded(self, model: Callable[..., Any] | nn.Module | str | None) -> nn.Module:
        """The network with the weights in it; one that is handed over has its norms replaced, if it must."""
        if isinstance(model, nn.Module):
            try:
                return self._load_into(self._net(model))
            except (DataError, UsageError):  # it has this norm already
                return self._load_into(copy.deepcopy(model))
        return self._load_into(self._net(model))

    def _load_into(self, net: nn.Module) -> nn.Module:
        """The network with the weights in it. Raises DataError if they do not fit."""
        try:
            net.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise DataError(f"the weights of {self} do not fit the network: {error}") from error
        return net

    def _net(self, model: Callable[..., Any] | nn.Module | str | None) -> nn.Module:
        facts = self.facts
        if model is None and is_code(facts.model):
            raise UsageError(
                f"{self} was made by {facts.model!r}, which is code, and loading executes none; "
                "give the function or the network: model=..."
            )
        channels, height, width = facts.image_shape
        return build_model(
            facts.model if model is None else model,
            facts.norm,
            num_classes=len(facts.class_names),
            in_channels=channels,
            image_size=(height, width),
            dropout=float(facts.settings.get("dropout") or 0.0),
        )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with everything; returns its path. `normlab.load` reads it.

        The tensors have the names of the network's `state_dict`; the header has the facts as JSON.
        """
        path = _check_ending(path, ".safetensors")
        text = json.dumps({"format": FORMAT, **asdict(self.facts)})
        content = {name: value.detach().cpu().contiguous() for name, value in self.weights.items()}
        return _write(path, save(content, {KEY: text, DIGEST: digest_of(content, text)}))

    def export_onnx(self, path: str | Path, model: Callable[..., Any] | nn.Module | str | None = None) -> Path:
        """Write an ONNX file, preprocessing included; returns its path.

        Its input `images` is uint8 (N, C, H, W) for any N, its output `logits` float32 (N, classes). Needs the extra
        `onnx`. `model` as in `model()`.
        """
        path = _check_ending(path, ".onnx")
        return _write(path, export_onnx(self.model(model), asdict(self.facts)))

    def card(self, path: str | Path | None = None) -> str:
        """A model card in Markdown, written to `path` if there is one: what it is, how good, how to load it."""
        text = card(self.facts)
        if path is not None:
            _write(Path(path), text.encode())
        return text

    def __repr__(self) -> str:
        facts = self.facts
        scored = f", test accuracy {facts.metrics['test_accuracy']:.4f}" if "test_accuracy" in facts.metrics else ""
        return f"Trained({facts.model} with {facts.norm}, {len(facts.class_names)} classes{scored})"


def load(path: str | Path) -> Trained:
    """The trained network in a file that `Trained.save` wrote. Nothing in it is executed.

    Raises UsageError if there is no such file, DataError if it is none of these.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"load: there is no file {str(path)!r}; expected one that `save` wrote, as photos.safetensors")
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            text = said.get(KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{str(path)!r} is no safetensors file: {error}") from error
    if text is None:
        raise DataError(
            f"{str(path)!r} has weights and nothing else; expected a file that `Trained.save` or `normlab best` wrote"
        )
    if DIGEST in said and said[DIGEST] != digest_of(weights, text):  # which files of older versions have not
        raise DataError(f"{str(path)!r} is damaged: its digest does not match; write it again with `normlab best`")
    where = f"the header of {str(path)!r} is not what `save` writes"
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: it is no JSON ({error})") from error
    found = given.pop("format", None) if isinstance(given, dict) else None
    if isinstance(given, dict) and (type(found) is not int or found != FORMAT):
        raise DataError(f"{str(path)!r} has format {found!r}, this version reads {FORMAT}; update normlab")
    try:
        return Trained(Facts.from_dict(given), weights)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check_ending(path: str | Path, ending: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix.lower() != ending:
        raise UsageError(f"{str(path)!r}: expected a name that ends in {ending}")
    return path


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data)
    return path
