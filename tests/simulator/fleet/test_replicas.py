"""Replicas from event to event: by hand, against the token-level engine, and what holds whatever comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import day, routers, speed
from loadtest.simulator.fleet.arrivals import Traffic
from loadtest.simulator.fleet.replicas import Replicas
from loadtest.simulator.fleet.requests import table
from tests.simulator.fleet.token_level import TokenLevelFleet


def step_s(work):
    return (
        0.5 + work.prefill_tokens / 64 + work.decode_streams / 32 + work.kv_read_tokens / 4096 + work.prefill_pairs / 65536
    )


SPEED = speed.from_steps(step_s, 48, 48)
ROWS = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60), st.integers(1, 50)), min_size=1, max_size=40)


def traffic(rows):
    rows = sorted(rows)
    arrival, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(len(rows), bool)
    requests = table(arrival.astype(float), prompt.astype(np.int32), output.astype(np.int32))
    return Traffic(requests, arrival.astype(float), np.arange(len(rows)), none, np.zeros(0, np.float32))


def config(kind, kv_tokens=4096, budget=48, **limits):
    return EngineConfig(behaviour=behaviour(kind), kv_tokens=kv_tokens, prefill_budget_tokens=budget, **limits)


def ran(rows, engine, replicas=1, router="round-robin"):
    return day.simulate_fleet(day.Fleet(engine, SPEED, replicas, router), traffic(rows))


def test_two_requests_by_hand():
    """A step takes 1 s, 2 s with a prompt in it. A comes at 0 s and has its first token at 2 s, the second at 3 s. B comes
    at 2.5 s, during that step: the next one computes its prompt beside A's third token, until 5 s; B ends at 6 s."""
    by_hand = speed.from_steps(lambda work: 1.0 + work.prefill_tokens / 8, 48, 8)
    fleet = day.Fleet(config("vllm-sim"), by_hand, 1, "random")
    found = day.simulate_fleet(fleet, traffic([(0.0, 8, 3), (2.5, 8, 2)])).requests
    assert found.ttft_s == pytest.approx([2.0, 2.5])
    assert found.final_s == pytest.approx([5.0, 3.5])


def test_prompts_stop_decoding_where_batches_are_not_mixed():
    """As above, but B's prompt has its step alone: A's third token comes at 6 s, with B's second."""
    by_hand = speed.from_steps(lambda work: 1.0 + work.prefill_tokens / 8, 48, 8)
    fleet = day.Fleet(config("sglang-sim"), by_hand, 1, "random")
    found = day.simulate_fleet(fleet, traffic([(0.0, 8, 3), (2.5, 8, 2)])).requests
    assert found.ttft_s == pytest.approx([2.0, 2.5])
    assert found.final_s == pytest.approx([6.0, 3.5])


def test_requests_that_run_when_time_begins_by_hand():
    """A step takes 1 s. Three requests, two of them at the first of two replicas, have 3, 2 and 5 tokens left at 10 s; what
    arrives at 11.5 s has its prompt beside the third's last token."""
    by_hand = speed.from_steps(lambda work: 1.0 + work.prefill_tokens / 8, 48, 8)
    rows = table(np.array([10.0, 10, 10, 11.5]), np.array([30, 30, 30, 8], np.int32), np.array([3, 2, 5, 1], np.int32))
    none = np.zeros(0, np.float32)
    began = Traffic(rows, np.array([11.5]), np.array([3]), np.zeros(4, bool), none, np.arange(3))
    found = day.simulate_fleet(day.Fleet(config("vllm-sim"), by_hand, 2, "round-robin"), began).requests
    assert found.final_s[:3] == pytest.approx([2.0, 1.0, 5.0])
    assert found.ttft_s[3] == pytest.approx(2.5)


@pytest.mark.parametrize("kind", ["vllm-sim", "sglang-sim"])
@given(rows=ROWS, seats=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_one_replica_is_the_token_level_engine(kind, rows, seats):
    """With chunked prompts and a limit of seats, and room for all: the same instants."""
    engine = config(kind, max_running=seats)
    found = ran(rows, engine).requests
    ttft, final = TokenLevelFleet(engine, step_s, routers.router("random", 1), 1).run(traffic(rows))
    assert found.ttft_s == pytest.approx(ttft, abs=1e-3)
    assert found.final_s == pytest.approx(final, abs=1e-3)


@pytest.mark.parametrize("kind", ["vllm-sim", "sglang-sim"])
@given(rows=ROWS, replicas=st.integers(1, 4), kv_tokens=st.integers(128, 400))
@settings(max_examples=60, deadline=None)
def test_no_request_is_lost_however_small_the_cache(kind, rows, replicas, kv_tokens):
    """Every request ends, after its first token; all that is asked for is generated; nothing is left behind."""
    asked = traffic(rows).requests
    simulated = ran(rows, config(kind, kv_tokens), replicas)
    found = simulated.requests
    assert not np.isnan(found.final_s).any()
    assert (found.ttft_s > 0).all()
    assert (found.final_s >= found.ttft_s).all()
    moved = asked.output_tokens - found.output_tokens  # by preemption, from output to what is computed again
    assert (moved >= 0).all()
    assert (found.prompt_tokens - asked.prompt_tokens == moved).all()
    assert (moved.sum() == 0) or simulated.preemptions


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_a_replica_starts_requests_in_order_of_arrival(rows):
    found = ran(rows, config("vllm-sim", max_running=3)).requests
    first = found.arrival_s + found.ttft_s
    assert (np.diff(first) >= -1e-4).all()


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_a_step_of_a_fixed_time_is_never_wasted(rows):
    """With one seat and steps of 1 s, the last request ends when the work is done: a second for each token of each request,
    plus the time in which nobody was there."""
    fixed = speed.from_steps(lambda work: 1.0, 64, 2)
    found = day.simulate_fleet(
        day.Fleet(config("vllm-sim", budget=64, max_running=1), fixed, 1, "random"), traffic(rows)
    ).requests
    free_s = 0.0
    for at_s, _, output in sorted(rows):
        free_s = max(free_s, at_s) + output
    assert float((found.arrival_s + found.final_s).max()) == pytest.approx(free_s, rel=1e-5)


def test_waits_grow_with_load():
    rng = np.random.default_rng(3)
    gaps, prompts, outputs = rng.exponential(1, 400).cumsum(), rng.integers(1, 40, 400), rng.integers(20, 200, 400)
    waits = []
    for pace in (40, 20, 10, 5):
        found = ran(list(zip(gaps * pace, prompts, outputs, strict=True)), config("vllm-sim", max_running=8)).requests
        waits.append((float(found.ttft_s.mean()), float(found.final_s.mean())))
    assert waits == sorted(waits)
    assert waits[-1][0] > 2 * waits[0][0]


def test_what_never_fits_is_refused():
    with pytest.raises(UsageError, match="does not fit the KV cache of 64 tokens"):
        Replicas(config("vllm-sim", 64), SPEED, traffic([(0.0, 40, 40)]).requests, 1)
