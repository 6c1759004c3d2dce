"""Power, memory and utilisation of this machine's GPUs, read once a second through NVML.

Needs the `[gpu]` extra (nvidia-ml-py) and NVIDIA's driver; without either nothing is recorded. Tested with a stand-in for
NVML only, not on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loadtest.clock import Clock
from loadtest.records.schema import GpuSample
from loadtest.records.write import JsonlWriter

INTERVAL_S = 1.0


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The bindings, initialised; None where they or the driver are missing."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def sample_forever(directory: Path, clock: Clock, stop: threading.Event, interval_s: float = INTERVAL_S) -> None:
    """Write a sample of each GPU to `directory`/gpu_metrics.jsonl now, every `interval_s` (wall), and once after `stop`.

    Makes no file where there is no GPU. Raises `RecordError` where the disk refuses.
    """
    with _nvml() as nvml:
        gpus = _gpus(nvml) if nvml is not None else []
        if not gpus:
            return
        writer = JsonlWriter(directory, "gpu_metrics")
        try:
            due_s = time.monotonic()
            while True:
                stopped = stop.is_set()
                for index, handle in gpus:
                    writer.write(_sample(nvml, index, handle, clock))
                if stopped:
                    return
                due_s = max(due_s + interval_s, time.monotonic())
                stop.wait(due_s - time.monotonic())
        finally:
            writer.close()


def _gpus(nvml: Any) -> list[tuple[int, Any]]:
    """Index and handle of each GPU that CUDA_VISIBLE_DEVICES names; its numbers are taken for NVML's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else {word.strip() for word in visible.split(",")}
    every = range(int(nvml.nvmlDeviceGetCount()))
    named_by_number = wanted is None or all(word.isdigit() for word in wanted if word)
    return [
        (index, nvml.nvmlDeviceGetHandleByIndex(index))
        for index in every
        if wanted is None or not named_by_number or str(index) in wanted
    ]


def _sample(nvml: Any, index: int, handle: Any, clock: Clock) -> GpuSample:
    failed: list[str] = []

    def told(read: Callable[[], float]) -> float | None:
        try:
            return read()
        except nvml.NVMLError as error:
            failed.append(str(error))
            return None

    memory = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return GpuSample(
        t_s=round(clock.now_s(), 6),
        clock_anchor_unix_s=clock.anchor_unix_s,
        clock_speed=clock.speed,
        gpu=index,
        power_w=told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        memory_used_bytes=None if memory is None else int(memory),
        utilisation=told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        error="; ".join(dict.fromkeys(failed)) or None,
    )
