"""A replica in a steady state, in closed form: what requests see while a given number of them is in flight.

With n requests in flight (seats and KV cache limit how many of them run), mean output N, and
step_s(n) the seconds of a step over the contexts that n streams hold at a random moment (prompt + E[L^2] / 2 E[L] each):

    seconds per token   = step_s(n) + (n - 1) prompt_s / N            the prompts of the others between its tokens
    time to first token = queue + prompt_s + the rest of a step (uniform), and a whole one where prompts join a batch
    final answer        = time to first token + (L - 1) x seconds per token, at the quantile of the length L
    requests per second = n / (mean of the final answer)

It starts the searches by simulation, ranks the cells that are not simulated, and stands in for a quantile that too few
requests give. Fluctuations of n are left out, so waits near saturation are longer than it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loadtest.metrics.catalogue import QUANTILES, REACHED_QUANTILES, Statistic
from loadtest.metrics.slo import Slo
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet.arrivals import RequestMix
from loadtest.simulator.fleet.speed import Speed

_MOST_IN_FLIGHT = 1 << 20


class Load(Protocol):
    """A demand on a fleet, whatever it is made of."""

    def replicas_at(self, in_flight: float, requests_per_s: float) -> float:
        """Replicas that it takes if each has so many requests in flight and ends so many a second."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SteadyReplica:
    """One replica of a speed and an engine under a mix of requests."""

    speed: Speed
    config: EngineConfig
    workload: RequestMix

    @property
    def context_tokens(self) -> float:
        """What a stream holds at a random moment: a longer answer is met more often."""
        output = self.workload.output_tokens.astype(float)
        return self.workload.mean_prompt_tokens + float((output**2).mean() / output.mean()) / 2

    @property
    def seats(self) -> int:
        """Streams that run at once, by the engine's limit and the room of the KV cache."""
        room = int(self.config.kv_tokens / self.context_tokens)
        limit = self.config.max_running or self.config.behaviour.max_running
        return max(1, min(limit, room, len(self.speed.streams_s) - 1))

    def step_s(self, running: int) -> float:
        """A step without prompts."""
        streams = np.array([running])
        return float(self.speed.decode_s(streams)[0] + self.speed.context_s * self.context_tokens * running)

    def prompt_s(self, running: int) -> float:
        """What a mean prompt adds to the steps of so many streams; a lone one has its steps to itself."""
        prompt = self.workload.mean_prompt_tokens
        budget = self.config.prefill_budget_tokens or self.config.behaviour.prefill_budget_tokens
        beside = running if self.config.behaviour.mixed_batches and running > 1 else 0
        tokens = max(1, min(round(prompt), budget, len(self.speed.batch_s) - 1 - beside))
        return float(self.speed.batch_s[tokens + beside] - self.speed.batch_s[beside]) * prompt / tokens

    def token_s(self, in_flight: float) -> float:
        """Seconds per token after the first."""
        running = self._running(in_flight)
        return self.step_s(running) + (running - 1) * self.prompt_s(running) / self.workload.mean_output_tokens

    def first_token_s(self, in_flight: float, share: float = 0.5) -> float:
        """Time to first token that this share of the requests stays below."""
        running = self._running(in_flight)
        joined = 1 + share if self.config.behaviour.mixed_batches else share
        queue_s = max(0.0, in_flight / self.seats - 1) * self._cycle_s(running)
        return queue_s + joined * self.step_s(running) * (running > 1) + self.prompt_s(running)

    def requests_per_s(self, in_flight: float) -> float:
        """Requests that end, as many as begin."""
        running = min(in_flight, self.seats)
        return running / self._cycle_s(self._running(in_flight))

    def figure(self, metric: str, statistic: Statistic, in_flight: float) -> float | None:
        """A statistic of a metric; None for one that the closed form does not tell."""
        share = QUANTILES.get(REACHED_QUANTILES.get(statistic, statistic), 0.5 if statistic == "mean" else None)
        if metric == "output_tokens_per_s":
            return self.requests_per_s(in_flight) * self.workload.mean_output_tokens
        if share is None:
            return None
        if metric == "ttft_s":
            return self.first_token_s(in_flight, share)
        if metric == "tpot_s":
            return self.token_s(in_flight)
        if metric == "tokens_per_s_per_user":
            return 1 / self.token_s(in_flight)
        return self.answer_s(in_flight, statistic) if metric == "time_to_final_answer_s" else None

    def answer_s(self, in_flight: float, statistic: Statistic) -> float:
        """Mean or quantile of the time to the final answer: that of an output of such a length."""
        share = QUANTILES.get(REACHED_QUANTILES.get(statistic, statistic), 0.5)
        tokens = self._tokens(statistic, share)
        return self.first_token_s(in_flight) + max(0.0, tokens - 1) * self.token_s(in_flight)

    def longest_answer_s(self) -> float:
        """The longest answer, where every seat is taken and nobody waits for one."""
        return self.first_token_s(self.seats) + int(self.workload.output_tokens.max()) * self.token_s(self.seats)

    def settling_s(self, in_flight: float) -> float:
        """How long the requests in flight take to settle: their distance to a steady number shrinks by exp(-t / settling_s).

        1 / (d requests_per_s / d in_flight): near saturation many more in flight end hardly more a second, so it is long;
        inf beyond it.
        """
        running = max(1, round(in_flight))
        faster = self.requests_per_s(running) - (self.requests_per_s(running - 1) if running > 1 else 0.0)
        return 1 / faster if faster > 0 else math.inf

    def most_in_flight(self, objectives: Sequence[Slo]) -> int:
        """The most requests in flight that meet every objective it can tell; 0 where a lone one does not."""
        low, high = 0, 1
        while high <= _MOST_IN_FLIGHT and self.meets(objectives, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.meets(objectives, middle) else (low, middle)
        return low

    def replicas(self, load: Load, objectives: Sequence[Slo]) -> float | None:
        """The least replicas for a load, a share of one included; None where a lone request breaks an objective."""
        most = self.most_in_flight(objectives)
        if not most:
            return None
        counts = {*np.linspace(1, min(most, self.seats), 64).round().astype(int).tolist(), most}
        return min(load.replicas_at(one, self.requests_per_s(one)) for one in counts)

    def in_flight(self, load: Load, replicas: float) -> float:
        """Requests in flight at each of so many replicas; as many as there are seats where they do not suffice."""
        low, high = 0.0, float(self.seats)
        for _ in range(40):
            middle = (low + high) / 2
            enough = load.replicas_at(middle, self.requests_per_s(middle)) <= replicas if middle else False
            low, high = (low, middle) if enough else (middle, high)
        return high

    def meets(self, objectives: Sequence[Slo], in_flight: int) -> bool:
        """Do so many requests in flight meet every objective that the closed form can tell?"""
        told = ((slo, self.figure(slo.metric, slo.statistic, in_flight)) for slo in objectives)
        return all(value is None or slo.holds(value) for slo, value in told)

    def breaks_alone(self, objectives: Sequence[Slo]) -> Slo | None:
        """The first objective that even a lone request breaks; None where it meets all."""
        return next((one for one in objectives if not self.meets([one], 1)), None)

    def _tokens(self, statistic: Statistic, share: float) -> float:
        output = self.workload.output_tokens
        return float(output.mean() if statistic == "mean" else np.quantile(output, share, method="inverted_cdf"))

    def _running(self, in_flight: float) -> int:
        return max(1, min(round(in_flight), self.seats))

    def _cycle_s(self, running: int) -> float:
        """From the first step to the last token of a mean request."""
        steps = self.workload.mean_output_tokens * self.token_s(running)
        return steps + self.prompt_s(running)
