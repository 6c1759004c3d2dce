"""Faults on purpose, for tests of what stands on the other side: a server that stalls, lies, breaks or dies.

Written `KIND` or `KIND:N`. On the command line (`--fault`, repeatable) a fault meets every request, or every Kth with
`--fault-every K`; several take turns; in a body, `"loadtest_sim": {"fault": "stall:10"}`, it meets that request alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.errors import UsageError

KINDS = {
    "stall": "sends N tokens, then nothing, and keeps the connection open",
    "reset": "resets the connection after N tokens",
    "garbage": "sends a line that is not JSON after N tokens, then goes on",
    "invalid-utf8": "sends bytes that are not UTF-8 after N tokens, then goes on",
    "die": "the process exits after N tokens of one stream, without a word",
    "engine-error": "ends the stream after N tokens with an error of code 500, as a dead engine does",
    "endless": "never stops by itself, whatever the limit says",
    "no-done": "ends the stream without [DONE]",
    "slow-start": "takes N seconds of wall time before it listens",
    "oom": "runs out of memory at the start and exits with 1",
    "early-role": "sends the role-only chunk at once, long before the first token",
    "lying-usage": "reports twice the tokens that it sent",
}
AT_START = ("slow-start", "oom")
NEEDS_NUMBER = ("stall", "reset", "garbage", "invalid-utf8", "die", "engine-error", "slow-start")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `at` counts tokens of one stream (seconds for slow-start)."""

    kind: str
    at: float = 0.0


NONE = Fault("none")


def parse(text: str) -> Fault:
    """Read `KIND` or `KIND:N`.

    >>> parse("stall:10")
    Fault(kind='stall', at=10.0)
    """
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"fault: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not number and kind in NEEDS_NUMBER:
        raise UsageError(f"fault: expected {kind}:N, got {text!r}")
    try:
        at = float(number or 0)
    except ValueError:
        raise UsageError(f"fault: expected a number after the colon, got {text!r}") from None
    if not 0 <= at < 1e9:
        raise UsageError(f"fault: expected a number from 0 to 1e9, got {text!r}")
    return Fault(kind, at)
