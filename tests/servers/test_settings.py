"""Settings: both runtimes' own words under the contract's keys, and each violation by name."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.servers.flags import effective, violations
from loadtest.workload.contract import Contract

YARN = '{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}'


def test_vllm_command_line() -> None:
    argv = ["vllm", "serve", "m", "--max-model-len", "8192", "--kv-cache-dtype=fp8", "--no-enable-prefix-caching"]
    argv += ["--reasoning-parser", "qwen3", "--hf-overrides", YARN, "--quantization", "awq_marlin"]
    assert effective("vllm", argv=argv) == {
        "context_tokens": 8192,
        "kv_dtype": "fp8",
        "prefix_caching": False,
        "reasoning_parser": "qwen3",
        "yarn": True,
        "quantisation_kernel": "awq_marlin",
        "memory_fraction": 0.92,
    }


def test_sglang_tells_by_itself() -> None:
    # Values of a real /server_info of SGLang 0.5.15 with a context length given.
    info = {
        "context_length": 8192,
        "json_model_override_args": "{}",
        "quantization": None,
        "kv_cache_dtype": "auto",
        "mem_fraction_static": 0.843,
        "disable_radix_cache": False,
        "reasoning_parser": "qwen3",
    }
    found = effective("sglang", server_info=info)
    assert found == {
        "context_tokens": 8192,
        "yarn": False,
        "kv_dtype": "auto",
        "memory_fraction": 0.843,
        "prefix_caching": True,
        "reasoning_parser": "qwen3",
    }
    assert effective("sglang", argv=["x", "--mem-fraction-static", "0.5"], server_info=info)["memory_fraction"] == 0.843


def test_both_runtimes_agree_where_they_are_told_the_same() -> None:
    sglang = [
        "--context-length",
        "8192",
        "--mem-fraction-static",
        "0.8",
        "--disable-radix-cache",
        "--reasoning-parser",
        "qwen3",
    ]
    vllm = [
        "--max-model-len",
        "8192",
        "--gpu-memory-utilization",
        "0.8",
        "--no-enable-prefix-caching",
        "--reasoning-parser",
        "qwen3",
    ]
    assert effective("sglang-sim", argv=sglang) == effective("vllm-sim", argv=vllm)


def test_what_nobody_tells_is_left_out() -> None:
    assert effective("vllm") == {}
    assert effective("other", argv=["--max-model-len", "5"], max_model_len=4096) == {"context_tokens": 4096}
    assert effective("vllm", argv=["--max-model-len"])["context_tokens"] == ""


@pytest.mark.parametrize(
    ("key", "asked", "found"),
    [
        ("context_tokens", 16384, 8192),
        ("memory_fraction", 0.9, 0.5),
        ("kv_dtype", "fp8", "auto"),
        ("quantisation_kernel", "awq_marlin", "awq"),
        ("reasoning_parser", "qwen3", "deepseek_r1"),
        ("prefix_caching", True, False),
        ("yarn", False, True),
    ],
)
def test_each_violation_is_caught_by_name(key: str, asked: Any, found: Any) -> None:
    contract = Contract(**{"max_tokens": 1024, key: asked})
    assert violations(contract, {key: found}) == {key: (asked, found)}
    assert violations(contract, {key: asked}) == {}


def test_a_memory_share_may_be_off_by_what_reading_it_back_rounds() -> None:
    assert violations(Contract(memory_fraction=0.9125), {"memory_fraction": 0.912}) == {}
    assert violations(Contract(memory_fraction=0.9125), {"memory_fraction": 0.91}) != {}


def test_what_is_left_open_is_no_violation() -> None:
    assert violations(Contract(), {"context_tokens": 999, "kv_dtype": "fp8", "quantisation_kernel": "awq"}) == {}
    assert violations(Contract(context_tokens=4096, max_tokens=64), {"context_tokens": 8192}) == {}
