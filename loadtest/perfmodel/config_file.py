"""A model from the `config.json` of its Hugging Face folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from loadtest import resources
from loadtest.errors import UsageError
from loadtest.perfmodel.architecture import Model, Quantisation

_REFUSED = ("linear_num_value_heads", "ssm_state_size", "index_topk")  # linear attention, state spaces, sparse attention


def from_config(directory: Path) -> Model:
    """The model that a Hugging Face folder's `config.json` describes; the folder's name becomes its name.

    Reads the shape, experts, latent attention, windows, `quantization_config` and `rope_scaling` (YaRN).
    Raises UsageError: no file, no JSON, a missing key, an attention or a quantisation that is not modelled.
    """
    where = str(directory / "config.json")
    outer = _read(directory / "config.json")
    config = outer["text_config"] if isinstance(outer.get("text_config"), dict) else outer
    _refuse(config, where)
    kind = str(config.get("model_type", ""))
    heads, hidden = _integer(config, "num_attention_heads", where), _integer(config, "hidden_size", where)
    quantisation, group_size = _quantisation(config.get("quantization_config") or outer.get("quantization_config"), where)
    native, context = _context(config, where)
    name = directory.resolve().name
    gpt_oss = kind == "gpt_oss"
    return Model(
        name=name.lower(),
        title=name,
        hub=str(outer.get("_name_or_path") or config.get("_name_or_path") or name),
        layers=_integer(config, "num_hidden_layers", where),
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(config, "num_key_value_heads", where, heads),
        head_dim=_integer(config, "qk_nope_head_dim", where, _integer(config, "head_dim", where, hidden // heads)),
        intermediate=_integer(config, "intermediate_size", where),
        vocabulary=_integer(config, "vocab_size", where),
        tied_embeddings=bool(config.get("tie_word_embeddings", outer.get("tie_word_embeddings", False))),
        context_tokens=context,
        native_context_tokens=native,
        quantisation=quantisation,
        group_size=group_size,
        qkv_bias=bool(config.get("attention_bias", kind.startswith("qwen2"))),
        qk_norm=bool(config.get("use_qk_norm", kind.startswith("qwen3"))),
        full_bias=gpt_oss,
        experts_only=gpt_oss,
        norms=4 if kind == "glm4" else 2,
        source=where,
        **_experts(config, where),
        **_latent(config, where),
        **_windows(config),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(resources.small_file(path))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}; expected the config.json of a Hugging Face model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def _refuse(config: dict[str, Any], where: str) -> None:
    for key in _REFUSED:
        if config.get(key):
            raise UsageError(
                f"{where}: {key} is {config[key]}: not modelled; expected multi-head, grouped-query or latent attention"
            )
    if "linear_attention" in (config.get("layer_types") or ()):
        raise UsageError(f"{where}: layer_types names linear_attention, which is not modelled")
    if config.get("decoder_sparse_step", 1) != 1:
        raise UsageError(f"{where}: decoder_sparse_step is {config['decoder_sparse_step']}: not modelled; expected 1")


def _experts(config: dict[str, Any], where: str) -> dict[str, int]:
    """The keys of `Model` about experts; none of a dense model."""
    counts = [config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")]
    if not any(counts):
        return {}
    width = _integer(config, "moe_intermediate_size", where, _integer(config, "intermediate_size", where))
    shared = config.get("shared_expert_intermediate_size") or width * (config.get("n_shared_experts") or 0)
    return {
        "experts": next(count for count in counts if count),
        "experts_per_token": _integer(config, "num_experts_per_tok", where, config.get("experts_per_token")),
        "expert_intermediate": width,
        "shared_intermediate": shared,
        "dense_layers": config.get("first_k_dense_replace") or len(config.get("mlp_only_layers") or ()),
    }


def _latent(config: dict[str, Any], where: str) -> dict[str, int]:
    """The keys of `Model` about a latent KV cache; none without."""
    if not config.get("kv_lora_rank"):
        return {}
    return {
        "kv_lora_rank": _integer(config, "kv_lora_rank", where),
        "q_lora_rank": config.get("q_lora_rank") or 0,
        "rope_head_dim": _integer(config, "qk_rope_head_dim", where),
        "value_head_dim": _integer(config, "v_head_dim", where),
    }


def _windows(config: dict[str, Any]) -> dict[str, int]:
    """The keys of `Model` about a sliding window; without `layer_types` it is one of all layers."""
    layers = sum(kind == "sliding_attention" for kind in config.get("layer_types") or ())
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", not str(config.get("model_type", "")).startswith("qwen"))
    if not window or not used or (config.get("layer_types") and not layers):
        return {}
    return {"window_layers": layers, "window_tokens": int(window)}


def _integer(config: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: {key} must be a positive whole number, got {value!r}")
    return value


def _quantisation(config: dict[str, Any] | None, where: str) -> tuple[Quantisation, int]:
    """(quantisation, weights that share a scale)."""
    if not config:
        return "bf16", 128
    method, bits = str(config.get("quant_method", "")).lower(), config.get("bits", config.get("w_bit"))
    group = config.get("group_size", 128)
    group_size = group if isinstance(group, int) and group > 0 else 128
    if method == "compressed-tensors":
        return _compressed(config, where)
    if method == "mxfp4":
        return "mxfp4", 32
    if "NVFP4" in str(config.get("quant_algo", "")).upper():
        return "nvfp4", 16
    if method == "fp8":
        return "fp8", group_size
    if re.fullmatch(r"awq|awq_marlin", method) and bits in (4, None):
        return "int4-awq", group_size
    if re.fullmatch(r"gptq|gptq_marlin", method) and bits in (4, 8):
        return ("int4-gptq" if bits == 4 else "int8-gptq"), group_size
    raise _not_modelled(f"{method or '(no quant_method)'} at {bits} bit", where)


def _compressed(config: dict[str, Any], where: str) -> tuple[Quantisation, int]:
    """What `compressed-tensors` says of the weights of its first group."""
    groups = config.get("config_groups") or {}
    weights = next((group.get("weights") or {} for group in groups.values() if isinstance(group, dict)), {})
    bits, kind, group = weights.get("num_bits"), weights.get("type"), weights.get("group_size") or 128
    known: dict[Any, Quantisation] = {
        ("float", 8): "fp8",
        ("float", 4): "nvfp4",
        ("int", 4): "int4-gptq",
        ("int", 8): "int8-gptq",
    }
    if (kind, bits) not in known:
        raise _not_modelled(f"compressed-tensors of {kind} at {bits} bit", where)
    return known[kind, bits], group if isinstance(group, int) and group > 0 else 128


def _not_modelled(what: str, where: str) -> UsageError:
    return UsageError(
        f"{where}: quantization_config {what} is not modelled; "
        "expected awq or gptq at 4 bit, gptq at 8 bit, fp8, mxfp4, nvfp4, or compressed-tensors of these"
    )


def _context(config: dict[str, Any], where: str) -> tuple[int, int]:
    """(native, served) context: YaRN multiplies the original length by its factor, if the limit does not count it
    already."""
    limit = _integer(config, "max_position_embeddings", where)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if not factor or factor <= 1:
        return limit, limit
    native = int(original or limit)
    stretched = int(native * factor)
    return (limit, limit) if limit >= stretched else (native, stretched)
