"""A server's token counts against the text that it sent: what real streams say passes, what no text can be does not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.run import analyze
from loadtest.client import reply
from loadtest.client.exchange import Exchange
from loadtest.client.transport import SocketTransport
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


# How many tokens came at once ----------------------------------------------------------------------------------------


def bursts(*sizes, gap_s=0.5, first_s=0.5, within_s=0.0001, **changes):
    """One request whose tokens come in bursts of these sizes."""
    times = [first_s + gap_s * i + within_s * k for i, size in enumerate(sizes) for k in range(size)]
    n = len(times)
    return request(
        thinking=n, answer=0, **({"chunk_s": tuple(times), "ended_s": times[-1], "answer_correct": None} | changes)
    )


def level_of(requests, **options):
    return analyze(builders.run([builders.cell([builders.level(requests)])], **options)).cells[0].levels[0]


def test_a_burst_is_one_arrival_and_its_rate_is_over_the_whole_answer():
    """Two bursts of 4, at 0.5 and 1.0 s, 0.1 ms from token to token: 8 tokens in 1.0003 s; between arrivals 7 / 0.5003 s."""
    level = level_of([bursts(4, 4)])
    found = level.arrivals
    assert (found.n, found.with_others_share, found.p99_tokens, found.bursty) == (2, 1.0, 4.0, True)
    assert found.whole_answer_tokens_per_s.mean == pytest.approx(8 / 1.0003)
    assert found.between_arrivals_tokens_per_s.mean == pytest.approx(7 / 0.5003)
    assert level.estimate("tokens_per_s_per_user", "mean").value == pytest.approx(8 / 1.0003)
    assert level.estimate("tpot_s", "mean").value == pytest.approx(1.0003 / 8)
    assert level.estimate("itl_s", "mean").reason == "tokens came in bursts"


def test_an_answer_in_one_burst_has_a_rate_too():
    """600 tokens at once after 9 s are 66.7 tokens/s to who waited for them, and not 37,000."""
    level = level_of([bursts(600, first_s=9.0, within_s=0.000027)])
    assert level.tokens_per_s_per_user.mean == pytest.approx(600 / 9.016173)
    assert level.arrivals.between_arrivals_tokens_per_s.mean == pytest.approx(1 / 0.000027)


def test_one_late_token_in_ten_is_no_burst_and_leaves_the_rate_as_it_is():
    """2 of 20 tokens come together: 10 %, not above it."""
    level = level_of([bursts(*[1] * 18, 2, gap_s=0.1)])
    assert (level.arrivals.with_others_share, level.arrivals.bursty) == (pytest.approx(0.1), False)
    assert level.tokens_per_s_per_user.mean == pytest.approx(19 / 1.8001)
    assert level.estimate("itl_s", "max").value == pytest.approx(0.1)


def test_chunks_of_several_tokens_are_arrivals_but_no_bursts():
    """As with speculative decoding: what a chunk brings is divided by the time since the one before it."""
    level = level_of([bursts(1, 1, 1, gap_s=0.1, chunk_tokens=(3, 3, 3), completion_tokens=9, reasoning_tokens=9)])
    assert (level.arrivals.n, level.arrivals.with_others_share, level.arrivals.p99_tokens) == (3, 0.0, 3.0)
    assert level.tokens_per_s_per_user.mean == pytest.approx(30)


@pytest.mark.parametrize(("speed", "together"), [(1.0, False), (10.0, True)])
def test_together_is_of_wall_time(speed, together):
    """Tokens 5 ms apart on the run's clock are 0.5 ms apart at ten times the speed."""
    level = level_of([bursts(2, 2, within_s=0.005, clock_speed=speed)])
    assert level.arrivals.bursty == together


def test_a_fast_stream_is_no_burst():
    """Tokens 0.5 ms apart all along: each is as far from the next as from those before."""
    assert not level_of([bursts(*[1] * 400, gap_s=0.0005, first_s=0.0005)]).arrivals.bursty


def test_an_slo_and_goodput_of_a_bursty_stream_are_held_against_the_whole_answer():
    slow = [bursts(4, 4, seq=i, prompt_id=f"p{i}") for i in range(40)]
    level = level_of(slow, slo=["tokens_per_s_per_user:p50>10", "itl_s:p90<0.1"])
    assert [(one.value, one.likely) for one in level.slo] == [(pytest.approx(8 / 1.0003), False), (None, None)]
    assert level.goodput_answers_per_hour.value == 0


def test_no_maximum_rests_on_gaps_of_a_bursty_stream():
    made = builders.run([builders.cell([builders.level([bursts(4, 4, seq=i) for i in range(40)])])], slo=["itl_s:p90<0.1"])
    found = analyze(made).cells[0].maximum_concurrency
    assert (found.by_slo, found.reason) == (
        None,
        "itl_s:p90<0.1 cannot be judged at concurrency 1: tokens came in bursts",
    )


@pytest.fixture
def bursty_port():
    """The port of a server that sends twenty tokens in two bursts, each token a write of its own."""
    argv = [sys.executable, "-m", "loadtest.simulator.known_times", "--port", "0", "--tokens", "20", "--thinking", "5"]
    with subprocess.Popen([*argv, "--first", "0.1", "--gap", "0.01", "--burst", "10"], stdout=subprocess.PIPE) as server:
        yield int(server.stdout.readline())
        server.kill()


def test_bursts_of_a_server_are_seen_through_the_client(bursty_port):
    client = SocketTransport(f"http://127.0.0.1:{bursty_port}/v1/chat/completions")
    found = []
    while not any(one.bursty for one in found) and len(found) < 50:  # what a busy machine reads late is no burst
        exchange = Exchange(body=b'{"messages": []}')
        clock = Clock.start()
        client.perform(exchange)
        got = reply.read_reply(exchange, clock, opened=True)
        times = {"sent_s": clock.offset_s(exchange.sent), "ended_s": got.chunk_s[-1], "chunk_s": got.chunk_s}
        found.append(level_of([request(thinking=5, answer=15, **times)]).arrivals)
    client.close()
    assert found[-1].bursty
    assert found[-1].p99_tokens <= 10
    assert found[-1].whole_answer_tokens_per_s.mean < 105
