"""Every flag that we give, read back by the engines' own argument parsers: those installed, and that of SGLang's image."""

import json
import subprocess

import pytest

from loadtest.commands.machine import acceptance_studies
from loadtest.servers.flags import LaunchSpec, launch_command, program
from loadtest.study import parse, plan
from tests.engines.conftest import CHECKOUT, MODEL

pytestmark = pytest.mark.timeout(1800)
PARSERS = {
    "vllm": (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
    ),
    "sglang": (
        "import argparse, json, sys\n"
        "from sglang.srt.server_args import ServerArgs\n"
        "parser = argparse.ArgumentParser(); ServerArgs.add_cli_args(parser)\n"
    ),
}
OURS = {  # what we ask for, and the parsers' names for it
    "host": ("host", "host", "127.0.0.1"),
    "port": ("port", "port", 8123),
    "served_name": ("served_model_name", "served_model_name", "qwq-32b"),
    "tp": ("tensor_parallel_size", "tp_size", 2),
    "context_tokens": ("max_model_len", "context_length", 16384),
    "reasoning_parser": ("reasoning_parser", "reasoning_parser", "qwen3"),
    "seed": ("seed", "random_seed", 7),
}


IMAGE = CHECKOUT / ".engines/sglang-image"  # SGLang as the pinned container has it; it only parses here
READ = """
spellings = [action.option_strings for action in parser._actions if action.nargs == 0]
switches = [one for one in spellings if "--help" not in one]
told = [vars(parser.parse_args(one)) for one in json.loads(sys.argv[1])]
print(json.dumps([switches, told], default=str))
"""


def parsed(parser, *specs):
    """The spellings of each switch of an engine's parser, and what it makes of each of these commands: in one process, as an
    import takes half a minute."""
    start = program(specs[0].engine)
    python = next(word for word in start if "/bin/" in word).rsplit("/", 1)[0] + "/python"
    settings = [word for word in start if "=" in word]
    settings += [f"PYTHONPATH={IMAGE}"] if parser == "sglang-image" else []
    after = len(start) + (specs[0].engine == "vllm")  # `vllm serve` names its command first
    arguments = [launch_command(spec)[0][after:] for spec in specs]
    words = ["env", *settings, python, "-c", PARSERS[specs[0].engine] + READ, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def spec_of(engine, **changes):
    settings = {
        "model": "qwq-32b-awq",
        "port": 8123,
        "tp": 2,
        "served_name": "qwq-32b",
        "context_tokens": 16384,
        "memory_fraction": 0.9,
        "seed": 7,
    }
    return LaunchSpec(engine=engine, **(settings | changes))


MODELS = [
    ("qwq-32b", "Qwen/QwQ-32B"),
    ("qwq-32b-awq", "Qwen/QwQ-32B-AWQ"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    (str(MODEL), str(MODEL)),
]
# Each variant of a launch, and what the two parsers must make of it.
VARIANTS = [
    ({"prefix_caching": False}, {"enable_prefix_caching": False}, {"disable_radix_cache": True}),
    ({"kv_dtype": "fp8"}, {"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8_e4m3"}),
    ({"kv_dtype": "fp8_e5m2"}, {"kv_cache_dtype": "fp8_e5m2"}, {"kv_cache_dtype": "fp8_e5m2"}),
    ({"kv_dtype": "bfloat16"}, {"kv_cache_dtype": "bfloat16"}, {"kv_cache_dtype": "bfloat16"}),
    ({"quantisation_kernel": "awq_marlin"}, {"quantization": "awq_marlin"}, {"quantization": "awq_marlin"}),
    ({"quantisation_kernel": "gptq_marlin"}, {"quantization": "gptq_marlin"}, {"quantization": "gptq_marlin"}),
    ({"memory_fraction": 0.8}, {"gpu_memory_utilization": 0.8}, {"mem_fraction_static": 0.7556}),
    ({"max_running_requests": 64}, {"max_num_seqs": 64}, {"max_running_requests": 64}),
    ({"reasoning_parser": None}, {"reasoning_parser": ""}, {"reasoning_parser": None}),
    *(
        (
            {"tp": tp, "model": model},
            {"tensor_parallel_size": tp, "model_tag": hub},
            {"tp_size": tp, "model_path": hub},
        )
        for tp in (1, 2, 4)
        for model, hub in MODELS
    ),
]


@pytest.fixture(scope="module", params=["vllm", "sglang", "sglang-image"])
def read_back(request, spec, tmp_path_factory):
    """An engine, the switches of a parser of it, and what that makes of a plain launch, one with YaRN, one for the CPU, each
    variant, and what `accept` starts."""
    engine = request.param.partition("-")[0]
    plain, stretched = spec_of(engine), spec_of(engine, yarn=True, context_tokens=None)
    varied = [spec_of(engine, **change) for change, _, _ in VARIANTS]
    return engine, *parsed(
        request.param, plain, stretched, spec(engine), *varied, *accepted(engine, tmp_path_factory.mktemp("too-large"))
    )


@pytest.fixture
def told(read_back):
    engine, _, found = read_back
    return engine, found


def accepted(engine, folder):
    """What `accept` starts: plain, on two GPUs, with drafts, and with a model that is too large."""
    asked = acceptance_studies.Asked((engine,), str(MODEL), "h100", (1, 2))
    studies = (
        acceptance_studies.measured(asked),
        acceptance_studies.parallel(asked, (engine,)),
        acceptance_studies.extremes(asked, (engine,), folder),
    )
    return [plan.launch_spec(cell, plan.asked(study)[1], port=8123) for study in studies for cell in study.cells]


def test_every_flag_means_what_we_mean(told):
    engine, (options, *_) = told
    column = 0 if engine == "vllm" else 1
    for key, row in OURS.items():
        value = options[row[column]]
        assert (value[0] if isinstance(value, list) else value) == row[2], key
    if engine == "vllm":
        assert options["gpu_memory_utilization"] == 0.9
        assert options["enable_prefix_caching"] is True
        assert options["enable_prompt_tokens_details"] is True
        assert options["quantization"] is None
    else:
        assert options["mem_fraction_static"] == 0.85
        assert options["disable_radix_cache"] is False
        assert options["enable_metrics"] is True
        assert options["enable_cache_report"] is True
        assert options["quantization"] is None
    assert "yarn" not in str(options), "off unless asked for"


def test_every_variant_is_told_in_words_that_the_runtime_knows(told):
    engine, (_, _, _, *found) = told
    for options, (change, vllm, sglang) in zip(found, VARIANTS, strict=False):
        expected = vllm if engine == "vllm" else sglang
        assert {key: options[key] for key in expected} == expected, change


def test_yarn_is_told_in_words_that_the_runtime_knows(told):
    engine, (_, options, *_) = told
    said = options["hf_overrides" if engine == "vllm" else "json_model_override_args"]
    override = said if isinstance(said, dict) else json.loads(said)
    rope = override["rope_parameters" if engine == "vllm" else "rope_scaling"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 4.0, 32768)
    assert override["max_position_embeddings"] == 131072
    assert options["max_model_len" if engine == "vllm" else "context_length"] == 131072


def test_what_the_cpu_needs_exists_too(told):
    engine, (_, _, options, *_) = told
    assert (options["enforce_eager"] if engine == "vllm" else options["sleep_on_idle"]) is True


def test_what_accept_starts_is_told_in_words_that_the_runtime_knows(told):
    engine, (*_, plain, parallel, drafting, too_large) = told
    if engine == "vllm":
        assert (plain["tensor_parallel_size"], parallel["tensor_parallel_size"]) == (1, 2)
        assert drafting["speculative_config"]["method"] == "ngram"
        assert (too_large["load_format"], too_large["tokenizer"]) == ("dummy", str(MODEL))
    else:
        assert (plain["tp_size"], parallel["tp_size"]) == (1, 2)
        keys = ("speculative_algorithm", "speculative_num_draft_tokens", "speculative_ngram_max_bfs_breadth")
        assert [drafting[key] for key in keys] == ["NGRAM", 4, 1]
        assert (too_large["load_format"], too_large["tokenizer_path"]) == ("dummy", str(MODEL))


def test_a_switch_is_turned_off_in_words_that_the_runtime_knows(read_back):
    engine, switches, _ = read_back
    known = {spelling for spellings in switches for spelling in spellings}
    long = [next(one for one in spellings if one.startswith("--")) for spellings in switches]
    assert len(long) > 50
    assert {word for name in long for word in parse.flag_words(engine, name, False)} <= known
