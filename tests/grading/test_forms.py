"""Calls and JSON held against what was asked for."""

import json

import pytest

from loadtest.grading import forms
from loadtest.records.schema import ToolCall
from loadtest.workload.forms.tools import made_format, made_tool
from loadtest.workload.prompts import Prompt

ADD = made_tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def asked(**form):
    return Prompt(id="a", messages=({"role": "user", "content": "?"},), **form)


def call(arguments, name="add"):
    return ToolCall(name=name, arguments=arguments, first_chunk=0, last_chunk=0)


@pytest.mark.parametrize(
    ("calls", "valid"),
    [
        ([call('{"a": 1}')], True),
        ([call('{"a": 1}'), call('{"a": 2, "b": 3}')], True),
        ([call('{"a": 1}'), call('{"a": "1"}')], False),
        ([call('{"a": 1')], False),  # never closes
        ([call("")], False),
        ([call("[1]")], False),
        ([call('{"a": 1} {"a": 2}')], False),
        ([call('{"a": 1}', name="subtract")], False),
        ([call('{"a": 1}', name="")], False),
        ([], False),
    ],
)
def test_a_call_that_must_come_is_valid_or_not(calls, valid):
    assert forms.has_form(asked(tools=(ADD,), tool_choice="required"), calls, "text") is valid
    assert forms.has_form(asked(tools=(ADD,), tool_choice="add"), calls, None) is valid


def test_where_a_call_is_the_model_s_choice_text_is_neither():
    for choice in ("auto", None):
        assert forms.has_form(asked(tools=(ADD,), tool_choice=choice), [], "3") is None
        assert forms.has_form(asked(tools=(ADD,), tool_choice=choice), [call("{}")], "3") is False
    assert forms.has_form(asked(tools=(ADD,), tool_choice="none"), [], "3") is None
    assert forms.has_form(asked(), [], "3") is None


@pytest.mark.parametrize(
    ("answer", "valid"),
    [('{"a": 1}', True), (' {"a": 1}\n', True), ('{"a": "1"}', False), ("```json\n{}\n```", False), (None, False)],
)
def test_json_is_valid_as_a_whole(answer, valid):
    schema = ADD["function"]["parameters"]
    assert forms.has_form(asked(response_format=made_format("x", schema)), [], answer) is valid


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([call('{"a": 1.0}')], True),
        ([call('{"a": 2}')], False),
        ([call('{"a": 1}', name="subtract")], False),
        ([call('{"a": 1}'), call('{"a": 1}')], False),
        ([call('{"a": 1')], False),
        ([], False),
    ],
)
def test_the_right_call(calls, right):
    assert forms.is_right_call(calls, json.dumps({"name": "add", "arguments": {"a": 1}})) is right
