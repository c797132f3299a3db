"""The trained variants together: the mean of their probabilities against the best of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normlab.explain.networks import Network, trained_networks
from normlab.explain.predictions import predict, probabilities
from normlab.reproduce import verdicts
from normlab.reproduce.charts import bars
from normlab.reproduce.comparisons import Comparison, effort, scale_of, trained, val_accuracy
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.experiments.resnet_variants import SMALL as SMALL
from normlab.reproduce.experiments.resnet_variants import SPEC

TOGETHER = "all variants together"


def run(setting: Setting) -> Result:
    # the networks of resnet-variants: the experiment that runs second does not train them again
    with trained("resnet-variants", setting, SPEC, {"batch_sizes": 16, "augment": "crop"}) as (found, directory):
        dataset, networks, _ = trained_networks(directory)

        def said(network: Network) -> NDArray[np.float64]:
            setting.say(f"{network.cell.label()}: predictions")
            model = network.load(dataset)
            return probabilities(predict(model, dataset.test.images, dataset.channel_mean, dataset.channel_std))

        answers = {(network.norm, network.seed): said(network) for network in networks}
    labels = np.asarray(dataset.test.labels)
    seeds = sorted({seed for _, seed in answers})
    accuracy = {which: _accuracy(given, labels) for which, given in answers.items()}
    by_seed = {seed: [given for (_, of), given in answers.items() if of == seed] for seed in seeds}
    together = [_accuracy(np.mean(given, axis=0), labels) for given in by_seed.values()]
    best = [accuracy[_best(found, [norm for norm, of in answers if of == seed], seed), seed] for seed in seeds]
    findings = [
        verdicts.greater(
            "the mean of the variants' probabilities is more accurate than the variant that is best on validation",
            "an ensemble of the variants: wished for",
            together,
            best,
            images=len(labels),
            names=(TOGETHER, "the best"),
        )
    ]
    norms = list(dict.fromkeys(norm for norm, _ in answers))
    for norm in norms:
        of_norm = [given for (name, _), given in answers.items() if name == norm]
        if len(of_norm) == len(seeds) > 1:
            alone = [accuracy[norm, seed] for seed in seeds]
            # one ensemble of all seeds: its members are not independent of it, so it is compared with each of them
            findings.append(
                verdicts.beyond(
                    f"{norm}: {len(seeds)} seeds together are more accurate than one",
                    verdicts.OURS,
                    [_accuracy(np.mean(of_norm, axis=0), labels) - one for one in alone],
                    0.0,
                    show=lambda value: verdicts.points(value) if value else "0",
                )
            )
    records = [{"networks": norm, "seed": seed, "test accuracy": value} for (norm, seed), value in accuracy.items()]
    records += [
        {"networks": TOGETHER, "seed": seed, "test accuracy": value}
        for seed, value in zip(seeds, together, strict=True)
    ]
    return Result(
        findings,
        {
            "network": str(found.cells[0]["model"]),
            "training": f"as resnet-variants: {found.length(SPEC)}, batch {found.cells[0]['batch_size']}",
            "ensembles": "the mean of the probabilities; of all variants, the networks of one seed",
            "data": found.describe_data(setting),
            "trainings": effort(found),
        },
        charts={"accuracy": bars(records, "test accuracy", "networks", title="Test accuracy", percent=True)},
        captions={"accuracy": "Mean over seeds, with its 95 % interval."},
        notes=found.unfinished(),
        records=records,
        scale=scale_of(found, setting, SPEC),
        seconds=found.seconds,
    )


def _accuracy(given: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float((given.argmax(axis=1) == labels).mean())


def _best(found: Comparison, norms: list[str], seed: int) -> str:
    """The norm whose network of this seed is most accurate on validation."""
    return max(norms, key=lambda norm: (found.values(val_accuracy, norm=norm, seed=seed)[0], norm))
