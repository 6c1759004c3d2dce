"""Tool calls and JSON by a schema from the real engines: a model that speaks nonsense is held to a form by a grammar."""

import json
import subprocess
import sys

import pytest

from loadtest.records import read
from loadtest.servers.server import Server
from loadtest.workload.forms.tools import made_format, made_tool
from tests.engines.conftest import CHECKOUT, ended

pytestmark = pytest.mark.timeout(1800)
READY_S = 900.0
# SGLang 0.5.15 on a CPU: xgrammar refuses the device, llguidance the thinking, and the tags of Qwen's parser with it. Where
# blanks are free, the model hardly ever stops writing them.
FLAGS = {
    "vllm": ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    "sglang": (
        "--tool-call-parser",
        "pythonic",
        "--grammar-backend",
        "llguidance",
        "--constrained-json-disable-any-whitespace",
    ),
}
PARSER = {"vllm": "qwen3", "sglang": None}
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "office"]}, "degrees": {"type": "integer", "minimum": 5, "maximum": 30}},
    "required": ["room", "degrees"],
    "additionalProperties": False,
}
TOOL = made_tool("set_temperature", "Set the temperature of a room.", SCHEMA)
CALL = {"name": "set_temperature", "arguments": {"room": "office", "degrees": 9}}
FORMS = {
    "call": {"tools": [TOOL], "tool_choice": "required", "answer": CALL},
    "json": {"response_format": made_format("room", SCHEMA)},
}
HISTORY = [
    {"role": "user", "content": "Set the office."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": CALL["name"], "arguments": json.dumps(CALL["arguments"])},
            }
        ],
    },
    {"role": "tool", "content": "done", "tool_call_id": "call_1"},
]


@pytest.fixture(scope="module")
def server(engine, spec, tmp_path_factory):
    python = CHECKOUT / ".engines/sglang/bin/python"
    if engine == "sglang" and subprocess.run([python, "-c", "import llguidance"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("llguidance is not in .engines/sglang: run `make engines` again")
    launch = spec(engine, *FLAGS[engine], reasoning_parser=PARSER[engine])
    with Server(launch, tmp_path_factory.mktemp(engine) / "engine.log") as running:
        running.wait_ready(READY_S)
        yield running


def asked_of(server, begin, folder, rows, requests):
    """The measured requests of these rows of a workload, and the figures of their level."""
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--workload", folder / "asked.jsonl", "--concurrency", 1, "--requests", requests, "--max-tokens", 1500)
    code, seen = ended(begin("attach", "--base-url", server.base_url, *words, "--out", folder / "run"))
    assert code == 0, seen
    (level,) = json.loads((folder / "run/metrics.json").read_text())["cells"][0]["levels"]
    measured = [one for one in read.read_run(folder / "run").cells[0].levels[0].requests if one.phase == "measure"]
    return measured, level


def test_every_call_and_every_json_is_valid_and_timed(engine, server, begin, tmp_path):
    rows = [
        {"id": f"{name}-{n}", "messages": [{"role": "user", "content": f"Set the kitchen to {n + 8} degrees."}], **form}
        for name, form in FORMS.items()
        for n in range(4)
    ]
    measured, level = asked_of(server, begin, tmp_path, rows, 8)
    assert {one.outcome for one in measured} <= {"ok", "truncated"}  # SGLang's list of calls may go on in blanks
    assert {one.form_valid for one in measured} == {True}
    assert [one.answer_correct for one in measured if one.output_form == "json"] == [None] * 4
    assert (level["valid_call_share"]["n"], level["valid_json_share"]["n"], level["tool_call_s"]["n"]) == (4, 4, 4)
    whole = level["tool_call_s"]["min"]  # of those that ended; None where SGLang ended none
    assert whole is None or level["tool_call_start_s"]["min"] < whole
    for one in measured:
        assert [call.name for call in one.tool_calls] == ([] if one.output_form == "json" else ["set_temperature"])
        assert bool(one.first_answer_chunk) == (engine == "vllm"), "where thinking is told apart it comes first"


def test_a_history_of_calls_is_taken(server, begin, tmp_path):
    rows = [{"messages": HISTORY, "tools": [TOOL], "tool_choice": "none"}]
    ((one,), _) = asked_of(server, begin, tmp_path, rows, 1)
    assert (one.outcome, one.error, one.tool_calls) in (("ok", None, ()), ("no_answer", None, ()), ("truncated", None, ()))


def test_an_agent_goes_on_from_its_own_calls(engine, server, begin, tmp_path):
    if engine == "sglang":
        pytest.skip("a list of calls that goes on in blanks has no next turn")
    task = {"messages": HISTORY[:1], "tools": [TOOL], "tool_choice": "required", "steps": [CALL | {"result": "done"}] * 2}
    turns, _ = asked_of(server, begin, tmp_path, [task], 3)
    assert [(one.turn, one.form_valid) for one in turns] == [(0, True), (1, True), (2, None)]
    assert turns[0].prompt_tokens < turns[1].prompt_tokens < turns[2].prompt_tokens


@pytest.mark.parametrize("grammar", ["on", "off"])
def test_a_forced_length_is_the_same_with_a_grammar_and_without(grammar, engine, server, begin, tmp_path):
    """What a grammar costs is told by cells that differ in nothing else: here, that their work is equal."""
    out = tmp_path / "run"
    words = ("--headless", "-u", 1, "-r", 1, "--only-summary", "--host", server.base_url, "--requests", 4, "--out", out)
    words += ("--workload", "structured:n=4,tokens=64", "--grammar", grammar, "--warmup-requests", 0)
    command = ["-f", CHECKOUT / "scenarios/long_reasoning.py", *words]
    done = subprocess.run([sys.executable, "-m", "locust", *map(str, command)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    measured = [one for one in read.read_run(out).cells[0].levels[0].requests if one.phase == "measure"]
    assert [(one.outcome, one.completion_tokens, one.form_valid) for one in measured] == [("ok", 64, None)] * 4
    if engine == "sglang":  # vLLM thinks for longer than that
        assert all((one.answer or "").lstrip().startswith("{") == (grammar == "on") for one in measured)
