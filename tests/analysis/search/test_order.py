"""Which requests of an open loop are judged, and when."""

from loadtest.analysis.search.order import SETTLING, ArrivalsOrder
from loadtest.metrics.request_arrays import pass_arrays
from tests.support import builders

EVERY_S, TAKES_S = 1.0, 2.5


def arrivals(n, late=()):
    """Requests a second apart that take 2.5 s each; those in `late` wait 2 s more for a user."""
    return [
        builders.request(seq * EVERY_S + 2.0 * (seq in late), scheduled_s=seq * EVERY_S, ttft_s=0.5, gap_s=1.0,
                         thinking=1, answer=2, seq=seq, user=seq)
        for seq in range(n)
    ]  # fmt: skip


def judged(requests):
    order = ArrivalsOrder()
    columns = pass_arrays(builders.level(requests), 0.0)
    for at, record in enumerate(columns.records):
        order.add(columns, at, [record.seq])
    return order, [answers[0] for answers in order.ready()]


def test_what_finds_an_idle_server_or_an_empty_road_is_left_out():
    requests = arrivals(30)
    settled_s = max(one.ended_s for one in requests[:SETTLING])
    _, seen = judged(requests)
    assert seen == [one.seq for one in requests if one.scheduled_s >= settled_s and one.ended_s <= 29.0]
    assert 0 < len(seen) < 22


def test_a_request_waits_for_those_that_came_before_it():
    requests = arrivals(30)
    order, seen = judged([one for one in requests if one.seq != 15])
    assert seen
    assert max(seen) == 14
    columns = pass_arrays(builders.level(requests[15:16]), 0.0)
    order.add(columns, 0, [15])
    assert next(order.ready()) == [15]


def test_a_request_that_waited_for_a_user_is_within_no_slo():
    _, seen = judged(arrivals(30, late=(20,)))
    assert False in seen
    assert 20 not in [one for one in seen if one is not False]


def test_of_a_pass_that_nobody_ends_within_only_what_is_outside_counts():
    slow = [builders.request(seq / 10, ttft_s=9.0, gap_s=9.0, thinking=1, answer=2, seq=seq, user=seq) for seq in range(20)]
    order, seen = judged(slow)
    assert seen == []
    assert list(order.rest()) == [[None]] * 20
    columns = pass_arrays(builders.level(slow), 0.0)
    for at in range(20):
        order.add(columns, at, [at % 2 == 0])
    assert list(order.rest()).count([False]) == 10
