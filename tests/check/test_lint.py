"""The lint: every warning on the least model that deserves it, no alarm on sound ones, and cases that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normlab
from normlab.check.lint import RULES, Input, Plan, lint
from normlab.check.lint.trace import kind_of, watch
from normlab.errors import UsageError
from tests.check import nets


def rules(model: nn.Module, plan: Plan | None = None, **options: Any) -> list[str]:
    return [w.rule for w in lint(model, plan, **options)]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_the_minimal_case_shows_it(rule: Any) -> None:
    torch.manual_seed(0)
    exec(compile(rule.case, f"<{rule.name}>", "exec"), {})
    assert rule.case.count("assert") >= 1


@pytest.mark.parametrize(
    ("build", "plan"),
    [
        (nets.resnet50, Plan(batch_size=32)),
        (nets.resnet50, Plan(batch_size=64, last_batch=17, accumulate=4, ddp=True)),
        (nets.vit, Plan(batch_size=8, last_batch=1, accumulate=16, checkpointing=True, ddp=True, weight_decay=0.05)),
        (nets.unet, Plan(batch_size=2, last_batch=1, accumulate=8, checkpointing=True, ddp=True)),
        (lambda: nets.UNet(norm="batch"), Plan(batch_size=16)),
    ],
    ids=["resnet50", "resnet50-large", "vit", "unet", "unet-batch-norm"],
)
def test_no_false_alarm_on_sound_networks_and_plans(build: Callable[[], Any], plan: Plan) -> None:
    made = build()
    model, optimizer = made if isinstance(made, tuple) else (made, None)
    found = lint(model, plan, optimizer=optimizer)
    assert found == [], "\n".join(w.text() for w in found)
    assert len(watch(model, None).sites) >= 9


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(3, 8, 3, **{"bias": False, **options})


BATCH = nn.BatchNorm2d


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.relu(self.norm(x)))


class Functional(nn.Module):
    """Everything by functions: nothing to hook."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(x, self.weight, self.bias)
        x = nn.functional.batch_norm(x, self.mean, self.var, training=self.training)
        x = nn.functional.dropout(x, 0.5, self.training)
        x = self.inner(x)
        x = nn.functional.batch_norm(x, self.mean, self.var, training=self.training)
        x = nn.functional.layer_norm(x, (4,))
        x = nn.functional.rms_norm(x.unsqueeze(-1), (1,)).squeeze(-1)
        return nn.functional.group_norm(x, 4)


class ImageNorm(nn.Module):
    """A norm whose parameters have four dimensions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(x, 1) * self.gamma


class OnRows(nn.Module):
    """A batch norm whose axis is not the one that the linear layer writes to, though as large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(5, 12), nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x[:, None, :].expand(-1, 12, -1)))


def frozen() -> nn.Module:
    model = nn.Sequential(conv(), BATCH(8))
    for p in model.parameters():
        p.requires_grad_(False)
    return model


# rule, model, plan, words of the message
WARNS = [
    ("one-sample-batch", nn.Sequential(conv(), BATCH(8)), Plan(8, last_batch=1), "that sample's own statistics"),
    (
        "one-sample-batch",
        nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)),
        Plan(8, 1),
        "stops with an error",
    ),
    ("one-sample-batch", nn.Sequential(conv(), BATCH(8)), Plan(1), "a batch has one sample"),
    ("one-value-groups", nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(4, 4)), Plan(), "whatever the input"),
    ("one-value-groups", nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8)), Plan(), "one value"),
    ("one-value-groups", nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1)), Plan(), "one value"),
    ("one-value-groups", nn.Sequential(nn.Linear(3, 1), nn.RMSNorm(1)), Plan(), "only the input's sign is left"),
    ("frozen-but-moving", frozen(), Plan(), "its running statistics are not"),
    ("statistics-updated-twice", nn.Sequential(conv(), BATCH(8)), Plan(checkpointing=True), "move twice per step"),
    ("statistics-updated-twice", Shared(), Plan(), "2 times in one forward pass"),
    ("accumulation-is-no-large-batch", nn.Sequential(conv(), BATCH(8)), Plan(8, accumulate=4), "no batch of 32"),
    ("ddp-buffers", nn.Sequential(conv(), BATCH(8)), Plan(8, ddp=True), "its own 8 samples"),
    ("ddp-buffers", Shared(), Plan(64, ddp=True), "DDP copies process 0's buffers"),
    ("ddp-buffers", nn.Sequential(conv(), nn.SyncBatchNorm(8)), Plan(64, 17, ddp=True), "waiting forever"),
    ("weight-decay-on-norm", nn.Sequential(conv(), BATCH(8)), Plan(weight_decay=0.1), "pulls it to 0"),
    ("bias-before-norm", nn.Sequential(conv(bias=True), BATCH(8)), Plan(), "the bias with it"),
    ("bias-before-norm", nn.Sequential(conv(bias=True), nn.InstanceNorm2d(8)), Plan(), "the bias with it"),
    ("bias-before-norm", nn.Sequential(conv(bias=True), nn.GroupNorm(8, 8)), Plan(), "the bias with it"),
    ("norm-after-dropout", nn.Sequential(nn.Dropout(0.2), conv(), BATCH(8)), Plan(), "0 dropped out"),
    ("small-batch", nn.Sequential(conv(), BATCH(8)), Plan(2), "come from 2 samples"),
    ("weight-decay-on-norm", nn.Sequential(conv(), ImageNorm(8)), Plan(weight_decay=0.1), "pulls it to 0"),
    ("unusual-momentum", nn.Sequential(conv(), nn.BatchNorm2d(8, momentum=0.0)), Plan(), "never leave 0 and 1"),
    ("unusual-momentum", nn.Sequential(conv(), nn.BatchNorm2d(8, momentum=0.99)), Plan(), "the last batches alone"),
    (
        "averaged-away",
        nn.Sequential(conv(), nn.InstanceNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
        Plan(),
        "that average is the bias",
    ),
    (
        "averaged-away",
        nn.Sequential(conv(), nn.InstanceNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        Plan(),
        "after relu",
    ),
    ("tiny-eps", nn.Sequential(conv(), nn.GroupNorm(2, 8, eps=1e-12)).half(), Plan(), "eps 1e-12 in float16"),
    ("wrong-axis", OnRows(), Plan(), "inner writes its features to the last axis"),
    (
        "one-value-groups",
        nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(8)),
        Plan(),
        "one value",
    ),
]


@pytest.mark.parametrize(("rule", "model", "plan", "words"), WARNS, ids=[f"{i}-{w[0]}" for i, w in enumerate(WARNS)])
def test_what_bites_is_told(rule: str, model: nn.Module, plan: Plan, words: str) -> None:
    found = [w for w in lint(model, plan) if w.rule == rule]
    assert len(found) == 1, rules(model, plan)
    assert words in found[0].message
    text = found[0].text()
    for part in (rule, "where: ", "fix: ", "shown by:", "import torch"):
        assert part in text


def test_every_rule_is_tested() -> None:
    assert {w[0] for w in WARNS} == {r.name for r in RULES}


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        (nn.Sequential(conv(), BATCH(8)), Plan(8)),
        (nn.Sequential(conv(bias=True), nn.GroupNorm(4, 8)), Plan(1, accumulate=64)),
        (nn.Sequential(conv(bias=True), nn.ReLU(), BATCH(8)), Plan()),  # the bias acts through the ReLU
        (nn.Sequential(nn.Dropout(0.0), conv(), BATCH(8)), Plan()),
        (nn.Sequential(conv(), BATCH(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)), Plan()),
        (
            nn.Sequential(
                nn.Dropout(0.5), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)
            ),
            Plan(),
        ),
        (nn.Sequential(conv(), BATCH(8)).eval(), Plan(1, checkpointing=True, ddp=True)),
        (nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4)), Plan(1)),
        (nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)), Plan()),
    ],
)
def test_what_does_not_bite_is_not_told(model: nn.Module, plan: Plan) -> None:
    assert rules(model, plan) == []


def test_functions_are_seen_as_modules_are() -> None:
    found = {w.rule: w for w in lint(Functional(), Plan(8, 1))}
    assert set(found) == {
        *("one-sample-batch", "one-value-groups", "statistics-updated-twice"),
        "bias-before-norm",
    }


def test_dropout_reaches_a_norm_through_functions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(torch.relu(torch.cat([nn.functional.dropout(x[:, :2], 0.3), x[:, 2:]], 1)) + 1)

    assert rules(Net()) == ["norm-after-dropout"]


def test_an_optimizer_tells_its_own_decay() -> None:
    model = nn.Sequential(conv(), BATCH(8))
    everything = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    assert rules(model, optimizer=everything) == ["weight-decay-on-norm"]
    none = torch.optim.SGD(model.parameters(), lr=0.1)
    assert rules(model, Plan(weight_decay=0.1), optimizer=none) == []


def test_our_layers_are_known() -> None:
    model = nn.Sequential(conv(bias=True), normlab.make_norm("bn", 8), normlab.make_norm("gn:groups=8", 8))
    assert rules(model, Plan(8, accumulate=4)) == ["accumulation-is-no-large-batch", "bias-before-norm"]
    assert rules(nn.Sequential(conv(), normlab.make_norm("bn", 8)), Plan(checkpointing=True)) == []
    assert kind_of(normlab.make_norm("ln", 8)) == "layer"
    assert kind_of(nn.Linear(2, 2)) is None


def test_a_bias_on_another_axis_than_the_norms_is_kept() -> None:
    """Linear(5, 12) and BatchNorm1d(12) on (N, 12, 12): the mean is taken over the linear layer's features."""
    assert rules(OnRows()) == ["wrong-axis"]


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(conv(), BATCH(8)), nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

    def forward(self, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        return self.left(image).mean((2, 3)) + self.right(facts)


class Tokens(nn.Module):
    """Integers in, deep inside; another argument is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Sequential(nn.Embedding(10, 4))))
        self.norm = nn.LayerNorm(4)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"out": self.norm(self.body(batch["ids"])) * batch["mask"][..., None]}


def test_models_of_several_inputs_of_tokens_and_of_dictionaries() -> None:
    assert rules(Siamese(), Plan(8), size=[(3, 8, 8), (4,)]) == ["bias-before-norm"]
    assert rules(Siamese(), Plan(8), size={"facts": (4,), "image": (3, 8, 8)}) == ["bias-before-norm"]
    assert rules(Tokens(), size=[Input((16,), "ids", True), Input((16,), "mask")]) == []
    assert rules(nn.Sequential(Tokens().body, nn.LayerNorm(4)), size=(16,)) == []


def test_alike_warnings_are_told_once() -> None:
    blocks = [nn.Sequential(nn.Dropout(0.1), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)) for _ in range(7)]
    (warning,) = lint(nn.Sequential(*blocks))
    assert len(warning.where) == 7


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(conv(), BATCH(8))
    lint(model, Plan(1, checkpointing=True))
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[arg-type]
    assert not model[1]._forward_hooks
    assert next(model.parameters()).device.type == "cpu"


def test_an_input_that_does_not_fit_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="name one sample's shape with --input"):
        lint(nn.Sequential(conv(), BATCH(9)))
    with pytest.raises(UsageError, match=r"\(2, 5, 8, 8\)"):
        lint(nn.Sequential(conv(), BATCH(8)), size=(5, 8, 8))
    assert lint(nn.Sequential(conv(), BATCH(8)), size=(3, 8, 8)) == []
