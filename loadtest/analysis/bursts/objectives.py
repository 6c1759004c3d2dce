"""SLOs at a concurrency that was measured by bursts.

Times to the final answer and rates are composed, with their intervals. A first token is only bounded: no wait is shorter
than that of lone requests, and hardly one longer than where all streams begin at once. Other metrics need natural passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from loadtest.decision.bursts import BurstPoints
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import DISTRIBUTION_STATISTICS, Statistic
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import ComposedLevel, SloResult
from loadtest.metrics.request_arrays import Pass
from loadtest.metrics.slo import Slo

LONG_SHARE = 0.95
_UNKNOWN = Bounded(None, None)
_TOLD: Mapping[str, tuple[Statistic, ...]] = {
    "time_to_final_answer_s": ("mean", "p50", "p90", "p95", "p99"),
    "tokens_per_s_per_user": ("mean", "p50", "p10", "p5", "p1"),
    "output_tokens_per_s": ("value",),
    "answers_per_hour": ("value",),
    "ttft_s": DISTRIBUTION_STATISTICS,
}


def is_told(slo: Slo) -> bool:
    """Do bursts and lengths tell whether it is met, so that no natural pass is needed?

    >>> from loadtest.metrics.slo import parse_slo
    >>> is_told(parse_slo("time_to_final_answer_s:p90<600")), is_told(parse_slo("itl_s:p99<0.2"))
    (True, False)
    """
    return slo.statistic in _TOLD.get(slo.metric, ())


def judge_composed(slo: Slo, level: ComposedLevel) -> SloResult:
    """Is it met? `met`: what the whole interval says; `likely`: the figure alone; both None where bursts do not tell."""
    if slo.metric == "ttft_s":
        return _result(slo, _UNKNOWN, met := _of_first_token(slo, level), met)
    found = level.estimate(slo.metric, slo.statistic) or _UNKNOWN
    ends = {slo.holds(end) for end in found.ci95 or () if end is not None}
    likely = None if found.value is None else slo.holds(found.value)
    return _result(slo, found, ends.pop() if len(ends) == 1 else None, likely)


def _of_first_token(slo: Slo, level: ComposedLevel) -> bool | None:
    longest_s, shortest_s = level.longest_first_token_s, level.first_token_s.low
    if longest_s is not None and slo.holds(longest_s):
        return True
    return False if shortest_s is not None and not slo.holds(shortest_s) else None


def _result(slo: Slo, found: Bounded, met: bool | None, likely: bool | None) -> SloResult:
    ends = None if found.low is None or found.high is None else (found.low, found.high)
    return SloResult(slo=slo.text, value=found.value, ci95=ends, met=met, likely=likely, n_needed=None, evidence="composed")


def longest_first_token_s(passes: Sequence[Pass], natural: Sequence[Pass], starts: Sequence[BurstPoints]) -> float | None:
    """The longest wait for the first token in bursts whose prompts are at least as long as `LONG_SHARE` of the natural
    run's, and two steps at the largest context, as others may decode meanwhile. None: no such burst, no natural run yet."""
    asked = [float(r.prompt_tokens) for one in natural for r in one.records if r.prompt_tokens is not None]
    if not asked:
        return None
    long = intervals.sample_quantile(np.sort(asked), LONG_SHARE)
    waits = [wait for one in passes if (wait := min(_waits(one, long), default=None)) is not None]
    if not (waits and starts):
        return None
    return max(waits) + 2 * max(float(np.max(one.step_s)) for one in starts)


def _waits(one: Pass, prompt_tokens: float) -> Iterator[float]:
    """The longest wait of each burst whose prompts are so long; the shortest such burst is close to what is asked."""
    bursts = np.array([-1 if r.burst is None else r.burst for r in one.records])
    told = np.array([(r.prompt_tokens or 0) >= prompt_tokens for r in one.records])
    for number in np.unique(bursts[bursts >= 0]):
        ours = np.flatnonzero((bursts == number) & one.measured & one.ok & told)
        if len(ours) == one.concurrency:
            yield float(np.max(one.first_s[ours] - one.sent_s[ours]))
