"""Tokens of a prompt by the server's own count: one short request each, before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.errors import EngineError
from loadtest.records.engine_facts import PromptLengths
from loadtest.records.schema import Api
from loadtest.servers import probe
from loadtest.workload.apis import PATHS
from loadtest.workload.contract import Contract
from loadtest.workload.exact import fit_spec
from loadtest.workload.prompts import Prompt
from loadtest.workload.synthetic import vocabulary_of
from loadtest.workload.workload import load

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 300.0  # a prompt of 100,000 tokens on a slow machine


class _Usage(msgspec.Struct):
    """`input_tokens`: of the endpoints that call it so; Anthropic's leaves out what came from the cache."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def all_tokens(self) -> int:
        """Raises `ValueError`: none are told."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        if self.input_tokens is None:
            raise ValueError("no count of the prompt")
        return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)


class _Counted(msgspec.Struct):
    usage: _Usage


def fit_to_server(
    spec: str, contract: Contract, *, base_url: str, model: str, engine: str, api: Api = "chat"
) -> PromptLengths:
    """`exact.fit_spec`, asked of a server. Raises `EngineError`: it does not answer, or its reply has no usage."""
    url = f"{base_url}{PATHS[api]}"
    with probe.client(base_url, timeout_s=_TIMEOUT_S) as asking:
        made, fitted = fit_spec(spec, lambda text: _count(asking, url, _body(text, contract, model, engine, api)))
    return PromptLengths(
        workload=made,
        identity=load(made).identity,
        template_tokens=fitted.template_tokens,
        words=len(vocabulary_of(fitted.letters)),
        requests=fitted.requests,
    )


def _body(text: str, contract: Contract, model: str, engine: str, api: Api) -> dict[str, Any]:
    """What the measured request would be, but whole and of one token."""
    prompt = Prompt(id="count", messages=({"role": "user", "content": text},))
    short = replace(contract, mode="natural", max_tokens=1)
    body = short.body(prompt, model, engine=engine, api=api) | {"stream": False}
    return {key: value for key, value in body.items() if key != "stream_options"}


def _count(asking: httpx.Client, url: str, body: dict[str, Any]) -> int:
    import httpx

    try:
        reply = probe.fetch(asking, url, "POST", body=body)
    except httpx.HTTPError as error:
        raise EngineError(f"{url}: cannot count the tokens of a prompt: {type(error).__name__}: {error}") from None
    try:
        return msgspec.json.decode(reply.content, type=_Counted).usage.all_tokens
    except (msgspec.MsgspecError, ValueError, RecursionError):
        said = reply.content[:200].decode("utf-8", "replace")
        raise EngineError(
            f"{url}: expected a reply with usage.prompt_tokens, to make prompts of exact lengths, got HTTP {reply.status}:"
            f" {said!r}"
        ) from None
