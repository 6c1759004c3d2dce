"""Service-level objectives (SLOs), written `METRIC:pQ<VALUE`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import cast

from loadtest.errors import UsageError
from loadtest.metrics.catalogue import METRICS, OBJECTIVES, Statistic

_FORM = re.compile(r"([a-z_]+)(?::(p50|p90|p95|p99|mean|min|max))?(<|>)([0-9.eE+-]+)")


@dataclass(frozen=True, slots=True)
class Slo:
    """One objective: `statistic` of `metric` below (or above) `limit`, in the metric's own unit."""

    text: str
    metric: str
    statistic: Statistic
    below: bool
    limit: float

    @property
    def of_requests(self) -> bool:
        """Does it limit each request, not the level as a whole?"""
        return METRICS[self.metric].shape != "estimate"

    def holds(self, value: float) -> bool:
        return value < self.limit if self.below else value > self.limit


def parse_slo(text: str) -> Slo:
    """An objective from its text; raises UsageError naming the form and the metrics.

    >>> parse_slo("ttft_s:p90<2").limit
    2.0
    """
    match = _FORM.fullmatch(text.replace(" ", ""))
    if match is None or match[1] not in OBJECTIVES or (match[2] is None) != (METRICS[match[1]].shape == "estimate"):
        raise UsageError(
            f"SLO {text!r}: expected METRIC:pQ<VALUE such as ttft_s:p90<2, or METRIC>VALUE, METRIC one of"
            f" {', '.join(OBJECTIVES)}"
        )
    try:
        limit = float(match[4])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"SLO {text!r}: expected a finite number after {match[3]}, got {match[4]!r}")
    statistic = cast("Statistic", match[2] or "value")
    return Slo(text=text, metric=match[1], statistic=statistic, below=match[3] == "<", limit=limit)
