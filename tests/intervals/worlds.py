"""Whole studies whose truth is known: two engines at five deployments, by bursts or by natural answers.

What is assumed (nobody has measured it on a GPU yet): a start of a server has a speed of its own, shared by all its
levels; a level 0.5 % beside it; the machine jitters by 2 % from one 5 s to the next and drifts with the hours; lengths are
log-normal, 0.50 between prompts and 0.35 when a prompt is asked again. The deployments are those of the published study,
their steps and starts those of the performance model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from loadtest.analysis.bursts.cells import BurstCell
from loadtest.analysis.bursts.composed import composed_pair
from loadtest.analysis.judgement import ComposedPair
from loadtest.decision import composition
from loadtest.decision.adjustment import Answers, at_common_length
from loadtest.decision.bursts import HALVES, BurstPoints, engine_speed
from loadtest.decision.starts import PairedStarts
from loadtest.metrics.request_arrays import Pass
from loadtest.perfmodel.gpus import gpu
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.models import model
from loadtest.perfmodel.step_time import StepWork, decode_s, prefill_s, step_time_s
from loadtest.records.engine_facts import EngineFacts
from loadtest.workload.bursts import CONTEXTS_TOKENS, LONE_PROMPTS, LONE_TOKENS, OUTPUT_TOKENS, WARMUP_TOKENS
from tests.support import builders

PROMPT_TOKENS = 57
PROMPTS = 40
LEVELS = (1, 8)
CONTEXTS = CONTEXTS_TOKENS
BURST_TOKENS = OUTPUT_TOKENS / HALVES
PASS_S = 3.0  # Locust starts and ends
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
    """One pair measured by bursts: both cells as an analysis reads them, what is composed of six starts of each, and the
    hours of a start and of both engines' natural runs (inside a start)."""

    deployed: Deployed
    cells: tuple[BurstCell, BurstCell]
    pair: ComposedPair
    start_h: float
    natural_h: float

    def after(self, starts):
        """What is known after so many starts of each engine."""
        return replace(self.pair, by_start=_first(self.pair.by_start, starts), raw=_first(self.pair.raw, starts))

    def speed(self, engine, users, starts):
        return engine_speed([self.cells[engine].points[users][start + 1] for start in range(starts)])


def _first(pair, starts):
    return PairedStarts(pair.a[:starts], pair.b[:starts])


def by_bursts(world, deployed, place, pairs, rng, prompts=PROMPTS):
    """Six starts of both engines, each with its bursts, and one natural run each for the lengths."""
    tokens = world.tokens(rng, deployed.median_tokens, rng.normal(0, BETWEEN, prompts), 1)[..., 0]
    contexts = np.add.outer(CONTEXTS, BURST_TOKENS * (np.arange(HALVES) + 0.5)).ravel()  # the halves of each burst
    points = [{users: {} for users in LEVELS} for _ in range(2)]
    speeds = world.speeds(rng, MOST_STARTS, began(place, pairs, MOST_STARTS, START_H), len(LEVELS))
    for i, users in enumerate(LEVELS):
        a_s, b_s, first_s = line(deployed, users)
        true_s = (a_s + b_s * users * contexts) * speeds[..., i, None]
        step_s = true_s * jitter(rng, world.jitter_sd, BURST_TOKENS * true_s)
        lone_s = first_s * speeds[..., i] * jitter(rng, world.jitter_sd, np.ones(speeds.shape[:2]))
        for engine in (0, 1):
            for start in range(MOST_STARTS):
                one = BurstPoints(users, users * contexts, step_s[engine, start], float(lone_s[engine, start]))
                points[engine][users][start + 1] = one
    cells = tuple(
        BurstCell(facts=FACTS[engine], bursts=(), points=points[engine], own=(), natural=(answered(tokens[engine]),))
        for engine in (0, 1)
    )
    busy_s = sum(bursts_s(deployed, users, CONTEXTS) for users in LEVELS)
    start_h = (deployed.start_s + busy_s) / 3600
    return Bursts(deployed, cells, composed_pair(*cells, LEVELS), start_h, natural_h(deployed, tokens))


FACTS = tuple(EngineFacts(id=engine, engine=engine, model="m", status="ok") for engine in ("a", "b"))


@cache
def finished(prompt):
    return replace(builders.request(), prompt_id=f"p{prompt:03}", prompt_tokens=PROMPT_TOKENS)


def answered(tokens):
    """The columns of a natural run whose answers have these lengths."""
    n = len(tokens)
    none, nothing = np.full(n, np.nan), np.zeros(0)
    return Pass(
        concurrency=NATURAL_USERS, repeat=1, records=tuple(finished(i) for i in range(n)), measured=np.ones(n, bool),
        sent_s=none, ended_s=none, first_s=none, answer_s=none, last_s=none, tokens=tokens, tokens_after_first=tokens,
        thinking_tokens=none, completion_tokens=tokens, estimated=np.zeros(n, bool), token_s=nothing,
        token_weight=nothing.astype(np.float32), token_owner=nothing.astype(np.int32),
    )  # fmt: skip


@cache
def bursts_s(deployed, users, contexts):
    """Seconds of one pass of bursts: Locust, a warm-up, lone prompts, then each burst's prompts and its output."""
    rows = [(users, min(contexts), WARMUP_TOKENS), *[(1, PROMPT_TOKENS, LONE_TOKENS)] * LONE_PROMPTS]
    rows += [(users, context, OUTPUT_TOKENS) for context in contexts]
    return PASS_S + sum(
        n * prefill_s(deployed.on, context, 2048) + decode_s(deployed.on, context, tokens, n) for n, context, tokens in rows
    )


def natural_h(deployed, tokens):
    """Hours of both engines' natural runs: bursts of their concurrency, all prompts at 16 users, and the longest answer."""
    drawn = composition.pool_lengths({str(i): [float(one)] for i, one in enumerate(tokens.ravel())}, PROMPT_TOKENS)
    a_s, b_s, _ = line(deployed, NATURAL_USERS)
    step_s = a_s + b_s * composition.others_tokens(NATURAL_USERS + 1, drawn)
    alone_s = float(np.max(drawn.tokens)) * line(deployed, 1)[0]
    beside_s = PASS_S + bursts_s(deployed, NATURAL_USERS, CONTEXTS[:2])
    return 2 * (tokens.shape[1] * drawn.mean_tokens * step_s / NATURAL_USERS + alone_s + beside_s) / 3600


def hours(study, starts):
    """GPU-hours of a study: so many starts of both engines of each pair, and one natural run per model and engine."""
    natural = {one.deployed.name: one.natural_h for one in study}
    return sum(2 * n * one.start_h for one, n in zip(study, starts, strict=True)) + sum(natural.values())


def studies(world, n, deployed=PUBLISHED, seed=1, prompts=PROMPTS):
    """So many studies by bursts, each of all deployments."""
    for study in range(n):
        rng = np.random.default_rng((seed, study))
        yield [by_bursts(world, one, place, len(deployed), rng, prompts) for place, one in enumerate(deployed)]


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
