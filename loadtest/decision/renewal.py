"""Output tokens a second of a closed loop from its parts, where a run is too short for a steady window.

Each of C users repeats one cycle: a prefill, then N - 1 steps. While it lasts, each of the C users has one prefill, and a
prefill halts the steps of all. So a cycle takes C q + (N - 1) s, and

    tokens / s = C N / (C q + (N - 1) s)

with N the mean tokens of an answer, q the seconds of a lone first token, s the mean gap without a prefill in it (renewal
reward: Ross, Stochastic Processes, 3.6). The long run's rate, without the idle ends of a short one.
"""

from __future__ import annotations

import math

from loadtest.metrics import intervals
from loadtest.metrics.figures import Estimate
from loadtest.metrics.intervals import Floats


def renewal_tokens_per_s(concurrency: int, tokens: Floats, first_token_s: Floats, gap_s: Floats) -> Estimate:
    """The rate with its 95 % interval, by the delta method on its logarithm.

    `tokens`: one entry an answer; `first_token_s`: lone first tokens; `gap_s`: mean gaps of independent stretches of the
    run (ten parts of it, or its passes). No interval where one of the three has fewer than two entries.

    >>> import numpy as np
    >>> round(renewal_tokens_per_s(8, np.full(4, 101.0), np.full(4, 0.25), np.full(4, 0.02)).value, 2)
    202.0
    """
    if not (len(tokens) and len(first_token_s) and len(gap_s)):
        return Estimate(None, None, 0, reason="no finished answer with a first token and gaps")
    parts = [intervals.mean(one) for one in (tokens, first_token_s, gap_s)]
    n, q, s = (float(one.value or 0.0) for one in parts)
    cycle_s = concurrency * q + (n - 1) * s
    value = concurrency * n / cycle_s
    if any(one.ci95 is None for one in parts):
        return Estimate(value, None, len(tokens), reason="one answer or one stretch has no interval")
    shares = (abs(1 - n * s / cycle_s) / n, concurrency / cycle_s, (n - 1) / cycle_s)
    errors = [share * _error(one) for share, one in zip(shares, parts, strict=True)]
    variance = math.fsum(error**2 for error in errors)
    df = variance**2 / math.fsum(e**4 / (one.n - 1) for e, one in zip(errors, parts, strict=True)) if variance else 1.0
    spread = math.exp(min(intervals.t_critical(df) * math.sqrt(variance), 300.0))
    return Estimate(value, (value / spread, value * spread), len(tokens))


def whole_run_rate(tokens: float, seconds: float) -> float | None:
    """Tokens that arrived / seconds from the first request to the last token: what other tools report. Idle ends count."""
    return tokens / seconds if seconds > 0 else None


def _error(found: Estimate) -> float:
    """Standard error behind a t interval (its upper half, as the lower may be cut at 0)."""
    assert found.ci95 is not None
    assert found.value is not None
    return (found.ci95[1] - found.value) / intervals.t_critical(found.n - 1)
