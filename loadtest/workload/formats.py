"""Rows of prompts, told apart by their keys.

=============  =============================================================================================
AIME, plain    `prompt`, sent as it stands; `answer` optional (string or number)
MATH           `problem` and `answer`, or `solution` whose last box is the answer; the boxed instruction is added
OpenAI batch   `custom_id`, and of `body` `messages`, `max_tokens`, `tools`, `tool_choice`, `response_format`; the contract
               decides all else
ShareGPT       `conversations` (`from`, `value`): the system turn, if any, and the first human turn, or all of them
ours           `messages` and the other fields of `Prompt`, as `dump` writes them
=============  =============================================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from loadtest.errors import UsageError
from loadtest.workload.answer_format import extract_boxed
from loadtest.workload.forms.tools import choice_of
from loadtest.workload.prompts import BOXED_INSTRUCTION, Message, Prompt, Step, expect, hint, quoted


def prompt_of(row: dict[str, Any], default_id: str, *, all_turns: bool = False) -> Prompt:
    """The prompt of a row; `all_turns`: with every later human turn of a conversation. Raises `UsageError` that names the
    key."""
    for key, reader in _READERS.items():
        if key in row:
            prompt = reader(row, default_id)
            return replace(prompt, following=_human_turns(row)[1:]) if all_turns and key == "conversations" else prompt
    keys = ", ".join(map(repr, row)) or "no key"
    raise UsageError(
        f"expected one of the keys {', '.join(_READERS)}, got {keys}{_hint_any(row, _READERS)}; or name one by --prompt-key"
    )


def _from_messages(row: dict[str, Any], default_id: str) -> Prompt:
    _typos(row, tuple(Prompt.__dataclass_fields__))
    usual = "call" if row.get("tools") else "value" if row.get("response_format") else "boxed"
    answer = _answer(row, as_json=row.get("answer_format", usual) in ("call", "value"))
    return Prompt(
        id=_text(row, "id", default_id),
        messages=_messages(row["messages"], "messages"),
        answer=answer,
        answer_format=row.get("answer_format", "none" if answer is None else usual),
        thinking_tokens=_number(row, "thinking_tokens"),
        answer_tokens=_number(row, "answer_tokens"),
        max_tokens=_number(row, "max_tokens"),
        arrival_s=_seconds(row, "arrival_s"),
        difficulty=row.get("difficulty"),
        prompt_tokens=_number(row, "prompt_tokens"),
        following=_texts(row, "following"),
        **_form(row),
        steps=_steps(row),
    )


def _from_prompt(row: dict[str, Any], default_id: str) -> Prompt:
    """AIME and plain prompts: the text is sent as it stands, and checked where it asks for a box or for JSON."""
    text = _text(row, "prompt")
    asked = "boxed" if r"\boxed" in text else "json" if '"answer"' in text or "`answer`" in text else "none"
    return _from_messages({"answer_format": asked} | row | {"messages": [_user(text)]}, default_id)


def _from_problem(row: dict[str, Any], default_id: str) -> Prompt:
    """MATH: the problem with the boxed instruction; the answer as given, else the last box of the solution."""
    answer = _answer(row)
    if answer is None and "solution" in row:
        answer = extract_boxed(_text(row, "solution"))
        expect(answer is not None, "solution", r"a \boxed{} answer in it", row["solution"])
    message = _user(f"{_text(row, 'problem')}\n{BOXED_INSTRUCTION}")
    return _from_messages({**row, "messages": [message], "answer": answer, "answer_format": "boxed"}, default_id)


def _from_batch(row: dict[str, Any], default_id: str) -> Prompt:
    body = row["body"]
    expect(isinstance(body, dict), "body", "an object", body)
    expect("messages" in body, "body", "the key messages", list(body))
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    return Prompt(
        id=_text(row, "custom_id", default_id),
        messages=_messages(body["messages"], "body.messages"),
        max_tokens=_number(body, limit),
        **_form(body),
    )


_SHAREGPT_ROLES = {"human": "user", "user": "user", "system": "system"}


def _from_sharegpt(row: dict[str, Any], default_id: str) -> Prompt:
    turns = row["conversations"]
    expect(isinstance(turns, list) and bool(turns), "conversations", "a list of turns", turns)
    messages: list[dict[str, str]] = []
    for turn in turns:
        shape = isinstance(turn, dict) and isinstance(turn.get("value"), str) and isinstance(turn.get("from"), str)
        expect(shape, "conversations", "from and value, both text, in each turn", turn)
        role = _SHAREGPT_ROLES.get(turn["from"])
        if role is not None:
            messages.append({"role": role, "content": turn["value"]})
        if role == "user":
            return Prompt(id=_text(row, "id", default_id), messages=tuple(messages))
    raise UsageError("conversations: expected a human turn, got none; remove the row")


def _human_turns(row: dict[str, Any]) -> tuple[str, ...]:
    """What the human says, turn by turn; the recorded answers are left out, as the model gives its own."""
    for turn in row["conversations"]:
        shape = isinstance(turn, dict) and isinstance(turn.get("value"), str) and isinstance(turn.get("from"), str)
        expect(shape, "conversations", "from and value, both text, in each turn", turn)
    return tuple(turn["value"] for turn in row["conversations"] if _SHAREGPT_ROLES.get(turn["from"]) == "user")


_READERS: dict[str, Callable[[dict[str, Any], str], Prompt]] = {
    "messages": _from_messages,
    "prompt": _from_prompt,
    "problem": _from_problem,
    "body": _from_batch,
    "conversations": _from_sharegpt,
}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _messages(value: object, key: str) -> tuple[Message, ...]:
    """Chat messages; content in parts (`type`, `text`) is joined, for it must be text to be counted and hashed."""
    if not isinstance(value, list):
        raise UsageError(f"{key}: expected a list of messages, got {quoted(value)}")
    return tuple(_message(message, key) for message in value)


def _message(message: object, key: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UsageError(f"{key}: expected role and content in each message, got {quoted(message)}")
    content = message.get("content")
    if other := _other_part(content):
        raise UsageError(f"{key}: expected text alone, got a part of type {other}: images, sound and files are not sent")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    kept = {one: message[one] for one in ("tool_calls", "tool_call_id") if message.get(one)}
    if content is None and "tool_calls" in kept:
        content = ""
    if not isinstance(content, str):
        raise UsageError(f"{key}: expected content as text, got {quoted(content)}")
    return {"role": message["role"], "content": content, **kept}


def _other_part(content: object) -> str | None:
    """The type of the first part of a message that is no text, such as `image_url`; None where all are text."""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    types = (str(part.get("type", "text"))[:40] for part in parts)
    return next((one for one in types if one not in ("text", "input_text", "output_text")), None)


def _answer(row: dict[str, Any], *, as_json: bool = False) -> str | None:
    value = row.get("answer")
    if value is None:
        return None
    if as_json and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise UsageError(f"answer: expected a text or a number, got {quoted(value)}")
    return str(value)


def _text(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if key in ("id", "custom_id") and isinstance(value, int):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key}: expected a text that is not empty, got {quoted(value)}")
    return value


def _number(row: dict[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError(f"{key}: expected a whole number, got {quoted(value)}")
    return value


def _texts(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{key}: expected a list of texts, got {quoted(value)}")
    return tuple(value)


def _form(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of the form of its output; `Prompt` checks it. Any text may be asked for in words, too."""
    tools, asked = row.get("tools") or [], row.get("response_format")
    if not isinstance(tools, list):
        raise UsageError(f"tools: expected a list, got {quoted(tools)}")
    any_text = isinstance(asked, dict) and asked.get("type") == "text"
    choice = choice_of(row.get("tool_choice"))
    return {"tools": tuple(tools), "tool_choice": choice, "response_format": None if any_text else asked}


def _steps(row: dict[str, Any]) -> tuple[Step, ...]:
    try:
        return tuple(msgspec.convert(row.get("steps", []), list[Step]))
    except msgspec.ValidationError as error:
        raise UsageError(f"steps: expected name, arguments and result in each: {error}") from None


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{key}: expected seconds, got {quoted(value)}")
    return float(value)


def _typos(row: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse keys that look like a typing error; other unknown keys are ignored. `anwser` would leave a prompt unchecked."""
    for key in row:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and key not in _READERS and near and near[0] not in row:
            raise UsageError(f"{key}: expected a known key, got one like {near[0]!r}; rename or remove it")


def _hint_any(row: Mapping[str, Any], known: Mapping[str, object]) -> str:
    return next((hint for hint in (hint(key, known) for key in row) if hint), "")
