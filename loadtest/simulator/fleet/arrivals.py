"""When requests come: Poisson arrivals with a daily curve, alone or in sessions whose users think between requests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loadtest.errors import UsageError
from loadtest.simulator.fleet.requests import Requests, Times, Tokens, table

DAY_S = 86_400.0
HOUR_S = 3_600.0
MOST_PEAK = 6.0  # a peak of more than six times the mean is another kind of curve
WARM_UP_S = 60.0  # at least
THINK_FLOOR = 0.25  # nobody thinks for less than this share of the mean time


@dataclass(frozen=True, slots=True)
class Curve:
    """The rate of arrivals over the day: highest at `peak_hour`, there `peak_factor` times the mean of the day.

    Rate / mean = exp(k cos(2 pi (t - peak) / day)) / I0(k): positive, smooth, flat for a factor of 1.
    """

    peak_factor: float = 1.0
    peak_hour: float = 15.0

    def __post_init__(self) -> None:
        if not 1 <= self.peak_factor <= MOST_PEAK:
            raise UsageError(f"--peak-factor: expected from 1 to {MOST_PEAK:g}, got {self.peak_factor:g}")
        if not 0 <= self.peak_hour < 24:
            raise UsageError(f"peak hour: expected from 0 to below 24, got {self.peak_hour:g}")

    def relative(self, time_s: npt.ArrayLike) -> Times:
        """The rate at these times of the day over the mean rate."""
        k = _concentration(self.peak_factor)
        angle = 2 * math.pi * (np.asarray(time_s, float) / DAY_S - self.peak_hour / 24)
        curve: Times = np.exp(k * np.cos(angle)) / float(np.i0(k))
        return curve


def _concentration(peak_factor: float) -> float:
    """k such that exp(k) / I0(k) is the peak factor, by halving an interval.

    >>> round(_concentration(1.0), 6)
    0.0
    """
    low, high = 0.0, 40.0
    for _ in range(60):
        k = (low + high) / 2
        low, high = (k, high) if math.exp(k) / float(np.i0(k)) < peak_factor else (low, k)
    return low


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests of a mean day: sessions that begin in it, requests of each, and the seconds a user thinks between two."""

    sessions_per_day: float
    requests_per_session: float = 1.0
    think_s: float = 60.0
    curve: Curve = Curve()

    def __post_init__(self) -> None:
        if not 0 < self.sessions_per_day <= 1e9:
            raise UsageError(f"sessions a day: expected from above 0 to 1e9, got {self.sessions_per_day:g}")
        if not 1 <= self.requests_per_session <= 1000:
            raise UsageError(f"--requests-per-session: expected from 1 to 1,000, got {self.requests_per_session:g}")
        if not 1 <= self.think_s <= HOUR_S:
            raise UsageError(f"--think-time: expected from 1 to 3,600 s, got {self.think_s:g}")

    @property
    def peak_requests_per_s(self) -> float:
        return self.requests_per_day() / DAY_S * self.curve.peak_factor

    @property
    def peak_s(self) -> float:
        """When of the day the peak is."""
        return self.curve.peak_hour * HOUR_S

    def requests_per_day(self, seen_per_s: float = 0.0) -> float:
        """Requests of a mean day, however many the peak saw."""
        return self.sessions_per_day * self.requests_per_session

    def replicas_at(self, in_flight: float, requests_per_s: float) -> float:
        """Replicas that hold the peak if each ends so many requests a second."""
        return self.peak_requests_per_s / requests_per_s

    def warm_up_s(self, answer_s: float, settling_s: float) -> float:
        """From the requests in flight by the closed form to those of the simulation: a turn, and up to half an hour more."""
        turn_s = answer_s + self.think_s * (self.requests_per_session > 1)
        return max(WARM_UP_S, turn_s, min(settling_s, HOUR_S / 2))

    def lasting_s(self, requests: int, answer_s: float) -> float:
        """How long it takes at the peak until so many requests have come."""
        return requests / self.peak_requests_per_s

    def times(self, share: float) -> Demand:
        """The same curve and users, with so many times the sessions."""
        return Demand(self.sessions_per_day * share, self.requests_per_session, self.think_s, self.curve)

    def traffic(self, workload: RequestMix, from_s: float, to_s: float, seed: int, in_flight: int = 0) -> Traffic:
        """Draw the sessions that begin in a stretch of the day, with all their requests; and those that began before it, if
        so many requests are in flight by then."""
        rng = np.random.default_rng(seed)
        starts = poisson(rng, self.curve, self.sessions_per_day, from_s, to_s)
        if self.requests_per_session == 1:
            return _single(rng, workload, starts, from_s, in_flight)
        asked_per_s = self.requests_per_day() / DAY_S * float(self.curve.relative(from_s))
        thinking = round(asked_per_s * self.think_s * (1 - 1 / self.requests_per_session)) if in_flight else 0
        waking = from_s + _rest_of_thoughts(rng, thinking, self.think_s)
        base, rest = divmod(self.requests_per_session, 1)
        each = np.int64(base) + (rng.random(in_flight + thinking + len(starts)) < rest)
        begun = in_flight + thinking
        each[:begun] = np.ceil(each[:begun] * (1 - rng.random(begun)))
        return _sessions(rng, workload, from_s, in_flight, np.concatenate([waking, starts]), each, self.think_s)


@dataclass(frozen=True, slots=True)
class Population:
    """So many users at work at once, each of whom asks, reads the answer, thinks and asks again; nobody leaves.

    `users` may be a fraction where it is the share of a sample of the replicas.
    """

    users: float
    think_s: float

    def __post_init__(self) -> None:
        if not 0 < self.users <= 1e9:
            raise UsageError(f"--users: expected from 1 to 1e9, got {self.users:g}")
        if not 1 <= self.think_s <= HOUR_S:
            raise UsageError(f"--think-time: expected from 1 to 3,600 s, got {self.think_s:g}")

    peak_s = 12 * HOUR_S  # any time will do

    def requests_per_day(self, seen_per_s: float) -> float:
        """Requests of 24 hours with all users at work, if they ask so many a second."""
        return DAY_S * seen_per_s

    def replicas_at(self, in_flight: float, requests_per_s: float) -> float:
        """Replicas if so many users wait at each, and by Little's law `requests_per_s x think_s` others think."""
        return self.users / (in_flight + requests_per_s * self.think_s)

    def warm_up_s(self, answer_s: float, settling_s: float) -> float:
        """From the in-flight requests of the closed form to those of the simulation: a turn; who waits asks nothing, so that
        no queue takes longer."""
        return min(max(WARM_UP_S, answer_s + self.think_s), 6 * HOUR_S)

    def lasting_s(self, requests: int, answer_s: float) -> float:
        """How long it takes until so many requests have come."""
        return requests * (answer_s + self.think_s) / self.users

    def times(self, share: float) -> Population:
        """So many times the users."""
        return Population(self.users * share, self.think_s)

    def traffic(self, workload: RequestMix, from_s: float, to_s: float, seed: int, in_flight: int = 0) -> Traffic:
        """So many users wait for an answer, the others think; each has more requests to make than time for them."""
        rng = np.random.default_rng(seed)
        users = max(1, round(self.users))
        waiting = min(in_flight, users)
        waking = from_s + _rest_of_thoughts(rng, users - waiting, self.think_s)
        turns = (to_s - from_s) / self.think_s
        each = math.ceil(turns + 6 * math.sqrt(turns) + 6)
        return _sessions(rng, workload, from_s, waiting, waking, np.full(users, each), self.think_s)


@dataclass(frozen=True, slots=True, eq=False)
class RequestMix:
    """What requests ask for: equally likely pairs of prompt and output tokens."""

    prompt_tokens: Tokens
    output_tokens: Tokens

    def __post_init__(self) -> None:
        if not len(self.prompt_tokens) or len(self.prompt_tokens) != len(self.output_tokens):
            raise UsageError("workload of a fleet: expected as many prompts as outputs, at least one")

    @property
    def mean_prompt_tokens(self) -> float:
        return float(self.prompt_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        return float(self.output_tokens.mean())


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Requests of a stretch of time. `opening` are the first of each session, at the sorted times `starts_s`; request i + 1
    follows request i of the same session `think_s[i + 1]` after its end, where `follows[i + 1]`. `running` are in the middle
    of their answers when it begins: what was generated by then counts as their prompt."""

    requests: Requests
    starts_s: Times
    opening: npt.NDArray[np.int64]
    follows: npt.NDArray[np.bool_]
    think_s: npt.NDArray[np.float32]
    running: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def floor_s(self) -> float:
        """No follow-up comes sooner than this after the end of a request; inf where none does."""
        return float(self.think_s[self.follows].min()) if self.follows.any() else math.inf


def poisson(rng: np.random.Generator, curve: Curve, per_day: float, from_s: float, to_s: float) -> Times:
    """Sorted times of Poisson arrivals in [from_s, to_s), `per_day` of them in a mean day."""
    grid = np.linspace(from_s, to_s, max(2, math.ceil((to_s - from_s) / 60) + 1))
    rate = curve.relative(grid)
    mass = np.append(0.0, np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid)))
    count = int(rng.poisson(per_day / DAY_S * mass[-1]))
    uniform = rng.standard_exponential(count + 1)
    np.cumsum(uniform, out=uniform)
    uniform *= mass[-1] / uniform[-1]
    times: Times = np.interp(uniform[:-1], mass, grid)
    return times


def _single(rng: np.random.Generator, workload: RequestMix, starts: Times, from_s: float, in_flight: int) -> Traffic:
    """Requests that nothing follows."""
    requests = _asked(rng, workload, np.concatenate([np.full(in_flight, from_s), starts]), np.arange(in_flight))
    return Traffic(
        requests,
        starts,
        np.arange(in_flight, requests.count),
        np.zeros(requests.count, bool),
        np.zeros(0, np.float32),
        np.arange(in_flight),
    )


def _sessions(
    rng: np.random.Generator,
    workload: RequestMix,
    from_s: float,
    in_flight: int,
    starts: Times,
    each: npt.NDArray[np.int64],
    think_s: float,
) -> Traffic:
    """Sessions of `each` requests, one after another, with a thought between two. The first `in_flight` of them begin with a
    request that is being answered, the others at `starts`."""
    order = starts.argsort()
    each = np.concatenate([each[:in_flight], each[in_flight:][order]])
    starts = starts[order]
    count = int(each.sum())
    opening = np.cumsum(each) - each
    running, opening = opening[:in_flight], opening[in_flight:]
    arrival = np.full(count, np.nan)
    arrival[running], arrival[opening] = from_s, starts
    follows = np.isnan(arrival)
    thought = think_s * THINK_FLOOR + think_s * (1 - THINK_FLOOR) * rng.standard_exponential(count, np.float32)
    return Traffic(_asked(rng, workload, arrival, running), starts, opening, follows, thought.astype(np.float32), running)


def _rest_of_thoughts(rng: np.random.Generator, count: int, think_s: float) -> Times:
    """How much longer users think who are met thinking: none may ask before the shortest thought is over, so a share of
    `THINK_FLOOR` of them is met in it."""
    floor_s = THINK_FLOOR * think_s
    in_floor = rng.random(count) < THINK_FLOOR
    longer = floor_s + (think_s - floor_s) * rng.standard_exponential(count)
    rest: Times = np.where(in_floor, floor_s * rng.random(count), longer)
    return rest


def _asked(rng: np.random.Generator, workload: RequestMix, arrival: Times, running: npt.NDArray[np.int64]) -> Requests:
    """What each request asks for. One that is met running is the more likely a long one, and anywhere in its answer."""
    kind = rng.integers(len(workload.prompt_tokens), size=len(arrival), dtype=np.int32)
    long = workload.output_tokens / workload.output_tokens.sum()
    kind[running] = rng.choice(len(long), len(running), p=long)
    prompt, output = workload.prompt_tokens[kind], workload.output_tokens[kind]
    done = (rng.random(len(running)) * output[running]).astype(np.int32)
    prompt[running] += done
    output[running] -= done
    return table(arrival, prompt, output)
