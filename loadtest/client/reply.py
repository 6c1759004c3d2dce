"""What a finished exchange means: chunks with their times, token counts, thinking and answer, and the outcome.

Runs after the stream has ended, in slices between which other streams are served (`pause`).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.client import sse
from loadtest.client.apis.readers import READERS, ReadEvent
from loadtest.client.apis.tool_calls import CallAssembler
from loadtest.client.exchange import TEXT
from loadtest.client.thinking import Split, split_fields, split_inline
from loadtest.clock import Clock
from loadtest.credentials import redacted
from loadtest.errors import UsageError
from loadtest.records.schema import Api, LateChunks, Outcome, RequestError, TokenCountSource, ToolCall

if TYPE_CHECKING:
    from loadtest.client.exchange import Exchange

RESOLVED_S = 1e-4  # wall: arrivals known better than that count as known
SLICE_BYTES = 30_000  # decoded at a time, about eighty tokens: 0.15 ms
_READ_BYTES = 100  # what a read counts beside its own, however few those are
END_CHARS = 4000
_KEY_CHARS = 1000  # a key longer than that could be cut before it is recognised
# Reasons with which an output ends as it should; with any other the server gave up (abort, content_filter, timeout, ...).
ENDS = frozenset(
    {"stop", "length", "tool_calls", "function_call", "repetition", "eos", "eos_token", "stop_sequence", "end_turn"}
)
SLACK_TOKENS = 16  # by which a server may pass the limit of a request (an end mark, a speculated batch)
_PART = re.compile(r"(?s:.{1,2000}(?:\Z|(?<=\S)(?=\s))|.{1,2000})")  # of a text: a tokenizer holds the loop for 0.5 ms
REFUSAL_LIMIT_BYTES = 65536  # what is looked at of a body that is no stream

CountTokens = Callable[[str], int]


def token_counter(path: str | None) -> CountTokens | None:
    """Counts the tokens of a text by a local tokenizer; None without one. Needs the `tokenizer` extra."""
    if path is None:
        return None
    found = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not found.is_file():
        raise UsageError(f"tokenizer: expected a tokenizer.json or a folder with one, found none at {path}")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("tokenizer: needs the tokenizers package; pip install tokenizers") from error
    try:
        encode = Tokenizer.from_file(str(found)).encode
    except Exception as error:  # the package raises nothing narrower
        raise UsageError(f"tokenizer: expected a tokenizer, got {found}: {error}") from error
    return lambda text: len(encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One response, decoded: the fields of `records.RequestRecord` that come off the wire, times in seconds of the run."""

    outcome: Outcome
    error: RequestError | None
    chunk_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] | None = None
    first_answer_chunk: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    token_count_source: TokenCountSource = "chunks"
    text_bytes: int | None = None
    text_tokens: int | None = None  # by the local tokenizer
    finish_reason: str | None = None
    answer: str | None = None
    thinking_field: str | None = None
    think_closed: bool | None = None
    late_chunks: tuple[LateChunks, ...] = ()
    thinking: str = ""  # not recorded; of use where a history keeps everything
    output_end: str | None = None  # the last characters of all text, thinking included
    tool_calls: tuple[ToolCall, ...] = ()


class _Stream:
    """What the events of one stream have said so far. Everything is summed as it comes, so that the end is short too."""

    __slots__ = (
        "_read", "calls", "chunk_s", "contents", "counted", "done", "events", "failed_event", "failure", "field",
        "finish_reason", "first_content", "thoughts", "tokens", "total", "usage",
    )  # fmt: skip

    def __init__(self, read: ReadEvent) -> None:
        self._read = read
        self.calls: CallAssembler | None = None
        self.chunk_s: list[float] = []
        self.contents: list[str] = []
        self.thoughts: list[str] = []
        self.first_content: int | None = None  # index of the first chunk whose content is not blank
        self.field: str | None = None
        self.tokens: list[int] = []  # of each text chunk, from the running totals told with them
        self.total = 0
        self.counted = True  # false: a text chunk came without a running total
        self.usage: sse.Usage | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.failure: tuple[Outcome, RequestError] | None = None
        self.failed_event = 0
        self.events = 0

    def take(self, at_s: float, payload: bytes) -> None:
        self.events += 1
        if self.done or self.failure:
            return
        if payload.startswith(b"[DONE]"):
            self.done = True
            return
        if len(payload) > sse.EVENT_LIMIT_BYTES:
            size = f"expected at most {sse.EVENT_LIMIT_BYTES} bytes in one event, got more"
            self._fail("protocol_error", "too_large", f"{size}: {sse.excerpt(payload)}")
            return
        try:
            chunk = self._read(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail("protocol_error", "bad_chunk", f"not a chunk of a chat completion: {error}: {sse.excerpt(payload)}")
            return
        if chunk.usage is not None:
            if chunk.usage.prompt_tokens is None and self.usage is not None:  # told at the start alone
                chunk.usage.prompt_tokens = self.usage.prompt_tokens
            self.usage = chunk.usage
        if chunk.is_error:
            message, code = sse.error_text(chunk)
            self._fail("server_error", "error_in_stream", message, code)
        elif chunk.choices:
            self._choice(at_s, chunk.choices[0], chunk.usage)

    def _choice(self, at_s: float, choice: sse.Choice, usage: sse.Usage | None) -> None:
        if choice.finish_reason and (self.finish_reason is None or self.finish_reason in ENDS):
            self.finish_reason = choice.finish_reason  # a server that gave up has, whatever it says after that
        delta = choice.delta
        if delta is None:
            return
        thought = delta.reasoning or delta.reasoning_content or ""
        content = delta.content or ""
        called = delta.tool_calls is not None and self._call(delta.tool_calls)
        if thought:
            if self.field is None:
                self.field = "reasoning" if delta.reasoning else "reasoning_content"
            self.thoughts.append(thought)
        elif not content and not called:
            return
        if self.first_content is None and content and not content.isspace():
            self.first_content = len(self.contents)
        self.chunk_s.append(at_s)
        self.contents.append(content)
        total = usage.completion_tokens if usage is not None else None
        if total is None or total < self.total:
            self.counted = False
        else:
            self.tokens.append(total - self.total)
            self.total = total

    def _call(self, pieces: list[sse.CallPiece]) -> bool:
        """Add pieces of calls that come with the next chunk; whether they are any output."""
        calls = self.calls or CallAssembler()
        if said := calls.take(len(self.contents), pieces):
            self.calls = calls
        return said

    def tokens_by_chunk(self, total: int) -> tuple[int, ...] | None:
        """Tokens of each text chunk, adding up to `total`; None where a chunk came without a running total.

        Tokens that came with no text (the closing tag, half a character, the end mark) go to the next chunk with text,
        or to the last one.
        """
        if not self.counted or total < self.total:
            return None
        if self.tokens:
            self.tokens[-1] += total - self.total
            self.total = total
        return tuple(self.tokens)

    def end(self) -> str:
        """The last 4,000 characters of the text: loops show there, and mostly in thinking that never ends."""
        last = slice(-END_CHARS - _KEY_CHARS, None)  # a piece has at least one character
        return redacted("".join([*self.thoughts[last], *self.contents[last]])[last])[-END_CHARS:]

    @property
    def is_torn(self) -> bool:
        """Whether only the last event is damaged: the connection may have ended in the middle of it."""
        return self.failure is not None and self.failure[1].kind == "bad_chunk" and self.failed_event == self.events

    def hold_to(self, limit_tokens: int | None) -> None:
        """Ignore the server's token count if it exceeds the limit of the request."""
        told = self.usage.completion_tokens if self.usage is not None else None
        if told is None or limit_tokens is None or told <= limit_tokens + SLACK_TOKENS:
            return
        self.usage, self.counted = None, False
        if self.failure is None:
            message = f"the server reports {told} completion tokens, expected at most {limit_tokens}"
            self._fail("protocol_error", "impossible_usage", message)

    def _fail(self, outcome: Outcome, kind: str, message: str, status: int | None = None) -> None:
        self.failed_event = self.events
        self.failure = (outcome, RequestError(kind=kind, message=message, http_status=status))


def read_reply(
    exchange: Exchange,
    clock: Clock,
    *,
    opened: bool,
    forced_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
    pause: Callable[[], None] = lambda: None,
    api: Api = "chat",
) -> Reply:
    """Decode a finished exchange with the endpoint `api`.

    `opened`: the prompt ended in `<think>`; `forced_tokens`: equal-work, where ending by length is the plan;
    `count_tokens`: a local tokenizer, for servers that never tell, and to check those that do. `pause` is called between
    slices.
    """
    if exchange.status is not None and exchange.status != 200:
        return _refused(exchange)
    stream = _Stream(READERS[api])
    origin, speed = clock.origin_monotonic_s, clock.speed
    take = stream.take
    for at, payload in sse.events(_in_slices(exchange, pause)):
        take(round((at - origin) * speed, 7), payload)
    pause()
    late_chunks = _placed(stream.chunk_s, exchange, clock)
    asked = _Asked() if not exchange.body else msgspec.json.decode(exchange.body, type=_Asked)
    stream.hold_to(asked.limit_tokens)
    split = _split(stream, opened=opened and not asked.is_held)
    pause()
    outcome, error = _outcome(exchange, stream, split, forced_tokens)
    text = "".join(stream.thoughts) + "".join(stream.contents)
    calls = () if stream.calls is None else stream.calls.end()
    text += "".join(call.name + call.arguments for call in calls)
    counted = None if count_tokens is None else _count_in_slices(text, count_tokens, pause)
    reply = Reply(outcome=outcome, error=error, late_chunks=late_chunks, tool_calls=calls)
    return _counted(stream, split, text, counted, reply)


def _in_slices(exchange: Exchange, pause: Callable[[], None]) -> Iterator[tuple[float, bytes]]:
    """The reads, a large one in parts, with `pause` after so many bytes: also where no event is among them.

    None came before the request left, nor before the read before it: a wall clock that was set in between would say so.
    """
    since_bytes, last = 0, -math.inf if exchange.sent is None else exchange.sent
    for index, (at, piece) in enumerate(zip(exchange.reads, exchange.pieces, strict=True)):
        if at < last:
            at = exchange.reads[index] = last
        last = at
        whole = len(piece) <= SLICE_BYTES
        for part in (piece,) if whole else (piece[i : i + SLICE_BYTES] for i in range(0, len(piece), SLICE_BYTES)):
            yield at, part
            since_bytes += len(part) + _READ_BYTES
            if since_bytes >= SLICE_BYTES:
                since_bytes = 0
                pause()


def _placed(chunk_s: list[float], exchange: Exchange, clock: Clock) -> tuple[LateChunks, ...]:
    """Spread the chunks of each read that may have found several of them evenly over the time in which they can have come;
    what was spread. `chunk_s` is changed in place. One chunk of text at the end of its read came with it."""
    late = []
    for read, earliest in exchange.earliest_s.items():
        last = exchange.reads[read]
        if last - earliest < RESOLVED_S:
            continue
        last_s, earliest_s = (round(clock.offset_s(at), 7) for at in (last, earliest))
        start, end = bisect_left(chunk_s, last_s), bisect_right(chunk_s, last_s)
        if (n := end - start) > 1 or (n and not _ends_in_text(exchange.pieces[read])):
            chunk_s[start:end] = [round(last_s - (last_s - earliest_s) * (n - 1 - i) / n, 7) for i in range(n)]
            late.append(LateChunks(start, n, earliest_s))
    return tuple(late)


def _ends_in_text(piece: bytes) -> bool:
    """Whether the last event of a read is text and whole, so that the stamp of the read is its own."""
    if not piece.endswith((b"\n\n", b"\r\n\r\n")):
        return False
    last_line = piece.rstrip(b"\r\n").rpartition(b"\n")[2]
    return last_line.startswith(b"data:") and TEXT.search(last_line) is not None


class _Asked(msgspec.Struct):
    """What a body says. With a response format, a server that does not split lets no thinking through: a grammar holds all
    of the output."""

    max_tokens: Any = None  # what an extra body says, too
    max_output_tokens: Any = None  # of `/v1/responses`
    response_format: Any = None

    @property
    def is_held(self) -> bool:
        """Does a grammar hold the output?"""
        return isinstance(self.response_format, dict) and str(self.response_format.get("type")).startswith("json")

    @property
    def limit_tokens(self) -> int | None:
        """The output limit that a request asked for; None where it asked for none."""
        limit = self.max_tokens if self.max_output_tokens is None else self.max_output_tokens
        return limit if isinstance(limit, int) else None


def _refused(exchange: Exchange) -> Reply:
    message, _ = sse.error_text(_start(exchange.pieces))
    text = f"HTTP {exchange.status}: {message}"
    return Reply(
        outcome="http_error", error=RequestError(kind=f"http_{exchange.status}", message=text, http_status=exchange.status)
    )


def _start(pieces: Sequence[bytes]) -> bytes:
    body = b""
    for piece in pieces:
        if len(body) >= REFUSAL_LIMIT_BYTES:
            break
        body += piece[: REFUSAL_LIMIT_BYTES - len(body)]
    return body


def _split(stream: _Stream, *, opened: bool) -> Split:
    """Thinking and answer told apart. A call is answer: the thinking before it is over when it begins."""
    split = _split_text(stream, opened=opened)
    if stream.calls is None:
        return split
    first, text = stream.calls.first_chunk, split.first_answer_chunk
    return replace(split, first_answer_chunk=first if text is None else min(first, text))


def _split_text(stream: _Stream, *, opened: bool) -> Split:
    if stream.field is not None:
        blank = len(stream.contents) if stream.first_content is None else stream.first_content
        return split_fields(stream.contents, stream.field, blank)
    return split_inline(stream.contents, opened=opened)


def _outcome(
    exchange: Exchange, stream: _Stream, split: Split, forced_tokens: int | None
) -> tuple[Outcome, RequestError | None]:
    if stream.failure is not None and exchange.outcome != "cut_off" and not (exchange.outcome and stream.is_torn):
        return stream.failure
    complete = stream.finish_reason is not None or stream.done
    if exchange.outcome is not None and not (complete and exchange.outcome == "connection_error"):
        return exchange.outcome, exchange.error
    if not stream.events:
        body = sse.excerpt(_start(exchange.pieces))
        message = f"expected an event stream, got {exchange.content_type or 'no content type'}: {body}"
        return "protocol_error", RequestError(kind="not_a_stream", message=message, http_status=exchange.status)
    if not complete:
        message = f"the stream ended after {len(stream.chunk_s)} chunks of text without finish_reason or [DONE]"
        return "protocol_error", RequestError(kind="unfinished", message=message, http_status=exchange.status)
    return _finished(stream, split, forced_tokens)


def _finished(stream: _Stream, split: Split, forced_tokens: int | None) -> tuple[Outcome, RequestError | None]:
    reason = stream.finish_reason
    if reason is not None and reason not in ENDS:
        return "server_error", RequestError(kind="finish_reason", message=f"the server gave up: finish_reason {reason}")
    if reason == "length" and forced_tokens is None:
        return "truncated", None
    if reason == "length" or split.answer or stream.calls is not None:
        return "ok", None
    return "no_answer", None


def _count_in_slices(text: str, count_tokens: CountTokens, pause: Callable[[], None]) -> int:
    """Tokens of a text, counted in parts that end before a space, where no token spans the cut."""
    tokens = 0
    for part in _PART.findall(text):
        tokens += count_tokens(part)
        pause()
    return tokens


def _counted(stream: _Stream, split: Split, text: str, text_tokens: int | None, reply: Reply) -> Reply:
    """Add what was counted: by the server where it tells, else by a tokenizer, else by chunks."""
    usage = stream.usage
    total = usage.completion_tokens if usage is not None else None
    source: TokenCountSource = "server"
    if total is None:
        source = "chunks" if text_tokens is None else "tokenizer"
        total = len(stream.chunk_s) if text_tokens is None else text_tokens
    tokens = stream.tokens_by_chunk(total) if source == "server" else None
    return replace(
        reply,
        chunk_s=tuple(stream.chunk_s),
        chunk_tokens=tokens,
        first_answer_chunk=split.first_answer_chunk,
        prompt_tokens=usage.prompt_tokens if usage is not None else None,
        completion_tokens=total,
        reasoning_tokens=_thinking_tokens(usage, split, tokens),
        cached_tokens=usage.cached_tokens if usage is not None else None,
        token_count_source=source,
        text_bytes=len(text.encode("utf-8", "surrogatepass")),
        text_tokens=text_tokens,
        finish_reason=stream.finish_reason,
        answer=split.answer or None,
        thinking_field=split.field,
        think_closed=split.closed,
        output_end=stream.end() or None,
        thinking="".join(stream.thoughts) or split.thinking,
    )


def _thinking_tokens(usage: sse.Usage | None, split: Split, tokens: tuple[int, ...] | None) -> int | None:
    """The server's count; by chunks if it reports 0 or nothing although thinking came (some parsers do)."""
    told = usage.thinking_tokens if usage is not None else None
    if told or split.field is None:
        return told
    if tokens is None:
        return None
    return sum(tokens if split.first_answer_chunk is None else tokens[: split.first_answer_chunk])
