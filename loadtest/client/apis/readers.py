"""How the events of each endpoint are read: as chunks of a chat completion, so that all are timed and split alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loadtest.client import sse
from loadtest.client.apis import completions, messages, responses
from loadtest.records.schema import Api

ReadEvent = Callable[[bytes], sse.Chunk]

READERS: Mapping[Api, ReadEvent] = {
    "chat": sse.decode_chunk,
    "completions": completions.read_completion,
    "responses": responses.read_response_event,
    "messages": messages.read_message_event,
}
