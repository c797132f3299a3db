"""The private names of torch that normlab uses, each with what happens where a version of torch lacks it.

- `_C._are_functorch_transforms_active`: a transform of `torch.func` is under way. Else transforms raise torch's error.
- `_C._functorch.is_legacy_batchedtensor`: a gradient is a batch of them. Else vectorized gradients raise an error.
- `autograd.forward_ad._current_level`: forward-mode differentiation is under way. Else it raises torch's error.
- `_C._increment_version`: counts a change that torch does not see. Else zero is added to the tensor, which it sees.
- `_C._len_torch_dispatch_stack`: somebody looks at the operators that are called. Else they are called always: slower.
- `_C._get_tracing_state`: `torch.jit.trace` is under way. Else `torch.jit.is_tracing` says so.
- `_C._current_graph_task_id`: a backward pass is under way. Else statistics count twice under activation checkpointing.
- `nn.modules.batchnorm._BatchNorm`, `nn.modules.instancenorm._InstanceNorm`, `nn.modules.batchnorm._NormBase`: torch's
  base classes. Else they are found as the bases of the public classes.
- `_C._FunctionBase.apply`: `autograd.Function.apply` without its preparations. Else those are made: slower.
- `SymInt.node.hint`: the size that a symbolic one has in the example, which guards nothing. Else the size is guarded.
- `utils._pytree.tree_leaves` and `tree_map`: what lies in nested arguments. Else lists, tuples, dicts are walked here.
- `ops.mkldnn._is_mkldnn_bf16_supported`: this CPU has arithmetic for bfloat16. Else it is taken to have none.

Nothing else in normlab uses a private name of torch to compute, but for names that are public in effect, since whoever
writes a layer, a hook or a checkpoint relies on them: a module's dicts (`_parameters`, `_buffers`, `_modules` and those
of its hooks), `_load_from_state_dict`, `_apply`, and a tensor's `_version`; and for `Tensor._is_zerotensor` in
`normlab.kernels.layout`, without which torch's zeros without memory raise the error of memory that was freed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_MISSING = object()


def _name(path: str, otherwise: Any) -> Any:
    """What torch has under this dotted path, or `otherwise`."""
    found: Any = torch
    for part in path.split("."):
        found = getattr(found, part, _MISSING)
        if found is _MISSING:
            return otherwise
    return found


def _traces() -> bool | None:
    is_tracing: Any = getattr(torch.jit, "is_tracing")  # noqa: B009 - torch does not list it
    return True if is_tracing() else None


def _tree_map(change: Any, tree: Any) -> Any:
    """The nested lists, tuples and dicts with everything in them changed."""
    if type(tree) in (dict, OrderedDict):
        return type(tree)((key, _tree_map(change, part)) for key, part in tree.items())
    if type(tree) in (list, tuple):
        return type(tree)(_tree_map(change, part) for part in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_tree_map(change, part) for part in tree))
    return change(tree)


def _tree_leaves(tree: Any) -> list[Any]:
    """What lies in nested lists, tuples and dicts."""
    found: list[Any] = []
    _tree_map(found.append, tree)
    return found


def _add_zero(tensors: Any) -> None:
    for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
        with torch.no_grad():
            tensor.add_(0)


transforms_active = _name("_C._are_functorch_transforms_active", lambda: False)
is_batch_of_gradients = _name("_C._functorch.is_legacy_batchedtensor", lambda tensor: False)
count_change = _name("_C._increment_version", _add_zero)
dispatch_modes = _name("_C._len_torch_dispatch_stack", lambda: 1)
tracing_state = _name("_C._get_tracing_state", _traces)
tree_map: Callable[[Callable[[Any], Any], Any], Any] = _name("utils._pytree.tree_map", _tree_map)
tree_leaves: Callable[[Any], list[Any]] = _name("utils._pytree.tree_leaves", _tree_leaves)
cpu_has_bf16 = _name("ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
graph_task = _name("_C._current_graph_task_id", lambda: -1)

_bases = nn.BatchNorm1d.__mro__[1], nn.InstanceNorm1d.__mro__[1]
if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    BatchNormBase: TypeAlias = _BatchNorm
    InstanceNormBase: TypeAlias = _InstanceNorm
else:
    BatchNormBase = _name("nn.modules.batchnorm._BatchNorm", _bases[0])
    InstanceNormBase = _name("nn.modules.instancenorm._InstanceNorm", _bases[1])
NormBase: Any = _name("nn.modules.batchnorm._NormBase", BatchNormBase.__mro__[1])  # of both


def hint(size: Any) -> int:
    """A size as a number; of a symbolic one that of the example that is traced."""
    if isinstance(size, int):
        return size
    found = getattr(getattr(size, "node", None), "hint", None)
    return int(size) if found is None else int(found)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is under way."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def apply_of(function: type[torch.autograd.Function]) -> Any:
    """The function's `apply`; what torch prepares for its transforms before it takes longer than a small norm.

    It is needed where we cannot see that a transform is under way: then it raises torch's error.
    """
    base = _name("_C._FunctionBase", None)
    sees_transforms = _name("_C._are_functorch_transforms_active", None) is not None
    short: Any = super(torch.autograd.Function, function)
    return short.apply if base is not None and sees_transforms else function.apply
