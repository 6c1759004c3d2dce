"""What the simulator writes where an output must have a form."""

import json

import pytest

from loadtest.simulator.core import chat
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.chat import Refusal, Served
from loadtest.simulator.core.forms import form_of
from loadtest.simulator.http.other_frames import framer_of
from loadtest.workload.contract import Contract
from loadtest.workload.forms.json_schema import is_valid
from loadtest.workload.forms.tools import made_format
from loadtest.workload.workload import load

SCHEMAS = (
    {"type": "object", "properties": {"a": {"enum": ["x", 3]}, "b": {"const": None}, "c": {"type": "boolean"}}},
    {"type": "array", "items": {"type": "integer", "minimum": 5, "maximum": 6}, "minItems": 3},
    {"$defs": {"t": {"type": "string", "minLength": 20}}, "properties": {"t": {"$ref": "#/$defs/t"}}},
    {"anyOf": [{"type": ["number", "null"]}, {"type": "string"}]},
    {"type": "string", "maxLength": 3},
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_values_are_valid_by_schemas_of_plain_kinds(schema):
    for prompt in "abc":
        made = form_of({"response_format": made_format("x", schema)}, prompt, 0, 0.0)
        assert is_valid(json.loads("".join(made.pieces)), schema)


def served(engine):
    return Served(behaviour=behaviour(engine), model="m", context_tokens=8192, kv_tokens=9999, thinks=False)


def parsed(engine, spec, **more):
    prompt, *_ = load(spec).prompts
    body = Contract(max_tokens=500).body(prompt, "m", engine=engine) | more
    return prompt, chat.parse(json.dumps(body).encode(), served(engine))


@pytest.mark.parametrize(
    ("engine", "choice", "reason"),
    [("vllm-sim", "required", "tool_calls"), ("vllm-sim", "named", "stop"), ("sglang-sim", "named", "tool_calls")],
)
def test_without_streaming_a_call_is_a_message_s(engine, choice, reason):
    prompt, asked = parsed(engine, f"tool_calls:n=1,choice={choice}", stream=False)
    made = json.loads(framer_of(asked, behaviour(engine), "id", 1, 1).whole())
    call = made["choices"][0]["message"]["tool_calls"][0]["function"]
    assert made["choices"][0]["finish_reason"] == reason
    assert call["name"] in [tool["function"]["name"] for tool in prompt.tools]
    assert isinstance(json.loads(call["arguments"]), dict)


def test_a_forced_length_goes_on_in_spaces_or_cuts():
    _, longer = parsed("vllm-sim", "structured:n=1,items=1", min_tokens=200, max_tokens=200, ignore_eos=True)
    text = "".join(longer.formed.words(200))
    assert len(longer.formed.words(200)) == longer.output.output_tokens == 200
    assert text.endswith("  ")
    json.loads(text)
    _, shorter = parsed("vllm-sim", "structured:tokens=64,n=1", max_tokens=64, ignore_eos=True)
    assert len(shorter.formed.words(64)) == 64
    assert not "".join(shorter.formed.words(64)).rstrip().endswith("}")


@pytest.mark.parametrize(
    "form", [{"tools": 7}, {"tools": [{"function": {"parameters": {"type": "array", "minItems": "x"}}}]}]
)
def test_what_cannot_be_read_is_refused(form):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], **form}
    with pytest.raises(Refusal):
        chat.parse(json.dumps(body).encode(), served("vllm-sim"))
