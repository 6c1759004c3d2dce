"""How much starts of a server vary, by an earlier run that measured it: for runs with one start each."""

from __future__ import annotations

import math

from loadtest.metrics import intervals
from loadtest.metrics.schema import Metrics

_LEVEL = 0.002  # the strictest that verdicts on up to ten pairs ask for


def careful_sd(sd: float, df: float) -> float:
    """A standard deviation from `df` degrees of freedom, taken so much larger that a normal interval with it is as wide as
    Student's, down to a level of 0.2 %.

    >>> round(careful_sd(0.01, 4), 4), round(careful_sd(0.01, 20), 4)
    (0.0232, 0.0115)
    """
    return sd * intervals.t_critical(df, _LEVEL / 2) / intervals.t_critical(math.inf, _LEVEL / 2)


def seen_start_sd(metrics: Metrics) -> float | None:
    """What to take for the variation of starts (a share) by the pairs of a run; None where no cell of a pair has two."""
    known = [one for one in metrics.decisions if one.start_sd is not None and one.unit == "start"]
    starts = {name: n for one in known for name, n in ((one.a, one.n_a), (one.b, one.n_b))}
    df = sum(n - 1 for n in starts.values())
    return careful_sd(max(one.start_sd or 0.0 for one in known), df) if df > 0 else None
