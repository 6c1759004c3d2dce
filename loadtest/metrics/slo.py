"""Service-level objectives (SLOs), written `METRIC:STATISTIC<LIMIT`: `ttft_s:p90<2s`, `tokens_per_s_per_user:p10>15`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import METRICS, OBJECTIVES, QUANTILES, REACHED_QUANTILES, Statistic, statistics_of
from loadtest.metrics.intervals import Floats

Sign = Literal["<", "<=", ">", ">="]

_SIGN = re.compile(r"<=|>=|<|>")
_LIMIT = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(.*)", re.IGNORECASE)

_RELATIONS: Mapping[Sign, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

UNITS: Mapping[str, Mapping[str, float]] = {  # what may follow a limit, as a factor, by the unit of the metric
    "seconds": {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "share": {"%": 0.01},
}


@dataclass(frozen=True, slots=True)
class Slo:
    """One objective: `statistic` of `metric` on the side `sign` of `limit`, in the metric's own unit."""

    text: str
    metric: str
    statistic: Statistic
    sign: Sign
    limit: float

    @property
    def of_requests(self) -> bool:
        """Does it limit each request, not the level as a whole?"""
        return METRICS[self.metric].shape != "estimate"

    @property
    def below(self) -> bool:
        """Is the limit an upper one?"""
        return self.sign.startswith("<")

    @property
    def requests_needed(self) -> int | None:
        """Requests without which its quantile has no figure; None where it limits no quantile over requests.

        >>> parse_slo("ttft_s:p90<2").requests_needed, parse_slo("tokens_per_s_per_user:p10>15").requests_needed
        (36, 36)
        """
        quantile = REACHED_QUANTILES.get(self.statistic, self.statistic)
        if quantile not in QUANTILES or METRICS[self.metric].shape == "gaps":
            return None
        return intervals.n_for_quantile(QUANTILES[quantile])

    def holds(self, value: float) -> bool:
        return bool(_RELATIONS[self.sign](value, self.limit))

    def which_hold(self, values: Floats) -> NDArray[np.bool_]:
        """`holds` of each of them."""
        return np.asarray(_RELATIONS[self.sign](values, self.limit), bool)


def parse_slo(text: str) -> Slo:
    """An objective from its text: METRIC:STATISTIC, or METRIC where that is a single figure; < <= > >=; a number and, if it
    is not the metric's own, a unit (`500ms`, `2min`, `1%`). Spaces do not matter.

    Raises UsageError, which says what is wrong with this one and what to write.

    >>> parse_slo("ttft_s:p90 <= 500ms").limit
    0.5
    """
    found = _SIGN.search(text)
    if found is None:
        raise UsageError(f"SLO {text!r}: expected a limit after < or >, such as ttft_s:p90<2, got none")
    figure, limit = text[: found.start()].replace(" ", ""), text[found.end() :].replace(" ", "")
    metric, _, statistic = figure.partition(":")
    sign = cast("Sign", found[0])
    if metric not in OBJECTIVES:
        raise UsageError(f"SLO {text!r}: unknown metric {metric!r}: expected one of {_closest(metric, OBJECTIVES)}")
    _check_statistic(text, metric, statistic, f"{sign}{limit}")
    _check_side(text, metric, figure, sign, limit)
    return Slo(text, metric, cast("Statistic", statistic or "value"), sign, _limit(text, metric, sign, limit))


def _check_statistic(text: str, metric: str, statistic: str, rest: str) -> None:
    known = statistics_of(metric)
    if known == ("value",):
        if statistic:
            raise UsageError(f"SLO {text!r}: {metric} is a single figure without statistics: expected {metric}{rest}")
    elif not statistic:
        typical = "p90" if METRICS[metric].better == "less" else "p10"
        named = typical if typical in known else METRICS[metric].typical
        raise UsageError(f"SLO {text!r}: expected a statistic of {metric}, such as {metric}:{named}{rest}; one of "
                         f"{', '.join(known)}")  # fmt: skip
    elif statistic not in known:
        raise UsageError(f"SLO {text!r}: unknown statistic {statistic!r} of {metric}: expected one of "
                         f"{_closest(statistic, known)}")  # fmt: skip


def _check_side(text: str, metric: str, figure: str, sign: Sign, limit: str) -> None:
    """A limit that good figures break is a mistake."""
    better = METRICS[metric].better
    if better is None or (better == "less") == sign.startswith("<"):
        return
    turned = {"<": ">", ">": "<"}[sign[0]] + sign[1:]
    bound = "an upper" if better == "less" else "a lower"
    raise UsageError(f"SLO {text!r}: of {metric} {better} is better: expected {bound} limit, {figure}{turned}{limit}")


def _limit(text: str, metric: str, sign: Sign, written: str) -> float:
    """The number, in the metric's own unit."""
    parts = _LIMIT.fullmatch(written)
    value = float(parts[1]) if parts is not None else math.nan
    if parts is None or not math.isfinite(value):
        raise UsageError(f"SLO {text!r}: expected a finite number after {sign}, got {written!r}")
    own = METRICS[metric].unit
    factors = UNITS.get(own, {own: 1.0})
    if parts[2] and parts[2] not in factors:
        raise UsageError(f"SLO {text!r}: unknown unit {parts[2]!r} of {metric} ({own}): expected none, or one of "
                         f"{', '.join(factors)}")  # fmt: skip
    return value * factors.get(parts[2], 1.0)


def _closest(word: str, known: Iterable[str]) -> str:
    """The known words, the most alike first; numbers by their distance.

    >>> _closest("p92", ["p50", "p90", "p95"]), _closest("ttft", ["itl_s", "ttft_s"])
    ('p90, p95, p50', 'ttft_s, itl_s')
    """
    number = re.fullmatch(r"p(\d{1,4})", word)

    def distance(one: str) -> float:
        other = re.fullmatch(r"p(\d+)", one)
        if number is not None:
            return abs(int(number[1]) - int(other[1])) if other is not None else math.inf
        return -SequenceMatcher(None, word.lower(), one).ratio()

    return ", ".join(sorted(known, key=distance))
