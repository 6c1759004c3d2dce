"""A chat-completion request as the simulated engines read it: what they accept, what they refuse, and in which words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from loadtest.errors import UsageError
from loadtest.simulator.core import faults, forms, lengths, requests
from loadtest.simulator.core.behaviour import Behaviour
from loadtest.simulator.core.cache import TOKEN_CHARS
from loadtest.simulator.core.faults import Fault


class Refusal(Exception):  # noqa: N818 - an answer to one request, not an error of ours
    """The request is answered with an HTTP error; `param` is named by the vLLM-like only."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served: names and limits that requests are checked against."""

    behaviour: Behaviour
    model: str  # the served name
    context_tokens: int
    kv_tokens: int
    seed: int = 0
    thinks: bool = True  # a reasoning model
    separates: bool = True  # a reasoning parser is set
    counts_thinking: bool = True  # usage tells the tokens of thinking
    length_scale: float = 1.0  # natural lengths are multiplied by this
    invalid_share: float = 0.0  # of calls and of JSON by a schema: their JSON never closes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One accepted request."""

    model: str
    prompt: str
    output: lengths.Output
    max_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    separates: bool  # thinking goes into its own field
    counts_thinking: bool
    stream_thinking: bool  # false: the thinking comes as one chunk
    fault: Fault | None
    api: str = "chat"
    formed: forms.Formed | None = None  # what the answer is, where it must have a form

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt) // TOKEN_CHARS

    def finish_reason(self, behaviour: Behaviour) -> str:
        """A call that ends by itself ends in `tool_calls`; that of a tool that was named ends in `stop` in vLLM."""
        if self.formed is None or self.formed.tool is None or self.output.finish_reason == "length":
            return self.output.finish_reason
        return "stop" if self.formed.named and behaviour.knows_its_models else "tool_calls"


def parse(body: bytes, served: Served, api: str = "chat") -> Chat:
    """Read a request body of an endpoint, or raise the `Refusal` that the engine would answer with."""
    data = requests.READERS[api](_object(body))
    messages = _messages(data)
    model = data.get("model", served.model)
    if served.behaviour.knows_its_models and model != served.model:
        message = f"The model `{model}` does not exist. Valid aliases: {served.model}."
        raise Refusal(404, message, "NotFoundError", "model")
    _check_sampling(data, served.behaviour)
    formed = _formed(data, str(messages), served) if api == "chat" else None
    if data.get("tools"):
        messages = [("tools", json.dumps(data["tools"])), *messages]
    prompt = lengths.prompt_key(messages, _salt(data))
    max_tokens = _max_tokens(data, served, len(prompt) // TOKEN_CHARS)
    extra, options = _nested(data, "loadtest_sim"), _nested(data, "stream_options")
    stream = data.get("stream") is True
    return Chat(
        model=str(model),
        prompt=prompt,
        output=_plan(data, extra, served, messages, max_tokens, formed),
        max_tokens=max_tokens,
        stream=stream,
        include_usage=stream and options.get("include_usage") is True,
        continuous_usage=stream and options.get("continuous_usage_stats") is True and options.get("include_usage") is True,
        api=api,
        separates=api != "completions" and served.separates and data.get("separate_reasoning") is not False,
        counts_thinking=served.counts_thinking,
        stream_thinking=data.get("stream_reasoning") is not False,
        fault=_fault(extra),
        formed=formed,
    )


def _formed(data: dict[str, Any], prompt: str, served: Served) -> forms.Formed | None:
    try:
        return forms.form_of(data, prompt, served.seed, served.invalid_share)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise Refusal(400, "Invalid tools or response_format.", param="tools") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        message = "1 validation error:\n  {'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error'}"
        raise Refusal(400, message, "Bad Request", "body.0") from None
    if not isinstance(data, dict):
        raise Refusal(
            400, "1 validation error:\n  {'type': 'model_attributes_type', 'loc': ('body',)}", "Bad Request", "body"
        )
    return data


def _nested(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _fault(extra: dict[str, Any]) -> Fault | None:
    try:
        return faults.parse(str(extra["fault"])) if "fault" in extra else None
    except UsageError as error:
        raise Refusal(400, str(error), param="loadtest_sim") from None


def _messages(data: dict[str, Any]) -> list[tuple[str, str]]:
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        message = "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}"
        raise Refusal(400, message, "Bad Request", "body.messages")
    return [(str(message.get("role", "user")), _text(message.get("content")) + _called(message)) for message in messages]


def _called(message: dict[str, Any]) -> str:
    """The calls of an assistant's message, as its template writes them."""
    return json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _check_sampling(data: dict[str, Any], behaviour: Behaviour) -> None:
    temperature = _number(data, "temperature")
    if temperature is not None and not (temperature >= 0 and math.isfinite(temperature)):
        if behaviour.clamps_max_tokens:
            message = f"temperature must be non-negative, got {temperature}. (parameter=temperature, value={temperature})"
        else:
            message = f"temperature must be a non-negative finite number, got {temperature}."
        raise Refusal(400, message, param="temperature")


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(400, f"1 validation error:\n  {{'type': 'float_type', 'loc': ('body', '{key}')}}", "Bad Request", key)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _salt(data: dict[str, Any]) -> str:
    """What keeps equal prompts apart in the prefix cache."""
    salt = data.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and 0 < len(salt) <= _SALT_CHARS):
        raise Refusal(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
    return salt or ""


_SALT_CHARS = 128


def _count(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise Refusal(400, f"1 validation error:\n  {{'type': 'int_type', 'loc': ('body', '{key}')}}", "Bad Request", key)
    return value


def _max_tokens(data: dict[str, Any], served: Served, prompt_tokens: int) -> int:
    """Output that this request may have, by its own limit, the context and the cache, as its engine works it out."""
    asked = _count(data, "max_completion_tokens")
    if asked is None:
        asked = _count(data, "max_tokens")
    if served.behaviour.clamps_max_tokens:
        return _max_tokens_clamped(asked, served.context_tokens, prompt_tokens)
    return _max_tokens_refused(asked, served, prompt_tokens)


def _max_tokens_clamped(asked: int | None, context: int, prompt_tokens: int) -> int:
    if asked is not None and asked < 1:
        raise Refusal(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
    if asked is not None and asked > context:
        message = (
            f"max_tokens={asked} cannot be greater than max_model_len={context}. Please request fewer output tokens. "
            f"(parameter=max_tokens, value={asked})"
        )
        raise Refusal(400, message, param="max_tokens")
    if prompt_tokens >= context:
        message = (
            f"This model's maximum context length is {context} tokens. However, your prompt contains at least {context + 1} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
            f"prompt. (parameter=input_tokens, value={context + 1})"
        )
        raise Refusal(400, message, param="input_tokens")
    return min(asked or context, context - prompt_tokens)


def _max_tokens_refused(asked: int | None, served: Served, prompt_tokens: int) -> int:
    context = served.context_tokens
    if asked is not None and asked < 1:
        raise Refusal(400, f"max_new_tokens must be at least 0, got {asked}.")
    if prompt_tokens >= context or prompt_tokens >= served.kv_tokens - 1:
        message = f"The input ({prompt_tokens} tokens) is longer than the model's context length ({context} tokens)."
        raise Refusal(400, message)
    if asked is not None and prompt_tokens + asked > context:
        message = (
            f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested a total "
            f"of {prompt_tokens + asked} tokens: {prompt_tokens} tokens from the input messages and {asked} tokens for the "
            "completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."
        )
        raise Refusal(400, message)
    room = min(context, served.kv_tokens) - prompt_tokens - 1
    return max(1, min(asked or room, room))


def _plan(
    data: dict[str, Any],
    extra: dict[str, Any],
    served: Served,
    messages: list[tuple[str, str]],
    max_tokens: int,
    formed: forms.Formed | None,
) -> lengths.Output:
    text = "\0".join(part for message in messages for part in message)
    drawn = lengths.draw_lengths(text, served.seed, scale=served.length_scale)
    if formed is not None:
        drawn = lengths.Lengths(drawn.thinking_tokens, len(formed.pieces) + 1)
    thinking = _count(extra, "thinking_tokens")
    answer = _count(extra, "answer_tokens")
    if thinking is None:
        thinking = drawn.thinking_tokens if served.thinks else 0
    chosen = lengths.Lengths(max(0, thinking), max(0 if thinking else 1, drawn.answer_tokens if answer is None else answer))
    ignore_eos = data.get("ignore_eos") is True
    return lengths.limit_lengths(
        chosen, max_tokens=max_tokens, min_tokens=_count(data, "min_tokens") or 0, ignore_eos=ignore_eos
    )
