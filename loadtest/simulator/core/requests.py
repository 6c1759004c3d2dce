"""Requests to the other endpoints, read as those to chat completions; which endpoint a path is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Body = dict[str, Any]


def _of_completions(data: Body) -> Body:
    prompt = data.get("prompt")
    return data | {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else None}


def _of_responses(data: Body) -> Body:
    asked = data.get("input")
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if isinstance(messages, list) and isinstance(data.get("instructions"), str):
        messages = [{"role": "system", "content": data["instructions"]}, *messages]
    return data | {"messages": messages, "max_tokens": data.get("max_output_tokens")}


def _of_messages(data: Body) -> Body:
    messages, system = data.get("messages"), data.get("system")
    if isinstance(messages, list) and system is not None:
        return data | {"messages": [{"role": "system", "content": system}, *messages]}
    return data


READERS: Mapping[str, Callable[[Body], Body]] = {
    "chat": lambda data: data,
    "completions": _of_completions,
    "responses": _of_responses,
    "messages": _of_messages,
}
PATHS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
