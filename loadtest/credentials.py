"""The key for a server: from the environment alone, so that it reaches no command line, file, log or page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from loadtest.errors import UsageError

KEY_VARIABLES = ("LOADTEST_API_KEY", "OPENAI_API_KEY")
WITHHELD = (*KEY_VARIABLES, "VLLM_API_KEY", "SGLANG_API_KEY")  # from every process of ours that needs no key
_SHORTEST_KEY = 8
_SECRET = re.compile(r"(?:.*[-_])?(?:api[-_]?key|authorization|password|secret|bearer)|(?:(?:hf|auth|access)[-_])?token")


def api_key() -> str | None:
    """The key for the server; null where the environment holds none.

    Raises `UsageError`, which does not repeat it, where the key could not stand in a header.
    """
    return next(filter(None, map(_key, KEY_VARIABLES)), None)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{variable}: expected a key of printable ASCII without a space, got other characters; set it anew")
    return key


def redacted(text: str) -> str:
    """Text that a server sent, or that quotes one, without the key, as it is or inside JSON.

    A key of less than 8 characters is a placeholder ("EMPTY", "x") and is left.

    >>> os.environ["LOADTEST_API_KEY"] = "sk-0123456789"
    >>> redacted("Incorrect API key: sk-0123456789"), os.environ.pop("LOADTEST_API_KEY")
    ('Incorrect API key: [API key]', 'sk-0123456789')
    """
    for key in (os.environ.get(name, "").strip() for name in KEY_VARIABLES):
        if len(key) >= _SHORTEST_KEY:
            text = text.replace(key, "[API key]").replace(json.dumps(key)[1:-1], "[API key]")
    return text


def first_secret(names: Iterable[str]) -> str | None:
    """The first option or field that by its name carries a secret, without its value; null where none does.

    >>> first_secret(["--max-num-batched-tokens", "--api-key=abc"]), first_secret(["max_tokens", "tokenizer"])
    ('--api-key', None)
    """
    plain = (name.partition("=")[0] for name in names)
    return next((name for name in plain if _SECRET.fullmatch(name.lstrip("-").lower())), None)
