"""Where requests go."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.simulator.fleet import routers


def test_round_robin_takes_turns_and_leaves_out_the_lost():
    router = routers.router("round-robin", 3)
    assert router.choose(2, np.zeros(3, np.int64)).tolist() == [0, 1]
    assert router.choose(2, np.zeros(3, np.int64)).tolist() == [2, 0]
    router.keep(np.array([0, 2]))
    assert router.choose(3, np.zeros(3, np.int64)).tolist() == [0, 2, 0]


def test_random_is_even_and_does_not_depend_on_how_it_is_asked():
    many = routers.router("random", 4, seed=3).choose(40_000, np.zeros(4, np.int64))
    assert np.bincount(many) / 10_000 == pytest.approx(np.ones(4), rel=0.05)
    one = routers.router("random", 4, seed=3)
    assert [int(one.choose(1, np.zeros(4, np.int64))[0]) for _ in range(50)] == many[:50].tolist()


def test_least_loaded_fills_the_emptiest_in_turn():
    router = routers.router("least-loaded", 4)
    assert router.choose(1, np.array([2, 1, 1, 3])).tolist() == [1]
    assert router.choose(1, np.array([2, 1, 1, 3])).tolist() == [2]
    assert router.choose(1, np.array([2, 1, 1, 3])).tolist() == [1]
    assert sorted(routers.router("least-loaded", 4).choose(4, np.array([0, 2, 9, 9]))) == [0, 0, 0, 1]


@given(st.lists(st.integers(0, 6), min_size=16, max_size=40), st.integers(1, 4))
def test_a_batch_of_the_least_loaded_is_as_even_as_one_at_a_time(loads, arrivals):
    load = np.array(loads)
    batch, single = routers.router("least-loaded", len(load)), routers.router("least-loaded", len(load))
    after, one_by_one = load.copy(), load.copy()
    np.add.at(after, batch.choose(arrivals, load), 1)
    for _ in range(arrivals):
        one_by_one[single.choose(1, one_by_one)] += 1
    assert sorted(after) == sorted(one_by_one)


def test_small_fleets_are_routed_one_request_at_a_time():
    assert routers.router("least-loaded", 15).batch == 1
    assert routers.router("least-loaded", 16).batch == 2
    assert routers.router("least-loaded", 32).batch == 4
    assert routers.router("least-loaded", 1000).batch == 250


def test_an_unknown_router_is_refused():
    with pytest.raises(UsageError, match="random, round-robin, least-loaded"):
        routers.router("fastest", 3)
