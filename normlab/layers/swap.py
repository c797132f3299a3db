"""Normlab's layers in the place of torch's, in a model that somebody else wrote.

`swap_norms` changes the layers and nothing else: whoever holds one of them, its parameters or its buffers, holds the
same objects afterwards. `fuse_norms` goes on: it follows the model with torch.fx, and where a norm's output is only
added to something and put through an activation, the layer does that too, in its own pass over memory.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from normlab.errors import UsageError
from normlab.kernels.activations import SLOPE, Activation
from normlab.layers import ranked
from normlab.layers.norms import GroupNorm, LayerNorm, Norm, RMSNorm, takes_act

Model = TypeVar("Model", bound=nn.Module)


def swap_norms(model: Model) -> Model:
    """Turn torch's normalization layers in a model into normlab's, in place; answers the model.

    Batch and instance norm of one to three dimensions, group, layer and RMS norm. They keep what they have: parameters
    and buffers (the same objects, so an optimizer made before goes on), options, mode, hooks, `state_dict`. A layer of
    a class of its own (synchronized, lazy, parametrized, somebody's subclass) is left alone. What
    follows a norm stays where it is; `fuse_norms` takes it in.
    """
    for module in model.modules():
        _swap(module)
    return model


def fuse_norms(model: nn.Module, *example: Any) -> fx.GraphModule:
    """A model with its norms swapped, and the additions and activations that follow them inside: a module to train.

        fused = normlab.fuse_norms(model, torch.randn(2, 3, 224, 224))
        fused(images)  # what model(images) answers

    Where nobody else sees what lies between, y = act(norm(x) + residual) becomes one layer; act is one of
    `normlab.kernels.activations`, and the residual has the output's shape. The answer is a `torch.fx.GraphModule`:
    the model's forward pass as torch.fx follows it, on the model's own parameters, with its `state_dict` keys, in its
    place. The model still computes what it did. `example` are inputs such as it gets; both are run on them in
    evaluation mode, and must agree.

    Raises UsageError if torch.fx cannot follow the model (its forward pass depends on values), if it takes another path
    in training than in evaluation, if the example does not fit, or if the two do not agree.
    """
    expected = _evaluated(model, example)
    fused = fx.GraphModule(model, _followed(model), type(model).__name__)
    fused.training = model.training
    _swap_copies(fused)
    with _evaluating(fused):
        ShapeProp(fused).propagate(*_copied(example))
    for node in list(fused.graph.nodes):
        _pass_by(fused, node)
    for node in list(fused.graph.nodes):
        _fuse(fused, node)
    fused.delete_all_unused_submodules()
    _arrange(fused, model)
    fused.graph.lint()
    fused.recompile()
    _compare(_evaluated(fused, example), expected)
    return fused


# --- swapping --------------------------------------------------------------------------------------------------------


def _batch(stock: Any) -> Norm:
    return _RANKED[type(stock)](
        stock.num_features, stock.eps, stock.momentum, stock.affine, stock.track_running_stats, device="meta"
    )


def _group(stock: Any) -> Norm:
    return GroupNorm(stock.num_groups, stock.num_channels, stock.eps, stock.affine, device="meta")


def _layer(stock: Any) -> nn.Module:
    return LayerNorm(stock.normalized_shape, stock.eps, stock.elementwise_affine, device="meta")


def _rms(stock: Any) -> nn.Module:
    return RMSNorm(stock.normalized_shape, stock.eps, stock.elementwise_affine, device="meta")


_RANKED: dict[type, Callable[..., Norm]] = {
    nn.BatchNorm1d: ranked.BatchNorm1d,
    nn.BatchNorm2d: ranked.BatchNorm2d,
    nn.BatchNorm3d: ranked.BatchNorm3d,
    nn.InstanceNorm1d: ranked.InstanceNorm1d,
    nn.InstanceNorm2d: ranked.InstanceNorm2d,
    nn.InstanceNorm3d: ranked.InstanceNorm3d,
}
_OURS: dict[type, Callable[[Any], nn.Module]] = {
    **dict.fromkeys(_RANKED, _batch),
    nn.GroupNorm: _group,
    nn.LayerNorm: _layer,
    nn.RMSNorm: _rms,
}


def _swap(module: nn.Module) -> None:
    if type(module) in _OURS:
        ours = _OURS[type(module)](module)
        # what the layer has, its parameters and buffers among it, comes before what ours was made with
        vars(module).update({k: v for k, v in vars(ours).items() if k not in vars(module)})
        for name, buffer in ours._buffers.items():
            module._buffers.setdefault(name, buffer)
        module.__class__ = type(ours)


def _swap_copies(fused: fx.GraphModule) -> None:
    """Swap norms in copies that share parameters and buffers, so that the model's own layers stay what they are."""
    copies: dict[int, nn.Module] = {}
    for node in fused.graph.nodes:
        if node.op == "call_module":
            module = fused.get_submodule(node.target)
            if isinstance(module, _NORMS):
                own = copies.setdefault(id(module), copy.copy(module))
                _swap(own)
                fused.set_submodule(node.target, own)


def _arrange(fused: nn.Module, model: nn.Module) -> None:
    """The model's order of parts, by which an optimizer's `state_dict` knows them, and which buffers are not saved.

    torch.fx has the order of use, and saves all of them.
    """
    for kind in ("_modules", "_parameters", "_buffers"):
        parts = vars(fused)[kind]
        for name in vars(model)[kind]:
            if name in parts:
                parts[name] = parts.pop(name)
    fused._non_persistent_buffers_set.update(model._non_persistent_buffers_set & fused._buffers.keys())
    for name, part in fused.named_children():
        if type(part) is nn.Module:  # a container, made by torch.fx
            _arrange(part, model.get_submodule(name))


# --- following -------------------------------------------------------------------------------------------------------

_NORMS = (Norm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class _Tracer(fx.Tracer):
    """Follows a model down to torch's layers, and to norms of whatever class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _NORMS) or super().is_leaf_module(m, module_qualified_name)


def _followed(model: nn.Module) -> fx.Graph:
    """The forward pass, the same in training and in evaluation."""
    graphs = []
    for training in (True, False):
        with _evaluating(model, training):
            try:
                graphs.append(_Tracer().trace(model))
            except Exception as error:
                raise UsageError(
                    f"fuse_norms: torch.fx cannot follow the forward pass of {type(model).__name__} ({_told(error)}); "
                    "fuse the parts of it that it can follow, or use swap_norms"
                ) from error
    first, second = (graph.python_code("self").src for graph in graphs)
    if first != second:
        raise UsageError(
            f"fuse_norms: the forward pass of {type(model).__name__} is another one in training than in evaluation "
            "(it asks for self.training, as functional dropout does); make that a module of its own, or use swap_norms"
        )
    return graphs[0]


@contextmanager
def _evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation mode, or training mode throughout, without gradients; afterwards every module is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _evaluated(model: nn.Module, example: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a model answers in evaluation mode."""
    with _evaluating(model):
        try:
            answer = model(*_copied(example))
        except Exception as error:
            raise UsageError(
                f"fuse_norms: {type(model).__name__} does not take the example ({_told(error)})"
            ) from error
    return [v for v in tree_leaves(answer) if isinstance(v, Tensor)]


def _copied(example: tuple[Any, ...]) -> list[Any]:
    """Inputs that a model may change."""
    return [v.clone() if isinstance(v, Tensor) else copy.copy(v) for v in example]


def _compare(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        error = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
        bound = float(torch.finfo(theirs.dtype).eps) ** 0.5 if theirs.is_floating_point() else 0.0
        if not error <= bound * (1 + float(theirs.abs().max()) if theirs.numel() else 1):
            raise UsageError(
                f"fuse_norms: on the example the fused model is off by {error:.2g}; a layer's input or output may be "
                "changed in place by somebody else, or depend on chance: use swap_norms"
            )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


# --- fusing ----------------------------------------------------------------------------------------------------------

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = (operator.iadd, "add_")
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    functional.leaky_relu: "leaky_relu",
    functional.silu: "silu",
    functional.gelu: "gelu",
}


def _pass_by(fused: fx.GraphModule, node: fx.Node) -> None:
    """Leave out an identity, which stands for something that was switched off and may stand behind a norm."""
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        module = fused.get_submodule(str(node.target))
        if type(module) is nn.Identity and not _is_watched(module):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            fused.graph.erase_node(node)


def _fuse(fused: fx.GraphModule, node: fx.Node) -> None:
    """Take the addition and the activation behind a norm into it."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return
    layer = fused.get_submodule(str(node.target))
    calls = [n for n in fused.graph.nodes if n.op == "call_module" and fused.get_submodule(n.target) is layer]
    if not takes_act(layer) or len(calls) > 1 or _is_watched(layer):
        return
    addition = _addition_behind(node)
    residual = [] if addition is None else [v for v in addition.args if v is not node]
    act_node, act = _activation_behind(fused, addition or node)
    last = act_node or addition
    if last is None:
        return
    layer.act = act
    with fused.graph.inserting_before(last):
        call = fused.graph.call_module(str(node.target), (*node.args, *residual))
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    for gone in (act_node, addition, node):
        if gone is not None:
            fused.graph.erase_node(gone)


def _addition_behind(node: fx.Node) -> fx.Node | None:
    """The addition of something of the same form, if nothing else becomes of a node."""
    user = _only_user(node)
    if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
        return None
    others = [v for v in user.args if v is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    if user.target in _IN_PLACE and user.args[0] is not node:  # somebody else's tensor changes
        return None
    return user if _form(others[0]) == _form(node) else None


def _activation_behind(fused: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, Activation | None]:
    """The activation, if nothing else becomes of a node, and what it is."""
    user = _only_user(node)
    if user is None or user.args[:1] != (node,):
        return None, None
    if user.op == "call_module":
        act = _activation_of(fused.get_submodule(str(user.target)))
    else:
        act = _activation_called(user)
    return (None, None) if act is None else (user, act)


def _activation_of(module: nn.Module) -> Activation | None:
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", module.negative_slope)
    if type(module) is nn.GELU and module.approximate != "none":
        return None
    name = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu"}.get(type(module))
    return None if name is None or _is_watched(module) else Activation(name)


def _activation_called(node: fx.Node) -> Activation | None:
    name = _FUNCTIONS.get(node.target)
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if name == "leaky_relu":
        slope = kwargs.pop("negative_slope", node.args[1] if len(node.args) > 1 else SLOPE)
        return Activation(name, slope) if isinstance(slope, float | int) and not kwargs else None
    if name == "gelu" and kwargs.pop("approximate", "none") != "none":
        return None
    return None if name is None or kwargs else Activation(name)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _form(node: fx.Node) -> Any:
    """Shape and dtype of a node's tensor."""
    meta = node.meta.get("tensor_meta")
    return (meta.shape, meta.dtype) if isinstance(meta, TensorMetadata) else node


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody hooked into a module, and would see something else."""
    return any(held for name, held in vars(module).items() if name.endswith("_hooks"))
