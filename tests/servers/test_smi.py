"""Power as `nvidia-smi` tells it, from a stand-in of that name."""

import time

from loadtest.servers import smi


def test_readings_grow_until_the_end(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 61.35'\necho '1, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    before = time.time()
    with smi.power_readings(interval_s=0.01) as readings:
        until = time.monotonic() + 30
        while len(readings) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert {(one.gpu, one.power_w) for one in readings} == {(0, 61.35)}
    assert all(before <= one.clock_anchor_unix_s <= time.time() for one in readings)
    n = len(readings)
    time.sleep(0.05)
    assert len(readings) == n >= 3


def test_without_the_tool_or_with_a_broken_one_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with smi.power_readings() as readings:
        pass
    assert readings == []
    assert smi.parse_power("NVIDIA-SMI has failed\n", 0.0) == []
