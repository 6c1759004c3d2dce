"""Power and memory as `nvidia-smi` tells them, from a stand-in of that name."""

import time

from loadtest.servers import smi


def test_readings_grow_until_the_end(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 61.35, 512'\necho '1, [N/A], 3'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    before = time.time()
    with smi.smi_readings(interval_s=0.01) as readings:
        until = time.monotonic() + 30
        while len(readings) < 6 and time.monotonic() < until:
            time.sleep(0.01)
    told = {(one.gpu, one.power_w, one.memory_used_bytes) for one in readings}
    assert told == {(0, 61.35, 512 * 2**20), (1, None, 3 * 2**20)}
    assert all(before <= one.clock_anchor_unix_s <= time.time() for one in readings)
    n = len(readings)
    time.sleep(0.05)
    assert len(readings) == n >= 6


def test_the_last_reading_is_taken_at_the_end(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 0, 1.0, $(ls {tmp_path} | wc -l)\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with smi.smi_readings(interval_s=3600.0) as readings:
        until = time.monotonic() + 30
        while not readings and time.monotonic() < until:
            time.sleep(0.01)
        (tmp_path / "engine-ended").touch()
    assert [one.memory_used_bytes // 2**20 for one in readings] == [1, 2]


def test_without_the_tool_or_with_a_broken_one_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with smi.smi_readings() as readings:
        pass
    assert readings == []
    assert smi.parse_readings("NVIDIA-SMI has failed\n", 0.0) == []
