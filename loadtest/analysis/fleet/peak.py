"""How many replicas hold a demand at its daily peak: search by simulation, and what losing replicas does to the waits.

The peak is simulated on at most `SAMPLE` replicas with their share of the demand: more replicas of the same load behind the
same router wait alike. A search begins where the closed form says. The likely number follows the figures; the careful one
holds at the slow end of the speed and the long end of the outputs, in each of several peaks. Design and accuracy:
docs/deciding.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from loadtest.analysis.fleet.replica_model import ReplicaModel
from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.errors import UsageError
from loadtest.metrics import catalogue
from loadtest.metrics.catalogue import QUANTILES, REACHED_QUANTILES, Statistic
from loadtest.metrics.slo import Slo
from loadtest.simulator.fleet import day
from loadtest.simulator.fleet.arrivals import HOUR_S, Demand, Population
from loadtest.simulator.fleet.requests import Requests, Seconds
from loadtest.simulator.fleet.speed import Counts, Floats

WAITS = ("ttft_s", "time_to_final_answer_s")
METRICS = (*WAITS, "tpot_s", "tokens_per_s_per_user")
SAMPLE = 48
ENOUGH_REQUESTS = 5_000  # a p90 near saturation is then 3 % off by chance
SHORTEST_S = 60.0
MOST_DAYS = 6  # peaks of so many days are simulated, where one peak has too few requests
LOSS_PATIENCE_S = HOUR_S / 4  # how long answers are waited for after a loss, and the quarter of an hour that is watched
CAREFUL_PEAKS = 3  # simulated peaks; a careful number of replicas holds in each
MOST_REPLICAS = 100_000
CLOSE = 0.02  # a size is searched to within this share of it
_FIRMER = 0.98  # more streams that would save less than this share of the replicas are not worth a measurement
_FIRST_STEP = 1.06  # from the size that the closed form says; each next step is half as large again
_CAREFUL_STEP = 1.03
_FAR = 2  # times the limit of a wait
_STORM = 30  # times an answer: so long a busy replica behind a random router may take to recover
_IDLE = 20  # times the replicas of the closed form: what is then not met never is


@dataclass(frozen=True, slots=True)
class Seen:
    """What requests of the peak see: p90 of TTFT, p50 and p90 of the time to the final answer, the median tokens/s per user;
    and the output tokens and requests per second of the whole fleet. inf where it was not reached in time."""

    ttft_p90_s: float
    answer_p50_s: float
    answer_p90_s: float
    tokens_per_s_per_user: float
    output_tokens_per_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Waits:
    """A size with what requests of the peak see: a figure for each objective (inf where it was not reached in time)."""

    replicas: int
    figures: tuple[float, ...]
    holds: bool
    seen: Seen


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


@dataclass(frozen=True, slots=True)
class Peak:
    """The daily peak of a demand, on replicas of one model behind one router."""

    model: ReplicaModel
    router: str
    demand: Demand | Population
    objectives: Sequence[Slo]
    seed: int = 1

    def size(self) -> Sizing:
        """Search the fewest replicas by the likely figures, from the size that the closed form says."""
        return self._search(self.estimate(self.model.likely))

    def careful_replicas(self, likely: int) -> int | None:
        """Replicas that hold at the careful end, in each of `CAREFUL_PEAKS` peaks: from what the closed form makes there of
        the size that is just too small, upwards. None where nothing is known of that end, or nothing holds."""
        careful = self.model.careful
        slower = None if careful is None else self.estimate(careful)
        known = self.estimate(self.model.likely)
        if careful is None or slower is None or known is None:
            return None
        count, step = max(likely, _bounded((likely - 1) * slower / known)), _CAREFUL_STEP
        while not all(self._waits(careful, count, peak=peak).holds for peak in range(CAREFUL_PEAKS)):
            if count >= _IDLE * slower:
                return None
            count, step = max(count + 1, _bounded(count * step)), step**1.5
        return count

    def estimate(self, replica: SteadyReplica) -> float | None:
        """Replicas by the closed form, a share of one included; None where it says that even a lone request waits too
        long."""
        return replica.replicas(self.demand, self.objectives)

    def is_bound_by_what_is_known(self) -> bool:
        """Would fewer replicas do if more streams than were measured ran as fast?"""
        if self.model.known_streams is None:
            return False
        known, fewer = self.estimate(self.model.likely), self.estimate(self.model.beyond())
        return known is not None and fewer is not None and fewer < _FIRMER * known

    def _search(self, start: float | None) -> Sizing:
        """Step away from the start until one size holds and one does not, then close in on the limit between them."""
        idle = _bounded(_IDLE * (start or self._idle_replicas()))
        high, step = _bounded(idle if start is None else start - 1e-6), _FIRST_STEP
        tried = {high: self._waits(self.model.likely, high)}
        low = 0
        while not tried[high].holds:
            if high >= idle:
                return Sizing(None, tuple(tried.values()), self._first_broken(tried[high]))
            low, high, step = high, min(max(high + 1, math.ceil(high * step)), idle), step**1.5
            tried[high] = self._waits(self.model.likely, high)
        while low == 0 and high > 1:
            smaller = max(1, min(high - 1, math.floor(high / step)))
            tried[smaller] = self._waits(self.model.likely, smaller)
            low, high, step = (0, smaller, step**1.5) if tried[smaller].holds else (smaller, high, step)
        while high - low > max(1, CLOSE * high):
            between = self._between(tried[low], tried[high])
            tried[between] = self._waits(self.model.likely, between)
            low, high = (low, between) if tried[between].holds else (between, high)
        order = tuple(tried[count] for count in sorted(tried))
        return Sizing(high, order, self._first_broken(tried[low]) if low else None)

    def _between(self, broken: Waits, holding: Waits) -> int:
        """Where the objectives begin to hold, if their figures change by a constant factor for each replica."""
        gap = holding.replicas - broken.replicas
        above, below = self._excess(broken), -self._excess(holding)
        share = min(max(above / (above + below), 0.35), 0.65)
        return min(max(round(broken.replicas + share * gap), broken.replicas + 1), holding.replicas - 1)

    def _excess(self, waits: Waits) -> float:
        """How far the worst figure is beyond its limit, as a logarithm; below 0 where all hold."""
        pairs = zip(self.objectives, waits.figures, strict=True)
        ratios = [one / slo.limit if slo.below else slo.limit / max(one, 1e-9) for slo, one in pairs if slo.limit > 0]
        return math.log(min(max(*ratios, 1e-2, 1e-2), 1e2))

    def _idle_replicas(self) -> float:
        """Replicas with one request in flight each."""
        return self.demand.replicas_at(1, self.model.likely.requests_per_s(1))

    def loss(self, replicas: int, lost: int) -> LossWaits:
        """What the requests of a quarter of an hour at the peak see when so many replicas are lost at its start."""
        return LossWaits(lost, self._waits(self.model.likely, replicas, lost=lost))

    # -- one simulation ------------------------------------------------------------------------------------------------

    def _waits(self, replica: SteadyReplica, replicas: int, *, peak: int = 0, lost: int = 0) -> Waits:
        """What the requests of a peak see; of several days, where one has too few. Each `peak` is drawn anew."""
        sample, seen = _sampled(replicas, lost), _Observed()
        for number in range(MOST_DAYS):
            self._one_day(replica, sample, self.seed + 1000 * number + 10_000 * peak, seen)
            if seen.count >= ENOUGH_REQUESTS / 2:
                break
        figures = tuple(seen.figure(slo.metric, slo.statistic) for slo in self.objectives)
        holds = all(slo.holds(one) for slo, one in zip(self.objectives, figures, strict=True))
        return Waits(replicas, figures, holds, seen.figures())

    def _one_day(self, replica: SteadyReplica, sample: _Sample, seed: int, seen: _Observed) -> None:
        """The requests that arrive in the hour around the peak, or in the part of it that has enough of them. Others arrive
        before, until the fleet has settled, and after, until all but the longest of these are answered. What chance does to
        single replicas behind a random router takes longer to show."""
        demand = self.demand.times(sample.share)
        in_flight = replica.in_flight(demand, sample.replicas)
        answer_s = replica.answer_s(in_flight, "mean")
        least_s = max(SHORTEST_S, min(_STORM * answer_s, HOUR_S / 2)) if self.router == "random" else SHORTEST_S
        enough_s = demand.lasting_s(ENOUGH_REQUESTS, answer_s)
        length_s = HOUR_S / 4 if sample.lost else min(max(enough_s, least_s), HOUR_S)
        begin_s, end_s = demand.peak_s - length_s / 2, demand.peak_s + length_s / 2
        first_s = begin_s - max(least_s, demand.warm_up_s(answer_s, replica.settling_s(in_flight)))
        last_s = end_s + replica.answer_s(in_flight, "p99")
        traffic = demand.traffic(replica.workload, first_s, last_s, seed, round(in_flight * sample.replicas))
        asked = traffic.requests.output_tokens.copy()
        fleet = day.Fleet(replica.config, replica.speed, sample.replicas, self.router, self.model.max_tokens)
        loss = day.Loss(begin_s, sample.lost) if sample.lost else None
        until_s = end_s + LOSS_PATIENCE_S if sample.lost else last_s + self._patience_s(replica)
        hopeless = partial(self._is_hopeless, traffic.requests, length_s if loss is None else 0.0)
        found = day.simulate_fleet(fleet, traffic, until_s=until_s, loss=loss, seed=seed, hopeless=hopeless)
        sent_s, waits = found.requests.arrival_s, found.requests
        there = (sent_s >= begin_s) & (sent_s < end_s)
        seen.add(waits.ttft_s[there], waits.final_s[there], asked[there], length_s * sample.share)
        seen.hopeless |= found.hopeless

    def _is_hopeless(self, requests: Requests, recent_s: float, now_s: float) -> bool:
        """Did requests that came in the last seconds (0: never) break a limit on a wait by far? A fleet that began settled
        does not recover."""
        for slo in self.objectives:
            share = 1 - QUANTILES.get(slo.statistic, 1.0)
            limit_s, wait_s = _FAR * slo.limit, requests.ttft_s if slo.metric == "ttft_s" else requests.final_s
            if slo.metric not in WAITS or not slo.below or not share:
                continue
            came_s = now_s - limit_s - requests.arrival_s
            recent = (came_s > 0) & (came_s < recent_s)
            if recent.sum() >= ENOUGH_REQUESTS / 8 and (~(wait_s[recent] < limit_s)).mean() > share:
                return True
        return False

    def _patience_s(self, replica: SteadyReplica) -> float:
        """How long after the peak an answer may still come: what then has not has broken any limit on a wait, and had no
        seat."""
        waits = [slo.limit for slo in self.objectives if slo.below and slo.metric != "tpot_s"]
        return max(HOUR_S / 60, *waits, replica.longest_answer_s())

    def _first_broken(self, waits: Waits) -> Slo | None:
        pairs = zip(self.objectives, waits.figures, strict=True)
        return next((slo for slo, figure in pairs if not slo.holds(figure)), None)


def _bounded(replicas: float) -> int:
    return max(1, min(math.ceil(replicas), MOST_REPLICAS))


@dataclass(frozen=True, slots=True)
class _Sample:
    """What stands for a whole fleet: some of its replicas, their share of the demand, and how many of them are lost."""

    replicas: int
    share: float
    lost: int


def _sampled(replicas: int, lost: int) -> _Sample:
    """Where so few are lost that none is of the sample, the others take their share.

    >>> _sampled(480, 160), _sampled(480, 1).share == 48 / 479
    (_Sample(replicas=48, share=0.1, lost=16), True)
    """
    sample = min(replicas, SAMPLE)
    gone = round(lost * sample / replicas)
    return _Sample(sample, sample / (replicas if gone else replicas - lost), gone)


class _Observed:
    """Requests of all simulated peaks; what was not reached in time counts as a wait without end, as all of a peak that was
    given up as hopeless."""

    def __init__(self) -> None:
        self.hopeless = False
        self._ttft_s: list[Floats] = []
        self._final_s: list[Floats] = []
        self._tokens: list[Floats] = []
        self._fleet_s = 0.0  # seconds that were watched, of the whole fleet

    @property
    def count(self) -> int:
        return sum(map(len, self._ttft_s))

    def add(self, ttft_s: Seconds, final_s: Seconds, tokens: Counts, fleet_s: float) -> None:
        self._fleet_s += fleet_s
        self._ttft_s.append(np.nan_to_num(ttft_s.astype(float), nan=math.inf))
        self._final_s.append(np.nan_to_num(final_s.astype(float), nan=math.inf))
        self._tokens.append(tokens.astype(float))

    def figures(self) -> Seen:
        """The figures that a reader of a plan looks for."""
        tokens = sum(float(column.sum()) for column in self._tokens)
        return Seen(
            ttft_p90_s=self.figure("ttft_s", "p90"),
            answer_p50_s=self.figure("time_to_final_answer_s", "p50"),
            answer_p90_s=self.figure("time_to_final_answer_s", "p90"),
            tokens_per_s_per_user=self.figure("tokens_per_s_per_user", "p50"),
            output_tokens_per_s=tokens / self._fleet_s,
            requests_per_s=self.count / self._fleet_s,
        )

    def figure(self, metric: str, statistic: Statistic) -> float:
        """A statistic of the requests seen: a quantile is the least x with F(x) >= p. Without requests nobody waits."""
        values, less = self._values(metric), catalogue.METRICS[metric].better == "less"
        if self.hopeless:
            return math.inf if less else 0.0
        if not len(values):
            return 0.0 if less else math.inf
        if statistic in REACHED_QUANTILES:
            share = QUANTILES[REACHED_QUANTILES[statistic]]
            return -float(np.quantile(-values, share, method="inverted_cdf"))
        if statistic in QUANTILES:
            return float(np.quantile(values, QUANTILES[statistic], method="inverted_cdf"))
        return float(values.mean() if statistic == "mean" else values.min() if statistic == "min" else values.max())

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
