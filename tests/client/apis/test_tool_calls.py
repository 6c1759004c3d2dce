"""Calls of tools out of streams, however their pieces are cut and whatever is wrong with them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import reply, sse
from loadtest.client.apis.tool_calls import CallAssembler
from loadtest.client.exchange import Exchange
from loadtest.clock import Clock

CLOCK = Clock(origin_monotonic_s=100.0, anchor_unix_s=0.0)
STREAMS = Path(__file__).parents[2] / "data" / "streams"


def delta(finish=None, **said):
    return b"data: " + json.dumps({"choices": [{"delta": said, "finish_reason": finish}]}).encode() + b"\n\n"


def piece(arguments=None, **more):
    function = {key: more.pop(key) for key in ("name",) if key in more}
    function |= {} if arguments is None else {"arguments": arguments}
    return {**more, "function": function}


def read(*pieces, opened=False):
    """One read every second."""
    exchange = Exchange(body=b"", status=200, content_type="text/event-stream", sent=100.0)
    exchange.pieces = list(pieces)
    exchange.reads = [101.0 + i for i in range(len(pieces))]
    return reply.read_reply(exchange, CLOCK, opened=opened)


def told(got):
    return [(one.name, one.arguments, one.first_chunk, one.last_chunk) for one in got.tool_calls]


def recorded(name):
    return read(*(event + b"\n\n" for event in (STREAMS / name).read_bytes().split(b"\n\n") if event))


def test_a_call_of_vllm_after_thinking():
    """vLLM 0.32.0, tool_choice required, a strict tool: the name first, then the arguments by token, blanks and all."""
    got = recorded("vllm_tool_call.txt")
    assert (got.outcome, got.finish_reason, got.thinking_field) == ("ok", "tool_calls", "reasoning")
    (call,) = got.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("set_temperature", {"room": "kitchen", "degrees": 30})
    assert (call.first_chunk, call.last_chunk) == (2, len(got.chunk_s) - 1)
    assert got.first_answer_chunk == 2
    assert sum(got.chunk_tokens) == got.completion_tokens == 537
    assert got.chunk_tokens[-1] == 11  # after the last piece: blanks and the closing tag


def test_a_call_of_sglang():
    """SGLang 0.5.15: the name after 34 tokens, the first arguments after 78, the rest by token."""
    got = recorded("sglang_tool_call.txt")
    assert (got.outcome, got.finish_reason, got.thinking_field) == ("ok", "tool_calls", None)
    (call,) = got.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("set_temperature", {"room": "kitchen", "degrees": 9})
    assert (call.first_chunk, call.last_chunk, got.first_answer_chunk) == (0, 6, 0)
    assert got.chunk_tokens[:3] == (34, 44, 1)
    assert sum(got.chunk_tokens) == got.completion_tokens == 135


def test_a_call_is_output_and_ends_the_thinking():
    got = read(
        delta(role="assistant", content=""),
        delta(reasoning="hm"),
        delta(tool_calls=[piece(index=0, id="call-1", type="function", name="add", arguments="")]),
        delta(tool_calls=[piece('{"a":', index=0)]),
        delta(tool_calls=[piece(" 1}", index=0)]),
        delta("tool_calls", tool_calls=[piece("", index=0)]),  # says nothing
    )
    assert (got.outcome, got.finish_reason, got.answer) == ("ok", "tool_calls", None)
    assert got.chunk_s == (2.0, 3.0, 4.0, 5.0)
    assert (got.first_answer_chunk, got.thinking_field) == (1, "reasoning")
    assert told(got) == [("add", '{"a": 1}', 1, 3)]
    assert got.tool_calls[0].id == "call-1"


def test_a_call_after_text_leaves_the_answer_where_it_began():
    got = read(
        delta(content="Let me see."), delta(tool_calls=[piece("{}", index=0, name="add")]), delta("tool_calls", content="")
    )
    assert (got.first_answer_chunk, got.answer) == (0, "Let me see.")
    assert told(got) == [("add", "{}", 1, 1)]


def test_a_call_amid_thinking_that_never_closes_is_a_call():
    got = read(delta(content="hm"), delta(tool_calls=[piece("{}", index=0, name="add")]), delta("tool_calls"), opened=True)
    assert (got.outcome, got.first_answer_chunk, got.think_closed) == ("ok", 1, False)


def test_json_by_a_schema_is_the_answer_of_a_server_that_does_not_split():
    """A grammar holds its output from the first token on, so that nothing of it can be thinking."""
    exchange = Exchange(
        body=b'{"response_format": {"type": "json_schema"}}', status=200, content_type="text/event-stream", sent=0.0
    )
    exchange.pieces, exchange.reads = [delta(content='{"a"'), delta(content=": 1}"), delta("stop")], [1.0, 2.0, 3.0]
    got = reply.read_reply(exchange, CLOCK, opened=True)
    assert (got.outcome, got.answer, got.first_answer_chunk, got.thinking_field) == ("ok", '{"a": 1}', 0, None)


def test_a_call_that_ends_with_stop_is_one_too():
    """As vLLM ends a call of a tool that the request named."""
    assert read(delta(tool_calls=[piece("{}", index=0, name="add")]), delta("stop")).outcome == "ok"


@pytest.mark.parametrize("outcome", ["truncated", "ok"])
def test_the_limit_cuts_a_call_as_it_cuts_text(outcome):
    pieces = [delta(tool_calls=[piece('{"a"', index=0, name="add")]), delta("length")]
    exchange = Exchange(body=b"", status=200, content_type="text/event-stream", sent=0.0)
    exchange.pieces, exchange.reads = pieces, [1.0, 2.0]
    got = reply.read_reply(exchange, CLOCK, opened=False, forced_tokens=9 if outcome == "ok" else None)
    assert (got.outcome, got.tool_calls[0].arguments) == (outcome, '{"a"')


TWO = [("add", '{"a": 1}', 0, 1), ("subtract", '{"b": 2}', 1, 2)]


@pytest.mark.parametrize(
    "pieces",
    [
        # both in one chunk in the middle
        [[piece('{"a":', index=0, id="x", name="add")], [piece(" 1}", index=0), piece('{"b":', index=1, name="subtract")],
         [piece(" 2}", index=1)]],
        # no index: an id begins the next
        [[piece('{"a":', id="x", name="add")], [piece(" 1}"), piece('{"b":', id="y", name="subtract")], [piece(" 2}")]],
        # every call has index 0
        [[piece('{"a":', index=0, id="x", name="add")],
         [piece(" 1}", index=0), piece('{"b":', index=0, id="y", name="subtract")], [piece(" 2}", index=0)]],
        # the name and the id come again with every piece
        [[piece('{"a":', index=0, id="x", name="add")],
         [piece(" 1}", index=0, id="x", name="add"), piece('{"b":', index=1, id="y", name="subtract")],
         [piece(" 2}", index=1, id="y", name="subtract")]],
        # numbered from 7 on
        [[piece('{"a":', index=7, name="add")], [piece(" 1}", index=7), piece('{"b":', index=9, name="subtract")],
         [piece(" 2}", index=9)]],
    ],
)  # fmt: skip
@pytest.mark.fault("servers", "Calls of tools without an index, or all with the same: put together by their ids")
def test_two_calls_whatever_their_numbers(pieces):
    assert told(read(*(delta(tool_calls=one) for one in pieces), delta("tool_calls"))) == TWO


def test_arguments_that_come_as_an_object():
    got = read(delta("tool_calls", tool_calls=[piece({"a": [1]}, index=0, name="add")]))
    assert told(got) == [("add", '{"a":[1]}', 0, 0)]


def test_a_piece_without_a_call_before_it_is_a_call_without_a_name():
    assert told(read(delta("tool_calls", tool_calls=[piece('{"a": 1}')]))) == [("", '{"a": 1}', 0, 0)]


@pytest.mark.parametrize(
    "wrong", [{"tool_calls": {}}, {"tool_calls": [7]}, {"tool_calls": [{"index": "0"}]}, {"tool_calls": [piece(7, index=0)]}]
)
@pytest.mark.fault("servers", "Malformed calls of tools: `protocol_error`")
def test_malformed_calls_are_a_protocol_error(wrong):
    got = read(delta(content="a"), delta(**wrong), delta("stop"))
    assert (got.outcome, got.error.kind) == ("protocol_error", "bad_chunk")


@given(st.text(min_size=1), st.data())
def test_any_cutting_of_the_arguments_gives_the_same_call(arguments, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(arguments)), max_size=6)) | {0, len(arguments)})
    parts = [arguments[a:b] for a, b in pairwise(cuts)]
    made = CallAssembler()
    assert made.take(0, [sse.CallPiece(index=0, id="x", function=sse.FunctionPiece(name="add"))])
    for chunk, part in enumerate(parts, start=1):
        assert made.take(chunk, [sse.CallPiece(index=0, function=sse.FunctionPiece(arguments=part))])
    (call,) = made.end()
    assert (call.name, call.arguments, call.last_chunk) == ("add", arguments, len(parts))
