"""Networks as a list of steps, each a forward and a backward function and the names of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check
from normlab.scratch import layers
from normlab.scratch.fast_layers import image_layers

POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}


@dataclass
class Step:
    """One layer: `forward(x, *params, *settings) -> (out, cache)`, `backward(dout, cache) -> (dx, *grads)`."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    params: tuple[str, ...] = ()
    settings: tuple[Any, ...] = ()


class Network:
    """Steps that run one after the other, their parameters in `params`, and a softmax loss.

    Weights are drawn from `rng` (a `numpy.random.RandomState`; default: NumPy's global one), or from `seed`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        reg: float,
        weight_scale: float | None,
        dropout_keep: float,
        dtype: Any,
        seed: int | None,
        rng: np.random.RandomState | None,
    ) -> None:
        if np.dtype(dtype) not in check.FLOATS:
            raise UsageError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        self.dtype = np.dtype(dtype).type
        self.num_classes = check.integer("num_classes", num_classes, 1)
        self.reg = check.number("reg", reg, 0, math.inf)
        self.params: dict[str, np.ndarray] = {}
        self.steps: list[Step] = []
        self.bn_params: list[dict[str, Any]] = []
        self.rng = np.random.RandomState(seed) if seed is not None else rng
        self._scale = None if weight_scale is None else check.number("weight_scale", weight_scale, 0, math.inf)
        keep = check.number("dropout_keep", dropout_keep, 0, 1, open_low=True)
        self.dropout_param = {} if keep == 1 else {"p": keep, "mode": "train", "seed": seed, "rng": self.rng}

    def loss(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Without y the scores (N, num_classes), in testing mode; with labels y (N,) (loss, gradients by name).

        The loss is cross entropy, averaged over the batch, plus 0.5 * reg * the sum of all squared weights.
        """
        mode = "test" if y is None else "train"
        for param in (*self.bn_params, *([self.dropout_param] if self.dropout_param else [])):
            param["mode"] = mode
        out = check.floats("X", X).astype(self.dtype, copy=False)
        caches = []
        for step in self.steps:
            out, cache = step.forward(out, *(self.params[name] for name in step.params), *step.settings)
            caches.append(cache)
        if y is None:
            return out
        loss, dout = layers.softmax_loss(out, y)
        grads: dict[str, np.ndarray] = {}
        for i in reversed(range(len(self.steps))):
            # nothing lies below the first step
            last = {"need_dx": False} if i == 0 else {}
            returned = self.steps[i].backward(dout, caches[i], **last)
            dout, *rest = returned if isinstance(returned, tuple) else (returned,)
            grads.update(zip(self.steps[i].params, rest, strict=True))
        if self.reg:
            for name in self.weights():
                loss += 0.5 * self.reg * float(np.vdot(self.params[name], self.params[name]))
                grads[name] += self.reg * self.params[name]
        return loss, grads

    def weights(self) -> list[str]:
        """Names of the parameters that regularization applies to."""
        return [name for name in self.params if name.startswith("W")]

    def _learn(self, name: str, shape: tuple[int, ...], fill: float | None = None) -> str:
        """Adds a parameter: random, unless it starts at `fill`."""
        if fill is not None:
            value = np.full(shape, fill)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            scale = math.sqrt(2 / fan_in) if self._scale is None else self._scale
            value = scale * (np.random if self.rng is None else self.rng).randn(*shape)
        self.params[name] = value.astype(self.dtype)
        return name

    def _affine(self, number: int, inputs: int, outputs: int) -> None:
        names = self._learn(f"W{number}", (inputs, outputs)), self._learn(f"b{number}", (outputs,), 0)
        self.steps.append(Step(layers.affine_forward, layers.affine_backward, names))

    def _relu(self) -> None:
        self.steps.append(Step(_rectify, _rectify_backward))

    def _dropout(self) -> None:
        if self.dropout_param:
            settings = (self.dropout_param,)
            self.steps.append(Step(layers.dropout_forward, layers.dropout_backward, (), settings))

    def _norm(
        self,
        number: int,
        shape: tuple[int, ...],
        forward: Any,
        backward: Any,
        *settings: Any,
        running: bool = False,
    ) -> None:
        names = self._learn(f"gamma{number}", shape, 1), self._learn(f"beta{number}", shape, 0)
        if running:
            self.bn_params.append({"mode": "train"})
            settings = (self.bn_params[-1],)
        self.steps.append(Step(forward, backward, names, settings))


class FullyConnectedNet(Network):
    """(affine - [norm] - ReLU - [dropout]) x len(hidden_dims) - affine - softmax.

    Args:
        hidden_dims: width of every hidden layer; may be empty.
        input_dim: numbers in a sample.
        num_classes: number of classes.
        dropout_keep: probability of KEEPING an activation; 1 is no dropout. Also called `dropout_keep_ratio`.
        normalization: None, "batchnorm" or "layernorm".
        reg: strength of the L2 regularization of the weights.
        weight_scale: standard deviation of the initial weights; None for sqrt(2 / inputs) (He et al., 2015).
        dtype: float32 or float64, of all parameters and computations.
        seed: fixes the initial weights, and the dropout mask to the same one in every pass, which checking
            gradients needs; to train with dropout reproducibly use `rng`.
        rng: the `numpy.random.RandomState` to draw weights and masks from.

    Parameters are W1, b1, gamma1, beta1, W2, ...; W (inputs, outputs). Raises ValueError on bad arguments.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        dropout_keep: float = 1,
        normalization: str | None = None,
        reg: float = 0.0,
        weight_scale: float | None = 1e-2,
        dtype: Any = np.float32,
        seed: int | None = None,
        *,
        rng: np.random.RandomState | None = None,
        dropout_keep_ratio: float | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            reg=reg,
            weight_scale=weight_scale,
            dropout_keep=dropout_keep if dropout_keep_ratio is None else dropout_keep_ratio,
            dtype=dtype,
            seed=seed,
            rng=rng,
        )
        self.normalization = check.one_of("normalization", normalization, (None, "batchnorm", "layernorm"))
        width = check.integer("input_dim", input_dim, 1)
        widths = _sizes("hidden_dims", hidden_dims)
        for number, wanted in enumerate(widths, 1):
            self._affine(number, width, wanted)
            width = wanted
            if normalization == "batchnorm":
                pair = layers.batchnorm_forward, layers.batchnorm_backward_alt
                self._norm(number, (width,), *pair, running=True)
            elif normalization == "layernorm":
                self._norm(number, (width,), layers.layernorm_forward, layers.layernorm_backward, {}, running=False)
            self._relu()
            self._dropout()
        self.num_layers = len(widths) + 1
        self._affine(self.num_layers, width, self.num_classes)


class ConvNet(Network):
    """(conv - [norm] - ReLU - 2x2 max pool) x len(num_filters) - (affine - ReLU - [dropout]) x len(hidden_dims)
    - affine - softmax.

    Args:
        input_dim: (C, H, W) of an image; H and W must survive a halving per block.
        num_filters: filters of every convolution, which has stride 1 and keeps the size. One number is one block.
        filter_size: odd width of the filters.
        hidden_dims: width of every hidden affine layer. One number is one layer. Also called `hidden_dim`.
        normalization: None, "batchnorm" or "groupnorm", after every convolution.
        num_groups: groups of "groupnorm"; must divide every number of filters.

    The other arguments are those of `FullyConnectedNet`. Convolution and pooling are compiled where Numba is installed
    (`fast_layers`); elsewhere they run in NumPy (`im2col_layers`), and a warning says so.

    Parameters are numbered through: W1 (F, C, HH, WW) ... of the convolutions, then those of the affine layers. Raises
    ValueError on bad arguments.
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: Sequence[int] | int = 32,
        filter_size: int = 7,
        hidden_dims: Sequence[int] | int = 100,
        num_classes: int = 10,
        weight_scale: float | None = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
        *,
        normalization: str | None = None,
        num_groups: int = 4,
        dropout_keep: float = 1,
        seed: int | None = None,
        rng: np.random.RandomState | None = None,
        hidden_dim: int | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            reg=reg,
            weight_scale=weight_scale,
            dropout_keep=dropout_keep,
            dtype=dtype,
            seed=seed,
            rng=rng,
        )
        self.normalization = check.one_of("normalization", normalization, (None, "batchnorm", "groupnorm"))
        sizes = _sizes("input_dim", input_dim)
        filters = _sizes("num_filters", num_filters)
        hidden = _sizes("hidden_dims", hidden_dims if hidden_dim is None else hidden_dim)
        if len(sizes) != 3 or min(sizes[1:]) < 2 ** len(filters):
            raise UsageError(
                f"input_dim is {tuple(sizes)}; expected (C, H, W) with H and W of at least {2 ** len(filters)}, "
                f"as each of the {len(filters)} blocks halves them"
            )
        if check.integer("filter_size", filter_size, 1) % 2 == 0:
            raise UsageError(f"filter_size must be odd, so that the image keeps its size, got {filter_size}")
        channels, height, width = sizes
        conv_param = {"stride": 1, "pad": filter_size // 2}
        conv, pool = image_layers()
        for number, count in enumerate(filters, 1):
            names = (
                self._learn(f"W{number}", (count, channels, filter_size, filter_size)),
                self._learn(f"b{number}", (count,), 0),
            )
            self.steps.append(Step(*conv, names, (conv_param,)))
            channels, height, width = count, height // 2, width // 2
            if normalization == "batchnorm":
                forward: Any = layers.spatial_batchnorm_forward
                self._norm(number, (count,), forward, layers.spatial_batchnorm_backward, running=True)
            elif normalization == "groupnorm":
                forward, shape = layers.spatial_groupnorm_forward, (1, count, 1, 1)
                self._norm(number, shape, forward, layers.spatial_groupnorm_backward, num_groups, {})
            self._relu()
            self.steps.append(Step(*pool, (), (POOL,)))
        inputs, number = channels * height * width, len(filters)
        for number, wanted in enumerate(hidden, len(filters) + 1):
            self._affine(number, inputs, wanted)
            self._relu()
            self._dropout()
            inputs = wanted
        self.num_layers = number + 1
        self._affine(self.num_layers, inputs, self.num_classes)


def _rectify(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`layers.relu_forward` in the memory of x, which no other step has kept: fresh memory costs more than the maximum.

    The cache is the output, which is positive where x is.
    """
    np.maximum(x, 0, out=x)
    return x, x


def _rectify_backward(dout: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """`layers.relu_backward` in the memory of dout."""
    return np.multiply(dout, cache > 0, out=dout)


def _sizes(name: str, value: Sequence[int] | int) -> list[int]:
    values = [value] if np.ndim(value) == 0 else list(value)  # type: ignore[arg-type]
    return [check.integer(name if len(values) == 1 else f"{name}[{i}]", v, 1) for i, v in enumerate(values)]
