"""A master and workers that share no folder: the records come home, also of a worker that is killed."""

import signal
import time

import pytest

from tests.scenario.test_admission import deployed, port
from tests.scenario.test_user import manifest

__all__ = ["deployed", "port"]  # fixtures

LIMIT_S = 140


@pytest.fixture
def homes(tmp_path):
    folders = [tmp_path / name for name in ("master", "first", "second")]
    for folder in folders:
        folder.mkdir()
    return folders


def contents(home):
    return {path.name: path.read_bytes() for path in home.glob("run/cells/*/*/[rc]*.jsonl")}


def begun(deployed, homes):
    """A master and two workers, of which it has records."""
    deployed.out = "run"
    here, *others = homes
    master = deployed.master("--duration", "3600", cwd=here)
    workers = [deployed.worker(cwd=other) for other in others]
    deadline = time.monotonic() + LIMIT_S
    while len([name for name, content in contents(here).items() if name.startswith("requests") and content]) < 2:
        assert time.monotonic() < deadline
        assert [process.poll() for process in (master, *workers)] == [None] * 3
        time.sleep(0.1)
    return master, *workers


def ended(process):
    said, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


@pytest.mark.fault("processes", "A worker with a folder of its own is killed: what it had shipped is kept")
def test_a_killed_worker_loses_only_what_was_on_its_way(deployed, homes):
    here, first, second = homes
    master, victim, other = begun(deployed, homes)
    victim.send_signal(signal.SIGKILL)
    code, said = ended(master)
    assert (code, ended(other)[0]) == (1, 0), said
    assert "was lost during the run" in manifest(here / "run")["incomplete_reason"]
    home = contents(here)
    assert contents(second).items() <= home.items()
    for name, content in contents(first).items():
        assert content.startswith(home.get(name, b""))


@pytest.mark.fault("processes", "SIGTERM to such a worker: it ships the rest")
def test_a_worker_that_is_told_to_end_ships_what_it_has(deployed, homes):
    here, first, second = homes
    master, told, other = begun(deployed, homes)
    told.send_signal(signal.SIGTERM)
    code, said = ended(master)
    assert (code, ended(told)[0], ended(other)[0]) == (1, 130, 0), said
    assert contents(here) == contents(first) | contents(second)
    assert manifest(here / "run")["complete"] is False
