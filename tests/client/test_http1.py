"""Responses taken apart: the same for every way of cutting them into reads, and the same as h11 takes them."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.http1 import HEAD_LIMIT_BYTES, NotHttp, Response

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = HEAD + b"3\r\nabc\r\n" + b"1a;name=value\r\n" + b"x" * 26 + b"\r\n0\r\nTrailer: x\r\n\r\n"


def fed(response, *reads):
    """The body, each read taken as the client takes it."""
    bodies = []
    for data in reads:
        body = response.whole_chunk(data)
        bodies.append(response.feed(data) if body is None else body)
    return b"".join(bodies)


def cut(data, places):
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends) if a < b]


def test_a_stream():
    response = Response()
    assert fed(response, STREAM) == b"abc" + b"x" * 26
    assert (response.status, response.content_type, response.done, response.reusable) == (
        200, "text/event-stream; charset=utf-8", True, True,
    )  # fmt: skip


def test_a_read_that_is_one_chunk_is_taken_at_once():
    response = Response()
    assert response.whole_chunk(b"3\r\nabc\r\n") is None  # no head yet
    assert response.feed(HEAD) == b""
    assert response.whole_chunk(b"3\r\nabc\r\n") == b"abc"
    assert response.whole_chunk(b"3\r\nabc\r\n3\r\nabc\r\n") is None
    assert response.whole_chunk(b"0\r\n\r\n") is None
    assert response.whole_chunk(b"+3\r\nabc\r\n") is None  # int() takes more than HTTP does
    assert response.feed(b"5\r\nab") == b"ab"
    assert response.whole_chunk(b"3\r\nabc\r\n") is None  # in the middle of a chunk
    assert response.feed(b"\r\nc\r\n") == b"\r\nc"
    assert response.whole_chunk(b"3\r\nabc\r\n") == b"abc"


@given(st.lists(st.integers(0, 2000), max_size=8))
def test_how_a_response_is_cut_changes_nothing(places):
    response = Response()
    assert fed(response, *cut(STREAM, places)) == b"abc" + b"x" * 26
    assert response.done


@pytest.mark.parametrize("n_reads", [1, 2])
def test_the_longest_size_line_is_taken_however_it_is_cut(n_reads):
    head = HEAD + b"3;" + b"x" * 62 + b"\r"
    reads = [head, b"\nabc\r\n0\r\n\r\n"] if n_reads == 2 else [head + b"\nabc\r\n0\r\n\r\n"]
    assert fed(Response(), *reads) == b"abc"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.lists(st.integers(0, 2000), max_size=8))
def test_chunks_come_out_as_they_went_in(chunks, places):
    data = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    response = Response()
    assert fed(response, *cut(data, places)) == b"".join(chunks)
    assert response.done


@pytest.mark.parametrize(
    ("data", "body", "status", "done", "reusable"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nabc", b"abc", 401, True, True),
        (b"HTTP/1.1 401 No\r\nContent-Length: 3\r\nConnection: Close\r\n\r\nabc", b"abc", 401, True, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", 200, True, False),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc", 200, False, False),
        (b"HTTP/1.1 204 \r\n\r\n", b"", 204, True, True),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", b"", 302, True, True),
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", b"a", 200, True, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"abc", 200, False, True),
    ],
)
def test_other_ways_to_end_a_body(data, body, status, done, reusable):
    response = Response()
    assert fed(response, data) == body
    assert (response.status, response.done, response.reusable) == (status, done, reusable)


def test_a_body_without_a_length_ends_with_the_connection():
    response = Response()
    assert fed(response, b"HTTP/1.1 200 OK\r\n\r\nab", b"c") == b"abc"
    assert response.end_of_connection()


@pytest.mark.parametrize(
    "data", [b"", HEAD, HEAD + b"3\r\nab", HEAD + b"0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na"]
)
def test_an_early_end_is_no_end(data):
    response = Response()
    fed(response, data)
    assert not response.end_of_connection()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * HEAD_LIMIT_BYTES,
        HEAD + b"zz\r\nhello\r\n",
        HEAD + b"\r\n\r\n",
        HEAD + b"3\r\nabcd\r\n",
        HEAD + b"+3\r\nabc\r\n",
        HEAD + b"1" * 70,
        HEAD + b"0\r\n\r\nmore",
    ],
)
@pytest.mark.fault("servers", "Bytes that are not HTTP: `not_http`")
def test_what_is_not_http_is_refused(data):
    with pytest.raises(NotHttp, match="expected|after the end"):
        fed(Response(), data)


def by_h11(reads):
    """Status, body and whether it ended, as h11 sees them; null where it sees no HTTP."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = None, b""
    try:
        for data in reads:
            connection.receive_data(data)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    return status, body, True
    except h11.RemoteProtocolError:
        return None
    return status, body, False


@given(
    st.integers(0, len(STREAM) - 1),
    st.binary(max_size=3),
    st.integers(0, 3),
    st.lists(st.integers(0, 2000), max_size=4),
)
def test_a_damaged_response_is_never_taken_for_more_than_h11_takes_it(place, new, width, places):
    """Where ours finds a whole response, h11 finds the same one. (Ours may refuse what h11 lets pass, not the reverse.)"""
    damaged = STREAM[:place] + new + STREAM[place + width :]
    response = Response()
    try:
        body = fed(response, *cut(damaged, places))
    except NotHttp:
        return
    theirs = by_h11([damaged])
    if response.done and response.status != 204:
        assert theirs is not None
        assert theirs == (response.status, body, True)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_end_in_a_body_or_in_one_error(reads):
    response = Response()
    try:
        fed(response, HEAD, *reads)
    except NotHttp as error:
        assert "\n" not in str(error)
