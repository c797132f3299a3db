"""The smallest program for every rule: each runs by itself, and its assertions show what goes wrong."""

ONE_SAMPLE = """
import torch
norm = torch.nn.BatchNorm1d(4)
try:
    norm(torch.randn(1, 4))
except ValueError as error:
    assert "more than 1 value per channel" in str(error)
else:
    raise AssertionError("one sample was accepted")
images = torch.randn(8, 4, 2, 2)
norm = torch.nn.BatchNorm2d(4)
alone, together = norm(images[:1]), norm(images)[:1]
assert (alone - together).abs().max() > 0.1  # the same image, another output
"""

ONE_VALUE = """
import torch
norm = torch.nn.GroupNorm(4, 4)  # four groups of one channel
assert norm(torch.randn(8, 4)).abs().max() < 1e-3  # whatever the input
"""

FROZEN = """
import torch
norm = torch.nn.BatchNorm2d(3)
for p in norm.parameters():
    p.requires_grad_(False)
before = norm.running_mean.clone()
norm(torch.randn(8, 3, 4, 4) + 5)
assert (norm.running_mean - before).abs().max() > 0.1  # frozen, and moved
norm.eval()
before = norm.running_mean.clone()
norm(torch.randn(8, 3, 4, 4) + 5)
assert (norm.running_mean == before).all()
"""

TWICE = """
import torch
from torch.utils.checkpoint import checkpoint
once, twice = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
x = (torch.randn(8, 3) + 5).requires_grad_(True)
once(x).sum().backward()
checkpoint(twice, x, use_reentrant=False).sum().backward()
assert twice.num_batches_tracked == 2 * once.num_batches_tracked
assert (twice.running_mean > 1.5 * once.running_mean).all()
"""

ACCUMULATION = """
import torch
norm = torch.nn.BatchNorm1d(3)
x = torch.randn(8, 3) * 2 + torch.arange(8.0)[:, None]
large = norm(x)
accumulated = torch.cat([norm(part) for part in x.split(2)])
assert (large - accumulated).abs().max() > 0.5  # other outputs, hence other gradients
group = torch.nn.GroupNorm(1, 3)
assert torch.allclose(group(x), torch.cat([group(part) for part in x.split(2)]))
"""

DDP = """
import torch
# two processes, each with its own half of a batch; DDP then copies the first one's buffers to the second
ranks = [torch.nn.BatchNorm1d(3, momentum=1.0) for _ in range(2)]
x = torch.cat([torch.randn(4, 3), torch.randn(4, 3) + 10])
outputs = torch.cat([rank(half) for rank, half in zip(ranks, x.chunk(2))])
whole = torch.nn.BatchNorm1d(3, momentum=1.0)
assert (outputs - whole(x)).abs().max() > 0.5  # not the large batch's output
ranks[1].load_state_dict(ranks[0].state_dict())  # what broadcast_buffers=True does
assert (ranks[1].running_mean - whole.running_mean).abs().max() > 3  # half of the data is never seen
"""

DECAY = """
import torch
norm = torch.nn.BatchNorm1d(3)
optimizer = torch.optim.SGD(norm.parameters(), lr=0.1, weight_decay=0.1)
for _ in range(100):
    optimizer.zero_grad()
    (0 * norm(torch.randn(8, 3))).sum().backward()  # the data asks for nothing
    optimizer.step()
assert (norm.weight < 0.5).all()  # and the scale shrinks all the same
"""

BIAS = """
import torch
layer, norm = torch.nn.Linear(5, 3, bias=True), torch.nn.BatchNorm1d(3)
x = torch.randn(16, 5)
before = norm(layer(x))
with torch.no_grad():
    layer.bias += 100
assert torch.allclose(norm(layer(x)), before, atol=1e-3)  # the bias has no effect
(norm(layer(x)) ** 3).sum().backward()
assert layer.bias.grad.abs().max() < 1e-2 * layer.weight.grad.abs().max()  # and no gradient
"""

DROPOUT = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3, momentum=0.01))
x = torch.randn(4096, 3) + 2
for _ in range(500):
    model(x)
model.eval()
assert (model(x).var(0) < 0.3).all()  # the variance of evaluation is no longer 1
"""

SMALL_BATCH = """
import torch
torch.manual_seed(0)
norm = torch.nn.BatchNorm1d(4)
data = torch.randn(1000, 4)
means = torch.stack([batch.mean(0) for batch in data.split(2)])
assert means.std(0).min() > 0.5  # half the data's own spread, from batch to batch
assert torch.stack([batch.mean(0) for batch in data.split(100)]).std(0).max() < 0.25
"""

MOMENTUM = """
import torch
still, last = torch.nn.BatchNorm1d(3, momentum=0.0), torch.nn.BatchNorm1d(3, momentum=0.99)
for size in (10.0, 1.0):
    x = size * torch.randn(64, 3)
    still(x), last(x)
assert (still.running_var == 1).all()  # never moved
assert (last.running_var < 10).all()  # the batch before, a hundred times larger, is forgotten
"""

AVERAGED = """
import torch
norm, pool = torch.nn.InstanceNorm2d(3), torch.nn.AdaptiveAvgPool2d(1)
assert pool(norm(7 * torch.randn(2, 3, 8, 8) + 5)).abs().max() < 1e-5  # whatever the input
"""

WRONG_AXIS = """
import torch
linear, norm = torch.nn.Linear(5, 12), torch.nn.BatchNorm1d(12)
y = norm(linear(torch.randn(64, 12, 5)))
assert y.mean((0, 2)).abs().max() < 1e-5  # axis 1 has mean 0,
assert y.mean((0, 1)).abs().max() > 0.05  # the features of the linear layer do not
"""

TINY_EPS = """
import torch
x = torch.ones(4, 3, requires_grad=True)
torch.nn.functional.layer_norm(x, (3,), eps=1e-12).backward(torch.tensor([[1.0, 0.0, 0.0]] * 4))
assert x.grad.abs().max() > torch.finfo(torch.float16).max  # infinite in half precision
assert torch.tensor(1e-12).half() == 0
"""
