"""Norms over two processes answer what one process answers to the whole batch, and never hang."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import normlab
from normlab.layers import distributed
from normlab.layers.distributed import synchronize
from normlab.layers.norms import BatchInstanceNorm, BatchNorm
from normlab.models.residual import build_model
from normlab.norms import family as norms
from tests.layers import parity
from tests.layers.parity import Case
from tests.layers.ranks import WORLD, Ranks

EXACT = {"rtol": 1e-10, "atol": 1e-10}
CHANNELS, STEPS = 6, 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


# --- one layer ------------------------------------------------------------------------------------------------------


def shares(batch: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
    """A rank's samples of the whole batch."""
    return batch.split(list(counts))[rank]


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Inputs and incoming gradients of a few steps."""
    g = torch.Generator().manual_seed(len(str(case)))
    return [
        (
            parity.arrange(torch.randn(case.shape, generator=g, dtype=case.dtype) * 2 + case.mean, case.layout),
            parity.arrange(torch.randn(case.shape, generator=g, dtype=case.dtype), case.grad_layout),
        )
        for _ in range(STEPS)
    ]


def layer_of(case: Case) -> nn.Module:
    layer = parity.our_layer(case)
    parity.randomize(layer, torch.Generator().manual_seed(1))
    return layer


def steps(layer: nn.Module, given: list[tuple[Tensor, Tensor]]) -> list[parity.Result]:
    """What a layer answers in a few steps."""
    return [parity.run(layer, x, dy) for x, dy in given]


def train_layer(rank: int, case: Case, counts: tuple[int, ...], sabotage: str = "") -> list[parity.Result]:
    """A rank's steps on its share of each batch."""
    layer = layer_of(case)
    if sabotage != "rank-local":
        synchronize(layer)
    given = [(shares(x, counts, rank), shares(dy, counts, rank)) for x, dy in batches(case)]
    kept = distributed._sum_over_ranks, distributed._merge
    try:
        if sabotage == "rank-local gradient":
            distributed._sum_over_ranks = lambda g, group: g  # type: ignore[assignment]
        if sabotage == "uncounted":
            distributed._merge = lambda local, group: kept[1](_uncounted(local), group)
        with normlab.use_backend("reference"):
            results = steps(layer, given)
        for (x, _), got in zip(given, results, strict=True):
            if len(x):
                parity.same_form(got.y, x, "y")
                parity.same_form(got.grads["x"], x, "dx")
        return results
    finally:
        distributed._sum_over_ranks, distributed._merge = kept


def _uncounted(local: Any) -> Any:
    return normlab.Moments(lambda: (local.mean, local.var), local.shape, 1)


def check(ranks: Ranks, case: Case, counts: tuple[int, ...], sabotage: str = "", **tolerance: float) -> None:
    """Raise AssertionError unless two ranks together answer what torch's layer answers to the whole batch."""
    tolerance = tolerance or EXACT
    found = ranks.run(train_layer, case, counts, sabotage)
    stock = parity.stock_layer(case).double()
    stock.load_state_dict(layer_of(case).double().state_dict())
    whole = [(x.double(), dy.double()) for x, dy in batches(case)]
    for step, want in enumerate(steps(stock, whole)):
        got = [rank[step] for rank in found]
        close = lambda a, b, name: torch.testing.assert_close(  # noqa: E731
            a.double(),
            b,
            **tolerance,
            msg=lambda m: f"{case} {counts}, step {step}, {name}: {m}",  # noqa: B023
        )
        close(torch.cat([r.y for r in got]), want.y, "y")
        close(torch.cat([r.grads["x"] for r in got]), want.grads["x"], "dx")
        for name in list(want.grads)[1:]:
            close(sum(r.grads[name] for r in got), want.grads[name], f"gradient of {name}")
        for name, value in want.running.items():
            close(got[0].running[name], value.double(), name)
            assert torch.equal(got[0].running[name], got[1].running[name]), f"{name} differs between the ranks"


SHARES = ((5, 3), (4, 4), (4, 0), (0, 4), (1, 7))


@pytest.mark.parametrize("counts", SHARES, ids=str)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_layer(ranks: Ranks, norm: str, layout: str, counts: tuple[int, ...]) -> None:
    check(ranks, Case(norm, (sum(counts), CHANNELS, 5, 3), torch.float64, layout), counts)


@pytest.mark.parametrize(
    "case",
    [
        Case("bn", (8, CHANNELS), torch.float64),
        Case("bn", (8, CHANNELS, 7), torch.float64, "last"),
        Case("bin", (8, CHANNELS, 2, 3, 2), torch.float64, "last", "expanded"),
        Case("bn", (8, CHANNELS, 5, 3), torch.float64, "transposed", "transposed"),
        Case("bn", (8, CHANNELS, 5, 3), torch.float64, options={"momentum": None}),
        Case("bin", (8, CHANNELS, 5, 3), torch.float64, options={"affine": False}),
        Case("bn", (8, CHANNELS, 5, 3), torch.float64, options={"track_running_stats": False}),
    ],
    ids=str,
)
def test_every_form(ranks: Ranks, case: Case) -> None:
    check(ranks, case, (5, 3))


def test_far_from_zero_in_float32(ranks: Ranks) -> None:
    """Centred moments, merged centred: a mean of a thousand standard deviations costs nothing but its rounding."""
    check(ranks, Case("bn", (8, CHANNELS, 9, 9), mean=1000.0), (5, 3), rtol=2e-4, atol=2e-4)


def test_one_value_per_rank(ranks: Ranks) -> None:
    """One value per channel is too few for a process alone, and enough for two together."""
    check(ranks, Case("bn", (2, CHANNELS), torch.float64), (1, 1))


@pytest.mark.parametrize("sabotage", ["rank-local", "rank-local gradient", "uncounted"])
@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_teeth(ranks: Ranks, norm: str, sabotage: str) -> None:
    """The comparison fails for statistics of a rank alone, gradients of a rank alone, and ranks of equal weight."""
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(ranks, Case(norm, (8, CHANNELS, 5, 3), torch.float64), (5, 3), sabotage)


def train_fused(rank: int, counts: tuple[int, ...]) -> list[Tensor]:
    """Output and gradients of a layer that adds a residual and applies an activation."""
    layer = normlab.make_norm("bin", CHANNELS, act="silu", dtype=torch.float64)
    parity.randomize(layer, torch.Generator().manual_seed(1))
    if rank >= 0:
        synchronize(layer)
    whole = torch.randn(3, sum(counts), CHANNELS, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x, residual, dy = (shares(v, counts, rank) if rank >= 0 else v for v in whole)
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    y = layer(x, residual)
    return [y.detach(), *torch.autograd.grad(y, [x, residual], dy)]


def test_residual_and_activation(ranks: Ranks) -> None:
    pytest.importorskip("normlab.kernels.activations")
    got = ranks.run(train_fused, (5, 3))
    for parts, want in zip(zip(*got, strict=True), train_fused(-1, (5, 3)), strict=True):
        torch.testing.assert_close(torch.cat(parts), want, **EXACT)


# --- a norm of one's own ---------------------------------------------------------------------------------------------


def register_own() -> Any:
    """Pools over groups of channels first, and looks at the samples in two ways."""

    def own(m: normlab.Moments, p: Any, *, groups: int = 2) -> normlab.Affine:
        grouped = m.pool("c", groups)
        whole, batch = grouped.pool("n"), m.pool("n")
        weight = p.weight / normlab.norms.grid.sqrt(batch.var + whole.var + p.eps)
        return normlab.Affine(weight, whole.mean + p.mixture * (grouped.mean - batch.mean), p.bias)

    if "own" not in norms.norm_names():
        norms.register_norm("own", parameters={**norms.AFFINE, "mixture": norms.Learned(0.3, per_channel=False)})(own)
    return normlab.make_norm("own", CHANNELS, dtype=torch.float64)


def train_own(rank: int, case: Case, counts: tuple[int, ...]) -> list[parity.Result]:
    layer = synchronize(register_own())
    return steps(layer, [(shares(x, counts, rank), shares(dy, counts, rank)) for x, dy in batches(case)])


@pytest.mark.parametrize("counts", [(5, 3), (0, 8)], ids=str)
def test_own_norm(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...]) -> None:
    monkeypatch.setattr(norms, "_REGISTRY", dict(norms._REGISTRY))
    case = Case("own", (8, CHANNELS, 5, 3), torch.float64)
    found = ranks.run(train_own, case, counts)
    for step, want in enumerate(steps(register_own(), batches(case))):
        got = [rank[step] for rank in found]
        torch.testing.assert_close(torch.cat([r.y for r in got]), want.y, **EXACT)
        torch.testing.assert_close(torch.cat([r.grads["x"] for r in got]), want.grads["x"], **EXACT)
        for name in ("weight", "bias", "mixture"):
            torch.testing.assert_close(sum(r.grads[name] for r in got), want.grads[name], **EXACT)


def test_which_norms_are_synchronized() -> None:
    named = [name for name in norms.norm_names() if norms.describe(name).given != "size"]
    model = nn.Sequential(*(normlab.make_norm(name, 4) for name in named))
    before = [type(layer) for layer in model]
    assert synchronize(model) is model
    changed = [name for name, kind, layer in zip(named, before, model, strict=True) if type(layer) is not kind]
    assert changed == ["bn", "bin", "brn", "sn", "ibn-a", "mobn", "vobn", "power"]


# --- when nothing may be sent ----------------------------------------------------------------------------------------


def evaluate_alone(rank: int) -> None:
    """Rank 0 evaluates, forward and backward, while rank 1 is not there."""
    if rank == 1:
        return
    for norm in ("bn", "bin"):
        layer = normlab.make_norm(norm, CHANNELS).eval()
        plain = copy.deepcopy(layer)
        x, dy = torch.randn(2, 3, CHANNELS, 4, 4)
        got, want = parity.run(synchronize(layer), x, dy), parity.run(plain, x, dy)
        torch.testing.assert_close(got.y, want.y, rtol=0, atol=0)
        torch.testing.assert_close(got.grads, want.grads, rtol=0, atol=0)


def test_evaluation_sends_nothing(ranks: Ranks) -> None:
    ranks.run(evaluate_alone)


def count_traffic(rank: int) -> dict[str, list[int]]:
    """How many numbers a rank sends in one step, by collective."""
    sent: dict[str, list[int]] = {"all_gather": [], "all_reduce": []}
    gather, reduce = dist.all_gather, dist.all_reduce
    layer = synchronize(normlab.make_norm("bin", CHANNELS))
    try:
        dist.all_gather = lambda to, x, **k: (sent["all_gather"].append(x.numel()), gather(to, x, **k))
        dist.all_reduce = lambda x, **k: (sent["all_reduce"].append(x.numel()), reduce(x, **k))
        layer(torch.randn(5, CHANNELS, 8, 8, requires_grad=True)).sum().backward()
    finally:
        dist.all_gather, dist.all_reduce = gather, reduce
    return sent


def test_only_the_grid_crosses(ranks: Ranks) -> None:
    assert ranks.run(count_traffic) == [{"all_gather": [2 * CHANNELS + 1], "all_reduce": [2 * CHANNELS]}] * WORLD


def test_without_a_process_group() -> None:
    layer = BatchNorm(4)
    plain = copy.deepcopy(layer)
    x, dy = torch.randn(2, 3, 4, 5, 5)
    got, want = parity.run(synchronize(layer), x, dy), parity.run(plain, x, dy)
    torch.testing.assert_close((got.y, got.grads, got.running), (want.y, want.grads, want.running), rtol=0, atol=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(1, 4))


# --- what cannot be normalized ---------------------------------------------------------------------------------------


def refuse(rank: int, norm: str, counts: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    """The message of an error, the running mean after it, and a sum over the ranks, who must still be in step."""
    layer = synchronize(normlab.make_norm(norm, CHANNELS))
    with pytest.raises(ValueError) as error:
        layer(torch.randn(counts[rank], CHANNELS))
    total = torch.ones(())
    dist.all_reduce(total)
    return str(error.value), layer.running_mean, total


@pytest.mark.parametrize("counts", [(1, 0), (0, 1)], ids=str)
def test_one_value_altogether(ranks: Ranks, counts: tuple[int, ...]) -> None:
    (message, running, total), other = ranks.run(refuse, "bn", counts)
    assert "expected more than 1 value per channel when training, got 1 in all 2 processes" in message
    assert message == other[0]
    assert running.count_nonzero() == 0
    assert total == WORLD


def nothing_at_all(rank: int) -> dict[str, Tensor]:
    layer = synchronize(BatchNorm(CHANNELS))
    x = torch.randn(0, CHANNELS, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad.count_nonzero() == 0
    return layer.state_dict()


def test_no_samples_anywhere(ranks: Ranks) -> None:
    plain = BatchNorm(CHANNELS)
    plain(torch.randn(0, CHANNELS, 4, 4))
    for found in ranks.run(nothing_at_all):
        torch.testing.assert_close(found, plain.state_dict(), rtol=0, atol=0)


def wrong_channels(rank: int) -> str:
    with pytest.raises(ValueError) as error:
        synchronize(BatchNorm(CHANNELS))(torch.randn(1, CHANNELS + 1))
    return str(error.value)


def test_the_layers_own_errors_stay(ranks: Ranks) -> None:
    assert all(
        f"expected {CHANNELS} channels in dimension 1, got {CHANNELS + 1}" in m for m in ranks.run(wrong_channels)
    )


# --- what a layer stays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BatchNorm, BatchInstanceNorm])
def test_the_layer_stays_what_it_was(kind: type[nn.Module]) -> None:
    layer = kind(4)
    state, identity = (
        {k: v.clone() for k, v in layer.state_dict().items()},
        {k: id(v) for k, v in layer.named_parameters()},
    )
    assert synchronize(synchronize(layer)) is layer
    assert isinstance(layer, kind)
    assert list(layer.state_dict()) == list(state)
    torch.testing.assert_close(dict(layer.state_dict()), state)
    assert {k: id(v) for k, v in layer.named_parameters()} == identity
    assert repr(layer).startswith(f"{kind.__name__}(4, ")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        torch.testing.assert_close(dict(twin.state_dict()), state)


def twice(rank: int) -> None:
    x = torch.randn(4, CHANNELS, requires_grad=True)
    (dx,) = torch.autograd.grad(synchronize(BatchNorm(CHANNELS))(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_second_derivatives_are_refused(ranks: Ranks) -> None:
    ranks.run(twice)


# --- a network -------------------------------------------------------------------------------------------------------


def network(norm: str) -> nn.Module:
    return build_model("resnet8:width=4", norm, num_classes=3, in_channels=2, image_size=(8, 8), seed=5).double()


def train_network(
    model: nn.Module, forward: Any, images: Tensor, labels: Tensor, scale: float
) -> tuple[list[float], dict[str, Tensor]]:
    """Three steps of SGD; the loss is the sum over the images given, times `scale`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x, y in zip(images, labels, strict=True):
        loss = functional.cross_entropy(forward(x), y, reduction="sum") * scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {k: v.detach().clone() for k, v in model.state_dict().items()}


def photographs(count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, count, 2, 8, 8, generator=g).double(), torch.randint(3, (3, count), generator=g)


def train_share(rank: int, norm: str, counts: tuple[int, ...], synchronized: bool) -> Any:
    images, labels = photographs(sum(counts))
    model = network(norm)
    if synchronized:
        synchronize(model)
    where = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    return train_network(model, DistributedDataParallel(model), images[:, where], labels[:, where], WORLD / sum(counts))


def check_network(ranks: Ranks, norm: str, counts: tuple[int, ...], synchronized: bool = True) -> None:
    found = ranks.run(train_share, norm, counts, synchronized)
    images, labels = photographs(sum(counts))
    model = network(norm)
    losses, state = train_network(model, model, images, labels, 1 / sum(counts))
    for _, got in found:
        torch.testing.assert_close(got, state, rtol=1e-8, atol=1e-9)
    # lists of numbers become float32 unless told otherwise, and differed by a unit of it
    together = torch.tensor([rank[0] for rank in found], dtype=torch.float64).sum(0) / WORLD
    torch.testing.assert_close(together, torch.tensor(losses, dtype=torch.float64), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("counts", [(5, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_network(ranks: Ranks, norm: str, counts: tuple[int, ...]) -> None:
    check_network(ranks, norm, counts)


def test_network_has_teeth(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_network(ranks, "bn", (5, 3), synchronized=False)


# --- the documentation -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_listing_in_the_documentation(tmp_path: Path) -> None:
    """It runs, and all processes end with the same network, which is that of one process with whole batches."""
    page = (Path(__file__).parents[2] / "docs" / "study.md").read_text()
    (listing,) = re.findall(
        r"<!-- tests/layers/test_distributed.py runs this -->\n```python\n(.*?)```", page, re.DOTALL
    )
    script = tmp_path / "train.py"
    script.write_text(listing + "torch.save(model.state_dict(), f'{world}-{rank}.pt')\n")
    for world in (1, WORLD):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={world}",
            "train.py",
        ]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
    alone, *together = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for state in together:
        torch.testing.assert_close(state, alone, rtol=1e-3, atol=1e-4)
