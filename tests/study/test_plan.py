"""What a study asks of its cells: YaRN where prompts need it, room in the smallest context, each engine's spec."""

import json

import pytest

from loadtest.errors import FitError, UsageError
from loadtest.servers.flags import launch_command
from loadtest.servers.probe import ServerInfo
from loadtest.study import contract_check, plan
from loadtest.study.schema import Cell, Study
from loadtest.workload.contract import Contract

AWQ = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20")


@pytest.fixture
def long_prompts(tmp_path):
    """A workload with one prompt of 9,000 words, about 11,000 tokens."""
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 9000, "answer": "1"}) + "\n")
    return str(path)


def test_yarn_is_on_where_a_prompt_is_longer_than_8192_tokens(long_prompts):
    _, short = plan.asked(Study(name="s", workload="math:n=4", cells=(AWQ,)))
    assert short.yarn is False
    assert plan.launch_spec(AWQ, short, 8000).yarn is False
    _, contract = plan.asked(Study(name="s", workload=long_prompts, cells=(AWQ,)))
    assert contract.yarn is True
    assert plan.launch_spec(AWQ, contract, 8000).served_context_tokens == 131072
    _, told = plan.asked(Study(name="s", workload=long_prompts, cells=(AWQ,), contract={"yarn": False}))
    assert told.yarn is False


def test_bursts_have_no_form():
    study = Study(name="s", workload="tool_calls:n=4", cells=(AWQ,), mode="decision", repeats=3)
    with pytest.raises(
        UsageError, match="mode: expected natural, as bursts have no form and 'tool_calls-0001' asks for one"
    ):
        plan.asked(study)


def test_another_endpoint_is_asked_for_no_form():
    other = Cell(engine="vllm", model="m", base_url="http://h:1", api="responses")
    with pytest.raises(UsageError, match="api: expected chat for tools and response formats, as 'structured-0001' has"):
        plan.asked(Study(name="s", workload="structured:n=4", cells=(other,)))


def test_yarn_is_not_for_a_model_with_a_long_window_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 500,'
        ' "max_position_embeddings": 131072}'
    )
    cell = Cell(engine="sglang", model=str(tmp_path))
    assert plan.launch_spec(cell, Contract(yarn=True), 8000).yarn is False
    assert plan.context_tokens(cell, Contract(yarn=True)) == 131072


def test_the_smallest_context_bounds_the_output_of_all():
    cells = (AWQ, Cell(engine="sglang", model="qwq-32b", tp=2, context_tokens=9000))
    _, contract = plan.asked(Study(name="s", workload="math:n=4", cells=cells))
    assert 8000 < contract.max_tokens < 9000


@pytest.mark.parametrize(
    ("model", "parser"),
    [("Qwen/QwQ-32B-AWQ", "qwen3"), ("qwen3-8b", "qwen3"), ("Qwen/Qwen2.5-7B-Instruct", None), ("x/R1-Instruct", "qwen3")],
)
def test_a_model_that_never_thinks_gets_no_reasoning_parser(model, parser):
    assert plan.launch_spec(Cell(engine="vllm", model=model), Contract(), 8000).reasoning_parser == parser


def test_a_cell_says_its_memory_share_and_else_the_contract_does():
    contract = Contract(memory_fraction=0.8)
    assert plan.launch_spec(AWQ, contract, 8000).memory_fraction == 0.8
    own = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20", memory_fraction=0.45)
    assert plan.launch_spec(own, contract, 8000).memory_fraction == 0.45
    plan.refuse_misfit(AWQ, contract)
    with pytest.raises(FitError, match="does not fit: "):
        plan.refuse_misfit(own, contract)


def test_what_cannot_be_known_here_is_not_judged():
    assert plan.fit_of(Cell(engine="vllm", model="someone/Unknown-Model", gpu="l20"), Contract()) is None
    assert plan.fit_of(Cell(engine="vllm", model="qwq-32b"), Contract()) is None
    assert plan.context_tokens(Cell(engine="vllm", model="someone/Unknown-Model"), Contract()) is None


def started(engine, contract, **told):
    """What is recorded of an engine of ours, and what is wrong with it; `told`: what it says of itself."""
    cell = Cell(engine=engine, model="qwq-32b-awq", gpu="l20", context_tokens=16384)
    argv, _ = launch_command(plan.launch_spec(cell, contract, 8000))
    info = ServerInfo(engine=engine, max_model_len=told.pop("max_model_len", 16384), settings=told)
    found = contract_check.check_contract(cell, contract, argv, info)
    return found, list(found.violations)


@pytest.mark.parametrize(
    "contract", [Contract(), Contract(prefix_caching=False, kv_dtype="fp8", quantisation_kernel="awq_marlin")]
)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-sim", "sglang-sim"])
def test_what_was_started_as_asked_breaks_nothing(engine, contract):
    assert started(engine, contract)[1] == []


def test_sglang_tells_its_own_memory_share_and_both_are_recorded():
    found, wrong = started("sglang", Contract(kv_dtype="fp8"), mem_fraction_static=0.85, kv_cache_dtype="fp8_e4m3")
    assert wrong == []
    assert found.requested["memory_fraction"] == 0.9
    assert found.requested["in_its_words"] == {"memory_fraction": 0.85, "kv_dtype": "fp8_e4m3"}
    assert (found.effective["memory_fraction"], found.effective["kv_dtype"]) == (0.9, "fp8"), "in the contract's sense"


@pytest.mark.parametrize(
    ("engine", "told", "violation"),
    [
        ("vllm", {"max_model_len": 8192}, "context_tokens: expected 16384, got 8192"),
        ("sglang", {"disable_radix_cache": True}, "prefix_caching: expected True, got False"),
        ("sglang", {"mem_fraction_static": 0.5}, "memory_fraction: expected 0.9, got 0.529"),
        ("sglang", {"json_model_override_args": '{"rope_type": "yarn"}'}, "yarn: expected False, got True"),
    ],
)
def test_what_an_engine_made_of_it_otherwise_is_named(engine, told, violation):
    assert started(engine, Contract(), **told)[1] == [violation]


@pytest.mark.parametrize(
    ("model", "contract", "told", "violation"),
    [
        ("qwq-32b-awq", "template", "none", ["thinking_prelude: expected template, got none"]),
        ("qwq-32b-awq", "none", "template", ["thinking_prelude: expected none, got template"]),
        ("qwq-32b-awq", "template", "template", []),
        ("qwen2.5-7b-instruct", "template", "none", []),
        ("a-tuned-model", "template", "template", []),
        ("a-tuned-model", "none", "template", ["thinking_prelude: expected none, got template"]),
        ("qwq-32b-awq", "template", None, []),
    ],
)
def test_the_thinking_prelude_is_held_to_the_contract(model, contract, told, violation):
    cell = Cell(engine="vllm", model=model, base_url="http://127.0.0.1:9")
    found = contract_check.check_contract(cell, Contract(thinking_prelude=contract), (), ServerInfo(engine="vllm"), told)
    assert list(found.violations) == violation


def test_anothers_server_is_held_to_what_it_tells():
    cell = Cell(engine="sglang", model="m", base_url="http://127.0.0.1:9")
    info = ServerInfo(
        engine="sglang", max_model_len=8192, settings={"mem_fraction_static": 0.8, "disable_radix_cache": True}
    )
    assert contract_check.check_contract(cell, Contract(), (), info).violations == (
        "prefix_caching: expected True, got False",
    )
    assert contract_check.check_contract(cell, Contract(), (), ServerInfo(engine="other")).effective == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slo": ("ttft_s:p90<2",)}, ["concurrency 1, 8 will have 8 or more: too few"]),
        ({"slo": ("ttft_s:p90<2",), "repeats": 3}, ["concurrency 1 will have 24 or more: too few"]),
        ({"slo": ("ttft_s:p90<2", "ttft_s:p50<2", "ttft_s:mean<2", "failed_share<1%"), "min_requests": 36}, []),
        ({"slo": ("ttft_s:p90<2",), "duration_s": 60.0}, []),
    ],
)
def test_an_slo_that_a_level_will_have_too_few_requests_for_is_said_before(changes, said):
    study = Study(name="s", workload="math", cells=(AWQ,), levels=(1, 8, 64), **changes)
    assert [line.partition("; ")[2] for line in plan.too_few_requests(study)] == said
    assert all(line.startswith("ttft_s:p90<2 needs 36 requests at a level; ") for line in plan.too_few_requests(study))
