"""Is the share of requests within a limit above the share that an SLO asks for? Judged after each request, at 5 % in all.

"p90 below 2 s" is "more than 90 % of requests take less than 2 s". Each request is one trial, so the question may be asked
after each of them, and the level may end at the first certain answer: the mixture of likelihood ratios

    m = B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k))

is a martingale where p is the true share, and exceeds 20 at any time in at most 5 % of levels (Ville 1939; Robbins 1970).
The prior has the mean of the share asked for and is as wide as that allows, so that requests which all agree decide soon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.metrics.figures import Interval

ALPHA = 0.05
_HALVINGS = 50


@dataclass(slots=True)
class RunningShare:
    """Requests judged so far against one limit. `target`: the share asked for, between 0 and 1.

    A request that was not followed to its end is neither within nor outside: `within` counts those that surely are, and
    `outside` likewise.
    """

    target: float
    n: int = 0
    within: int = 0
    outside: int = 0
    verdict: bool | None = None  # True: surely more than the target are within; False: surely fewer; it never changes

    def add(self, is_within: bool | None) -> None:
        """Count one request, in the order of sending; None: not known."""
        self.n += 1
        self.within += is_within is True
        self.outside += is_within is False
        if self.verdict is None:
            self.verdict = self._judged()

    def _judged(self) -> bool | None:
        """Unknown requests count against either answer."""
        if self.within > self.target * self.n and self._is_excluded(self.within, self.target):
            return True
        if self.n - self.outside < self.target * self.n and self._is_excluded(self.n - self.outside, self.target):
            return False
        return None

    def _is_excluded(self, within: int, share: float) -> bool:
        return _log_mixture(within, self.n, self.target) - _log_likelihood(within, self.n, share) > math.log(1 / ALPHA)

    @property
    def interval(self) -> Interval:
        """Of the share, at 95 %, whenever one looks; unknown requests widen it.

        >>> share = RunningShare(0.9)
        >>> for _ in range(60):
        ...     share.add(True)
        >>> share.verdict, [round(end, 3) for end in share.interval]
        (True, [0.92, 1.0])
        """
        return self._end(self.within, 0.0), self._end(self.n - self.outside, 1.0)

    def _end(self, within: int, far: float) -> float:
        """The last share between the one seen and `far` that is not excluded."""
        if self.n == 0:
            return far
        near = within / self.n
        if not self._is_excluded(within, far):
            return far
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            near, far = (near, middle) if self._is_excluded(within, middle) else (middle, far)
        return near


def needed_to_decide(target: float) -> int:
    """Requests that decide where all of them are within.

    >>> needed_to_decide(0.5), needed_to_decide(0.9), needed_to_decide(0.99)
    (8, 46, 473)
    """
    n = 1
    while _log_mixture(n, n, target) - _log_likelihood(n, n, target) <= math.log(1 / ALPHA):
        n += 1
    return n


def _log_mixture(k: int, n: int, target: float) -> float:
    a, b = max(1.0, target / (1 - target)), max(1.0, (1 - target) / target)
    return _log_beta(a + k, b + n - k) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(k: int, n: int, share: float) -> float:
    """-inf where the share cannot have given these counts."""
    parts = [(k, share), (n - k, 1 - share)]
    if any(count and p <= 0 for count, p in parts):
        return -math.inf
    return math.fsum(count * math.log(p) for count, p in parts if count)
