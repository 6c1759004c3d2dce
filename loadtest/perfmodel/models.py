"""Models as rows of data, by name; any other one comes from the `config.json` of its Hugging Face folder.

Rows are the published `config.json` of each family. The parameters that a shape gives equal, in the tests, those counted in
the checkpoint: the total of its safetensors index, or of a GGUF file made of it. Rows have that as their source.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError
from loadtest.perfmodel.architecture import Model, Quantisation
from loadtest.perfmodel.config_file import from_config

_COLUMNS = (
    "layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary", "tied_embeddings", "context_tokens",
)  # fmt: skip
# a size, then the columns
_QWEN25 = (
    ("0.5b", 24, 896, 14, 2, 64, 4864, 151936, True, 32768),
    ("1.5b", 28, 1536, 12, 2, 128, 8960, 151936, True, 32768),
    ("3b", 36, 2048, 16, 2, 128, 11008, 151936, True, 32768),
    ("7b", 28, 3584, 28, 4, 128, 18944, 152064, False, 131072),
    ("14b", 48, 5120, 40, 8, 128, 13824, 152064, False, 131072),
    ("32b", 64, 5120, 40, 8, 128, 27648, 152064, False, 131072),
    ("72b", 80, 8192, 64, 8, 128, 29568, 152064, False, 131072),
)
_QWEN3 = (
    ("0.6b", 28, 1024, 16, 8, 128, 3072, 151936, True, 40960),
    ("1.7b", 28, 2048, 16, 8, 128, 6144, 151936, True, 40960),
    ("4b", 36, 2560, 32, 8, 128, 9728, 151936, True, 131072),
    ("8b", 36, 4096, 32, 8, 128, 12288, 151936, False, 131072),
    ("14b", 40, 5120, 40, 8, 128, 17408, 151936, False, 131072),
    ("32b", 64, 5120, 64, 8, 128, 25600, 151936, False, 131072),
)
# Qwen3 with experts: layers, hidden, heads, kv_heads, ...; then experts, of a token, their width
_QWEN3_MOE = (
    (("30b-a3b", 48, 2048, 32, 4, 128, 6144, 151936, False, 131072), (128, 8, 768)),
    (("235b-a22b", 94, 4096, 64, 4, 128, 12288, 151936, False, 131072), (128, 8, 1536)),
)
# hub name, columns, native context. meta-llama, mistralai and zai-org on huggingface.co.
_DENSE = (
    (("meta-llama/Llama-2-7b-hf", 32, 4096, 32, 32, 128, 11008, 32000, False, 4096), 4096),
    (("meta-llama/Llama-2-70b-hf", 80, 8192, 64, 8, 128, 28672, 32000, False, 4096), 4096),
    (("meta-llama/Meta-Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, 8192), 8192),
    (("meta-llama/Meta-Llama-3-70B", 80, 8192, 64, 8, 128, 28672, 128256, False, 8192), 8192),
    (("meta-llama/Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072), 131072),
    (("meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072), 131072),
    (("meta-llama/Llama-3.3-70B-Instruct", 80, 8192, 64, 8, 128, 28672, 128256, False, 131072), 131072),
    (("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072), 131072),
    (("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 80, 8192, 64, 8, 128, 28672, 128256, False, 131072), 131072),
    (("mistralai/Mistral-7B-v0.1", 32, 4096, 32, 8, 128, 14336, 32000, False, 32768), 32768),
    (("mistralai/Mistral-Small-24B-Instruct-2501", 40, 5120, 32, 8, 128, 32768, 131072, False, 32768), 32768),
    (("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 40, 5120, 32, 8, 128, 32768, 131072, False, 131072), 131072),
    (("mistralai/Magistral-Small-2506", 40, 5120, 32, 8, 128, 32768, 131072, False, 40960), 40960),
    (("mistralai/Magistral-Small-2509", 40, 5120, 32, 8, 128, 32768, 131072, False, 131072), 131072),
)
# Four norms a layer: 613 tensors in the GGUF of GLM-Z1-32B-0414, whose metadata have this shape.
_GLM_4 = (
    ("zai-org/GLM-4-32B-0414", 61, 6144, 48, 2, 128, 23040, 151552, False, 32768),
    ("zai-org/GLM-Z1-32B-0414", 61, 6144, 48, 2, 128, 23040, 151552, False, 32768),
)
_WINDOWS = {"mistralai/Mistral-7B-v0.1": 4096}  # sliding_window of all layers
_SOURCE = "config.json, its parameters as in the checkpoint"
# the Qwen2.5 shapes that were distilled from R1, by size
_DISTILLED = ("1.5b", "7b", "14b", "32b")
# DeepSeek-V3's config.json: latent attention, 256 experts of which a token takes 8 and one shared, 3 dense layers; FP8
_DEEPSEEK_V3: dict[str, Any] = {
    "layers": 61, "hidden": 7168, "heads": 128, "kv_heads": 128, "head_dim": 128, "intermediate": 18432,
    "vocabulary": 129280, "tied_embeddings": False, "context_tokens": 163840, "native_context_tokens": 163840,
    "quantisation": "fp8", "experts": 256, "experts_per_token": 8, "expert_intermediate": 2048, "shared_intermediate": 2048,
    "dense_layers": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "rope_head_dim": 64, "value_head_dim": 128,
}  # fmt: skip
# gpt-oss's config.json: every second layer attends to 128 tokens, experts at MXFP4
_GPT_OSS: dict[str, Any] = {
    "hidden": 2880, "heads": 64, "kv_heads": 8, "head_dim": 64, "intermediate": 2880, "vocabulary": 201088,
    "tied_embeddings": False, "context_tokens": 131072, "native_context_tokens": 131072, "quantisation": "mxfp4",
    "group_size": 32, "full_bias": True, "experts_only": True, "experts_per_token": 4, "expert_intermediate": 2880,
    "window_tokens": 128,
}  # fmt: skip
_GLM_45: dict[str, Any] = {
    "heads": 96, "kv_heads": 8, "head_dim": 128, "vocabulary": 151552, "tied_embeddings": False, "context_tokens": 131072,
    "native_context_tokens": 131072, "qkv_bias": True, "experts_per_token": 8,
}  # fmt: skip
# hub name, shape. The GLM shapes: github.com/THUDM/slime, scripts/models/glm4.5-*.sh
_EXPERTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3),
    ("deepseek-ai/DeepSeek-V3-0324", _DEEPSEEK_V3),
    ("deepseek-ai/DeepSeek-V3.1", _DEEPSEEK_V3),
    ("deepseek-ai/DeepSeek-R1", _DEEPSEEK_V3),
    ("deepseek-ai/DeepSeek-R1-0528", _DEEPSEEK_V3),
    ("openai/gpt-oss-20b", _GPT_OSS | {"layers": 24, "experts": 32, "window_layers": 12}),
    ("openai/gpt-oss-120b", _GPT_OSS | {"layers": 36, "experts": 128, "window_layers": 18}),
    (
        "zai-org/GLM-4.5",
        _GLM_45 | {"layers": 92, "hidden": 5120, "intermediate": 12288, "qk_norm": True, "experts": 160,
                   "expert_intermediate": 1536, "shared_intermediate": 1536, "dense_layers": 3},
    ),
    (
        "zai-org/GLM-4.5-Air",
        _GLM_45 | {"layers": 46, "hidden": 4096, "intermediate": 10944, "experts": 128,
                   "expert_intermediate": 1408, "shared_intermediate": 1408, "dense_layers": 1},
    ),
)  # fmt: skip
_NATIVE_CONTEXT_TOKENS = 32768
_SUFFIXES: dict[str, Quantisation] = {
    "": "bf16",
    "-fp8": "fp8",
    "-awq": "int4-awq",
    "-gptq-int4": "int4-gptq",
    "-gptq-int8": "int8-gptq",
    "-nvfp4": "nvfp4",
}
_HUB_SUFFIXES: dict[Quantisation, str] = {
    "bf16": "",
    "fp8": "-FP8",
    "int4-awq": "-AWQ",
    "int4-gptq": "-GPTQ-Int4",
    "int8-gptq": "-GPTQ-Int8",
    "nvfp4": "-NVFP4",
}


def _row(hub: str, row: tuple[Any, ...], native_context_tokens: int = _NATIVE_CONTEXT_TOKENS, **more: Any) -> Model:
    shape = dict(zip(_COLUMNS, row[1:], strict=True))
    return _named(hub, native_context_tokens=native_context_tokens, **(shape | more))


def _named(hub: str, **shape: Any) -> Model:
    title = hub.rpartition("/")[2]
    return Model(name=title.lower(), title=title, hub=hub, source=_SOURCE, **shape)


def _bases() -> dict[str, Model]:
    rows = [_row(f"Qwen/Qwen2.5-{row[0].upper()}-Instruct", row, qkv_bias=True) for row in _QWEN25]
    rows += [_row(f"Qwen/Qwen3-{row[0].upper()}", row, qk_norm=True) for row in _QWEN3]
    rows.append(_row("Qwen/QwQ-32B", _QWEN25[5], qkv_bias=True))
    for row, (experts, of_a_token, width) in _QWEN3_MOE:
        used = {"experts": experts, "experts_per_token": of_a_token, "expert_intermediate": width}
        rows.append(_row(f"Qwen/Qwen3-{row[0].upper()}", row, qk_norm=True, **used))
    for row in _QWEN25:
        if row[0] in _DISTILLED:
            untied = (*row[:-2], False, 131072)
            rows.append(_row(f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{row[0].upper()}", untied, 131072, qkv_bias=True))
    rows += [_row(row[0], row, native, window_tokens=_WINDOWS.get(row[0], 0)) for row, native in _DENSE]
    rows += [_row(row[0], row, norms=4) for row in _GLM_4]
    rows += [_named(hub, **shape) for hub, shape in _EXPERTS]
    return {row.name: row for row in rows}


MODELS: dict[str, Model] = _bases()  # as published; `model` adds the quantised variants of 16-bit ones by their suffix


def model(name_or_hub_or_dir: str) -> Model:
    """The model of a registry name, a hub name (its last part is the registry name), or a directory with `config.json`.

    Quantised variants have a suffix: `-awq`, `-gptq-int4`, `-gptq-int8`, `-fp8`, `-nvfp4`. Case does not matter.
    Raises UsageError: unknown name (lists the names), a config that cannot be read or is not modelled.

    >>> model("Qwen/QwQ-32B-AWQ").quantisation
    'int4-awq'
    """
    path = Path(name_or_hub_or_dir)
    if os.path.isfile(path / "config.json"):  # no error where it could name none: too long, or with a NUL
        return from_config(path)
    name = name_or_hub_or_dir.rstrip("/").rsplit("/", 1)[-1].lower()
    base, suffix = _split(name)
    if name in MODELS:
        return MODELS[name]
    if base in MODELS and MODELS[base].quantisation == "bf16":
        return _quantised(MODELS[base], _SUFFIXES[suffix])
    if name and os.path.isdir(path):
        return from_config(path)
    suffixes = ", ".join(suffix for suffix in _SUFFIXES if suffix)
    raise UsageError(
        f"model {name_or_hub_or_dir!r} is not known: expected one of {', '.join(MODELS)} (with {suffixes}), "
        "or a directory with its config.json"
    )


def _split(name: str) -> tuple[str, str]:
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if suffix and name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _quantised(base: Model, quantisation: Quantisation) -> Model:
    suffix = _HUB_SUFFIXES[quantisation]
    # Qwen pads the quantised 72B, so that GPUs share whole groups of 128 (huggingface.co/Qwen/Qwen2.5-72B-Instruct-AWQ).
    intermediate = 29696 if base.intermediate == 29568 else base.intermediate
    return replace(
        base, name=base.name + suffix.lower(), title=base.title + suffix, hub=base.hub + suffix,
        quantisation=quantisation, intermediate=intermediate, group_size=16 if quantisation == "nvfp4" else base.group_size,
    )  # fmt: skip
