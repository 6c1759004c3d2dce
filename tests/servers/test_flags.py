"""Command lines as data, compared with those written by hand, and read back."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.servers.flags import LaunchSpec, disagreements, effective, engine_words, launch_command
from loadtest.servers.settings import SETTINGS, setting_values
from tests.support.engine_settings import EXAMPLES


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    for name in ("LOADTEST_VLLM", "LOADTEST_SGLANG"):
        monkeypatch.delenv(name, raising=False)


def test_vllm_by_hand():
    spec = LaunchSpec(engine="vllm", model="qwq-32b-awq", tp=2, port=8001, context_tokens=16384, memory_fraction=0.9, seed=7)
    argv, settings = launch_command(spec)
    assert " ".join(argv) == (
        "vllm serve Qwen/QwQ-32B-AWQ --host 127.0.0.1 --port 8001 --served-model-name qwq-32b-awq --tensor-parallel-size 2 "
        "--max-model-len 16384 --gpu-memory-utilization 0.9 --reasoning-parser qwen3 --seed 7 --enable-prefix-caching "
        "--enable-prompt-tokens-details"
    )
    assert settings == {"VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}


def test_sglang_by_hand():
    spec = LaunchSpec(
        engine="sglang", model="Qwen/QwQ-32B", tp=2, port=8001, context_tokens=16384, memory_fraction=0.9, seed=7
    )
    argv, settings = launch_command(spec)
    assert " ".join(argv) == (
        "python3 -m sglang.launch_server --model-path Qwen/QwQ-32B --host 127.0.0.1 --port 8001 --served-model-name QwQ-32B "
        "--tp-size 2 --context-length 16384 --mem-fraction-static 0.85 --reasoning-parser qwen3 --random-seed 7 "
        "--enable-cache-report --enable-metrics"
    )
    assert settings == {}


TOLD = ("--enable-prefix", "--no-enable-prefix", "--disable-radix", "--kv-cache", "--quantization", "--gpu-mem", "--mem-f")


@pytest.mark.parametrize(
    ("change", "vllm", "sglang"),
    [
        ({"prefix_caching": True}, "--enable-prefix-caching", None),
        ({"prefix_caching": False}, "--no-enable-prefix-caching", "--disable-radix-cache"),
        ({"kv_dtype": "fp8"}, "--kv-cache-dtype fp8", "--kv-cache-dtype fp8_e4m3"),
        ({"kv_dtype": "fp8_e5m2"}, "--kv-cache-dtype fp8_e5m2", "--kv-cache-dtype fp8_e5m2"),
        ({"quantisation_kernel": "awq_marlin"}, "--quantization awq_marlin", "--quantization awq_marlin"),
        ({"memory_fraction": 0.8}, "--gpu-memory-utilization 0.8", "--mem-fraction-static 0.7556"),
    ],
)
def test_one_setting_is_told_to_both_in_their_own_words(change, vllm, sglang):
    for engine, expected in (("vllm", vllm), ("sglang", sglang)):
        argv, _ = launch_command(LaunchSpec(engine=engine, model="qwq-32b-awq", port=8000, **change))
        told = [word for word in argv if word.startswith(TOLD) and ("prefix_caching" in change or "prefix" not in word)]
        assert told == ([expected.split()[0]] if expected else [])
        assert expected is None or f" {expected} " in f"{' '.join(argv)} "


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_parser_is_no_flag(engine):
    plain = LaunchSpec(engine=engine, model="qwq-32b-awq", port=8000)
    assert "--reasoning-parser" in launch_command(plain)[0]
    assert "--reasoning-parser" not in launch_command(dataclasses.replace(plain, reasoning_parser="none"))[0]


@pytest.mark.parametrize(("port", "settings"), [(55535, {}), (55536, {"SGLANG_GRPC_PORT": "45536"})])
def test_sglang_wants_a_second_port_that_exists(port, settings):
    assert launch_command(LaunchSpec(engine="sglang", model="qwq-32b", port=port))[1] == settings


def test_a_simulator_by_hand():
    spec = LaunchSpec(engine="vllm-sim", model="qwq-32b", tp=2, gpu="l20", port=9000, clock_speed=20, seed=7)
    argv, settings = launch_command(spec)
    assert argv[:4] == [sys.executable, "-P", "-m", "loadtest.simulator"]
    assert " ".join(argv[4:]) == (
        "--engine vllm-sim --model qwq-32b --tp 2 --gpu l20 --port 9000 --clock-speed 20 --seed 7 "
        "--served-model-name qwq-32b --reasoning-parser qwen3"
    )
    assert settings == {}
    assert launch_command(dataclasses.replace(spec, prefix_caching=False))[0] == [*argv, "--no-prefix-cache"]


@pytest.mark.parametrize(
    ("engine", "flag", "key"),
    [("vllm", "--hf-overrides", "rope_parameters"), ("sglang", "--json-model-override-args", "rope_scaling")],
)
def test_yarn_is_on_only_when_asked_for(engine, flag, key):
    plain = LaunchSpec(engine=engine, model="qwq-32b", port=8000)
    assert flag not in launch_command(plain)[0]
    argv, _ = launch_command(dataclasses.replace(plain, yarn=True))
    override = json.loads(argv[argv.index(flag) + 1])
    assert override == {
        key: {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768},
        "max_position_embeddings": 131072,
    }
    length = argv[argv.index("--max-model-len" if engine == "vllm" else "--context-length") + 1]
    assert length == "131072"


def test_a_directory_says_its_own_rope_theta(tmp_path):
    (tmp_path / "config.json").write_text('{"rope_theta": 500000}')
    argv, _ = launch_command(LaunchSpec(engine="vllm", model=str(tmp_path), port=8000, yarn=True))
    assert json.loads(argv[argv.index("--hf-overrides") + 1])["rope_parameters"]["rope_theta"] == 500000.0
    assert argv[2] == str(tmp_path)


@pytest.mark.parametrize("model", ["/no/such/model", "./no-such-model", "~/no-such-model"])
def test_a_directory_that_is_not_there_is_named(model):
    with pytest.raises(UsageError, match=f"{model}: expected a directory"):
        launch_command(LaunchSpec(engine="vllm", model=model, port=8000))


def test_a_variable_names_another_installation(monkeypatch):
    monkeypatch.setenv("LOADTEST_SGLANG", "env OMP_NUM_THREADS=1 '/my engines/python' -m sglang.launch_server")
    argv, _ = launch_command(LaunchSpec(engine="sglang", model="qwq-32b", port=8000))
    assert argv[:5] == ["env", "OMP_NUM_THREADS=1", "/my engines/python", "-m", "sglang.launch_server"]


@given(
    engine=st.sampled_from(["vllm", "sglang", "vllm-sim", "sglang-sim"]),
    tp=st.integers(1, 16),
    port=st.integers(1, 65535),
    extra=st.lists(st.text(min_size=1), max_size=3),
    yarn=st.booleans(),
)
def test_extra_arguments_come_last_and_every_argument_is_a_string(engine, tp, port, extra, yarn):
    argv, settings = launch_command(
        LaunchSpec(engine=engine, model="qwq-32b", tp=tp, gpu="l20", port=port, yarn=yarn, extra_args=tuple(extra))
    )
    assert all(isinstance(word, str) for word in [*argv, *settings.values()])
    assert argv[len(argv) - len(extra) :] == extra
    assert str(port) in argv
    assert "--api-key" not in argv[: len(argv) - len(extra)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "other"}, "engine: expected one of"),
        ({"tp": 0}, "tp: expected"),
        ({"port": 0}, "port: expected"),
        ({"memory_fraction": 1.0}, "memory_fraction: expected"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        LaunchSpec(**{"engine": "vllm", "model": "qwq-32b", "port": 8000, **change})


def test_a_simulator_needs_a_gpu_to_simulate():
    with pytest.raises(UsageError, match="--gpu l20"):
        launch_command(LaunchSpec(engine="sglang-sim", model="qwq-32b", port=8000))


def test_a_program_that_is_no_command_line_is_named(monkeypatch):
    monkeypatch.setenv("LOADTEST_VLLM", 'env A="1 vllm')
    with pytest.raises(UsageError, match="LOADTEST_VLLM: expected a command line"):
        launch_command(LaunchSpec(engine="vllm", model="qwq-32b", port=8000))


YARN = '{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}'


def test_vllm_is_read_back():
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


def test_sglang_tells_by_itself():
    # Values of a real /server_info of SGLang 0.5.15 with a context length given.
    info = {
        "context_length": 8192,
        "json_model_override_args": "{}",
        "quantization": None,
        "kv_cache_dtype": "fp8_e4m3",
        "mem_fraction_static": 0.843,
        "disable_radix_cache": False,
        "reasoning_parser": "qwen3",
    }
    found = effective("sglang", server_info=info)
    assert found == {
        "context_tokens": 8192,
        "yarn": False,
        "kv_dtype": "fp8",
        "memory_fraction": 0.893,
        "prefix_caching": True,
        "reasoning_parser": "qwen3",
    }
    assert effective("sglang", argv=["x", "--mem-fraction-static", "0.5"], server_info=info)["memory_fraction"] == 0.893


def test_vllm_tells_some_by_itself():
    info = {"gpu_memory_utilization": "0.8", "cache_dtype": "fp8", "enable_prefix_caching": False}
    told = {"memory_fraction": 0.8, "kv_dtype": "fp8", "prefix_caching": False}
    assert effective("vllm", server_info=info) == told
    assert effective("vllm", argv=["vllm", "serve", "m"], server_info=info).items() >= told.items()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-sim", "sglang-sim"])
@pytest.mark.parametrize("key", [row.key for row in SETTINGS if row.compared])
def test_what_an_engine_is_told_is_read_back(engine, key):
    spec = LaunchSpec(engine=engine, model="qwq-32b", gpu="l20", port=8000, **{key: EXAMPLES[key][0]})
    row = next(row for row in SETTINGS if row.key == key)
    found = effective(engine, argv=launch_command(spec)[0])
    if row.column(engine) is None:
        assert key not in found
    else:
        assert row.agrees(getattr(spec, key), found[key])


def test_what_nobody_tells_is_left_out():
    assert effective("vllm") == {}
    assert effective("other", argv=["--max-model-len", "5"], max_model_len=4096) == {"context_tokens": 4096}
    assert effective("vllm", argv=["--max-model-len"])["context_tokens"] == ""
    assert effective("sglang", server_info={"disable_radix_cache": "maybe"}) == {}


def test_the_last_of_two_switches_wins():
    assert effective("vllm", argv=["--no-enable-prefix-caching", "--enable-prefix-caching"])["prefix_caching"] is True


def test_what_an_engine_calls_otherwise_is_named_in_its_words():
    asked = {"memory_fraction": 0.9, "kv_dtype": "fp8", "context_tokens": 8192, "reasoning_parser": None}
    assert engine_words("sglang", asked) == {"memory_fraction": 0.85, "kv_dtype": "fp8_e4m3"}
    assert engine_words("vllm", asked) == engine_words("sglang-sim", asked) == engine_words("other", asked) == {}


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
        ("thinking_prelude", "template", "none"),
    ],
)
def test_each_violation_is_caught_by_name(key, asked, found):
    assert disagreements({key: asked}, {key: found}) == {key: (asked, found)}
    assert disagreements({key: asked}, {key: asked}) == {}


def test_a_memory_share_may_be_off_by_what_reading_it_back_rounds():
    assert disagreements({"memory_fraction": 0.9125}, {"memory_fraction": 0.912}) == {}
    assert disagreements({"memory_fraction": 0.9125}, {"memory_fraction": 0.91}) != {}


def test_what_is_left_open_is_no_violation():
    found = {"context_tokens": 999, "kv_dtype": "fp8", "quantisation_kernel": "awq"}
    assert disagreements(setting_values(LaunchSpec(engine="vllm", model="m", port=1)), found) == {}
    assert disagreements({}, found) == {}
    assert disagreements({"context_tokens": 4096}, {"context_tokens": 8192}) == {}


LAUNCHERS = Path(__file__).parents[2] / "launchers"
IMAGES = {"vllm": "vllm/vllm-openai:v0.32.0", "sglang": "lmsysorg/sglang:v0.5.21"}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_compose_gives_the_flags_that_we_give(engine):
    service = (LAUNCHERS / "compose.yaml").read_text().split(f"\n  {engine}:\n")[1].split("\n\n")[0]
    assert f"image: {IMAGES[engine]}" in service
    given = {}
    for word in re.findall(r"^      - (--\S+)$", service, re.MULTILINE):
        flag, _, value = word.partition("=")
        given[flag] = re.sub(r"\$\{\w+:-(.+)\}", r"\1", value)
    spec = LaunchSpec(engine=engine, model="Qwen/QwQ-32B-AWQ", port=8000, served_name="qwq-32b", memory_fraction=0.9)
    argv, _ = launch_command(spec)
    ours = {word: "" if n + 1 == len(argv) or argv[n + 1][:2] == "--" else argv[n + 1] for n, word in enumerate(argv)}
    assert given == {flag: value for flag, value in ours.items() if flag.startswith("--")}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_container_is_pinned_and_runs_as_its_user_with_the_arguments_it_is_given(engine, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [LAUNCHERS / f"{engine}-docker", "--port", "8000", "a b"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[-3:] == ["--port", "8000", "a b"]
    assert IMAGES[engine] in words
    assert words[words.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert words[words.index("--network") + 1] == "host"
    assert "--privileged" not in words
    assert not any("KEY" in word for word in words)
    assert (tmp_path / ".cache/huggingface").is_dir(), "else Docker makes it, and root owns it"
