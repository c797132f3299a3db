"""Where networks with six norms look: Grad-CAM on images that they get right and on ones that they get wrong."""

from __future__ import annotations

from typing import Any

from normlab.explain.questions import Questions, explain
from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.comparisons import effort, scale_of, trained
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments import photographs
from normlab.reproduce.finding import Finding
from normlab.reproduce.galleries import draw

# one of the settings of `photographs`: the experiment that runs second does not train it again
SPEC = {**photographs.SPEC, "optimizers": "adam", "lrs": "0.001"}
SMALL = photographs.SMALL
QUICK = {"image_size": 16, "limit_train": 128, "limit_eval": 128, "epochs": 4, "batch_sizes": 8, "lrs": "0.01"}
SHOWN = 2  # images of each class, right ones and wrong ones each


def run(setting: Setting) -> Result:
    with trained("photographs", setting, SPEC, QUICK) as (found, directory):
        answers = explain(directory, Questions(correct=SHOWN, incorrect=SHOWN), setting.say)
    faithful = [{"norm": d["norm"], "seed": d["seed"], "area": d["gain"]} for d in answers["deletion"]]
    pictures = draw(answers["galleries"])
    return Result(
        [_right_and_wrong(answers["galleries"]), *_faithful(faithful)],
        {
            "network": str(found.cells[0]["model"]),
            "training": f"Adam {found.cells[0]['lr']:g}, constant; {found.length(SPEC)}, "
            f"batch {found.cells[0]['batch_size']}",
            "data": found.describe_data(setting),
            "trainings": effort(found),
            "maps": "Grad-CAM of the network's own answer, at the last layer whose output has positions; of every norm "
            "the first seed is shown",
        },
        charts={
            "deletion": bars(
                faithful, "area", "norm", title="Area between removing at random and removing by the map", zero=True
            )
        },
        # names of classes are the user's, and no names of files
        pictures={f"gallery-{place}": png for place, png in enumerate(pictures.values(), start=1)},
        captions={
            **{
                f"gallery-{place}": f"Class {name}: {_counts(answers['galleries'], name)}."
                for place, name in enumerate(pictures, start=1)
            },
            "deletion": "Above zero, what the map marks matters more to the network than pixels at random. Mean "
            "over seeds, with its 95 % interval.",
        },
        notes=[
            "The photographs of birds of the report are not to be had. The classes shown are those mistaken "
            "most often, their images drawn by lot. Frames and answers are green where the answer is right, red where "
            "it is wrong; bright is where the evidence for that answer lies.",
            *_agreement(answers["agreement"]),
            *found.unfinished(),
        ],
        records=faithful,
        scale=scale_of(found, setting, SPEC, like="the report's photographs"),
        seconds=found.seconds,
    )


def _right_and_wrong(galleries: list[dict[str, Any]]) -> Finding:
    """Does every class have images that are right and images that are wrong?"""
    kinds = {(gallery["class"], gallery["kind"]) for gallery in galleries}
    classes = list(dict.fromkeys(gallery["class"] for gallery in galleries))
    lacking = [f"{name} ({kind})" for name in classes for kind in ("correct", "incorrect") if (name, kind) not in kinds]
    shown = sum(len(gallery["images"]) for gallery in galleries)
    return Finding(
        "maps of right and of wrong predictions for every class",
        "galleries of right and wrong predictions of four birds",
        f"{shown} images of {', '.join(classes)}" + (f"; none of {', '.join(lacking)}" if lacking else ""),
        verdicts.HOLDS if classes and not lacking else verdicts.UNKNOWN,
        "holds if every class shown has an image that most norms get right and one that most get wrong, else cannot "
        "tell, for there is nothing to show; pictures are for the eye",
    )


def _faithful(records: list[dict[str, Any]]) -> list[Finding]:
    """A question of our own: do the maps mark what the networks use?"""
    return [
        verdicts.beyond(
            f"with {norm}, the maps mark what the network uses",
            verdicts.OURS,
            [record["area"] for record in records if record["norm"] == norm],
            0.0,
            show=lambda area: f"{area:+.3f}" if area else "0",
        )
        for norm in dict.fromkeys(record["norm"] for record in records)
    ]


def _agreement(records: list[dict[str, Any]]) -> list[str]:
    """How alike the maps of two norms are beside those of two seeds of one norm, in a sentence."""
    within = [record["mean"] for record in records if record["a"] == record["b"]]
    between = [record["mean"] for record in records if record["a"] != record["b"]]
    if not within or not between:
        return []
    return [
        f"The rank correlation of two networks' maps is {sum(between) / len(between):.2f} on average between norms; "
        f"between seeds of one norm, the yardstick, it is {sum(within) / len(within):.2f}."
    ]


def _counts(galleries: list[dict[str, Any]], name: str) -> str:
    counts = {gallery["kind"]: len(gallery["images"]) for gallery in galleries if gallery["class"] == name}
    words = {"correct": "that most norms get right", "incorrect": "that most norms get wrong"}
    return ", then ".join(f"{counts[kind]} {text}" for kind, text in words.items() if kind in counts)
