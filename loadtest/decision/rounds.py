"""Two servers that take turns: the round is the unit, and the interval holds whenever one looks.

Each round has one figure of either server, so their log ratio is paired: what both share (the hour, the prompts) drops out.
Of n rounds with mean d and standard deviation s, t = sqrt(n) (d - m) / s, and with a normal prior of variance g on the
effect in units of s (and the right Haar measure on s), the Bayes factor against a true mean of m is a test martingale:

    E = (1 + n g)^(-1/2) ((1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1) (1 + n g))))^(n / 2)

It exceeds 20 at any time in at most 5 % of duels of mean m (Ville 1939; Lai 1976; Perez-Ortiz et al. 2024). The interval is
all m for which it does not. g is large, as differences that matter are many times what rounds differ by.
"""

from __future__ import annotations

import math

import numpy as np

from loadtest.decision.starts import Effect, PairedStarts
from loadtest.metrics import intervals

ALPHA = 0.05
LEAST_ROUNDS = 3  # two have no bounded interval
MOST_ROUNDS = 40
_PRIOR = 25.0


def effect_of_rounds(pair: PairedStarts, start_sd: float | None = None) -> Effect | None:
    """log(a / b) over the rounds that both servers have; None of fewer than three.

    `start_sd`: how much starts of a server are known to differ (a share); then the interval is of servers that are started
    anew, else of these two as they stand.
    """
    n = pair.fewest
    if n < LEAST_ROUNDS:
        return None
    differences = pair.a[:n] - pair.b[:n]
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    restart = 0.0 if start_sd is None else math.sqrt(2) * start_sd
    spread = error * math.sqrt(n / 2)  # of one figure of one server
    return Effect(float(np.mean(differences)), math.hypot(error, restart), n - 1, n, n, spread)


def level_of_rounds(n: int) -> float:
    """The level of a t interval over n rounds that is as wide as the one that holds at every look.

    >>> [round(level_of_rounds(n), 4) for n in (3, 4, 6, 10, 40)]
    [0.0096, 0.0066, 0.0034, 0.0016, 0.0004]
    """
    return intervals.two_sided_p(_critical_t(n), n - 1)


def _critical_t(n: int) -> float:
    """The t at which E = 1 / alpha; infinite where no t reaches it."""
    grown = 1 + n * _PRIOR
    ratio = (math.sqrt(grown) / ALPHA) ** (2 / n)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / grown)) if n > 1 and ratio < grown else math.inf
