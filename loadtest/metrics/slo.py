"""Service-level objectives, written `METRIC:pQ<VALUE`: parsing them, judging a level by them, and goodput by request."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from loadtest.errors import UsageError

DURATIONS = ("ttft_s", "time_to_first_answer_s", "time_to_final_answer_s", "thinking_s", "itl_s", "tpot_s")

SPEEDS = ("tokens_per_s_per_user",)

SINGLE = ("output_tokens_per_s", "answers_per_hour", "goodput_answers_per_hour", "accuracy", "failed_share")

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

_FORM = re.compile(r"([a-z_]+)(?::(p50|p90|p95|p99|mean|min|max))?(<|>)([0-9.eE+-]+)")


@dataclass(frozen=True, slots=True)
class Slo:
    """One objective: `statistic` of `metric` below (or above) `limit`, in the metric's own unit."""

    text: str
    metric: str
    statistic: str
    below: bool
    limit: float

    def holds(self, value: float) -> bool:
        return value < self.limit if self.below else value > self.limit


def parse(text: str) -> Slo:
    """An objective from its text; raises UsageError naming the form and the metrics.

    >>> parse("ttft_s:p90<2").limit
    2.0
    """
    match = _FORM.fullmatch(text.replace(" ", ""))
    known = (*DURATIONS, *SPEEDS, *SINGLE)
    if match is None or match[1] not in known or (match[2] is None) != (match[1] in SINGLE):
        raise UsageError(
            f"SLO {text!r}: expected METRIC:pQ<VALUE such as ttft_s:p90<2, or METRIC>VALUE, METRIC one of {', '.join(known)}"
        )
    try:
        limit = float(match[4])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"SLO {text!r}: expected a finite number after {match[3]}, got {match[4]!r}")
    return Slo(text=text, metric=match[1], statistic=match[2] or "value", below=match[3] == "<", limit=limit)
