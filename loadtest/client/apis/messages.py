"""Events of Anthropic's `/v1/messages`: blocks of thinking and of text; tokens at the start and with the end."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.client import sse
from loadtest.client.sse import Choice, Chunk, Count, Delta

_REASONS = {"max_tokens": "length", "tool_use": "tool_calls"}  # the others are called as they are


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class _Message(msgspec.Struct, gc=False):
    usage: _Usage | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: _Delta | None = None
    usage: _Usage | None = None
    message: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def read_message_event(payload: bytes) -> Chunk:
    """One event as a chunk of a chat completion; an empty one where it says nothing of text, tokens or the end.

    >>> read_message_event(b'{"type": "content_block_delta", "delta": {"thinking": "hm"}}').choices[0].delta.reasoning
    'hm'
    """
    event = _decode(payload)
    if event.type == "error" or event.error:
        return Chunk(error=event.error or "an error event without a word")
    if event.type == "content_block_delta" and event.delta is not None:
        return Chunk(choices=[Choice(Delta(content=event.delta.text, reasoning=event.delta.thinking))])
    if event.type == "message_start":
        return Chunk(usage=_usage(msgspec.convert(event.message, _Message).usage))
    if event.type == "message_delta":
        reason = event.delta.stop_reason if event.delta is not None else None
        return Chunk(choices=[Choice(None, _REASONS.get(reason, reason) if reason else None)], usage=_usage(event.usage))
    return Chunk()


def _usage(told: _Usage | None) -> sse.Usage | None:
    """The prompt is what was read anew, what came from the cache, and what was written to it."""
    if told is None:
        return None
    parts = (told.input_tokens, told.cache_read_input_tokens, told.cache_creation_input_tokens)
    prompt = None if told.input_tokens is None else sum(part or 0 for part in parts)
    return sse.usage_of(prompt, told.output_tokens, told.cache_read_input_tokens, None)
