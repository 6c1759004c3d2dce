"""Tool calls and JSON by a schema from the real engines: a model that speaks nonsense is held to a form by a grammar."""

import json

import pytest

from loadtest.records import read
from loadtest.servers.server import Server
from loadtest.workload.forms.tools import made_format, made_tool
from tests.engines.conftest import CHECKOUT, ended

pytestmark = pytest.mark.timeout(1800)
READY_S = 900.0
FLAGS = {
    "vllm": ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    "sglang": ("--tool-call-parser", "qwen25", "--grammar-backend", "llguidance"),
}
ROOM = {
    "room": {"type": "string", "enum": ["kitchen", "office"]},
    "degrees": {"type": "integer", "minimum": 5, "maximum": 30},
}
SCHEMA = {"type": "object", "properties": ROOM, "required": ["room", "degrees"], "additionalProperties": False}
TOOL = made_tool("set_temperature", "Set the temperature of a room.", SCHEMA)
NAMED = {"type": "function", "function": {"name": "set_temperature"}}
FORMS = {
    "required": {"tools": [TOOL], "tool_choice": "required"},
    "named": {"tools": [TOOL], "tool_choice": NAMED},
    "schema": {"response_format": made_format("room", SCHEMA)},
}
STEP = {"name": "set_temperature", "arguments": {"room": "office", "degrees": 9}, "result": "done"}


@pytest.fixture(scope="module")
def server(engine, spec, tmp_path_factory):
    if engine == "sglang" and not list(CHECKOUT.glob(".engines/sglang/lib/python3*/site-packages/llguidance")):
        pytest.skip("llguidance is not in .engines/sglang: run `make engines` again")
    with Server(spec(engine, *FLAGS[engine]), tmp_path_factory.mktemp(engine) / "engine.log") as running:
        running.wait_ready(READY_S)
        yield running


def test_every_call_and_every_json_is_valid_and_timed(server, begin, tmp_path):
    """Four requests of each form, each with its thinking before it."""
    asked = [
        {"id": f"{name}-{n}", "messages": [{"role": "user", "content": f"Set the kitchen to {n + 8} degrees."}], **form}
        for name, form in FORMS.items()
        for n in range(4)
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    words = ("--workload", tmp_path / "asked.jsonl", "--concurrency", 2, "--requests", 12, "--max-tokens", 4000)
    code, seen = ended(begin("attach", "--base-url", server.base_url, *words, "--out", tmp_path / "run"))
    assert code == 0, seen
    (level,) = json.loads((tmp_path / "run/metrics.json").read_text())["cells"][0]["levels"]
    assert (level["valid_call_share"]["value"], level["valid_call_share"]["n"]) == (1, 8)
    assert (level["valid_json_share"]["value"], level["valid_json_share"]["n"]) == (1, 4)
    assert level["tool_call_s"]["n"] == 8
    assert level["tool_call_start_s"]["mean"] <= level["tool_call_s"]["mean"]
    measured = [one for one in read.read_run(tmp_path / "run").cells[0].levels[0].requests if one.phase == "measure"]
    assert {one.outcome for one in measured} == {"ok"}
    for one in measured:
        assert [call.name for call in one.tool_calls] == ([] if one.output_form == "json" else ["set_temperature"])
        assert one.first_answer_chunk, "thinking comes first"


def test_an_agent_s_history_of_calls_is_taken(server, begin, tmp_path):
    task = {"messages": [{"role": "user", "content": "Set the office."}], "tools": [TOOL], "tool_choice": "required"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(task | {"steps": [STEP, STEP]}))
    words = ("--workload", tmp_path / "asked.jsonl", "--concurrency", 1, "--requests", 3, "--max-tokens", 4000)
    code, seen = ended(begin("attach", "--base-url", server.base_url, *words, "--out", tmp_path / "run"))
    assert code == 0, seen
    turns = [one for one in read.read_run(tmp_path / "run").cells[0].levels[0].requests if one.phase == "measure"]
    assert [(one.turn, one.outcome, one.form_valid) for one in turns] == [(0, "ok", True), (1, "ok", True), (2, "ok", None)]
    assert turns[0].prompt_tokens < turns[2].prompt_tokens
