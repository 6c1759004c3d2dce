"""Events out of reads, however the bytes were cut; golden cases by hand, the rest by property."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import sse


def payloads(*reads):
    return [(at, data.rstrip(b"\n")) for at, data in sse.events([(float(i), piece) for i, piece in enumerate(reads)])]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([b"data: a\n\n"], [(0, b"a")]),
        ([b"data:a\n\n"], [(0, b"a")]),
        ([b"data: a\r\n\r\n"], [(0, b"a")]),
        ([b"data: a\r\r"], [(0, b"a")]),
        ([b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n"], [(0, b"a"), (2, b"b")]),
        ([b"data: a\n\ndata: b\n\n"], [(0, b"a"), (0, b"b")]),
        ([b"da", b"ta: a", b"\n", b"\n"], [(2, b"a")]),
        ([b"data: a\n", b"data: b\n\n"], [(1, b"a\nb")]),
        ([b": keep-alive\n\n", b"data: a\n\n"], [(1, b"a")]),
        ([b"event: message\nid: 7\nretry: 9\ndata: a\n\n"], [(0, b"a")]),
        ([b"data: a\n\n", b"data: [DONE]"], [(0, b"a"), (1, b"[DONE]")]),
        ([b"\xef\xbb\xbfdata: a\n\n"], [(0, b"a")]),
        ([b"data: \xc3", b"\xa9\n\n"], [(1, "é".encode())]),
        ([b"data:  two spaces\n\n"], [(0, b" two spaces")]),
        ([b"data\n\n", b"\n\n"], []),
        ([], []),
    ],
)
def test_events(reads, expected):
    assert payloads(*reads) == expected


texts = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), min_size=1, max_size=6)


@given(texts, st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_however_the_bytes_are_cut_the_events_are_the_same(messages, end, data):
    whole = "".join(f": ping{end}{end}data: {message}{end}{end}" for message in messages).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    edges = [0, *cuts, len(whole)]
    reads = [whole[a:b] for a, b in pairwise(edges)]
    found = payloads(*reads)
    assert [payload.decode() for _, payload in found] == messages
    assert [time for time, _ in found] == sorted(time for time, _ in found)


pieces_of_sse = st.sampled_from([b"data: ", b"data:", b"data: a", b"\n", b"\r", b"\r\n", b"\n\n", b": c", b"\xef\xbb\xbf"])


@given(st.lists(pieces_of_sse | st.binary(max_size=4), max_size=20).map(b"".join), st.data())
def test_any_bytes_give_the_same_events_however_they_are_cut(whole, data):
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8))), len(whole)]
    cut = payloads(*(whole[a:b] for a, b in pairwise(edges)))
    assert [payload for _, payload in cut] == [payload for _, payload in payloads(whole)]
    assert sum(len(payload) for _, payload in cut) <= len(whole)


@pytest.mark.parametrize("size", [2**19, sse.EVENT_LIMIT_BYTES, sse.EVENT_LIMIT_BYTES + 1, 2**24])
@pytest.mark.parametrize("read_bytes", [4096, 2**25])
def test_a_line_without_end_is_joined_once_and_cut_beyond_the_limit(size, read_bytes):
    """Joined at every read, 16 MB would take minutes."""
    whole = b"data: " + b"x" * size + b"\n\ndata: next\n\n"
    sizes = [
        len(payload.strip())
        for _, payload in payloads(*(whole[i : i + read_bytes] for i in range(0, len(whole), read_bytes)))
    ]
    assert sizes[1] == 4
    assert sizes[0] == size if size <= sse.EVENT_LIMIT_BYTES else sse.EVENT_LIMIT_BYTES < sizes[0] <= size


def test_an_event_has_the_time_of_the_read_that_completed_its_data():
    reads = [(1.0, b"data: x\n\n"), (2.0, b"data: ab"), (5.0, b"c\n"), (9.0, b"\ndata: d\n\n")]
    assert list(sse.events(reads)) == [(1.0, b"x"), (5.0, b"abc"), (9.0, b"d")]


def test_usage_at_top_level_and_in_details():
    vllm = msgspec.json.decode(b'{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":4}}', type=sse.Usage)
    sglang = msgspec.json.decode(b'{"reasoning_tokens":5,"prompt_tokens_details":null}', type=sse.Usage)
    assert (vllm.thinking_tokens, sglang.thinking_tokens, sglang.cached_tokens) == (4, 5, None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<html>502 Bad\n Gateway</html>", ("<html>502 Bad Gateway</html>", None)),
        (b"", ("nothing", None)),
        (b'{"detail": "Not Found"}', ('{"detail": "Not Found"}', None)),
        (b'{"error": {"message": "out\\nof memory", "code": 500}}', ("out of memory", 500)),
        (b'{"object":"error","message":"too long","code":"400"}', ("too long", 400)),
        (b"\xff\xfe\x00", ("��", None)),
    ],
)
def test_error_text(body, expected):
    assert sse.error_text(body) == expected


def test_data_is_the_same_whether_an_event_came_in_one_read_or_in_many():
    """Its end too: what is wrong with an unfinished string is said by what follows it."""
    text = b'data: first\n\ndata: {"id":"cut]\n\n'
    whole = [data for _, data in sse.events([(1.0, text[:13]), (2.0, text[13:])])]
    assert whole == [data for _, data in sse.events([(float(i), text[i : i + 1]) for i in range(len(text))])]
    assert whole == [b"first", b'{"id":"cut]']
