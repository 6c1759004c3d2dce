"""The bytes of an answer of `/v1/completions`, `/v1/responses` and `/v1/messages`; shapes as seen from vLLM 0.32.0."""

from __future__ import annotations

from typing import Any

from loadtest.simulator.core.behaviour import Behaviour
from loadtest.simulator.core.chat import Chat
from loadtest.simulator.http.call_frames import CallFramer
from loadtest.simulator.http.frames import Framer, dumps, texts


def framer_of(chat: Chat, behaviour: Behaviour, request_id: str, created: int, interval: int) -> Framer:
    """What frames the answer to a request of any endpoint."""
    kinds: dict[str, type[Framer]] = {
        "completions": CompletionsFramer,
        "responses": ResponsesFramer,
        "messages": MessagesFramer,
    }
    calls = chat.formed is not None and chat.formed.tool is not None
    return kinds.get(chat.api, CallFramer if calls else Framer)(chat, behaviour, request_id, created, interval=interval)


def _event(value: dict[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + dumps(value) + b"\n\n"


class CompletionsFramer(Framer):
    """Text alone, thinking and answer in one."""

    __slots__ = ()

    def role(self) -> bytes:
        return b""

    def _chunk(self, n: int, thinks: bool, text: bytes) -> bytes:
        return self._choice(n, text, b"null")

    def _finish(self, n: int, thinks: bool) -> bytes:
        text, self._buffer = self._buffer, b""
        return self._choice(n, text, b'"' + self.chat.output.finish_reason.encode() + b'"')

    def _choice(self, n: int, text: bytes, reason: bytes) -> bytes:
        usage = self.usage(n) if self.chat.continuous_usage else b""
        return b'%b{"index":0,"text":"%b","logprobs":null,"finish_reason":%b}]%b}\n\n' % (self._head, text, reason, usage)

    def whole(self) -> bytes:
        _, answer = texts(self.chat)
        choice = {"index": 0, "text": answer, "finish_reason": self.chat.output.finish_reason}
        usage = self.usage(self.chat.output.output_tokens)
        return dumps({"id": self.request_id, "object": "text_completion", "choices": [choice]})[:-1] + usage + b"}"


class ResponsesFramer(Framer):
    """One event for each piece of text; its usage comes with the last one."""

    __slots__ = ()
    done = b""

    def role(self) -> bytes:
        return _event({"type": "response.created", "response": {"id": self.request_id, "usage": None}})

    def _chunk(self, n: int, thinks: bool, text: bytes) -> bytes:
        kind = b"response.reasoning_text.delta" if thinks and self.chat.separates else b"response.output_text.delta"
        return b'event: %b\ndata: {"delta":"%b","type":"%b"}\n\n' % (kind, text, kind)

    def _finish(self, n: int, thinks: bool) -> bytes:
        text, self._buffer = self._buffer, b""
        return self._chunk(n, thinks, text) if text else b""

    def end(self, n: int) -> bytes:
        return _event({"type": f"response.{self._status}", "response": self._response(n)})

    @property
    def _status(self) -> str:
        return "incomplete" if self.chat.output.finish_reason == "length" else "completed"

    def _response(self, n: int) -> dict[str, Any]:
        n *= self.usage_factor
        thought = min(n, self.chat.output.thinking_tokens) if self.chat.counts_thinking else 0
        return {
            "id": self.request_id,
            "object": "response",
            "status": self._status,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "usage": {
                "input_tokens": self.chat.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": n,
                "output_tokens_details": {"reasoning_tokens": thought},
                "total_tokens": self.chat.prompt_tokens + n,
            },
        }

    def whole(self) -> bytes:
        thinking, answer = texts(self.chat)
        output = [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": thinking}]}] if thinking else []
        output.append({"type": "message", "content": [{"type": "output_text", "text": answer}]})
        return dumps(self._response(self.chat.output.output_tokens) | {"output": output})


class MessagesFramer(Framer):
    """Blocks of thinking and of text, between the start of a message and its end."""

    __slots__ = ("_block",)
    done = b""

    def __init__(self, chat: Chat, behaviour: Behaviour, request_id: str, created: int, *, interval: int = 1) -> None:
        super().__init__(chat, behaviour, request_id, created, interval=interval)
        self._block = -1

    def role(self) -> bytes:
        message = {"id": self.request_id, "type": "message", "role": "assistant", "content": [], "usage": self._usage(0)}
        return _event({"type": "message_start", "message": message})

    def _chunk(self, n: int, thinks: bool, text: bytes) -> bytes:
        thinks = thinks and self.chat.separates
        block = 0 if thinks or not self.chat.output.thinking_tokens or not self.chat.separates else 1
        name = b"thinking" if thinks else b"text"
        delta = b'{"type":"content_block_delta","delta":{"type":"%b_delta","%b":"%b"},"index":%d}' % (
            name,
            name,
            text,
            block,
        )
        return self._begin(block, name.decode()) + b"event: content_block_delta\ndata: " + delta + b"\n\n"

    def _begin(self, block: int, kind: str) -> bytes:
        """The end of the block before, and the start of this one, where it is new."""
        if block == self._block:
            return b""
        stop = _event({"type": "content_block_stop", "index": self._block}) if self._block >= 0 else b""
        self._block = block
        return stop + _event({"type": "content_block_start", "content_block": {"type": kind, kind: ""}, "index": block})

    def _finish(self, n: int, thinks: bool) -> bytes:
        text, self._buffer = self._buffer, b""
        return self._chunk(n, thinks, text) if text else b""

    def end(self, n: int) -> bytes:
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        stop = _event({"type": "content_block_stop", "index": self._block}) if self._block >= 0 else b""
        last = _event({"type": "message_delta", "delta": delta, "usage": self._usage(n)})
        return stop + last + _event({"type": "message_stop"})

    @property
    def _reason(self) -> str:
        return "max_tokens" if self.chat.output.finish_reason == "length" else "end_turn"

    def _usage(self, n: int) -> dict[str, int]:
        """Anthropic's prompt is without what came from the cache."""
        fresh = self.chat.prompt_tokens - self.cached_tokens
        return {"input_tokens": fresh, "output_tokens": n * self.usage_factor, "cache_read_input_tokens": self.cached_tokens}

    def whole(self) -> bytes:
        thinking, answer = texts(self.chat)
        content = [{"type": "thinking", "thinking": thinking}] if thinking else []
        content.append({"type": "text", "text": answer})
        head = {"id": self.request_id, "type": "message", "role": "assistant", "content": content, "model": self.chat.model}
        return dumps(head | {"stop_reason": self._reason, "usage": self._usage(self.chat.output.output_tokens)})
