"""The training loop: mini-batches, an update rule, accuracies after every epoch, checkpoints and exact resume."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normlab.errors import DataError, UsageError, files
from normlab.scratch import _checks as check
from normlab.scratch.optim import Config, rule

HISTORIES = ("loss_history", "train_acc_history", "val_acc_history")
DATA = ("X_train", "y_train", "X_val", "y_val")


class Solver:
    """Trains a model on data and remembers what happened.

    Args:
        model: has `params`, a dictionary of arrays, and `loss(X)` -> scores, `loss(X, y)` -> (loss, gradients).
        data: "X_train", "y_train", "X_val", "y_val".
        update_rule: a function of `normlab.scratch.optim` or its name.
        optim_config: settings of the rule, the same for every parameter.
        lr_decay: factor on the learning rate after every epoch.
        batch_size, num_epochs: an epoch is max(1, N // batch_size) batches, drawn with replacement.
        print_every, verbose: a line every so many iterations, and one an epoch.
        num_train_samples, num_val_samples: how many samples accuracies are measured on; None for all.
        checkpoint_name: where to write `{checkpoint_name}_epoch_{epoch}.npz` after every epoch.
        rng: `numpy.random.RandomState` for the batches (default: NumPy's global one).
        progress: called with a dictionary after every epoch.

    After `train`: `loss_history` (an entry per iteration), `train_acc_history` and `val_acc_history` (before
    training, then an entry per epoch), `best_params` (of the best validation accuracy, `best_val_acc`), which are
    also what the model then holds. A training that diverges goes on: its losses say so. Raises ValueError on bad
    arguments.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, np.ndarray],
        *,
        update_rule: str | Callable[..., Any] = "sgd",
        optim_config: Config | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        print_every: int = 10,
        verbose: bool = True,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        checkpoint_name: str | os.PathLike[str] | None = None,
        rng: np.random.RandomState | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = model
        self.X_train, self.y_train, self.X_val, self.y_val = (
            np.asarray(check.required("data", data, key)) for key in DATA
        )
        for part in ("train", "val"):
            images, targets = getattr(self, f"X_{part}"), getattr(self, f"y_{part}")
            if not len(images) or targets.shape != (len(images),):
                raise UsageError(
                    f"data: X_{part} has shape {images.shape} and y_{part} {targets.shape}; "
                    "expected at least one sample, and a label for each"
                )
        self.update_rule = rule(update_rule)
        self.lr_decay = check.number("lr_decay", lr_decay, 0, math.inf)
        self.batch_size = check.integer("batch_size", batch_size, 1)
        self.num_epochs = check.integer("num_epochs", num_epochs, 0)
        self.print_every = check.integer("print_every", print_every, 1)
        self.verbose = verbose
        self.num_train_samples = num_train_samples
        self.num_val_samples = num_val_samples
        self.checkpoint_name = checkpoint_name
        self.progress = progress
        self._rng = np.random.mtrand._rand if rng is None else rng
        self.epoch = 0
        self.best_val_acc = 0.0
        self.best_params: dict[str, np.ndarray] = {}
        self._best_bn_params: list[dict[str, Any]] = []
        self._set_aside: dict[str, np.ndarray] = {}  # the last parameters, while the model holds the best ones
        self._bn_set_aside: list[dict[str, Any]] = []
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.optim_configs = {name: dict(optim_config or {}) for name in model.params}

    def train(self) -> None:
        """Trains up to `num_epochs` epochs, then gives the model its best parameters.

        After `resume`, or with `num_epochs` raised after an earlier `train`, only the epochs that are missing.
        """
        if self._set_aside:
            self._set_state(self._set_aside, self._bn_set_aside)
            self._set_aside = {}
        iterations = max(1, len(self.X_train) // self.batch_size)
        self._begin()
        while self.epoch < self.num_epochs:
            for _ in range(iterations):
                self._step()
                if self.verbose and (len(self.loss_history) - 1) % self.print_every == 0:
                    self._print_step(self.num_epochs * iterations)
                self._end_step()
            self.epoch += 1
            for config in self.optim_configs.values():
                if "learning_rate" in config:
                    config["learning_rate"] *= self.lr_decay
            self._measure()
            if self.checkpoint_name is not None:
                self.save(f"{os.fspath(self.checkpoint_name)}_epoch_{self.epoch}.npz")
        self._set_aside, self._bn_set_aside = dict(self.model.params), copy.deepcopy(self._bn_params())
        self._set_state(self.best_params, self._best_bn_params)

    def check_accuracy(
        self, X: np.ndarray, y: np.ndarray, num_samples: int | None = None, batch_size: int = 100
    ) -> float:
        """Share of the samples whose largest score is the label's; of `num_samples` random ones if there are more."""
        if num_samples is not None and len(X) > num_samples:
            chosen = self._rng.choice(len(X), check.integer("num_samples", num_samples, 1))
            X, y = X[chosen], y[chosen]
        right = 0
        for start in range(0, len(X), batch_size):
            scores = self.model.loss(X[start : start + batch_size])
            right += int((scores.argmax(1) == y[start : start + batch_size]).sum())
        return right / len(X)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that `resume` needs to one .npz file: arrays and JSON, no pickles."""
        arrays = {f"params/{k}": v for k, v in (self._set_aside or self.model.params).items()}
        arrays |= {f"best_params/{k}": v for k, v in self.best_params.items()}
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "best_val_acc": self.best_val_acc,
            "rng": _rng_state(self._rng),
            "model_rng": _rng_state(self._model_rng()),
            **{name: getattr(self, name) for name in HISTORIES},
        }
        for group, configs in self._config_groups().items():
            state[group] = {}
            for name, config in configs.items():
                arrays |= {f"{group}/{name}/{k}": v for k, v in config.items() if isinstance(v, np.ndarray)}
                state[group][name] = {k: v for k, v in config.items() if not isinstance(v, np.ndarray)}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, state=np.array(json.dumps(state, default=float)), **arrays)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Takes up a training where `save` left it: what follows is what would have followed, bit for bit.

        The solver must have been made with the same model, data and settings. Raises DataError if the file is not
        a checkpoint of such a model.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            state = json.loads(str(arrays.pop("state")))
        except (OSError, ValueError, KeyError, EOFError) as e:
            raise DataError(f"{os.fspath(path)} is not a checkpoint of a Solver: {e}") from e
        params = _select_prefix(arrays, "params/")
        have = {name: value.shape for name, value in self.model.params.items()}
        came = {name: value.shape for name, value in params.items()}
        if came != have:
            raise DataError(f"{os.fspath(path)} holds parameters {came}; the model has {have}")
        self.model.params, self.best_params, self._set_aside = params, _select_prefix(arrays, "best_params/"), {}
        self._best_bn_params = []
        groups = self._config_groups()
        for group, configs in groups.items():
            for name, config in configs.items():
                config.clear()
                config.update(state[group][name], **_select_prefix(arrays, f"{group}/{name}/"))
        self._best_bn_params = list(groups["best_bn"].values())
        for name in ("epoch", "best_val_acc", *HISTORIES):
            setattr(self, name, state[name])
        _set_rng_state(self._rng, state["rng"])
        _set_rng_state(self._model_rng(), state["model_rng"])

    def _step(self) -> None:
        chosen = self._rng.choice(len(self.X_train), self.batch_size)
        loss, grads = self.model.loss(self.X_train[chosen], self.y_train[chosen])
        self.loss_history.append(loss)
        for name, w in self.model.params.items():
            self.model.params[name], self.optim_configs[name] = self.update_rule(
                w, grads[name], self.optim_configs[name]
            )

    def _begin(self) -> None:
        """Measures accuracies before the first step."""
        if not self.val_acc_history:
            self._measure()

    def _end_step(self) -> None:
        """What follows every step: nothing."""

    def _print_step(self, total: int) -> None:
        print(f"(iteration {len(self.loss_history)} / {total}) loss: {self.loss_history[-1]:.6f}")

    def _print_epoch(self, train: float, val: float) -> None:
        print(f"(epoch {self.epoch} / {self.num_epochs}) train accuracy: {train:.4f}, val: {val:.4f}")

    def _measure(self) -> None:
        train = self.check_accuracy(self.X_train, self.y_train, self.num_train_samples)
        val = self.check_accuracy(self.X_val, self.y_val, self.num_val_samples)
        self.train_acc_history.append(train)
        self.val_acc_history.append(val)
        if not self.best_params or val > self.best_val_acc:
            self.best_val_acc = val
            self.best_params = {name: value.copy() for name, value in self.model.params.items()}
            self._best_bn_params = copy.deepcopy(self._bn_params())
        if self.verbose:
            self._print_epoch(train, val)
        if self.progress is not None:
            self.progress({"epoch": self.epoch, "train_accuracy": train, "val_accuracy": val})

    def _set_state(self, params: Mapping[str, np.ndarray], bn_params: list[dict[str, Any]]) -> None:
        self.model.params = {name: value.copy() for name, value in params.items()}
        for param, value in zip(self._bn_params(), bn_params, strict=True):
            param.update(value)

    def _model_rng(self) -> np.random.RandomState | None:
        """What the model draws its dropout masks from, which is NumPy's global state where it has no other."""
        own = getattr(self.model, "rng", None)
        return np.random.mtrand._rand if own is None and getattr(self.model, "dropout_param", None) else own

    def _bn_params(self) -> list[dict[str, Any]]:
        return getattr(self.model, "bn_params", [])

    def _config_groups(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Every dictionary of settings and state that a checkpoint holds, by group and name."""
        live = self._bn_set_aside if self._set_aside else self._bn_params()
        best = self._best_bn_params or [{} for _ in live]
        return {
            "optim": self.optim_configs,
            "bn": {str(i): param for i, param in enumerate(live)},
            "best_bn": {str(i): param for i, param in enumerate(best)},
        }


def _select_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _rng_state(rng: np.random.RandomState | None) -> Any:
    if rng is None:
        return None
    kind, keys, *rest = rng.get_state()
    return [kind, np.asarray(keys).tolist(), *rest]


def _set_rng_state(rng: np.random.RandomState | None, state: Any) -> None:
    if rng is not None and state is not None:
        kind, keys, *rest = state
        rng.set_state((kind, np.array(keys, np.uint32), *rest))
