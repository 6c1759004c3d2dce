"""What form an output must have: a call of one of some tools, or JSON by a schema; both in the shape of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.errors import UsageError
from loadtest.workload.forms.json_schema import check_schema, decoded

CHOICES = ("auto", "required", "none")  # any other choice is the name of the one tool to call

Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def made_tool(name: str, description: str, parameters: dict[str, Any]) -> Tool:
    """A tool whose arguments a grammar holds to `parameters`, a JSON schema (else engines only see to a call)."""
    function = {"name": name, "description": description, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


def made_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A response format that asks for JSON by this schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def name_of(tool: Tool) -> str:
    name: str = tool["function"]["name"]
    return name


def parameters_of(tools: Sequence[Tool], name: str) -> Mapping[str, Any] | None:
    """The schema of a tool's arguments; None where there is no such tool."""
    return next((tool["function"].get("parameters", {}) for tool in tools if name_of(tool) == name), None)


def schema_of(response_format: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = response_format["json_schema"]["schema"]
    return schema


def choice_in_body(choice: str) -> str | dict[str, Any]:
    """`tool_choice` as a request says it.

    >>> choice_in_body("auto"), choice_in_body("add")
    ('auto', {'type': 'function', 'function': {'name': 'add'}})
    """
    return choice if choice in CHOICES else {"type": "function", "function": {"name": choice}}


def choice_of(value: object) -> object:
    """The choice in what a request says; what is neither a word nor a tool stays as it is."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        return value["function"].get("name")
    return value


def check_tools(tools: Sequence[object], choice: object) -> None:
    """Raise `UsageError` unless every tool has a name of its own and sound parameters, and the choice is among them."""
    names: list[str] = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if function is None or not isinstance(name, str) or not _NAME.fullmatch(name) or name in (*CHOICES, *names):
            raise UsageError(
                "tools: expected a function with a name of its own (letters, digits, _ and -) in each, got"
                f" {str(tool)[:80]!r}"
            )
        check_schema(function.get("parameters", {}), f"tools: {name}: parameters")
        names.append(name)
    if choice is not None and (not tools or choice not in (*CHOICES, *names)):
        raise UsageError(
            f"tool_choice: expected one of {', '.join((*CHOICES, *names))}, and tools, got {str(choice)[:80]!r}"
        )


def check_response_format(value: object) -> None:
    """Raise `UsageError` unless it asks for JSON by a sound schema."""
    asked = value.get("json_schema") if isinstance(value, dict) and value.get("type") == "json_schema" else None
    if not isinstance(asked, dict) or not isinstance(asked.get("name"), str) or "schema" not in asked:
        raise UsageError(
            f"response_format: expected type json_schema, and json_schema with name and schema, got {str(value)[:80]!r}"
        )
    check_schema(asked["schema"], "response_format: schema")


def check_expected_call(answer: str, tools: Sequence[Tool]) -> None:
    """Raise `UsageError` unless the answer is JSON with the `name` of a tool and the `arguments` that it should get."""
    is_json, value = decoded(answer)
    sound = is_json and isinstance(value, dict) and isinstance(value.get("arguments"), dict)
    if not sound or not isinstance(value, dict) or parameters_of(tools, str(value.get("name"))) is None:
        raise UsageError(f"answer: expected the name of a tool and its arguments as JSON, got {answer[:80]!r}")
