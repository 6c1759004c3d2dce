"""Records of one pass as numpy columns, on one clock: each record is converted once, everything later reads arrays.

Requests are put in a canonical order first, so that neither the order of lines nor their split over files shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics.intervals import Floats
from loadtest.records.read import LevelRecords
from loadtest.records.schema import CENSORED, Lack, RequestRecord

Bools = NDArray[np.bool_]

Ints = NDArray[np.int64]

Small = NDArray[np.float32]

TOGETHER_WALL_S = 0.001  # a chunk that follows another within this time,
TOGETHER_SHARE = 0.1  # and within this share of its request's mean time per token, came with it
BURSTY_SHARE = 0.1  # of the tokens in chunks that came with others: above it, a rate between arrivals says little

# A request's rate while it decodes, and the same over its whole answer, from sending on: what holds of a bursty stream.
OF_WHOLE_ANSWER: Mapping[str, str] = {
    "tpot_s": "whole_answer_tpot_s",
    "tokens_per_s_per_user": "whole_answer_tokens_per_s",
}


@dataclass(frozen=True)
class Pass:
    """Requests of one pass over one level: one entry a request, times in seconds since the run's earliest anchor.

    NaN stands for "not known" inside these arrays only. `token_*` are flat over chunks, `token_owner` the index of the
    request. `tokens` are those that arrived (by chunk), `completion_tokens` what the server said.
    """

    concurrency: int
    repeat: int
    records: tuple[RequestRecord, ...]
    measured: Bools
    sent_s: Floats
    ended_s: Floats
    first_s: Floats
    answer_s: Floats
    last_s: Floats
    tokens: Floats
    tokens_after_first: Floats
    thinking_tokens: Floats
    completion_tokens: Floats
    estimated: Bools  # tokens per chunk were not told and had to be spread
    token_s: Floats
    token_weight: NDArray[np.float32]
    token_owner: NDArray[np.int32]

    @cached_property
    def outcome(self) -> tuple[str, ...]:
        return tuple(record.outcome for record in self.records)

    @cached_property
    def ok(self) -> Bools:
        """Finished by itself with an answer; a forced length that was reached counts."""
        return np.array([_is_ok(record) for record in self.records], bool)

    @cached_property
    def censored(self) -> Bools:
        """Stopped while its user was still waiting."""
        return np.array([r.outcome in CENSORED and not _is_ok(r) for r in self.records], bool)

    @cached_property
    def cut_off(self) -> Bools:
        """Still running when the level ended."""
        return np.array([r.outcome == "cut_off" for r in self.records], bool)

    @cached_property
    def lacks(self) -> frozenset[Lack]:
        """What is not known of some of its requests, as another tool measured them."""
        return frozenset(lack for record in self.records for lack in record.lacks)

    @cached_property
    def unjudged(self) -> bool:
        """Did a response come without any word of how it ended?"""
        return "ended" in self.outcome

    @cached_property
    def followed(self) -> Bools:
        """Measured requests whose every chunk has a known arrival."""
        return self.measured & self._told("chunks")

    def _told(self, lack: Lack) -> Bools:
        """Requests that do not lack this."""
        return np.array([lack not in record.lacks for record in self.records], bool)

    @cached_property
    def together(self) -> Bools:
        """For each chunk: did it come with the one before it?"""
        wall_s = np.array([TOGETHER_WALL_S * r.clock_speed for r in self.records], np.float64)
        limit_s = np.fmin(TOGETHER_SHARE * per_request(self, "whole_answer_tpot_s")[0], wall_s)[self.token_owner]
        follows = ~_firsts(self.token_owner)
        follows[1:] &= np.diff(self.token_s) < limit_s[1:]
        return follows

    @cached_property
    def arrivals(self) -> tuple[Floats, Bools]:
        """The arrivals of measured requests, in their order: tokens of each, and whether several chunks came in it."""
        starts = np.flatnonzero(~self.together)
        if not len(starts):
            return np.zeros(0), np.zeros(0, bool)
        tokens = np.add.reduceat(self.token_weight, starts, dtype=np.float64)
        use = (self.followed & self._told("tokens"))[self.token_owner[starts]] & (tokens > 0)
        chunks = np.diff(np.append(starts, len(self.token_s)))
        return tokens[use], (chunks > 1)[use]

    @cached_property
    def bursty(self) -> bool:
        """Came so many tokens at once that a rate between arrivals says little?"""
        tokens, shared = self.arrivals
        return bool(np.sum(tokens[shared]) > BURSTY_SHARE * np.sum(tokens))

    def gaps(self) -> tuple[Small, Small, Ints]:
        """Token gaps of measured requests, in their order: (gap_s, weight_tokens, start of each request's run of gaps).

        A chunk of k tokens that comes g after the one before it counts k gaps of g / k; a chunk of no token passes its
        gap on to the next. Single precision: a gap of 20 ms keeps 2 ns, and a long run its memory.
        """
        gap, weight, starts = self._gaps_of(self.followed & self._told("tokens"))
        gap /= weight
        return gap, weight, starts

    def chunk_gaps(self) -> tuple[Small, Small, Ints]:
        """Gaps between chunks of measured requests, in their order: (gap_s, tokens of the later chunk, starts as `gaps`)."""
        return self._gaps_of(self.followed)

    def _gaps_of(self, use: Bools) -> tuple[Small, Small, Ints]:
        keep = (self.token_weight > 0) & use[self.token_owner]
        keep[_firsts(self.token_owner)] = True
        t, w, owner = self.token_s[keep], self.token_weight[keep], self.token_owner[keep]
        follows = (owner[1:] == owner[:-1]) & use[owner[1:]]
        gap = np.asarray(np.maximum(np.diff(t)[follows], 0.0), np.float32)
        return gap, w[1:][follows], np.flatnonzero(_firsts(owner[1:][follows]))


def _is_ok(record: RequestRecord) -> bool:
    return record.outcome == "ok" or (record.outcome == "truncated" and record.forced_tokens is not None)


def _firsts(owner: NDArray[np.int32]) -> Bools:
    """True at the first chunk of each request."""
    return np.concatenate(([True], owner[1:] != owner[:-1])) if len(owner) else np.zeros(0, bool)


def pass_arrays(level: LevelRecords, anchor_unix_s: float) -> Pass:
    """Columns of one pass. `anchor_unix_s`: the wall clock at time 0 of the run (`earliest_anchor`)."""
    records = tuple(sorted(level.requests, key=_key))
    shift = np.array([offset(r.clock_anchor_unix_s, r.clock_speed, anchor_unix_s) for r in records], np.float64)
    lengths = np.array([len(r.chunk_s) for r in records], np.int64)
    ratio = _tokens_per_chunk(records)
    weights = [_weights(r, ratio) for r in records]
    answer = np.array([_at(r, r.first_answer_chunk) for r in records], np.float64) + shift
    completion = np.array([_number(r.completion_tokens) for r in records], np.float64)
    return Pass(
        concurrency=level.concurrency,
        repeat=level.repeat,
        records=records,
        measured=np.array([r.phase == "measure" for r in records], bool),
        sent_s=np.array([_number(r.sent_s) for r in records], np.float64) + shift,
        ended_s=np.array([r.ended_s for r in records], np.float64) + shift,
        first_s=np.array([np.nan if "first" in r.lacks else _at(r, 0) for r in records], np.float64) + shift,
        answer_s=answer,
        last_s=np.array([_at(r, -1) for r in records], np.float64) + shift,
        tokens=np.array([float(np.sum(w, dtype=np.float64)) for w in weights], np.float64),
        tokens_after_first=np.array([float(np.sum(w[1:], dtype=np.float64)) for w in weights], np.float64),
        thinking_tokens=np.array([_thinking(r, w) for r, w in zip(records, weights, strict=True)], np.float64),
        completion_tokens=completion,
        estimated=np.array([bool(r.chunk_s) and r.chunk_tokens is None for r in records], bool),
        token_s=_arrivals(records, shift, int(np.sum(lengths))),
        token_weight=np.concatenate([np.zeros(0, np.float32), *weights]),
        token_owner=np.repeat(np.arange(len(records), dtype=np.int32), lengths),
    )


def _key(record: RequestRecord) -> tuple[object, ...]:
    r = record
    sent_s = -1.0 if r.sent_s is None else r.sent_s
    return (
        r.worker,
        r.user,
        r.clock_anchor_unix_s,
        r.phase == "measure",
        r.seq,
        r.scheduled_s,
        sent_s,
        r.ended_s,
        r.prompt_id,
    )


def offset(anchor_unix_s: float, speed: float, zero_unix_s: float) -> float:
    """What to add to offsets of a clock anchored at `anchor_unix_s` so that 0 is `zero_unix_s` (see `loadtest.clock`)."""
    return (anchor_unix_s - zero_unix_s) * speed


def earliest_anchor(levels: Sequence[LevelRecords]) -> float:
    """The earliest wall-clock anchor (Unix s) of any record; 0 where there is none."""
    return min((r.clock_anchor_unix_s for level in levels for r in level.requests), default=0.0)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _at(record: RequestRecord, index: int | None) -> float:
    return np.nan if index is None or not record.chunk_s else record.chunk_s[index]


def _tokens_per_chunk(records: Sequence[RequestRecord]) -> float:
    """Tokens a chunk carried where the server told, to estimate it where it did not; 1 where it never told."""
    told = [r for r in records if r.completion_tokens and r.chunk_s and r.token_count_source != "chunks"]
    chunks = sum(len(r.chunk_s) for r in told)
    return sum(r.completion_tokens or 0 for r in told) / chunks if chunks else 1.0


def _arrivals(records: Sequence[RequestRecord], shift: Floats, n: int) -> Floats:
    """Arrival of every chunk, request after request, in one array."""
    times, start = np.empty(n), 0
    for record, moved in zip(records, shift, strict=True):
        end = start + len(record.chunk_s)
        times[start:end] = record.chunk_s
        times[start:end] += moved
        start = end
    return times


def _weights(record: RequestRecord, ratio: float) -> Small:
    """Tokens of each chunk: as told; else the request's total spread evenly; else `ratio` each."""
    if record.chunk_tokens is not None:
        return np.array(record.chunk_tokens, np.float32)
    n = len(record.chunk_s)
    known = record.completion_tokens is not None and record.token_count_source != "chunks" and n > 0
    return np.full(n, (record.completion_tokens or 0) / n if known else ratio, np.float32)


def _thinking(record: RequestRecord, weights: Small) -> float:
    """Tokens thought: the server's count; where it is missing, or 0 although thinking came, those of the chunks before
    the answer. NaN where nothing came."""
    if record.reasoning_tokens:
        return float(record.reasoning_tokens)
    if "tokens" in record.lacks:
        return np.nan if record.reasoning_tokens is None else 0.0
    if not record.chunk_s:
        return np.nan
    if record.first_answer_chunk is None:
        no_thinking = record.forced_tokens is not None and record.thinking_field is None
        return 0.0 if no_thinking else float(np.sum(weights))
    return float(np.sum(weights[: record.first_answer_chunk]))


def values_of(columns: Pass, metric: str) -> tuple[Floats, Bools]:
    """One metric of each measured request that has it: values, and whether each is exact (else known to be longer)."""
    values, observed = per_request(columns, metric)
    use = columns.measured & np.isfinite(values)
    return values[use], observed[use]


def pace_of(metric: str, passes: Iterable[Pass]) -> str:
    """A metric of requests; the same over the whole answer where the tokens of any of the passes came in bursts."""
    return OF_WHOLE_ANSWER.get(metric, metric) if any(one.bursty for one in passes) else metric


def per_request(columns: Pass, metric: str) -> tuple[Floats, Bools]:
    """One metric of every request, NaN where it has none, and whether it is exact (else right-censored there).

    A request that was still waited for is censored at its last chunk, or, without any chunk, at its end. Failures other
    than time-outs and stalls have no time to final answer: they stand in `outcomes`.
    """
    c = columns
    reached = np.where(np.isfinite(c.last_s), c.last_s, c.ended_s)
    if metric == "queued_s":
        queued = [
            np.nan if "schedule" in r.lacks else _number(r.sent_s) - r.scheduled_s - (r.connect_s or 0.0) for r in c.records
        ]
        return np.array(queued, np.float64), np.ones(len(queued), bool)
    if metric == "ttft_s":
        return _either(c.first_s - c.sent_s, c.ended_s - c.sent_s, c.censored)
    if metric == "time_to_first_answer_s":
        return _either(c.answer_s - c.sent_s, reached - c.sent_s, c.censored)
    if metric == "time_to_final_answer_s" and c.unjudged:  # those that were cut off alone would tell a falsehood
        return np.full(len(c.records), np.nan), np.ones(len(c.records), bool)
    if metric == "time_to_final_answer_s":
        return _either(np.where(c.ok, reached - c.sent_s, np.nan), reached - c.sent_s, c.censored)
    if metric in ("tool_call_start_s", "tool_call_s"):
        return _calls(c, metric, reached - c.sent_s)
    thought = c.thinking_tokens != 0
    if metric == "thinking_s":
        return _either(np.where(thought, c.answer_s - c.first_s, np.nan), reached - c.first_s, c.censored & thought)
    if metric == "reasoning_tokens":
        known = np.isfinite(c.answer_s) | c.ok
        return _either(np.where(known, c.thinking_tokens, np.nan), c.thinking_tokens, c.censored)
    if metric == "answer_tokens":
        total = np.where(np.isfinite(c.completion_tokens), c.completion_tokens, c.tokens)
        left = np.maximum(total - c.thinking_tokens, 0.0)
        return _either(np.where(c.ok, left, np.nan), left, c.censored & np.isfinite(c.answer_s))
    whole = metric in OF_WHOLE_ANSWER.values()
    begun_s, tokens = (c.sent_s, c.tokens) if whole else (c.first_s, c.tokens_after_first)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(tokens > 0, (c.last_s - begun_s) / tokens, np.nan)
        return (tpot if metric.endswith("tpot_s") else np.where(tpot > 0, 1 / tpot, np.nan)), np.ones(len(tpot), bool)


def _calls(c: Pass, metric: str, reached_s: Floats) -> tuple[Floats, Bools]:
    """When the first call began, or the last one was complete; censored where one was begun, or had to come."""
    begun = np.array([bool(r.tool_calls) for r in c.records], bool)
    owed = np.array([r.output_form == "call" for r in c.records], bool)
    if metric == "tool_call_start_s":
        at = [r.chunk_s[r.tool_calls[0].first_chunk] - _number(r.sent_s) if r.tool_calls else np.nan for r in c.records]
        return _either(np.array(at, np.float64), reached_s, c.censored & owed)
    at = [max((r.chunk_s[one.last_chunk] for one in r.tool_calls), default=np.nan) - _number(r.sent_s) for r in c.records]
    return _either(np.where(c.ok, np.array(at, np.float64), np.nan), reached_s, c.censored & (begun | owed))


def _either(exact: Floats, reached: Floats, censored: Bools) -> tuple[Floats, Bools]:
    known = np.isfinite(exact)
    return np.where(known, exact, np.where(censored, reached, np.nan)), known
