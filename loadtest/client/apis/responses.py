"""Events of `/v1/responses`: each has its type in its data; text comes as `delta`, tokens with the last event."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.client import sse
from loadtest.client.sse import Choice, Chunk, Count, Delta

_ANSWER = "response.output_text.delta"
_THINKING = frozenset({"response.reasoning_text.delta", "response.reasoning_summary_text.delta"})
_CUT = "max_output_tokens"


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = None


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    status: str = ""
    incomplete_details: _Incomplete | None = None
    error: Any = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: Any = None
    response: _Response | None = None
    error: Any = None
    message: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def read_response_event(payload: bytes) -> Chunk:
    """One event as a chunk of a chat completion; an empty one where it says nothing of text, tokens or the end.

    >>> read_response_event(b'{"type": "response.reasoning_text.delta", "delta": "hm"}').choices[0].delta.reasoning
    'hm'
    """
    event = _decode(payload)
    if event.type == _ANSWER:
        return Chunk(choices=[Choice(Delta(content=_text(event.delta)))])
    if event.type in _THINKING:
        return Chunk(choices=[Choice(Delta(reasoning=_text(event.delta)))])
    if event.type in ("response.completed", "response.incomplete") and event.response is not None:
        return Chunk(choices=[Choice(None, _reason(event.type, event.response))], usage=_usage(event.response.usage))
    if event.type == "response.failed":
        return Chunk(error=(event.response.error if event.response else None) or "the response failed without a word")
    if event.type == "error" or event.error:
        return Chunk(error=event.error or event.message or "an error event without a word", code=event.code)
    return Chunk()


def _text(delta: object) -> str:
    """Raises `msgspec.ValidationError`: no text."""
    return msgspec.convert(delta, str)


def _reason(kind: str, response: _Response) -> str:
    """vLLM ends what it cut at the limit as completed, with the status incomplete and without a reason."""
    if kind == "response.completed" and response.status != "incomplete":
        return "stop"
    reason = response.incomplete_details.reason if response.incomplete_details else None
    return "length" if reason in (None, _CUT) else reason


def _usage(told: _Usage | None) -> sse.Usage | None:
    if told is None:
        return None
    cached = told.input_tokens_details.cached_tokens if told.input_tokens_details else None
    thought = told.output_tokens_details.reasoning_tokens if told.output_tokens_details else None
    return sse.usage_of(told.input_tokens, told.output_tokens, cached, thought)
