"""Power and memory of the GPUs as `nvidia-smi` tells them, beside NVML: a second witness for `accept`."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator

from loadtest.records.schema import GpuSample

INTERVAL_S = 1.0
_TIMEOUT_S = 10.0
_QUERY = ("nvidia-smi", "--query-gpu=index,power.draw,memory.used", "--format=csv,noheader,nounits")
_MIB = 2**20


@contextlib.contextmanager
def smi_readings(interval_s: float = INTERVAL_S) -> Iterator[list[GpuSample]]:
    """Readings of every GPU, one now, one each `interval_s` (wall) and one at the end, in a list that grows; empty without
    nvidia-smi."""
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
    while True:
        stopped, began_s = stop.is_set(), time.time()
        try:
            done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except FileNotFoundError:
            return
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0:
            readings += parse_readings(done.stdout, (began_s + time.time()) / 2)  # on a machine of 8 GPUs it takes 1 s
        if stopped:
            return
        stop.wait(interval_s)


def parse_readings(text: str, unix_s: float) -> list[GpuSample]:
    """Lines of `index, power.draw (W), memory.used (MiB)`, read at a time; what a GPU does not tell is None.

    >>> first, second = parse_readings("0, 61.35, 512\\n1, [N/A], 3\\nNVIDIA-SMI has failed", 0.0)
    >>> first.power_w, first.memory_used_bytes, second.gpu, second.power_w
    (61.35, 536870912, 1, None)
    """
    rows = [line.split(",") for line in text.splitlines()]
    return [
        GpuSample(
            t_s=0.0,
            clock_anchor_unix_s=unix_s,
            clock_speed=1.0,
            gpu=int(index),
            power_w=_number(power),
            memory_used_bytes=None if (used := _number(memory)) is None else int(used * _MIB),
        )
        for index, power, memory in (row for row in rows if len(row) == 3)
        if index.strip().isdecimal()
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
