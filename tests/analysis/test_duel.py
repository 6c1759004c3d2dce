"""A duel from its records: rounds of two servers, what is said of them, and for which population."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadtest.analysis.run import analyze
from loadtest.report.decision import SERVER, decision_lines
from loadtest.report.terminal import decision_text
from tests.support import builders


def passes(rng, side, rounds, factor, cell):
    """Rounds at one user: the same prompts every time, each round a little faster or slower as a whole."""
    found = []
    for repeat in range(1, rounds + 1):
        pace = factor * float(np.exp(rng.normal(0, 0.005)))
        requests, at_s = [], 0.0
        for seq in range(8):
            one = builders.request(
                at_s, ttft_s=0.5 * pace, gap_s=0.1 * pace, thinking=6 + seq % 4, seq=seq, prompt_id=f"p{seq}", worker=side
            )
            requests.append(one)
            at_s = one.ended_s
        found.append(builders.level(requests, cell=cell, repeat=repeat))
    return found


def duel(rounds=5, slower=1.0, seed=1, **manifest):
    rng, cells = np.random.default_rng(seed), []
    for side, factor in (("a", 1.0), ("b", slower)):
        made = builders.cell(passes(rng, side, rounds, factor, f"vllm_qwq-32b-awq_tp1_{side}"))
        facts = msgspec.structs.replace(
            made.engine, id=f"{made.id}_{side}", base_url=f"http://10.0.0.{len(cells) + 1}:8000", side=side
        )
        cells.append(replace(made, id=facts.id, engine=facts))
    return builders.run(cells, **manifest)


def decision(**how):
    metrics = analyze(duel(**how))
    [found] = metrics.decisions
    return found, metrics


def test_a_server_that_is_ten_percent_slower_is_named():
    found, metrics = decision(slower=1.1)
    assert (found.verdict, found.unit, found.n_a, found.n_b) == ("faster", "round", 5, 5)
    assert found.ratio.high < 1 / 1.05
    [line] = [line for line in decision_lines(metrics, duel().manifest) if line.asks == SERVER]
    assert line.answer.startswith("A (vLLM) is ")
    assert "5 rounds each; rounds vary by" in line.because
    assert "as they stand: a restart may differ" in line.because
    assert decision_text(metrics, duel().manifest, 120).startswith("A (vLLM) is ")


def test_a_server_against_itself_is_equal():
    found, _ = decision(rounds=8)
    assert found.verdict == "equal"
    assert found.ratio.low < 1 < found.ratio.high


@pytest.mark.parametrize("seed", range(12))
def test_a_server_against_itself_is_never_faster_or_slower(seed):
    assert decision(seed=seed, rounds=4)[0].verdict in ("equal", "undecided")


def test_two_rounds_decide_nothing():
    found, _ = decision(rounds=2, slower=1.5)
    assert (found.verdict, found.reason) == ("too few samples", "at least 3 rounds of both servers needed")


def test_where_starts_are_known_to_vary_it_says_so_of_servers_started_anew():
    found, _ = decision(slower=1.03, rounds=8, start_sd=0.02)
    assert found.verdict == "undecided"
    assert "whenever both servers are started anew" in found.population
