"""What a study asks of its cells: YaRN where prompts need it, room in the smallest context, each runtime's spec."""

import json

import pytest

from loadtest import deployment
from loadtest.contract import Contract
from loadtest.errors import FitError
from loadtest.study import Cell, Study

AWQ = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20")


@pytest.fixture
def long_prompts(tmp_path):
    """A workload with one prompt of 9,000 words, about 11,000 tokens."""
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 9000, "answer": "1"}) + "\n")
    return str(path)


def test_yarn_is_on_where_a_prompt_is_longer_than_8192_tokens(long_prompts):
    _, short = deployment.asked(Study(name="s", workload="math:n=4", cells=(AWQ,)))
    assert short.yarn is False
    assert deployment.launch_spec(AWQ, short, 8000).yarn is False
    _, contract = deployment.asked(Study(name="s", workload=long_prompts, cells=(AWQ,)))
    assert contract.yarn is True
    assert deployment.launch_spec(AWQ, contract, 8000).served_context_tokens == 131072
    _, told = deployment.asked(Study(name="s", workload=long_prompts, cells=(AWQ,), contract={"yarn": False}))
    assert told.yarn is False


def test_yarn_is_not_for_a_model_with_a_long_window_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 500,'
        ' "max_position_embeddings": 131072}'
    )
    cell = Cell(engine="sglang", model=str(tmp_path))
    assert deployment.launch_spec(cell, Contract(yarn=True), 8000).yarn is False
    assert deployment.context_tokens(cell, Contract(yarn=True)) == 131072


def test_the_smallest_context_bounds_the_output_of_all():
    cells = (AWQ, Cell(engine="sglang", model="qwq-32b", tp=2, context_tokens=9000))
    _, contract = deployment.asked(Study(name="s", workload="math:n=4", cells=cells))
    assert 8000 < contract.max_tokens < 9000


@pytest.mark.parametrize(
    ("model", "parser"),
    [("Qwen/QwQ-32B-AWQ", "qwen3"), ("qwen3-8b", "qwen3"), ("Qwen/Qwen2.5-7B-Instruct", None), ("x/R1-Instruct", "qwen3")],
)
def test_a_model_that_never_thinks_gets_no_reasoning_parser(model, parser):
    assert deployment.launch_spec(Cell(engine="vllm", model=model), Contract(), 8000).reasoning_parser == parser


def test_a_cell_says_its_memory_share_and_else_the_contract_does():
    contract = Contract(memory_fraction=0.8)
    assert deployment.launch_spec(AWQ, contract, 8000).memory_fraction == 0.8
    own = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20", memory_fraction=0.45)
    assert deployment.launch_spec(own, contract, 8000).memory_fraction == 0.45
    deployment.refuse_misfit(AWQ, contract)
    with pytest.raises(FitError, match="does not fit: "):
        deployment.refuse_misfit(own, contract)


def test_what_cannot_be_known_here_is_not_judged():
    assert deployment.fit_of(Cell(engine="vllm", model="someone/Unknown-Model", gpu="l20"), Contract()) is None
    assert deployment.fit_of(Cell(engine="vllm", model="qwq-32b"), Contract()) is None
    assert deployment.context_tokens(Cell(engine="vllm", model="someone/Unknown-Model"), Contract()) is None
