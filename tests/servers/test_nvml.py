"""GPUs read through a stand-in for NVML's bindings, or by the bindings from a stand-in for NVML; no GPU was at hand."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import msgspec
import pytest

from loadtest.clock import Clock
from loadtest.records.read import read_level
from loadtest.records.schema import GpuSample
from loadtest.servers.nvml import sample_forever


class Nvml(types.ModuleType):
    """Two GPUs; the second one does not tell its power."""

    class NVMLError(Exception):
        pass

    def __init__(self, driver=True):
        super().__init__("pynvml")
        self.driver, self.open = driver, 0

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return 275_500  # milliwatts

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return types.SimpleNamespace(used=40 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return types.SimpleNamespace(gpu=97, memory=80)


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stand_in = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    return stand_in


def sampled(folder):
    """Sample before and after, with nothing between."""
    stop = threading.Event()
    stop.set()
    clock = Clock(origin_monotonic_s=0.0, anchor_unix_s=123.0)
    sample_forever(folder, clock, stop)
    path = folder / "gpu_metrics.jsonl"
    return [msgspec.json.decode(line, type=GpuSample) for line in path.read_bytes().splitlines()] if path.exists() else None


def test_each_gpu_is_read_in_our_units(nvml, tmp_path):
    first, second = sampled(tmp_path / "c01-r1")
    assert (first.gpu, first.power_w, first.memory_used_bytes, first.utilisation) == (0, 275.5, 40 * 2**30, 0.97)
    assert (first.clock_anchor_unix_s, first.error) == (123.0, None)
    assert (second.gpu, second.power_w, second.utilisation, second.error) == (1, None, 0.97, "Not Supported")
    assert nvml.open == 0, "left open"
    assert [one.gpu for one in read_level(tmp_path / "c01-r1").gpu] == [0, 1]


@pytest.mark.parametrize(("visible", "gpus"), [("1", [1]), ("0,1", [0, 1]), ("GPU-8f2c", [0, 1]), ("5", None)])
def test_only_the_gpus_that_are_ours_are_read(visible, gpus, nvml, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = sampled(tmp_path)
    assert (found and [one.gpu for one in found]) == gpus


def test_without_bindings_or_driver_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert sampled(tmp_path) is None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(driver=False))
    assert sampled(tmp_path) is None


def test_it_goes_on_until_it_is_stopped(nvml, tmp_path):
    stop = threading.Event()
    thread = threading.Thread(target=sample_forever, args=(tmp_path, Clock.start(), stop, 0.01))
    thread.start()
    while not (tmp_path / "gpu_metrics.jsonl").exists() or len((tmp_path / "gpu_metrics.jsonl").read_bytes().split()) < 6:
        thread.join(0.005)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


READ = """
import sys, threading
from pathlib import Path
from loadtest.clock import Clock
from loadtest.servers import nvml, preflight
assert preflight.gpu_count() == 1
stop = threading.Event()
stop.set()
nvml.sample_forever(Path(sys.argv[1]), Clock(origin_monotonic_s=0.0, anchor_unix_s=123.0), stop)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="the extra gpu (nvidia-ml-py) is not installed")
def test_the_vendors_bindings_are_called_as_they_are(tmp_path):
    source = Path(__file__).with_name("nvml_stand_in.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    subprocess.run([sys.executable, "-c", READ, tmp_path / "c01-r1"], env=environment, check=True)
    [first] = read_level(tmp_path / "c01-r1").gpu
    assert (first.power_w, first.memory_used_bytes, first.utilisation, first.error) == (
        61.35,
        5 * 2**30,
        None,
        "Not Supported",
    )
