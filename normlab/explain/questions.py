"""Everything that a finished study's networks can be asked: maps, agreement, confusions, kinds of statistics.

The result is one JSON document (`explain.json` in the study's directory), which the report draws. Training is
never touched: networks are loaded, asked in evaluation mode, and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normlab.data import Dataset, standardize
from normlab.errors import UsageError
from normlab.explain import gradcam
from normlab.explain.batch_statistics import statistics_layers, three_ways
from normlab.explain.networks import Network, at_best_settings, pairs, trained_networks
from normlab.explain.pictures import picture
from normlab.explain.predictions import disagreement, predict, probabilities, telling_confusions
from normlab.study.training.metrics import confusion_matrix, per_class_f1

MAP_IMAGES = 48  # for agreement and deletion
MOST_TRAIN = 10_000  # training images for recomputed statistics
MOST_CLASSES = 4
MOST_DISAGREED = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Questions:
    """What to ask: galleries of which classes with how many right and wrong images, on how many test images.

    Without classes, the ones that are mistaken most often.
    """

    classes: Sequence[str] = ()
    correct: int = 2
    incorrect: int = 2
    images: int = 2000


@dataclass
class _Predictions:
    """The test images that are used, and each network's probabilities for them."""

    dataset: Dataset
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    answers: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict)

    def standardized(self, which: NDArray[np.int64]) -> Tensor:
        return _standardized(self.dataset, self.images[which])

    def classes(self, network: Network) -> NDArray[np.int64]:
        return self.answers[network.norm, network.seed].argmax(axis=1)


def explain(
    directory: Path, questions: Questions | None = None, say: Say = lambda text: None, number: int | None = None
) -> dict[str, Any]:
    """Ask the networks of the study in `directory`; returns the document that the report draws.

    Of a directory of several studies `number` says which, by default the one begun last. Raises UsageError for a class
    that the data does not have or a study that is not there, DataError where there are no trained networks.
    """
    questions = questions or Questions()
    dataset, networks, records = trained_networks(directory, number)
    unknown = [name for name in questions.classes if name not in dataset.class_names]
    if unknown:
        raise UsageError(f"--class {unknown[0]!r} is not in the data; it has {', '.join(dataset.class_names)}")
    chosen = at_best_settings(networks, records["verdict"]["settings"])
    asked = _predict_all(dataset, chosen, questions.images, say)
    return {
        "study": records.get("study"),
        "classes": list(dataset.class_names),
        "images": len(asked.labels),
        **_mistakes(asked, chosen),
        **_maps(asked, chosen, questions, say),
        "three_ways": _three_ways(dataset, networks, say),
    }


def _predict_all(dataset: Dataset, chosen: Mapping[str, list[Network]], most: int, say: Say) -> _Predictions:
    total = len(dataset.test.labels)
    indices = np.linspace(0, total - 1, min(most, total)).round().astype(np.int64)
    asked = _Predictions(
        dataset, np.array(dataset.test.images[indices]), np.array(dataset.test.labels[indices]), indices
    )
    for norm, of_norm in chosen.items():
        say(f"{norm}: {len(of_norm)} networks on {len(indices)} test images")
        for network in of_norm:
            logits = predict(network.load(dataset), asked.images, dataset.channel_mean, dataset.channel_std)
            asked.answers[norm, network.seed] = probabilities(logits)
    return asked


def _mistakes(asked: _Predictions, chosen: Mapping[str, list[Network]]) -> dict[str, Any]:
    """Confusions summed over seeds, F1 by class, the confusions that set norms apart, and the most disputed images."""
    classes = asked.dataset.num_classes
    summed = {
        norm: np.sum([confusion_matrix(asked.labels, asked.classes(n), classes) for n in of_norm], axis=0)
        for norm, of_norm in chosen.items()
    }
    everybody = [network for of_norm in chosen.values() for network in of_norm]
    split = disagreement([asked.classes(network) for network in everybody], classes)
    names = asked.dataset.class_names
    return {
        "confusion": {norm: matrix.tolist() for norm, matrix in summed.items()},
        "per_class_f1": {
            norm: [None if np.isnan(f1) else float(f1) for f1 in per_class_f1(matrix)]
            for norm, matrix in summed.items()
        },
        "telling": [asdict(confusion) for confusion in telling_confusions(summed)],
        "disagreed": [
            {
                "index": int(asked.indices[i]),
                "truth": names[asked.labels[i]],
                "picture": picture(asked.images[i]),
                "votes": _count([names[asked.classes(network)[i]] for network in everybody]),
            }
            for i in np.argsort(-split, kind="stable")[:MOST_DISAGREED]
            if split[i] > 0
        ],
    }


def _maps(asked: _Predictions, chosen: Mapping[str, list[Network]], questions: Questions, say: Say) -> dict[str, Any]:
    rows = _gallery_rows(asked, chosen, questions)
    sample = np.sort(np.random.default_rng(0).permutation(len(asked.labels))[:MAP_IMAGES])
    shown = np.array([i for _, _, of_gallery in rows for i in of_gallery], dtype=np.int64)
    tiles: dict[str, list[dict[str, Any]]] = {}
    maps: dict[tuple[str, int], NDArray[np.float32]] = {}
    faithful = []
    for norm, of_norm in chosen.items():
        say(f"{norm}: Grad-CAM")
        for place, network in enumerate(of_norm):
            model = network.load(asked.dataset)
            images, labels = asked.standardized(sample), asked.labels[sample]
            # the evidence of both networks for the same class, whatever each of them predicts
            maps[norm, network.seed] = gradcam.grad_cam(model, images, torch.as_tensor(labels))
            said = asked.classes(network)[sample]
            own = gradcam.grad_cam(model, images, torch.as_tensor(said))
            curve = gradcam.deletion(model, images, torch.as_tensor(said), own)
            faithful.append(
                {"norm": norm, "seed": network.seed, "by_map": _short(curve.by_map),
                 "at_random": _short(curve.at_random), "gain": curve.gain}
            )  # fmt: skip
            if place == 0 and len(shown):
                tiles[norm] = _tiles(asked, network, model, shown)
    return {
        "galleries": _galleries(asked, rows, tiles),
        "agreement": _agreements(chosen, maps),
        "deletion": faithful,
    }


def _gallery_rows(
    asked: _Predictions, chosen: Mapping[str, list[Network]], questions: Questions
) -> list[tuple[str, str, list[int]]]:
    """(class, "correct" or "incorrect", images): those that most norms get right or wrong, drawn by lot."""
    names = list(asked.dataset.class_names)
    wrong = np.mean([asked.classes(of_norm[0]) != asked.labels for of_norm in chosen.values()], axis=0)
    mistaken = sorted(range(len(names)), key=lambda k: -float(wrong[asked.labels == k].sum()))
    classes = [names.index(name) for name in questions.classes] or mistaken[:MOST_CLASSES]
    rng = np.random.default_rng(0)
    rows = []
    for k in classes:
        for kind, fits, most in (
            ("correct", wrong < 0.5, questions.correct),
            ("incorrect", wrong >= 0.5, questions.incorrect),
        ):
            candidates = np.flatnonzero((asked.labels == k) & fits)
            rows.append((names[k], kind, sorted(rng.permutation(candidates)[:most].tolist())))
    return rows


def _tiles(asked: _Predictions, network: Network, model: nn.Module, shown: NDArray[np.int64]) -> list[dict[str, Any]]:
    """One network's predictions for the gallery's images, and where it looks for them."""
    said = asked.classes(network)[shown]
    small = gradcam.grad_cam(model, asked.standardized(shown), torch.as_tensor(said))
    large = gradcam.enlarged(small, asked.dataset.size)
    sure = asked.answers[network.norm, network.seed][shown].max(axis=1)
    return [
        {
            "norm": network.norm,
            "predicted": asked.dataset.class_names[said[i]],
            "confidence": round(float(sure[i]), 4),
            "picture": picture(asked.images[image], large[i]),
        }
        for i, image in enumerate(shown)
    ]


def _galleries(
    asked: _Predictions, rows: Sequence[tuple[str, str, list[int]]], tiles: Mapping[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    galleries, place = [], 0
    for name, kind, of_gallery in rows:
        images = []
        for i in of_gallery:
            facts = {"index": int(asked.indices[i]), "truth": name, "picture": picture(asked.images[i])}
            images.append({**facts, "maps": [of_norm[place] for of_norm in tiles.values()]})
            place += 1
        if images:
            galleries.append({"class": name, "kind": kind, "images": images})
    return galleries


def _agreements(
    chosen: Mapping[str, list[Network]], maps: Mapping[tuple[str, int], NDArray[np.float32]]
) -> list[dict[str, Any]]:
    """The mean rank correlation of maps for every pair of norms, and of a norm with itself at other seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for a, b in pairs(chosen):
        correlations = gradcam.agreement(maps[a.norm, a.seed], maps[b.norm, b.seed])
        finite = correlations[np.isfinite(correlations)]
        if len(finite):
            found.setdefault((a.norm, b.norm), []).append(float(finite.mean()))
    return [
        {"a": a, "b": b, "mean": float(np.mean(values)), "values": _short(values)} for (a, b), values in found.items()
    ]


def _three_ways(dataset: Dataset, networks: Sequence[Network], say: Say) -> list[dict[str, Any]]:
    """Noise and mismatch of every network that keeps running statistics, at the batch size it was trained with."""
    found = []
    images = _standardized(dataset, np.array(dataset.val.images[:2000]))
    labels = torch.as_tensor(np.array(dataset.val.labels[:2000]))
    which = (
        np.linspace(0, len(dataset.train.labels) - 1, min(MOST_TRAIN, len(dataset.train.labels))).round().astype(int)
    )

    def training() -> list[Tensor]:
        blocks = np.array_split(which, max(1, len(which) // 250))
        return [_standardized(dataset, np.array(dataset.train.images[block])) for block in blocks]

    for network in networks:
        model = network.load(dataset)
        if statistics_layers(model) and network.cell.batch_size >= 2:
            say(f"{network.cell.label()}: three kinds of statistics")
            ways = three_ways(model, training, images, labels, network.cell.batch_size)
            found.append({"norm": network.norm, "seed": network.seed, **asdict(ways)})
    return found


def _standardized(dataset: Dataset, images: NDArray[np.uint8]) -> Tensor:
    mean, std = torch.as_tensor(dataset.channel_mean), torch.as_tensor(dataset.channel_std)
    return standardize(torch.from_numpy(images), mean, std)


def _count(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _short(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in values]
