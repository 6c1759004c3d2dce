"""Does a server keep requests apart by their `cache_salt`? Older ones refuse or ignore it; so may a proxy before them."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from loadtest.records.engine_facts import Salting
from loadtest.servers import probe

_WORDS = 150  # of a prompt that nobody has asked before: several blocks of a prefix cache
_IGNORED_SHARE = 0.5  # of a prompt found in the cache behind another salt
_TIMEOUT_S = 120.0


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


def salting_of(base_url: str, model: str, timeout_s: float = _TIMEOUT_S) -> Salting:
    """Ask one new prompt behind two salts, a token of output each. `refused`: the server answers with an error; `ignored`:
    the second found the first's prompt in the cache; `unknown`: it does not say what it found, or does not answer.

    SGLang says nothing where it found nothing: then the second is asked again, which finds its own prompt.
    """
    import httpx

    text = " ".join(secrets.token_hex(2) for _ in range(_WORDS))
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    url = f"{probe.normalise_url(base_url)}/v1/chat/completions"
    found: list[float | None] = []
    try:
        with probe.client(base_url, timeout_s=timeout_s) as asking:
            for salt in ("a", "b", "b"):
                reply = probe.fetch(asking, url, "POST", body={**body, "cache_salt": salt})
                if 400 <= reply.status < 500:
                    return "refused"
                found.append(_cached_share(reply.content))
                if len(found) == 2 and found[1] is not None:
                    break
    except httpx.HTTPError:
        return "unknown"
    if all(one is None for one in found[1:]):
        return "unknown"
    return "ignored" if (found[1] or 0.0) > _IGNORED_SHARE else "kept"


def _cached_share(content: bytes) -> float | None:
    """Share of the prompt that was found in the cache; None where the server does not say."""
    try:
        usage: Any = msgspec.json.decode(content, type=_Answer).usage
    except msgspec.DecodeError:
        return None
    if usage is None or usage.prompt_tokens_details is None or usage.prompt_tokens_details.cached_tokens is None:
        return None
    return float(usage.prompt_tokens_details.cached_tokens / max(1, usage.prompt_tokens))
