"""The launcher's half of the contract as a runtime really has it: both runtimes' settings under the contract's keys.

=====================  ============================================  ==========================================
contract               SGLang (`/server_info`, flag)                 vLLM (flag)
=====================  ============================================  ==========================================
context_tokens         context_length, --context-length              --max-model-len, `max_model_len`
memory_fraction        mem_fraction_static, --mem-fraction-static    --gpu-memory-utilization (default 0.92)
kv_dtype               kv_cache_dtype, --kv-cache-dtype              --kv-cache-dtype
quantisation_kernel    quantization, --quantization                  --quantization
reasoning_parser       reasoning_parser, --reasoning-parser          --reasoning-parser
prefix_caching         disable_radix_cache, --disable-radix-cache    --[no-]enable-prefix-caching (default on)
yarn                   json_model_override_args, the same as a flag  --hf-overrides
=====================  ============================================  ==========================================

Neither fraction means the same memory on both: SGLang's is of weights and KV cache, vLLM's of everything it may use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.contract import Contract

_FLAGS = {
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
    if family not in _FLAGS:
        return {} if max_model_len is None else {"context_tokens": max_model_len}
    values = (_DEFAULTS[family] | _from_argv(argv, _FLAGS[family])) if argv else {}
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
