"""The streams of every endpoint, as vLLM 0.32.0 and Anthropic's documents have them: one split, one count, one outcome."""

import msgspec
import pytest

from loadtest.client import reply
from loadtest.client.apis.readers import READERS
from tests.client.test_reply import CLOCK, exchange

COMPLETIONS = (
    b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":"<think>so","finish_reason":null}],'
    b'"usage":{"prompt_tokens":6,"total_tokens":7,"completion_tokens":1}}\n\n',
    b'data: {"choices":[{"index":0,"text":"</think>4","finish_reason":"stop"}],"usage":{"completion_tokens":3}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":6,"completion_tokens":3,"prompt_tokens_details":'
    b'{"cached_tokens":2}}}\n\n',
    b"data: [DONE]\n\n",
)
RESPONSES = (
    b'event: response.created\ndata: {"response":{"id":"resp_1","output":[],"usage":null},"type":"response.created"}\n\n',
    b'event: response.reasoning_text.delta\ndata: {"content_index":0,"delta":"so","item_id":"rs_1","output_index":0,'
    b'"sequence_number":4,"type":"response.reasoning_text.delta"}\n\n',
    b'event: response.output_text.delta\ndata: {"delta":"4","logprobs":[],"type":"response.output_text.delta"}\n\n',
    b'event: response.completed\ndata: {"response":{"status":"completed","incomplete_details":null,'
    b'"usage":{"input_tokens":6,'
    b'"input_tokens_details":{"cached_tokens":2},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":2}}},'
    b'"type":"response.completed"}\n\n',
)
MESSAGES = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":4,'
    b'"output_tokens":0,"cache_read_input_tokens":2}}}\n\n',
    b'event: ping\ndata: {"type":"ping"}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"so"},'
    b'"index":0}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"4"},'
    b'"index":1}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":3}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
STREAMS = {"completions": COMPLETIONS, "responses": RESPONSES, "messages": MESSAGES}
EACH = pytest.mark.parametrize("api", STREAMS)


def read(api, *pieces, **options):
    return reply.read_reply(exchange(*pieces), CLOCK, opened=False, api=api, **options)


@EACH
def test_thinking_answer_and_tokens_are_told_apart_alike(api):
    got = read(api, *STREAMS[api])
    assert (got.outcome, got.answer, got.thinking, got.finish_reason) == (
        "ok",
        "4",
        "so",
        {"messages": "end_turn"}.get(api, "stop"),
    )
    assert (got.first_answer_chunk, len(got.chunk_s)) == (1, 2)
    assert (got.prompt_tokens, got.completion_tokens, got.token_count_source) == (6, 3, "server")
    assert got.thinking_field == ("inline" if api == "completions" else "reasoning")


def test_each_tells_of_its_thinking_and_its_cache_what_it_does():
    told = {api: read(api, *pieces) for api, pieces in STREAMS.items()}
    assert {api: got.reasoning_tokens for api, got in told.items()} == {"completions": 1, "responses": 2, "messages": None}
    assert {api: got.chunk_tokens for api, got in told.items()} == {
        "completions": (1, 2),
        "responses": None,
        "messages": None,
    }
    assert told["responses"].cached_tokens == told["completions"].cached_tokens == 2


@pytest.mark.parametrize(
    ("api", "end"),
    [
        ("responses", b'data: {"type":"response.completed","response":{"status":"incomplete"}}\n\n'),  # as vLLM has it
        (
            "responses",
            b'data: {"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}\n\n',
        ),
        ("messages", b'data: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"output_tokens":1}}\n\n'),
    ],
)
def test_the_limit_is_called_length(api, end):
    pieces = STREAMS[api][:3]
    assert (read(api, *pieces, end).outcome, read(api, *pieces, end).finish_reason) == ("truncated", "length")
    assert read(api, *pieces, end, forced_tokens=1).outcome == "ok"


@pytest.mark.parametrize(
    ("api", "error", "said"),
    [
        (
            "responses",
            b'data: {"type":"response.failed","response":{"error":{"message":"out of memory"}}}\n\n',
            "out of memory",
        ),
        ("responses", b'event: error\ndata: {"type":"error","message":"overloaded","code":503}\n\n', "overloaded"),
        (
            "messages",
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n',
            "busy",
        ),
        ("completions", b'data: {"error":{"message":"aborted","code":500}}\n\n', "aborted"),
    ],
)
def test_an_error_in_the_stream_is_one(api, error, said):
    got = read(api, *STREAMS[api][:2], error)
    assert got.outcome == "server_error"
    assert said in got.error.message


@EACH
def test_a_stream_that_breaks_off_or_is_no_stream_is_a_protocol_error(api):
    assert read(api, *STREAMS[api][:-2] if api == "messages" else STREAMS[api][:1]).error.kind == "unfinished"
    assert read(api, b"data: {nothing\n\n").error.kind == "bad_chunk"


@EACH
@pytest.mark.parametrize("payload", [b"[]", b'{"delta":5,"type":"response.output_text.delta","choices":5,"usage":5}', b"{"])
def test_a_damaged_event_raises_what_the_stream_catches(api, payload):
    with pytest.raises(msgspec.DecodeError):
        READERS[api](payload)


def test_a_limit_under_another_name_is_kept():
    x = exchange(*RESPONSES)
    x.body = b'{"max_output_tokens": 2}'
    got = reply.read_reply(x, CLOCK, opened=False, api="responses")
    assert got.outcome == "ok"  # 3 tokens pass 2 by less than the slack
    x.body = b'{"max_output_tokens": 2}'
    x.pieces[-1] = x.pieces[-1].replace(b'"output_tokens":3', b'"output_tokens":300')
    assert reply.read_reply(x, CLOCK, opened=False, api="responses").error.kind == "impossible_usage"
