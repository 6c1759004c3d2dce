"""Closed loops whose truth is known, as the columns of passes: thousands of runs without a disk."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from loadtest.metrics.request_arrays import Pass
from tests.support import builders

CHUNKS = 48  # of each answer; a chunk carries its share of the tokens
THOUGHT = 36
TOKENS = 1000.0  # mean of an answer, thinking included
PACE_S = 0.05
SLOT_S = 2.0


@cache
def record(prompt, outcome):
    """What columns do not hold: whose answer it is, and how it ended."""
    return replace(builders.request(), prompt_id=f"p{prompt}", outcome=outcome)


@dataclass(frozen=True)
class Loop:
    """C streams whose answers are log-normal in length (variation `cv`), as are the waits for their first tokens (mean
    `ttft_s`); each request `noise` faster or slower per token than the others, each pass `drift`, and the whole machine
    `jitter` from one slot of time to the next. `slower`: all of it so many times.

    It ends with `requests`, or, where they are null, is cut off after `duration_s`. `ramp`: streams begin over the length of
    an answer, as they do behind a warm-up.
    """

    concurrency: int
    requests: int | None = None
    duration_s: float = 0.0
    cv: float = 0.5
    ttft_s: float = 0.25
    noise: float = 0.02
    drift: float = 0.0
    jitter: float = 0.0
    slower: float = 1.0
    ramp: bool = False

    @property
    def mean_s(self):
        """Mean time of an answer."""
        paced_s = TOKENS * PACE_S * math.exp((self.noise**2 + self.drift**2) / 2)
        return self.slower * (self.ttft_s + paced_s)

    def one(self, rng, repeat=1, lengths=None):
        """One pass; `lengths` draws what the prompts alone decide, so that two passes may be given equal work."""
        n = self.requests or math.ceil(4 * self.concurrency * (2 + self.duration_s / self.mean_s))
        tokens = np.maximum(CHUNKS, np.round(TOKENS * self._varied(lengths or rng, n)))
        pace = self.slower * PACE_S * np.exp(rng.normal(0, self.noise, n) + rng.normal(0, self.drift))
        waits = self.slower * self.ttft_s * self._varied(rng, n)
        sent = self._sent(waits + tokens * pace, rng)
        arrivals = (sent + waits)[:, None] + np.linspace(0, 1, CHUNKS) * (tokens * pace)[:, None]
        sent, arrivals = self._jittered(rng, sent, arrivals)
        begun = sent < (np.inf if self.requests else self.duration_s)
        return self._columns(repeat, sent[begun], arrivals[begun], tokens[begun])

    def _varied(self, rng, n):
        spread = math.sqrt(math.log(1 + self.cv**2))
        return np.exp(rng.normal(-(spread**2) / 2, spread, n))

    def _sent(self, lengths, rng):
        """When each request is sent: by whichever stream is free first."""
        free = sorted(rng.uniform(0, self.mean_s if self.ramp else 0.0, self.concurrency).tolist())
        sent = []
        for length in lengths.tolist():
            sent.append(free[0])
            heapq.heapreplace(free, free[0] + length)
        return np.array(sent)

    def _jittered(self, rng, *times):
        """The same moments on a machine whose pace changes from slot to slot, for all streams at once."""
        if not self.jitter:
            return list(times)
        slots = np.arange(0, max(float(np.max(one)) for one in times) + 2 * SLOT_S, SLOT_S)
        took = SLOT_S * np.exp(rng.normal(-(self.jitter**2) / 2, self.jitter, len(slots) - 1))
        return [np.interp(one, slots, np.concatenate(([0.0], np.cumsum(took)))) for one in times]

    def _columns(self, repeat, sent, arrivals, tokens):
        end = np.inf if self.requests else self.duration_s
        came = arrivals <= end
        whole = came[:, -1]
        weights = np.broadcast_to(tokens[:, None] / CHUNKS, arrivals.shape)
        arrived = came.sum(axis=1) * tokens / CHUNKS
        return Pass(
            concurrency=self.concurrency,
            repeat=repeat,
            records=tuple(record(i, "ok" if done else "cut_off") for i, done in enumerate(whole.tolist())),
            measured=np.ones(len(sent), bool),
            sent_s=sent,
            ended_s=np.minimum(arrivals[:, -1], end),
            first_s=np.where(came[:, 0], arrivals[:, 0], np.nan),
            answer_s=np.where(came[:, THOUGHT], arrivals[:, THOUGHT], np.nan),
            last_s=np.where(came[:, 0], np.where(came, arrivals, 0.0).max(axis=1), np.nan),
            tokens=arrived,
            tokens_after_first=np.maximum(arrived - tokens / CHUNKS, 0.0),
            thinking_tokens=np.minimum(arrived, THOUGHT * tokens / CHUNKS),
            completion_tokens=np.where(whole, tokens, np.nan),
            estimated=np.zeros(len(sent), bool),
            token_s=arrivals[came],
            token_weight=weights[came].astype(np.float32),
            token_owner=np.broadcast_to(np.arange(len(sent))[:, None], arrivals.shape)[came].astype(np.int32),
        )
