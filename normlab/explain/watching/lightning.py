"""A callback for PyTorch Lightning that watches norms and checks the plan."""

from __future__ import annotations

from typing import Any

from normlab.check.lint import Plan
from normlab.errors import require
from normlab.explain.watching.norms import NormWatch
from normlab.explain.watching.planned import last_batch, warn_of


def lightning_callback(every: int = 50, size: Any = None) -> Any:
    """A `pytorch_lightning.Callback`: every few steps norms/drift, norms/mismatch and norms/dead are logged.

    When training begins, what `normlab lint` says of the module, the batch size, the accumulation and the optimizer is
    logged as warnings, and kept in `callback.warnings`. `size` is one sample's shape where it cannot be guessed. What
    was seen is in `callback.watch` (`NormWatch`). Needs the extra lightning; raises UsageError without it.
    """
    require("lightning_callback", "lightning")
    import pytorch_lightning

    class NormCallback(pytorch_lightning.Callback):  # type: ignore[misc]  # which is not followed
        watch: NormWatch
        warnings: list[Any]

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.watch = NormWatch(module)
            loader = trainer.train_dataloader
            batch = getattr(loader, "batch_size", None) or 1
            plan = Plan(
                batch_size=batch,
                last_batch=last_batch(getattr(loader, "dataset", None), batch, getattr(loader, "drop_last", False)),
                accumulate=trainer.accumulate_grad_batches,
                ddp=trainer.world_size > 1,
            )
            self.warnings = warn_of(module, plan, trainer.optimizers[0] if trainer.optimizers else None, size)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step % every == 0:
                self.watch.start()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            for name, value in self.watch.stop().items():
                self.log(name, value)

    return NormCallback()
