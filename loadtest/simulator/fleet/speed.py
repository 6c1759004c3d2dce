"""How long one step of a replica takes, as tables: from a model of a step, or from measured levels.

A step that computes P prompt tokens with Q query-key pairs and one token for each of N streams of K tokens of context:

    step_s = batch_s[P + N] + streams_s[N] + context_s x K + pair_s[P] x Q
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError
from loadtest.perfmodel.step_time import StepWork

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.integer[Any]]

_PAIRS = 1 << 40  # so many pairs that the rest of a step does not blur the time of one


@dataclass(frozen=True, slots=True, eq=False)
class Speed:
    """Seconds of a step. The index is a number of tokens (`batch_s`, `pair_s`) or of streams (`streams_s`)."""

    batch_s: Floats
    streams_s: Floats
    context_s: float
    pair_s: Floats

    def step_s(self, prompt_tokens: Counts, pairs: Counts, streams: Counts, context_tokens: Counts) -> Floats:
        """Seconds of steps with prompt tokens in them, one an element."""
        seconds: Floats = self.batch_s[prompt_tokens + streams] + self.streams_s[streams]
        return seconds + self.context_s * context_tokens + self.pair_s[prompt_tokens] * pairs

    def decode_s(self, streams: Counts) -> Floats:
        """Seconds of a step without prompt tokens, less the reading of contexts."""
        seconds: Floats = self.batch_s[streams] + self.streams_s[streams]
        return seconds

    def times(self, factor: float) -> Speed:
        """The same with every step so many times as long."""
        return replace(
            self,
            batch_s=self.batch_s * factor,
            streams_s=self.streams_s * factor,
            context_s=self.context_s * factor,
            pair_s=self.pair_s * factor,
        )


def from_steps(step_time_s: Callable[[StepWork], float], most_prompt_tokens: int, most_streams: int) -> Speed:
    """Read the tables off a model of a step that is linear in context and in pairs.

    >>> speed = from_steps(lambda work: 1.0 + work.prefill_tokens + 0.5 * work.kv_read_tokens, 4, 2)
    >>> float(speed.context_s)
    0.5
    """
    most = most_prompt_tokens + most_streams
    batch = np.array([0.0, *(step_time_s(StepWork(prefill_tokens=n)) for n in range(1, most + 1))])
    streams = np.array([0.0, *(step_time_s(StepWork(decode_streams=n)) for n in range(1, most_streams + 1))])
    streams[1:] -= batch[1 : most_streams + 1]
    with_pairs = [step_time_s(StepWork(prefill_tokens=p, prefill_pairs=_PAIRS)) for p in range(1, most_prompt_tokens + 1)]
    pair = [
        0.0,
        *(
            (long - short) / _PAIRS
            for long, short in zip(with_pairs, batch[1 : most_prompt_tokens + 1].tolist(), strict=True)
        ),
    ]
    one = step_time_s(StepWork(decode_streams=1))
    context = (step_time_s(StepWork(decode_streams=1, kv_read_tokens=1_000_000)) - one) / 1e6
    return Speed(batch, streams, context, np.array(pair))


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """What a level of so many concurrent requests showed: mean seconds per output token after the first."""

    concurrency: int
    token_s: float


def from_levels(
    levels: Sequence[MeasuredLevel], *, prefill_s: float, prompt_tokens: float, output_tokens: float, most_prompt_tokens: int
) -> Speed:
    """Seconds of a step from levels of a closed loop, with straight lines between them.

    `prefill_s` is the wait for the first token of a lone request of `prompt_tokens`; `output_tokens` the mean output. While
    a stream decodes, each other stream begins about one request: a token's mean time holds (C - 1) prefill_s /
    output_tokens of their prefills, which is taken out, as the fleet adds prefills itself. Context is read at the measured
    mean.
    Known up to the highest level; beyond it nothing is.
    """
    known = sorted(levels, key=lambda level: level.concurrency)
    if not known or known[0].token_s <= 0 or prefill_s <= 0 or prompt_tokens < 1 or output_tokens < 1:
        raise UsageError("speed of a replica: expected levels with a time per token and to the first token, got none")
    users = np.array([level.concurrency for level in known], dtype=float)
    stalls = (users - 1) * prefill_s / output_tokens
    token_s = np.array([level.token_s for level in known])
    step = np.maximum.accumulate(np.maximum(token_s - stalls, 0.1 * token_s))
    most = known[-1].concurrency
    streams = np.asarray(np.interp(np.arange(most + 1), users, step), dtype=np.float64)
    streams[0] = 0.0
    per_token_s = prefill_s / prompt_tokens
    batch = per_token_s * np.arange(most_prompt_tokens + most + 1, dtype=np.float64)
    streams[1:] -= batch[1 : most + 1]
    return Speed(batch, streams, 0.0, np.zeros(most_prompt_tokens + 1))
