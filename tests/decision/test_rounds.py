"""Verdicts on two servers that take turns: valid at every look, and soon certain."""

import math

import numpy as np
import pytest

from loadtest.decision import rounds
from loadtest.decision.starts import PairedStarts
from loadtest.decision.verdicts import verdict_on

DUELS = 400


def duel(rng, ratio=1.0, sd=0.01, shared_sd=0.0, start_sd=None, tails=math.inf, drift=0.0):
    """Rounds until the verdict: `sd` of one server's figure in a round, `shared_sd` of what both have in common."""
    log_a, log_b = [], []
    for n in range(1, rounds.MOST_ROUNDS + 1):
        both = rng.normal(0, shared_sd)
        one, other = rng.normal(0, sd, 2) if math.isinf(tails) else sd * rng.standard_t(tails, 2)
        order = drift * (1 if n % 2 else -1) / 2  # whoever comes second is this much slower; they take turns
        log_a.append(math.log(ratio) + both + one - order)
        log_b.append(both + other + order)
        effect = rounds.effect_of_rounds(PairedStarts(np.array(log_a), np.array(log_b)), start_sd)
        if effect is not None:
            verdict = verdict_on(effect, rounds.level_of_rounds(n))
            if verdict.decided:
                return verdict.word, n
    return "undecided", rounds.MOST_ROUNDS


def words(seed, **world):
    rng = np.random.default_rng(seed)
    found = [duel(rng, **world) for _ in range(DUELS)]
    return [word for word, _ in found], float(np.mean([n for _, n in found]))


@pytest.mark.parametrize(
    "world",
    [{}, {"sd": 0.003}, {"sd": 0.03}, {"shared_sd": 0.2}, {"tails": 4, "sd": 0.02}, {"drift": 0.01}],
    ids=["1 %", "0.3 %", "3 %", "shared", "heavy tails", "order"],
)
def test_a_server_against_itself_is_equal_or_undecided(world):
    said, _ = words(1, **world)
    assert np.mean([word in ("faster", "slower") for word in said]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / DUELS)


@pytest.mark.parametrize("ratio", [1.1, 1 / 1.1])
def test_ten_percent_is_named_in_few_rounds(ratio):
    said, n = words(2, ratio=ratio)
    assert np.mean([word == ("slower" if ratio > 1 else "faster") for word in said]) >= 0.99
    assert n < 6


def test_quiet_rounds_show_equality_soon():
    said, n = words(3, sd=0.005)
    assert np.mean([word == "equal" for word in said]) >= 0.95
    assert n < 8


def test_the_interval_covers_at_every_look():
    rng, missed = np.random.default_rng(4), 0
    for _ in range(DUELS):
        logs = rng.normal(0.03, 0.01, (rounds.MOST_ROUNDS, 1))[:, 0]
        for n in range(rounds.LEAST_ROUNDS, rounds.MOST_ROUNDS + 1):
            effect = rounds.effect_of_rounds(PairedStarts(logs[:n], np.zeros(n)))
            low, high = effect.interval(rounds.level_of_rounds(n))
            if not low <= math.exp(0.03) <= high:
                missed += 1
                break
    assert missed / DUELS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / DUELS)


def test_fewer_than_three_rounds_say_nothing():
    assert rounds.effect_of_rounds(PairedStarts(np.zeros(2), np.zeros(5))) is None
    assert rounds.level_of_rounds(2) == 0


def test_rounds_without_a_partner_are_left_out():
    effect = rounds.effect_of_rounds(PairedStarts(np.array([0.1, 0.1, 0.1, 9.0]), np.zeros(3)))
    assert (effect.starts_a, round(effect.log_ratio, 6)) == (3, 0.1)


def test_known_starts_widen_the_interval_to_servers_started_anew():
    pair = PairedStarts(np.array([0.02, 0.021, 0.019, 0.02]), np.zeros(4))
    near, far = (rounds.effect_of_rounds(pair, sd).interval(rounds.level_of_rounds(4)) for sd in (None, 0.01))
    assert near[0] > 1
    assert far[0] < 1 < far[1]
