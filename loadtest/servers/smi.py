"""The power of the GPUs as `nvidia-smi` tells it, beside NVML: a second witness for an acceptance of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator

from loadtest.records.schema import GpuSample

INTERVAL_S = 1.0
_TIMEOUT_S = 10.0
_QUERY = ("nvidia-smi", "--query-gpu=index,power.draw", "--format=csv,noheader,nounits")


@contextlib.contextmanager
def power_readings(interval_s: float = INTERVAL_S) -> Iterator[list[GpuSample]]:
    """Readings of every GPU, one each `interval_s` (wall), in a list that grows until the end; empty without nvidia-smi."""
    readings: list[GpuSample] = []
    stop = threading.Event()
    reader = threading.Thread(target=_read_forever, args=(readings, stop, interval_s), daemon=True)
    reader.start()
    try:
        yield readings
    finally:
        stop.set()
        reader.join()


def _read_forever(readings: list[GpuSample], stop: threading.Event, interval_s: float) -> None:
    while not stop.is_set():
        try:
            done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except FileNotFoundError:
            return
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0:
            readings += parse_power(done.stdout, time.time())
        stop.wait(interval_s)


def parse_power(text: str, unix_s: float) -> list[GpuSample]:
    """Lines of `index, power.draw`, read at a time; a GPU that does not tell has no line.

    >>> [(one.gpu, one.power_w) for one in parse_power("0, 61.35\\n1, [N/A]\\n", 0.0)]
    [(0, 61.35)]
    """
    found = []
    for line in text.splitlines():
        index, _, power = line.partition(",")
        with contextlib.suppress(ValueError):
            found.append(
                GpuSample(t_s=0.0, clock_anchor_unix_s=unix_s, clock_speed=1.0, gpu=int(index), power_w=float(power))
            )
    return found
