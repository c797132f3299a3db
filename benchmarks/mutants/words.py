"""What the writers of the third and fourth set call a fault, and which of the kit's diagnoses say the same."""

from __future__ import annotations

WORDS: dict[str, tuple[str, ...]] = {
    "1/N forgotten in dx": ("dx-not-divided-by-count", "dx-sums-not-means"),
    "L2 norm for RMS": ("sum-for-mean",),
    "N where D belongs in dx": ("dx-wrong-count",),
    "averages the standard deviation": ("running-var-is-std",),
    "batch statistics in evaluation": ("batch-statistics-in-eval",),
    "bias scaled by the weight": ("bias-before-weight",),
    "bias subtracted": ("bias-subtracted",),
    "biased mean update": ("running-mean-unscaled",),
    "biased running variance": ("running-var-biased",),
    "centres": ("mean-subtracted-in-rms", "layer-norm-for-rms"),
    "dbeta averaged": ("dbias-mean",),
    "dgamma averaged": ("dweight-mean",),
    "dgamma of something else": ("dweight-not-normalized", "dweight-from-input"),
    "dgamma without xhat": ("dweight-is-dbias",),
    "dx not divided by the deviation": ("dx-not-divided-by-std",),
    "dx without gamma": ("dx-weight-missing",),
    "eps and momentum swapped": ("eps-and-momentum-swapped",),
    "eps missing": ("eps-missing",),
    "eps outside the root": ("eps-outside-root",),
    "forgotten axis": (
        "axis-forgotten",
        "pools-batch-only",
        "pools-channels-only",
        "pools-first-sample",
        "pools-instance",
        "pools-last-axis",
        "variance-of-parts-averaged",
    ),
    "gamma outside the means": ("dx-weight-after-means",),
    "gate reversed": ("gate-swapped",),
    "instance half with batch statistics": ("batch-statistics-for-instance",),
    "mean absolute deviation": ("absolute-deviation",),
    "mean divided only": ("mean-alone-divided",),
    "mean term of dx": ("dx-mean-term-missing", "dx-mean-term-sum", "dx-mean-sign"),
    "momentum missing": ("momentum-missing", "running-mean-overwritten", "running-var-overwritten"),
    "momentum reversed": ("momentum-swapped",),
    "no square root": ("root-missing",),
    "one not added to the weight": ("initial-weight",),
    "pools the batch instead": ("pools-feature", "pools-batch"),
    "pools the batch too": ("pools-batch", "axis-too-many"),
    "precedence of the division": ("mean-alone-divided",),
    "reshape without transpose": ("axes-not-moved", "running-axes-not-moved"),
    "sign in dx": ("dx-variance-sign", "dx-mean-sign", "dx-sign"),
    "transpose not undone in dx": ("gradient-axes-not-moved",),
    "transpose not undone in the backward pass": ("gradient-axes-not-moved",),
    "unbiased variance": ("unbiased-normalization",),
    "unbiased variance in the instance half": ("unbiased-normalization",),
    "variance term of dx": (
        "dx-centred-for-normalized",
        "dx-mean-of-variance-sum",
        "dx-variance-half",
        "dx-variance-of-g",
        "dx-variance-sign",
        "dx-variance-term-missing",
        "dx-variance-twice",
    ),
    "weight squared": ("weight-twice",),
    "wrong count in dx": ("dx-positions-not-counted", "dx-wrong-count"),
    "wrong groups": ("group-size-for-count", "groups-interleaved"),
}


def named(expected: tuple[str, ...], causes: list[str]) -> bool:
    """Whether the diagnoses say every one of the faults."""
    return all(set(WORDS[word]) & set(causes) for word in expected)


def too_many(expected: tuple[str, ...], causes: list[str]) -> list[str]:
    """Diagnoses that say something else than any of the faults."""
    wanted = {cause for word in expected for cause in WORDS[word]}
    return [c for c in causes if c not in wanted]
