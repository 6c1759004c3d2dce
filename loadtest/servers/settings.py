"""The settings of an engine, one row each: the key in a study, the flag of each engine, the key in its own info.

`EngineSettings` is the table: a field is a row. The inference contract and `LaunchSpec` inherit it, command lines are
written from it and read back by it, so that a new setting is one new field here.

A row names one `Flag`, `Switch` or `YarnOverride` for each engine, by vLLM 0.32 and SGLang 0.5, and for the simulator where
that has such an option. Each says what stands on the command line (`words`) and reads it back (`read_word`). `told` is the
key in the engine's own info: SGLang's `/server_info`, the labels of vLLM's metric `cache_config_info`. `default` is what the
engine does where its command line says nothing (None: not known).

Memory. vLLM's fraction is of everything it may use on a GPU, activations and graphs included. SGLang's is of weights and
KV cache alone, and activations come on top. The same 0.9 would leave SGLang too little, so one number stands for both, in
vLLM's sense, and SGLang is given 17/18 of it: 0.9 becomes 0.85, which is what SGLang itself chooses on a GPU of 48 GB
(`server_args.py`: 1.5 MB for each token of a prefill chunk, 2 MB for each captured batch, 0.6 GB more).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError

SGLANG_STATIC_SHARE = 17 / 18  # of the memory that an engine may use, what SGLang gives to weights and KV cache

YARN_FACTOR = 4.0

YARN_ORIGINAL_TOKENS = 32768

YARN_CONTEXT_TOKENS = int(YARN_FACTOR * YARN_ORIGINAL_TOKENS)

_ROPE_THETA = 1000000.0  # of QwQ, Qwen2.5 and Qwen3; a model directory says its own

_ROUNDING = 0.001  # of a memory share that was told in SGLang's sense and read back

_SGLANG_KV_DTYPES = {"fp8": "fp8_e4m3"}  # what vLLM means by fp8 (its `config/cache.py`); SGLang has no such word

SettingValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be: in words, and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def number_in(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Callable[[object], bool]:
    """A test for a finite number between two bounds, which belong to it unless they are open."""

    def holds(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    return holds


def whole_in(low: int, high: int) -> Callable[[object], bool]:
    """A test for a whole number between two bounds."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _optional(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or holds(value)


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag with a value after it. `write` gives the engine's word for a value of ours, `read` ours for the engine's."""

    name: str
    write: Callable[[Any], Any] = _same
    read: Callable[[Any], Any] = str
    unset: SettingValue = None  # a value, besides None, for which the flag is left out
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def words(self, value: SettingValue, model: str) -> list[str]:
        return [] if value in (None, self.unset) else [self.name, str(self.write(value))]

    def read_word(self, name: str, word: str) -> SettingValue:
        """The value that `word` after the flag stands for; the word itself where it is no such value."""
        try:
            value: SettingValue = self.read(word)
            return value
        except ValueError:
            return word

    def read_told(self, value: Any) -> SettingValue:
        return self.read_word(self.name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A flag without a value: `on` is given for true, `off` for false. `told` is true for `off` where there is no `on`."""

    on: str | None = None
    off: str
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.on, self.off) if name is not None)

    def write(self, value: SettingValue) -> SettingValue:
        return value

    def words(self, value: SettingValue, model: str) -> list[str]:
        name = self.on if value else self.off
        return [] if name is None else [name]

    def read_word(self, name: str, word: str) -> SettingValue:
        return name == self.on

    def read_told(self, value: Any) -> SettingValue:
        return (value if self.on else not value) if isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnOverride:
    """YaRN: a flag with JSON that replaces `key` of the model's own config. True where the JSON names YaRN."""

    name: str
    key: str
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def write(self, value: SettingValue) -> SettingValue:
        return value

    def words(self, value: SettingValue, model: str) -> list[str]:
        if not value:
            return []
        rope = {
            "rope_type": "yarn",
            "rope_theta": _rope_theta(model),
            "factor": YARN_FACTOR,
            "original_max_position_embeddings": YARN_ORIGINAL_TOKENS,
        }
        return [self.name, json.dumps({self.key: rope, "max_position_embeddings": YARN_CONTEXT_TOKENS})]

    def read_word(self, name: str, word: str) -> SettingValue:
        return "yarn" in word

    def read_told(self, value: Any) -> SettingValue:
        return "yarn" in str(value)


def _rope_theta(model: str) -> float:
    path = Path(model) / "config.json"
    if not path.is_file():
        return _ROPE_THETA
    config = json.loads(path.read_text(encoding="utf-8"))
    nested = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or nested.get("rope_theta") or _ROPE_THETA)


def _sglang_memory_fraction(memory_fraction: float) -> float:
    """SGLang's fraction (weights and KV cache) for a fraction of everything, see the top.

    >>> _sglang_memory_fraction(0.9)
    0.85
    """
    return round(memory_fraction * SGLANG_STATIC_SHARE, 4)


def _common_memory_fraction(told: Any) -> float:
    """The fraction of everything for SGLang's own.

    >>> _common_memory_fraction("0.85")
    0.9
    """
    return round(float(told) / SGLANG_STATIC_SHARE, 3)


def _sglang_kv_dtype(kv_dtype: str) -> str:
    """SGLang's word for a type of KV cache.

    >>> _sglang_kv_dtype("fp8")
    'fp8_e4m3'
    """
    return _SGLANG_KV_DTYPES.get(kv_dtype, kv_dtype)


def _common_kv_dtype(told: Any) -> str:
    return next((ours for ours, theirs in _SGLANG_KV_DTYPES.items() if theirs == told), str(told))


Column = Flag | Switch | YarnOverride


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row. `agrees(expected, got)`: does an engine that runs with `got` do as asked? `compared` is false for what is
    only told to the engine, never read back."""

    key: str
    rule: Rule
    vllm: Column | None
    sglang: Column | None
    simulator: Column | None
    agrees: Callable[[Any, Any], bool]
    compared: bool

    def column(self, engine: str) -> Column | None:
        """How this engine is told; None where it cannot be."""
        if engine.endswith("-sim"):
            return self.simulator
        return {"vllm": self.vllm, "sglang": self.sglang}.get(engine)


def _row(
    default: SettingValue,
    expected: str,
    holds: Callable[[Any], bool],
    *,
    vllm: Column | None = None,
    sglang: Column | None = None,
    simulator: Column | None = None,
    agrees: Callable[[Any, Any], bool] = operator.eq,
    compared: bool = True,
) -> Any:
    columns = {"vllm": vllm, "sglang": sglang, "simulator": simulator}
    return field(
        default=default, metadata={**columns, "rule": Rule(expected, holds), "agrees": agrees, "compared": compared}
    )


def _is_enough(expected: Any, got: Any) -> bool:
    """A context may be larger than asked, never smaller."""
    return got == expected or (isinstance(got, int) and got > expected)


def _is_near(expected: Any, got: Any) -> bool:
    return got == expected or (isinstance(got, float) and abs(got - expected) <= _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The table. Command lines have the flags in the order of these rows, overrides last.

    `context_tokens` counts prompt and output together (None: the model's own limit, with YaRN four times 32,768).
    `memory_fraction` (None: the engine's own default) is the share of a GPU's memory that the engine may use in all.
    `max_running_requests` (None: the engine's own default) bounds the batch; more requests wait in the engine's queue.
    `kv_dtype` and `quantisation_kernel` are in vLLM's words ("auto": the engine's choice). YaRN is static: it slows or
    degrades short prompts, so it is on only where the workload needs it.
    """

    context_tokens: int | None = _row(
        None,
        "a whole number from 16, or nothing",
        _optional(whole_in(16, 2**24)),
        vllm=Flag(name="--max-model-len", read=int),
        sglang=Flag(name="--context-length", read=int, told="context_length"),
        simulator=Flag(name="--max-model-len", read=int),
        agrees=_is_enough,
    )
    memory_fraction: float | None = _row(
        None,
        "a share above 0 and below 1",
        _optional(number_in(0, 1, open_low=True, open_high=True)),
        vllm=Flag(name="--gpu-memory-utilization", read=float, told="gpu_memory_utilization", default=0.92),
        sglang=Flag(
            name="--mem-fraction-static",
            write=_sglang_memory_fraction,
            read=_common_memory_fraction,
            told="mem_fraction_static",
        ),
        simulator=Flag(name="--memory-fraction", read=float),
        agrees=_is_near,
    )
    max_running_requests: int | None = _row(
        None,
        "a whole number from 1, or nothing",
        _optional(whole_in(1, 2**20)),
        vllm=Flag(name="--max-num-seqs", read=int),
        sglang=Flag(name="--max-running-requests", read=int, told="max_running_requests"),
        simulator=Flag(name="--max-running", read=int),
    )
    kv_dtype: str = _row(
        "auto",
        "a type's name, or auto",
        is_name,
        vllm=Flag(name="--kv-cache-dtype", unset="auto", told="cache_dtype", default="auto"),
        sglang=Flag(
            name="--kv-cache-dtype",
            write=_sglang_kv_dtype,
            read=_common_kv_dtype,
            unset="auto",
            told="kv_cache_dtype",
            default="auto",
        ),
    )
    quantisation_kernel: str = _row(
        "auto",
        "a kernel's name, or auto",
        is_name,
        vllm=Flag(name="--quantization", unset="auto", default="auto"),
        sglang=Flag(name="--quantization", unset="auto", told="quantization", default="auto"),
    )
    reasoning_parser: str | None = _row(
        "qwen3",
        "a parser's name, or none",
        _optional(is_name),
        vllm=Flag(name="--reasoning-parser", unset="none"),
        sglang=Flag(name="--reasoning-parser", unset="none", told="reasoning_parser"),
        simulator=Flag(name="--reasoning-parser"),
    )
    seed: int = _row(
        0,
        "a whole number from 0",
        whole_in(0, 2**63 - 1),
        vllm=Flag(name="--seed"),
        sglang=Flag(name="--random-seed"),
        compared=False,  # each request carries its own seed
    )
    prefix_caching: bool = _row(
        True,
        "true or false",
        is_switch,
        vllm=Switch(
            on="--enable-prefix-caching",
            off="--no-enable-prefix-caching",
            told="enable_prefix_caching",
            default=True,
        ),
        sglang=Switch(off="--disable-radix-cache", told="disable_radix_cache", default=True),
        simulator=Switch(off="--no-prefix-cache"),
    )
    yarn: bool = _row(
        False,
        "true or false",
        is_switch,
        vllm=YarnOverride(name="--hf-overrides", key="rope_parameters", default=False),
        sglang=YarnOverride(
            name="--json-model-override-args", key="rope_scaling", told="json_model_override_args", default=False
        ),
    )


SETTINGS: tuple[Setting, ...] = tuple(Setting(key=row.name, **row.metadata) for row in fields(EngineSettings))


def setting_values(settings: EngineSettings) -> dict[str, Any]:
    """The values of all rows, by key.

    >>> setting_values(EngineSettings(kv_dtype="fp8"))["kv_dtype"]
    'fp8'
    """
    return {row.key: getattr(settings, row.key) for row in SETTINGS}


def check_settings(settings: EngineSettings) -> None:
    """Raise `UsageError` for the first value that breaks the rule of its row."""
    for row in SETTINGS:
        value = getattr(settings, row.key)
        if not row.rule.holds(value):
            raise UsageError(f"{row.key}: expected {row.rule.expected}, got {value!r}")


def told_keys(engine: str) -> tuple[str, ...]:
    """The keys in an engine's own info that tell a setting.

    >>> told_keys("sglang")[:2]
    ('context_length', 'mem_fraction_static')
    """
    columns = (row.column(engine) for row in SETTINGS)
    return tuple(column.told for column in columns if column is not None and column.told is not None)
