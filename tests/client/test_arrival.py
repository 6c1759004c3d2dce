"""Arrivals by the kernel's clock: true however late they are read, bounded where several were merged."""

import contextlib
import math
import socket
import struct
import threading
import time

import gevent.socket
import pytest

from loadtest.client import arrival

CLOCKS_S = 0.001  # between the kernel's clock and ours


@pytest.fixture
def pair():
    """A connected client, not blocking, and the server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setblocking(False)
    with contextlib.closing(client), contextlib.closing(server):
        yield client, server


@pytest.fixture
def stamped(pair):
    """The same, stamped; the kernel begins with that a moment after it was first asked."""
    client, server = pair
    assert arrival.gives_stamps(client)
    for _ in range(100):
        server.send(b"-")
        time.sleep(0.01)
        if not math.isnan(arrival.stamped_reader(client)()[2]):
            return pair
    pytest.skip("this kernel gives no stamps")


def test_a_late_read_knows_when_its_bytes_came(stamped):
    client, server = stamped
    read = arrival.stamped_reader(client)
    before = time.monotonic()
    server.send(b"one")
    after = time.monotonic()
    time.sleep(0.2)
    data, at, unread_s = read()
    assert data == b"one"
    assert before - CLOCKS_S <= at <= after + CLOCKS_S
    assert 0.2 - CLOCKS_S <= unread_s <= time.monotonic() - before + CLOCKS_S


def test_nothing_to_read_and_the_end(stamped):
    client, server = stamped
    read = arrival.stamped_reader(client)
    with pytest.raises(BlockingIOError):
        read()
    server.close()
    time.sleep(0.05)
    before = time.monotonic()
    data, at, unread_s = read()
    assert data == b""
    assert before <= at <= time.monotonic()
    assert math.isnan(unread_s)


@pytest.mark.parametrize("step_s", [-5.0, 3600.0])
def test_a_wall_clock_that_was_set_meanwhile_is_not_believed(stamped, monkeypatch, step_s):
    client, server = stamped
    server.send(b"one")
    time.sleep(0.01)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + step_s)
    before = time.monotonic()
    data, at, unread_s = arrival.stamped_reader(client)()
    assert (data, math.isnan(unread_s)) == (b"one", True)
    assert before <= at <= time.monotonic()


@pytest.mark.parametrize(
    "ancillary",
    [
        [],
        [(1, 37, b"")],
        [(1, 37, b"\0" * 15)],
        [(1, 37, b"\xff" * 48)],
        [(1, 37, b"\0" * 48)],
        [(1, 37, struct.pack("qqqqqq", 2**62, 2**62, 0, 0, 0, 0))],
    ],
    ids=["none", "empty", "cut", "minus one", "zero", "far away"],
)
def test_a_stamp_that_cannot_be_is_none(ancillary):
    class Told:
        def recvmsg(self, *sizes):
            return b"one", ancillary, 0, None

    before = time.monotonic()
    data, at, unread_s = arrival.stamped_reader(Told())()
    assert (data, math.isnan(unread_s)) == (b"one", True)
    assert before <= at <= time.monotonic()


def test_a_process_stopped_between_the_two_clocks_reads_them_again(stamped, monkeypatch):
    client, server = stamped
    before = time.monotonic()
    server.send(b"one")
    after, wall, stops = time.monotonic(), time.time, [0.1]

    def stopped():
        if stops:
            time.sleep(stops.pop())
        return wall()

    monkeypatch.setattr(time, "time", stopped)
    _, at, _ = arrival.stamped_reader(client)()
    assert before - CLOCKS_S <= at <= after + CLOCKS_S


def test_without_stamps_bytes_came_when_they_were_read(pair):
    client, server = pair
    server.send(b"one")
    time.sleep(0.1)
    before = time.monotonic()
    data, at, unread_s = arrival.unstamped_reader(client)()
    assert (data, math.isnan(unread_s)) == (b"one", True)
    assert before <= at <= time.monotonic()


def test_the_kernel_tells_when_a_request_left(stamped):
    client, _ = stamped
    before = time.monotonic()
    assert arrival.stamped_send(client, b"x" * 300) == 300
    after = time.monotonic()
    time.sleep(0.1)
    assert before - CLOCKS_S <= arrival.departure(client) <= after + CLOCKS_S
    assert math.isnan(arrival.departure(client))  # taken off the queue


class Thread:
    """A thread whose clocks are told: now, and how long it has been awake."""

    def __init__(self, monkeypatch):
        self.now_s, self.awake_s, self.sleeps, self.stopped_s = 100.0, 5.0, 0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(arrival.Wakefulness, "_awake", self.awake)
        monkeypatch.setattr(arrival, "_sleeps", lambda: self.sleeps)
        self.wakefulness = arrival.Wakefulness()

    def awake(self):
        self.now_s += self.stopped_s
        self.awake_s += self.stopped_s
        return self.awake_s

    def after(self, wall_s, awake_s, sleeps=1):
        self.sleeps += sleeps
        self.now_s += wall_s
        self.awake_s += awake_s
        return self.wakefulness.look()


def test_bytes_lay_unread_at_most_while_the_thread_was_awake(monkeypatch):
    thread = Thread(monkeypatch)
    assert thread.after(0.010, 0.002) == pytest.approx(100.008)
    assert thread.after(0.010, 0.010) == pytest.approx(100.008)  # no sleep since: as long as before
    assert thread.after(0.010, 0.00998) == pytest.approx(100.008)
    assert thread.after(0.010, 0.001) == pytest.approx(100.039)
    thread.wakefulness.stop()


@pytest.fixture
def spacings(monkeypatch):
    """The spacings that the loop is asked for, in place of a loop."""
    asked = []
    monkeypatch.setattr(arrival, "_collect_interval", lambda: asked.append)
    yield asked
    arrival.Spacing().follow(0.0, 0)


def test_looks_are_spaced_by_a_share_of_the_gaps_and_no_more_than_asked(spacings):
    spacing = arrival.Spacing()
    for gap_s in (0.010, 0.0101, 0.002, 0.03, 10.0, 0.0):
        spacing.follow(gap_s, 64)
    assert spacings == pytest.approx([0.0006, 0.00012, 0.0012, 0.0])  # at 10 s none would come together
    spacing.follow(0.010, 33)
    assert spacings[4:] == []
    spacing.follow(0.010, 34)
    assert spacings[4:] == pytest.approx([0.0006])


def test_bytes_may_lie_unread_for_the_spacing_too(monkeypatch, spacings):
    thread = Thread(monkeypatch)
    thread.wakefulness.spacing.follow(0.010, 64)
    assert thread.after(0.010, 0.002) == pytest.approx(100.008 - 0.0006)
    thread.wakefulness.stop()
    assert spacings[-1] == arrival.Spacing.current_s == 0.0


def test_a_loop_that_cannot_space_does_not(monkeypatch):
    monkeypatch.setattr(arrival, "_collect_interval", lambda: None)
    spacing = arrival.Spacing()
    spacing.follow(0.010, 64)
    assert spacing.current_s == 0.0


def looks_in(client, spacing_s, seen):
    """Note when a new loop, with nothing else to do, sees a readable socket in half a second."""
    hub = gevent.get_hub()
    space = arrival._collect_interval()
    watcher = hub.loop.io(client.fileno(), 1)
    if space is not None:
        space(spacing_s)
        watcher.start(lambda: seen.append(time.monotonic()))
        gevent.sleep(0.5)
    watcher.stop()
    watcher.close()
    hub.destroy(destroy_loop=True)


def test_the_loop_looks_no_more_often_than_it_is_told(pair):
    """A socket that is always readable is seen tens of thousands of times a second; at a spacing of 0.1 s, ten times."""
    client, server = pair
    server.send(b"one")
    seen = []
    thread = threading.Thread(target=looks_in, args=(client, 0.1, seen))
    thread.start()
    thread.join()
    if not seen:
        pytest.skip("not libev")
    assert sum(at < seen[0] + 0.25 for at in seen) <= 5  # right before a timer it does not sleep


def test_time_that_was_taken_is_no_sleep(monkeypatch):
    """A hypervisor's: the thread ran for 2 of 10 ms, and never gave up its core."""
    thread = Thread(monkeypatch)
    assert thread.after(0.010, 0.002, sleeps=0) == 100.0
    thread.wakefulness.stop()


def test_clocks_between_which_the_thread_was_stopped_are_not_compared(monkeypatch):
    thread = Thread(monkeypatch)
    thread.stopped_s = 0.010
    assert thread.after(0.010, 0.002) == 100.0
    thread.stopped_s = 0.0
    assert thread.after(0.010, 0.002) == pytest.approx(100.030 - 0.002 - 0.010 - 0.002)
    thread.wakefulness.stop()


def test_without_the_scheduler_s_account_nothing_is_known(monkeypatch):
    monkeypatch.setattr(arrival, "_schedstat", lambda: None)
    began = time.monotonic()
    wakefulness = arrival.Wakefulness()
    made = time.monotonic()
    gevent.sleep(0.1)
    assert began <= wakefulness.look() <= made
    wakefulness.stop()


@pytest.fixture
def wakefulness():
    made = arrival.Wakefulness()
    yield made
    made.stop()


def test_a_burst_to_a_sleeping_thread_is_known(stamped, wakefulness):
    client, server = stamped
    asleep_from = time.monotonic()
    threading.Timer(0.3, server.send, (b"one",)).start()
    gevent.socket.wait_read(client.fileno())
    assert wakefulness.look() > asleep_from


def test_a_busy_thread_does_not_know_when_they_came(stamped, wakefulness):
    client, server = stamped
    gevent.sleep(0.05)
    busy_from = time.monotonic()
    server.send(b"one")
    while time.monotonic() < busy_from + 0.1:  # without letting the loop look
        pass
    server.send(b"two")
    gevent.socket.wait_read(client.fileno())
    assert wakefulness.look() <= busy_from
