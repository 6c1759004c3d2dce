"""The load generator's own health."""

import gc
import time

import gevent

from loadtest.client.in_flight import Arrived
from loadtest.client.self_health import LATE_START_S, YOUNG, Collections, LoopLag, Telemetry, rss_bytes
from loadtest.clock import Clock


def test_a_blocked_loop_shows():
    lag = LoopLag(lambda: 1, interval_s=0.005)
    lag.start()
    gevent.sleep(0.012)
    lag.take()
    time.sleep(0.05)  # blocks the loop
    gevent.sleep(0.02)
    mean_s, worst_s = lag.take()
    lag.stop()
    assert worst_s >= 0.04
    assert 0 < mean_s <= worst_s


def test_a_blocked_loop_with_nothing_in_flight_does_not():
    lag = LoopLag(lambda: 0, interval_s=0.005)
    lag.start()
    time.sleep(0.03)
    gevent.sleep(0.01)
    assert lag.take() == (0.0, 0.0)
    lag.stop()


def test_collections_are_small_and_counted():
    before = gc.get_threshold()
    collections = Collections()
    collections.start()
    kept = [[] for _ in range(3 * YOUNG)]
    n, pause_s = collections.take()
    assert 2 <= n <= 4
    assert pause_s > 0
    assert collections.take() == (0, 0.0)
    gc.collect(0)
    assert collections.take()[0] == 1
    assert len(kept) == 3 * YOUNG
    collections.stop()
    assert gc.get_threshold() == before


def test_a_sample():
    samples = []
    clock = Clock.start(speed=10.0)
    telemetry = Telemetry(samples.append, clock, "w", lambda: 3, lambda: Arrived(70, 0.05))
    telemetry.start()
    telemetry.note_start(LATE_START_S * 1.1)
    telemetry.note_start(LATE_START_S * 0.9)
    gevent.sleep(0.01)
    telemetry.stop()
    (sample,) = samples
    assert (sample.worker, sample.in_flight, sample.late_starts) == ("w", 3, 1)
    assert (sample.reads, sample.ttft_s) == (70, 0.5)  # on the run's clock
    assert (sample.clock_speed, sample.clock_anchor_unix_s) == (10.0, clock.anchor_unix_s)
    assert sample.t_s >= 0.1  # ten times the wall's
    assert sample.cpu_share >= 0
    assert sample.rss_bytes > 10e6
    assert gc.get_freeze_count() == 0


def test_memory():
    assert 5e6 < rss_bytes() < 1e11
