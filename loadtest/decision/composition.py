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
from collections.abc import Sequence
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

    Speed (t over starts), length (by prompt) and what the other users hold are taken as independent: their errors add up in
    quadrature on the log scale. A quantile of the time is the time of that quantile of the length, for a longer answer takes
    longer. In a mean each answer also counts as what it adds to the contexts of others.
    """
    times = _over_starts(answer_s(speed, drawn.tokens, drawn))
    errors = _Errors.of(speed, drawn)
    mean = _mean_bounds(_over_starts(_shares_of_mean_s(speed, drawn)), drawn)
    found = {"mean": _figure(float(np.mean(times)), mean, errors, 0.0)}
    order, lengths = np.sort(times), np.sort(drawn.tokens)
    for name, p in QUANTILES.items():
        value, tokens = intervals.sample_quantile(order, p), intervals.sample_quantile(lengths, p)
        found[name] = _figure(value, _quantile_bounds(times, drawn, p), errors, (tokens - 1) * errors.b_s)
    return found


REACHED = {"p50": 0.5, "p10": 0.9, "p5": 0.95, "p1": 0.99}


def composed_paces(speed: EngineSpeed, drawn: AnswerLengths) -> dict[str, Composed]:
    """Tokens/s after the first that these shares of the answers reach: 1 / quantile of their seconds per token.

    They differ by what is in flight and by their own length alone, not by jitter, which long answers average out.
    """
    tokens = np.maximum(drawn.tokens, 2)
    times = _over_starts((answer_s(speed, tokens, drawn) - speed.first_token_s[..., None]) / (tokens - 1))
    order, errors = np.sort(times), _Errors.of(speed, drawn)
    found = {}
    for name, p in REACHED.items():
        slow = _figure(intervals.sample_quantile(order, p), _quantile_bounds(times, drawn, p), errors, errors.b_s)
        found[name] = Composed(1 / slow.value, _turned(slow.of_this_kind), _turned(slow.these_prompts))
    return found


def _over_starts(times_s: Floats) -> Floats:
    return np.asarray(np.exp(np.mean(np.log(times_s), axis=0)), np.float64)


def _turned(ends: Interval | None) -> Interval | None:
    return None if ends is None else (1 / ends[1], 1 / ends[0])


@dataclass(frozen=True, slots=True)
class _Errors:
    """What is uncertain beside the length of an answer: log speed, as half of its 95 % interval over starts (None: fewer
    than two), and the tokens that the other users hold, which may be so many fewer and more, for prompts of this kind and
    for these (None: not known). `b_s`: seconds that one of these tokens adds to a step."""

    speed: float | None
    others_of_this_kind: Interval | None
    others_of_these: Interval | None
    b_s: float

    @classmethod
    def of(cls, speed: EngineSpeed, drawn: AnswerLengths) -> _Errors:
        found = intervals.mean(np.atleast_1d(log_mean_s(speed, drawn)))
        half = None if found.ci95 is None else (found.ci95[1] - found.ci95[0]) / 2
        return cls(half, *_others_errors(speed.concurrency - 1, drawn), float(np.mean(speed.line.b_s)))


def _others_errors(others: int, drawn: AnswerLengths) -> tuple[Interval | None, Interval | None]:
    """Of so many users: of E[L^2] / 2 E[L], which few long answers decide, on the log scale."""
    squares, lengths = (np.add.reduceat(drawn.tokens**n, drawn.starts) for n in (2, 1))
    found = intervals.ratio(squares, lengths)
    value = (found.value or 1.0) / 2
    kind = None if found.ci95 is None else found.ci95[1] / 2 - value
    linear = (drawn.tokens**2 - (found.value or 0.0) * drawn.tokens) / (2 * drawn.mean_tokens)
    variance, answers = _within(linear, drawn), len(drawn.tokens) - len(drawn.starts)
    these = None if variance is None else intervals.t_critical(answers) * math.sqrt(variance)
    spreads = [None if half is None else math.exp(half / value) for half in (kind, these)]
    both = [None if one is None else (others * value * (1 - 1 / one), others * value * (one - 1)) for one in spreads]
    return both[0], both[1]


def _shares_of_mean_s(speed: EngineSpeed, drawn: AnswerLengths) -> Floats:
    """What each answer adds to the mean time: its own, and its contexts while others wait for theirs. Starts in the rows."""
    tokens, others = drawn.tokens, speed.concurrency - 1
    read = (tokens - 1) * (drawn.prompt_tokens + tokens / 2) + others * (drawn.prompt_tokens * (tokens - 1) + tokens**2 / 2)
    fixed_s = speed.first_token_s + others * speed.beside_s
    return np.asarray(
        fixed_s[..., None] + (tokens - 1) * speed.line.a_s[..., None] + speed.line.b_s[..., None] * read, np.float64
    )


def _figure(
    value: float, bounds: tuple[Interval | None, Interval | None], errors: _Errors, seconds_a_token: float
) -> Composed:
    """A figure with its bounds by lengths alone, widened; `seconds_a_token`: by how much one more token that others hold
    lengthens it."""
    others = (errors.others_of_this_kind, errors.others_of_these)
    kind, these = (
        None
        if ends is None or errors.speed is None or tokens is None
        else _joined(
            value, ends, errors.speed, [math.log1p(seconds_a_token * more / value) for more in (-tokens[0], tokens[1])]
        )
        for ends, tokens in zip(bounds, others, strict=True)
    )
    return Composed(value, kind, these)


def _joined(value: float, ends: Interval, half_width: float, others: Sequence[float]) -> Interval:
    """An interval from lengths alone, widened on the log scale by half of that of speed and by what others hold."""
    low, high = (math.hypot(math.log(end / value), half_width, more) for end, more in zip(ends, others, strict=True))
    return value * math.exp(-low), value * math.exp(high)


def _mean_bounds(shares_s: Floats, drawn: AnswerLengths) -> tuple[Interval | None, Interval | None]:
    totals = np.add.reduceat(shares_s, drawn.starts)
    sizes = np.diff(drawn.starts, append=len(shares_s)).astype(np.float64)
    kind, variance = intervals.ratio(totals, sizes), _within(shares_s, drawn)
    mean, answers = float(np.mean(shares_s)), len(shares_s) - len(drawn.starts)
    these = None if variance is None else _around(mean, intervals.t_critical(answers) * math.sqrt(variance))
    return None if kind.ci95 is None else _around(mean, kind.ci95[1] - mean), these


def _around(value: float, half: float) -> Interval:
    """The interval of a positive figure by half of its width, on the log scale."""
    spread = math.exp(half / value)
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
