"""How near searches come to the largest concurrency within SLOs, on both simulated engines in virtual time.

The truth is the share of requests within the SLO over a long pass at each level, every prompt asked once. A search is right
if its frontier, widened by one step, holds the level at which that share crosses what the SLO asks for.
"""

import bisect
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.analysis.run import analyze
from loadtest.analysis.search.level_test import outcomes, target_share
from loadtest.decision.search_steps import step
from loadtest.metrics.request_arrays import earliest_anchor, pass_arrays
from loadtest.metrics.slo import parse_slo
from loadtest.records.read import read_run
from loadtest.records.schema import RequestRecord
from loadtest.simulator.core.engine import Engine
from loadtest.study import fast_forward, plan
from loadtest.study.schema import Cell, SearchLimits, Study
from loadtest.study.search.arrivals import VirtualArrivals
from loadtest.study.search.asked import PER_HOUR_S
from loadtest.study.search.live import level_of
from loadtest.study.virtual_level import Plan, VirtualServer
from loadtest.workload.script import Script

SEARCHES = 20
LEVELS = tuple(range(10, 31, 2))
SLO = "tokens_per_s_per_user:p10>25"


def study(engine, **how):
    cell = Cell(engine=engine, model="qwq-32b-awq", gpu="l20", args=("--length-scale", "0.05"))
    return Study(name="s", workload="math:n=2048,seed=1", cells=(cell,), slo=(SLO,), **how)


def carried_out(asked, folder):
    assert fast_forward.simulate_study(asked, folder, say=lambda line: None) == ()
    return read_run(folder)


def share_within(level, anchor):
    columns = pass_arrays(level, anchor)
    judged = [one for one, use in zip(outcomes(columns, parse_slo(SLO)), columns.measured, strict=True) if use]
    return sum(one is True for one in judged) / len(judged)


def largest(levels, share, slo):
    """The largest of these levels at which enough requests are within the SLO, of which ever fewer are."""
    target = target_share(parse_slo(slo))
    at = bisect.bisect_left(levels, True, key=lambda level: share(level) <= target) - 1
    assert 0 < at < len(levels) - 1
    return levels[at]


@pytest.fixture(scope="module", params=["vllm-sim", "sglang-sim"])
def world(request, tmp_path_factory):
    """An engine, and the largest level at which enough requests are within the SLO."""
    folder = tmp_path_factory.mktemp("truth")

    def share(level):
        run = carried_out(study(request.param, levels=(level,), min_requests=1000), folder / str(level))
        return share_within(run.cells[0].levels[0], earliest_anchor(run.cells[0].levels))

    return request.param, largest(LEVELS, share, SLO)


@pytest.mark.timeout(1800)
def test_a_search_is_within_one_step_of_the_truth_in_nine_of_ten(world, tmp_path):
    engine, truth = world
    right = 0
    for seed in range(SEARCHES):
        asked = study(engine, search=SearchLimits(), seed=seed)
        [found] = analyze(carried_out(asked, tmp_path / str(seed))).searches
        low, high = found.within, found.broken or found.most
        right += low - step(low) <= truth <= high + step(high)
        print(engine, truth, found.within, found.broken, found.limit, found.n_requests, round(found.gpu_minutes, 1))
    assert right >= 0.9 * SEARCHES


# Rates of arrivals ---------------------------------------------------------------------------------------------------

RATE_SLO = "time_to_final_answer_s:p90<16"
RATES = tuple(range(19_000, 29_001, 1_000))  # requests per hour
LONG, EDGE = 1500, 200  # requests of a pass that tells the truth, and of its two ends that do not count
RATE_SEARCHES = 10


def of_rates(**how):
    asked = replace(study("vllm-sim", search=SearchLimits(of="requests/h"), scenario="open_loop",
                          scenario_options={"arrivals": "poisson"}, warmup_requests=0), slo=(RATE_SLO,))  # fmt: skip
    return replace(asked, **how)


def share_at(rate, seed):
    """The share of requests within the SLO in the middle of a long pass."""
    asked = fast_forward.predicted(of_rates())
    workload, contract = plan.asked(asked)
    made = fast_forward.simulate_cell(asked.cells[0], contract)
    server = VirtualServer(Engine(made.config, made.step_time_s), made.served)
    script = Script(workload, contract, model=made.served.model, engine="vllm-sim", seed=seed)
    told = Plan(run_id="r", cell="c", concurrency=rate, repeat=1, requests=LONG, duration_s=None, warmup_requests=0,
                opened=False, judges=False, anchor_unix_s=0.0)  # fmt: skip
    facts = VirtualArrivals(told, script, server, rate / PER_HOUR_S, seed).run()
    records = sorted((one for one in facts if isinstance(one, RequestRecord)), key=lambda one: one.seq)
    within = outcomes(pass_arrays(level_of(Path("c01-r1"), records[EDGE:-EDGE]), 0.0), parse_slo(RATE_SLO))
    return sum(one is True for one in within) / len(within)


@pytest.fixture(scope="module")
def largest_rate():
    """The largest rate at which enough requests are within the SLO."""
    return largest(RATES, lambda rate: share_at(rate, seed=99), RATE_SLO)


@pytest.mark.timeout(1800)
def test_a_search_for_a_rate_is_within_one_step_of_the_truth_in_nine_of_ten(largest_rate, tmp_path):
    right = 0
    for seed in range(RATE_SEARCHES):
        [found] = analyze(carried_out(of_rates(seed=seed), tmp_path / str(seed))).searches
        low, high = found.within, found.broken or found.most
        right += low - step(low) <= largest_rate <= high + step(high)
        print(largest_rate, found.within, found.broken, found.limit, found.n_requests)
    assert right >= 0.9 * RATE_SEARCHES
