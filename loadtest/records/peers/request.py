"""A request as another tool tells it, as a record of ours. What is not told is None, or named in `lacks`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from loadtest.errors import UsageError
from loadtest.records.peers.result import MOST_TOKENS, PeerRequest, known_seconds
from loadtest.records.schema import Lack, Outcome, RequestError, RequestRecord

MOST_START_S = 1e12
MOST_OFFSET_S = 1e8
_ERROR_CHARS = 300
_SAME_S = 1e-6  # sums of gaps differ from a time by so little


@dataclass(frozen=True, slots=True)
class Place:
    """Where the requests of one pass belong; `zero_s`: the tool's clock when the first of them was sent."""

    run_id: str
    cell: str
    concurrency: int
    repeat: int
    worker: str
    file: str
    zero_s: float


@dataclass(frozen=True, slots=True)
class _Arrivals:
    """Offsets of chunks from the sending, the tokens of each (None: not told), and what is not known of them."""

    offset_s: tuple[float, ...]
    tokens: tuple[int, ...] | None
    lacks: tuple[Lack, ...]


def record_of(request: PeerRequest, seq: int, place: Place) -> RequestRecord:
    """The record of one request. Raises `UsageError` where a time or a count cannot have been measured."""
    where = f"{place.file}: request {seq + 1}"
    _check(request, where)
    sent_s = 0.0 if request.start_s is None else request.start_s - place.zero_s
    came = _arrivals(request)
    chunk_s = tuple(sent_s + one for one in came.offset_s)
    ended_s = max(sent_s + (request.end_s or 0.0), *chunk_s, sent_s)
    if ended_s > MOST_OFFSET_S:
        raise _wrong(f"{where}: end: expected at most {MOST_OFFSET_S:g} s after the first request, got {ended_s:g}")
    return RequestRecord(
        run_id=place.run_id,
        cell=place.cell,
        concurrency=place.concurrency,
        repeat=place.repeat,
        phase="measure",
        worker=place.worker,
        user=0,
        seq=seq,
        prompt_id=request.prompt_id or f"request-{seq + 1}",
        scheduled_s=sent_s,
        sent_s=sent_s,
        headers_s=None,
        chunk_s=chunk_s,
        chunk_tokens=came.tokens,
        first_answer_chunk=_first_answer_chunk(request, came.offset_s),
        ended_s=ended_s,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.output_tokens,
        reasoning_tokens=request.reasoning_tokens,
        cached_tokens=None,
        token_count_source="chunks" if request.output_tokens is None else "tool",
        finish_reason=None,
        outcome=_outcome(request),
        error=None if request.error is None else RequestError("told", _last_line(request.error)),
        answer=None,
        answer_correct=None,
        request_sha256="",
        forced_tokens=request.output_tokens if request.forced else None,
        lacks=_lacks(request, came),
    )


def _lacks(request: PeerRequest, came: _Arrivals) -> tuple[Lack, ...]:
    found: list[Lack] = [] if request.start_s is not None else ["start"]
    found += ["schedule", *came.lacks]
    return tuple(found) if request.prompt_id is not None else (*found, "prompt")


def _outcome(request: PeerRequest) -> Outcome:
    """How it ended, where the file says so; else only that it did."""
    if request.error is not None:
        return "failed"
    return request.ending or ("ok" if request.forced and request.output_tokens else "ended")


def _arrivals(request: PeerRequest) -> _Arrivals:
    """Each chunk; where the gaps are not told, the first of one token, that with the first text of the answer, and the last
    with all other tokens: only their sum is used."""
    first, end, tokens = request.first_s, request.end_s, request.output_tokens
    if first is None and request.answer_s is None:
        return _Arrivals((), None, ("chunks", "tokens"))
    if first is not None and request.gaps_s is not None:
        return _Arrivals(tuple(itertools.accumulate(request.gaps_s, initial=first)), None, ("tokens",))
    lacks: tuple[Lack, ...] = ("chunks", "tokens") if first is not None else ("first", "chunks", "tokens")
    told = sorted({one for one in (first, request.answer_s, end) if one is not None and (first is None or one >= first)})
    return _Arrivals(tuple(told), _tokens_of(len(told), tokens), lacks)


def _tokens_of(chunks: int, tokens: int | None) -> tuple[int, ...]:
    """One in the first chunk, the rest in the last; none where they were not counted."""
    if not tokens:
        return (0,) * chunks
    return (tokens,) if chunks == 1 else (1, *(0,) * (chunks - 2), tokens - 1)


def _first_answer_chunk(request: PeerRequest, offset_s: tuple[float, ...]) -> int | None:
    """The chunk that came when the first text of the answer did; None where neither is told."""
    if request.answer_s is None:
        return None
    return next((i for i, one in enumerate(offset_s) if one >= request.answer_s - _SAME_S), None)


def _check(request: PeerRequest, where: str) -> None:
    times = (("first", request.first_s), ("answer", request.answer_s), ("end", request.end_s))
    for name, value in (*times, *(("gap", one) for one in request.gaps_s or ())):
        if value is not None and known_seconds(value) is None:
            raise _wrong(f"{where}: {name}: expected seconds from 0 up, got {value!r}")
    if request.start_s is not None and not abs(request.start_s) <= MOST_START_S:
        raise _wrong(f"{where}: start: expected seconds, got {request.start_s!r}")
    for name in ("prompt_tokens", "output_tokens", "reasoning_tokens"):
        if (count := getattr(request, name)) is not None and not 0 <= count <= MOST_TOKENS:
            raise _wrong(f"{where}: {name}: expected a number of tokens, got {count}")


def _wrong(what: str) -> UsageError:
    return UsageError(f"{what}; import the file as the tool wrote it")


def _last_line(text: str) -> str:
    """Of a traceback the cause, without the folders of a machine.

    >>> _last_line('File "/home/ada/x.py"\\nTimeoutError: no answer in 5 s\\n')
    'TimeoutError: no answer in 5 s'
    """
    line = next((one.strip() for one in reversed(text.splitlines()) if one.strip()), text)
    return re.sub(r"/\S*/", "", line)[:_ERROR_CHARS]
