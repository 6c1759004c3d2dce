"""Files that the tools themselves wrote, against a server of known times: what each tells is what the server did."""

import sqlite3
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.records.peers import catalogue, result
from tests.support.documents import ROOT

DATA = ROOT / "tests/data/peers"
FIRST_S, GAP_S, TOKENS, THINKING, USERS = 0.2, 0.02, 40, 10, 4
BUSY_S = 0.5  # what a tool on a busy machine may add to a time

FILES = {
    "vLLM bench": "vllm-bench-0.32.0.json",
    "SGLang bench_serving": "sglang-bench-0.5.15.post1.jsonl",
    "GuideLLM": "guidellm-0.8.1.json",
    "genai-bench": "genai-bench-0.0.5/D20_40_text-to-text_num_concurrency_4_time_7s.json",
    "AIPerf": "aiperf-0.13.0/profile_export.jsonl",
    "inference-perf": "inference-perf-0.7.0/per_request_lifecycle_metrics.json",
    "evalscope perf": "evalscope-1.14.0/benchmark_data.db",
}
GAPS = {"vLLM bench", "SGLang bench_serving", "AIPerf", "evalscope perf"}
STARTS = {"vLLM bench", "GuideLLM", "AIPerf", "inference-perf", "evalscope perf"}
ANSWERS = {"GuideLLM", "AIPerf", "inference-perf"}  # say where thinking ends
SAID = {  # version and model
    "vLLM bench": (None, "known"),
    "SGLang bench_serving": (None, None),
    "GuideLLM": ("0.8.1", "known"),
    "genai-bench": ("0.0.5", "known"),
    "AIPerf": ("0.13.0", "known"),
    "inference-perf": (None, "known"),
    "evalscope perf": (None, "known"),
}
TOOLS = pytest.mark.parametrize("tool", FILES)


def tell(tool):
    return catalogue.read_result(DATA / FILES[tool])


def test_every_reader_has_a_file_of_its_tool():
    assert {tell(tool).reader.tool: tool for tool in FILES} == {reader.tool: reader.tool for reader in catalogue.READERS}


@TOOLS
def test_what_a_tool_tells_is_what_the_server_did(tool):
    found = tell(tool).result
    (one,) = found.passes
    assert (found.version, found.model) == SAID[tool]
    assert (one.concurrency, one.arrivals, len(one.requests)) == (USERS, None, 28 if tool == "genai-bench" else 24)
    assert one.figures
    for request in one.requests:
        assert (request.error, request.output_tokens, request.prompt_tokens, request.ending) == (None, TOKENS, 20, None)
        assert (request.gaps_s is not None, request.start_s is not None) == (tool in GAPS, tool in STARTS)
        if tool != "inference-perf":
            assert FIRST_S <= request.first_s <= FIRST_S + BUSY_S
        if request.end_s is not None:
            assert 0 <= request.end_s - FIRST_S - GAP_S * (TOKENS - 1) <= BUSY_S
        if request.gaps_s is not None:
            assert sum(request.gaps_s) == pytest.approx(GAP_S * (TOKENS - 1), abs=BUSY_S)


@TOOLS
def test_where_thinking_ends_is_known_of_those_that_say_it(tool):
    for request in tell(tool).result.passes[0].requests:
        assert (request.answer_s is not None) == (tool in ANSWERS)
        if request.answer_s is not None:
            assert request.answer_s == pytest.approx(FIRST_S + GAP_S * THINKING + BUSY_S / 2, abs=BUSY_S / 2 + 0.01)


def test_a_first_token_that_a_tool_did_not_read_is_unknown():
    """inference-perf reads no thinking, and the server counted ten tokens more than it read."""
    assert {request.first_s for request in tell("inference-perf").result.passes[0].requests} == {None}


def test_totals_of_aiperf_are_read_with_the_requests_beside_them():
    found = catalogue.read_result(DATA / "aiperf-0.13.0/profile_export_aiperf.json")
    assert found.result == tell("AIPerf").result


def test_no_path_of_a_machine_is_in_the_files():
    for path in (one for one in DATA.rglob("*.*") if one.is_file()):
        assert not any(word in path.read_bytes() for word in (b"/tmp/", b"/home/", b"/root", b"/work")), path


@pytest.mark.fault("input", "`import` of a database that is damaged, or made to have no end")
@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE other(a)",
        "CREATE TABLE result(a)",
        "CREATE VIEW result AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c",
    ],
)
def test_another_database_is_refused_in_one_line(script):
    with sqlite3.connect(":memory:") as database:
        database.executescript(script)
        content = database.serialize()
    database.close()
    for damaged in (content, content[:-500], content[:60]):
        with pytest.raises(UsageError, match="^x.db: expected [^\n]+$"):
            catalogue.told_by(result.file_of(Path("x.db"), damaged))


def test_numbers_that_are_none_are_not_told():
    """NaN is no concurrency, and true no number of tokens."""
    text = (DATA / FILES["genai-bench"]).read_text().replace('"num_concurrency": 4', '"num_concurrency": NaN')
    (one,) = catalogue.told_by(result.file_of(Path("x.json"), text.encode())).result.passes
    assert one.concurrency is None
    text = (DATA / FILES["AIPerf"]).read_text().replace('"value": 40, "unit": "tokens"', '"value": true, "unit": "tokens"')
    (one,) = catalogue.told_by(result.file_of(Path("x.jsonl"), text.encode())).result.passes
    assert {request.output_tokens for request in one.requests} == {None}
