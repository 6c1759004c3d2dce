"""Output tokens a second of a closed loop: from its steady window, or, where that is too short, from the parts of a cycle.

Each of C users repeats one cycle: a prefill, then N - 1 steps. While it lasts, each other user has one prefill too, and a
prefill halts the steps of all, or a share h of them where engines mix both. So

    tokens / s = C N / (q (1 + (C - 1) h) + (N - 1) s)

with N the mean tokens of an answer, q the seconds in which a first token is waited for, per request, and s the mean gap
without a prefill in it, at the mean context of the long run (renewal reward: Ross, Stochastic Processes, 3.6). A short
window counts the prefills with which all users begin at once, and so is 10 to 18 % low at 8 users; this is the rate of the
long run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from loadtest.metrics import intervals, steady_window
from loadtest.metrics.figures import Estimate
from loadtest.metrics.intervals import MIN_PASSES, Floats
from loadtest.metrics.level_schema import WindowSpan
from loadtest.metrics.request_arrays import Bools, Pass

Method = Literal["steady window", "renewal"]

STRETCHES = 10  # parts of a pass that are taken for independent
MIN_STRETCHES = 5  # for a line through them
MAX_IDLE_SHARE = 0.05  # of a user's time between two requests: above it, the loop is not closed
MIN_WINDOW = 5.0  # median requests: a shorter window is biased by the prefills with which it begins
MAX_QUEUED_SHARE = 0.05  # of a pass in which first tokens are waited for although others go on: above it, requests queue


def tokens_per_s(passes: Sequence[Pass]) -> tuple[Estimate, Method]:
    """Total output tokens/s of all passes over one level, and how they were found: by their steady windows, or, where the
    shortest is too short, by renewal, if the loop is closed, has begun as a whole, and does not queue in the server."""
    spans = [(one, span) for one in passes if (span := steady_window.steady(one)) is not None]
    if not spans:
        return steady_window.no_window(passes), "steady window"
    by_window = steady_window.window_tokens_per_s(spans)
    held = steady_window.median_requests(spans)
    if held is None or held >= MIN_WINDOW or spans[0][0].concurrency == 1:
        return by_window, "steady window"
    cycles = [cycle_of(one, span) for one, span in spans]
    known = [one for one in cycles if one is not None]
    if len(known) < len(cycles):
        return by_window, "steady window"
    if len(known) < MIN_PASSES:
        return _pooled(known), "renewal"
    return intervals.mean(np.array([_pooled([one]).value or 0.0 for one in known])), "renewal"


@dataclass(frozen=True, slots=True)
class UserCycle:
    """What a cycle of one pass is made of: `tokens` of its answers, and those after the first chunk; seconds of prefills
    (`first_token_s`, per request of each run of prefills without a pause) and mean gaps (`gap_s`, of ten parts of the
    pass, at which users had `age_tokens` before them). `halted`: the share of steps that prefills of others halt."""

    concurrency: int
    tokens: Floats
    tokens_after_first: Floats
    first_token_s: Floats
    gap_s: Floats
    age_tokens: Floats
    halted: float


def cycle_of(one: Pass, span: WindowSpan) -> UserCycle | None:
    """The parts of a pass's cycle; None where its loop is not closed, requests queue in the server, tokens come in
    bursts, or a part is missing.

    Warm-up requests that are still under way halt the others too, and so are among the prefills.
    """
    finished, began = one.measured & one.ok, np.isfinite(one.sent_s) & np.isfinite(one.first_s)
    if one.bursty or np.sum(finished) < one.concurrency or not _is_closed(one, began):
        return None
    begins, ends, requests = _runs(one.sent_s[began], one.first_s[began])
    gap_s, age_tokens = _gaps(one, span, begins, ends)
    if not len(gap_s) or not float(np.mean(gap_s)) > 0 or not np.any(one.tokens_after_first[finished] > 0):
        return None
    halted = _halted(one, begins, ends, float(np.mean(gap_s)))
    length_s = float(np.max(one.last_s[began]) - np.min(one.sent_s[began]))
    if float(np.sum(ends - begins)) * (1 - halted) > MAX_QUEUED_SHARE * length_s:
        return None
    return UserCycle(
        concurrency=one.concurrency,
        tokens=one.tokens[finished],
        tokens_after_first=one.tokens_after_first[finished],
        first_token_s=(ends - begins) / requests,
        gap_s=gap_s,
        age_tokens=age_tokens,
        halted=halted,
    )


def _is_closed(one: Pass, use: Bools) -> bool:
    """Does each of C users send its next request as soon as the last has ended?"""
    users: dict[tuple[str, int], list[int]] = {}
    for i in np.flatnonzero(use):
        users.setdefault((one.records[i].worker, one.records[i].user), []).append(int(i))
    if len(users) < one.concurrency:
        return False
    idle_s = busy_s = 0.0
    for requests in users.values():
        ordered = sorted(requests, key=lambda i: float(one.sent_s[i]))
        busy_s += math.fsum(float(one.ended_s[i] - one.sent_s[i]) for i in ordered)
        idle_s += math.fsum(max(0.0, float(one.sent_s[b] - one.ended_s[a])) for a, b in pairwise(ordered))
    return idle_s <= MAX_IDLE_SHARE * busy_s


def _runs(sent_s: Floats, first_s: Floats) -> tuple[Floats, Floats, Floats]:
    """Stretches in which some first token is waited for: begin, end, and the requests in each."""
    order = np.argsort(sent_s)
    sent, reached = sent_s[order], np.maximum.accumulate(first_s[order])
    opens = np.concatenate(([True], sent[1:] > reached[:-1]))
    places = np.flatnonzero(opens)
    last = np.append(places[1:], len(sent)) - 1
    return sent[places], reached[last], (last - places + 1).astype(np.float64)


def _halted(one: Pass, begins: Floats, ends: Floats, gap_s: float) -> float:
    """Of the steps that users could take while a first token is waited for, the share that they do not."""
    decoding = np.isfinite(one.first_s)
    edges = np.column_stack((begins, ends)).ravel()  # prefills before each edge, so that an overlap is a difference
    before = np.concatenate(([0.0], np.cumsum(np.diff(edges) * (np.arange(len(edges) - 1) % 2 == 0))))
    reached, left = (np.interp(times[decoding], edges, before) for times in (one.last_s, one.first_s))
    could = float(np.sum(reached - left)) / gap_s
    place = np.searchsorted(ends, one.token_s)
    during = (place < len(ends)) & (np.append(begins, np.inf)[place] < one.token_s)
    later = one.token_s > one.first_s[one.token_owner]
    did = float(np.sum(one.token_weight[during & later & (one.token_s < np.append(ends, np.inf)[place])]))
    return min(1.0, max(0.0, 1 - did / could)) if could > 0 else 1.0


def _gaps(one: Pass, span: WindowSpan, begins: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Mean gaps between tokens, in ten parts of the time in which all C users were at it, none with a prefill in it; and how
    many tokens the users had before them on average."""
    follows = (one.token_owner[1:] == one.token_owner[:-1]) & (one.token_weight[1:] > 0)
    early, late, tokens = one.token_s[:-1][follows], one.token_s[1:][follows], one.token_weight[1:][follows]
    age = _age_tokens(one)[1:][follows]
    following = np.searchsorted(ends, early, side="right")
    next_begin = np.append(begins, np.inf)[following]
    use = (next_begin >= late) & (early >= span.start_s) & (late <= span.end_s)
    if not np.any(use):
        return np.zeros(0), np.zeros(0)
    early, late, tokens, age = early[use], late[use], tokens[use], age[use]
    length = max(float(np.max(late) - np.min(early)), 1e-9)
    part = np.minimum((late - np.min(early)) / length * STRETCHES, STRETCHES - 1).astype(np.int64)
    seconds, counted = np.bincount(part, late - early, STRETCHES), np.bincount(part, tokens, STRETCHES)
    ages, there = np.bincount(part, age * tokens, STRETCHES), counted > 0
    return np.asarray(seconds[there] / counted[there], np.float64), np.asarray(ages[there] / counted[there], np.float64)


def _age_tokens(one: Pass) -> Floats:
    """Tokens of its request that came before each chunk."""
    before = np.cumsum(one.token_weight, dtype=np.float64) - one.token_weight
    first = np.searchsorted(one.token_owner, one.token_owner)
    return np.asarray(before - before[first], np.float64)


class _Gaps(NamedTuple):
    """Gaps of stretches at the mean age of the long run, and what that age adds to the error of their mean."""

    gap_s: Floats
    error_s: float


def _at_mean_age(cycle: UserCycle, tokens: Floats) -> _Gaps:
    """A step reads the context of all, so gaps grow with the tokens that users have before them (`age_tokens`), and a short
    run, which all begin together, is young. In the long run that age is E[N^2] / 2 E[N]: the gaps are moved there along
    their line.
    """
    gap_s, ages = cycle.gap_s, cycle.age_tokens
    spread = ages - np.mean(ages)
    square = float(np.sum(spread**2))
    if len(gap_s) < MIN_STRETCHES or square == 0 or len(tokens) < 2:
        return _Gaps(gap_s, 0.0)
    slope = max(0.0, float(np.sum(spread * gap_s)) / square)
    mean = float(np.mean(tokens))
    age = float(np.mean(tokens**2)) / (2 * mean)
    moved = np.asarray(gap_s + slope * (age - ages), np.float64)
    age_error = float(np.std(tokens**2 - 2 * age * tokens, ddof=1)) / (2 * mean * math.sqrt(len(tokens)))
    slope_error = math.sqrt(float(np.sum((moved - np.mean(moved)) ** 2)) / (len(gap_s) - 2) / square)
    return _Gaps(moved, math.hypot(slope * age_error, slope_error * (age - float(np.mean(ages)))))


def _pooled(cycles: Sequence[UserCycle]) -> Estimate:
    tokens, after, first_token_s = (
        np.concatenate(of) for of in zip(*((c.tokens, c.tokens_after_first, c.first_token_s) for c in cycles), strict=True)
    )
    gaps = [_at_mean_age(c, tokens) for c in cycles]
    halted = float(np.mean([one.halted for one in cycles]))
    at_once = float(np.mean(tokens - after))
    return renewal_tokens_per_s(
        cycles[0].concurrency,
        tokens,
        first_token_s,
        np.concatenate([one.gap_s for one in gaps]),
        halted=halted,
        at_once=at_once,
        gap_error_s=math.sqrt(sum(one.error_s**2 for one in gaps)) / len(gaps),
    )


def renewal_tokens_per_s(
    concurrency: int,
    tokens: Floats,
    first_token_s: Floats,
    gap_s: Floats,
    *,
    halted: float = 1.0,
    at_once: float = 1.0,
    gap_error_s: float = 0.0,
) -> Estimate:
    """The rate with its 95 % interval, by the delta method on its logarithm.

    `tokens`: one entry an answer; `first_token_s`: lone first tokens; `gap_s`: mean gaps of independent stretches of the
    run; `at_once`: the tokens of a first chunk; `gap_error_s`: standard error of the mean gap beside that. No interval
    where one of the three has fewer than two entries.

    >>> round(renewal_tokens_per_s(8, np.full(4, 101.0), np.full(4, 0.25), np.full(4, 0.02)).value, 2)
    202.0
    """
    if not (len(tokens) and len(first_token_s) and len(gap_s)):
        return Estimate(None, None, 0, reason="no finished answer with a first token and gaps")
    parts = [intervals.mean(one) for one in (tokens, first_token_s, gap_s)]
    n, q, s = (float(one.value or 0.0) for one in parts)
    prefills = 1 + (concurrency - 1) * halted
    cycle_s = prefills * q + (n - at_once) * s
    value = concurrency * n / cycle_s
    if any(one.ci95 is None for one in parts):
        return Estimate(value, None, len(tokens), reason="one answer or one stretch has no interval")
    shares = (abs(1 - n * s / cycle_s) / n, prefills / cycle_s, (n - at_once) / cycle_s)
    errors = [share * _error(one) for share, one in zip(shares, parts, strict=True)]
    errors[2] = math.hypot(errors[2], shares[2] * gap_error_s)
    variance = math.fsum(error**2 for error in errors)
    df = variance**2 / math.fsum(e**4 / (one.n - 1) for e, one in zip(errors, parts, strict=True)) if variance else 1.0
    spread = math.exp(min(intervals.t_critical(df) * math.sqrt(variance), 300.0))
    return Estimate(value, (value / spread, value * spread), len(tokens))


def _error(found: Estimate) -> float:
    """Standard error behind a t interval (its upper half, as the lower may be cut at 0)."""
    assert found.ci95 is not None
    assert found.value is not None
    return (found.ci95[1] - found.value) / intervals.t_critical(found.n - 1)
