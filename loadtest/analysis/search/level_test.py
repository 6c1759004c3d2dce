"""One level of a search: is every SLO surely met, or one surely broken? Asked while its requests come.

An SLO on a quantile, and `failed_share`, is judged request by request (`decision.running_share`). Any other is judged on the
figures of the level after 16, 32, 64, ... requests; look k uses 0.05 / (k (k + 1)), which adds up to 5 % over all looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.analysis.search.order import Answers, ArrivalsOrder, SendingOrder, UsersOrder
from loadtest.decision.running_share import RunningShare, needed_to_decide
from loadtest.decision.search_steps import Word
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import METRICS, QUANTILES, REACHED_QUANTILES
from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.request_arrays import Pass, per_request
from loadtest.metrics.schema import SearchObjective
from loadtest.metrics.slo import Slo
from loadtest.records.engine_facts import SearchedKind
from loadtest.records.schema import FAILED

FIRST_LOOK = 16  # requests
LEAST_REQUESTS = 128  # that a level may take by default
PER_USER = 8

Figures = Callable[[], LevelFigures | None]


def order_of(kind: SearchedKind) -> SendingOrder | None:
    """How the requests of a level are judged; None: as users do it."""
    return None if kind == "users" else ArrivalsOrder()


def least_requests(level: int, kind: SearchedKind) -> int:
    """Requests before which nothing is certain of a level: one of every user; of a rate, as for a first look."""
    return level if kind == "users" else FIRST_LOOK


def target_share(slo: Slo) -> float | None:
    """The share of requests that must be within the limit; None where the SLO is not on requests one by one.

    >>> from loadtest.metrics.slo import parse_slo
    >>> [target_share(parse_slo(text)) for text in ("ttft_s:p90<2", "tokens_per_s_per_user:p10>15", "ttft_s:mean<2")]
    [0.9, 0.9, None]
    """
    if slo.metric == "failed_share":
        share = 1 - slo.limit if slo.below else slo.limit
        return share if 0 < share < 1 else None
    if METRICS[slo.metric].shape not in ("censored", "plain"):
        return None
    if slo.statistic in REACHED_QUANTILES and not slo.below:
        return QUANTILES[REACHED_QUANTILES[slo.statistic]]
    if slo.statistic not in QUANTILES:
        return None
    return QUANTILES[slo.statistic] if slo.below else 1 - QUANTILES[slo.statistic]


def most_requests(objectives: Sequence[Slo], level: int, kind: SearchedKind = "users") -> int:
    """Requests after which a level is left undecided, unless the user names another number: 8 a user, at least 128 (of a
    rate, whose requests wait for each other, 512), and twice what the SLOs need where every request agrees."""
    needed = [needed_to_decide(share) for slo in objectives if (share := target_share(slo)) is not None]
    least = max(LEAST_REQUESTS, PER_USER * level) if kind == "users" else 4 * LEAST_REQUESTS
    return max(least, 2 * max(needed, default=0))


def outcomes(columns: Pass, slo: Slo) -> list[bool | None]:
    """Is each request within the limit of an SLO? A failed one never is. None: not known, as it was not followed so far."""
    failed = np.array([record.outcome in FAILED for record in columns.records], bool)
    if slo.metric == "failed_share":
        return [bool(one) == (not slo.below) for one in failed]
    values, observed = per_request(columns, slo.metric)
    return [_outcome(slo, *one) for one in zip(values.tolist(), observed.tolist(), failed.tolist(), strict=True)]


def _outcome(slo: Slo, value: float, observed: bool, failed: bool) -> bool | None:
    if failed:
        return False
    if observed and math.isfinite(value):
        return slo.holds(value)
    passed = math.isfinite(value) and slo.holds(value) != slo.below  # the value is larger than this, so it stays there
    return (not slo.below) if passed else None


@dataclass(slots=True)
class _Judged:
    """One SLO, with the share of requests within it where it is judged by them."""

    slo: Slo
    share: RunningShare | None


class LevelTest:
    """The SLOs of one level as its requests come, pass after pass. `figures`: of the level as it is now; None: not yet.
    `least`: requests before which nothing is certain. `order`: in which they may be judged."""

    def __init__(self, objectives: Sequence[Slo], least: int, figures: Figures, order: SendingOrder | None = None) -> None:
        targets = [target_share(slo) for slo in objectives]
        self._objectives = [
            _Judged(slo, None if target is None else RunningShare(target))
            for slo, target in zip(objectives, targets, strict=True)
        ]
        self._least, self._figures = least, figures
        self._order = order or UsersOrder(least)
        self._by_figures: dict[str, SearchObjective] = {}
        self.n = 0  # requests judged

    def take(self, columns: Pass) -> None:
        """Requests that have ended since. Each is judged when all that were sent before it have ended too, or else short
        answers would be judged first."""
        self._queue(columns)
        for answers in self._order.ready():
            self._judge(answers)
            self._look(self.n)

    def take_all(self, columns: Pass) -> None:
        """A whole pass that is over. It is looked at no more: `judge_figures` does so once for all."""
        self._queue(columns)
        for answers in self._order.rest():
            self._judge(answers)

    def _queue(self, columns: Pass) -> None:
        by_slo = [outcomes(columns, one.slo) for one in self._objectives]
        for at in range(len(columns.records)):
            self._order.add(columns, at, [one[at] for one in by_slo])

    def _judge(self, answers: Answers) -> None:
        self.n += 1
        for one, is_within in zip(self._objectives, answers, strict=True):
            if one.share is not None and one.share.verdict is None:
                one.share.add(is_within)

    def _look(self, n: int) -> None:
        """Judge by figures, at the numbers of requests at which that is due."""
        due = n >= FIRST_LOOK and n & (n - 1) == 0
        if due and self._open_ones() and (figures := self._figures()) is not None:
            self.judge_figures(figures)

    def judge_figures(self, figures: LevelFigures) -> None:
        """Judge the SLOs that are on figures of the level as a whole."""
        self._by_figures |= {slo.text: by_figures(slo, figures, looks(self.n)) for slo in self._open_ones()}

    def _open_ones(self) -> list[Slo]:
        return [one.slo for one in self._objectives if one.share is None and not self._is_settled(one.slo)]

    def _is_settled(self, slo: Slo) -> bool:
        return slo.text in self._by_figures and self._by_figures[slo.text].verdict != "undecided"

    @property
    def objectives(self) -> tuple[SearchObjective, ...]:
        """What is said of each SLO so far."""
        return tuple(self._said(one) for one in self._objectives)

    def _said(self, one: _Judged) -> SearchObjective:
        if one.share is None:
            nothing = Bounded(None, None)
            unseen = SearchObjective(slo=one.slo.text, verdict="undecided", figure=nothing, needed=one.slo.limit)
            return self._by_figures.get(one.slo.text, unseen)
        share = one.share
        seen = Bounded(share.within / share.n, share.interval) if share.n else Bounded(None, None)
        return SearchObjective(
            slo=one.slo.text, verdict=_word(share.verdict), figure=seen, needed=share.target, of_requests=True
        )

    @property
    def word(self) -> Word:
        """Of the level. Nothing is certain before every user could have one request judged."""
        words = [one.verdict for one in self.objectives]
        if self.n < self._least:
            return "undecided"
        return "broken" if "broken" in words else "within" if set(words) == {"within"} else "undecided"


def looks(n: int) -> int:
    """How often figures were looked at with so many requests: after 16, 32, 64, ...

    >>> looks(15), looks(16), looks(63), looks(64)
    (1, 1, 2, 3)
    """
    return 1 + max(0, int(math.log2(max(n, 1) / FIRST_LOOK)))


def by_figures(slo: Slo, level: LevelFigures, look: int) -> SearchObjective:
    """An SLO by the level's figure, its interval widened to what look number `look` may use."""
    found = level.estimate(slo.metric, slo.statistic)
    ends = _widened(found, look)
    answers = {slo.holds(end) for end in ends or ()}
    verdict = _word(answers.pop() if len(answers) == 1 else None)
    return SearchObjective(slo=slo.text, verdict=verdict, figure=Bounded(found.value, ends), needed=slo.limit)


def _widened(found: Estimate, look: int) -> tuple[float, float] | None:
    if found.ci95 is None or found.value is None:
        return None
    wider = intervals.t_critical(math.inf, 0.05 / (look * (look + 1)) / 2) / intervals.t_critical(math.inf)
    low, high = (found.value + wider * (end - found.value) for end in found.ci95)
    return low, high


def _word(met: bool | None) -> Word:
    return "undecided" if met is None else "within" if met else "broken"
