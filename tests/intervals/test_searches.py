"""How near searches come to the largest concurrency within SLOs, on both simulated engines in virtual time.

The truth is the share of requests within the SLO over a long pass at each level, every prompt asked once. A search is right
if its frontier, widened by one step, holds the level at which that share crosses what the SLO asks for.
"""

import pytest

from loadtest.analysis.run import analyze
from loadtest.analysis.search.level_test import outcomes, target_share
from loadtest.decision.search_steps import step
from loadtest.metrics.request_arrays import earliest_anchor, pass_arrays
from loadtest.metrics.slo import parse_slo
from loadtest.records.read import read_run
from loadtest.study import fast_forward
from loadtest.study.schema import Cell, SearchLimits, Study

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


@pytest.fixture(scope="module", params=["vllm-sim", "sglang-sim"])
def world(request, tmp_path_factory):
    """An engine, and the largest level at which enough requests are within the SLO."""
    run = carried_out(study(request.param, levels=LEVELS, min_requests=1000), tmp_path_factory.mktemp("truth") / "run")
    [cell] = run.cells
    anchor = earliest_anchor(cell.levels)
    target = target_share(parse_slo(SLO))
    met = [one.concurrency for one in cell.levels if share_within(one, anchor) > target]
    assert LEVELS[0] < max(met) < LEVELS[-1]
    return request.param, max(met)


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
