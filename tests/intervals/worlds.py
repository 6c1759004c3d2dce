"""Whole studies whose truth is known: two engines at five deployments, by bursts or by natural answers.

What is assumed (nobody has measured it on a GPU yet): a start of a server has a speed of its own, shared by all its
levels; a level 0.5 % beside it; the machine jitters by 2 % from one 5 s to the next and drifts with the hours; lengths are
log-normal, 0.50 between prompts and 0.35 when a prompt is asked again. The deployments are those of the published study,
their steps and starts those of the performance model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from loadtest.decision import composition, step_line
from loadtest.decision.adjustment import Answers, at_common_length
from loadtest.decision.composition import AnswerLengths, EngineSpeed
from loadtest.decision.starts import PairedStarts
from loadtest.perfmodel.gpus import gpu
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.models import model
from loadtest.perfmodel.step_time import StepWork, prefill_s, step_time_s

PROMPT_TOKENS = 57
PROMPTS = 64
LEVELS = (1, 8)
CONTEXTS = (200, 1500, 5000)
BURSTS = 2
BURST_TOKENS = 128
NATURAL_USERS = 16
MOST_STARTS = 6
BETWEEN, AGAIN = 0.50, 0.35
START_H = 3 / 60  # about what a start takes, for the drift between starts
PAUSE_S = 13.0  # between levels
READY_S, LOADING_BYTES_PER_S = 60.0, 1e9  # as the plan of a study expects them


@dataclass(frozen=True)
class Deployed:
    """One model on so many GPUs: its true line at a concurrency, what a start costs, how long its answers are."""

    name: str
    tp: int
    median_tokens: float

    @property
    def on(self):
        return Deployment(model(self.name), gpu("l20"), self.tp)

    @property
    def start_s(self):
        return READY_S + self.on.model.weight_bytes / LOADING_BYTES_PER_S


PUBLISHED = (
    Deployed("qwq-32b-awq", 1, 1750), Deployed("qwq-32b-awq", 2, 1750), Deployed("qwq-32b", 2, 1750),
    Deployed("qwen2.5-7b-instruct", 1, 200), Deployed("qwen2.5-7b-instruct", 2, 200),
)  # fmt: skip


@cache
def line(deployed, users):
    """True a, b (s) and the seconds of a lone first token."""
    near, far = (step_time_s(deployed.on, StepWork(decode_streams=users, kv_read_tokens=k)) for k in (0, 100_000))
    return near, (far - near) / 100_000, prefill_s(deployed.on, PROMPT_TOKENS, 8192)


@dataclass(frozen=True)
class World:
    """How starts, machines and lengths vary. `slower`: of the first engine, in everything; `start_sd` of each engine;
    `longer`: how many times longer the first engine thinks; `tail`: the share of answers four times as long."""

    slower: float = 1.0
    start_sd: tuple[float, float] = (0.01, 0.01)
    level_sd: float = 0.005
    jitter_sd: float = 0.02
    trend_per_hour: float = 0.0
    longer: float = 1.0
    tail: float = 0.0

    def speeds(self, rng, starts, began_h, levels):
        """Seconds of each engine's starts at its levels, against the true ones: engine x start x level."""
        own = np.array(self.start_sd)[:, None] * rng.normal(size=(2, starts))
        level = self.level_sd * rng.normal(size=(2, starts, levels))
        drift = np.log1p(self.trend_per_hour) * began_h
        slower = np.log([self.slower, 1.0])[:, None]
        return np.exp((own + drift + slower)[..., None] + level)

    def tokens(self, rng, median, prompts, asked):
        """Output tokens of both engines' answers to the same prompts: engine x prompt x times asked."""
        drawn = median * np.exp(prompts[:, None] + rng.normal(0, AGAIN, (2, len(prompts), asked)))
        drawn *= np.where(rng.random(drawn.shape) < self.tail, 4.0, 1.0)
        drawn[0] *= self.longer
        return np.maximum(np.round(drawn), 8)


def jitter(rng, sd, seconds):
    """What the mean pace of so many seconds is off, when the pace changes every 5 s."""
    return np.exp(rng.normal(size=seconds.shape) * sd / np.sqrt(np.maximum(seconds / 5, 1)))


def began(pair, pairs, starts, start_h):
    """Hours at which the starts of a pair begin: every second round runs all cells in reverse order. Engine x start."""
    rounds = np.arange(starts)
    forth = np.array([[2 * pair], [2 * pair + 1]])
    return (2 * pairs * rounds + np.where(rounds % 2 == 0, forth, 2 * pairs - 1 - forth)) * start_h


@dataclass(frozen=True)
class Bursts:
    """One pair measured by bursts: log mean times of each start, the speeds and lengths behind them, hours of a start and
    of both engines' natural runs (inside a start)."""

    deployed: Deployed
    pair: PairedStarts
    speeds: tuple[EngineSpeed, ...]
    drawn: AnswerLengths
    start_h: float
    natural_h: float


def by_bursts(world, deployed, place, pairs, rng):
    """Six starts of both engines, each with its bursts, and one natural run each for the lengths."""
    drawn = lengths(world, deployed, rng)
    contexts = np.add.outer(CONTEXTS, BURST_TOKENS * (np.arange(BURSTS) + 0.5)).ravel()  # one stream on, burst after burst
    made, busy_s = [], 0.0
    speeds = world.speeds(rng, MOST_STARTS, began(place, pairs, MOST_STARTS, START_H), len(LEVELS))
    for i, users in enumerate(LEVELS):
        a_s, b_s, first_s = line(deployed, users)
        true_s = (a_s + b_s * users * contexts) * speeds[..., i, None]
        step_s = true_s * jitter(rng, world.jitter_sd, BURST_TOKENS * true_s)
        lone_s = first_s * speeds[..., i] * jitter(rng, world.jitter_sd, np.ones(speeds.shape[:2]))
        made.append(EngineSpeed(users, step_line.fit_step_line(users * contexts, step_s), lone_s))
        filled_s = sum(users * prefill_s(deployed.on, context, 8192) for context in CONTEXTS)
        busy_s += BURST_TOKENS * float(np.mean(np.sum(step_s, axis=-1))) + filled_s
    a, b = (np.mean([composition.log_mean_s(side(one, engine), drawn) for one in made], axis=0) for engine in (0, 1))
    start_h = (deployed.start_s + busy_s) / 3600
    return Bursts(deployed, PairedStarts(a, b), tuple(made), drawn, start_h, natural_h(deployed, drawn))


def natural_h(deployed, drawn):
    """Hours of both engines' natural runs: all prompts at 16 users, and the longest answer once they run out."""
    a_s, b_s, _ = line(deployed, NATURAL_USERS)
    step_s = a_s + b_s * composition.others_tokens(NATURAL_USERS + 1, drawn)
    alone_s = float(np.max(drawn.tokens)) * line(deployed, 1)[0]
    return 2 * (PROMPTS * drawn.mean_tokens * step_s / NATURAL_USERS + alone_s) / 3600


def hours(study, starts):
    """GPU-hours of a study: so many starts of both engines of each pair, and one natural run per model and engine."""
    natural = {one.deployed.name: one.natural_h for one in study}
    return sum(2 * n * one.start_h for one, n in zip(study, starts, strict=True)) + sum(natural.values())


def side(speed, engine):
    one = speed.line
    return EngineSpeed(speed.concurrency, step_line.StepLine(one.a_s[engine], one.b_s[engine]), speed.first_token_s[engine])


def lengths(world, deployed, rng):
    """Both engines' answers to the prompts of the natural run."""
    tokens = world.tokens(rng, deployed.median_tokens, rng.normal(0, BETWEEN, PROMPTS), 1)
    by_prompt = {f"{prompt:03}": [float(one) for one in tokens[:, prompt, 0]] for prompt in range(PROMPTS)}
    return composition.pool_lengths(by_prompt, PROMPT_TOKENS)


def studies(world, n, deployed=PUBLISHED, seed=1):
    """So many studies by bursts, each of all deployments."""
    for study in range(n):
        rng = np.random.default_rng((seed, study))
        yield [by_bursts(world, one, place, len(deployed), rng) for place, one in enumerate(deployed)]


def natural(world, deployed, rng, *, levels=(1, 2, 4, 8), repeats=3):
    """One pair by natural answers, every level asked the same 24 prompts; and the log ratio of its raw times by level."""
    prompts = rng.normal(0, BETWEEN, 24)
    speeds = world.speeds(rng, repeats, began(0, 1, repeats, 0.5), len(levels))
    figures, variances, raw = np.zeros((len(levels), 2, repeats)), 0.0, []
    for i, users in enumerate(levels):
        starts = [
            answers(world, deployed, users, prompts, engine, float(speeds[engine, repeat, i]), rng)
            for engine in (0, 1)
            for repeat in range(repeats)
        ]
        found = at_common_length(starts)
        figures[i] = np.array(found.log_s, float).reshape(2, repeats)
        variances += sum(found.within_variance) / repeats**2 / len(levels) ** 2
        times = [float(np.mean(np.log(one.time_s))) for one in starts]
        raw.append(float(np.mean(times[:repeats]) - np.mean(times[repeats:])))
    a, b = np.mean(figures, axis=0)
    return PairedStarts(a, b, math.sqrt(variances)), raw


@dataclass(frozen=True)
class Sampled:
    """One pair by few natural answers: each level's answers by engine and start, and the hours of a start."""

    levels: tuple[tuple[list[Answers], list[Answers]], ...]
    start_h: float

    def after(self, starts):
        """What is known after so many starts of each engine."""
        figures = []
        for a, b in self.levels:
            found = at_common_length([*a[:starts], *b[:starts]])
            figures.append(np.array(found.log_s, float).reshape(2, starts))
        a, b = np.mean(figures, axis=0)
        return PairedStarts(a, b)


def sampled(world, deployed, place, pairs, rng):
    """Six starts of both engines: two answers at one user, eight at eight users, each after a warm-up of its length."""
    prompts = rng.normal(0, BETWEEN, 8)
    speeds = world.speeds(rng, MOST_STARTS, began(place, pairs, MOST_STARTS, 2 * START_H), 2)
    levels, busy_s = [], 0.0
    for i, users in enumerate(LEVELS):
        asked = prompts[: max(2, users)]
        made = [
            [
                answers(world, deployed, users, asked, engine, float(speeds[engine, start, i]), rng)
                for start in range(MOST_STARTS)
            ]
            for engine in (0, 1)
        ]
        levels.append((made[0], made[1]))
        took = [one.time_s for side in made for one in side]
        warm_s = float(np.mean([np.mean(times) if users == 1 else np.max(times) for times in took]))
        busy_s += warm_s + float(np.mean([np.sum(times) if users == 1 else np.max(times) for times in took])) + PAUSE_S
    return Sampled(tuple(levels), (deployed.start_s + busy_s) / 3600)


def answers(world, deployed, users, prompts, engine, speed, rng):
    """One start's natural answers at one level. What the other users hold is of this engine's own lengths."""
    tokens = world.tokens(rng, deployed.median_tokens, prompts, 1)[engine, :, 0]
    a_s, b_s, first_s = line(deployed, users)
    mean = deployed.median_tokens * math.exp((BETWEEN**2 + AGAIN**2) / 2) * (world.longer if engine == 0 else 1.0)
    held = (users - 1) * (PROMPT_TOKENS + mean / 2 * math.exp(BETWEEN**2 + AGAIN**2))
    took = first_s + (tokens - 1) * (a_s + b_s * (held + PROMPT_TOKENS + tokens / 2)) + first_s * (users - 1) * tokens / mean
    return Answers(took * speed * jitter(rng, world.jitter_sd, took), tokens)
