"""The steady window of a pass, and what arrived inside it: the same instants bound tokens and time.

Window: from the first instant at which C measured requests are in flight until the last instant at which they are, C the
level's concurrency; a request is in flight from `sent_s` to `ended_s`. Gaps between the requests of one user lie inside.
A user whose warm-up lasts until the others have taken all measured requests never has one. So where C measured requests are
never in flight together, those of the warm-up count too, from the first measured one on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from loadtest.metrics import intervals, survival
from loadtest.metrics.figures import Estimate, unknown
from loadtest.metrics.intervals import MIN_PASSES, Floats
from loadtest.metrics.level_schema import WindowCheck, WindowChecks, WindowSpan
from loadtest.metrics.request_arrays import Bools, Pass
from loadtest.records.schema import Lack

REQUESTS_PER_USER = 2  # measured in a level at least, so that it has a window
RESOLUTION_S = 1e-9  # of the clocks: two instants closer than that are one
BATCHES = 10  # batch means of one window (Schmeiser 1982: 10 to 30)


Windows = Sequence[tuple[Pass, WindowSpan]]  # passes with their steady windows

_NEEDED: Mapping[Lack, str] = {"start": "when each request was sent", "chunks": "when each token came"}  # for a window


def steady(columns: Pass) -> WindowSpan | None:
    """The steady window of a pass; None where C requests were never in flight together (`no_window` says why)."""
    sent = np.isfinite(columns.sent_s) & (columns.ended_s > columns.sent_s)
    measured = sent & columns.measured
    if not np.any(measured) or columns.lacks & _NEEDED.keys():
        return None
    return _all_in_flight(columns, measured) or _all_in_flight(columns, sent, float(np.min(columns.sent_s[measured])))


def _all_in_flight(columns: Pass, use: Bools, from_s: float = -math.inf) -> WindowSpan | None:
    """From the first until the last instant at which C requests of `use` were in flight, none before `from_s`."""
    use = use & (columns.ended_s > from_s)
    starts, ends = np.maximum(columns.sent_s[use], from_s), columns.ended_s[use]
    times = np.concatenate((ends, starts))
    steps = np.concatenate((-np.ones(len(ends)), np.ones(len(starts))))
    order = np.lexsort((steps, times))  # at ties an end comes first: a successor does not overlap what it follows
    flying = np.cumsum(steps[order])
    full = np.flatnonzero(flying >= columns.concurrency)
    if not len(full):
        return None
    window = WindowSpan(float(times[order][full[0]]), float(times[order][full[-1] + 1]))
    return window if window.length_s > RESOLUTION_S else None


def no_window(passes: Sequence[Pass]) -> Estimate:
    """A figure that has no window: why, and how many measured requests would give one, where that is what it lacks.

    Population: the measured requests of the passes without a window.
    """
    if lacking := sorted({why for one in passes for lack, why in _NEEDED.items() if lack in one.lacks}):
        return unknown(f"no steady window: {' and '.join(lacking)} is not told")
    found = [one for one in passes if steady(one) is None]
    users, n = found[0].concurrency, sum(int(np.sum(one.measured)) for one in found)
    needed = REQUESTS_PER_USER * users * len(found)
    if n < needed:
        reason = (
            f"no steady window: {needed - n} more measured requests needed, {REQUESTS_PER_USER} for each of {users} users"
        )
        return Estimate(None, None, n, needed, reason)
    failed = sum(int(np.sum(one.measured & ~one.ok & ~one.censored)) for one in found)
    why = f"{failed} of {n} requests failed" if failed else "they pause between requests, or start too late"
    return Estimate(None, None, n, reason=f"no steady window: the {users} users never all waited at once; {why}")


def tokens_in(columns: Pass, window: WindowSpan, edges: int = 1) -> Floats:
    """Tokens that arrived in each of `edges` equal parts of the window, from all requests, finished or not."""
    inside = (columns.token_s > window.start_s) & (columns.token_s <= window.end_s)
    parts = np.ceil((columns.token_s[inside] - window.start_s) / window.length_s * edges).astype(np.int64) - 1
    return np.asarray(np.bincount(np.clip(parts, 0, edges - 1), columns.token_weight[inside], edges), np.float64)


def window_tokens_per_s(passes: Windows) -> Estimate:
    """Tokens in the windows / their length, passes (one at least) summed. Interval: t over passes from three on, else over
    batch means (each window in 10 equal parts)."""
    edges = 1 if len(passes) >= MIN_PASSES else BATCHES
    totals = np.concatenate([tokens_in(columns, window, edges) for columns, window in passes])
    sizes = np.repeat([window.length_s / edges for _, window in passes], edges)
    estimate = intervals.ratio(totals, np.asarray(sizes, np.float64))
    if float(np.sum(totals)) == 0:
        return unknown("no token arrived inside the window")
    return estimate


def run_tokens_per_s(passes: Sequence[Pass]) -> Estimate:
    """Tokens of measured requests / seconds from the first sent to the last token, passes summed; idle ends count.

    Interval: t over passes from three on; fewer have none.
    """
    if any("start" in one.lacks for one in passes):
        return unknown(f"{_NEEDED['start']} is not told")
    spans = [(one, one.measured & np.isfinite(one.sent_s)) for one in passes]
    tokens = np.array([float(np.sum(one.tokens[one.measured])) for one, _ in spans])
    lengths = np.array([_run_length_s(one, use) for one, use in spans])
    found = intervals.ratio(tokens, lengths)
    if not found.value:
        return Estimate(None, None, 0, reason="no token arrived")
    if len(passes) < MIN_PASSES:
        return Estimate(found.value, None, len(passes), MIN_PASSES, "an interval needs three passes")
    return found


def _run_length_s(one: Pass, use: Bools) -> float:
    reached = one.last_s[use & np.isfinite(one.last_s)]
    return float(np.max(reached) - np.min(one.sent_s[use])) if len(reached) else 0.0


def per_hour(passes: Windows, good: Sequence[Bools]) -> Estimate:
    """Answers among `good` (one mask a pass, one at least) an hour: what the tokens in the windows amount to.

    Tokens in the window x answers per token of the measured requests / its length. Counting the answers that end there
    would miss those under way when it closes, and users begin together: per user and pass (1 - cv^2) / 2 answers too
    few, cv the variation of their length (Cox, Renewal Theory, 4.2). Tokens are credited as they arrive and have no such
    bias. Interval: t over passes from three on, else from the relative errors of both factors (batches, requests), on the
    log scale; with no answer at all, exact Poisson.
    """
    hours = np.array([window.length_s / 3600 for _, window in passes])
    if not any(bool(np.any(mask)) for mask in good):
        return intervals.poisson_rate(0, math.fsum(hours))
    if len(passes) >= MIN_PASSES:
        answers = [answers_in(columns, window, mask) for (columns, window), mask in zip(passes, good, strict=True)]
        return intervals.ratio(np.array(answers), hours)
    tokens, share = window_tokens_per_s(passes), _answers_per_token([columns for columns, _ in passes], good)
    return intervals.product(tokens, share, 3600.0)


def per_hour_at(rate: Estimate, passes: Sequence[Pass], good: Sequence[Bools]) -> Estimate:
    """Answers per hour among `good` (one mask a pass) at so many tokens/s: what `per_hour` says without a window."""
    if not any(bool(np.any(mask)) for mask in good):
        measured_s = math.fsum(_run_length_s(one, one.measured & np.isfinite(one.sent_s)) for one in passes)
        return intervals.poisson_rate(0, measured_s / 3600)
    return intervals.product(rate, _answers_per_token(passes, good), 3600.0)


def answers_in(columns: Pass, window: WindowSpan, good: Bools) -> float:
    """Answers among `good` that the tokens in a window amount to, by the answers per token of its pass."""
    per_token = _answers_per_token([columns], [good]).value
    return float(tokens_in(columns, window)[0]) * (per_token or 0.0)


def _answers_per_token(passes: Sequence[Pass], good: Sequence[Bools]) -> Estimate:
    """Of measured requests, those that were cut off making up for their absence by the weight of longer ones."""
    measured = [one.measured for one in passes]
    tokens = np.concatenate([one.tokens[use] for one, use in zip(passes, measured, strict=True)])
    ended = np.concatenate([~one.cut_off[use] for one, use in zip(passes, measured, strict=True)])
    answers = np.concatenate([mask[use] for mask, use in zip(good, measured, strict=True)])
    weights = survival.censoring_weights(tokens, ended)
    return intervals.ratio(weights * answers, weights * tokens)


def check_windows(passes: Windows, n_passes: int) -> WindowChecks:
    """Can the windows be trusted: long enough, without a trend, warm from their start."""
    if len(passes) < n_passes or not passes:
        missing = _check(False, None, f"{n_passes - len(passes)} of {n_passes} repeats have no steady window")
        return WindowChecks(long_enough=missing, steady=_unchecked("no window"), warm=_unchecked("no window"))
    return WindowChecks(long_enough=_long_enough(passes), steady=_steady(passes), warm=_warm(passes))


def median_requests(passes: Windows) -> float | None:
    """Median requests that the shortest window holds; None without a finished request."""
    lengths = np.concatenate([(c.ended_s - c.sent_s)[c.measured & c.ok & np.isfinite(c.sent_s)] for c, _ in passes])
    if not len(lengths):
        return None
    return min(window.length_s for _, window in passes) / max(float(np.median(lengths)), 1e-9)


def _long_enough(passes: Windows) -> WindowCheck:
    """Users fall out of step only after a few requests each: at least two median requests long."""
    times = median_requests(passes)
    if times is None:
        return _unchecked("no finished request")
    return _check(times >= 2, times, f"the shortest window holds {times:.1f} median requests (at least 2)")


def _steady(passes: Windows) -> WindowCheck:
    found = [intervals.trend(tokens_in(columns, window, BATCHES)) for columns, window in passes]
    change, p = max(found, key=lambda one: (one[1] < 0.01, abs(one[0])))
    said = f"tokens/s change by {change:+.1%} over the window (p = {p:.2g}; fails above 10 % at p < 0.01)"
    return _check(not (p < 0.01 and abs(change) > 0.1), change, said)


def _warm(passes: Windows) -> WindowCheck:
    """First measured request of each user against its later ones, by median seconds per token."""
    first: list[float] = []
    later: list[float] = []
    for columns, _ in passes:
        seen: set[tuple[str, int]] = set()
        for i in np.flatnonzero(columns.measured & (columns.tokens_after_first > 0)):
            r = columns.records[i]
            tpot = (columns.last_s[i] - columns.first_s[i]) / columns.tokens_after_first[i]
            (later if (r.worker, r.user) in seen else first).append(tpot)
            seen.add((r.worker, r.user))
    if len(first) < 3 or len(later) < 3:
        return _unchecked(f"{len(first)} first and {len(later)} later requests: 3 of each needed")
    change = float(np.median(first) / np.median(later) - 1) if np.median(later) > 0 else 0.0
    return _check(
        change < 0.1, change, f"first requests took {change:+.1%} more per token than later ones (fails from +10 %)"
    )


def _check(good: bool, value: float | None, reason: str) -> WindowCheck:
    return WindowCheck("pass" if good else "fail", value, reason)


def _unchecked(reason: str) -> WindowCheck:
    return WindowCheck("not_checked", None, reason)
