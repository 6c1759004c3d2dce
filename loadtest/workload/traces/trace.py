"""A public trace as a workload: `trace:FILE[:n=1000,speed-up=4,most-tokens=32768]`.

Requests come as in the trace, `speed-up` times as fast; prompts have its lengths by the server's count and share their
beginnings as its hashes say; outputs are forced to its lengths. `most-tokens` leaves out requests whose prompt and output
together are longer.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random

from loadtest.errors import UsageError
from loadtest.workload import synthetic
from loadtest.workload.prompts import Prompt
from loadtest.workload.traces.rows import TraceRow, read_rows

NAME = "trace"
_BOUNDS: dict[str, tuple[float, float]] = {
    "n": (1, 1_000_000),
    "speed-up": (1e-3, 1e6),
    "most-tokens": (2, 10**7),
    "template": (1, 1_000_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """What a spec asks for. `template` and `words`: as `synthetic.Shape` has them."""

    path: str
    n: int = 1000
    speed_up: float = 1.0
    most_tokens: int = 10**7
    template: int | None = None
    words: str = synthetic.FAMILIES[0]


def is_trace(spec: str) -> bool:
    """Does a spec name a trace?"""
    return spec.partition(":")[0] == NAME


def trace_spec(spec: str) -> TraceSpec:
    """The options of a spec, checked. Raises `UsageError` by key, or where the file is not there."""
    path = spec.partition(":")[2]
    values: dict[str, int | float | str] = {}
    if not os.path.isfile(path):
        path, _, options = path.rpartition(":")
        for item in filter(None, (part.strip() for part in options.split(","))):
            key, _, value = item.partition("=")
            values[key.replace("-", "_")] = _value(spec, key, value)
    if not os.path.isfile(path):
        raise UsageError(f"workload {spec!r}: expected the file of a trace, found none at {path!r}")
    return TraceSpec(path=path, **values)  # type: ignore[arg-type]


def _value(spec: str, key: str, value: str) -> int | float | str:
    if key == "words":
        return synthetic.checked_words(spec, value)
    if key not in _BOUNDS:
        near = difflib.get_close_matches(key, list(_BOUNDS), n=1)
        step = f"did you mean {near[0]!r}?" if near else "remove it"
        raise UsageError(f"workload {spec!r}: {key}: expected one of {', '.join(_BOUNDS)}, got {key!r}; {step}")
    return synthetic.checked_number(spec, key, value, _BOUNDS[key], whole=key != "speed-up")


def rows_of(chosen: TraceSpec) -> Iterator[TraceRow]:
    """The requests that are taken, in the order of the trace."""
    fitting = (row for row in read_rows(Path(chosen.path)) if row.prompt_tokens + row.output_tokens <= chosen.most_tokens)
    return islice(fitting, chosen.n)


def trace_prompts(spec: str) -> tuple[Prompt, ...]:
    """The prompts of a trace by the time of their arrival, counted from the first. A prompt shorter than the chat template
    gets one word."""
    chosen = trace_spec(spec)
    rows = sorted(rows_of(chosen), key=lambda row: row.arrival_s)
    if not rows:
        raise UsageError(f"workload {spec!r}: expected requests with a prompt and an output, got none")
    vocabulary = synthetic.vocabulary_of(chosen.words)

    @lru_cache(maxsize=4096)
    def block(hashed: int, tokens: int) -> tuple[str, ...]:
        return tuple(Random(f"{NAME}/{hashed}").choices(vocabulary, k=tokens))

    def words(row: TraceRow, index: int, n: int) -> list[str]:
        shared = [word for hashed in row.blocks[: -(-n // row.block_tokens)] for word in block(hashed, row.block_tokens)]
        return [*shared[:n], *Random(f"{NAME}/own/{index}").choices(vocabulary, k=max(0, n - len(shared)))]

    return tuple(
        _prompt(row, index, (row.arrival_s - rows[0].arrival_s) / chosen.speed_up, words, chosen.template or 0)
        for index, row in enumerate(rows)
    )


_Words = Callable[[TraceRow, int, int], list[str]]  # so many of the words of a request


def _prompt(row: TraceRow, index: int, arrival_s: float, words: _Words, template: int) -> Prompt:
    prompt_tokens = max(row.prompt_tokens, template + 1)
    return Prompt(
        id=f"{NAME}-{index + 1:06d}",
        messages=({"role": "user", "content": " ".join([synthetic.OPENING, *words(row, index, prompt_tokens - template)])},),
        prompt_tokens=prompt_tokens,
        thinking_tokens=0,
        answer_tokens=row.output_tokens,
        arrival_s=round(arrival_s, 6),
    )
