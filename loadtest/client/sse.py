"""Server-sent events out of raw reads, and the typed shape of the chunks in them.

Works on bytes, so a character split over two reads needs no care. An event's time is that of the read which completed
its last `data` line: before that nobody could know what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec

from loadtest.credentials import redacted

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_CODE = re.compile("[0-9]{1,9}")
_MESSAGE_CHARS = 500
EVENT_LIMIT_BYTES = 2**20  # a token's event has some hundred; one that is larger would hold up every other stream


def events(reads: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The `data` of each event with its time, from reads in order of arrival, as (time, bytes).

    Lines end in LF, CRLF or CR, also when split over reads; `data:` may lack its space; several data lines of one event
    are joined by LF; comments and other fields are passed over, but the data of `event: error` becomes the `error` of an
    object. A last event without its blank line counts. An event over `EVENT_LIMIT_BYTES`
    is cut off beyond that.

    >>> list(events([(1.0, b"data: a"), (2.0, b"\\n\\n: ping\\n\\ndata:b\\r\\n\\r\\n")]))
    [(2.0, b'a'), (2.0, b'b')]
    """
    slow = _Lines()
    general = True
    for time_s, piece in reads:
        whole = piece.startswith(b"data: ") and piece.endswith(b"\n\n") and b"\r" not in piece
        if whole and not general and piece.find(b"\n") == len(piece) - 2:
            yield time_s, piece[6:-2]  # one whole event in one read, as most are
        else:
            yield from slow.feed(time_s, piece)
            general = not slow.empty
    yield from slow.end()


class _Lines:
    """The general case: lines over any number of reads."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of an unfinished line: joined once, however many reads it takes
        self._skip_lf = False  # the last read ended in CR: a LF at the start of the next one belongs to it
        self._first = True
        self._data: list[bytes] = []
        self._rest_bytes = self._data_bytes = 0  # that came; of what is too large only so much is kept as shows that it is
        self._is_error = False  # `event: error` was said of the event that has begun
        self._time_s = 0.0
        self._seen_s = 0.0

    @property
    def empty(self) -> bool:
        return not (self._rest or self._data or self._skip_lf or self._first or self._is_error)

    def feed(self, time_s: float, piece: bytes) -> Iterator[tuple[float, bytes]]:
        self._seen_s = time_s
        if self._skip_lf:
            piece = piece.removeprefix(b"\n")
        self._skip_lf = piece.endswith(b"\r")
        lines = _LINE_END.split(piece)
        tail = lines.pop()
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            if self._first:
                lines[0] = lines[0].removeprefix(_BOM)
                self._first = False
            self._rest.clear()
            self._rest_bytes = 0
        if tail and self._rest_bytes <= EVENT_LIMIT_BYTES + len(b"data: "):
            self._rest.append(tail)
            self._rest_bytes += len(tail)
        for line in lines:
            yield from self._line(time_s, line)

    def _line(self, time_s: float, line: bytes) -> Iterator[tuple[float, bytes]]:
        if line.startswith(b"data:"):
            if self._data_bytes <= EVENT_LIMIT_BYTES + 1:
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(self._data[-1]) + 1
            self._time_s = time_s
        elif line.startswith(b"event:"):
            self._is_error = line[6:].strip() == b"error"
        elif not line:
            if self._data:
                data = b"\n".join(self._data)
                yield self._time_s, _as_error(data) if self._is_error else data
            self._data.clear()
            self._data_bytes = 0
            self._is_error = False

    def end(self) -> Iterator[tuple[float, bytes]]:
        if self._rest:
            yield from self._line(self._seen_s, b"".join(self._rest))
        yield from self._line(self._time_s, b"")


def _as_error(data: bytes) -> bytes:
    """The data of an error event as a chunk that says so, whatever its shape.

    >>> _as_error(b"overloaded"), _as_error(b'{"error":{"code":503}}')
    (b'{"error":"overloaded"}', b'{"error":{"code":503}}')
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = excerpt(data, _MESSAGE_CHARS)
    if isinstance(value, dict) and value.get("error"):
        return data
    return msgspec.json.encode({"error": value or "an error event without a word"})


class FunctionPiece(msgspec.Struct, gc=False):
    """Part of a call: the name with its first piece, the arguments (JSON) bit by bit."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallPiece(msgspec.Struct, gc=False):
    """What one chunk adds to a call of a tool."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Delta(msgspec.Struct, gc=False):
    """Text of one chunk; thinking comes as `reasoning` (vLLM), `reasoning_content` (SGLang), or inline in `content`; calls
    of tools as `tool_calls`."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk; more than one is never asked for."""

    delta: Delta | None = None
    finish_reason: str | None = None


Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]  # a chunk that tells another number of tokens is a protocol error


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts as the server tells them; SGLang puts `reasoning_tokens` at top level, vLLM into the details."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def thinking_tokens(self) -> int | None:
        if self.completion_tokens_details is not None and self.completion_tokens_details.reasoning_tokens is not None:
            return self.completion_tokens_details.reasoning_tokens
        return self.reasoning_tokens

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details is not None else None


def usage_of(prompt: int | None, completion: int | None, cached: int | None, thinking: int | None) -> Usage:
    """Token counts that a server tells under other names."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        reasoning_tokens=thinking,
        prompt_tokens_details=None if cached is None else _PromptDetails(cached),
    )


class Chunk(msgspec.Struct, gc=False):
    """One event of a streamed chat completion, or the error in its place: as `error`, or flat as SGLang has it."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    message: Any = None
    code: Any = None

    @property
    def is_error(self) -> bool:
        return bool(self.error) or (self.message is not None and not self.choices)


decode_chunk = msgspec.json.Decoder(Chunk).decode


def error_text(content: bytes | Chunk) -> tuple[str, int | None]:
    """Message and code of an error body in any of the shapes that servers use; else the start of what came.

    >>> error_text(b'{"object":"error","message":"too long","code":400}')
    ('too long', 400)
    >>> error_text(b'{"error":{"message":"busy","code":"503"}}')
    ('busy', 503)
    >>> error_text(b'{"error":"Unauthorized"}')
    ('Unauthorized', None)
    """
    if isinstance(content, bytes):
        try:
            chunk = decode_chunk(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return excerpt(content), None
        if not chunk.is_error:
            return excerpt(content), None
    else:
        chunk = content
    error = chunk.error or {"message": chunk.message, "code": chunk.code}
    if isinstance(error, dict):
        code = error.get("code", chunk.code)
        return _line(error.get("message") or error), _whole(code)
    return _line(error), _whole(chunk.code)


def excerpt(content: bytes, limit: int = 160) -> str:
    """The start of some bytes as one printable line."""
    text = redacted(content[: limit * 4].decode("utf-8", "replace"))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:limit] + ("…" if len(line) > limit else "") if line else "nothing"


def _line(said: object) -> str:
    """What a server said, as one line of at most 500 characters, without the key."""
    return " ".join(redacted(str(said)).split())[:_MESSAGE_CHARS]


def _whole(code: object) -> int | None:
    """
    >>> _whole("503"), _whole(400), _whole("²"), _whole("9" * 5000), _whole(True)
    (503, 400, None, None, None)
    """
    if isinstance(code, str) and _CODE.fullmatch(code):
        return int(code)
    return code if type(code) is int and abs(code) < 10**9 else None
