"""Dense transformers as rows of data, and any other one from the `config.json` of its Hugging Face folder.

A model here is its shape: enough to count weights, KV cache and arithmetic. Rows are the published `config.json` of each
family (huggingface.co/Qwen/NAME); sizes are computed from the shape and checked against the published counts in the tests.
Mixture-of-experts models are refused: which experts a batch touches is not modelled.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from loadtest.errors import UsageError

Quantisation = Literal["bf16", "fp8", "int4-awq", "int4-gptq", "int8-gptq"]

_BITS: dict[str, float] = {"bf16": 16, "fp8": 8, "int4-awq": 4, "int4-gptq": 4, "int8-gptq": 8}
_KV_BYTES = 2  # one 16-bit number; the runtimes keep the KV cache at 16 bit unless told otherwise


@dataclass(frozen=True, slots=True)
class Model:
    """One dense decoder (grouped-query attention, gated MLP), in one quantisation.

    Shape as in `config.json`. `qkv_bias` and `qk_norm` are the two small terms that differ between Qwen2 and Qwen3;
    `group_size` is the number of weights that share a scale; `context_tokens` is what it serves with YaRN,
    `native_context_tokens` without. Linear layers are quantised, embeddings, LM head and norms stay at 16 bit.
    """

    name: str
    title: str
    hub: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool
    context_tokens: int
    native_context_tokens: int
    quantisation: Quantisation = "bf16"
    group_size: int = 128
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if self.quantisation not in get_args(Quantisation):
            raise UsageError(f"{self.name}: quantisation {self.quantisation!r} is not modelled; known: {', '.join(_BITS)}")
        for key in (
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "intermediate",
            "vocabulary",
            "context_tokens",
            "group_size",
        ):
            if getattr(self, key) < 1:
                raise UsageError(f"{self.name}: {key} must be at least 1, got {getattr(self, key)}")
        if self.heads % self.kv_heads:
            raise UsageError(f"{self.name}: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly")

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrices: layers x hidden x (2 x (heads + kv_heads) x head_dim + 3 x intermediate)."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        """One vocabulary x hidden table; an untied model has two (input embedding and LM head)."""
        return self.vocabulary * self.hidden

    @property
    def small_parameters(self) -> int:
        """Biases and norms, at 16 bit in every quantisation."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * (bias + norms) + self.hidden

    @property
    def parameters(self) -> int:
        """All weights; a tied table counts once.

        >>> model("qwq-32b").parameters
        32763876352
        """
        tables = 1 if self.tied_embeddings else 2
        return self.linear_parameters + tables * self.embedding_parameters + self.small_parameters

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for one weight of a linear layer, with its group's scale (16 bit) and zero point (a weight's width).

        FP8 keeps one 32-bit scale for a block of 128 x 128, which is not counted.
        """
        bits = _BITS[self.quantisation]
        return bits if self.quantisation in ("bf16", "fp8") else bits + (16 + bits) / self.group_size

    @property
    def linear_bytes(self) -> float:
        """Bytes of all layers' matrices."""
        return self.linear_parameters * self.bits_per_weight / 8

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, over all cards.

        >>> round(model("qwq-32b").weight_bytes / 1e9, 1), round(model("qwq-32b-awq").weight_bytes / 1e9, 1)
        (65.5, 19.3)
        """
        return self.linear_bytes + 2 * (self.parameters - self.linear_parameters)

    @property
    def weight_bytes_read_per_token(self) -> float:
        """Bytes that one decoding step reads: all weights but an untied input embedding, of which one row is looked up."""
        return self.weight_bytes - (0 if self.tied_embeddings else 2 * self.embedding_parameters)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all cards, at 16 bit: 2 x layers x kv_heads x head_dim x 2 bytes.

        >>> model("qwq-32b").kv_bytes_per_token
        262144
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * _KV_BYTES

    @property
    def attention_flop_per_pair(self) -> int:
        """Arithmetic of one query token against one key token: 4 x layers x heads x head_dim (scores and values)."""
        return 4 * self.layers * self.heads * self.head_dim


_COLUMNS = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "vocabulary",
    "tied_embeddings",
    "context_tokens",
)
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
_NATIVE_CONTEXT_TOKENS = 32768
_SUFFIXES: dict[str, Quantisation] = {
    "": "bf16",
    "-fp8": "fp8",
    "-awq": "int4-awq",
    "-gptq-int4": "int4-gptq",
    "-gptq-int8": "int8-gptq",
}
_HUB_SUFFIXES: dict[Quantisation, str] = {
    "bf16": "",
    "fp8": "-FP8",
    "int4-awq": "-AWQ",
    "int4-gptq": "-GPTQ-Int4",
    "int8-gptq": "-GPTQ-Int8",
}


def _row(title: str, row: tuple[Any, ...], *, bias: bool, norm: bool) -> Model:
    shape = dict(zip(_COLUMNS, row[1:], strict=True))
    return Model(
        name=title.lower(),
        title=title,
        hub=f"Qwen/{title}",
        native_context_tokens=_NATIVE_CONTEXT_TOKENS,
        qkv_bias=bias,
        qk_norm=norm,
        **shape,
    )


def _bases() -> dict[str, Model]:
    rows = [_row(f"Qwen2.5-{row[0].upper()}-Instruct", row, bias=True, norm=False) for row in _QWEN25]
    rows += [_row(f"Qwen3-{row[0].upper()}", row, bias=False, norm=True) for row in _QWEN3]
    rows.append(_row("QwQ-32B", _QWEN25[5], bias=True, norm=False))
    return {row.name: row for row in rows}


MODELS: dict[str, Model] = _bases()  # at 16 bit; `model` adds the quantised variants by their suffix


def model(name_or_hub_or_dir: str) -> Model:
    """The model of a registry name, a hub name (its last part is the registry name), or a directory with `config.json`.

    Quantised variants have a suffix: `-awq`, `-gptq-int4`, `-gptq-int8`, `-fp8`. Case does not matter.
    Raises UsageError: unknown name (lists the names), a config that cannot be read, a mixture of experts.

    >>> model("Qwen/QwQ-32B-AWQ").quantisation
    'int4-awq'
    """
    path = Path(name_or_hub_or_dir)
    if os.path.isfile(path / "config.json"):  # no error where it could name none: too long, or with a NUL
        return from_config(path)
    name = name_or_hub_or_dir.rstrip("/").rsplit("/", 1)[-1].lower()
    base, suffix = _split(name)
    if base in MODELS:
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
    if quantisation == "bf16":
        return base
    suffix = _HUB_SUFFIXES[quantisation]
    # Qwen pads the quantised 72B, so that cards share whole groups of 128 (huggingface.co/Qwen/Qwen2.5-72B-Instruct-AWQ).
    intermediate = 29696 if base.intermediate == 29568 else base.intermediate
    return replace(
        base, name=base.name + suffix.lower(), title=base.title + suffix, hub=base.hub + suffix,
        quantisation=quantisation, intermediate=intermediate,
    )  # fmt: skip


def from_config(directory: Path) -> Model:
    """The model that a Hugging Face folder's `config.json` describes; the folder's name becomes its name.

    Reads the shape, `quantization_config` (awq or gptq at 4 bit, gptq at 8 bit, fp8) and `rope_scaling` (YaRN).
    Raises UsageError: no file, no JSON, a missing key, a mixture of experts, another quantisation.
    """
    where = str(directory / "config.json")
    config = _read_config(directory / "config.json")
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    _refuse_unmodelled(config, where)
    kind = str(config.get("model_type", ""))
    heads, hidden = _integer(config, "num_attention_heads", where), _integer(config, "hidden_size", where)
    quantisation, group_size = _quantisation(config.get("quantization_config"), where)
    native, context = _context(config, where)
    name = directory.resolve().name
    return Model(
        name=name.lower(),
        title=name,
        hub=str(config.get("_name_or_path") or name),
        layers=_integer(config, "num_hidden_layers", where),
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(config, "num_key_value_heads", where, heads),
        head_dim=_integer(config, "head_dim", where, hidden // heads),
        intermediate=_integer(config, "intermediate_size", where),
        vocabulary=_integer(config, "vocab_size", where),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        context_tokens=context,
        native_context_tokens=native,
        quantisation=quantisation,
        group_size=group_size,
        qkv_bias=bool(config.get("attention_bias", kind.startswith("qwen2"))),
        qk_norm=kind.startswith("qwen3"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}; expected the config.json of a Hugging Face model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected an object, got {type(config).__name__}")
    return config


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def _refuse_unmodelled(config: dict[str, Any], where: str) -> None:
    for key in _EXPERTS:
        if config.get(key):
            raise UsageError(
                f"{where}: {key} is {config[key]}: a mixture-of-experts model, which is not modelled; expected a dense one"
            )
    for key in ("kv_lora_rank", "linear_num_value_heads", "ssm_state_size"):
        if config.get(key):
            raise UsageError(
                f"{where}: {key} is {config[key]}: not modelled; expected multi-head or grouped-query attention"
            )


def _integer(config: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: {key} must be a positive whole number, got {value!r}")
    return value


def _quantisation(config: dict[str, Any] | None, where: str) -> tuple[Quantisation, int]:
    if not config:
        return "bf16", 128
    method, bits = str(config.get("quant_method", "")).lower(), config.get("bits", config.get("w_bit"))
    group = config.get("group_size", 128)
    group_size = group if isinstance(group, int) and group > 0 else 128
    if method == "fp8":
        return "fp8", group_size
    if re.fullmatch(r"awq|awq_marlin", method) and bits in (4, None):
        return "int4-awq", group_size
    if re.fullmatch(r"gptq|gptq_marlin", method) and bits in (4, 8):
        return ("int4-gptq" if bits == 4 else "int8-gptq"), group_size
    raise UsageError(
        f"{where}: quantization_config {method or '(no quant_method)'} at {bits} bit is not modelled; "
        "expected awq or gptq at 4 bit, gptq at 8 bit, or fp8"
    )


def _context(config: dict[str, Any], where: str) -> tuple[int, int]:
    """(native, served) context: YaRN multiplies the original length by its factor."""
    limit = _integer(config, "max_position_embeddings", where)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if not factor or factor <= 1:
        return limit, limit
    native = int(original or limit)
    return native, max(limit, int(native * factor))
