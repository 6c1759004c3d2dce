"""What is known of one replica for a fleet: its speed from measured levels, or from the performance model of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.analysis.validity import unsound_reasons
from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.metrics.figures import Bounded
from loadtest.metrics.level_schema import ComposedLevel, LevelFigures
from loadtest.metrics.schema import CellFigures
from loadtest.perfmodel.step_time import StepWork
from loadtest.records.schema import FINISHED, RequestRecord
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import speed
from loadtest.simulator.fleet.arrivals import RequestMix
from loadtest.simulator.fleet.speed import MeasuredLevel

_BEYOND = 4  # times as many streams as are known
MOST_STREAMS = 1024  # of a predicted replica
SETTLED = 8  # requests of a stream: before, all contexts are short together, and steps faster than in a long run


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaModel:
    """What is known of one replica and its requests, and for how many streams.

    `careful`: with steps, and a mean output, as long as their intervals allow; None where one of them has no interval.
    `known_streams`: None where any number is known. `max_tokens`: what a client allows a request; 0: its own output.
    """

    likely: SteadyReplica
    careful: SteadyReplica | None
    known_streams: int | None
    max_tokens: int = 0

    def beyond(self) -> SteadyReplica:
        """The likely one if a step took no longer with more streams than are known: no replica can do better."""
        speed, most = self.likely.speed, len(self.likely.speed.streams_s) - 1
        streams = np.arange(_BEYOND * most + 1)
        per_token = speed.batch_s[-1] - speed.batch_s[-2]
        batch = np.append(speed.batch_s, speed.batch_s[-1] + per_token * np.arange(1, (_BEYOND - 1) * most + 1))
        decode = speed.decode_s(np.minimum(streams, most))
        faster = replace(speed, batch_s=batch, streams_s=decode - batch[streams])
        return replace(self.likely, speed=faster, config=replace(self.likely.config, max_running=_BEYOND * most))


@dataclass(frozen=True, slots=True)
class _End:
    """One end of the intervals of a cell's levels: seconds per token of each level, and to the first token of the lowest."""

    levels: tuple[MeasuredLevel, ...]
    prefill_s: float


@dataclass(frozen=True, slots=True)
class MeasuredLengths:
    """Prompts and outputs of measured requests.

    `longer`: the upper end of the 95 % interval of the mean output, with prompts as clusters, over that mean; None with a
    single prompt.
    """

    mix: RequestMix
    longer: float | None

    def careful(self, room_tokens: int) -> RequestMix | None:
        """The same with every output `longer` times as long, as far as `room_tokens` hold it with its prompt."""
        if self.longer is None:
            return None
        outputs = np.ceil(self.mix.output_tokens * self.longer).astype(np.int32)
        return replace(self.mix, output_tokens=np.minimum(outputs, room_tokens - self.mix.prompt_tokens))


def measured_lengths(records: Sequence[RequestRecord]) -> MeasuredLengths:
    """Of the measured requests that the server ended by itself. Raises UsageError without one."""
    told = [
        (one.prompt_id, one.prompt_tokens, one.completion_tokens)
        for one in records
        if one.phase == "measure" and one.outcome in FINISHED
        and one.prompt_tokens and one.completion_tokens
    ]  # fmt: skip
    if not told:
        raise UsageError("no finished request tells its prompt and output tokens; measure some")
    names, prompts, outputs = zip(*told, strict=True)
    _, by_prompt = np.unique(names, return_inverse=True)
    mean = intervals.ratio(np.bincount(by_prompt, outputs).astype(float), np.bincount(by_prompt).astype(float))
    return MeasuredLengths(
        request_mix(list(zip(prompts, outputs, strict=True))),
        mean.ci95[1] / mean.value if mean.ci95 is not None and mean.value else None,
    )


def request_mix(pairs: Sequence[tuple[int, int]]) -> RequestMix:
    """Equally likely pairs of prompt and output tokens.

    >>> request_mix([(100, 10), (200, 30)]).mean_output_tokens
    20.0
    """
    prompts, outputs = zip(*pairs, strict=True)
    return RequestMix(np.array(prompts, np.int32), np.array(outputs, np.int32))


@dataclass(frozen=True, slots=True)
class _KnownLevel:
    """What a level tells of a replica: seconds per token after the first, and to the first token of a typical request."""

    concurrency: int
    token_s: Bounded
    first_s: Bounded


def _measured(level: LevelFigures) -> _KnownLevel:
    return _KnownLevel(level.concurrency, level.tpot_s.average(), level.ttft_s.at("p50"))


def _composed(level: ComposedLevel) -> _KnownLevel:
    """Of bursts. Its pace is a mean of tokens/s over answers, which differ in their contexts alone."""
    pace, ends = level.tokens_per_s_per_user, None
    if pace.low and pace.high:
        ends = (1 / pace.high, 1 / pace.low)
    return _KnownLevel(level.concurrency, Bounded(1 / pace.value if pace.value else None, ends), level.first_token_s)


def _known_levels(cell: CellFigures) -> list[_KnownLevel]:
    """Its sound levels, by concurrency; composed ones where no answer was waited for."""
    known = {level.concurrency: _composed(level) for level in cell.usable if not unsound_reasons(level)}
    known |= {level.concurrency: _measured(level) for level in cell.levels if not unsound_reasons(level)}
    return [known[concurrency] for concurrency in sorted(known) if known[concurrency].token_s.value]


def from_cell(cell: CellFigures, lengths: MeasuredLengths, max_tokens: int) -> ReplicaModel:
    """A replica like a measured cell: nothing is known of more streams than its highest level, measured or composed.

    Raises UsageError, with the next measurement to make, where the cell does not tell enough.
    """
    levels = _known_levels(cell)
    if not levels:
        raise UsageError(cell.reason or "no level has a time per output token; measure 1 user next")
    like = behaviour("sglang-sim" if cell.engine.startswith("sglang") else "vllm-sim")
    most, mix = levels[-1].concurrency, lengths.mix
    longest = int((mix.prompt_tokens + mix.output_tokens).max())
    unbound = 4 * most * (2 * longest + like.page_tokens)  # nothing is known of its memory: streams bind first
    room = cell.fit.kv_capacity_tokens if cell.fit is not None else unbound
    if room - room % like.page_tokens < longest:
        raise UsageError(f"its KV cache of {room:,} tokens does not hold the longest request, {longest:,} tokens")
    config = EngineConfig(behaviour=like, kv_tokens=room, max_running=most)
    likely = _replica(_end(levels, careful=False), config, mix, mix)
    if likely is None:
        raise UsageError(f"no time to first token at {levels[0].concurrency} users; measure 1 user next")
    careful = _replica(_end(levels, careful=True), config, mix, lengths.careful(room - room % like.page_tokens))
    return ReplicaModel(likely, careful, most, max_tokens)


def _replica(
    end: _End | None, config: EngineConfig, measured: RequestMix, workload: RequestMix | None
) -> SteadyReplica | None:
    """A replica whose steps follow from one end of its levels; None where the end or its workload is not known."""
    if end is None or workload is None:
        return None
    found = speed.from_levels(
        end.levels,
        prefill_s=end.prefill_s,
        prompt_tokens=measured.mean_prompt_tokens,
        output_tokens=measured.mean_output_tokens,
        most_prompt_tokens=config.behaviour.prefill_budget_tokens,
    )
    return SteadyReplica(found, config, workload)


def unsettled(cell: CellFigures) -> str | None:
    """Why the speed of the highest level is too good near saturation; None where it is not.

    Simulated levels of 2 requests a stream make waits near saturation 8 % too short, of 16 requests 2 to 4 %.
    """
    if not cell.levels or cell.levels[-1].n_requests >= SETTLED * cell.levels[-1].concurrency:
        return None
    last = cell.levels[-1]
    return (
        f"{cell.id} at {last.concurrency} users: {last.n_requests} requests are fewer than {SETTLED} a user; near saturation"
        " waits may be a tenth longer"
    )


def _end(levels: Sequence[_KnownLevel], *, careful: bool) -> _End | None:
    tokens_s = [_of(level.token_s, careful) for level in levels]
    prefill_s = _of(levels[0].first_s, careful)
    if prefill_s is None or any(one is None for one in tokens_s):
        return None
    pairs = zip(levels, tokens_s, strict=True)
    return _End(tuple(MeasuredLevel(level.concurrency, one) for level, one in pairs if one), prefill_s)


def _of(found: Bounded, careful: bool) -> float | None:
    return found.high if careful else found.value


def from_model(
    config: EngineConfig, step_time_s: Callable[[StepWork], float], width: float, asked: RequestMix, max_tokens: int
) -> ReplicaModel:
    """A predicted replica; `width` is the share by which the model's steps may be too short.

    Raises UsageError where a request does not fit the KV cache.
    """
    longest = int((asked.prompt_tokens + asked.output_tokens).max())
    if longest > config.kv_tokens - config.kv_tokens % config.behaviour.page_tokens:
        raise UsageError(
            f"its KV cache of {config.kv_tokens:,} tokens does not hold the longest request, {longest:,} tokens"
        )
    seats = config.max_running or config.behaviour.max_running
    streams = max(1, min(seats, MOST_STREAMS, config.kv_tokens // int(asked.prompt_tokens.min())))
    budget = config.prefill_budget_tokens or config.behaviour.prefill_budget_tokens
    likely = speed.from_steps(step_time_s, budget, streams)
    one = SteadyReplica(likely, config, asked)
    return ReplicaModel(one, replace(one, speed=likely.times(1 + width)), None, max_tokens)
