"""Time to the final answer, composed from what decides it: the tokens of an answer, and the seconds a step takes.

Lengths are luck and speed is the engine. Lengths come from one natural run, speed from short bursts; the time of an
answer of L tokens at C users is

    T = q + (L - 1) (a + b (K_others + prompt + L / 2)) + q (C - 1) L / N

with q the seconds of a lone first token, a + b K the seconds of a step over K tokens of context, N the mean length, and
K_others = (C - 1) (prompt + E[L^2] / 2 E[L]) what the other users' contexts hold at a random moment (a longer answer is
met more often). The last term is the prefills of others: one for each answer that ends meanwhile; q - a in place of q where
an engine mixes them with decoding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.decision.step_line import StepLine
from loadtest.metrics import intervals
from loadtest.metrics.figures import Interval
from loadtest.metrics.intervals import Floats

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """How fast an engine is at one concurrency: its line, and the seconds of a lone first token; one entry a start.

    `mixes`: prompts share steps with streams that decode, so that one adds `q - a` to a step; else it halts them for q.
    """

    concurrency: int
    line: StepLine
    first_token_s: Floats
    mixes: bool = False

    @property
    def beside_s(self) -> Floats:
        """Seconds by which the prompt of another request delays a stream."""
        return np.maximum(self.first_token_s - self.line.a_s, 0.0) if self.mixes else self.first_token_s


@dataclass(frozen=True)
class AnswerLengths:
    """Output tokens of answers, prompt after prompt: `starts[i]` is where the answers to prompt i begin."""

    tokens: Floats
    starts: NDArray[np.int64]
    prompt_tokens: float

    @property
    def prompt_of(self) -> NDArray[np.int64]:
        """The index of each answer's prompt."""
        sizes = np.diff(self.starts, append=len(self.tokens))
        return np.repeat(np.arange(len(self.starts)), sizes)

    @property
    def mean_tokens(self) -> float:
        return float(np.mean(self.tokens))


def pool_lengths(by_prompt: dict[str, list[float]], prompt_tokens: float) -> AnswerLengths:
    """The lengths of both engines together, by prompt."""
    answers = [sorted(by_prompt[prompt]) for prompt in sorted(by_prompt) if by_prompt[prompt]]
    starts = np.cumsum([0, *(len(one) for one in answers)])[:-1]
    return AnswerLengths(np.array([tokens for one in answers for tokens in one], np.float64), starts, prompt_tokens)


def others_tokens(concurrency: int, drawn: AnswerLengths) -> float:
    """Context that the other users hold at a random moment of a closed loop (tokens)."""
    length_biased = float(np.mean(drawn.tokens**2)) / (2 * drawn.mean_tokens)
    return (concurrency - 1) * (drawn.prompt_tokens + length_biased)


def answer_s(speed: EngineSpeed, tokens: Floats, drawn: AnswerLengths) -> Floats:
    """Seconds of answers of so many tokens among others of the lengths `drawn`: starts in the rows, answers in columns."""
    context = others_tokens(speed.concurrency, drawn) + drawn.prompt_tokens + tokens / 2
    step_s = speed.line.a_s[..., None] + speed.line.b_s[..., None] * context
    first_s = speed.first_token_s[..., None]
    prefills_s = speed.beside_s[..., None] * (speed.concurrency - 1) * tokens / drawn.mean_tokens
    return np.asarray(first_s + (tokens - 1) * step_s + prefills_s, np.float64)


def log_mean_s(speed: EngineSpeed, drawn: AnswerLengths) -> Floats:
    """log of the mean time to the final answer: one figure a start, of which two engines' difference is the decision."""
    return np.asarray(np.log(np.mean(answer_s(speed, drawn.tokens, drawn), axis=-1)), np.float64)


@dataclass(frozen=True, slots=True)
class Composed:
    """A figure in seconds with its 95 % intervals: for prompts of this kind, and for these prompts asked again.

    An interval is None where the starts (fewer than two) or the answers (one to each prompt) cannot give it.
    """

    value: float
    of_this_kind: Interval | None
    these_prompts: Interval | None


def composed_figures(speed: EngineSpeed, drawn: AnswerLengths) -> dict[str, Composed]:
    """`mean` and `QUANTILES` of the time to the final answer (s), over starts.

    EngineSpeed (t over starts) and length (by prompt) are independent: their errors add up in quadrature on the log scale. A
    quantile of the time is the time of that quantile of the length, for a longer answer takes longer.
    """
    times = np.exp(np.mean(np.log(answer_s(speed, drawn.tokens, drawn)), axis=0))
    found = {"mean": _figure(float(np.mean(times)), _mean_bounds(times, drawn), speed, drawn)}
    order = np.sort(times)
    for name, p in QUANTILES.items():
        value = intervals.sample_quantile(order, p)
        found[name] = _figure(value, _quantile_bounds(times, drawn, p), speed, drawn)
    return found


REACHED = {"p50": 0.5, "p10": 0.9, "p5": 0.95, "p1": 0.99}


def composed_paces(speed: EngineSpeed, drawn: AnswerLengths) -> dict[str, Composed]:
    """Tokens/s after the first that these shares of the answers reach: 1 / quantile of their seconds per token.

    They differ by what is in flight and by their own length alone, not by jitter, which long answers average out.
    """
    tokens = np.maximum(drawn.tokens, 2)
    each_s = (answer_s(speed, tokens, drawn) - speed.first_token_s[..., None]) / (tokens - 1)
    times = np.exp(np.mean(np.log(each_s), axis=0))
    order = np.sort(times)
    found = {}
    for name, p in REACHED.items():
        slow = _figure(intervals.sample_quantile(order, p), _quantile_bounds(times, drawn, p), speed, drawn)
        found[name] = Composed(1 / slow.value, _turned(slow.of_this_kind), _turned(slow.these_prompts))
    return found


def _turned(ends: Interval | None) -> Interval | None:
    return None if ends is None else (1 / ends[1], 1 / ends[0])


def _figure(
    value: float, bounds: tuple[Interval | None, Interval | None], speed: EngineSpeed, drawn: AnswerLengths
) -> Composed:
    spread = _speed_half_width(speed, drawn)
    kind, these = (None if ends is None or spread is None else _joined(value, ends, spread) for ends in bounds)
    return Composed(value, kind, these)


def _joined(value: float, ends: Interval, half_width: float) -> Interval:
    """An interval from lengths alone, widened by the half-width of log speed."""
    low, high = (math.hypot(math.log(end / value), half_width) for end in ends)
    return value * math.exp(-low), value * math.exp(high)


def _speed_half_width(speed: EngineSpeed, drawn: AnswerLengths) -> float | None:
    """Half of the 95 % interval of log time that comes from starts; None for fewer than two."""
    found = intervals.mean(np.atleast_1d(log_mean_s(speed, drawn)))
    return None if found.ci95 is None else (found.ci95[1] - found.ci95[0]) / 2


def _mean_bounds(times: Floats, drawn: AnswerLengths) -> tuple[Interval | None, Interval | None]:
    totals = np.add.reduceat(times, drawn.starts)
    sizes = np.diff(drawn.starts, append=len(times)).astype(np.float64)
    kind = intervals.ratio(totals, sizes).ci95
    mean = float(np.mean(times))
    variance = _within(times, drawn)
    return kind, None if variance is None else _around(mean, math.sqrt(variance), len(times) - len(drawn.starts))


def _around(value: float, error: float, df: int) -> Interval:
    """The t interval of a positive figure, on the log scale."""
    spread = math.exp(intervals.t_critical(df) * error / value)
    return value / spread, value * spread


def _quantile_bounds(times: Floats, drawn: AnswerLengths, p: float) -> tuple[Interval | None, Interval | None]:
    """Woodruff's bounds: those of the share below the quantile, read off the distribution."""
    weights = np.ones(len(times), np.float32)
    (kind,) = intervals.clustered_quantiles(times.astype(np.float32), weights, drawn.starts, [p])
    order = np.sort(times)
    variance = _within((times <= intervals.sample_quantile(order, p)).astype(np.float64), drawn)
    if variance is None or variance == 0:
        return kind.ci95, None
    half = intervals.t_critical(len(times) - len(drawn.starts)) * math.sqrt(variance)
    if p - half <= 0 or p + half >= 1:
        return kind.ci95, None
    return kind.ci95, (intervals.sample_quantile(order, p - half), intervals.sample_quantile(order, p + half))


def _within(values: Floats, drawn: AnswerLengths) -> float | None:
    """Variance of the mean of all answers that asking the same prompts again would show; None where some prompt was
    asked once."""
    sizes = np.diff(drawn.starts, append=len(values))
    if np.any(sizes < 2):
        return None
    means = np.add.reduceat(values, drawn.starts) / sizes
    squares = np.add.reduceat((values - means[drawn.prompt_of]) ** 2, drawn.starts)
    return float(np.sum(sizes * squares / (sizes - 1))) / len(values) ** 2
