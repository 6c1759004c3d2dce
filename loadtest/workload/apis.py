"""The endpoints that a server may be asked by, and the body of a request for each, made from that of a chat completion.

==============  ======================  ==========================================================================
chat            /v1/chat/completions    every parameter; tools and response formats here alone
completions     /v1/completions         the messages as one text, without a chat template, thinking not told apart
responses       /v1/responses           forced outputs need an engine that knows `ignore_eos`
messages        /v1/messages            Anthropic's: max_tokens, temperature, top_p, top_k; outputs cannot be forced
==============  ======================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loadtest.errors import UsageError
from loadtest.records.schema import Api, LengthMode
from loadtest.workload.prompts import Prompt

PATHS: Mapping[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
_OF_MESSAGES = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k", "cache_salt", "loadtest_sim")


def check_api(api: Api, mode: LengthMode, prompts: Iterable[Prompt]) -> None:
    """Raise `UsageError` where an endpoint has no way to force the length of an output, or is not asked for its form."""
    if api == "messages" and mode == "equal-work":
        raise UsageError("api: expected another than messages with forced outputs, as it has no way to force them")
    formed = next((prompt.id for prompt in prompts if prompt.tools or prompt.response_format), None)
    if api != "chat" and formed is not None:
        raise UsageError(f"api: expected chat for tools and response formats, as {formed!r} has, got {api}")


def body_for(api: Api, chat: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The body of the same request for an endpoint. `extra` is merged last, unchanged.

    >>> body_for("responses", {"model": "m", "messages": [], "max_tokens": 9, "min_tokens": 9}, {})
    {'model': 'm', 'input': [], 'max_output_tokens': 9, 'store': False}
    """
    if api == "chat":
        return chat | extra
    body = dict(chat)
    messages = body.pop("messages")
    if api == "completions":
        made: dict[str, Any] = body | {"prompt": "\n\n".join(message["content"] for message in messages)}
    elif api == "responses":
        limit = body.pop("max_tokens")
        kept = {key: value for key, value in body.items() if key not in ("min_tokens", "stream_options")}
        made = kept | {"input": messages, "max_output_tokens": limit, "store": False}
    else:
        made = {key: body[key] for key in _OF_MESSAGES if key in body} | _messages(messages)
    return made | extra


def _messages(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Messages of Anthropic's shape: what the system says has a place of its own."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    return {"messages": turns} | ({"system": system} if system else {})
