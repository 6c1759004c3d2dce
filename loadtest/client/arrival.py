"""When bytes arrived and left, by the kernel's clock: a time does not depend on when this process is scheduled.

Linux stamps each TCP segment as it comes in (`SO_TIMESTAMPING` by software, no privilege). A read gives the stamp of its
last byte, in wall time; the wall time now less the stamp is how long that byte lay unread, and its arrival on the monotonic
clock is the time of the read less that wait. A wait that cannot be (the wall clock was set in between) and every read on
other systems count as arrived when read.

What several segments brought before one read has the stamp of the last, because the kernel merges them. `Wakefulness`
says how early the first of them can have come.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent

READ_BYTES = 65536

_SO_TIMESTAMPING = 37
_SEND_SOFTWARE, _RECEIVE_SOFTWARE, _REPORT_SOFTWARE, _STAMP_ONLY = 1 << 1, 1 << 3, 1 << 4, 1 << 11  # SOF_TIMESTAMPING_...
_STAMPS_BYTES = 48  # three of struct timespec; the first is the software's
_SPACE_BYTES = socket.CMSG_SPACE(_STAMPS_BYTES)
_ERROR_SPACE_BYTES = _SPACE_BYTES + 256  # beside the stamp, what queue it came from
_stamp = struct.Struct("qq").unpack_from
_ASK_STAMP = [(socket.SOL_SOCKET, _SO_TIMESTAMPING, struct.pack("I", _SEND_SOFTWARE))]
_LONGEST_WAIT_S = 600.0  # wall; a longer one is a step of the clock
_PAIR_S = 20e-6  # within which two clocks are read as one
_SLEPT_S = 50e-6  # a sleep that is shorter is none: the clocks are not read at once
LOOK_S = 0.02  # wall
SPACING_SHARE, MOST_SPACING_S = 0.06, 0.0012  # of the gap between reads, wall

Send = Callable[[bytes | memoryview], int]

# Bytes (none where the server has closed), when the last of them arrived (reading of `time.monotonic()`), and how long it
# lay unread (s; NaN: the kernel gave no stamp, so the arrival is the time of the read).
Read = tuple[bytes, float, float]


def bare(sock: Any) -> Any:
    """The socket below gevent's own, which would wait."""
    return getattr(sock, "_sock", sock)


def gives_stamps(sock: Any) -> bool:
    """Ask the kernel to stamp what this socket receives; whether it does."""
    if sys.platform != "linux" or struct.calcsize("qq") != 16 or sock.family == socket.AF_UNIX:  # which has none
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RECEIVE_SOFTWARE | _REPORT_SOFTWARE | _STAMP_ONLY)
    except OSError:
        return False
    return True


def stamped_reader(sock: Any) -> Callable[[], Read]:
    """What reads a socket that does not block. Raises BlockingIOError where there is nothing; called once for each token."""
    recvmsg, unpack, monotonic, wall = sock.recvmsg, _stamp, time.monotonic, time.time

    def read() -> Read:
        data, ancillary, _, _ = recvmsg(READ_BYTES, _SPACE_BYTES)
        read_s, now_s = monotonic(), wall()
        if ancillary and len(ancillary[0][2]) >= _STAMPS_BYTES:
            while monotonic() - read_s > _PAIR_S:  # the process was stopped between the two clocks
                read_s, now_s = monotonic(), wall()
            seconds, nanoseconds = unpack(ancillary[0][2])
            unread_s = now_s - seconds - nanoseconds * 1e-9
            if 0.0 <= unread_s < _LONGEST_WAIT_S:
                return data, read_s - unread_s, unread_s
        return data, read_s, math.nan

    return read


def unstamped_reader(sock: Any) -> Callable[[], Read]:
    """The same where the kernel gives no stamps."""
    recv, monotonic = sock.recv, time.monotonic

    def read() -> Read:
        return recv(READ_BYTES), monotonic(), math.nan

    return read


def stamped_send(sock: Any, data: bytes | memoryview) -> int:
    """Send what the system takes now, and ask it to note when that left; the number of bytes."""
    return int(sock.sendmsg([data], _ASK_STAMP))


def departure(sock: Any) -> float:
    """When the last bytes of a `stamped_send` left (reading of `time.monotonic()`); NaN where that is not (yet) told.

    Takes the stamp off the socket's error queue: one that stays there would wake the loop for ever.
    """
    try:
        _, ancillary, _, _ = sock.recvmsg(1, _ERROR_SPACE_BYTES, socket.MSG_ERRQUEUE)
    except OSError:
        return math.nan
    read_s, now_s = time.monotonic(), time.time()
    while time.monotonic() - read_s > _PAIR_S:
        read_s, now_s = time.monotonic(), time.time()
    for _, kind, value in ancillary:
        if kind == _SO_TIMESTAMPING and len(value) >= _STAMPS_BYTES:
            seconds, nanoseconds = _stamp(value)
            return float(read_s - (now_s - seconds - nanoseconds * 1e-9))
    return math.nan


class Spacing:
    """The least time between two looks of the loop at its sockets (wall s): many reads then share one wake-up, which costs
    more than they do. Stamped arrivals do not depend on it; bytes lie unread for that long at most.

    By libev's `ev_set_io_collect_interval`; 0 for ever where the loop is another. A process has one loop and one spacing.
    """

    current_s = 0.0

    def __init__(self) -> None:
        self._set = _collect_interval()

    def follow(self, gap_s: float, streams: int) -> None:
        """Space by a share of the shortest mean gap between two reads of a stream, where two of them or more then come
        together; gap 0: not at all."""
        spacing_s = min(SPACING_SHARE * gap_s, MOST_SPACING_S)
        if streams * spacing_s < 2 * gap_s:
            spacing_s = 0.0
        if self._set is not None and abs(spacing_s - Spacing.current_s) > 0.1 * Spacing.current_s:
            self._set(spacing_s)
            Spacing.current_s = spacing_s


def _collect_interval() -> Callable[[float], None] | None:
    """libev's function for this thread's loop; None if libev lacks it."""
    loop, module = gevent.get_hub().loop, sys.modules.get("gevent.libev.corecext")
    try:
        function = ctypes.CDLL(str(getattr(module, "__file__", None))).ev_set_io_collect_interval
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_double), None
    return partial(function, loop.ptr)


class Wakefulness:
    """Since when this thread may have left bytes unread.

    While it sleeps nothing is unread, for what arrives wakes it, unless it spaces its looks. So bytes that it reads now came
    after its last sleep began to end, and that was at most so long ago as it has since been running (CPU time), ready to run
    (schedstat) or spacing. A thread that has not given up its core has not slept, however little it ran: a hypervisor may
    have taken the time. Looked at every 20 ms, which says more of the last of them. Waits for Python's lock, below 0.1 ms
    here, count as sleep.
    """

    def __init__(self) -> None:
        self.spacing = Spacing()
        self._schedstat = _schedstat()
        self._looked_s = self._since_s = time.monotonic()
        self._awake_s, self._sleeps = self._awake(), _sleeps()
        self._timer = gevent.get_hub().loop.timer(LOOK_S, LOOK_S, ref=False)
        self._timer.start(self.look)

    def look(self) -> float:
        """Since when bytes that are read now may have lain unread (reading of `time.monotonic()`)."""
        now_s = time.monotonic()
        awake_s, sleeps = self._awake(), _sleeps()
        if time.monotonic() - now_s > _SLEPT_S:  # stopped between the clocks: they do not belong together
            return self._since_s
        awake_for_s = awake_s - self._awake_s
        slept = sleeps > self._sleeps and now_s - self._looked_s - awake_for_s > _SLEPT_S
        if slept and self._schedstat is not None:
            self._since_s = now_s - awake_for_s - Spacing.current_s
        self._looked_s, self._awake_s, self._sleeps = now_s, awake_s, sleeps
        return self._since_s

    def stop(self) -> None:
        self.spacing.follow(0.0, 0)
        self._timer.stop()
        self._timer.close()
        if self._schedstat is not None:
            os.close(self._schedstat)
            self._schedstat = None

    def _awake(self) -> float:
        """Seconds for which this thread has run, or was ready to run and did not."""
        if self._schedstat is None:
            return 0.0
        return time.thread_time() + int(os.pread(self._schedstat, 64, 0).split()[1]) * 1e-9


def _sleeps() -> int:
    """How often this thread has given up its core."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _schedstat() -> int | None:
    """The scheduler's account of this thread, open; None where there is none."""
    try:
        return os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
