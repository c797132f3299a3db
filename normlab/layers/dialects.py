"""Norm layers of Keras, Flax and ONNX as ours, and ours as theirs.

| | momentum is the weight of | eps | running variance |
|---|---|---|---|
| torch, normlab | the new batch: 0.1 | 1e-5 | unbiased |
| Keras | the old: 0.99 | 1e-3 | biased |
| Flax | the old: 0.99 | 1e-5; other norms 1e-6 | biased |
| ONNX | the old: 0.9 | 1e-5 | biased |

Running statistics are taken over as they are, so that evaluation is the same to rounding. `count`, the number of values
that each of them was measured on, turns the biased variance into the unbiased one, or back, where training goes on.
Keras and Flax have channels last, our layers in dimension 1 (`LayerNorm` and `RMSNorm` last): weights are the same,
inputs are transposed by the caller, with which a `ChannelNorm` is their layer norm. No library is imported but to write
ONNX: objects are known by their attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlab.errors import UsageError, require
from normlab.layers._torch import BatchNormBase, InstanceNormBase
from normlab.layers.norms import BatchNorm, GroupNorm, InstanceNorm, Norm
from normlab.layers.positions import LayerNorm, RMSNorm

__all__ = ["from_flax", "from_keras", "from_onnx", "to_flax", "to_keras", "to_onnx"]

_KERAS_EPS = 1e-3


# --- Keras -----------------------------------------------------------------------------------------------------------


def from_keras(layer: Any, weights: Any = None, *, count: int | None = None) -> Any:
    """Our layer of a Keras norm, or {name: layer} of all norms of a model.

    `layer` is a layer of Keras (BatchNormalization, LayerNormalization, GroupNormalization, RMSNormalization), a model
    with `layers`, a configuration {"class_name": ..., "config": {...}, "weights": [...]}, or of batch norm its weights
    alone: a mapping or a list of gamma, beta, moving_mean and moving_variance, in this order. `weights`, a list in
    Keras's order or a mapping, stand in for those of the layer. Raises UsageError for anything else.
    """
    if hasattr(layer, "layers") and not isinstance(layer, Mapping):
        nested = ((item.name, item) for item in layer.layers if hasattr(item, "layers") or _keras_kind(item))
        found = [(name, from_keras(item, count=count)) for name, item in nested]
        return {
            name if inner is None else f"{name}.{inner}": made
            for name, value in found
            for inner, made in (value.items() if isinstance(value, dict) else [(None, value)])
        }
    kind, config = _keras_config(layer)
    held = _keras_weights(kind, config, layer, weights)
    eps = float(config.get("epsilon", 1e-6 if kind == "RMSNormalization" else _KERAS_EPS))
    if kind == "BatchNormalization":
        momentum = 1 - float(config.get("momentum", 0.99))
        return _batch(held["gamma"], held["beta"], held["moving_mean"], held["moving_variance"], eps, momentum, count)
    weight, bias = held.get("gamma"), held.get("beta")
    if kind == "GroupNormalization":
        return _group(_length(weight, bias), int(config.get("groups", 32)), weight, bias, eps)
    if config.get("rms_scaling"):
        raise UsageError(
            "from_keras: LayerNormalization(rms_scaling=True) divides by the standard deviation and subtracts nothing, "
            "which no layer here does, nor is it RMS normalization; RMSNormalization is"
        )
    if kind == "RMSNormalization":
        return _position(RMSNorm, held.get("scale", weight), None, eps)
    return _position(LayerNorm, weight, bias, eps)


def to_keras(layer: nn.Module, *, count: int | None = None) -> dict[str, Any]:
    """{"class_name", "config", "weights"} of one of our layers, for Keras's `from_config` and `set_weights`.

    Raises UsageError for a layer that Keras has no counterpart of, or that applies an activation.
    """
    kind, held = _read(layer, count)
    _refuse_more("to_keras", layer)
    if kind == "instance":  # Keras's spelling: as many groups as channels
        kind, held["groups"] = "group", -1
    names = {"batch": "BatchNormalization", "layer": "LayerNormalization", "group": "GroupNormalization",
             "rms": "RMSNormalization"}  # fmt: skip
    config: dict[str, Any] = {"axis": -1, "epsilon": held["eps"]}
    if kind in ("layer", "rms") and len(held["shape"]) > 1:
        config["axis"] = list(range(-len(held["shape"]), 0))
    weight, bias = held["weight"], held["bias"]
    if kind != "rms":
        config |= {"center": bias is not None, "scale": weight is not None}
    weights = [v for v in (weight, bias) if v is not None]
    if kind == "batch":
        config["momentum"] = 1 - held["momentum"]
        weights += [held["mean"], held["var"]]
    if kind == "group":
        config["groups"] = held["groups"]
    return {"class_name": names[kind], "config": config, "weights": weights}


def _keras_kind(layer: Any) -> str | None:
    name = type(layer).__name__
    return name if name in _KERAS else None


_KERAS: dict[str, tuple[str, ...]] = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
    "RMSNormalization": ("scale",),
}


def _keras_config(layer: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(layer, Mapping) and "class_name" in layer:
        kind = str(layer["class_name"]).rpartition(">")[2]
        config = layer.get("config", {})
    elif isinstance(layer, Mapping | list | tuple):
        kind, config = "BatchNormalization", {}
    else:
        kind = type(layer).__name__
        names = ("axis", "momentum", "epsilon", "center", "scale", "groups", "rms_scaling")
        config = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    if kind not in _KERAS:
        raise UsageError(f"from_keras: {kind!r} is no norm that is known; expected one of: {', '.join(_KERAS)}")
    return kind, config


def _keras_weights(kind: str, config: Mapping[str, Any], layer: Any, weights: Any) -> dict[str, np.ndarray | None]:
    given = weights
    if given is None:
        if isinstance(layer, Mapping):
            given = layer.get("weights", {}) if "class_name" in layer else layer
        elif isinstance(layer, list | tuple):
            given = layer
        else:
            return {name: _array(getattr(layer, name, None)) for name in _KERAS[kind]}
    if isinstance(given, Mapping):
        tidy = {str(k).rpartition("/")[2].removesuffix(":0"): v for k, v in given.items()}
        return {name: _array(tidy.get(name)) for name in _KERAS[kind]}
    there = {"gamma": config.get("scale", True), "beta": config.get("center", True)}
    names = [name for name in _KERAS[kind] if there.get(name, True) is not False]
    if len(names) != len(given):
        raise UsageError(f"from_keras: expected {len(names)} weights of {kind} ({', '.join(names)}), got {len(given)}")
    return dict.fromkeys(_KERAS[kind]) | dict(zip(names, map(_array, given), strict=True))


# --- Flax ------------------------------------------------------------------------------------------------------------


def from_flax(
    variables: Any,
    kind: str | None = None,
    *,
    groups: int = 32,
    eps: float | None = None,
    momentum: float = 0.99,
    count: int | None = None,
) -> Any:
    """Our layer of a Flax norm's variables, or {"path.of.the.norm": layer} of a whole model's.

    `variables` are {"params": ..., "batch_stats": ...}, as `module.init` of Linen returns, or a layer or model of NNX.
    A norm is known by its batch statistics, or by a name that begins as its class does (LayerNorm_0, GroupNorm_1,
    RMSNorm, InstanceNorm); `kind` ("BatchNorm", "LayerNorm", ...) says it of a layer's own variables. Linen keeps
    neither `groups`, `eps` (1e-5 of batch norm, 1e-6 of the others) nor `momentum` in the variables: give them where
    they are not its defaults. NNX does, and what it says counts.
    """
    if not isinstance(variables, Mapping):
        return _from_nnx(variables, count)
    params, stats = variables.get("params", {}), variables.get("batch_stats", {})

    def made(p: Mapping[str, Any], s: Mapping[str, Any], kind: str) -> Any:
        near = eps if eps is not None else 1e-5 if kind == "BatchNorm" else 1e-6
        return _flax_layer(kind, {**p, **s}, near, momentum, groups, count)

    def is_norm(p: Mapping[str, Any], s: Mapping[str, Any], named: str | None) -> bool:
        learned = "scale" in p or (named is not None and "bias" in p)  # a norm may have been made without a scale
        return "mean" in s or (learned and "kernel" not in p and not isinstance(p.get("scale"), Mapping))

    def walk(p: Mapping[str, Any], s: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        named = next((k for k in _FLAX if path and path[-1].startswith(k)), None)
        if is_norm(p, s, named) and path:
            found = "BatchNorm" if "mean" in s else named
            if found is None:
                raise UsageError(f"from_flax: {'.'.join(path)!r} does not say which norm it is; name it in kind=...")
            return {".".join(path): made(p, s, found)}
        together: dict[str, Any] = {}
        for name in dict.fromkeys([*p, *s]):
            inner, running = p.get(name, {}), s.get(name, {})
            if isinstance(inner, Mapping) and isinstance(running, Mapping):
                together |= walk(inner, running, (*path, name))
        return together

    if kind is not None and kind not in _FLAX:
        raise UsageError(f"from_flax: kind={kind!r}; expected one of: {', '.join(_FLAX)}")
    if is_norm(params, stats, kind) or kind is not None:
        guess = kind or ("BatchNorm" if "mean" in stats else None)
        if guess is None:
            guess = "LayerNorm" if "bias" in params else "RMSNorm"
        return made(params, stats, guess)
    return walk(params, stats, ())


def _from_nnx(module: Any, count: int | None) -> Any:
    """Our layer of a norm of NNX, or {"path.of.the.norm": layer} of a module's."""
    kind = next((k.__name__ for k in type(module).__mro__ if k.__name__ in _FLAX), None)
    if kind is None:
        if not type(module).__mro__[-2].__module__.startswith("flax."):
            raise UsageError(
                f"from_flax: expected variables of Linen, or a layer or model of NNX, got {type(module).__name__}"
            )
        inside = import_module("flax.nnx").iter_modules(module)
        norms = ((path, part) for path, part in inside if any(k.__name__ in _FLAX for k in type(part).__mro__))
        return {".".join(map(str, path)): _from_nnx(part, count) for path, part in norms}
    held = {name: getattr(module, name, None) for name in ("scale", "bias", "mean", "var")}
    momentum, groups = getattr(module, "momentum", 0.99), getattr(module, "num_groups", 1)
    return _flax_layer(kind, held, module.epsilon, momentum, groups, count)


def _flax_layer(
    kind: str, held: Mapping[str, Any], eps: float, momentum: float, groups: int, count: int | None
) -> nn.Module:
    weight, bias, mean, var = (_array(held.get(name)) for name in ("scale", "bias", "mean", "var"))
    made: nn.Module
    if kind == "BatchNorm":
        made = _batch(weight, bias, mean, var, eps, 1 - momentum, count)
    elif kind == "GroupNorm":
        made = _group(_length(weight, bias), groups, weight, bias, eps)
    elif kind == "InstanceNorm":
        made = _instance(weight, bias, eps)
    else:
        made = _position(RMSNorm if kind == "RMSNorm" else LayerNorm, weight, bias, eps)
    return made


_FLAX = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


def to_flax(model: nn.Module, *, count: int | None = None) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ...} of one of our layers, or nested by name of all norms of a model.

    Flax keeps numbers only: an activation that a layer applies is called by the module that they are given to, as
    `groups` and eps are an argument of it.
    """
    if _kind(model) is not None:
        kind, held = _read(model, count)
        params = {k: v for k, v in (("scale", held["weight"]), ("bias", held["bias"])) if v is not None}
        stats = {"batch_stats": {"mean": held["mean"], "var": held["var"]}} if kind == "batch" else {}
        return {"params": params, **stats}
    out: dict[str, Any] = {"params": {}}
    for path, layer in model.named_modules():
        if _kind(layer) is None:
            continue
        for collection, values in to_flax(layer, count=count).items():
            at = out.setdefault(collection, {})
            for name in path.split("."):
                at = at.setdefault(name, {})
            at.update(values)
    return out


# --- ONNX ------------------------------------------------------------------------------------------------------------


def from_onnx(node: Any, initializers: Mapping[str, Any] | None = None, *, count: int | None = None) -> Any:
    """Our layer of an ONNX node, or {name: layer} of all norms of a model or graph.

    Of a node, `initializers` maps the names of its inputs to arrays or tensors of ONNX. The operators
    BatchNormalization, InstanceNormalization, GroupNormalization, LayerNormalization, RMSNormalization and LRN are
    known; UsageError is raised for others. A node without a name is found under that of its first output.
    """
    graph = getattr(node, "graph", node)
    if hasattr(graph, "node"):
        held = {tensor.name: tensor for tensor in graph.initializer}
        known = [n for n in graph.node if n.op_type in _ONNX]
        return {n.name or n.output[0]: from_onnx(n, held, count=count) for n in known}
    if node.op_type not in _ONNX:
        raise UsageError(f"from_onnx: {node.op_type!r} is no norm that is known; expected one of: {', '.join(_ONNX)}")
    given = {a.name: _attribute(a) for a in node.attribute}
    names = list(node.input)[1:]
    missing = [name for name in names if name and name not in (initializers or {})]
    if missing:
        raise UsageError(f"from_onnx: input {missing[0]!r} of {node.op_type} is no initializer; give initializers=...")
    arrays = [_array((initializers or {})[name]) if name else None for name in names] + [None] * 4
    weight, bias = arrays[:2]
    eps = float(given.get("epsilon", 1e-5))
    if node.op_type == "BatchNormalization":
        momentum = 1 - float(given.get("momentum", 0.9))
        return _batch(weight, bias, arrays[2], arrays[3], eps, momentum, count)
    if node.op_type == "InstanceNormalization":
        return _instance(weight, bias, eps)
    if node.op_type == "GroupNormalization":
        groups = int(given["num_groups"])
        return _group(_length(weight, bias), groups, weight, bias, eps)
    if node.op_type == "LRN":
        alpha, beta, k = (float(given.get(n, d)) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
        return nn.LocalResponseNorm(int(given["size"]), alpha, beta, k)
    return _position(RMSNorm if node.op_type == "RMSNormalization" else LayerNorm, weight, bias, eps)


_ONNX = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
         "RMSNormalization", "LRN")  # fmt: skip


def to_onnx(layer: nn.Module, *, rank: int = 4, count: int | None = None) -> Any:
    """An ONNX model of one node: one of our layers in evaluation, on inputs of `rank` dimensions and float32.

    Raises UsageError without the package onnx, or for a layer that ONNX has no operator for, or that applies an
    activation.
    """
    require("to_onnx", "onnx", "onnx")
    from onnx import TensorProto, helper, numpy_helper

    kind, held = _read(layer, count)
    _refuse_more("to_onnx", layer)
    if kind == "layer" and type(layer).forward not in (nn.LayerNorm.forward, LayerNorm.forward):
        raise UsageError(
            f"to_onnx: {type(layer).__name__} may normalize other dimensions than the last, which is all that ONNX's "
            "LayerNormalization does; export the model with torch.onnx.export"
        )
    ops = {"batch": "BatchNormalization", "instance": "InstanceNormalization", "group": "GroupNormalization",
           "layer": "LayerNormalization", "rms": "RMSNormalization"}  # fmt: skip
    attributes: dict[str, Any] = {"epsilon": held["eps"]}
    weight = held["weight"] if held["weight"] is not None else np.ones(held["shape"], np.float32)
    arrays = {"scale": weight}
    if kind != "rms":
        arrays["bias"] = held["bias"] if held["bias"] is not None else np.zeros_like(weight)
    if kind == "batch":
        arrays |= {"mean": held["mean"], "var": held["var"]}
        attributes["momentum"] = 1 - held["momentum"]
    if kind == "group":
        attributes["num_groups"] = held["groups"]
    if kind in ("layer", "rms"):
        attributes["axis"] = -weight.ndim
    node = helper.make_node(ops[kind], ["x", *arrays], ["y"], name="norm", **attributes)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in ("x", "y"))
    tensors = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in arrays.items()]
    graph = helper.make_graph([node], "norm", [x], [y], tensors)
    opset = {"group": 21, "rms": 23}.get(kind, 17)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _attribute(a: Any) -> Any:
    """The value of an attribute of a node: a number or text."""
    return {1: lambda: a.f, 2: lambda: a.i, 3: lambda: a.s}.get(int(a.type), lambda: None)()


# --- shared ----------------------------------------------------------------------------------------------------------

_ONNX_TYPES = {1: np.float32, 10: np.float16, 11: np.float64}


def _array(v: Any) -> np.ndarray | None:
    """Numbers of anybody's as an array: of NumPy, torch, JAX, Keras (a variable) or ONNX (a tensor)."""
    if v is None:
        return None
    if hasattr(v, "raw_data") and hasattr(v, "dims"):
        dtype = _ONNX_TYPES.get(v.data_type)
        if dtype is None:
            raise UsageError(f"from_onnx: tensor {v.name!r} has no floating-point numbers")
        numbers = np.frombuffer(v.raw_data, dtype) if v.raw_data else np.array(v.float_data or v.double_data, dtype)
        return numbers.reshape(tuple(v.dims)).copy()
    if hasattr(v, "get_value"):  # a variable of NNX
        v = v.get_value()
    if isinstance(getattr(v, "value", None), Tensor):  # a variable of Keras on torch
        v = v.value
    if isinstance(v, Tensor):
        return v.detach().cpu().numpy()
    if hasattr(v, "numpy"):
        v = v.numpy()
    found = np.array(v)
    return found.astype(np.float32) if found.dtype.kind == "V" else found  # JAX's bfloat16


def _length(*arrays: np.ndarray | None) -> int:
    for v in arrays:
        if v is not None:
            return int(v.size)
    raise UsageError("a norm without weight, bias and statistics does not say how many channels it has")


def _fill(layer: Any, **values: np.ndarray | None) -> Any:
    with torch.no_grad():
        for name, value in values.items():
            held = getattr(layer, name)
            if value is not None and held is not None:
                held.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(held.shape))
    return layer


def _batch(weight: Any, bias: Any, mean: Any, var: Any, eps: float, momentum: float, count: int | None) -> BatchNorm:
    if mean is None or var is None:
        raise UsageError("a batch norm without running mean and variance cannot be taken over")
    if count is not None:
        var = var * (count / max(count - 1, 1))
    layer = BatchNorm(len(mean), eps, round(momentum, 12), affine=weight is not None or bias is not None)
    filled: BatchNorm = _fill(layer, weight=weight, bias=bias, running_mean=mean, running_var=var)
    return filled


def _instance(weight: Any, bias: Any, eps: float) -> InstanceNorm:
    filled: InstanceNorm = _fill(InstanceNorm(_length(weight, bias), eps, affine=True), weight=weight, bias=bias)
    return filled


def _group(channels: int, groups: int, weight: Any, bias: Any, eps: float) -> Any:
    """A group norm; -1 groups are as many as channels."""
    return _fill(GroupNorm(channels if groups == -1 else groups, channels, eps), weight=weight, bias=bias)


def _position(kind: type, weight: Any, bias: Any, eps: float) -> Any:
    shape = tuple(next(v for v in (weight, bias) if v is not None).shape) if _length(weight, bias) else ()
    if kind is RMSNorm:
        return _fill(RMSNorm(shape, eps), weight=weight)
    return _fill(LayerNorm(shape, eps, bias=bias is not None), weight=weight, bias=bias)


def _kind(layer: nn.Module) -> str | None:
    """Which of the norms that all dialects have a layer is, ours or torch's."""
    kinds: Sequence[tuple[Any, str]]
    if isinstance(layer, Norm):  # others of ours are torch's batch norms, too, and compute something else
        kinds = (BatchNorm, "batch"), (InstanceNorm, "instance"), (GroupNorm, "group")
    else:
        kinds = (
            (BatchNormBase, "batch"), (InstanceNormBase, "instance"), (nn.GroupNorm, "group"), (nn.RMSNorm, "rms"),
            (nn.LayerNorm, "layer"),
        )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(layer, kind)), None)


def _refuse_more(asker: str, layer: Any) -> None:
    """Raise UsageError for a layer that does more than normalize."""
    parts = [part for part in layer.children() if type(part) is not nn.Identity]
    more = [act for act in (getattr(layer, "act", None), getattr(layer, "_act", None)) if act is not None] or parts
    if more:
        raise UsageError(
            f"{asker}: {type(layer).__name__} applies {more[0]} itself, which a norm in its place would leave out; "
            "take the activation out of the layer, and apply it behind"
        )


def _read(layer: Any, count: int | None) -> tuple[str, dict[str, Any]]:
    kind = _kind(layer)
    if kind is None:
        raise UsageError(f"{type(layer).__name__} has no counterpart; batch, instance, group, layer and RMS norms have")
    weight, bias = (_array(getattr(layer, name, None)) for name in ("weight", "bias"))
    eps = layer.eps if layer.eps is not None else float(torch.finfo(torch.float32).eps)
    held: dict[str, Any] = {"weight": weight, "bias": bias, "eps": float(eps)}
    held["shape"] = getattr(layer, "normalized_shape", None) or (
        getattr(layer, "num_features", None) or layer.num_channels,
    )
    if kind == "batch":
        if layer.running_mean is None:
            raise UsageError(f"{type(layer).__name__} keeps no running statistics, which other libraries need")
        held |= {"mean": _array(layer.running_mean), "var": _array(layer.running_var)}
        if count is not None:
            held["var"] = held["var"] * ((count - 1) / count)
        held["momentum"] = 0.1 if layer.momentum is None else layer.momentum
    if kind == "group":
        held["groups"] = layer.num_groups
    return kind, held
