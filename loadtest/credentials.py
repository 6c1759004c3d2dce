"""The key for a server, and headers: from the environment alone, so that none reaches a command line, file, log or page."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import html
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping

from loadtest.errors import UsageError

KEY_VARIABLES = ("LOADTEST_API_KEY", "OPENAI_API_KEY")
EASY_KEY_VARIABLE = (
    "LOADTEST_EASY_API_KEY"  # for the small model behind a router: no key goes to a host it was not given for
)
PROXY_VARIABLE = "LOADTEST_PROXY_AUTH"  # USER:PASSWORD for the proxy that --proxy names
WITHHELD = (
    *KEY_VARIABLES,
    EASY_KEY_VARIABLE,
    PROXY_VARIABLE,
    "VLLM_API_KEY",
    "SGLANG_API_KEY",
)  # from every process of ours that needs no key
HEADERS_VARIABLE = "LOADTEST_HEADERS"  # `NAME=ENV_VAR,...`: which header takes its value from which variable
_RESERVED = frozenset(
    ("host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "x-request-id")
)
_HEADER = re.compile(r"([A-Za-z0-9!#$&'*+.^_`|~-]{1,100})=([A-Za-z_][A-Za-z0-9_]{0,100})")
_SHORTEST_KEY = 8
_MARK = "[API key]"
_SECRET = re.compile(
    r"(?:.*[-_])?(?:(?:api|private|access|secret|signing)[-_]?key|authorization|passw(?:or)?d|pwd|secret|bearer|credentials?)"
    r"|key|(?:(?:.*[-_])?(?:hf|auth|access|session|bearer|refresh|security)[-_])?token"
)


_hidden: set[str] = set()  # secrets beside the keys: of environments that a study gives to its servers

_PR_SET_DUMPABLE = 4


def keep_from_dumps() -> None:
    """Have the system write no core dump of this process, if its environment holds a key (Linux alone).

    A key is in the memory of a process from its start, as part of the environment, and a core dump is a file. `ulimit -c`
    would not reach a crash reporter, and would reach the programs that this process starts.
    """
    if any(map(os.environ.get, WITHHELD)):
        _refuse_dumps()


def _refuse_dumps() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def api_key() -> str | None:
    """The key for the server; None where the environment holds none.

    Raises `UsageError`, which does not repeat it, where the key could not stand in a header.
    """
    return next(filter(None, map(_key, KEY_VARIABLES)), None)


def easy_api_key() -> str | None:
    """The key for the second server of a router; None where the environment holds none. Raises as `api_key` does."""
    return _key(EASY_KEY_VARIABLE) or None


def proxy_login() -> str | None:
    """`USER:PASSWORD` for a proxy that was asked for; None where the environment holds none.

    Raises `UsageError`, which does not repeat it, where it is something else.
    """
    login = os.environ.get(PROXY_VARIABLE, "").strip()
    if not login:
        return None
    if not login.isprintable() or not login.partition(":")[0] or ":" not in login:
        raise UsageError(f"{PROXY_VARIABLE}: expected USER:PASSWORD, got something else; set it anew")
    _refuse_dumps()
    return login


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{variable}: expected a key of printable ASCII without a space, got other characters; set it anew")
    if key:
        _refuse_dumps()
    return key


def hide_secrets(settings: Mapping[str, str]) -> None:
    """From now on `redacted` hides the values of those variables whose names say that they carry a secret.

    >>> hide_secrets({"HF_TOKEN": "hf_0123456789", "HF_HOME": "/models/of/all"})
    >>> redacted("hf_0123456789 of /models/of/all"), _hidden.clear()
    ('[API key] of /models/of/all', None)
    """
    _hidden.update(value.strip() for name, value in settings.items() if is_secret(name))


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


def read_header(text: str) -> tuple[str, str]:
    """Header and variable of `NAME=ENV_VAR`. Raises `UsageError`, which repeats no value, for anything else."""
    found = _HEADER.fullmatch(text)
    name = text.partition("=")[0][:40]
    if found is None:
        raise UsageError(f"--header {name}: expected NAME=ENV_VAR, the environment variable that holds the value")
    if found[1].lower() in _RESERVED:
        raise UsageError(f"--header {name}: expected none of {', '.join(sorted(_RESERVED))}, which are ours to set")
    return found[1], found[2]


def extra_headers() -> dict[str, str]:
    """Further headers of every request to the server, their values from the environment.

    Raises `UsageError`, which repeats no value, where one is empty or could not stand in a header.

    >>> os.environ["TEAM"] = "tenant-0123"
    >>> with with_headers({"X-Team": "TEAM"}):
    ...     extra_headers(), redacted("no such tenant: tenant-0123")
    ({'X-Team': 'tenant-0123'}, 'no such tenant: [API key]')
    >>> extra_headers(), os.environ.pop("TEAM")
    ({}, 'tenant-0123')
    """
    return {name: _header_value(name, variable) for name, variable in header_variables().items()}


def header_variables() -> dict[str, str]:
    """Header and the variable that holds its value, of all that are asked for now."""
    pairs = filter(None, os.environ.get(HEADERS_VARIABLE, "").split(","))
    found = dict(map(read_header, pairs))
    _seen.update(found.values())
    return found


def _header_value(name: str, variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise UsageError(f"--header {name}: expected its value in the variable {variable}, in printable ASCII; set it")
    _refuse_dumps()
    return value


@contextlib.contextmanager
def with_headers(names: Mapping[str, str]) -> Iterator[None]:
    """While inside, these headers (name to variable) go to the server; without any, those of the environment do."""
    before = os.environ.get(HEADERS_VARIABLE)
    if not names:
        yield
        return
    os.environ[HEADERS_VARIABLE] = ",".join(f"{name}={variable}" for name, variable in names.items())
    try:
        extra_headers()  # are they all there?
        yield
    finally:
        del os.environ[HEADERS_VARIABLE]
        if before is not None:
            os.environ[HEADERS_VARIABLE] = before


def declare(names: Mapping[str, str]) -> None:
    """Send these headers (name to variable) from now on, in this process and those that it starts."""
    if names:
        os.environ[HEADERS_VARIABLE] = ",".join(f"{name}={variable}" for name, variable in names.items())


_seen: set[str] = set()  # variables with values of headers: redacted from then on


def _secrets() -> Iterator[str]:
    """Everything that is never shown: keys, a proxy's password, values of headers and their parts (`Bearer KEY`)."""
    header_variables()
    yield from (os.environ.get(name, "").strip() for name in (*KEY_VARIABLES, EASY_KEY_VARIABLE))
    login = os.environ.get(PROXY_VARIABLE, "").strip()
    yield from (login, login.partition(":")[2])
    for value in (os.environ.get(name, "").strip() for name in sorted(_seen)):
        yield from dict.fromkeys((value, *value.split()))


def redacted(text: str) -> str:
    """Text that a server sent, or that quotes one, without the key.

    Found as it is, escaped for JSON, a URL or HTML, and in base64, whole or cut: from its first 8 characters on wherever it
    stands, from its last 8 on at the start of the text. A key of less than 8 characters is a placeholder ("EMPTY", "x")
    and is left.

    >>> os.environ["LOADTEST_API_KEY"] = "sk-0123456789"
    >>> redacted("Incorrect API key: sk-0123456789, as sk-012345..."), os.environ.pop("LOADTEST_API_KEY")
    ('Incorrect API key: [API key], as [API key]...', 'sk-0123456789')
    """
    for key in (*_secrets(), *_hidden):
        if len(key) >= _SHORTEST_KEY:
            text = _without(text, _spellings(key))
    return text


@functools.lru_cache(maxsize=16)
def _spellings(key: str) -> tuple[str, ...]:
    """The key as servers write it: as it is, escaped for JSON, URLs and HTML, in base64."""
    quoted = [urllib.parse.quote(key, safe=safe) for safe in ("", "/")]
    lower = [re.sub("%..", lambda hexed: hexed[0].lower(), one) for one in quoted]
    return tuple(dict.fromkeys((key, json.dumps(key)[1:-1], *quoted, *lower, html.escape(key), *_in_base64(key))))


def _in_base64(key: str) -> Iterator[str]:
    """What base64 makes of the key inside a longer text, at each of the three places where it can begin in a triple."""
    for before in range(3):
        raw = b"\0" * before + key.encode()
        first, last = -(-8 * before // 6), 8 * len(raw) // 6  # characters that the key alone decides
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(raw).decode()[first:last]


def _without(text: str, spellings: tuple[str, ...]) -> str:
    """The text without any of these: whole, cut at the end, or cut where the text starts."""
    ends = _ends(spellings)
    at = max(len(end) for end in ends if text.startswith(end)) if text.startswith(ends) else 0
    kept = [_MARK] if at else []
    beginnings = {one[:_SHORTEST_KEY] for one in spellings}
    while (found := min((n for n in (text.find(one, at) for one in beginnings) if n >= 0), default=-1)) >= 0:
        kept += [text[at:found], _MARK]
        at = found + max(_common(text[found : found + len(one)], one) for one in spellings)
    return "".join([*kept, text[at:]]) if kept else text


@functools.lru_cache(maxsize=16)
def _ends(spellings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple({one[-n:] for one in spellings for n in range(_SHORTEST_KEY, len(one) + 1)})


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def first_secret(names: Iterable[str]) -> str | None:
    """The first option or field that by its name carries a secret, without its value; None where none does.

    >>> first_secret(["--max-num-batched-tokens", "--api-key=abc"]), first_secret(["max_tokens", "tokenizer"])
    ('--api-key', None)
    """
    plain = (name.partition("=")[0] for name in names)
    return next(filter(is_secret, plain), None)


def is_secret(name: str) -> bool:
    """Does an option, a field or a variable of this name carry a secret?"""
    return _SECRET.fullmatch(name.lstrip("-").lower()) is not None
