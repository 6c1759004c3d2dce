"""The bytes of an answer, in each engine's own shape; what a token costs is one concatenation.

Shapes as seen from vLLM 0.32.0 (parser qwen3) and SGLang 0.5.23 (parser qwen3, cache report on).
"""

from __future__ import annotations

import json
from typing import Any

from loadtest.simulator.core import lengths
from loadtest.simulator.core.behaviour import Behaviour
from loadtest.simulator.core.chat import Chat, Refusal

FINGERPRINT = "simulated"
CLOSING_TAG = "</think>"


def _escaped(text: str) -> bytes:
    """A text as it stands inside a JSON string."""
    return json.dumps(text)[1:-1].encode()


_THINKING = tuple(map(_escaped, lengths.THINKING_WORDS))
_ANSWER = tuple(map(_escaped, lengths.ANSWER_WORDS))
DONE = b"data: [DONE]\n\n"


def chunked(body: bytes) -> bytes:
    """One chunk of HTTP's chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def dumps(value: object) -> bytes:
    """Compact JSON, as both engines send it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


class Framer:
    """The events of one stream. `token(n)` gives the bytes for token n (1 is the first), empty where it has no text yet."""

    __slots__ = (
        "_answer_open",
        "_answer_words",
        "_buffer",
        "_buffer_thinks",
        "_head",
        "_interval",
        "_pending",
        "_tail",
        "_thinking_open",
        "behaviour",
        "cached_tokens",
        "chat",
        "created",
        "request_id",
        "usage_factor",
    )
    done = DONE  # what ends the stream

    def __init__(self, chat: Chat, behaviour: Behaviour, request_id: str, created: int, *, interval: int = 1) -> None:
        self.chat, self.behaviour = chat, behaviour
        self.request_id, self.created = request_id, created
        self.cached_tokens = 0
        self.usage_factor = 1
        head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": chat.model}
        self._head = b"data: " + dumps(head)[:-1] + b',"choices":['
        vllm = behaviour.knows_its_models
        field = behaviour.thinking_field.encode()
        choice = self._head + b'{"index":0,"delta":{'
        self._answer_open = choice + (b'"content":"' if vllm else b'"reasoning_content":null,"content":"')
        self._thinking_open = choice + b'"' + field + b'":"' if chat.separates else self._answer_open
        self._tail = b'"},"logprobs":null,"finish_reason":null,' + (
            b'"token_ids":null}]' if vllm else b'"matched_stop":null}]'
        )
        self._answer_words = _ANSWER if chat.formed is None else tuple(map(_escaped, answer_words(chat)))
        self._interval = interval
        self._buffer = b""
        self._buffer_thinks = True
        self._pending = 0

    def role(self) -> bytes:
        """The first chunk: the role, and no text."""
        if not self.behaviour.knows_its_models:
            delta = b'{"index":0,"delta":{"reasoning_content":null,"role":"assistant","content":""},"logprobs":null,'
            return self._head + delta + b'"finish_reason":null,"matched_stop":null}]}\n\n'
        delta = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        usage = self.usage(0) if self.chat.continuous_usage else b""
        return self._head + delta + usage + b',"prompt_token_ids":null,"prompt_text":null}\n\n'

    def token(self, n: int, *, more: bool = False) -> bytes:
        """The event of token `n`; the last one includes the finish. `more` tokens of its step follow: its text waits."""
        output = self.chat.output
        if n < output.thinking_tokens or (n == output.thinking_tokens and not output.closes_thinking):
            thinks, text = True, _THINKING[n % len(_THINKING)]
        elif n == output.thinking_tokens:
            thinks, text = True, b"" if self.chat.separates else CLOSING_TAG.encode()
        else:
            words = self._answer_words
            ends = n == output.output_tokens and output.finish_reason == "stop"
            thinks, text = False, b"" if ends else words[(n - output.thinking_tokens - 1) % len(words)]
        last = n == output.output_tokens
        if last or more or self._interval > 1 or not self.chat.stream_thinking or self._buffer:
            return self._buffered(n, thinks, text, last, more)
        return self._chunk(n, thinks, text) if text else b""

    def _buffered(self, n: int, thinks: bool, text: bytes, last: bool, more: bool) -> bytes:
        """Text that waits: for the end of the step or interval, for the end of the thinking, or for the finish."""
        out = b""
        if self._buffer and thinks != self._buffer_thinks:
            out = self._chunk(n - 1, self._buffer_thinks, self._buffer)
            self._buffer, self._pending = b"", 0
        self._buffer += text
        self._buffer_thinks = thinks
        self._pending += 1
        if last:
            return out + self._finish(n, thinks)
        hold = thinks and self.chat.separates and not self.chat.stream_thinking
        if self._buffer and not hold and not more and (self._pending >= self._interval or n == 1):
            out += self._chunk(n, thinks, self._buffer)
            self._buffer, self._pending = b"", 0
        return out

    def _chunk(self, n: int, thinks: bool, text: bytes) -> bytes:
        opening = self._thinking_open if thinks else self._answer_open
        if self.chat.continuous_usage:
            return b"%b%b%b%b}\n\n" % (opening, text, self._tail, self.usage(n))
        return b"%b%b%b}\n\n" % (opening, text, self._tail)

    def _finish(self, n: int, thinks: bool) -> bytes:
        reason = self.chat.output.finish_reason.encode()
        text, self._buffer = self._buffer, b""
        if not self.behaviour.knows_its_models:
            out = self._chunk(n, thinks, text) if text else b""
            stop = b"null" if reason == b"length" else b"151645"
            tail = b'"},"logprobs":null,"finish_reason":"' + reason + b'","matched_stop":' + stop + b"}]}\n\n"
            return out + self._head + b'{"index":0,"delta":{"reasoning_content":null' + tail.replace(b'"},', b"},", 1)
        opening = self._thinking_open if thinks else self._answer_open
        tail = b'"},"logprobs":null,"finish_reason":"' + reason + b'","stop_reason":null,"token_ids":null}]'
        usage = self.usage(n) if self.chat.continuous_usage else b""
        mark = b"" if self.chat.include_usage else b',"system_fingerprint":"' + FINGERPRINT.encode() + b'"'
        return opening + text + tail + usage + mark + b"}\n\n"

    def end(self, n: int) -> bytes:
        """What follows the last token: the usage, where it was asked for."""
        if not self.chat.include_usage:
            return b""
        mark = b',"system_fingerprint":"' + FINGERPRINT.encode() + b'"' if self.behaviour.knows_its_models else b""
        return self._head + b"]" + self.usage(n) + mark + b"}\n\n"

    def usage(self, n: int) -> bytes:
        """The `usage` member after `n` tokens, comma first."""
        n *= self.usage_factor
        prompt = self.chat.prompt_tokens
        reasoning = min(n, self.chat.output.thinking_tokens) if self.chat.counts_thinking else 0
        if self.behaviour.knows_its_models:
            return (
                b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
                b'"completion_tokens_details":{"reasoning_tokens":%d}}'
            ) % (prompt, prompt + n, n, reasoning)
        return (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":'
            b'{"cached_tokens":%d},"reasoning_tokens":%d,"completion_tokens_details":{"reasoning_tokens":%d}}'
        ) % (prompt, prompt + n, n, self.cached_tokens, reasoning, reasoning)

    def whole(self) -> bytes:
        """The answer without streaming, as one JSON object."""
        return whole_chat(self)


def whole_chat(framer: Framer) -> bytes:
    """A chat completion without streaming."""
    chat, behaviour = framer.chat, framer.behaviour
    thinking, answer = texts(chat)
    output = chat.output
    usage = json.loads(framer.usage(output.output_tokens)[len(b',"usage":') :])
    head: dict[str, Any] = {
        "id": framer.request_id,
        "object": "chat.completion",
        "created": framer.created,
        "model": chat.model,
    }
    if chat.formed is not None and chat.formed.tool is not None:
        return dumps(head | {"choices": [_called(framer, chat.formed.tool, thinking, answer)], "usage": usage})
    if behaviour.knows_its_models:
        usage = {**usage, "prompt_tokens_details": None}
        message = {"role": "assistant", "content": answer or None, "refusal": None, "annotations": None, "audio": None}
        message |= {"function_call": None, "reasoning": thinking or None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": output.finish_reason}
        choice |= {"stop_reason": None, "token_ids": None, "routed_experts": None}
        head |= {"choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
        extra = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics")
        return dumps(head | dict.fromkeys(extra))
    message = {"role": "assistant", "content": answer, "reasoning_content": thinking or None}
    stop = None if output.finish_reason == "length" else 151645
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": output.finish_reason, "matched_stop": stop}
    versions = [{"version": "default", "start": 0, "end": output.output_tokens}]
    metadata = {"weight_version": "default", "weight_versions": versions}
    return dumps(head | {"choices": [choice], "usage": usage, "metadata": metadata})


def _called(framer: Framer, tool: str, thinking: str, arguments: str) -> dict[str, Any]:
    """The choice of an answer without streaming that calls a tool."""
    call = {"id": f"call-{framer.request_id}", "type": "function", "function": {"name": tool, "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    message[framer.behaviour.thinking_field] = thinking or None
    return {"index": 0, "message": message, "finish_reason": framer.chat.finish_reason(framer.behaviour)}


def texts(chat: Chat) -> tuple[str, str]:
    """Thinking and answer as whole texts; where they are not separated, all of it is answer."""
    output = chat.output
    n_thinking = output.thinking_tokens - output.closes_thinking
    thinking = "".join(lengths.thinking_word(n) for n in range(1, n_thinking + 1))
    answer = "".join(answer_words(chat))
    if chat.separates:
        return thinking, answer
    return "", thinking + (CLOSING_TAG if output.closes_thinking else "") + answer


def answer_words(chat: Chat) -> tuple[str, ...]:
    """The text of each token of the answer; the end of text has none."""
    output = chat.output
    n = output.output_tokens - output.thinking_tokens - (output.finish_reason == "stop" and not _ends_thinking(chat))
    return tuple(map(lengths.answer_word, range(n))) if chat.formed is None else chat.formed.words(n)


def _ends_thinking(chat: Chat) -> bool:
    return chat.output.thinking_tokens == chat.output.output_tokens


def refusal(error: Refusal, behaviour: Behaviour) -> dict[str, Any]:
    """The body of an error answer."""
    if behaviour.knows_its_models:
        return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.status}}
    return {"object": "error", "message": error.message, "type": error.kind, "param": None, "code": error.status}


def stream_error(error: Refusal, behaviour: Behaviour) -> bytes:
    """An error in place of a stream: HTTP 200, one event, and the end (so do both engines)."""
    body = refusal(error, behaviour)
    return b"data: " + dumps(body if "error" in body else {"error": body}) + b"\n\n"
