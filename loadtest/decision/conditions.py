"""What must hold for composed times: the tests of a natural run against the line, and of lengths against load.

Each is a figure with a limit; what it is a condition of, and what follows where it breaks: docs/deciding.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.decision.step_line import StepLine
from loadtest.metrics import intervals
from loadtest.metrics.figures import Bounded
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Bools, Ints, Pass

MAX_OWN_TIMES = 0.03  # share by which a natural run's own decoding may differ from what the line says
LOAD_P = 0.001  # p-value below which lengths are said to depend on load: a false alarm costs hours
STRETCHES = 10  # of a natural run's time
MIN_TOKENS = 1000  # of a natural run at its full concurrency, so that it can be held against a line


@dataclass(frozen=True, slots=True)
class OwnTimes:
    """Seconds that a natural run's tokens took and what the line says of them, by stretches of its time."""

    took_s: Floats
    expected_s: Floats


def own_share(passes: Sequence[OwnTimes]) -> Bounded:
    """How much longer natural runs took than the line says, as a share; its interval is over stretches of all passes, so
    that a machine that was disturbed for a while has a wide one."""
    took_s, expected_s = (np.concatenate(one) for one in zip(*((p.took_s, p.expected_s) for p in passes), strict=True))
    found = intervals.ratio(took_s, expected_s)
    ends = found.ci95 and (found.ci95[0] - 1, found.ci95[1] - 1)
    return Bounded(None if found.value is None else found.value - 1, ends)


def own_times(natural: Pass, line: StepLine, beside_s: float) -> OwnTimes | None:
    """A natural run's tokens against the line; None where too few came.

    Counts the gaps between tokens while all streams were in flight, each against `a + b K` with K what all of them held at
    that moment, and `beside_s` for every other request that began meanwhile.
    """
    flight = _flight(natural)
    since, at, tokens = _gaps(natural)
    use = flight.streams[_before(flight, at)] >= natural.concurrency
    since, at, tokens = since[use], at[use], tokens[use]
    if float(np.sum(tokens)) < MIN_TOKENS:
        return None
    step_s = float(line.a_s) + float(line.b_s) * flight.held[_before(flight, at)]
    firsts = np.sort(natural.first_s[np.isfinite(natural.first_s)])
    begun = np.searchsorted(firsts, at, side="right") - np.searchsorted(firsts, since, side="right")
    expected_s, order = tokens * step_s + beside_s * begun, np.argsort(at, kind="stable")
    stretches = np.array_split(order, STRETCHES)
    took = [float(np.sum((at - since)[one])) for one in stretches]
    return OwnTimes(np.array(took), np.array([float(np.sum(expected_s[one])) for one in stretches]))


@dataclass(frozen=True, slots=True)
class _Flight:
    """After each event of a pass, in order of time: requests in flight, and the tokens that they hold."""

    time_s: Floats
    streams: Floats
    held: Floats


def _flight(one: Pass) -> _Flight:
    prompts = np.array([r.prompt_tokens or 0 for r in one.records], np.float64)
    begun = np.isfinite(one.first_s)
    times = np.concatenate([one.sent_s[begun], one.first_s[begun], one.token_s, one.ended_s[begun]])
    n, k = int(np.sum(begun)), len(one.token_s)
    streams = np.concatenate([np.ones(n), np.zeros(n + k), -np.ones(n)])
    held = np.concatenate([np.zeros(n), prompts[begun], one.token_weight, -(prompts + one.tokens)[begun]])
    order = np.argsort(times, kind="stable")
    return _Flight(times[order], np.cumsum(streams[order]), np.cumsum(held[order]))


def _before(flight: _Flight, at: Floats) -> Ints:
    """The last event before each of these times."""
    return np.maximum(np.searchsorted(flight.time_s, at, side="left") - 1, 0)


def _gaps(one: Pass) -> tuple[Floats, Floats, Floats]:
    """Of every chunk but the first of its request: when the one before it came, when it came, its tokens."""
    follows = np.flatnonzero((one.token_owner[1:] == one.token_owner[:-1]) & (one.token_weight[1:] > 0)) + 1
    return one.token_s[follows - 1], one.token_s[follows], one.token_weight[follows].astype(np.float64)


@dataclass(frozen=True, slots=True)
class LoadTest:
    """Do answers end sooner or later among more streams? `log_hazard`: per stream in flight; positive: sooner. Two-sided
    p-value of no dependence (score test of Cox's model, its variance clustered by prompt)."""

    log_hazard: float
    p_value: float


def lengths_by_load(passes: Sequence[Pass]) -> LoadTest | None:
    """Whether the length of an answer depends on how many are in flight, by all answers of natural runs.

    An answer that is at its token l at some moment has the load of that moment; of those that reach l, does the one that
    ends there have more or less of it? The load varies as a run begins and ends. None: it never does.
    """
    loads, lengths, prompts = _loads(passes)
    residuals, information = np.zeros(len(lengths)), 0.0
    for i, tokens in enumerate(lengths):
        if not math.isfinite(tokens):
            continue
        at_risk = np.flatnonzero((lengths >= tokens) | ~np.isfinite(lengths))
        seen = np.array([_load_at(loads[j], tokens) for j in at_risk])
        at_risk, seen = at_risk[np.isfinite(seen)], seen[np.isfinite(seen)]
        apart = seen - float(np.mean(seen))
        residuals[at_risk] -= apart / len(seen)
        residuals[i] += _load_at(loads[i], tokens) - float(np.mean(seen))
        information += float(np.var(seen))
    return _of_residuals(residuals, prompts, information)


def _of_residuals(residuals: Floats, prompts: Sequence[str], information: float) -> LoadTest | None:
    """The score is the sum of what each answer adds. Answers to one prompt are alike: the variance grows by as much as their
    sums vary more than they would if they were not."""
    _, prompt_of = np.unique(prompts, return_inverse=True)
    by_prompt, alone = np.bincount(prompt_of, residuals), float(np.sum(residuals**2))
    if information <= 0 or alone <= 0 or len(by_prompt) < 2:
        return None
    variance = information * max(1.0, float(np.sum(by_prompt**2)) / alone)
    score = float(np.sum(residuals))
    return LoadTest(score / information, math.erfc(abs(score) / math.sqrt(2 * variance)))


_Loads = tuple[Floats, Floats]  # of one answer: its tokens so far, and the streams in flight then


def _loads(passes: Sequence[Pass]) -> tuple[list[_Loads], Floats, list[str]]:
    """Every measured answer's load at each chunk; its length, infinite where it did not end by itself; its prompt."""
    loads, lengths, prompts = [], [], []
    for one in passes:
        flight = _flight(one)
        ended: Bools = one.ok & one.measured
        for i in np.flatnonzero(one.measured & np.isfinite(one.first_s)):
            begin, end = np.searchsorted(one.token_owner, (i, i + 1))
            seen = flight.streams[_before(flight, one.token_s[begin:end])]
            loads.append((np.cumsum(one.token_weight[begin:end], dtype=np.float64), seen))
            lengths.append(float(one.tokens[i]) if ended[i] else math.inf)
            prompts.append(one.records[i].prompt_id)
    return loads, np.array(lengths, np.float64), prompts


def _load_at(one: _Loads, tokens: float) -> float:
    reached, streams = one
    place = int(np.searchsorted(reached, tokens - 1e-6))
    return float(streams[place]) if place < len(streams) else math.nan
