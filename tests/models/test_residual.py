"""Networks: shapes, the same start for every norm, and the door for the user's own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import normlab
import normlab.layers
from normlab.errors import UsageError
from normlab.models.residual import Projection, build_model
from normlab.norms import describe

torch.set_num_threads(1)


# norms that a network with every shape and shortcut is built with; all of them meet one
SEVERAL = normlab.norm_names()[:9]
IN_NETWORKS = tuple(name for name in normlab.norm_names() if describe(name).given is None)


def convolutions(model: nn.Module) -> list[torch.Tensor]:
    """Weights of everything that is no norm, in order."""
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(
    ("norm", "size", "channels"),
    [*((n, 8, 1) for n in IN_NETWORKS), *((n, *shape) for n in SEVERAL for shape in ((32, 3), (96, 3)))],
)
def test_every_norm_runs_at_every_size(norm: str, size: int, channels: int) -> None:
    model = build_model("resnet8", norm, num_classes=5, in_channels=channels, image_size=(size, size), seed=1)
    logits = model(torch.randn(2, channels, size, size))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# Bug: a comparison of ibn-b trained instance norm everywhere, to the last digit.
def test_a_norm_behind_the_additions_leaves_the_branches_their_own() -> None:
    model = build_model("resnet14:width=4", "ibn-b", num_classes=5, in_channels=3, seed=1)
    found = {name: type(m).__name__ for name, m in model.named_modules() if hasattr(m, "running_mean")}
    instances = {name for name, kind in found.items() if kind == "InstanceNorm"}
    assert instances == {"blocks.1.behind", "blocks.3.behind"}  # which end the first two of three stages
    assert set(found.values()) == {"BatchNorm", "InstanceNorm"}
    block, x = model.blocks[1].eval(), torch.randn(2, 4, 8, 8)
    branch = block.norm2(block.conv2(functional.relu(nn.functional.batch_norm(
        block.conv1(x), block.norm1.running_mean, block.norm1.running_var, block.norm1.weight, block.norm1.bias
    ))))  # fmt: skip
    torch.testing.assert_close(block(x), functional.relu(functional.instance_norm(branch + x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", SEVERAL)
@pytest.mark.parametrize("spec", ["resnet14", "resnet8:shortcut=zero-padding:width=8"])
def test_same_seed_gives_every_norm_the_same_convolutions(norm: str, spec: str) -> None:
    reference = build_model(spec, "torch-bn", num_classes=10, in_channels=3, seed=7)
    model = build_model(spec, norm, num_classes=10, in_channels=3, seed=7)
    for a, b in zip(convolutions(reference), convolutions(model), strict=True):
        assert torch.equal(a, b)
    other = build_model(spec, norm, num_classes=10, in_channels=3, seed=8)
    assert not torch.equal(convolutions(model)[0], convolutions(other)[0])


def test_a_norm_that_draws_random_numbers_does_not_move_the_convolutions() -> None:
    def noisy(channels: int) -> nn.Module:
        torch.rand(17)
        return nn.Identity()

    quiet = build_model("resnet8", "none", num_classes=3, in_channels=1, seed=0)
    moved = build_model("resnet8", noisy, num_classes=3, in_channels=1, seed=0)
    for a, b in zip(convolutions(quiet), convolutions(moved), strict=True):
        assert torch.equal(a, b)


def test_building_with_a_seed_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_model("resnet8", "bn", num_classes=3, in_channels=1, seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("depth", "layers"), [(8, 8), (14, 14), (20, 20)])
def test_depth_counts_the_layers_on_the_longest_path(depth: int, layers: int) -> None:
    model = build_model(f"resnet{depth}:shortcut=zero-padding", "bn", num_classes=10, in_channels=3)
    assert len(convolutions(model)) == layers


def test_published_size_of_resnet20() -> None:
    # He et al. 2016, table 6: 0.27 million parameters (option A)
    model = build_model("resnet20:shortcut=zero-padding", "bn", num_classes=10, in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == 269_722


def test_convolutions_have_a_bias_only_where_no_norm_follows() -> None:
    def biases(norm: str) -> set[bool]:
        model = build_model("resnet8", norm, num_classes=10, in_channels=3)
        return {m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)}

    assert biases("bn") == {False}
    assert biases("none") == {True}


def test_a_large_image_is_shrunk_four_times_before_the_first_stage() -> None:
    large = build_model("resnet8", "bn", num_classes=10, in_channels=3, image_size=(224, 224))
    small = build_model("resnet8", "bn", num_classes=10, in_channels=3, image_size=(64, 64))
    assert large.stem(torch.zeros(1, 3, 224, 224)).shape == (1, 16, 56, 56)  # type: ignore[operator]
    assert small.stem(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 64, 64)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet15", "6n + 2"),
        ("resnet2", "6n + 2"),
        ("vgg", "resnet14"),
        ("resnet14:depth=3", "depth=3"),
        ("resnet14:shortcut=none", "zero-padding"),
        ("nowhere.at_all:factory", "nowhere"),
        ("normlab.errors:nothing", "nothing"),
    ],
)
def test_a_wrong_name_is_told_with_what_was_expected(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        build_model(spec, "bn", num_classes=10, in_channels=3)


@pytest.fixture
def own_module(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(norm, num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def sized(norm, num_classes, in_channels, image_size, dropout=0.0):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout),\n"
        "                         nn.Linear(in_channels * image_size[0] * image_size[1], num_classes))\n"
        "def wrong(norm, num_classes, in_channels):\n"
        "    return 'a network'\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_nets", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.mark.usefixtures("own_module")
def test_a_model_of_ones_own_from_the_working_directory() -> None:
    tiny = build_model("own_nets:tiny", "gn:groups=2", num_classes=3, in_channels=1)
    assert tiny(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    sized = build_model("own_nets:sized", "bn", num_classes=3, in_channels=1, image_size=(8, 8), dropout=0.5)
    assert sized[1].p == 0.5  # type: ignore[index]


@pytest.mark.usefixtures("own_module")
def test_a_model_of_ones_own_that_cannot_serve_is_told_why() -> None:
    with pytest.raises(UsageError, match="dropout"):
        build_model("own_nets:tiny", "bn", num_classes=3, in_channels=1, dropout=0.5)
    with pytest.raises(UsageError, match=r"torch\.nn\.Module"):
        build_model("own_nets:wrong", "bn", num_classes=3, in_channels=1)


class Composed(nn.Module):
    """One of our layers as if it were a stranger's: it takes nothing but x."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def same_network(norm: str, spec: str = "resnet8", size: int = 9) -> tuple[nn.Module, nn.Module]:
    """A network whose norms do the ReLU and the addition themselves, and one where they follow."""
    options = {"num_classes": 5, "in_channels": 2, "image_size": (size, size), "seed": 3}
    fused = build_model(spec, norm, **options).double()  # type: ignore[arg-type]
    composed = build_model(spec, lambda c: Composed(normlab.make_norm(norm, c)), **options).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for a, b in zip(fused.parameters(), composed.parameters(), strict=True):
            if a.dim() == 1:  # norms that start at 1 and 0 would hide which of them is used
                a.uniform_(0.2, 0.8, generator=generator)
                b.copy_(a)
    return fused, composed


@pytest.mark.parametrize("norm", [*(name for name in SEVERAL if name != "none"), "gn:groups=2"])
@pytest.mark.parametrize(
    ("spec", "size"), [("resnet8", 9), ("resnet8:shortcut=zero-padding", 8), ("resnet8", 66)], ids=str
)
def test_norms_that_add_and_rectify_change_nothing(norm: str, spec: str, size: int) -> None:
    fused, composed = same_network(norm, spec, size)
    images = torch.randn(3, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outcomes = []
    for model in (fused, composed):
        x = images.clone().requires_grad_()
        logits = model(x)
        logits.square().sum().backward()
        outcomes.append([logits, x.grad, *(p.grad for p in model.parameters()), *model.buffers(), model.eval()(x)])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_our_layers_apply_the_relu_and_a_subclass_of_them_does_not() -> None:
    class Halved(normlab.layers.BatchNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x) - 0.5

    def relus(norm: object) -> int:
        model = build_model("resnet8", norm, num_classes=2, in_channels=1)  # type: ignore[arg-type]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(torch.zeros(2, 1, 8, 8))
        return sum(event.name == "aten::relu" for event in profile.events())

    for norm in SEVERAL:
        assert relus(norm) == (7 if norm in ("none", "torch-bn") else 0)
    assert relus(Halved) == 7
    assert relus(lambda channels: normlab.make_norm("bn", channels, act="silu")) == 7


@pytest.mark.parametrize("norm", SEVERAL)
def test_state_dict_knows_nothing_of_what_a_norm_does_besides(norm: str) -> None:
    model = build_model("resnet8", norm, num_classes=2, in_channels=1, image_size=(96, 96))
    names = {name for name in model.state_dict() if not name.startswith(("classifier", "blocks.0.", "blocks.1."))}
    own = set(normlab.make_norm(norm, 16).state_dict())
    convolutions = {"stem.0", "blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut.conv"}
    norms = {"stem.1", "blocks.2.norm1", "blocks.2.norm2", "blocks.2.shortcut.norm"}
    biases = {f"{name}.bias" for name in convolutions if norm == "none"}
    assert names == {f"{c}.weight" for c in convolutions} | biases | {f"{n}.{name}" for n in norms for name in own}


def test_a_norm_that_is_put_in_later_is_followed_by_a_relu() -> None:
    model = build_model("resnet8", "bn", num_classes=2, in_channels=1, seed=0).eval()
    stock = build_model("resnet8", "torch-bn", num_classes=2, in_channels=1, seed=0).eval()
    x = torch.randn(2, 1, 8, 8)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, normlab.layers.BatchNorm):
                setattr(parent, name, nn.BatchNorm2d(child.num_features).eval())
    torch.testing.assert_close(model(x), stock(x))


# torch's strided 1x1 convolution of 4 channels, channels-last, wrote past its buffers on CPUs with AVX2 alone; the
# process was aborted some steps later.
def test_narrow_networks_train_channels_last() -> None:
    script = """
import torch
from normlab.models import build_model
model = build_model("resnet8:width=4", "none", num_classes=3, in_channels=1, image_size=(8, 8))
model = model.to(memory_format=torch.channels_last)
for _ in range(30):
    images = torch.randn(32, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    model(images).square().mean().backward()
print("trained")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "trained\n", done.stderr


def test_a_projection_takes_every_second_pixel() -> None:
    for channels in (4, 16):
        projection = Projection(lambda _: nn.Identity(), channels, 8, 2).double()
        x = torch.randn(2, channels, 7, 7, dtype=torch.float64)
        expected = functional.conv2d(x, projection.conv.weight, projection.conv.bias, stride=2)
        assert torch.allclose(projection(x), expected, rtol=0, atol=1e-14)
