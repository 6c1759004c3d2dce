"""A fleet of four replicas against the token-level simulator, sessions, and lost replicas."""

import math
from dataclasses import replace

import numpy as np
import pytest

from loadtest.errors import UsageError
from loadtest.perfmodel import step_time
from loadtest.perfmodel.gpus import gpu
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.models import model
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import arrivals, day, routers, speed
from loadtest.simulator.fleet.arrivals import Demand, Population, RequestMix, Traffic
from tests.simulator.fleet.token_level import TokenLevelFleet

DEPLOYMENT = Deployment(model("qwq-32b-awq"), gpu("l20"), 2)
REPLICAS, KV_TOKENS = 4, 60_000


def step_s(work):
    return step_time.step_time_s(DEPLOYMENT, work)


SPEED = speed.from_steps(step_s, 4096, 256)


def workload(seed):
    rng = np.random.default_rng(seed)
    outputs = 300 * np.exp(0.6 * rng.standard_normal(2048))
    return RequestMix(rng.integers(200, 900, 2048).astype(np.int32), outputs.astype(np.int32))


def draw(rate, requests, *, each=1.0, seed=1):
    demand = Demand(rate * arrivals.DAY_S / each, each, 5.0)
    return demand.traffic(workload(seed), 0, requests / rate, seed)


def fleet(kind, router, replicas=REPLICAS):
    return day.Fleet(EngineConfig(behaviour=behaviour(kind), kv_tokens=KV_TOKENS), SPEED, replicas, router)


def quantiles(values):
    return np.percentile(values, [50, 90])


@pytest.mark.parametrize("router", routers.KINDS)
@pytest.mark.parametrize(("kind", "rate"), [("vllm-sim", 2.0), ("vllm-sim", 6.8), ("sglang-sim", 4.0), ("sglang-sim", 7.0)])
def test_four_replicas_wait_as_token_by_token(kind, rate, router):
    """Half loaded and near saturation (8 requests a second): p50 and p90 of both waits within 3 %."""
    one = fleet(kind, router)
    found = day.simulate_fleet(one, draw(rate, 500), seed=7).requests
    ttft, final = TokenLevelFleet(one.config, step_s, routers.router(router, REPLICAS, 7), REPLICAS).run(draw(rate, 500))
    assert quantiles(found.ttft_s) == pytest.approx(quantiles(ttft), rel=0.03)
    assert quantiles(found.final_s) == pytest.approx(quantiles(final), rel=0.03)


def test_sessions_come_back_as_token_by_token():
    one = fleet("vllm-sim", "least-loaded")
    found = day.simulate_fleet(one, draw(4.0, 300, each=2.5)).requests
    reference = TokenLevelFleet(one.config, step_s, routers.router("least-loaded", REPLICAS), REPLICAS)
    ttft, final = reference.run(draw(4.0, 300, each=2.5))
    assert quantiles(found.ttft_s) == pytest.approx(quantiles(ttft), rel=0.03)
    assert quantiles(found.final_s) == pytest.approx(quantiles(final), rel=0.03)


def test_users_who_think_wait_as_token_by_token():
    """100 users on four replicas, 20 s of thought: p50 and p90 of both waits within 3 %."""
    one, users = fleet("vllm-sim", "least-loaded"), Population(100, 20.0)
    found = day.simulate_fleet(one, users.traffic(workload(1), 0, 120, 1), until_s=400).requests
    reference = TokenLevelFleet(one.config, step_s, routers.router("least-loaded", REPLICAS), REPLICAS)
    ttft, final = reference.run(users.traffic(workload(1), 0, 120, 1), until_s=400)
    there = found.arrival_s < 250
    assert there.sum() > 500
    assert quantiles(found.ttft_s[there]) == pytest.approx(np.nanpercentile(ttft[there], [50, 90]), rel=0.03)
    assert quantiles(found.final_s[there]) == pytest.approx(np.nanpercentile(final[there], [50, 90]), rel=0.03)


def test_nobody_follows_up_before_the_end_and_a_thought():
    traffic = draw(4.0, 300, each=3.0)
    found = day.simulate_fleet(fleet("vllm-sim", "random"), traffic).requests
    later = np.flatnonzero(traffic.follows)
    gap = found.arrival_s[later] - found.arrival_s[later - 1] - found.final_s[later - 1]
    assert gap == pytest.approx(traffic.think_s[later], abs=1e-2)
    assert not np.isnan(found.final_s).any()


@pytest.mark.parametrize(("replicas", "rate"), [(16, 19.2), (32, 38.4)])
def test_a_router_that_predicts_loads_waits_as_one_that_asks_each_time(replicas, rate, monkeypatch):
    """Three quarters loaded: batches of an eighth of the replicas against one arrival at a time, p50 and p90 within 3 %."""
    found = day.simulate_fleet(fleet("vllm-sim", "least-loaded", replicas), draw(rate, 5_000)).requests
    monkeypatch.setattr(routers, "BATCH_SHARE", replicas)
    exact = day.simulate_fleet(fleet("vllm-sim", "least-loaded", replicas), draw(rate, 5_000)).requests
    assert quantiles(found.ttft_s) == pytest.approx(quantiles(exact.ttft_s), rel=0.03)
    assert quantiles(found.final_s) == pytest.approx(quantiles(exact.final_s), rel=0.03)


@pytest.mark.parametrize("router", routers.KINDS)
def test_a_lost_replica_loses_no_request_and_lengthens_waits(router):
    calm = day.simulate_fleet(fleet("vllm-sim", router), draw(4.0, 600)).requests
    found = day.simulate_fleet(fleet("vllm-sim", router), draw(4.0, 600), loss=day.Loss(60.0, 1))
    assert found.resent > 0
    assert not np.isnan(found.requests.final_s).any()
    assert (found.requests.final_s >= found.requests.ttft_s).all()
    after = calm.arrival_s > 60
    assert found.requests.final_s[after].mean() > calm.final_s[after].mean()


def test_what_was_in_flight_waits_from_its_first_sending():
    """One request, sent at 0 s and lost at 5 s: the others begin it again, and its user has waited 5 s by then."""
    rows = Traffic(
        requests=arrivals.table(np.zeros(1), np.array([500], np.int32), np.array([400], np.int32)),
        starts_s=np.zeros(1),
        opening=np.arange(1),
        follows=np.zeros(1, bool),
        think_s=np.zeros(0, np.float32),
    )
    alone = replace(rows, requests=arrivals.table(np.zeros(1), np.array([500], np.int32), np.array([400], np.int32)))
    router = fleet("vllm-sim", "round-robin", 2)
    expected = day.simulate_fleet(router, alone).requests
    lost = _swapped(day.simulate_fleet, router, rows)
    assert lost.requests.final_s[0] == pytest.approx(expected.final_s[0] + 5.0, rel=1e-4)
    assert lost.requests.ttft_s[0] == pytest.approx(expected.ttft_s[0] + 5.0, rel=1e-4)


def _swapped(simulate, router, rows):
    """The last replica is the one that is lost: a first request, of one token, takes the turn of the other one."""
    first = arrivals.table(np.array([0.0, 0.0]), np.array([500, 1], np.int32), np.array([400, 1], np.int32))
    order = np.array([1, 0])
    both = replace(rows, requests=first, starts_s=np.zeros(2), opening=order, follows=np.zeros(2, bool))
    return simulate(router, both, loss=day.Loss(5.0, 1))


def test_a_time_limit_leaves_the_rest_unknown():
    found = day.simulate_fleet(fleet("vllm-sim", "random"), draw(4.0, 400), until_s=50.0).requests
    assert np.isnan(found.ttft_s[found.arrival_s > 50]).all()
    assert not np.isnan(found.final_s[found.arrival_s < 10]).all()


def test_a_hopeless_day_is_given_up():
    asked_s = []
    found = day.simulate_fleet(
        fleet("vllm-sim", "random"), draw(4.0, 400), hopeless=lambda at: asked_s.append(at) or at > 30
    )
    assert found.hopeless
    assert asked_s == sorted(asked_s)
    assert asked_s[-1] > 30
    assert np.isnan(found.requests.final_s).any()
    assert not day.simulate_fleet(fleet("vllm-sim", "random"), draw(4.0, 400)).hopeless


@pytest.mark.parametrize("lost", [0, 4])
def test_losing_nobody_or_everybody_is_refused(lost):
    with pytest.raises(UsageError, match="from 1 to 3"):
        day.simulate_fleet(fleet("vllm-sim", "random"), draw(4.0, 10), loss=day.Loss(1.0, lost))


def test_the_day_of_nobody():
    nobody = Demand(0.001).traffic(workload(1), 0, 60, seed=1)
    assert nobody.requests.count == 0
    assert day.simulate_fleet(fleet("vllm-sim", "random"), nobody).resent == 0
    assert math.isinf(nobody.floor_s)
