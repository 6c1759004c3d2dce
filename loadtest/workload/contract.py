"""The inference contract: everything that must be equal before two speeds may be compared, as one object.

Defaults are the model makers' recommendations for QwQ-32B (temperature 0.6, top_p 0.95, top_k 40 of 20 to 40, min_p 0,
no repetition penalty, 32,768 tokens of output). Engines apply a model's own generation_config where a
request is silent, and not the same parts of it: so `body` sends every parameter.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import msgspec

from loadtest.credentials import first_secret
from loadtest.errors import UsageError
from loadtest.records.schema import Api, LengthMode
from loadtest.servers.settings import SETTINGS, EngineSettings, Rule, is_name, number_in, whole_in
from loadtest.workload.apis import body_for
from loadtest.workload.forms.tools import choice_in_body
from loadtest.workload.prompts import Prompt

ThinkingPrelude = Literal["template", "none"]
History = Literal["answers-only", "everything"]
OutputFormat = Literal["prompt", "free"]

_OWN_KEYS = ("messages", "prompt", "input", "model", "stream", "stream_options")
_OMITTABLE = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "seed", "continuous_usage_stats")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(EngineSettings):
    """One contract, checked at construction: the settings of the engines, and what goes into each request.

    `mode` "equal-work" forces the recorded length of each prompt (else `max_tokens`); "natural" lets the model stop.
    `omit` names parameters that an endpoint refuses (a hosted one may). Without `grammar` nothing holds an output to its
    form: no response format is sent, and whether to call a tool is left to the model.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 32768
    mode: LengthMode = "natural"
    extra_body: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    grammar: bool = True

    thinking_prelude: ThinkingPrelude = "template"  # "template": the chat template ends the prompt with `<think>\n`
    history: History = "answers-only"
    output_format: OutputFormat = "prompt"  # "prompt": each prompt says how to give its answer; "free": none is checked
    reasoning_parser: str = "qwen3"
    memory_fraction: float = 0.9

    def __post_init__(self) -> None:
        for key, rule in RULES.items():
            value = getattr(self, key)
            if not rule.holds(value):
                raise UsageError(f"contract: {key}: expected {rule.expected}, got {value!r}; change it in [contract]")
        if self.extra_body.get("n", 1) != 1:
            raise UsageError(f"contract: extra_body: n: expected 1, one answer per request, got {self.extra_body['n']}")
        secret = first_secret(_names(self.extra_body))
        if secret is not None:
            raise UsageError(
                f"contract: extra_body: expected no key, as it would be recorded, got {secret}; put it into LOADTEST_API_KEY"
            )
        if self.context_tokens is not None and self.context_tokens <= self.max_tokens and self.mode == "natural":
            raise UsageError(
                f"contract: max_tokens: expected less than context_tokens ({self.context_tokens}), as the prompt needs room,"
                f" got {self.max_tokens}; lower it or raise context_tokens"
            )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where sampling is not as the model's makers recommend, in words."""
        found = []
        if self.temperature == 0:
            found.append("temperature 0: greedy decoding makes reasoning models repeat themselves without end")
        if not 20 <= self.top_k <= 40:
            found.append(f"top_k {self.top_k}: 20 to 40 is recommended")
        return tuple(found)

    def limit_tokens(self, prompt: Prompt) -> int:
        """The most output (tokens) that this prompt may have: the smaller of the contract's limit and its own."""
        return self.max_tokens if prompt.max_tokens is None else min(self.max_tokens, prompt.max_tokens)

    def forced_tokens(self, prompt: Prompt) -> int | None:
        """The output length (tokens) forced on this prompt: None in natural mode, else its recorded length or its limit."""
        if self.mode == "natural":
            return None
        recorded = prompt.forced_tokens
        limit = self.limit_tokens(prompt)
        return limit if recorded is None else max(1, min(recorded, limit))

    def body(self, prompt: Prompt, model: str, *, engine: str = "other", api: Api = "chat") -> dict[str, Any]:
        """The whole body of a streamed request: every sampling parameter, usage asked for, lengths forced.

        `extra_body` is merged last. To a simulator (`engine` ends in "-sim") the prompt's recorded lengths go along.

        >>> from loadtest.workload.prompts import Prompt
        >>> prompt = Prompt(id="a", messages=({"role": "user", "content": "Why?"},), thinking_tokens=90, answer_tokens=10)
        >>> body = Contract(mode="equal-work").body(prompt, "qwq-32b")
        >>> body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["top_k"]
        (100, 100, True, 40)
        """
        forced = self.forced_tokens(prompt)
        body: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in prompt.messages],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        body |= {key: getattr(self, key) for key in _SAMPLING}
        body["max_tokens"] = self.limit_tokens(prompt) if forced is None else forced
        if forced is not None:
            body |= {"min_tokens": forced, "ignore_eos": True}
        body |= _form(prompt, grammar=self.grammar)
        for key in self.omit:
            body.pop(key, None)
        if "continuous_usage_stats" in self.omit:
            del body["stream_options"]["continuous_usage_stats"]
        if engine.endswith("-sim") and prompt.forced_tokens is not None:
            body["loadtest_sim"] = _lengths(prompt, body["max_tokens"])
        return body_for(api, body, self.extra_body)


def _form(prompt: Prompt, *, grammar: bool) -> dict[str, Any]:
    """What the body says of the form of the output."""
    if prompt.response_format is not None and grammar:
        return {"response_format": prompt.response_format}
    if not prompt.tools:
        return {}
    choice = prompt.tool_choice or "auto"
    choice = choice if grammar or choice == "none" else "auto"
    one = {"parallel_tool_calls": False} if prompt.answer_format == "call" or prompt.steps else {}
    return {"tools": list(prompt.tools), "tool_choice": choice_in_body(choice), **one}


def _names(value: object) -> Iterator[str]:
    """Every field name in a JSON value, at any depth."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _names(one)


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "seed")


def _lengths(prompt: Prompt, limit_tokens: int) -> dict[str, int]:
    """Thinking and answer (tokens) as recorded, the thinking first, together at most the limit."""
    thinking = min(prompt.thinking_tokens or 0, limit_tokens)
    return {"thinking_tokens": thinking, "answer_tokens": min(prompt.answer_tokens or 0, limit_tokens - thinking)}


def _one_of(choices: tuple[str, ...]) -> Callable[[object], bool]:
    return lambda value: value in choices


RULES: dict[str, Rule] = {
    "temperature": Rule("from 0 to 2", number_in(0, 2)),
    "top_p": Rule("above 0 and at most 1", number_in(0, 1, open_low=True)),
    "top_k": Rule("a whole number from -1 (off) up", whole_in(-1, 10**6)),
    "min_p": Rule("from 0 to 1", number_in(0, 1)),
    "presence_penalty": Rule("from 0 to 2", number_in(0, 2)),
    "repetition_penalty": Rule("above 0 and at most 2; 1 turns it off", number_in(0, 2, open_low=True)),
    "max_tokens": Rule("a whole number from 1 to 131072", whole_in(1, 131072)),
    "mode": Rule("natural or equal-work", _one_of(get_args(LengthMode))),
    "extra_body": Rule(
        f"a table that leaves {', '.join(_OWN_KEYS)} alone",
        lambda value: isinstance(value, dict) and not set(value) & set(_OWN_KEYS),
    ),
    "omit": Rule(
        f"some of {', '.join(_OMITTABLE)}", lambda value: isinstance(value, tuple) and set(value) <= set(_OMITTABLE)
    ),
    "grammar": Rule("true, or false (only words ask for a form)", lambda value: isinstance(value, bool)),
    "thinking_prelude": Rule("template (the chat template ends in `<think>`) or none", _one_of(get_args(ThinkingPrelude))),
    "history": Rule("answers-only or everything (with the thinking)", _one_of(get_args(History))),
    "output_format": Rule(
        "prompt (each prompt says how to answer) or free (no answer is checked)", _one_of(get_args(OutputFormat))
    ),
    **{row.key: row.rule for row in SETTINGS},
    "reasoning_parser": Rule("a parser's name", is_name),
    "memory_fraction": Rule("above 0 and below 1", number_in(0, 1, open_low=True, open_high=True)),
}


def from_table(table: Mapping[str, Any]) -> Contract:
    """The contract of a study's `[contract]` table; keys left out keep their defaults.

    >>> from_table({"temperature": 0.7}).temperature
    0.7
    """
    known = [f.name for f in fields(Contract)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            step = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"contract: {key}: expected a key of the contract, got an unknown one; {step}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Contract(**values)


def check_format(contract: Contract, prompts: Iterable[Prompt]) -> None:
    """Raise `UsageError` where answers are to be checked for a form that their prompt does not ask for: a sound answer would
    then count as wrong.

    >>> check_format(Contract(), [Prompt(id="a", messages=({"role": "user", "content": "2+2?"},))])
    """
    if contract.output_format == "free":
        return
    for prompt in prompts:
        asked = "".join(message["content"] for message in prompt.messages)
        wanted = {"boxed": r"\boxed", "json": "answer"}.get(prompt.answer_format)
        if prompt.answer is not None and wanted is not None and wanted not in asked:
            raise UsageError(
                f'contract: output_format: expected "free", or prompts that say how to answer, got {prompt.id!r}, which is'
                f' checked as {prompt.answer_format} and has no "{wanted}" in it; add the instruction, or set it to "free"'
            )


def within(contract: Contract, prompts: Iterable[Prompt], context_tokens: int) -> Contract:
    """The contract with `max_tokens` lowered, if it must be, so that the longest prompt and its output fit the context.

    Without it the engines differ: vLLM silently clamps an output that would not fit, SGLang refuses the request.
    Raises `UsageError` where a prompt leaves no room at all.

    >>> from loadtest.workload.workload import load
    >>> within(Contract(), load("math:n=4").prompts, 32768).max_tokens < 32768
    True
    >>> within(Contract(max_tokens=500), load("math:n=4").prompts, 32768).max_tokens
    500
    """
    longest_tokens, prompt_id = max((prompt_tokens_at_most(prompt), prompt.id) for prompt in prompts)
    room_tokens = context_tokens - longest_tokens
    if room_tokens < 1:
        raise UsageError(
            f"contract: context_tokens: expected more than the {longest_tokens} that prompt {prompt_id!r} may take, got"
            f" {context_tokens}; raise it (over 32768 with yarn = true) or take shorter prompts"
        )
    return replace(contract, max_tokens=min(contract.max_tokens, room_tokens))


def check_lengths(contract: Contract, prompts: Iterable[Prompt]) -> None:
    """Raise `UsageError` where outputs of exact lengths would not be: the contract does not force them, has no room, or a
    grammar may end them before (SGLang 0.5.15 dies of that: no token is left to choose)."""
    for prompt in prompts:
        forced, fewest = contract.forced_tokens(prompt), prompt.fewest_tokens
        if contract.grammar and forced is not None and fewest is not None and fewest < forced:
            raise UsageError(
                f"mode: expected natural with {prompt.id!r}, whose JSON may end after {fewest} tokens, got {forced} forced;"
                " structured:tokens=256 makes JSON that does not end"
            )
        if prompt.prompt_tokens is None:
            continue
        if contract.mode != "equal-work":
            raise UsageError(f"mode: expected equal-work with {prompt.id!r}, whose output is forced, got {contract.mode}")
        asked, limit = prompt.forced_tokens or 0, contract.limit_tokens(prompt)
        if asked > limit:
            raise UsageError(
                f"contract: max_tokens: expected at least the {asked} that {prompt.id!r} asks for, got {limit}; raise it, or"
                " take shorter prompts and outputs where the context is the limit"
            )


_TEMPLATE_TOKENS = 128


def prompt_tokens_at_most(prompt: Prompt) -> int:
    """A careful estimate from above of a prompt's tokens, without a tokenizer: each digit one (as Qwen's tokenizer has it),
    two bytes of all else one, and 128 for the chat template; what it was made to have, where that is known. English takes
    about four bytes a token.
    """
    if prompt.prompt_tokens is not None:
        return prompt.prompt_tokens
    text = "".join(message["content"] for message in prompt.messages)
    text += msgspec.json.encode(prompt.tools).decode() if prompt.tools else ""
    digits = sum(map(str.isdigit, text))
    return _TEMPLATE_TOKENS + digits + (len(text.encode("utf-8", "surrogatepass")) - digits + 1) // 2


def contract_differences(a: Contract, b: Contract) -> dict[str, tuple[Any, Any]]:
    """Every key in which two contracts differ, with both values; empty where cells may be compared.

    >>> contract_differences(Contract(), Contract(top_k=20))
    {'top_k': (40, 20)}
    """
    pairs = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(Contract))
    return {key: (one, other) for key, one, other in pairs if one != other}
