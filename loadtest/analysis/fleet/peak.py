"""How many replicas hold an open loop at its daily peak: search by simulation, and what losing replicas does to the waits.

The peak hour is simulated on at most `SAMPLE` replicas with their share of the arrivals: more replicas of the same load
behind the same router wait alike. Every search is made at the likely speed of a replica and again at the careful end of its
interval. Design and accuracy: docs/deciding.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loadtest.errors import UsageError
from loadtest.metrics.catalogue import QUANTILES, REACHED_QUANTILES
from loadtest.metrics.slo import Slo
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import arrivals, day
from loadtest.simulator.fleet.arrivals import HOUR_S, Demand, RequestMix
from loadtest.simulator.fleet.requests import Seconds
from loadtest.simulator.fleet.speed import Counts, Floats, Speed

METRICS = ("ttft_s", "time_to_final_answer_s", "tpot_s", "tokens_per_s_per_user")
SAMPLE = 32
ENOUGH_REQUESTS = 5_000
MOST_DAYS = 6  # days of which the peak is simulated, where one has fewer requests
MOST_REPLICAS = 100_000
CLOSE = 0.01  # a size is searched to within this share of it
_BEYOND = 4  # times as many streams as are known
IDLE_SHARE = 0.05  # of the throughput of a replica: what is then not met never is


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaModel:
    """What is known of one replica: its engine, how long its steps take, and how many streams that is known for.

    `careful`: steps as long as the interval allows; None without one. `known_streams`: None where any number is known.
    """

    config: EngineConfig
    likely: Speed
    careful: Speed | None
    known_streams: int | None
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Waits:
    """What requests of the peak see, by the objectives: a figure each; inf where it was not reached in time."""

    replicas: int
    figures: tuple[float, ...]
    holds: bool


@dataclass(frozen=True, slots=True)
class Sizing:
    """The fewest replicas that hold every objective at the peak (None: no number does), and every size tried."""

    replicas: int | None
    tried: tuple[Waits, ...]
    binds: Slo | None = None

    def waits(self) -> Waits | None:
        """What requests see at that size."""
        return next((one for one in self.tried if one.replicas == self.replicas), None)


@dataclass(frozen=True, slots=True)
class LossWaits:
    """Replicas lost at the peak, and what the requests of the next quarter of an hour see."""

    lost: int
    waits: Waits


def check_objectives(objectives: Sequence[Slo]) -> None:
    """Raises UsageError for an objective that arrivals cannot be judged by."""
    if not objectives:
        raise UsageError("--slo: expected at least one, such as time_to_final_answer_s:p90<120; got none, nor has the run")
    for slo in objectives:
        if slo.metric not in METRICS:
            raise UsageError(f"--slo {slo.text}: with arrivals expected one of {', '.join(METRICS)}, got {slo.metric}")


@dataclass(slots=True)
class Peak:
    """The daily peak of a demand, on replicas of one model behind one router."""

    model: ReplicaModel
    router: str
    demand: Demand
    workload: RequestMix
    objectives: Sequence[Slo]
    seed: int = 1
    _known: dict[tuple[str, int], Waits] = field(default_factory=dict)

    def size(self, *, careful: bool = False) -> Sizing:
        """Search the fewest replicas, between what their throughput needs at least and a fleet that is almost idle."""
        speed = self.model.careful if careful else self.model.likely
        assert speed is not None
        start = (self.size().replicas or 1) if careful else 1
        return self._search(lambda count: self._waits(speed, count, "careful" if careful else "likely"), speed, start)

    def size_beyond(self) -> Sizing:
        """The fewest replicas if steps took no longer with more streams than are known: no replica can do better."""
        most = _BEYOND * (len(self.model.likely.streams_s) - 1)
        config = replace(self.model.config, max_running=most)
        model = replace(self.model, config=config, likely=beyond(self.model.likely, _BEYOND))
        return Peak(model, self.router, self.demand, self.workload, self.objectives, self.seed).size()

    def _search(self, waits: Callable[[int], Waits], speed: Speed, start: int = 1) -> Sizing:
        least = max(self.demand.peak_requests_per_s / self._most_requests_per_s(speed), start)
        idle = min(max(1, math.ceil(least / IDLE_SHARE)), MOST_REPLICAS)
        low, high, step = math.ceil(least) - 1, min(math.ceil(least * 1.15), idle), 1.15
        tried = [waits(high)]
        if not tried[-1].holds and not waits(idle).holds:
            return Sizing(None, (waits(idle),), self._first_broken(waits(idle)))
        while not tried[-1].holds:
            step = step**2
            low, high = high, min(math.ceil(high * step), idle)
            tried.append(waits(high))
        while high - low > max(1, CLOSE * high):
            middle = (low + high) // 2
            tried.append(waits(middle))
            low, high = (low, middle) if tried[-1].holds else (middle, high)
        while high > 1 and all(one.holds for one in tried):  # the bound was at fault, or is what binds
            tried.append(waits(high - 1))
            high -= tried[-1].holds
        tried.sort(key=lambda one: one.replicas)
        broken = next((one for one in reversed(tried) if not one.holds), None)
        return Sizing(high, tuple(tried), None if broken is None else self._first_broken(broken))

    def loss(self, replicas: int, lost: int) -> LossWaits:
        """What the requests of a quarter of an hour at the peak see when so many replicas are lost at its start."""
        return LossWaits(lost, self._simulate(self.model.likely, replicas, lost, HOUR_S))

    # -- one simulation ------------------------------------------------------------------------------------------------

    def _waits(self, speed: Speed, replicas: int, kind: str) -> Waits:
        key = kind, replicas
        if key not in self._known:
            self._known[key] = self._simulate(speed, replicas, 0, self._patience_s())
        return self._known[key]

    def _simulate(self, speed: Speed, replicas: int, lost: int, patience_s: float) -> Waits:
        sample = min(replicas, SAMPLE)
        gone = round(lost * sample / replicas)
        share = sample / replicas if gone or not lost else sample / (replicas - lost)
        seen = _Seen()
        for number in range(MOST_DAYS):
            self._one_day(_Fleet(speed, sample, share, gone, patience_s), number, seen)
            if seen.count >= ENOUGH_REQUESTS or lost:
                break
        figures = tuple(seen.figure(slo) for slo in self.objectives)
        return Waits(replicas, figures, all(slo.holds(one) for slo, one in zip(self.objectives, figures, strict=True)))

    def _one_day(self, one: _Fleet, number: int, seen: _Seen) -> None:
        """The requests that arrive in the hour around the peak, or in the part of it that has enough of them."""
        demand = self.demand.times(one.share)
        enough_s = ENOUGH_REQUESTS / demand.peak_requests_per_s
        length_s = HOUR_S / 4 if one.gone else min(max(enough_s, HOUR_S / 12), HOUR_S)
        middle_s = demand.curve.peak_hour * HOUR_S
        begin_s, end_s = middle_s - length_s / 2, middle_s + length_s / 2
        answer_s = self.workload.mean_output_tokens * float(one.speed.decode_s(np.array([1]))[0])
        session_s = demand.requests_per_session * (answer_s + demand.think_s * (demand.requests_per_session > 1))
        warm_s = min(max(HOUR_S / 12, 3 * session_s), 6 * HOUR_S)
        traffic = arrivals.traffic(demand, self.workload, begin_s - warm_s, end_s, self.seed + 1000 * number)
        asked = traffic.requests.output_tokens.copy()
        loss = day.Loss(begin_s, one.gone) if one.gone else None
        fleet = day.Fleet(self.model.config, one.speed, one.replicas, self.router, self.model.max_tokens)
        found = day.simulate_fleet(
            fleet, traffic, until_s=end_s + one.patience_s, loss=loss, seed=self.seed + number
        ).requests
        sent_s = found.arrival_s
        there = (sent_s >= begin_s) & (sent_s < end_s)
        seen.add(found.ttft_s[there], found.final_s[there], asked[there])

    def _patience_s(self) -> float:
        """How long after the peak an answer may still come: then it has broken any limit on a wait."""
        waits = [slo.limit for slo in self.objectives if slo.below and slo.metric != "tpot_s"]
        return max(HOUR_S / 60, *waits) if waits else HOUR_S / 4

    def _most_requests_per_s(self, speed: Speed) -> float:
        """Answers a second of a replica that decodes as many streams as pays most, and computes prompts between."""
        prompt, output = self.workload.mean_prompt_tokens, self.workload.mean_output_tokens
        context = prompt + output / 2
        room = int(self.model.config.kv_tokens / context)
        seats = max(1, min(len(speed.streams_s) - 1, self.model.config.max_running or room, room))
        streams = np.arange(1, seats + 1)
        steps_s = speed.decode_s(streams) + speed.context_s * context * streams
        tokens = min(
            round(prompt), self.model.config.prefill_budget_tokens or self.model.config.behaviour.prefill_budget_tokens
        )
        beside = streams if self.model.config.behaviour.mixed_batches else 0 * streams
        prompts_s = (speed.batch_s[tokens + beside] - speed.batch_s[beside]) * prompt / tokens
        return float((streams / (output * steps_s + prompts_s * streams)).max())

    def _first_broken(self, waits: Waits) -> Slo | None:
        pairs = zip(self.objectives, waits.figures, strict=True)
        return next((slo for slo, figure in pairs if not slo.holds(figure)), None)


def beyond(speed: Speed, factor: int) -> Speed:
    """A speed known for so many times the streams, if a step took no longer with more of them."""
    most = len(speed.streams_s) - 1
    streams = np.arange(factor * most + 1)
    per_token = speed.batch_s[-1] - speed.batch_s[-2]
    batch = np.append(speed.batch_s, speed.batch_s[-1] + per_token * np.arange(1, (factor - 1) * most + 1))
    decode = speed.decode_s(np.minimum(streams, most))
    return replace(speed, batch_s=batch, streams_s=decode - batch[streams])


@dataclass(frozen=True, slots=True, eq=False)
class _Fleet:
    """What stands for a whole fleet: some of its replicas, their share of the demand, and how many of them are lost."""

    speed: Speed
    replicas: int
    share: float
    gone: int
    patience_s: float


class _Seen:
    """Requests of all simulated peaks; what was not reached in time counts as a wait without end."""

    def __init__(self) -> None:
        self._ttft_s: list[Floats] = []
        self._final_s: list[Floats] = []
        self._tokens: list[Floats] = []

    @property
    def count(self) -> int:
        return sum(map(len, self._ttft_s))

    def add(self, ttft_s: Seconds, final_s: Seconds, tokens: Counts) -> None:
        self._ttft_s.append(np.nan_to_num(ttft_s.astype(float), nan=math.inf))
        self._final_s.append(np.nan_to_num(final_s.astype(float), nan=math.inf))
        self._tokens.append(tokens.astype(float))

    def figure(self, slo: Slo) -> float:
        """The statistic that an objective limits: a quantile is the least x with F(x) >= p."""
        values = self._values(slo.metric)
        if not len(values):
            return 0.0 if slo.below else math.inf
        if slo.statistic in REACHED_QUANTILES:
            share = QUANTILES[REACHED_QUANTILES[slo.statistic]]
            return -float(np.quantile(-values, share, method="inverted_cdf"))
        if slo.statistic in QUANTILES:
            return float(np.quantile(values, QUANTILES[slo.statistic], method="inverted_cdf"))
        return float(values.mean() if slo.statistic == "mean" else values.min() if slo.statistic == "min" else values.max())

    def _values(self, metric: str) -> Floats:
        ttft_s, final_s, tokens = (np.concatenate(column) for column in (self._ttft_s, self._final_s, self._tokens))
        if metric == "ttft_s":
            return ttft_s
        if metric == "time_to_final_answer_s":
            return final_s
        many = tokens > 1
        with np.errstate(invalid="ignore"):
            tpot_s = np.nan_to_num((final_s - ttft_s)[many] / (tokens[many] - 1), nan=math.inf)
        speed: Floats = 1 / tpot_s
        return tpot_s if metric == "tpot_s" else speed
