"""Workloads whose outputs have a form: one right answer each, that is valid by what it asks for."""

import json

import pytest

from loadtest.errors import UsageError
from loadtest.grading import answers, forms
from loadtest.records.schema import ToolCall
from loadtest.workload.forms.generator import formed_prompts
from loadtest.workload.workload import load, usual_mode


def right_call(prompt):
    expected = json.loads(prompt.answer)
    return ToolCall(name=expected["name"], arguments=json.dumps(expected["arguments"]), first_chunk=0, last_chunk=0)


@pytest.mark.parametrize("choice", ["required", "auto", "named"])
def test_the_right_call_is_valid_and_right(choice):
    prompts = formed_prompts(f"tool_calls:n=40,seed=3,tools=5,choice={choice}")
    for prompt in prompts:
        call = right_call(prompt)
        assert forms.has_form(prompt, [call], None) is True
        assert forms.is_right_call([call], prompt.answer)
        assert len(prompt.tools) == 5
        assert prompt.tool_choice == (call.name if choice == "named" else choice)
        assert all(str(one).strip("[]'") in prompt.messages[0]["content"] for one in json.loads(call.arguments).values()
                   if not isinstance(one, bool | list))  # fmt: skip
    assert len({right_call(prompt).name for prompt in prompts}) == 6


def test_the_right_order_is_valid_and_right():
    for prompt in formed_prompts("structured:n=20,seed=3,items=8"):
        assert forms.has_form(prompt, [], prompt.answer) is True
        assert answers.check(f" {prompt.answer}\n", prompt) is True
        value = json.loads(prompt.answer)
        value["items"][0]["quantity"] += 1
        assert answers.check(json.dumps(value), prompt) is False
        assert forms.has_form(prompt, [], json.dumps(value | {"more": 1})) is False


def test_a_list_of_forced_length_is_not_over_before():
    prompt, *_ = formed_prompts("structured:tokens=64,n=2")
    assert usual_mode("structured:tokens=64") == "equal-work"
    assert prompt.forced_tokens == 64
    assert forms.has_form(prompt, [], json.dumps({"numbers": [0] * 63})) is False
    assert forms.has_form(prompt, [], json.dumps({"numbers": [0] * 64})) is True


@pytest.mark.parametrize("spec", ["tool_calls", "structured", "structured:tokens=64"])
def test_problem_i_depends_on_the_seed_and_i_alone(spec):
    mark = "," if ":" in spec else ":"
    assert load(f"{spec}{mark}n=16").prompts == load(spec).prompts[:16]
    assert load(f"{spec}{mark}seed=1").identity != load(spec).identity


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tool_calls:tool=3", "tool: expected one of n, seed, tools, choice, calls, got 'tool'; did you mean 'tools'?"),
        ("tool_calls:tools=7", "tools: expected a whole number from 1 to 6, got '7'"),
        ("tool_calls:choice=none", "choice: expected one of required, auto, named, got 'none'"),
        ("structured:tokens=1", "tokens: expected a whole number from 8 to 8192, got '1'"),
    ],
)
def test_a_wrong_option_is_named(spec, said):
    with pytest.raises(UsageError) as caught:
        load(spec)
    assert said in str(caught.value)
