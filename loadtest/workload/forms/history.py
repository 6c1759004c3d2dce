"""The messages of a task whose steps are calls of tools: what the model called, and what the tool answered."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loadtest.records.schema import ToolCall
from loadtest.workload.prompts import Message, Step


def after_call(messages: Sequence[Message], text: str, call: ToolCall | None, step: Step) -> list[Message]:
    """The messages so far, the call that was made (None: no valid one; the scripted one stands in its place), and its
    result, which is scripted, so that every engine is given the same work. `text`: what was said beside the call.

    >>> step = Step(name="add", arguments={"a": 1, "b": 2}, result="3")
    >>> [m["role"] for m in after_call([{"role": "user", "content": "1 + 2?"}], "", None, step)]
    ['user', 'assistant', 'tool']
    """
    name, arguments = (step.name, json.dumps(step.arguments)) if call is None else (call.name, call.arguments)
    made = f"call_{sum(message['role'] == 'tool' for message in messages) + 1}"  # ours: those of engines are random
    function = {"name": name, "arguments": arguments}
    return [
        *messages,
        {"role": "assistant", "content": text, "tool_calls": [{"id": made, "type": "function", "function": function}]},
        {"role": "tool", "content": step.result, "tool_call_id": made},
    ]
