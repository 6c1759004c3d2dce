"""What a finished exchange means, on streams as real servers send them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import reply, sse
from loadtest.client.exchange import Exchange
from loadtest.clock import Clock
from loadtest.errors import UsageError

STREAMS = Path(__file__).parents[1] / "data" / "streams"
CLOCK = Clock(origin_monotonic_s=100.0, anchor_unix_s=0.0, speed=2.0)


def exchange(*pieces, status=200, content_type="text/event-stream"):
    """One read every second from monotonic 101 on, so at 2, 4, 6, ... s of a run at double speed."""
    x = Exchange(body=b"", status=status, content_type=content_type, sent=100.5)
    for i, piece in enumerate(pieces):
        x.reads.append(101.0 + i)
        x.pieces.append(piece)
    return x


def by_event(name):
    return [part + b"\n\n" for part in (STREAMS / name).read_bytes().split(b"\n\n") if part]


def content(text, finish="null"):
    return b'data: {"choices":[{"delta":{"content":"%s"},"finish_reason":%s}]}\n\n' % (text.encode(), finish.encode())


def counted(total):
    """A chunk of text that tells the completion tokens so far, or does not."""
    usage = b"null" if total is None else b'{"completion_tokens":%d}' % total
    return b'data: {"choices":[{"delta":{"content":"x"}}],"usage":%s}\n\n' % usage


def read(x, **options):
    return reply.read_reply(x, CLOCK, **({"opened": True} | options))


def test_vllm_thinking_then_answer():
    got = read(exchange(*by_event("vllm_thinking.txt")))
    assert got.outcome == "ok"
    assert got.error is None
    assert got.chunk_s == (4.0, 8.0)  # neither the role-only chunk nor the empty one counts
    assert got.chunk_tokens == (1, 5)  # the closing tag goes to the next text, the end mark to the last
    assert (got.first_answer_chunk, got.answer, got.thinking_field) == (1, "contain", "reasoning")
    assert (got.prompt_tokens, got.completion_tokens, got.token_count_source) == (26, 6, "server")
    assert got.reasoning_tokens == 1  # the parser says 0 though thinking came: counted by chunks
    assert got.finish_reason == "stop"


@pytest.mark.fault("processes", "The wall clock is set between the kernel's stamp and the read: no chunk before its time")
def test_a_clock_that_was_set_puts_no_chunk_before_the_request_or_the_chunk_before_it():
    x = exchange(*(content(word, finish) for word, finish in (("a", "null"), ("b", "null"), ("c", '"stop"'))))
    x.reads = [95.0, 110.0, 60.0]  # set by 6 s, then by 50 s
    assert read(x).chunk_s == (1.0, 20.0, 20.0)
    assert x.reads == [100.5, 110.0, 110.0]


def test_sglang_cut_by_length():
    got = read(exchange(*by_event("sglang_length.txt")))
    assert (got.outcome, got.finish_reason) == ("truncated", "length")
    assert got.chunk_tokens == (1, 1, 2)
    assert (got.reasoning_tokens, got.cached_tokens, got.thinking_field) == (4, 17, "reasoning_content")
    assert (got.first_answer_chunk, got.answer) == (None, None)


def test_a_forced_length_counts_as_finished():
    assert read(exchange(*by_event("sglang_length.txt")), forced_tokens=4).outcome == "ok"


@pytest.mark.fault("servers", "An error in a 200 stream: `server_error`")
def test_an_error_in_a_200_stream():
    got = read(exchange(*by_event("vllm_overloaded.txt")))
    assert got.outcome == "server_error"
    assert got.error is not None
    assert (got.error.message, got.error.http_status) == ("The request queue is full.", 503)


@pytest.mark.parametrize(
    ("x", "outcome", "words"),
    [
        (exchange(b'{"error":"Unauthorized"}', status=401), "http_error", "HTTP 401: Unauthorized"),
        (exchange(b"<html>hi</html>", content_type="text/html"), "protocol_error", "text/html: <html>hi"),
        (exchange(content_type=""), "protocol_error", "expected an event stream"),
        (exchange(content("42")), "protocol_error", "without finish_reason or [DONE]"),
        (exchange(content("42"), b'data: {"choi'), "protocol_error", "not a chunk"),
        (exchange(content("42"), b'data: {"choices": 7}\n\n'), "protocol_error", "not a chunk"),
        (exchange(content("42"), b"data: \xff\xfe\n\n"), "protocol_error", "not a chunk"),
        (exchange(content("42", '"abort"')), "server_error", "finish_reason abort"),
        (exchange(content("42", '"content_filter"')), "server_error", "finish_reason content_filter"),
        (exchange(content("42", '"cancelled"')), "server_error", "finish_reason cancelled"),
        (exchange(content("42", '"timeout"')), "server_error", "finish_reason timeout"),
        (
            exchange(b'data: {"choices":[{"delta":{"content":"4"},"finish_reason":"stop"}],"error":"gone"}\n\n'),
            "server_error",
            "gone",
        ),
        (
            exchange(content("42", '"stop"'), b"event: error\ndata: overloaded\n\n", b"data: [DONE]\n\n"),
            "server_error",
            "overloaded",
        ),
        (exchange(content("42", '"stop"'), b"event: error\n", b'data: {"x":1}\n\n'), "server_error", "'x': 1"),
        (exchange(b'data: {"error":{"message":"no","code":"\xc2\xb2"}}\n\n'), "server_error", "no"),
        (exchange(b'data: {"error":{"message":"no","code":"%s"}}\n\n' % (b"9" * 5000)), "server_error", "no"),
    ],
)
@pytest.mark.fault("servers", "Wrong content type, invalid UTF-8 or JSON: `protocol_error`")
def test_failures_name_their_cause(x, outcome, words):
    got = read(x)
    assert got.outcome == outcome
    assert got.error is not None
    assert words in got.error.message


@pytest.mark.parametrize(
    ("pieces", "opened", "outcome"),
    [
        ([content("42", '"stop"')], False, "ok"),  # no [DONE]
        ([content("42"), b"data: [DONE]\n\n"], False, "ok"),  # no finish_reason
        ([content("why", '"stop"')], True, "no_answer"),  # thinking that never closed
        ([content("why</think>", '"stop"')], True, "no_answer"),
        ([content("why</think>42", '"length"')], True, "truncated"),
    ],
)
def test_ends(pieces, opened, outcome):
    assert read(exchange(*pieces), opened=opened).outcome == outcome


def test_what_the_transport_says_goes_before_an_unfinished_stream():
    x = exchange(content("42"))
    x.fail("stalled", "silence", "no text")
    got = read(x)
    assert (got.outcome, got.chunk_s) == ("stalled", (2.0,))


@pytest.mark.parametrize(
    ("outcome", "kind"), [("protocol_error", "too_large"), ("connection_error", "closed"), ("timeout", "total")]
)
def test_an_event_torn_by_the_end_of_the_connection_is_not_the_cause(outcome, kind):
    x = exchange(content("42"), content("43")[:30])
    x.fail(outcome, kind, "why")
    assert read(x).error.kind == kind
    x = exchange(b"data: nonsense\n\n", content("43")[:30])
    x.fail(outcome, kind, "why")
    assert read(x).error.kind == "bad_chunk", "it was wrong before"


def test_a_reset_after_the_end_does_not_undo_the_answer():
    x = exchange(content("42", '"stop"'), b"data: [DONE]\n\n")
    x.fail("connection_error", "reset", "reset")
    assert read(x, opened=False).outcome == "ok"


def test_without_usage_a_tokenizer_counts_else_chunks():
    x = exchange(content("4 2"), content(" 1", '"stop"'))
    assert (read(x).completion_tokens, read(x).token_count_source, read(x).chunk_tokens) == (2, "chunks", None)
    counted = read(x, count_tokens=lambda text: len(text.split()))
    assert (counted.completion_tokens, counted.token_count_source) == (3, "tokenizer")


def test_a_server_that_tells_is_checked_by_the_size_of_its_text_and_by_a_tokenizer():
    x = exchange(content("é 2"), content(" 1", '"stop"'), b'data: {"choices":[],"usage":{"completion_tokens":9}}\n\n')
    got = read(x, count_tokens=lambda text: len(text.split()))
    assert (got.completion_tokens, got.token_count_source, got.text_bytes, got.text_tokens) == (9, "server", 6, 3)
    assert read(x).text_tokens is None


@given(st.lists(st.sampled_from(["word", " ", "  ", "\n", "longer" * 900]), max_size=200))
def test_a_text_is_counted_in_parts_that_split_no_word(words):
    text, longest = "".join(words), []
    parts = reply._count_in_slices(text, lambda part: longest.append(len(part)) or len(part.split()), lambda: None)
    assert max(longest, default=0) <= 2000
    assert parts == len(text.split()) or max(map(len, text.split())) > 2000


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 3))
def test_tokens_are_conserved(steps, extra):
    counts = [sum(steps[: i + 1]) for i in range(len(steps))]
    got = read(exchange(*map(counted, [*counts, counts[-1] + extra])))
    assert got.chunk_tokens is not None
    assert len(got.chunk_tokens) == len(got.chunk_s) == len(counts) + 1
    assert sum(got.chunk_tokens) == got.completion_tokens == counts[-1] + extra
    assert min(got.chunk_tokens) >= 0


def test_tokens_after_the_last_text_go_to_it():
    final = b'data: {"choices":[],"usage":{"completion_tokens":6}}\n\n'
    assert read(exchange(counted(1), counted(2), counted(5), final)).chunk_tokens == (1, 1, 4)


@pytest.mark.parametrize("counts", [[1, None, 3], [3, 2]])
@pytest.mark.fault("servers", "Running totals that decrease: unknown")
def test_totals_that_are_missing_or_run_backwards_are_not_believed(counts):
    final = b'data: {"choices":[],"usage":{"completion_tokens":9}}\n\n'
    assert read(exchange(*map(counted, counts), final)).chunk_tokens is None


@pytest.mark.parametrize(
    "piece", [content("a"), b": ping\n\n" * 4096, b"\n" * 65536, b"data: x\n" * 8192, b"x" * 65536, b"\r"], ids=range(6)
)
@pytest.mark.fault("servers", "128 MiB of comments: no stream waits")
def test_it_pauses_after_so_many_bytes_whatever_comes(piece):
    """Else a server of comments alone would hold up every other stream for seconds."""
    x = exchange(*[piece] * (200_000 // len(piece)))
    since, longest = 0, 0

    def pause():
        nonlocal since, longest
        since, longest = 0, max(longest, since)

    def pieces():
        nonlocal since
        for at, part in slices(x, pause):
            since += len(part)
            yield at, part

    slices = reply._in_slices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reply, "_in_slices", lambda *_: pieces())
        read(x, pause=pause)
    assert longest <= 2 * reply.SLICE_BYTES


def test_a_server_that_gave_up_has_whatever_it_says_after_that():
    assert read(exchange(content("42", '"content_filter"'), content("", '"stop"'))).outcome == "server_error"


@pytest.mark.parametrize("told", ["-5", "1e30", "NaN", '"many"', "3.5", "1000000000000"])
@pytest.mark.fault("servers", "Token counts of -1, text, a billion: `protocol_error`")
def test_a_server_that_tells_an_impossible_number_of_tokens_is_named(told):
    event = b'data: {"choices":[{"delta":{"content":"4"}}],"usage":{"completion_tokens":%s}}\n\n' % told.encode()
    found = read(exchange(event))
    assert (found.outcome, found.error.kind) == ("protocol_error", "bad_chunk")


@pytest.mark.parametrize(("told", "believed"), [(40, True), (56, True), (57, False), (10**9, False)])
@pytest.mark.fault("servers", "More tokens than allowed: `impossible_usage`; chunks are counted instead")
def test_a_server_that_tells_of_more_tokens_than_were_asked_for_is_not_believed(told, believed):
    x = exchange(content("4"), counted(told), content("</think>2", '"stop"'))
    x.body = b'{"model": "m", "max_tokens": 40}'
    got = read(x)
    assert (got.outcome, got.completion_tokens, got.token_count_source) == (
        ("ok", told, "server") if believed else ("protocol_error", 3, "chunks")
    )
    assert believed or (got.error.kind, got.chunk_tokens) == ("impossible_usage", None)


@pytest.mark.fault("servers", "An event over 1 MiB: `protocol_error`, not decoded")
def test_an_event_too_large_for_a_token_is_not_decoded():
    got = read(exchange(content("4"), content("x" * sse.EVENT_LIMIT_BYTES)))
    assert (got.outcome, got.error.kind, got.chunk_s) == ("protocol_error", "too_large", (2.0,))
    assert len(got.error.message) < 300


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: x\n" * 8192])
def test_of_an_event_without_end_little_is_kept(piece):
    x = exchange(b"data: ", *[piece] * 100, b"\n\n", content("5"))
    assert next(len(payload) for _, payload in sse.events(zip(x.reads, x.pieces, strict=True))) < 1.1 * sse.EVENT_LIMIT_BYTES
    assert read(x).error.kind == "too_large"


def test_of_a_huge_refusal_the_start_is_shown():
    got = read(exchange(*[b"no " * 10_000] * 1000, status=503))
    assert got.error.message.startswith("HTTP 503: no no no")
    assert len(got.error.message) < 200


events = st.sampled_from(
    [content("4"), content("</think>"), content("x", '"stop"'), counted(3), counted(2), b"data: [DONE]\n\n"]
)


@given(st.lists(events | st.binary(max_size=30), max_size=12).map(b"".join), st.data(), st.sampled_from([200, 500, None]))
def test_any_bytes_mean_the_same_however_they_are_cut_and_never_raise(whole, data, status):
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8))), len(whole)]
    one, cut = read(exchange(whole, status=status)), read(exchange(*(whole[a:b] for a, b in pairwise(edges)), status=status))
    assert replace(cut, chunk_s=()) == replace(one, chunk_s=())
    assert len(cut.chunk_s) == len(one.chunk_s)


def test_a_tokenizer_that_is_not_there(tmp_path):
    assert reply.token_counter(None) is None
    with pytest.raises(UsageError, match="tokenizer.json"):
        reply.token_counter(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="expected a tokenizer|needs the tokenizers package"):
        reply.token_counter(str(tmp_path))


def test_chunks_that_one_read_found_are_spread_over_the_time_in_which_they_can_have_come():
    """Four chunks: one read alone at 101, the others together at 102, none of them before 101.4. Double speed."""
    x = exchange(content("a"), content("b") + content("c") + content("d", '"stop"'), b"data: [DONE]\n\n")
    x.earliest_s = {0: 100.99999, 1: 101.4, 2: 102.5}
    got = read(x, opened=False)
    assert got.chunk_s == pytest.approx((2.0, 3.2, 3.6, 4.0))
    assert got.late_chunks == ((1, 3, pytest.approx(2.8)),)  # the first is known within 0.01 ms, the end has no text


@pytest.mark.parametrize(
    ("second", "known"),
    [
        (content("") + content("b"), True),  # a role came with it, before it
        (content("b") + content("", '"stop"'), False),
        (content("b") + b": ping\n\n", False),
        (content("b") + content("c")[:-2], False),  # the rest of c came later
        ((content("") + content("b")).replace(b"\n\n", b"\r\n\r\n"), True),
    ],
)
def test_text_at_the_end_of_its_read_came_with_it(second, known):
    x = exchange(content("a"), second, b"\n\ndata: [DONE]\n\n")
    x.earliest_s = {1: 101.4}
    got = read(x, opened=False)
    assert got.late_chunks == (() if known else ((1, 1, pytest.approx(2.8)),))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=6))
def test_spread_chunks_keep_their_order_and_bounds(reads):
    x = exchange(*[content("x") * n + b": none\n\n" for n, _ in reads], b"data: [DONE]\n\n")
    x.earliest_s = {i: x.reads[i] - share for i, (_, share) in enumerate(reads)}
    got = read(x, opened=False)
    assert len(got.chunk_s) == sum(n for n, _ in reads)
    assert list(got.chunk_s) == sorted(got.chunk_s)
    for late in got.late_chunks:
        assert late.earliest_s <= got.chunk_s[late.first_chunk]
        assert got.chunk_s[late.first_chunk + late.chunks - 1] in {(at - 100.0) * 2 for at in x.reads}
