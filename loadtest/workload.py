"""What is sent: prompts with their checkable answers, from a built-in generator or a file, in an order fixed by a seed.

File formats, told apart by the keys of each row (JSON Lines; ShareGPT may also be one JSON array):

=============  =============================================================================================
AIME, plain    `prompt`, sent as it stands; `answer` optional (string or number)
MATH           `problem` and `answer`, or `solution` whose last box is the answer; the boxed instruction is added
OpenAI batch   `custom_id`, `body.messages`, `body.max_tokens`; the contract decides everything else of the body
ShareGPT       `conversations` (`from`, `value`): the system turn, if any, and the first human turn
ours           `messages` and the other fields of `Prompt`, as `dump` writes them
=============  =============================================================================================
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from loadtest.errors import UsageError

AnswerFormat = Literal["boxed", "json", "program", "none"]
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)
ROLES = ("system", "user", "assistant")

BOXED_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
JSON_INSTRUCTION = (
    "Please reason step by step, and show your choice in the `answer` field of a JSON object"
    ' with only the choice letter, e.g., {"answer": "C"}.'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing to ask. `answer_format` says where the answer is looked for; "none" is never checked.

    `thinking_tokens` and `answer_tokens` are the lengths to replay, `max_tokens` this prompt's own limit on the output,
    `arrival_s` when it was asked, counted from the first prompt of the workload. Null: not known.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str | None = None
    answer_format: AnswerFormat = "none"
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    max_tokens: int | None = None
    arrival_s: float | None = None

    def __post_init__(self) -> None:
        _expect(bool(self.id), "id", "a text that is not empty", self.id)
        _expect(bool(self.messages), "messages", "at least one message", self.messages)
        for message in self.messages:
            shape = set(message) == {"role", "content"} and message["role"] in ROLES
            _expect(shape, "messages", f"role ({', '.join(ROLES)}) and content in each", dict(message))
        _expect(self.messages[-1]["role"] != "assistant", "messages", "a last message of the user", "the assistant's")
        _expect(self.answer_format in ANSWER_FORMATS, "answer_format", " | ".join(ANSWER_FORMATS), self.answer_format)
        for key, least in (("thinking_tokens", 0), ("answer_tokens", 0), ("max_tokens", 1), ("arrival_s", 0)):
            value = getattr(self, key)
            _expect(value is None or least <= value < 1e12, key, f"a number of at least {least}", value)

    @property
    def forced_tokens(self) -> int | None:
        """Recorded length of the whole output (tokens), thinking and answer together; null where neither is known."""
        if self.thinking_tokens is None and self.answer_tokens is None:
            return None
        return (self.thinking_tokens or 0) + (self.answer_tokens or 0)

    @property
    def chars(self) -> int:
        """Length of all messages (characters)."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts in file order. `identity` is the SHA-256 of their content alone: neither name nor source counts."""

    name: str
    prompts: tuple[Prompt, ...]
    identity: str
    source: str

    @property
    def checkable(self) -> int:
        """How many prompts have an answer that `answers.check` can judge."""
        return sum(p.answer is not None and p.answer_format in ("boxed", "json") for p in self.prompts)


def make(name: str, prompts: tuple[Prompt, ...], source: str) -> Workload:
    """A workload of these prompts, its identity computed.

    >>> prompts = (Prompt(id="a", messages=({"role": "user", "content": "Why?"},)),)
    >>> make("one", prompts, "").identity == make("another", prompts, "file.jsonl").identity
    True
    """
    if not prompts:
        raise UsageError(f"{source}: expected at least one prompt, got none; add one or name another workload")
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        first = seen.setdefault(prompt.id, number)
        if first != number:
            raise UsageError(f"{source}: id: prompt {number} is named {prompt.id!r} as prompt {first} is; make ids unique")
    return Workload(name=name, prompts=prompts, identity=_identity(prompts), source=source)


def _identity(prompts: tuple[Prompt, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(prompts, order="deterministic")).hexdigest()


def load(spec: str) -> Workload:
    """The workload that `spec` names: a generator with its options (`math:n=64,seed=7`) or a file (see the module).

    Raises `UsageError` that names the file, the line, the key, and what was expected there.

    >>> len(load("math:n=3,seed=7").prompts)
    3
    """
    from loadtest import generators

    name = spec.partition(":")[0]
    if name in generators.GENERATORS:
        return generators.generate(spec)
    path = Path(spec)
    if not path.is_file():
        known = ", ".join(generators.GENERATORS)
        raise UsageError(
            f"workload {spec!r}: expected a file or one of {known}; got neither{_hint(name, generators.GENERATORS)}"
        )
    return make(path.stem, tuple(_read(path)), spec)


def schedule(workload: Workload, *, seed: int, n: int, start: int = 0) -> tuple[Prompt, ...]:
    """Items `start` to `start + n` of an endless sequence of passes over the workload, each pass a fresh permutation.

    Item i depends on the seed and on i alone: it is the same for any number of users and workers.

    >>> w = load("math:n=5")
    >>> schedule(w, seed=1, n=9)[4:] == schedule(w, seed=1, n=5, start=4)
    True
    """
    size = len(workload.prompts)
    orders: dict[int, list[int]] = {}
    items = []
    for i in range(start, start + n):
        number, place = divmod(i, size)
        if number not in orders:
            orders[number] = _permutation(seed, number, size)
        items.append(workload.prompts[orders[number][place]])
    return tuple(items)


def _permutation(seed: int, number: int, size: int) -> list[int]:
    """Order of pass `number`: indices by a hash, so that no version of Python's random module matters."""
    return sorted(range(size), key=lambda index: hashlib.sha256(f"{seed}/{number}/{index}".encode()).digest())


def dump(workload: Workload) -> bytes:
    """The workload as JSON Lines that `load` reads back with equal identity."""
    lines = [{k: v for k, v in msgspec.to_builtins(p).items() if v is not None} for p in workload.prompts]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


# --- reading files


def _read(path: Path) -> Iterator[Prompt]:
    for number, (where, row) in enumerate(_rows(path), start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{where}: expected a JSON object, got {type(row).__name__}; write one object per line")
        try:
            yield _prompt(row, f"p{number:04d}")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip()[:1] == b"[":
        yield from ((f"{path}: item {n}", row) for n, row in enumerate(_decode(content, f"{path}"), start=1))
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _decode(line, f"{path}:{number}")


def _decode(text: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: expected JSON, got something else: {error}; write one object per line") from None


def _prompt(row: dict[str, Any], default_id: str) -> Prompt:
    for key, reader in _READERS.items():
        if key in row:
            return reader(row, default_id)
    keys = ", ".join(map(repr, row)) or "no key"
    raise UsageError(f"expected one of the keys {', '.join(_READERS)}, got {keys}{_hint_any(row, _READERS)}")


def _from_messages(row: dict[str, Any], default_id: str) -> Prompt:
    _typos(row, tuple(Prompt.__dataclass_fields__))
    answer = _answer(row)
    return Prompt(
        id=_text(row, "id", default_id),
        messages=_messages(row["messages"], "messages"),
        answer=answer,
        answer_format=row.get("answer_format", "none" if answer is None else "boxed"),
        thinking_tokens=_number(row, "thinking_tokens"),
        answer_tokens=_number(row, "answer_tokens"),
        max_tokens=_number(row, "max_tokens"),
        arrival_s=_seconds(row, "arrival_s"),
    )


def _from_prompt(row: dict[str, Any], default_id: str) -> Prompt:
    """AIME and plain prompts: the text is sent as it stands, and checked where it asks for a box or for JSON."""
    text = _text(row, "prompt")
    asked = "boxed" if r"\boxed" in text else "json" if '"answer"' in text or "`answer`" in text else "none"
    return _from_messages({"answer_format": asked} | row | {"messages": [_user(text)]}, default_id)


def _from_problem(row: dict[str, Any], default_id: str) -> Prompt:
    """MATH: the problem with the boxed instruction; the answer as given, else the last box of the solution."""
    from loadtest.answers import extract_boxed

    answer = _answer(row)
    if answer is None and "solution" in row:
        answer = extract_boxed(_text(row, "solution"))
        _expect(answer is not None, "solution", r"a \boxed{} answer in it", row["solution"])
    message = _user(f"{_text(row, 'problem')}\n{BOXED_INSTRUCTION}")
    return _from_messages({**row, "messages": [message], "answer": answer, "answer_format": "boxed"}, default_id)


def _from_batch(row: dict[str, Any], default_id: str) -> Prompt:
    body = row["body"]
    _expect(isinstance(body, dict), "body", "an object", body)
    _expect("messages" in body, "body", "the key messages", list(body))
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    return Prompt(
        id=_text(row, "custom_id", default_id),
        messages=_messages(body["messages"], "body.messages"),
        max_tokens=_number(body, limit),
    )


_SHAREGPT_ROLES = {"human": "user", "user": "user", "system": "system"}


def _from_sharegpt(row: dict[str, Any], default_id: str) -> Prompt:
    turns = row["conversations"]
    _expect(isinstance(turns, list) and bool(turns), "conversations", "a list of turns", turns)
    messages: list[dict[str, str]] = []
    for turn in turns:
        shape = isinstance(turn, dict) and isinstance(turn.get("value"), str) and isinstance(turn.get("from"), str)
        _expect(shape, "conversations", "from and value, both text, in each turn", turn)
        role = _SHAREGPT_ROLES.get(turn["from"])
        if role is not None:
            messages.append({"role": role, "content": turn["value"]})
        if role == "user":
            return Prompt(id=_text(row, "id", default_id), messages=tuple(messages))
    raise UsageError("conversations: expected a human turn, got none; remove the row")


_READERS: dict[str, Callable[[dict[str, Any], str], Prompt]] = {
    "messages": _from_messages,
    "prompt": _from_prompt,
    "problem": _from_problem,
    "body": _from_batch,
    "conversations": _from_sharegpt,
}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _messages(value: object, key: str) -> tuple[dict[str, str], ...]:
    """Chat messages; content in parts (`type`, `text`) is joined, for it must be text to be counted and hashed."""
    if not isinstance(value, list):
        raise UsageError(f"{key}: expected a list of messages, got {_show(value)}")
    return tuple(_message(message, key) for message in value)


def _message(message: object, key: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UsageError(f"{key}: expected role and content in each message, got {_show(message)}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UsageError(f"{key}: expected content as text, got {_show(content)}")
    return {"role": message["role"], "content": content}


def _answer(row: dict[str, Any]) -> str | None:
    value = row.get("answer")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise UsageError(f"answer: expected a text or a number, got {_show(value)}")
    return str(value)


def _text(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if key in ("id", "custom_id") and isinstance(value, int):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key}: expected a text that is not empty, got {_show(value)}")
    return value


def _number(row: dict[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError(f"{key}: expected a whole number, got {_show(value)}")
    return value


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{key}: expected seconds, got {_show(value)}")
    return float(value)


def _typos(row: dict[str, Any], known: tuple[str, ...]) -> None:
    """Foreign keys are ignored, but not a slip of the pen: `anwser` would silently leave a prompt unchecked."""
    for key in row:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and key not in _READERS and near and near[0] not in row:
            raise UsageError(f"{key}: expected a known key, got one like {near[0]!r}; rename or remove it")


def _expect(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        raise UsageError(f"{key}: expected {expected}, got {_show(got)}")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hint_any(row: Mapping[str, Any], known: Mapping[str, object]) -> str:
    return next((hint for hint in (_hint(key, known) for key in row) if hint), "")
