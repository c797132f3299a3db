"""A callback for the `Trainer` of transformers that watches norms and checks the plan."""

from __future__ import annotations

from typing import Any

from normlab.check.lint import Plan
from normlab.errors import require
from normlab.explain.watching.norms import NormWatch
from normlab.explain.watching.planned import last_batch, warn_of


def trainer_callback(every: int = 50, size: Any = None) -> Any:
    """A `transformers.TrainerCallback`: what norms do is in the trainer's log, as norms/drift, /mismatch and /dead.

    It looks every few steps; each log has the last look. When training begins, what `normlab lint` says of the
    model, the batch size, the accumulation and the optimizer is logged as warnings, and kept in `callback.warnings`.
    `size` is one sample's shape, or a dictionary of them by the names of arguments. Needs the extra transformers;
    raises UsageError without it.
    """
    require("trainer_callback", "transformers")
    import transformers

    class NormCallback(transformers.TrainerCallback):  # type: ignore[misc]  # which is not followed
        watch: NormWatch
        warnings: list[Any]

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model, loader = kwargs["model"], kwargs.get("train_dataloader")
            self.watch = NormWatch(model)
            batch = args.per_device_train_batch_size
            plan = Plan(
                batch_size=batch,
                last_batch=last_batch(getattr(loader, "dataset", None), batch, args.dataloader_drop_last),
                accumulate=args.gradient_accumulation_steps,
                checkpointing=args.gradient_checkpointing,
                ddp=args.world_size > 1,
                weight_decay=args.weight_decay,
            )
            self.warnings = warn_of(model, plan, kwargs.get("optimizer"), size)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0:
                self.watch.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.watch.stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs is not None and self.watch.history:
                logs.update(self.watch.history[-1])
                if state.log_history:
                    state.log_history[-1].update(self.watch.history[-1])

    return NormCallback()
