"""Public traces of requests, told apart by their keys: when each came, how long prompt and output were, what was shared.

=========  ====================================================================================  =====================
Mooncake   JSON Lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` of 512      kvcache-ai/Mooncake,
           tokens each                                                                           FAST25-release/traces
Bailian    the same with `chat_id`, `timestamp` in seconds, `hash_ids` of 16 tokens each         alibaba-edu/
                                                                                                 qwen-bailian-
                                                                                                 usagetraces-anon
Azure      CSV: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`                                  Azure/
                                                                                                 AzurePublicDataset,
                                                                                                 LLM inference 2023
                                                                                                 and 2024
BurstGPT   CSV: `Timestamp` (s), `Request tokens`, `Response tokens` (0: failed, left out)       HPMLL/BurstGPT
=========  ====================================================================================  =====================

A hash stands for a block of tokens and all before it: prompts with equal hashes at their start share so many tokens.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from loadtest.errors import UsageError

MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e13)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace: its arrival (s), prompt and output (tokens), and the hashes of its prompt's blocks."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 1


class _JsonRow(msgspec.Struct):
    timestamp: _Time
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: list[int] = []
    chat_id: int | None = None


def read_rows(path: Path) -> Iterator[TraceRow]:
    """The requests of a trace in its order; those without any output are left out. Raises `UsageError` that names the line.

    A trace is read as far as it is asked for: the public ones have up to millions of lines.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            first = next((line for line in lines if line.strip()), "")
            read = _json if first.lstrip().startswith("{") else _table_reader(first, path)
            yield from (row for row in read(_with(first, lines), path) if row.output_tokens and row.prompt_tokens)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read this trace: {error}") from None


def _with(first: str, lines: Iterable[str]) -> Iterator[str]:
    yield first
    yield from lines


_Read = Callable[[Iterator[str], Path], Iterator[TraceRow]]


def _json(lines: Iterator[str], path: Path) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_JsonRow)
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{path}:{number}: expected timestamp, input_length, output_length of a Mooncake or Bailian trace: {error}"
            ) from None
        bailian = row.chat_id is not None
        yield TraceRow(
            arrival_s=row.timestamp if bailian else row.timestamp / 1000,
            prompt_tokens=row.input_length,
            output_tokens=row.output_length,
            blocks=tuple(row.hash_ids),
            block_tokens=BAILIAN_BLOCK_TOKENS if bailian else MOONCAKE_BLOCK_TOKENS,
        )


# Time, prompt and output of each kind of table.
_TABLES: Mapping[str, tuple[str, str, str]] = {
    "TIMESTAMP": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "Timestamp": ("Timestamp", "Request tokens", "Response tokens"),
}


def _table_reader(first: str, path: Path) -> _Read:
    names = [name.strip() for name in next(csv.reader(io.StringIO(first)), [])]
    columns = next((columns for key, columns in _TABLES.items() if set(columns) <= set(names) and key in names), None)
    if columns is None:
        raise UsageError(
            f"{path}: expected a trace of Mooncake, Bailian, Azure (TIMESTAMP, ContextTokens, GeneratedTokens) or BurstGPT"
            f" (Timestamp, Request tokens, Response tokens), got {', '.join(names)[:200] or 'an empty file'}"
        )
    places = [names.index(column) for column in columns]

    def read(lines: Iterator[str], path: Path) -> Iterator[TraceRow]:
        next(lines)
        for number, cells in enumerate(csv.reader(lines), start=2):
            if not cells:
                continue
            try:
                time, prompt, output = (cells[place] for place in places)
                yield _row(time, prompt, output)
            except (IndexError, ValueError) as error:
                raise UsageError(f"{path}:{number}: expected {', '.join(columns)}, got {cells!r:.120}: {error}") from None

    return read


def _row(time: str, prompt: str, output: str) -> TraceRow:
    """Raises `ValueError`: one of them is no number, no time, or no length."""
    lengths = int(prompt), int(output)
    if min(lengths) < 0 or max(lengths) > 10**7:
        raise ValueError("lengths from 0 to 10,000,000 are expected")
    return TraceRow(arrival_s=_seconds(time), prompt_tokens=lengths[0], output_tokens=lengths[1])


def _seconds(time: str) -> float:
    """Seconds, or a date with a time of day.

    >>> _seconds("5.5"), _seconds("2023-11-16 18:17:04.5") - _seconds("2023-11-16 18:17:03.9799600")
    (5.5, 0.5200400352478027)
    """
    try:
        seconds = float(time)
    except ValueError:
        moment = datetime.fromisoformat(time.strip())
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=_UTC)).timestamp()
    if not 0 <= seconds <= 1e13:
        raise ValueError("a time is expected")
    return seconds


_UTC = datetime.fromisoformat("2000-01-01T00:00:00+00:00").tzinfo
