"""Code with a slip in it, for the exercises of these chapters: do not read on before you have found it.

python docs/by_hand/exercises.py batch 1 > mine.py
normlab check mine.py:batchnorm_forward
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SCRATCH = HERE.parents[1] / "normlab" / "scratch"


@dataclass(frozen=True)
class Exercise:
    """A source file with a passage exchanged; `target` is what to check in it, `cause` what the check says then."""

    file: Path
    target: str
    cause: str
    old: str
    new: str

    def source(self) -> str:
        """The code with its slip; raises ValueError where the passage does not stand there once."""
        text = self.file.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file.name}: {self.old!r} occurs {text.count(self.old)} times")
        return text.replace(self.old, self.new)


BATCH, LAYER, GROUP = (SCRATCH / f"_{name}.py" for name in ("batch", "layer", "group"))
BATCH_INSTANCE, DENSE, IMAGES = (SCRATCH / f"_{name}.py" for name in ("batch_instance", "dense", "images"))
RESHAPING = HERE / "reshaping.py"
BIN = "spatial_batchinstancenorm_forward"
BACK = "return dx.reshape(samples, height, width, channels).transpose(0, 3, 1, 2)"
OUT = "return out.reshape(samples, height, width, channels).transpose(0, 3, 1, 2)"
RUNNING = (
    'param["running_mean"] = (momentum * mean + (1 - momentum) * batch_mean).astype(x.dtype)\n'
    '        param["running_var"] = (momentum * var + (1 - momentum) * batch_var).astype(x.dtype)'
)

EXERCISES: dict[str, tuple[Exercise, ...]] = {
    "batch": (
        Exercise(
            BATCH, "batchnorm_forward", "dx-mean-term-sum", "np.broadcast_to(dmean / m,", "np.broadcast_to(dmean,"
        ),
        Exercise(BATCH, "batchnorm_forward", "dx-variance-twice", "dvar = 0.5 * dstd / std", "dvar = dstd / std"),
        Exercise(
            BATCH,
            "batchnorm_forward",
            "dweight-mean",
            "dgamma = (dout * xhat).sum(0)",
            "dgamma = (dout * xhat).mean(0)",
        ),
    ),
    "layer": (
        Exercise(
            LAYER,
            "layernorm_forward",
            "dx-weight-after-means",
            "dxhat = dout * gamma\n    dx = standardize_backward(dxhat, xhat, inverse, (1,))",
            "dx = gamma * standardize_backward(dout, xhat, inverse, (1,))",
        ),
        Exercise(
            LAYER,
            "layernorm_forward",
            "dx-pools-feature",
            "standardize_backward(dxhat, xhat, inverse, (1,))",
            "standardize_backward(dxhat, xhat, inverse, (0,))",
        ),
        Exercise(LAYER, "layernorm_forward", "dweight-zero", "dgamma = (dout * xhat).sum(0)", "dgamma = 0 * gamma"),
    ),
    "instance": (
        Exercise(
            GROUP, "spatial_instancenorm_forward", "pools-layer", "gamma, beta, max(1, x.shape[1]),", "gamma, beta, 1,"
        ),
        Exercise(GROUP, "spatial_instancenorm_forward", "eps-ignored", 'check.eps("in_param", in_param)', "1e-3"),
        Exercise(
            GROUP,
            "spatial_instancenorm_forward",
            "dbias-mean",
            "dbeta = dout.sum((0, 2, 3), keepdims=True)",
            "dbeta = dout.mean((0, 2, 3), keepdims=True)",
        ),
    ),
    "group": (
        Exercise(
            GROUP,
            "spatial_groupnorm_forward",
            "group-size-for-count",
            "x.reshape(samples, groups, channels // groups, height, width)",
            "x.reshape(samples, channels // groups, groups, height, width)",
        ),
        Exercise(
            GROUP,
            "spatial_groupnorm_forward",
            "dx-pools-channel",
            "standardize_backward(dxhat, xhat, inverse, (2, 3, 4))",
            "standardize_backward(dxhat, xhat, inverse, (3, 4))",
        ),
        Exercise(
            GROUP,
            "spatial_groupnorm_forward",
            "weight-twice",
            "out = gamma * xhat.reshape",
            "out = gamma**2 * xhat.reshape",
        ),
    ),
    "batch_instance": (
        Exercise(
            BATCH_INSTANCE,
            BIN,
            "gate-swapped",
            'gate * batch["xhat"] + (1 - gate) * xhat_i',
            '(1 - gate) * batch["xhat"] + gate * xhat_i',
        ),
        Exercise(
            BATCH_INSTANCE,
            BIN,
            "dx-half-missing",
            "    dx += standardize_backward((1 - gate) * g, xhat_i, inverse_i, (2, 3))\n",
            "",
        ),
        Exercise(BATCH_INSTANCE, BIN, "dgate-weight-missing", "drho = (g * (", "drho = (dout * ("),
    ),
    "reshaping": (
        Exercise(
            RESHAPING,
            "spatial_batchnorm_forward",
            "axes-not-moved",
            "rows = x.transpose(0, 2, 3, 1).reshape(-1, channels)",
            "rows = x.reshape(-1, channels)",
        ),
        Exercise(
            RESHAPING,
            "spatial_batchnorm_forward",
            "gradient-axes-not-moved",
            BACK,
            "return dx.reshape(samples, channels, height, width)",
        ),
        Exercise(
            RESHAPING,
            "spatial_batchnorm_forward",
            "not-permuted-back",
            OUT,
            "return out.reshape(samples, channels, height, width)",
        ),
    ),
    "running": (
        Exercise(
            BATCH,
            "batchnorm_forward",
            "momentum-swapped",
            RUNNING,
            RUNNING.replace("momentum * ", "M * ").replace("(1 - momentum)", "momentum").replace("M", "(1 - momentum)"),
        ),
        Exercise(
            BATCH,
            "batchnorm_forward",
            "running-var-is-std",
            "(1 - momentum) * batch_var)",
            "(1 - momentum) * np.sqrt(batch_var))",
        ),
        Exercise(
            BATCH, "batchnorm_forward", "batch-statistics-in-eval", 'if mode == "train" and x.size:', "if x.size:"
        ),
    ),
    "dropout": (
        Exercise(DENSE, "dropout_forward", "the mean of the output", "mask /= p", "mask *= p"),
        Exercise(DENSE, "dropout_forward", "dx", "mask.shape) * mask", "mask.shape) * (mask > 0)"),
        Exercise(
            DENSE,
            "dropout_forward",
            "the mean of the output",
            'out = x if kind == "inverted" else x * p',
            'out = x * p if kind == "inverted" else x',
        ),
    ),
    "convolution": (
        Exercise(
            IMAGES, "conv_forward_naive", "dx", "dpadded[here] += dout[n, f, i, j]", "dpadded[here] = dout[n, f, i, j]"
        ),
        Exercise(IMAGES, "conv_forward_naive", "db", "db[f] += dout[n, f, i, j]", "db[f] = dout[n, f, i, j]"),
        Exercise(
            IMAGES,
            "max_pool_forward_naive",
            "dx",
            "dx[n, c, top + row, left + column] += dout",
            "dx[n, c, row, column] += dout",
        ),
    ),
}
# exercises that `normlab check` knows nothing of: a numerical gradient finds them
BY_GRADIENT = ("dropout", "convolution")


def main(arguments: list[str]) -> int:
    """Print an exercise: CHAPTER and NUMBER."""
    if len(arguments) != 2 or arguments[0] not in EXERCISES or arguments[1] not in ("1", "2", "3"):
        print(f"expected a chapter, one of {', '.join(EXERCISES)}, and a number, 1 to 3", file=sys.stderr)
        return 2
    print(EXERCISES[arguments[0]][int(arguments[1]) - 1].source(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
