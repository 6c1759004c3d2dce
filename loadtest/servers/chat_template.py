"""How a model's chat template ends a prompt: with `<think>`, so that the output begins inside the thinking, or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.servers import probe

if TYPE_CHECKING:
    import httpx

_CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
_CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
_TIMEOUT_S = 60.0  # a cold engine may compile something for its first request


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Answer(msgspec.Struct):
    usage: _Usage


def thinking_prelude(base_url: str, model: str) -> str | None:
    """ "template" where the prompt ends with `<think>`, "none" where it does not; None where the server does not show it.

    The server counts the tokens of one short chat, and of the same chat written in ChatML with and without `<think>` at the
    end: three requests of one output token. None where the first count equals neither (another template), or where the
    server refuses a request.
    """
    base_url = probe.normalise_url(base_url)
    with probe.client(base_url, timeout_s=_TIMEOUT_S) as asking:
        chat = _prompt_tokens(asking, f"{base_url}/v1/chat/completions", {"model": model, "messages": _CHAT})
        plain, opened = (
            _prompt_tokens(asking, f"{base_url}/v1/completions", {"model": model, "prompt": text})
            for text in (_CHATML, f"{_CHATML}<think>\n")
        )
    if chat is None or plain == opened:
        return None
    return {plain: "none", opened: "template"}.get(chat)


def _prompt_tokens(asking: httpx.Client, url: str, body: Mapping[str, Any]) -> int | None:
    """Tokens of one prompt as the server counts them; None where it refuses or does not say."""
    import httpx

    try:
        reply = probe.fetch(asking, url, "POST", body={**body, "max_tokens": 1, "temperature": 0.6})
        return msgspec.json.decode(reply.content, type=_Answer).usage.prompt_tokens if reply.status == 200 else None
    except (httpx.HTTPError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
