"""Every flag that we give, read back by the runtimes' own argument parsers."""

import json
import subprocess

import pytest

from loadtest.launch import LaunchSpec, command, program

PARSERS = {
    "vllm": (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "options = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(sys.argv[1]))\n"
        "print(json.dumps(vars(options), default=str))\n"
    ),
    "sglang": (
        "import argparse, json, sys\n"
        "from sglang.srt.server_args import ServerArgs\n"
        "parser = argparse.ArgumentParser(); ServerArgs.add_cli_args(parser)\n"
        "print(json.dumps(vars(parser.parse_args(json.loads(sys.argv[1]))), default=str))\n"
    ),
}
OURS = {  # what we ask for, and the parsers' names for it
    "host": ("host", "host", "127.0.0.1"),
    "port": ("port", "port", 8123),
    "served_name": ("served_model_name", "served_model_name", "qwq-32b"),
    "tp": ("tensor_parallel_size", "tp_size", 2),
    "context_tokens": ("max_model_len", "context_length", 16384),
    "memory_fraction": ("gpu_memory_utilization", "mem_fraction_static", 0.85),
    "reasoning_parser": ("reasoning_parser", "reasoning_parser", "qwen3"),
    "seed": ("seed", "random_seed", 7),
}


def parsed(spec):
    argv, _ = command(spec)
    start = program(spec.engine)
    python = next(word for word in start if "/bin/" in word).rsplit("/", 1)[0] + "/python"
    settings = [word for word in start if "=" in word]
    arguments = argv[len(start) + (spec.engine == "vllm") :]  # `vllm serve` names its command first
    words = ["env", *settings, python, "-c", PARSERS[spec.engine], json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_flag_means_what_we_mean(engine):
    column = 0 if engine == "vllm" else 1
    options = parsed(
        LaunchSpec(
            engine=engine,
            model="qwq-32b-awq",
            port=8123,
            tp=2,
            served_name="qwq-32b",
            context_tokens=16384,
            memory_fraction=0.85,
            seed=7,
            yarn=True,
        )
    )
    for key, row in OURS.items():
        value = options[row[column]]
        assert (value[0] if isinstance(value, list) else value) == row[2], key
    if engine == "vllm":
        assert options["enable_prefix_caching"] is True
        assert options["enable_prompt_tokens_details"] is True
        assert "yarn" in str(options["hf_overrides"])
    else:
        assert options["disable_radix_cache"] is False
        assert options["enable_metrics"] is True
        assert options["enable_cache_report"] is True
        assert json.loads(options["json_model_override_args"])["rope_scaling"]["rope_type"] == "yarn"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_the_cpu_needs_exists_too(engine, spec):
    parsed(spec(engine))
