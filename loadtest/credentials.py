"""The key for a server: from the environment alone, so that it reaches no command line, file, log or page."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator

from loadtest.errors import UsageError

KEY_VARIABLES = ("LOADTEST_API_KEY", "OPENAI_API_KEY")
EASY_KEY_VARIABLE = (
    "LOADTEST_EASY_API_KEY"  # for the small model behind a router: no key goes to a host it was not given for
)
WITHHELD = (
    *KEY_VARIABLES,
    EASY_KEY_VARIABLE,
    "VLLM_API_KEY",
    "SGLANG_API_KEY",
)  # from every process of ours that needs no key
_SHORTEST_KEY = 8
_SECRET = re.compile(r"(?:.*[-_])?(?:api[-_]?key|authorization|password|secret|bearer)|(?:(?:hf|auth|access)[-_])?token")


def api_key() -> str | None:
    """The key for the server; None where the environment holds none.

    Raises `UsageError`, which does not repeat it, where the key could not stand in a header.
    """
    return next(filter(None, map(_key, KEY_VARIABLES)), None)


def easy_api_key() -> str | None:
    """The key for the second server of a router; None where the environment holds none. Raises as `api_key` does."""
    return _key(EASY_KEY_VARIABLE) or None


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{variable}: expected a key of printable ASCII without a space, got other characters; set it anew")
    return key


@contextlib.contextmanager
def named(variable: str | None) -> Iterator[None]:
    """While inside, the key is the one in the environment's `variable`, which itself is hidden; None changes nothing.

    Raises `UsageError` where that variable is empty.

    >>> os.environ["GROQ_API_KEY"] = "gsk-0123456789"
    >>> with named("GROQ_API_KEY"):
    ...     api_key(), "GROQ_API_KEY" in os.environ
    ('gsk-0123456789', False)
    >>> api_key(), os.environ.pop("GROQ_API_KEY")
    (None, 'gsk-0123456789')
    """
    if variable is None:
        yield
        return
    if not _key(variable):
        raise UsageError(f"{variable}: expected the key for a server in this variable, found it empty; set it")
    before = {name: os.environ.pop(name, None) for name in (variable, *KEY_VARIABLES)}
    os.environ[KEY_VARIABLES[0]] = before[variable] or ""
    try:
        yield
    finally:
        os.environ.pop(KEY_VARIABLES[0], None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def redacted(text: str) -> str:
    """Text that a server sent, or that quotes one, without the key, as it is or inside JSON.

    A key of less than 8 characters is a placeholder ("EMPTY", "x") and is left.

    >>> os.environ["LOADTEST_API_KEY"] = "sk-0123456789"
    >>> redacted("Incorrect API key: sk-0123456789"), os.environ.pop("LOADTEST_API_KEY")
    ('Incorrect API key: [API key]', 'sk-0123456789')
    """
    for key in (os.environ.get(name, "").strip() for name in (*KEY_VARIABLES, EASY_KEY_VARIABLE)):
        if len(key) >= _SHORTEST_KEY:
            text = text.replace(key, "[API key]").replace(json.dumps(key)[1:-1], "[API key]")
    return text


def first_secret(names: Iterable[str]) -> str | None:
    """The first option or field that by its name carries a secret, without its value; None where none does.

    >>> first_secret(["--max-num-batched-tokens", "--api-key=abc"]), first_secret(["max_tokens", "tokenizer"])
    ('--api-key', None)
    """
    plain = (name.partition("=")[0] for name in names)
    return next((name for name in plain if _SECRET.fullmatch(name.lstrip("-").lower())), None)
