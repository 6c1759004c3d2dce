"""How a runtime is started: its command line and settings as data, one column for each runtime.

Quantisation needs no flag: both runtimes read it from the model's own `config.json` (AWQ then runs on their fast
kernels); `quantisation_kernel` names another one. A started server listens on 127.0.0.1 only and has no API key.

Memory. vLLM's fraction is of everything it may use on a card, activations and graphs included; SGLang's is of weights and
KV cache alone, and what activations need comes on top. The same 0.9 would leave SGLang too little, so one number stands
for both, in vLLM's sense, and SGLang is given 17/18 of it: 0.9 becomes 0.85, which is what SGLang itself chooses on a
card of 48 GB (`server_args.py`: 1.5 MB for each token of a prefill chunk, 2 MB for each captured batch, 0.6 GB more).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError
from loadtest.perfmodel import models
from loadtest.workload.contract import Contract

HOST = "127.0.0.1"

_SGLANG_GRPC_OFFSET = 10000  # SGLang wants port + 10000 too, and dies where that is over 65535

_SGLANG_LAST_PORT = 65535 - _SGLANG_GRPC_OFFSET

SGLANG_STATIC_SHARE = 17 / 18  # of the memory that a runtime may use, what SGLang gives to weights and KV cache

YARN_FACTOR = 4.0

YARN_ORIGINAL_TOKENS = 32768

_ROPE_THETA = 1000000.0  # of QwQ, Qwen2.5 and Qwen3; a model directory says its own

# How the runtime is called. The variable may name another installation, or set its environment: "env A=1 /path/bin/vllm".
_PROGRAMS = {
    "vllm": ("LOADTEST_VLLM", "vllm"),
    "sglang": ("LOADTEST_SGLANG", "python3 -m sglang.launch_server"),
}

# vLLM resets its prefix cache on request in this mode only (its own `bench sweep` starts servers so); SGLang always does.
_SETTINGS = {
    "vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"},
    "sglang": {},
    "vllm-sim": {},
    "sglang-sim": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One runtime to start: `model` is a registry name, a hub name or a directory, `tp` counts cards.

    `context_tokens` is prompt and output together (null: the model's own limit, with YaRN four times 32,768). YaRN is
    static: it slows or degrades short prompts, so it is on only where the workload needs it. `memory_fraction` (null:
    the runtime's own default) is the share of a card's memory that the runtime may use in all. `kv_dtype` and
    `quantisation_kernel` are in vLLM's words ("auto": the runtime's choice). `extra_args` go to the runtime as they are,
    last, so that they win. `clock_speed` is for the simulators.
    """

    engine: str
    model: str
    port: int
    tp: int = 1
    gpu: str | None = None
    served_name: str | None = None
    context_tokens: int | None = None
    yarn: bool = False
    memory_fraction: float | None = None
    reasoning_parser: str | None = "qwen3"
    prefix_caching: bool = True
    kv_dtype: str = "auto"
    quantisation_kernel: str = "auto"
    seed: int = 0
    clock_speed: float | None = None
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in _SETTINGS:
            raise UsageError(
                f"engine: expected one of {', '.join(_SETTINGS)}, got {self.engine!r}; only these can be started"
            )
        if self.tp < 1:
            raise UsageError(f"tp: expected a number of cards from 1 up, got {self.tp}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"port: expected 1 to 65535, got {self.port}")
        if self.memory_fraction is not None and not 0 < self.memory_fraction < 1:
            raise UsageError(f"memory_fraction: expected a share between 0 and 1, got {self.memory_fraction}")

    @property
    def simulated(self) -> bool:
        return self.engine.endswith("-sim")

    @property
    def name(self) -> str:
        """What the server calls the model: the last part of its name, unless told."""
        return self.served_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def served_context_tokens(self) -> int | None:
        """Context to ask of the runtime; null leaves it to the model's own limit."""
        return self.context_tokens or (int(YARN_FACTOR * YARN_ORIGINAL_TOKENS) if self.yarn else None)


_SGLANG_KV_DTYPES = {"fp8": "fp8_e4m3"}  # what vLLM means by it (its `config/cache.py`); SGLang has no word "fp8"

# One row a fact: how vLLM 0.32 and SGLang 0.5 call it, and its value from a spec; null or false leaves the flag out.
# Both cache prefixes or neither, serve /metrics (SGLang when told) and tell cached tokens, so that they do the same work.
_Value = str | int | float | bool | None

_FLAGS: tuple[tuple[str | None, str | None, Callable[[LaunchSpec], _Value]], ...] = (
    ("--host", "--host", lambda spec: HOST),
    ("--port", "--port", lambda spec: spec.port),
    ("--served-model-name", "--served-model-name", lambda spec: spec.name),
    ("--tensor-parallel-size", "--tp-size", lambda spec: spec.tp),
    ("--max-model-len", "--context-length", lambda spec: spec.served_context_tokens),
    ("--gpu-memory-utilization", None, lambda spec: spec.memory_fraction),
    (None, "--mem-fraction-static", lambda spec: sglang_memory_fraction(spec.memory_fraction)),
    ("--kv-cache-dtype", None, lambda spec: _unless("auto", spec.kv_dtype)),
    (None, "--kv-cache-dtype", lambda spec: _unless("auto", sglang_kv_dtype(spec.kv_dtype))),
    ("--quantization", "--quantization", lambda spec: _unless("auto", spec.quantisation_kernel)),
    ("--reasoning-parser", "--reasoning-parser", lambda spec: _unless("none", spec.reasoning_parser)),
    ("--seed", "--random-seed", lambda spec: spec.seed),
    ("--enable-prefix-caching", None, lambda spec: spec.prefix_caching),
    ("--no-enable-prefix-caching", "--disable-radix-cache", lambda spec: not spec.prefix_caching),
    ("--enable-prompt-tokens-details", "--enable-cache-report", lambda spec: True),
    (None, "--enable-metrics", lambda spec: True),  # vLLM always serves them
    ("--hf-overrides", None, lambda spec: _yarn_override(spec, "rope_parameters") if spec.yarn else None),
    (None, "--json-model-override-args", lambda spec: _yarn_override(spec, "rope_scaling") if spec.yarn else None),
)

_SIMULATOR_FLAGS: tuple[tuple[str, Callable[[LaunchSpec], _Value]], ...] = (
    ("--engine", lambda spec: spec.engine),
    ("--model", lambda spec: spec.model),
    ("--tp", lambda spec: spec.tp),
    ("--gpu", lambda spec: spec.gpu),
    ("--port", lambda spec: spec.port),
    ("--clock-speed", lambda spec: spec.clock_speed),
    ("--seed", lambda spec: spec.seed),
    ("--served-model-name", lambda spec: spec.name),
    ("--max-model-len", lambda spec: spec.served_context_tokens),
    ("--memory-fraction", lambda spec: spec.memory_fraction),
    ("--reasoning-parser", lambda spec: spec.reasoning_parser),
    ("--no-prefix-cache", lambda spec: not spec.prefix_caching),
)


def command(spec: LaunchSpec) -> tuple[list[str], dict[str, str]]:
    """The exact command, and the settings to add to the environment (never a secret).

    >>> argv, settings = command(LaunchSpec(engine="vllm", model="Qwen/QwQ-32B-AWQ", tp=2, port=8000))
    >>> argv[:8]
    ['vllm', 'serve', 'Qwen/QwQ-32B-AWQ', '--host', '127.0.0.1', '--port', '8000', '--served-model-name']
    """
    settings = dict(_SETTINGS[spec.engine])
    if spec.simulated:
        if spec.gpu is None:
            raise UsageError(f"gpu: expected the card to simulate for {spec.engine}, got none; add --gpu l20")
        start = [sys.executable, "-m", "loadtest.simulator"]
        return [*start, *_options([(flag, value(spec)) for flag, value in _SIMULATOR_FLAGS]), *spec.extra_args], settings
    if spec.engine == "sglang" and spec.port > _SGLANG_LAST_PORT:
        settings["SGLANG_GRPC_PORT"] = str(spec.port - _SGLANG_GRPC_OFFSET)
    flags = [(vllm if spec.engine == "vllm" else sglang, value(spec)) for vllm, sglang, value in _FLAGS]
    start = [*program(spec.engine), "serve" if spec.engine == "vllm" else "--model-path", hub_name(spec.model)]
    return [*start, *_options(flags), *spec.extra_args], settings


def sglang_memory_fraction(memory_fraction: float | None) -> float | None:
    """SGLang's fraction (weights and KV cache) for a fraction of everything, see the top; null stays SGLang's own choice.

    >>> sglang_memory_fraction(0.9)
    0.85
    """
    return None if memory_fraction is None else round(memory_fraction * SGLANG_STATIC_SHARE, 4)


def sglang_kv_dtype(kv_dtype: str) -> str:
    """SGLang's word for a type of KV cache.

    >>> sglang_kv_dtype("fp8")
    'fp8_e4m3'
    """
    return _SGLANG_KV_DTYPES.get(kv_dtype, kv_dtype)


def _unless(word: str, value: str | None) -> str | None:
    return None if value == word else value


def program(engine: str) -> list[str]:
    """How a runtime is called here: LOADTEST_VLLM or LOADTEST_SGLANG, else what is on the PATH."""
    variable, default = _PROGRAMS[engine]
    said = os.environ.get(variable) or default
    try:
        return shlex.split(said)
    except ValueError as error:
        raise UsageError(f"{variable}: expected a command line, got {said!r}: {error}") from None


def hub_name(model: str) -> str:
    """What a runtime loads: a directory or a hub name as it is, a registry name by its hub name.

    >>> hub_name("qwq-32b-awq"), hub_name("someone/Some-Model")
    ('Qwen/QwQ-32B-AWQ', 'someone/Some-Model')
    """
    if Path(model).is_dir():
        return model
    if model.startswith(("/", ".", "~")):
        raise UsageError(f"{model}: expected a directory with config.json, found none")
    return model if "/" in model else models.model(model).hub


def _options(flags: list[tuple[str | None, _Value]]) -> list[str]:
    argv: list[str] = []
    for flag, value in flags:
        if flag is not None and value is not None and value is not False:
            argv += [flag] if value is True else [flag, str(value)]
    return argv


def _yarn_override(spec: LaunchSpec, key: str) -> str:
    rope = {
        "rope_type": "yarn",
        "rope_theta": _rope_theta(spec.model),
        "factor": YARN_FACTOR,
        "original_max_position_embeddings": YARN_ORIGINAL_TOKENS,
    }
    return json.dumps({key: rope, "max_position_embeddings": int(YARN_FACTOR * YARN_ORIGINAL_TOKENS)})


def _rope_theta(model: str) -> float:
    path = Path(model) / "config.json"
    if not path.is_file():
        return _ROPE_THETA
    config = json.loads(path.read_text(encoding="utf-8"))
    nested = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or nested.get("rope_theta") or _ROPE_THETA)


_KEY_OF_FLAG = {
    "sglang": {
        "--context-length": "context_tokens",
        "--mem-fraction-static": "memory_fraction",
        "--kv-cache-dtype": "kv_dtype",
        "--quantization": "quantisation_kernel",
        "--reasoning-parser": "reasoning_parser",
        "--json-model-override-args": "yarn",
        "--disable-radix-cache": "prefix_caching",
    },
    "vllm": {
        "--max-model-len": "context_tokens",
        "--gpu-memory-utilization": "memory_fraction",
        "--kv-cache-dtype": "kv_dtype",
        "--quantization": "quantisation_kernel",
        "--reasoning-parser": "reasoning_parser",
        "--hf-overrides": "yarn",
        "--no-enable-prefix-caching": "prefix_caching",
        "--enable-prefix-caching": "prefix_caching",
    },
}

_SWITCHES = {"--disable-radix-cache": False, "--no-enable-prefix-caching": False, "--enable-prefix-caching": True}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "sglang": {"kv_dtype": "auto", "quantisation_kernel": "auto", "prefix_caching": True, "yarn": False},
    "vllm": {
        "kv_dtype": "auto",
        "quantisation_kernel": "auto",
        "prefix_caching": True,
        "yarn": False,
        "memory_fraction": 0.92,
    },
}

_ROUNDING = 0.001  # of a memory share that was told in SGLang's sense and read back

_SERVER_INFO = {
    "context_length": "context_tokens",
    "mem_fraction_static": "memory_fraction",
    "kv_cache_dtype": "kv_dtype",
    "quantization": "quantisation_kernel",
    "reasoning_parser": "reasoning_parser",
    "json_model_override_args": "yarn",
}


def effective(
    engine: str,
    *,
    argv: Sequence[str] = (),
    server_info: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
) -> dict[str, Any]:
    """What a runtime runs with, under the contract's keys; a key that nothing tells is left out, never guessed.

    From its command line (`argv`; its defaults fill what the line does not say, so only where the line is known), then
    SGLang's `/server_info`, then `max_model_len` of `/v1/models`; the later one wins. A simulator counts as its original.

    >>> effective("vllm", argv=["vllm", "serve", "m", "--max-model-len=8192"])["context_tokens"]
    8192
    """
    family = engine.removesuffix("-sim")
    if family not in _KEY_OF_FLAG:
        return {} if max_model_len is None else {"context_tokens": max_model_len}
    values = (_DEFAULTS[family] | _from_argv(argv, _KEY_OF_FLAG[family])) if argv else {}
    info = server_info or {}
    values |= {key: _read(key, info[name]) for name, key in _SERVER_INFO.items() if info.get(name) is not None}
    if isinstance(info.get("disable_radix_cache"), bool):
        values["prefix_caching"] = not info["disable_radix_cache"]
    if max_model_len is not None:
        values["context_tokens"] = max_model_len
    return values


def _from_argv(argv: Sequence[str], flags: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag not in flags:
            continue
        if flag in _SWITCHES:
            values[flags[flag]] = _SWITCHES[flag]
        else:
            following = argv[index + 1] if index + 1 < len(argv) else ""
            values[flags[flag]] = _read(flags[flag], value if equals else following)
    return values


def _read(key: str, value: Any) -> Any:
    if key == "yarn":
        return "yarn" in str(value)
    try:
        return {"context_tokens": int, "memory_fraction": float}.get(key, str)(value)
    except ValueError:
        return value


def violations(contract: Contract, found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every key in which a runtime is not as the contract wants it: (expected, got). What it does not tell is no violation.

    "auto" and a context that is left open accept anything; a context may be larger than the contract's, never smaller.

    >>> violations(Contract(prefix_caching=False), {"prefix_caching": True, "kv_dtype": "fp8"})
    {'prefix_caching': (False, True)}
    """
    wrong = {}
    for key, got in found.items():
        expected = getattr(contract, key)
        if expected is None or expected == "auto" or got == expected:
            continue
        if key == "context_tokens" and isinstance(got, int) and got > expected:
            continue
        if key == "memory_fraction" and isinstance(got, float) and abs(got - expected) <= _ROUNDING:
            continue
        wrong[key] = (expected, got)
    return wrong
