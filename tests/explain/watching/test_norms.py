"""Norms in training: the three numbers, by hand and in two trainers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.explain.watching import NormWatch, lightning_callback, trainer_callback


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def seen(watch: NormWatch, model: nn.Module, x: Tensor) -> dict[str, float]:
    watch.start()
    model(x)
    return watch.stop()


def test_drift_is_in_deviations_of_the_first_step() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 2))
    watch = NormWatch(model)
    x = torch.randn(8, 2, 5, 5)
    assert seen(watch, model, x)["norms/drift"] == 0
    moved = 2 * x.std((0, 2, 3), correction=0).view(1, 2, 1, 1)
    found = seen(watch, model, x + moved)
    assert found["norms/drift"] == pytest.approx(2, rel=1e-5)
    assert "norms/mismatch" not in found
    assert watch.history == [{"norms/drift": 0, "norms/dead": 0}, found]


def test_mismatch_is_that_of_the_running_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, eps=1e-12)).eval()
    x = torch.randn(64, 3, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    watch = NormWatch(model)
    assert seen(watch, model.double(), x)["norms/mismatch"] == pytest.approx(0, abs=1e-6)
    assert seen(watch, model, math.e * x + 3)["norms/mismatch"] == pytest.approx(4, rel=1e-6)
    assert watch.layers["0"]["mismatch"] == pytest.approx(4, rel=1e-6)


def test_channels_that_a_relu_would_end_are_dead() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -100, 100, -100]))
    assert seen(NormWatch(model), model, torch.randn(4, 4, 3, 3))["norms/dead"] == 0.5


def test_channels_of_a_layer_norm_are_last() -> None:
    model = nn.Sequential(nn.LayerNorm(4))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-100.0, 0, 0, 0]))
    assert seen(NormWatch(model), model, torch.randn(4, 7, 4))["norms/dead"] == 0.25


def test_nothing_stays_behind() -> None:
    model = network()
    watch = NormWatch(model)
    seen(watch, model, torch.randn(4, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(UsageError, match="no norm"):
        NormWatch(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed: its callback was not tried")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.randn(9, 3, 8, 8), torch.randint(2, (9,)))
    callback = lightning_callback(every=2, size=(3, 8, 8))
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=str(tmp_path),
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))
    assert len(callback.watch.history) == 3  # of 6 steps, every other
    assert trainer.callback_metrics["norms/mismatch"] > 0
    assert "one-sample-batch" in {warning.rule for warning in callback.warnings}


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: its callback was not tried"
    )
    pytest.importorskip("accelerate", reason="accelerate is not installed: the trainer does not run without it")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}

    rows = [{"x": torch.randn(3, 8, 8), "labels": torch.tensor(i % 2)} for i in range(9)]
    callback = trainer_callback(every=1, size={"x": (3, 8, 8)})
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(Model(), arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [sorted(k for k in entry if k.startswith("norms/")) for entry in logged] == [
        ["norms/dead", "norms/drift", "norms/mismatch"]
    ] * 2
    assert len(callback.watch.history) == 4
    assert callback.warnings


class LayerNorm2d(nn.LayerNorm):
    """As other libraries have it: one weight for each channel of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# the channels of layer norms with channels first were looked for in the last axis
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 4, 4)])
def test_channels_of_a_layer_norm_may_be_first(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(LayerNorm2d(4))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -100, 100, -100]))
    assert seen(NormWatch(model), model, torch.randn(shape))["norms/dead"] == 0.5


def test_a_layer_norm_of_whole_images_has_its_channels_first() -> None:
    model = nn.Sequential(nn.LayerNorm((4, 5, 6)))
    with torch.no_grad():
        model[0].bias[1] = -100
    assert seen(NormWatch(model), model, torch.randn(2, 4, 5, 6))["norms/dead"] == 0.25
