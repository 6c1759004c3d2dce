"""One prompt, checked at construction, and the errors of a wrong one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from loadtest.errors import UsageError
from loadtest.records.schema import OutputForm
from loadtest.workload.forms import tools as forms
from loadtest.workload.forms.json_schema import decoded, least_items

AnswerFormat = Literal["boxed", "json", "program", "none", "call", "value"]
CHECKED: tuple[AnswerFormat, ...] = ("boxed", "json", "call", "value")  # by `grading.answers.check`, while measuring
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]  # role and content; of an assistant also `tool_calls`, of a tool its `tool_call_id`

BOXED_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
JSON_INSTRUCTION = (
    "Please reason step by step, and quoted your choice in the `answer` field of a JSON object"
    ' with only the choice letter, e.g., {"answer": "C"}.'
)


_LEAST = {"thinking_tokens": 0, "answer_tokens": 0, "max_tokens": 1, "arrival_s": 0, "prompt_tokens": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call that a task needs, and what the tool answers to it."""

    name: str
    arguments: dict[str, Any]
    result: str

    @property
    def call(self) -> str:
        """The call as an expected answer."""
        return json.dumps({"name": self.name, "arguments": self.arguments})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt. `answer_format` says where the answer is looked for; "none" is never checked. "call": the answer is a call
    (`name` and `arguments`); "value": the whole answer is this JSON value.

    `tools` may be called (`tool_choice` as in `forms.tools`), or `response_format` asks for JSON by a schema. `steps`: the
    calls that come before the answer, each a request of its own.

    `thinking_tokens` and `answer_tokens` are the lengths to replay, `max_tokens` this prompt's own limit on the output,
    `following` what the user asks next, each after the answer to the one before,
    `prompt_tokens` the length that it was made to have by the server's count, chat template included,
    `arrival_s` when it was asked, counted from the first prompt of the workload; `difficulty` is for a router to go by.
    None: not known.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    answer_format: AnswerFormat = "none"
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    max_tokens: int | None = None
    arrival_s: float | None = None
    difficulty: Literal["easy", "hard"] | None = None
    prompt_tokens: int | None = None
    following: tuple[str, ...] = ()
    tools: tuple[forms.Tool, ...] = ()
    tool_choice: str | None = None
    response_format: dict[str, Any] | None = None
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        expect(bool(self.id), "id", "a text that is not empty", self.id)
        expect(bool(self.messages), "messages", "at least one message", self.messages)
        for message in self.messages:
            more = set(message) - {"role", "content"}
            shape = len(message) == 2 + len(more) and message["role"] in ROLES and more == _more_keys(message)
            expect(shape, "messages", f"role ({', '.join(ROLES)}) and content in each", dict(message))
        expect(self.messages[-1]["role"] != "assistant", "messages", "a last message of the user", "the assistant's")
        expect(self.answer_format in ANSWER_FORMATS, "answer_format", " | ".join(ANSWER_FORMATS), self.answer_format)
        expect(self.difficulty in ("easy", "hard", None), "difficulty", "easy or hard", self.difficulty)
        for key, least in _LEAST.items():
            value = getattr(self, key)
            expect(value is None or least <= value < 1e12, key, f"a number of at least {least}", value)
        self._check_form()

    def _check_form(self) -> None:
        forms.check_tools(self.tools, self.tool_choice)
        if self.response_format is not None:
            forms.check_response_format(self.response_format)
            expect(not self.tools, "tools", "none with a response_format", self.tools)
        for step in self.steps:
            forms.check_expected_call(step.call, self.tools)
        expect(not (self.steps and self.following), "steps", "none with following", self.steps)
        if self.answer_format == "call" and self.answer is not None:
            forms.check_expected_call(self.answer, self.tools)
        if self.answer_format == "value" and self.answer is not None:
            expect(decoded(self.answer)[0], "answer", "JSON, as answer_format is value", self.answer)

    @property
    def output_form(self) -> OutputForm | None:
        """What its output must be; None: any text."""
        if self.response_format is not None:
            return "json"
        if not self.tools or self.tool_choice == "none":
            return None
        return "call or text" if self.tool_choice in (None, "auto") else "call"

    @property
    def fewest_tokens(self) -> int | None:
        """Tokens before which a grammar cannot let its output end (a lower bound); None: no grammar holds it."""
        if self.response_format is not None:
            return least_items(forms.schema_of(self.response_format))
        if self.output_form != "call":
            return None
        return min(least_items(tool["function"].get("parameters", {})) for tool in self.tools)

    @property
    def forced_tokens(self) -> int | None:
        """Recorded length of the whole output (tokens), thinking and answer together; None where neither is known."""
        if self.thinking_tokens is None and self.answer_tokens is None:
            return None
        return (self.thinking_tokens or 0) + (self.answer_tokens or 0)

    @property
    def chars(self) -> int:
        """Length of all messages (characters)."""
        return sum(len(message["content"]) for message in self.messages)

    @property
    def turns(self) -> int:
        """Requests of the conversation that it begins; 1: none follows."""
        return 1 + len(self.following) + len(self.steps)

    def at_turn(self, turn: int, messages: Sequence[Message]) -> Prompt:
        """Request `turn` (from 0) of its conversation: the next call, or, after all steps, the answer without a call."""
        if not self.steps:
            return replace(self, messages=tuple(messages))
        if turn == len(self.steps):
            return replace(self, messages=tuple(messages), steps=(), tool_choice="none")
        return replace(self, messages=tuple(messages), steps=(), answer=self.steps[turn].call, answer_format="call")


def _more_keys(message: Message) -> set[str]:
    """What a message must have beside role and content: all that it may have, if it has any."""
    calls = message["role"] == "assistant" and message.get("tool_calls")
    return {"tool_calls"} if calls else {"tool_call_id"} if message["role"] == "tool" else set()


def expect(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise `UsageError` for this key unless the condition holds."""
    if not condition:
        raise UsageError(f"{key}: expected {expected}, got {quoted(got)}")


def quoted(value: object) -> str:
    """A value as an error message shows it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def hint(name: str, known: Mapping[str, object]) -> str:
    """ "; did you mean ...?" where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
