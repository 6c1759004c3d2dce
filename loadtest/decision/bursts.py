"""Bursts of one start at one concurrency as points of its line: seconds of a step at a known sum of contexts.

Of each burst counts the stretch in which every stream decodes: from the last first token to the first last token. Its two
halves are two points. What arrives in one chunk counts with the tokens that it carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loadtest.decision.composition import EngineSpeed
from loadtest.decision.step_line import StepLine, fit_step_line
from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Ints, Pass

HALVES = 2
MIN_STEPS = 8  # of each stream in a half: with fewer the first and the last weigh too much


@dataclass(frozen=True, slots=True)
class BurstPoints:
    """One start at one concurrency: each point's sum of contexts (tokens) and seconds of a step; and the mean wait of lone
    requests for their first token."""

    concurrency: int
    context_tokens: Floats
    step_s: Floats
    first_token_s: float

    @property
    def line(self) -> StepLine:
        return fit_step_line(self.context_tokens, self.step_s)


def burst_points(columns: Pass) -> BurstPoints | None:
    """The points of a pass of bursts; None where fewer than two bursts of different contexts ended well, or no lone request.

    Population: measured requests that reached their forced length; a burst counts if all of its streams did.
    """
    whole = list(_whole_bursts(columns))
    points = [point for burst in whole for point in _halves(columns, burst)]
    lone = [i for i, r in enumerate(columns.records) if r.burst is None and columns.measured[i] and columns.ok[i]]
    waits_s = (columns.first_s - columns.sent_s)[lone]
    contexts = np.array([context for context, _ in points], np.float64)
    if len(whole) < 2 or len(points) < 2 or not len(waits_s) or np.ptp(contexts) == 0:
        return None
    return BurstPoints(columns.concurrency, contexts, np.array([s for _, s in points], np.float64), float(np.mean(waits_s)))


def _whole_bursts(columns: Pass) -> Iterator[Ints]:
    """The requests of each burst whose every stream reached its length, by the server's own count of its prompt."""
    burst = np.array([-1 if r.burst is None else r.burst for r in columns.records], np.int64)
    told = np.array([r.prompt_tokens is not None for r in columns.records], bool)
    for number in np.unique(burst[burst >= 0]):
        ours = np.flatnonzero((burst == number) & columns.measured & columns.ok & told)
        if len(ours) == columns.concurrency:
            yield ours


def _halves(columns: Pass, burst: Ints) -> Iterator[tuple[float, float]]:
    """Sum of contexts and seconds of a step in each half of the stretch in which all streams decode."""
    begin_s, end_s = float(np.max(columns.first_s[burst])), float(np.min(columns.last_s[burst]))
    edges = np.linspace(begin_s, end_s, HALVES + 1)
    for low_s, high_s in pairwise(edges.tolist()):
        streams = [_stream(columns, int(i), low_s, high_s) for i in burst]
        if min(tokens for _, tokens, _ in streams) >= MIN_STEPS:
            took_s, tokens = (sum(one[k] for one in streams) for k in (0, 1))
            yield sum(one[2] for one in streams), took_s / tokens


def _stream(columns: Pass, request: int, low_s: float, high_s: float) -> tuple[float, float, float]:
    """Of one stream between two times: seconds, the tokens that came in them, and its mean context."""
    begin, end = np.searchsorted(columns.token_owner, (request, request + 1))
    times, weights = columns.token_s[begin:end], columns.token_weight[begin:end].astype(np.float64)
    last_of_arrival = ~np.append(columns.together[begin + 1 : end], False)
    inside = np.flatnonzero((times >= low_s) & (times <= high_s) & (weights > 0) & last_of_arrival)
    if len(inside) < 2:
        return 0.0, 0.0, 0.0
    first, last = inside[0], inside[-1]
    reached = np.cumsum(weights)
    context = float(columns.records[request].prompt_tokens or 0) + (reached[first] + reached[last]) / 2
    return float(times[last] - times[first]), float(reached[last] - reached[first]), float(context)


def engine_speed(starts: Sequence[BurstPoints], *, mixes: bool = False) -> EngineSpeed:
    """The starts of one engine at one concurrency, one line each."""
    first_s = np.array([one.first_token_s for one in starts], np.float64)
    if len({len(one.step_s) for one in starts}) == 1:  # as a rule: all at once
        contexts, steps_s = np.array([one.context_tokens for one in starts]), np.array([one.step_s for one in starts])
        return EngineSpeed(starts[0].concurrency, fit_step_line(contexts, steps_s), first_s, mixes)
    lines = [one.line for one in starts]
    line = StepLine(np.array([float(one.a_s) for one in lines]), np.array([float(one.b_s) for one in lines]))
    return EngineSpeed(starts[0].concurrency, line, first_s, mixes)
