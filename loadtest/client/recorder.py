"""Makes records of requests: encodes them in slices, and writes them off the reading loop."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from loadtest.client.exchange import Exchange
from loadtest.errors import RecordError
from loadtest.records.schema import RequestRecord
from loadtest.records.write import JsonlWriter

SLICE_TIMES = 1024  # encoded, or freed, at a time: about 0.05 ms


def attempt(writer: JsonlWriter, value: object) -> RecordError | None:
    """Write a value; the error where that fails, handed back and not raised: gevent prints what a thread raises before it
    hands it on, and where standard error is on the same full disk, it never does."""
    try:
        writer.write(value)
    except RecordError as error:
        return error
    return None


def encoded(record: RequestRecord, pause: Callable[[], None]) -> msgspec.Raw:
    """A record as JSON; its times, of which there may be 100,000, are encoded in slices with `pause` between them."""
    if len(record.chunk_s) <= SLICE_TIMES:
        return msgspec.Raw(msgspec.json.encode(record))
    slices = []
    for start in range(0, len(record.chunk_s), SLICE_TIMES):
        slices.append(msgspec.json.encode(record.chunk_s[start : start + SLICE_TIMES])[1:-1])
        pause()
    times = msgspec.Raw(b"[" + b",".join(slices) + b"]")
    values = {name: getattr(record, name) for name in RequestRecord.__dataclass_fields__}
    return msgspec.Raw(msgspec.json.encode(values | {"chunk_s": times}))


def forget(exchange: Exchange, pause: Callable[[], None]) -> None:
    """Let go of what came, in slices: to free tens of thousands of objects takes a millisecond."""
    while exchange.pieces:
        del exchange.pieces[-SLICE_TIMES:], exchange.reads[-SLICE_TIMES:]
        pause()


def cut(text: str | None, limit_bytes: int) -> str | None:
    """The start of a text, in at most so many bytes of UTF-8, no character broken.

    >>> cut("añb", 2)
    'a'
    """
    if text is None or len(text) * 4 <= limit_bytes:
        return text
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")
