"""What came of the requests in flight, second by second."""

import time

import pytest

from loadtest.client.exchange import Exchange
from loadtest.client.in_flight import PIECES_AT_ONCE, REQUESTS_AT_ONCE, InFlight

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = b'data: {"choices":[{"delta":{"reasoning_content":"So"}}]}\n\n'
COMMENT = b": still here\n\n"


def exchange(*pieces, sent=10.0):
    """Sent at 10 s, and then a piece a second."""
    return Exchange(body=b"", sent=sent, reads=[11.0 + i for i in range(len(pieces))], pieces=list(pieces))


def receive(one, *pieces):
    for piece in pieces:
        one.reads.append(11.0 + len(one.reads))
        one.pieces.append(piece)


def test_reads_count_once_whether_their_request_has_ended_or_not():
    running, one, two = InFlight(), exchange(), exchange()
    running.begin(one)
    running.begin(two)
    receive(one, ROLE, TEXT, TEXT)
    receive(two, TEXT)
    assert (len(running), running.take().reads) == (2, 4)
    receive(one, TEXT)
    running.end(one)
    receive(two, TEXT, TEXT)
    assert (len(running), running.take().reads) == (1, 3)
    assert running.take().reads == 0


def test_the_first_text_is_found_once_and_a_role_or_a_comment_is_none():
    running, one = InFlight(), exchange()
    running.begin(one)
    receive(one, ROLE, COMMENT)
    assert running.take().ttft_wall_s is None
    receive(one, TEXT, TEXT)
    assert running.take().ttft_wall_s == 3.0  # the third piece, at 13 s
    receive(one, TEXT)
    assert running.take().ttft_wall_s is None


def test_it_is_the_mean_of_the_requests_that_began_to_speak():
    running = InFlight()
    for pieces in ((TEXT,), (ROLE, COMMENT, TEXT)):
        running.begin(exchange(*pieces))
    assert running.take().ttft_wall_s == pytest.approx(2.0)


def test_a_request_that_ends_within_the_second_is_told_too_and_one_never_sent_is_not():
    running, short, refused = InFlight(), exchange(TEXT), exchange(sent=None)
    for one in (short, refused):
        running.begin(one)
        running.end(one)
    assert running.take() == (1, 1.0)


def test_a_second_of_a_thousand_streams_costs_little():
    running = InFlight()
    streams = [exchange(*[ROLE] * PIECES_AT_ONCE) for _ in range(1000)]
    for one in streams:
        running.begin(one)
    took_s = []
    for _ in range(20):
        for one in streams:
            receive(one, COMMENT)
        began = time.perf_counter()
        running.take()
        took_s.append(time.perf_counter() - began)
    assert len(streams) > REQUESTS_AT_ONCE
    assert min(took_s) < 0.0004
