"""Four update rules on a six-layer network."""

from __future__ import annotations

from normlab.reproduce import verdicts
from normlab.reproduce.charts import training
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.training import fully_connected, train

RATES = {"sgd": 5e-3, "sgd_momentum": 5e-3, "rmsprop": 1e-4, "adam": 1e-3}
TITLES = {"sgd": "SGD", "sgd_momentum": "SGD + momentum", "rmsprop": "RMSProp", "adam": "Adam"}


def run(setting: Setting) -> Result:
    images = setting.images(setting.pick(1000, 4000))
    epochs = setting.pick(3, 5)
    speed: dict[str, list[float]] = {rule: [] for rule in RATES}
    records = []
    for seed in setting.seed_range:
        for rule, lr in RATES.items():
            setting.say(f"seed {seed}, {TITLES[rule]}")
            result = train(
                fully_connected(images, [100] * 5, weight_scale=5e-2),
                images,
                seed,
                rule=rule,
                lr=lr,
                batch_size=100,
                num_epochs=epochs,
            )
            speed[rule].append(sum(result.train[1:]) / epochs)
            records += result.records(rule=TITLES[rule], seed=seed)
    findings = [
        verdicts.greater(
            f"{TITLES[fast]} learns faster than {TITLES[slow]} (training accuracy, averaged over the epochs)",
            verdicts.OURS,
            speed[fast],
            speed[slow],
            names=(TITLES[fast], TITLES[slow]),
        )
        for fast in ("adam", "rmsprop")
        for slow in ("sgd", "sgd_momentum")
    ]
    return Result(
        findings,
        {
            "network": "five hidden layers of 100, ReLU, weight scale 5e-2",
            "training": f"{epochs} epochs, batch 100; learning rates "
            + ", ".join(f"{TITLES[rule]} {lr:g}" for rule, lr in RATES.items()),
            "data": images.describe(),
        },
        charts={"curves": training(records, "rule")},
        captions={"curves": "Mean over seeds, with its 95 % interval."},
        records=records,
        scale=images.scale,
    )
