"""Which models the census visits, and how each is built, with random weights and an input that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MANY = 60_000_000  # parameters; larger models are built with fewer blocks or channels, where they can be
IMAGE, BATCH = 64, 4
_SMALLER: tuple[dict[str, Any], ...] = ({"depth": 2}, {"channel_multiplier": 0.25}, {"mlp_ratio": 0.05})
_INSTEAD = {"vgg": "vgg11_bn"}  # the smallest of the family has no norms
_SMALL = (
    "test_", "zepto", "atto", "pico", "femto", "nano", "xxtiny", "xxt", "xxs", "micro", "mini", "tiny", "xt",
    "xsmall", "xs", "small", "_t", "_s", "b0", "050", "18", "s0", "m0",
)  # fmt: skip
_LARGE = (
    "base", "large", "huge", "giant", "xlarge", "_b", "_l", "_h", "_g", "x2", "200", "152", "101", "b5", "b6", "b7",
    "384", "448", "512", "in21k",
)  # fmt: skip
# what a configuration is given of, where it has such an attribute: a model of some thousand parameters
_TINY: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 16, "embedding_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 1, "decoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "d_kv": 8, "n_inner": 64, "hidden_dim": 64,
    "vocab_size": 128, "max_position_embeddings": 64, "max_source_positions": 20, "max_target_positions": 20,
    "state_size": 8, "expand": 2, "time_step_rank": 4, "num_local_experts": 2, "num_experts": 2, "n_groups": 2,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "word_embed_proj_dim": 32, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "num_mel_bins": 16,
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "convnext": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "resnet": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "embedding_size": 8},
    "bit": {"num_groups": 4, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "embedding_size": 32},
    "swin": {"depths": [1, 1], "num_heads": [2, 2], "patch_size": 4, "window_size": 4},
    "wav2vec2": {"conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 4], "num_feat_extract_layers": 2,
                 "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
    "segformer": {"num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "phi3": {"num_key_value_heads": 4},
    "falcon": {"num_kv_heads": 2},
    "bloom": {"n_head": 4},
}  # fmt: skip
TRANSFORMERS = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "t5", "mt5",
    "mamba", "mamba2", "olmo", "olmo2", "cohere", "stablelm", "starcoder2", "granite", "glm", "gpt2", "gpt_neox", "opt",
    "bloom", "falcon", "bert", "roberta", "electra", "distilbert", "albert", "deberta-v2", "bart", "whisper",
    "wav2vec2", "vit", "dinov2", "clip_vision_model", "siglip_vision_model", "swin", "segformer", "convnext",
    "convnextv2", "resnet", "bit",
)  # fmt: skip


def families() -> dict[str, list[str]]:
    """{family of timm: its architectures, the small ones first}."""
    from timm.models import list_models, list_modules

    found = {module: sorted(list_models(module=module), key=_size) for module in list_modules()}
    return {family: names for family, names in found.items() if names}


def _size(name: str) -> tuple[Any, ...]:
    small = next((i for i, word in enumerate(_SMALL) if word in name), len(_SMALL))
    large = any(word in name for word in _LARGE)
    return large, small, [int(n) for n in re.findall(r"\d+", name)[:2]], name


def built(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Any]]:
    """A model by its name in the census, and its input; each call returns the same numbers."""
    library, _, what = name.partition(":")
    torch.manual_seed(0)
    model, inputs = _of_timm(what) if library == "timm" else _of_transformers(what)
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        if isinstance(getattr(part, "drop_prob", None), float):  # of a path; chance is another in float64
            part.drop_prob = 0.0
    torch.manual_seed(1)
    with torch.no_grad():  # weights of one and zero would hide what a layer does with them
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.to(dtype), {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def unbuilt(name: str) -> nn.Module:
    """A model by its name in the census as a structure, whatever its size: timm's without memory for its parameters."""
    import timm

    library, _, what = name.partition(":")
    if library != "timm":
        return built(name)[0]
    smallest = _smallest(what)
    try:
        with torch.device("meta"), _without_warnings():
            model: nn.Module = timm.create_model(smallest)
    except (RuntimeError, NotImplementedError):  # it computes while it is built
        model = timm.create_model(smallest)
    model.architecture = smallest
    return model


def _smallest(name: str) -> str:
    """The smallest architecture of a family, or the architecture of this name."""
    return _INSTEAD.get(name, families().get(name, [name])[0])


def _of_timm(family: str) -> tuple[nn.Module, dict[str, Any]]:
    name = _smallest(family)
    for options in ({"img_size": IMAGE}, {}):
        model = _build_smaller(name, options)
        x = None if model is None else _image(model)
        if model is not None and x is not None:
            model.architecture = name
            return model, {"x": x}
    raise ValueError("it takes no image of the sizes that were tried")


def _image(model: Any) -> Tensor | None:
    """A batch of the smallest images that a model takes."""
    native = model.pretrained_cfg["input_size"]
    asked = getattr(getattr(model, "patch_embed", None), "img_size", None)
    sizes = [asked[0] if isinstance(asked, tuple) else None, IMAGE, 112, 128, native[-1]]
    for size in dict.fromkeys(size for size in sizes if size):
        x = torch.randn(BATCH, native[0], size, size)
        try:
            with torch.no_grad():
                model.eval()(x[:1])
            return x
        except (RuntimeError, AssertionError, ValueError):
            continue
    return None


def _build_smaller(name: str, options: dict[str, Any]) -> nn.Module | None:
    """An architecture with these options, and with fewer blocks or channels if it is large and can be built so."""
    import timm

    refused = (TypeError, AssertionError, ValueError, RuntimeError)
    try:
        model: nn.Module = timm.create_model(name, **options)
    except refused:
        return None
    for fewer in _SMALLER if sum(p.numel() for p in model.parameters()) > MANY else ():
        try:
            return timm.create_model(name, **options, **fewer)  # type: ignore[no-any-return]
        except refused:
            continue
    return model


def _of_transformers(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoConfig, AutoModel

    usual = AutoConfig.for_model(kind).to_dict()
    config = AutoConfig.for_model(kind, **{k: v for k, v in _TINY.items() if k in usual} | _MORE.get(kind, {}))
    config.use_cache = False
    model = AutoModel.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model.architecture = kind
    name = model.main_input_name
    if name == "pixel_values":
        size = 64 if hasattr(config, "hidden_sizes") else 32
        return model, {name: torch.randn(2, 3, size, size)}
    if name == "input_values":
        return model, {name: torch.randn(2, 400)}
    tokens = torch.randint(3, 100, (2, 12))
    if name == "input_features":
        return model, {name: torch.randn(2, 16, 40), "decoder_input_ids": tokens}
    more = {"decoder_input_ids": tokens} if getattr(config, "is_encoder_decoder", False) else {}
    return model, {name: tokens, **more}


@contextmanager
def _without_warnings() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tensors(returned: Any) -> list[Tensor]:
    """The tensors with floats in what a model returned."""
    if isinstance(returned, Tensor):
        return [returned] if returned.is_floating_point() else []
    if isinstance(returned, dict):
        returned = list(returned.values())
    return [t for v in returned for t in tensors(v)] if isinstance(returned, tuple | list) else []
