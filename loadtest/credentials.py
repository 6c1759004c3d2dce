"""The key for a server: from the environment alone, so that it reaches no command line, file, log or page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

KEY_VARIABLES = ("LOADTEST_API_KEY", "OPENAI_API_KEY")
WITHHELD = (*KEY_VARIABLES, "VLLM_API_KEY", "SGLANG_API_KEY")  # from every process of ours that needs no key
_SECRET = re.compile(r"(?:.*[-_])?(?:api[-_]?key|authorization|password|secret|bearer)|(?:(?:hf|auth|access)[-_])?token")


def api_key() -> str | None:
    """The key for the server; null where the environment holds none."""
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def first_secret(names: Iterable[str]) -> str | None:
    """The first option or field that by its name carries a secret, without its value; null where none does.

    >>> first_secret(["--max-num-batched-tokens", "--api-key=abc"]), first_secret(["max_tokens", "tokenizer"])
    ('--api-key', None)
    """
    plain = (name.partition("=")[0] for name in names)
    return next((name for name in plain if _SECRET.fullmatch(name.lstrip("-").lower())), None)
