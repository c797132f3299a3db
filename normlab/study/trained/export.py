"""A trained network as an ONNX file, with its preprocessing inside."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from normlab.errors import require

if TYPE_CHECKING:
    from normlab.study.trained.predictor import Predictor

OPSET = 18


def export_onnx(net: Predictor, facts: dict[str, Any]) -> bytes:
    """The bytes of the file: `images` uint8 (N, C, H, W) to `logits` float32 (N, classes), the facts as metadata."""
    require("export_onnx", "onnx")
    import onnx

    net = copy.deepcopy(net).cpu().eval()
    net.memory_format = torch.contiguous_format
    net.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.zeros((2, *net.image_shape), dtype=torch.uint8)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            program = torch.onnx.export(
                net, (example,), input_names=["images"], output_names=["logits"], opset_version=OPSET,
                dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}}, dynamo=True, verbose=False,
            )  # fmt: skip
    finally:
        quiet.setLevel(level)
    assert program is not None
    model = program.model_proto
    for key, value in {"normlab": json.dumps(facts), "class_names": json.dumps(facts["class_names"])}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    out = io.BytesIO()
    onnx.save_model(model, out)
    return out.getvalue()
