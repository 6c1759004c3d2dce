"""Rows of a file with tools or a response format: read as the API has them, and refused in one line."""

from dataclasses import replace

import msgspec
import pytest

from loadtest.errors import UsageError
from loadtest.workload.contract import Contract, check_lengths
from loadtest.workload.forms.tools import made_format, made_tool
from loadtest.workload.workload import dump, load

ADD = made_tool("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
ROW = {"id": "a", "messages": [{"role": "user", "content": "1 + 2?"}]}
FORMAT = made_format("sum", {"type": "integer"})


def loaded(tmp_path, **more):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(msgspec.json.encode(ROW | more))
    return load(str(file))


@pytest.mark.parametrize(
    ("asked", "choice"),
    [(None, None), ("auto", "auto"), ("required", "required"), ({"type": "function", "function": {"name": "add"}}, "add")],
)
def test_tools_of_a_file_go_into_the_body_as_they_came(tmp_path, asked, choice):
    (prompt,) = loaded(tmp_path, tools=[ADD], tool_choice=asked, answer={"name": "add", "arguments": {"a": 1}}).prompts
    body = Contract().body(prompt, "m")
    assert (prompt.tool_choice, prompt.answer_format) == (choice, "call")
    assert body["tools"] == [ADD]
    assert body["tool_choice"] == (asked or "auto")
    assert body["parallel_tool_calls"] is False, "one call is right"


def test_a_response_format_goes_into_the_body_as_it_came(tmp_path):
    (prompt,) = loaded(tmp_path, response_format=FORMAT, answer=3).prompts
    assert Contract().body(prompt, "m")["response_format"] == FORMAT
    assert (prompt.answer, prompt.answer_format) == ("3", "value")
    assert loaded(tmp_path, response_format={"type": "text"}).prompts[0].response_format is None


def test_without_a_grammar_the_words_alone_ask(tmp_path):
    free = Contract(grammar=False)
    assert "response_format" not in free.body(loaded(tmp_path, response_format=FORMAT).prompts[0], "m")
    for choice, sent in (("required", "auto"), ("add", "auto"), ("none", "none")):
        assert free.body(loaded(tmp_path, tools=[ADD], tool_choice=choice).prompts[0], "m")["tool_choice"] == sent


@pytest.mark.parametrize("spec", ["structured:n=1,items=2", "tool_calls:n=1", "tool_calls:n=1,choice=named"])
def test_a_length_is_forced_only_on_what_cannot_end_before(spec):
    forced = Contract(mode="equal-work", max_tokens=64)
    with pytest.raises(UsageError, match="mode: expected natural with '.*', whose JSON may end after"):
        check_lengths(forced, load(spec).prompts)
    check_lengths(replace(forced, grammar=False), load(spec).prompts)
    check_lengths(forced, load("structured:n=1,tokens=64").prompts)
    check_lengths(forced, load("tool_calls:n=1,choice=auto").prompts)


def test_what_is_dumped_is_read_back(tmp_path):
    one = loaded(tmp_path, tools=[ADD], tool_choice="add")
    (tmp_path / "again.jsonl").write_bytes(dump(one))
    assert load(str(tmp_path / "again.jsonl")).identity == one.identity


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": ADD}, "tools: expected a list"),
        ({"tools": [{"type": "web_search"}]}, "tools: expected a function with a name"),
        ({"tools": [ADD, ADD]}, "a name of its own"),
        ({"tools": [made_tool("auto", "", {})]}, "a name of its own"),
        ({"tools": [made_tool("a b", "", {})]}, "a name of its own"),
        ({"tools": [made_tool("add", "", {"type": "objekt"})]}, "tools: add: parameters: expected a JSON schema"),
        ({"tools": [ADD], "tool_choice": "subtract"}, "tool_choice: expected one of auto, required, none, add"),
        ({"tool_choice": "auto"}, "tool_choice: expected"),
        ({"tools": [ADD], "response_format": FORMAT}, "tools: expected none with a response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format: expected type json_schema"),
        ({"response_format": made_format("x", {"type": "objekt"})}, "response_format: schema: expected a JSON schema"),
        ({"tools": [ADD], "answer": {"name": "subtract", "arguments": {}}}, "answer: expected the name of a tool"),
        ({"response_format": FORMAT, "answer": "three"}, "answer: expected JSON"),
    ],
)
@pytest.mark.fault("input", "Wrong tools, choices or schemas in a workload: refused with file, line and key")
def test_a_wrong_row_is_refused_in_one_line(tmp_path, more, said):
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, **more)
    assert said in str(caught.value)
    assert "rows.jsonl:1: " in str(caught.value)
    assert "\n" not in str(caught.value)
