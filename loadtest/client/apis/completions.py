"""Events of `/v1/completions`: text alone, as one field of a choice."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.client.sse import Choice, Chunk, Delta, Usage


class _Choice(msgspec.Struct, gc=False):
    text: str = ""
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None
    message: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def read_completion(payload: bytes) -> Chunk:
    """One event as a chunk of a chat completion.

    >>> read_completion(b'{"choices": [{"text": "so", "finish_reason": null}]}').choices[0].delta.content
    'so'
    """
    event = _decode(payload)
    choices = [Choice(Delta(content=one.text), one.finish_reason) for one in event.choices]
    return Chunk(choices=choices, usage=event.usage, error=event.error, message=event.message, code=event.code)
