"""Operators of ONNX's reference evaluator as plain functions: `onnx:BatchNormalization` and its like."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from normlab.errors import UsageError

OPERATORS = (
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
)


def operator(name: str) -> Callable[..., Any]:
    """The operator as a function of NumPy arrays; raises UsageError for others, or without the onnx package."""
    if name not in OPERATORS:
        raise UsageError(f"onnx:{name}: expected one of {', '.join(OPERATORS)}")
    try:
        import_module("onnx")
    except ImportError as e:
        raise UsageError(f"onnx:{name} needs the onnx package: pip install onnx") from e

    if name == "BatchNormalization":

        def batch(
            x: Any,
            scale: Any,
            bias: Any,
            input_mean: Any,
            input_var: Any,
            training_mode: bool = False,
            momentum: float = 0.9,
            epsilon: float = 1e-5,
        ) -> Any:
            inputs = {"x": x, "scale": scale, "bias": bias, "mean": input_mean, "var": input_var}
            outputs = 3 if training_mode else 1
            answer = _run(name, inputs, outputs, epsilon=epsilon, momentum=momentum, training_mode=int(training_mode))
            return tuple(answer) if training_mode else answer[0]

        function: Callable[..., Any] = batch
    elif name == "GroupNormalization":

        def group(x: Any, scale: Any, bias: Any, num_groups: int, epsilon: float = 1e-5) -> Any:
            return _run(name, {"x": x, "scale": scale, "bias": bias}, 1, epsilon=epsilon, num_groups=num_groups)[0]

        function = group
    elif name == "RMSNormalization":

        def rms(x: Any, scale: Any, epsilon: float = 1e-5) -> Any:
            return _run(name, {"x": x, "scale": scale}, 1, epsilon=epsilon)[0]

        function = rms
    else:

        def plain(x: Any, scale: Any, bias: Any, epsilon: float = 1e-5) -> Any:
            return _run(name, {"x": x, "scale": scale, "bias": bias}, 1, epsilon=epsilon)[0]

        function = plain
    # attributes of a node are float32: eps and momentum are rounded
    function.__name__ = name
    vars(function).update(dialect="onnx", rounding=1e-6)
    return function


def _run(name: str, inputs: dict[str, Any], outputs: int, **attributes: Any) -> list[Any]:
    """Evaluate a model of one node with ONNX's reference implementation."""
    helper, TensorProto = import_module("onnx.helper"), import_module("onnx").TensorProto
    ReferenceEvaluator = import_module("onnx.reference").ReferenceEvaluator
    element = helper.np_dtype_to_tensor_dtype(np.asarray(inputs["x"]).dtype)
    names = ["y", "mean_out", "var_out"][:outputs]
    node = helper.make_node(name, list(inputs), names, **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info(k, element, np.shape(v)) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.UNDEFINED, None) for k in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return list(ReferenceEvaluator(model).run(None, {k: np.asarray(v) for k, v in inputs.items()}))
