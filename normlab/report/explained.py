"""The sections made of what `normlab explain` found: galleries, agreement, faithfulness, confusions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from normlab.report.figures import inside
from normlab.report.figures.parts import MOST_NORMS, Figure, Table, percent
from normlab.report.layout import Gallery, Group, Section, Tile
from normlab.report.theme import Styles

_PICTURE = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/=]+")


def explained_sections(found: Mapping[str, Any], styles: Styles) -> list[Section]:
    """Sections for the parts that are there."""
    makers = (_maps, _mistakes, _batch_statistics)
    return [section for make in makers if (section := make(found, styles))]


def _maps(found: Mapping[str, Any], styles: Styles) -> Section | None:
    galleries = [_gallery(gallery) for gallery in found.get("galleries") or []]
    figures: list[Figure] = []
    if found.get("agreement"):
        figures.append(inside.agreement_matrix(found["agreement"]))
    if found.get("deletion"):
        figures.append(inside.deletion_curves(found["deletion"], styles))
    if not galleries and not figures:
        return None
    text = [
        "Grad-CAM: bright is where the evidence for the predicted class lies. The same test images across all norms, "
        "with each network's answer and its confidence.",
    ]
    if figures:
        text.append(
            "Two norms that agree less than two seeds of one norm do look elsewhere; the diagonal of the matrix is "
            "that yardstick. A map is worth reading if removing what it marks hurts more than removing at random."
        )
    return Section(
        "maps", "What they look at", text, groups=[Group("", figures)] if figures else [], galleries=galleries
    )


def _gallery(gallery: Mapping[str, Any]) -> Gallery:
    rows = []
    for image in gallery["images"]:
        tiles = [
            Tile(
                _picture(image["picture"]),
                f"test image {image['index']}",
                [f"{image['truth']}", f"image {image['index']}"],
            )
        ]
        for answer in image["maps"]:
            right = answer["predicted"] == image["truth"]
            said = f"{answer['predicted']} {percent(answer['confidence'], 0)}\u00a0%"
            alt = f"{answer['norm']} looks here, and says {said}, which is {'right' if right else 'wrong'}"
            tiles.append(Tile(_picture(answer["picture"]), alt, [answer["norm"], said], "right" if right else "wrong"))
        rows.append(tiles)
    return Gallery(f"{gallery['class']}, {gallery['kind']}", rows)


def _picture(address: str) -> str:
    """The picture if it is data within the page; nothing that could be fetched."""
    return address if _PICTURE.fullmatch(address) else "data:,"


def _mistakes(found: Mapping[str, Any], styles: Styles) -> Section | None:
    classes = [str(name) for name in found.get("classes") or []]
    matrices = list((found.get("confusion") or {}).items())[:MOST_NORMS]
    if not matrices:
        return None
    figures = [inside.confusion(m, classes, norm, f"confusion-{i}") for i, (norm, m) in enumerate(matrices)]
    tables = [_f1(found, classes)] if found.get("per_class_f1") else []
    telling = [
        [f"{classes[c['truth']]} called {classes[c['called']]}", f"{c['norm']} {percent(c['rate'])} %",
         f"{c['other']} {percent(c['other_rate'])} %"]
        for c in found.get("telling") or []
    ]  # fmt: skip
    if telling:
        tables.append(Table(["mistake", "made most by", "made least by"], telling))
    galleries = []
    if found.get("disagreed"):
        rows = [
            [Tile(_picture(d["picture"]), f"test image {d['index']}", [d["truth"], *_format_votes(d["votes"])])]
            for d in found["disagreed"]
        ]
        galleries.append(Gallery("Images the networks disagree on most", [[tile for row in rows for tile in row]]))
    text = [
        "Test images of all seeds, percent of each true class. The tables give F1 by class and the mistakes that one "
        "norm makes and another does not."
    ]
    return Section("confusion", "What is mistaken for what", text, tables, [Group("", figures)], galleries=galleries)


def _f1(found: Mapping[str, Any], classes: Sequence[str]) -> Table:
    """F1 of every class by norm, the classes on which norms differ most first."""
    scores: Mapping[str, Sequence[Any]] = found["per_class_f1"]
    norms = list(scores)[:MOST_NORMS]

    def spread(k: int) -> float:
        known = [scores[n][k] for n in norms if scores[n][k] is not None]
        return max(known) - min(known) if known else 0.0

    def text(value: float | None) -> str:
        return "–" if value is None else percent(value)

    order = sorted(range(len(classes)), key=spread, reverse=True)[: inside.MOST_CLASSES]
    return Table(["F1 of class (%)", *norms], [[classes[k], *[text(scores[n][k]) for n in norms]] for k in order])


def _format_votes(votes: Mapping[str, int]) -> list[str]:
    return [f"{name} × {count}" for name, count in sorted(votes.items(), key=lambda item: -item[1])[:3]]


def _batch_statistics(found: Mapping[str, Any], styles: Styles) -> Section | None:
    records = found.get("three_ways") or []
    if not records:
        return None
    places = dict.fromkeys((r["norm"], r["batch_size"]) for r in records)
    rows = []
    for norm, size in places:
        of_place = [r for r in records if (r["norm"], r["batch_size"]) == (norm, size)]
        losses = {k: [r["loss"][k] for r in of_place] for k in ("running", "recomputed", "batch")}
        noise = [b - r for b, r in zip(losses["batch"], losses["recomputed"], strict=True)]
        mismatch = [a - r for a, r in zip(losses["running"], losses["recomputed"], strict=True)]
        shown = [losses["running"], losses["recomputed"], losses["batch"], mismatch, noise]
        rows.append([norm, str(size), *map(inside.mean_and_seeds, shown)])
    header = ["norm", "batch size", "running", "recomputed", "batch's own", "mismatch", "noise"]
    text = [
        "Validation loss of the same trained networks under three kinds of statistics: the running averages kept "
        "in training, the same recomputed over the training set, and each batch's own. Mismatch, running minus "
        "recomputed, is what inexact averages cost; noise, batch's own minus recomputed, is what few samples cost.",
    ]
    return Section("statistics", "Why a batch size hurts", text, [Table(header, rows)])
