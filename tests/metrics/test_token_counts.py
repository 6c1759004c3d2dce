"""A server's token counts against the text that it sent: what real streams say passes, what no text can be does not."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.run import analyze
from loadtest.client import reply
from loadtest.client.exchange import Exchange
from loadtest.clock import Clock
from loadtest.metrics import token_counts
from tests.support import builders
from tests.support.builders import request

STREAMS = Path(__file__).parents[1] / "data" / "streams"


def counted(*records):
    return token_counts.count_requests(records, told_by_chunk=0, spread_over_chunks=0)


def doubts(**facts):
    found = counted(request(**({"chunk_tokens": None} | facts)))
    assert bool(found.reasons) == bool(found.n_too_few + found.n_too_many)
    return found.n_too_few, found.n_too_many


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (0, 0)),
        ({"thinking": 150, "answer": 50, "completion_tokens": 1}, (1, 0)),  # 200 chunks
        ({"thinking": 150, "answer": 50, "completion_tokens": 197}, (0, 0)),
        ({"completion_tokens": 10, "text_bytes": 900}, (0, 0)),
        ({"completion_tokens": 10, "text_bytes": 1000}, (1, 0)),  # chunks of many tokens
        ({"completion_tokens": 103, "text_bytes": 40}, (0, 0)),
        ({"completion_tokens": 5000, "text_bytes": 40}, (0, 1)),
        ({"completion_tokens": 5000}, (0, 0)),  # of an older release: the size of the text is not known
        ({"completion_tokens": 5000, "text_bytes": 40, "forced_tokens": 5000}, (0, 0)),
        ({"completion_tokens": 5000, "text_bytes": 40, "finish_reason": "tool_calls"}, (0, 0)),
        ({"completion_tokens": 5000, "text_bytes": 40, "thinking_field": None, "reasoning_tokens": 4950}, (0, 0)),
        ({"completion_tokens": 5000, "text_bytes": 40, "thinking_field": "reasoning", "reasoning_tokens": 4950}, (0, 1)),
        ({"completion_tokens": 850, "text_bytes": 4000, "text_tokens": 1000}, (1, 0)),
        ({"completion_tokens": 900, "text_bytes": 4000, "text_tokens": 1000}, (0, 0)),
        ({"completion_tokens": 1500, "text_bytes": 4000, "text_tokens": 1000}, (0, 0)),
        ({"completion_tokens": 1600, "text_bytes": 4000, "text_tokens": 1000}, (0, 1)),
        ({"completion_tokens": 1, "thinking": 150, "token_count_source": "chunks"}, (0, 0)),
        ({"completion_tokens": None, "thinking": 150}, (0, 0)),
    ],
)
def test_a_count_that_the_text_contradicts(facts, expected):
    assert doubts(**facts) == expected


def stream(content):
    """A stream as it was recorded, one read an event, as a record."""
    x = Exchange(body=b"", status=200, content_type="text/event-stream", sent=0.0)
    for number, event in enumerate(part for part in content.split(b"\n\n") if part):
        x.reads.append(float(number))
        x.pieces.append(event + b"\n\n")
    got = reply.read_reply(x, Clock(origin_monotonic_s=0.0, anchor_unix_s=0.0), opened=True)
    names = ("chunk_s", "chunk_tokens", "first_answer_chunk", "completion_tokens", "reasoning_tokens", "text_bytes",
             "token_count_source", "finish_reason", "thinking_field")  # fmt: skip
    return replace(request(), **{name: getattr(got, name) for name in names})


@pytest.mark.parametrize("name", ["vllm_thinking.txt", "sglang_length.txt"])
def test_what_real_engines_count_passes(name):
    record = stream((STREAMS / name).read_bytes())
    assert record.completion_tokens is not None
    assert counted(record).reasons == ()


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30), st.integers(0, 3))
def test_no_true_count_is_doubted(tokens, silent):
    """Tokens are pieces of a text, each of at least a byte and sent in a chunk of its own, and some without text."""
    size = sum(len(token.encode()) for token in tokens)
    true = len(tokens) + silent
    assert doubts(chunk_s=(1.0,) * len(tokens), thinking=0, answer=0, text_bytes=size, completion_tokens=true) == (0, 0)


@pytest.mark.fault("servers", "Counts that the text contradicts (200 chunks, one token): a doubt")
def test_a_server_that_lies_is_doubted_on_the_level_and_in_the_run():
    events = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n' * 200
    lie = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}\n\n'
    record = stream(events + lie)
    assert (record.completion_tokens, record.text_bytes) == (1, 800)
    metrics = analyze(builders.run([builders.cell([builders.level([record, request(user=1)])])]))
    assert metrics.cells[0].levels[0].token_counts.n_too_few == 1
    [reason] = [one for one in metrics.health.reasons if "tokens than the text" in one]
    assert "in 1 of 2 requests the server counts fewer tokens" in reason
    assert "1 tokens for 200 chunks and 800 bytes" in reason
