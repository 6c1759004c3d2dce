"""Outputs that must have a form: is a call, or a JSON value, valid by its schema, and is it the right one?

A call is valid if its arguments are JSON, valid by the parameters of a tool that was offered. A JSON value is valid if the
whole answer is JSON, spaces around it aside, and valid by the schema: text or a fence around it would break its reader.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.records.schema import ToolCall
from loadtest.workload.forms.json_schema import decoded, is_valid, same_value
from loadtest.workload.forms.tools import parameters_of, schema_of
from loadtest.workload.prompts import Prompt


def has_form(prompt: Prompt, calls: Sequence[ToolCall], answer: str | None) -> bool | None:
    """Has a finished output the form that its prompt asks for? None: any text will do, as where a call is the model's
    choice and it made none.

    >>> from loadtest.workload.forms.generator import formed_prompts
    >>> prompt, = formed_prompts("tool_calls:n=1,tools=1")
    >>> unknown = ToolCall(name="no", arguments="{}", first_chunk=0, last_chunk=0)
    >>> has_form(prompt, [unknown], None), has_form(prompt, [], "Hi")
    (False, False)
    """
    if prompt.output_form is None or (prompt.output_form == "call or text" and not calls):
        return None
    if prompt.response_format is not None:
        is_json, value = decoded(answer or "")
        return is_json and is_valid(value, schema_of(prompt.response_format))
    return bool(calls) and all(_is_valid_call(call, prompt) for call in calls)


def _is_valid_call(call: ToolCall, prompt: Prompt) -> bool:
    parameters = parameters_of(prompt.tools, call.name)
    is_json, value = decoded(call.arguments)
    return parameters is not None and is_json and isinstance(value, dict) and is_valid(value, parameters)


def is_right_call(calls: Sequence[ToolCall], expected: str) -> bool:
    """Is there one call, and is it the expected one: the same name, arguments of the same values?"""
    if len(calls) != 1:
        return False
    is_json, arguments = decoded(calls[0].arguments)
    return is_json and same_value({"name": calls[0].name, "arguments": arguments}, decoded(expected)[1])


def is_right_value(answer: str, expected: str) -> bool:
    """Is the whole answer JSON of the expected value?

    >>> is_right_value(' {"a": 1}', '{"a": 1.0}'), is_right_value('It is {"a": 1}', '{"a": 1}')
    (True, False)
    """
    is_json, value = decoded(answer)
    return is_json and same_value(value, decoded(expected)[1])
