"""The rules: what bites, why, the fix, and the smallest program that shows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normlab.check.lint import cases
from normlab.check.lint.plan import Plan
from normlab.check.lint.trace import Inputs, Site, Trace, is_norm, watch

# samples per process from which batch statistics are steady; below, error grows (Wu & He 2018, figure 1)
ENOUGH = 16
# below this, one batch after another is too small by itself: there, ImageNet's error grows by more than a point
TOO_FEW = 8


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong: `case` is a runnable program whose assertions show it."""

    name: str
    fix: str
    case: str
    find: Callable[[Trace, Plan, nn.Module, Any], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Warning_:
    """A rule that a model and plan break: where, in words, with the fix and the runnable minimal case."""

    rule: str
    where: tuple[str, ...]
    message: str
    fix: str
    case: str

    def text(self, case: bool = True) -> str:
        shown = ", ".join(self.where[:3]) + (f" and {len(self.where) - 3} more" if len(self.where) > 3 else "")
        lines = [f"{self.rule}: {self.message}", f"  where: {shown}", f"  fix:   {self.fix}"]
        if case:
            lines += ["  shown by:", *(f"    {line}".rstrip() for line in self.case.strip().splitlines())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "where": list(self.where),
            "message": self.message,
            "fix": self.fix,
            "case": self.case,
        }


BATCH = ("batch", "batch-instance")


def one_sample(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    if plan.smallest > 1:
        return
    which = "the last batch has" if plan.batch_size > 1 else "a batch has"
    for site in trace.of(*BATCH):
        if site.training and site.values_per_pool == 1:
            yield (
                site.path,
                f"{which} one sample: one value per channel has no variance, and training stops with an error",
            )
        elif site.training:
            yield site.path, f"{which} one sample: batch norm then normalizes with that sample's own statistics"


def one_value(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of("instance", "group", "layer"):
        if site.values_per_pool == 1:
            yield (
                site.path,
                "its groups hold one value: value minus mean is 0, the output is the bias whatever the input",
            )
    for site in trace.of("rms"):
        if site.values_per_pool == 1:
            yield site.path, "it normalizes one value: only the input's sign is left"


def frozen_but_moving(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of(*BATCH):
        weight = getattr(site.module, "weight", None)
        if site.training and site.tracks and weight is not None and not weight.requires_grad:
            yield site.path, "its weights are frozen, its running statistics are not: requires_grad does not stop them"


def updated_twice(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of(*BATCH):
        if not (site.training and site.tracks):
            continue
        if site.calls > 1:
            yield (
                site.path,
                f"it runs {site.calls} times in one forward pass: its statistics mix what it sees at each place",
            )
        elif plan.checkpointing and not getattr(site.module, "counts_once", False):
            yield (
                site.path,
                "under activation checkpointing its forward pass runs twice: statistics move twice per step",
            )


def accumulation(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    if plan.accumulate > 1 and plan.batch_size < ENOUGH:
        for site in trace.of(*BATCH):
            if site.training:
                yield (
                    site.path,
                    f"{plan.accumulate} accumulated batches of {plan.batch_size} are no batch of "
                    f"{plan.accumulate * plan.batch_size} to batch norm: its statistics come from {plan.batch_size}",
                )


def ddp_buffers(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    if not plan.ddp:
        return
    for site in trace.of(*BATCH):
        if not site.training:
            continue
        if isinstance(site.module, nn.SyncBatchNorm):
            if plan.last_batch is not None:
                yield (
                    site.path,
                    "SyncBatchNorm waits for every process: an uneven last batch can leave it waiting forever",
                )
        elif site.tracks and site.calls > 1:
            yield (
                site.path,
                "DDP copies process 0's buffers at every forward pass: a second use in one step overwrites what the "
                "first one's backward pass needs",
            )
        elif plan.batch_size < ENOUGH:
            yield (
                site.path,
                f"each process normalizes with its own {plan.batch_size} samples, and process 0's running statistics "
                "overwrite the others'",
            )


def small_batch(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    if plan.batch_size < 2 or plan.batch_size >= TOO_FEW or plan.accumulate > 1 or plan.ddp:
        return  # one sample, accumulation and several processes have rules of their own
    for site in trace.of(*BATCH):
        if site.training:
            yield (
                site.path,
                f"its statistics come from {plan.batch_size} samples: they change from batch to batch, and evaluation "
                "uses others",
            )


def unusual_momentum(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of(*BATCH, "instance"):
        momentum = getattr(site.module, "momentum", None)
        if not site.tracks or isinstance(momentum, bool) or not isinstance(momentum, (int, float)):
            continue
        if momentum == 0:
            yield site.path, "momentum 0: its running statistics never leave 0 and 1, and evaluation uses those"
        elif momentum >= 0.5:
            yield (
                site.path,
                f"momentum {momentum:g} is the weight of the new batch in torch: its running statistics are those of "
                "the last batches alone; elsewhere the number is the weight of the old ones",
            )


def averaged_away(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of("instance"):
        if site.averaged_by is None:
            continue
        if site.through is None:
            yield site.path, "its output is averaged over all positions: that average is the bias, whatever the input"
        else:
            yield (
                site.path,
                f"its output is averaged over all positions after {site.through}: mean and size of each channel are "
                "gone, only the shape of its distribution is left",
            )


def wrong_axis(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of(*BATCH, "instance", "group"):
        if _other_axis(site):
            assert site.fed_by is not None
            yield (
                site.path,
                f"it normalizes axis 1 of an input of shape (N, {', '.join(map(str, site.shape[1:]))}), and "
                f"{site.fed_by[0]} writes its features to the last axis",
            )


def tiny_eps(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.sites.values():
        eps = getattr(site.module, "eps", None)
        if not isinstance(eps, float) or site.dtype not in SMALLEST or eps >= SMALLEST[site.dtype]:
            continue
        yield (
            site.path,
            f"eps {eps:g} in {str(site.dtype).removeprefix('torch.')}: a channel that is constant is divided by "
            f"{eps**0.5:.0e}, which half precision cannot hold apart from zero, nor its inverse from infinity",
        )


# below it eps is nothing: float16 has no smaller number, and 1 / sqrt(eps) of a gradient overflows or drowns
SMALLEST = {torch.float16: 6e-8, torch.bfloat16: 6e-8}


def decay_on_norm(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    decayed = None
    if optimizer is not None:
        decayed = {id(p) for g in optimizer.param_groups if g.get("weight_decay", 0) for p in g["params"]}
    elif not plan.weight_decay:
        return
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False) if is_norm(module) else ():
            if p.requires_grad and (decayed is None or id(p) in decayed):
                yield (
                    f"{path}.{name}".strip("."),
                    "weight decay pulls it to 0; the network's function does not need it small",
                )


def bias_before_norm(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of("batch", "instance", "group"):
        if site.fed_by is not None and _centres_each_channel(site) and not _other_axis(site):
            yield (
                f"{site.fed_by[0]}.bias",
                "the norm after it subtracts the mean, and the bias with it: it learns nothing",
            )


def _other_axis(site: Site) -> bool:
    """Whether a linear layer's features are on another axis than the one that is normalized."""
    return site.fed_by is not None and isinstance(site.fed_by[1], nn.Linear) and len(site.shape) > 2


def _centres_each_channel(site: Site) -> bool:
    return site.kind != "group" or getattr(site.module, "num_groups", 1) == site.shape[1]


def after_dropout(trace: Trace, plan: Plan, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, str]]:
    for site in trace.of(*BATCH):
        if site.dropout is not None and site.tracks and site.training:
            yield (
                site.path,
                f"it reads what {site.dropout} dropped out: dropout raises the variance in training alone, the running "
                "variance is too large in evaluation",
            )


RULES = (
    Rule(
        "one-sample-batch",
        "drop the last batch (drop_last=True), choose a batch size that leaves no single sample, or use group norm",
        cases.ONE_SAMPLE,
        one_sample,
    ),
    Rule("one-value-groups", "fewer groups, or no norm where one value is left", cases.ONE_VALUE, one_value),
    Rule(
        "frozen-but-moving",
        "call norm.eval() after every model.train(), for the layers that are frozen",
        cases.FROZEN,
        frozen_but_moving,
    ),
    Rule(
        "statistics-updated-twice",
        "one norm per place; under checkpointing take momentum 1 - sqrt(1 - momentum), or leave norms outside",
        cases.TWICE,
        updated_twice,
    ),
    Rule(
        "accumulation-is-no-large-batch",
        "group norm, or a batch that is large enough by itself; lower the momentum by the number of batches",
        cases.ACCUMULATION,
        accumulation,
    ),
    Rule(
        "ddp-buffers",
        "SyncBatchNorm.convert_sync_batchnorm(model) with drop_last=True, or group norm; one forward pass per step, or "
        "broadcast_buffers=False",
        cases.DDP,
        ddp_buffers,
    ),
    Rule(
        "weight-decay-on-norm",
        "two parameter groups: weight_decay=0 for every parameter of a norm, whatever its number of dimensions, and "
        "for biases",
        cases.DECAY,
        decay_on_norm,
    ),
    Rule(
        "small-batch",
        f"group norm, or at least {ENOUGH} samples in a batch",
        cases.SMALL_BATCH,
        small_batch,
    ),
    Rule(
        "unusual-momentum",
        "momentum=0.1 (torch's momentum is the weight of the new batch: 1 - 0.99 = 0.01)",
        cases.MOMENTUM,
        unusual_momentum,
    ),
    Rule(
        "averaged-away",
        "average before the norm, or use batch or group norm in front of the pooling",
        cases.AVERAGED,
        averaged_away,
    ),
    Rule("wrong-axis", "norm(x.transpose(1, 2)).transpose(1, 2), or layer norm", cases.WRONG_AXIS, wrong_axis),
    Rule("tiny-eps", "eps=1e-5, or the norms in float32", cases.TINY_EPS, tiny_eps),
    Rule("bias-before-norm", "bias=False in the layer before the norm", cases.BIAS, bias_before_norm),
    Rule("norm-after-dropout", "dropout after the last batch norm, or no dropout", cases.DROPOUT, after_dropout),
)


def lint(model: nn.Module, plan: Plan | None = None, *, optimizer: Any = None, size: Inputs = None) -> list[Warning_]:
    """What will bite when this model is trained by this plan, most grave first.

    `optimizer` tells its own weight decay per group; `size` is one sample's shape, a list of shapes for a model of
    several arguments, or a dictionary by their names (default: guessed from the first layer). Raises UsageError when
    the model cannot be run on two samples.
    """
    plan = plan or Plan()
    trace = watch(model, size)
    warnings = []
    for rule in RULES:
        alike: dict[str, tuple[str, list[str]]] = {}
        for where, message in rule.find(trace, plan, model, optimizer):
            alike.setdefault(_gist(message), (message, []))[1].append(where)
        for message, places in alike.values():
            warnings.append(Warning_(rule.name, tuple(places), message, rule.fix, rule.case))
    return warnings


def _gist(message: str) -> str:
    """The message without its numbers and names of layers: those alike are reported once, with all their places."""
    return re.sub(r"\b\S*\d\S*|\b\w+(\.\w+)+", "#", message)
