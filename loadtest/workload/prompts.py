"""One prompt, checked at construction, and the errors of a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from loadtest.errors import UsageError

AnswerFormat = Literal["boxed", "json", "program", "none"]
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)
ROLES = ("system", "user", "assistant")

BOXED_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
JSON_INSTRUCTION = (
    "Please reason step by step, and quoted your choice in the `answer` field of a JSON object"
    ' with only the choice letter, e.g., {"answer": "C"}.'
)


_LEAST = {"thinking_tokens": 0, "answer_tokens": 0, "max_tokens": 1, "arrival_s": 0, "prompt_tokens": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt. `answer_format` says where the answer is looked for; "none" is never checked.

    `thinking_tokens` and `answer_tokens` are the lengths to replay, `max_tokens` this prompt's own limit on the output,
    `following` what the user asks next, each after the answer to the one before,
    `prompt_tokens` the length that it was made to have by the server's count, chat template included,
    `arrival_s` when it was asked, counted from the first prompt of the workload; `difficulty` is for a router to go by.
    None: not known.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str | None = None
    answer_format: AnswerFormat = "none"
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    max_tokens: int | None = None
    arrival_s: float | None = None
    difficulty: Literal["easy", "hard"] | None = None
    prompt_tokens: int | None = None
    following: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expect(bool(self.id), "id", "a text that is not empty", self.id)
        expect(bool(self.messages), "messages", "at least one message", self.messages)
        for message in self.messages:
            shape = set(message) == {"role", "content"} and message["role"] in ROLES
            expect(shape, "messages", f"role ({', '.join(ROLES)}) and content in each", dict(message))
        expect(self.messages[-1]["role"] != "assistant", "messages", "a last message of the user", "the assistant's")
        expect(self.answer_format in ANSWER_FORMATS, "answer_format", " | ".join(ANSWER_FORMATS), self.answer_format)
        expect(self.difficulty in ("easy", "hard", None), "difficulty", "easy or hard", self.difficulty)
        for key, least in _LEAST.items():
            value = getattr(self, key)
            expect(value is None or least <= value < 1e12, key, f"a number of at least {least}", value)

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
        return 1 + len(self.following)


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
