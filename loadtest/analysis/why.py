"""Why two engines differ in their times to the final answer: tokens, seconds per token, and waiting, in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.metrics.intervals import Floats
from loadtest.metrics.request_arrays import Pass
from loadtest.metrics.schema import Why


def explain_difference(a: Sequence[Pass], b: Sequence[Pass]) -> Why:
    """What the difference of mean times to final answer (a - b, s) is made of; the parts add up to it exactly.

    With W the mean wait for the first token, N the mean tokens after it and S their mean seconds each (weighted by
    token), the mean time is W + N S. So a - b = (W_a - W_b) + (N_a - N_b)(S_a + S_b)/2 + (S_a - S_b)(N_a + N_b)/2; the
    second part is split into tokens thought and tokens answered. Population: measured requests that finished.
    """
    x, y = _parts(a), _parts(b)
    if x is None or y is None:
        return Why(difference_s=None, reason="one side finished no request")
    if math.isnan(x.thought) or math.isnan(y.thought):
        return Why(difference_s=None, reason="thinking is not told from the answer")
    pace, length = (x.seconds_per_token_s + y.seconds_per_token_s) / 2, (x.thought + x.answered + y.thought + y.answered) / 2
    thought_s, answered_s = (x.thought - y.thought) * pace, (x.answered - y.answered) * pace
    speed_s, waiting_s = (x.seconds_per_token_s - y.seconds_per_token_s) * length, x.wait_s - y.wait_s
    lost = x.lost + y.lost
    return Why(
        difference_s=math.fsum((thought_s, answered_s, speed_s, waiting_s)),
        tokens_thought_s=thought_s,
        tokens_answered_s=answered_s,
        seconds_per_token_s=speed_s,
        waiting_s=waiting_s,
        n_a=x.n,
        n_b=y.n,
        reason=f"{lost} unfinished requests are not in it" if lost else None,
    )


class _Parts(NamedTuple):
    """Mean wait, tokens thought and answered after the first chunk, seconds per token, requests used and not used."""

    wait_s: float
    thought: float
    answered: float
    seconds_per_token_s: float
    n: int
    lost: int


def _parts(passes: Sequence[Pass]) -> _Parts | None:
    use = [one.measured & one.ok & np.isfinite(one.first_s) for one in passes]
    n = int(sum(np.sum(mask) for mask in use))
    if n == 0:
        return None
    wait = math.fsum(float(np.sum((one.first_s - one.sent_s)[mask])) for one, mask in zip(passes, use, strict=True))
    spent = math.fsum(float(np.sum((one.last_s - one.first_s)[mask])) for one, mask in zip(passes, use, strict=True))
    tokens = math.fsum(float(np.sum(one.tokens_after_first[mask])) for one, mask in zip(passes, use, strict=True))
    thought = math.fsum(float(np.sum(_thought_after_first(one)[mask])) for one, mask in zip(passes, use, strict=True))
    lost = int(sum(np.sum(one.measured & ~mask) for one, mask in zip(passes, use, strict=True)))
    return _Parts(wait / n, thought / n, (tokens - thought) / n, spent / tokens if tokens else 0.0, n, lost)


def _thought_after_first(one: Pass) -> Floats:
    return np.clip(one.thinking_tokens - (one.tokens - one.tokens_after_first), 0.0, one.tokens_after_first)
