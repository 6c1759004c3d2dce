"""Tasks whose steps are calls: what is asked at each turn, and what the history holds."""

import json

import pytest

from loadtest.errors import UsageError
from loadtest.records.schema import ToolCall
from loadtest.workload.contract import Contract
from loadtest.workload.forms.history import after_call
from loadtest.workload.workload import load


def task():
    prompt, *_ = load("tool_calls:n=1,calls=2").prompts
    return prompt


def call(name="add", arguments='{"a": 1, "b": 2}'):
    return ToolCall(name=name, arguments=arguments, first_chunk=0, last_chunk=0, id="random")


def test_every_step_asks_for_its_call_and_the_last_turn_for_the_answer():
    prompt = task()
    assert prompt.turns == 3
    turns = [prompt.at_turn(turn, prompt.messages) for turn in range(3)]
    assert [one.output_form for one in turns] == ["call", "call", None]
    assert [json.loads(one.answer)["name"] for one in turns[:2]] == [step.name for step in prompt.steps]
    assert (turns[2].answer, turns[2].answer_format) == (prompt.answer, "boxed")
    bodies = [Contract().body(one, "m") for one in turns]
    assert [body["tool_choice"] for body in bodies] == ["required", "required", "none"]
    assert all(body["tools"] == list(prompt.tools) for body in bodies)  # one prefix for the cache


def test_the_history_holds_the_call_that_was_made_and_the_scripted_result():
    prompt = task()
    made = after_call(prompt.messages, "Let me see.", call(), prompt.steps[0])
    assert [one["role"] for one in made] == ["user", "assistant", "tool"]
    assert made[1]["content"] == "Let me see."
    assert made[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert made[2] == {"role": "tool", "content": prompt.steps[0].result, "tool_call_id": made[1]["tool_calls"][0]["id"]}
    again = after_call(made, "", None, prompt.steps[1])
    function = again[-2]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == (prompt.steps[1].name, prompt.steps[1].arguments)
    assert [one["tool_call_id"] for one in again if one["role"] == "tool"] == ["call_1", "call_2"]
    assert Contract().body(prompt.at_turn(2, again), "m")["messages"] == again


@pytest.mark.parametrize(
    ("message", "sound"),
    [
        ({"role": "tool", "content": "3", "tool_call_id": "call_1"}, True),
        ({"role": "tool", "content": "3"}, False),
        ({"role": "user", "content": "3", "tool_call_id": "call_1"}, False),
    ],
)
def test_a_history_of_a_file_may_have_calls(message, sound, tmp_path):
    first = {"role": "user", "content": "1 + 2?"}
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {}}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [first, called, message]}))
    if sound:
        assert load(str(tmp_path / "rows.jsonl")).prompts[0].messages == (first, called | {"content": ""}, message)
    else:
        with pytest.raises(UsageError, match="messages: expected role"):
            load(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"name": "add"}], "steps: expected name, arguments and result in each"),
        ([{"name": "divide", "arguments": {}, "result": "1"}], "answer: expected the name of a tool"),
    ],
)
def test_wrong_steps_are_refused(steps, said, tmp_path):
    row = {"messages": [{"role": "user", "content": "?"}], "tools": list(task().tools), "steps": steps}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=said):
        load(str(tmp_path / "rows.jsonl"))
