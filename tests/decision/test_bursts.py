"""Points of the line from bursts whose step times are known, to the last chunk."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.decision.bursts import burst_points, engine_speed
from loadtest.metrics.request_arrays import pass_arrays
from tests.support import builders

A_S, B_S = 0.02, 2e-7


def stream(user, burst, prompt_tokens, first_s, concurrency, n=256, chunk=1, **changes):
    """A stream of a burst: its steps as long as the line says of all contexts, in chunks of so many tokens."""
    contexts = concurrency * (prompt_tokens + np.arange(1, n))
    times = first_s + np.concatenate([[0.0], np.cumsum(A_S + B_S * contexts)])
    chunks = tuple(float(t) for t in times[chunk - 1 :: chunk])
    made = builders.request(sent_s=first_s - 0.5, user=user, seq=1000 * (burst or 0) + user)
    facts = {
        "chunk_s": chunks, "chunk_tokens": (chunk,) * len(chunks), "ended_s": chunks[-1], "prompt_tokens": prompt_tokens,
        "completion_tokens": n, "first_answer_chunk": 0, "outcome": "ok", "forced_tokens": n, "burst": burst,
    }  # fmt: skip
    return replace(made, **facts | changes)


def lone(first_s, wait_s):
    return builders.request(sent_s=first_s, ttft_s=wait_s, seq=int(first_s) + 90_000)


def burst(number, prompt_tokens, at_s, concurrency, **options):
    return [stream(user, number, prompt_tokens, at_s, concurrency, **options) for user in range(concurrency)]


def passed(concurrency, **options):
    rows = [burst(n, tokens, 100.0 * (n + 1), concurrency, **options) for n, tokens in enumerate((200, 1500, 5000))]
    return [one for row in rows for one in row] + [lone(1.0, 0.2), lone(5.0, 0.4)]


def points(requests, concurrency):
    return burst_points(pass_arrays(builders.level(requests, concurrency=concurrency), builders.ANCHOR))


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_line_of_known_steps_is_found(concurrency, chunk):
    found = points(passed(concurrency, chunk=chunk), concurrency)
    assert len(found.step_s) == 6
    assert float(found.line.a_s) == pytest.approx(A_S, rel=1e-3)
    assert float(found.line.b_s) == pytest.approx(B_S, rel=1e-2)
    assert found.first_token_s == pytest.approx(0.3)
    assert found.context_tokens[0] == pytest.approx(concurrency * (200 + 64), abs=concurrency * 3)


def test_steps_before_the_last_stream_began_do_not_count():
    """One stream of two came first, and decoded at twice the pace while it was alone."""
    first, second = burst(0, 200, 100.0, 2)
    early = tuple(99.0 + 0.01 * k for k in range(100)) + first.chunk_s
    first = replace(
        first, chunk_s=early, chunk_tokens=(1,) * len(early), completion_tokens=len(early), forced_tokens=len(early)
    )
    rest = [one for n, tokens in ((1, 1500), (2, 5000)) for one in burst(n, tokens, 100.0 * (n + 1), 2)]
    found = points([first, second, *rest, lone(1.0, 0.2)], 2)
    assert found.step_s[0] == pytest.approx(A_S + B_S * 2 * 264, rel=1e-3)
    assert found.context_tokens[0] == pytest.approx(2 * 264 + 100, abs=6)


@pytest.mark.parametrize(
    ("outcome", "left"), [("http_error", 4), ("cut_off", 4)], ids=["a stream failed", "a stream was cut off"]
)
def test_a_burst_without_all_its_streams_does_not_count(outcome, left):
    made = passed(4)
    made[5] = replace(made[5], outcome=outcome)
    assert len(points(made, 4).step_s) == left


def test_without_two_contexts_or_a_lone_request_there_is_no_line():
    assert points([*burst(0, 200, 100.0, 2), lone(1.0, 0.2)], 2) is None
    assert points([one for one in passed(2) if one.burst is not None], 2) is None
    assert points([*burst(0, 200, 100.0, 2), *burst(1, 200, 200.0, 2), lone(1.0, 0.2)], 2) is not None  # they grew


def test_each_start_has_its_own_line():
    found = engine_speed([points(passed(2), 2)] * 3)
    assert found.concurrency == 2
    assert found.line.a_s.shape == found.first_token_s.shape == (3,)
