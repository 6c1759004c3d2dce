"""Every process of a run killed in mid-level, a full disk, a second run into the same folder: what is kept, and that it
goes on. All against the simulator, from the command line."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.errors import RecordError
from loadtest.records import read
from loadtest.records.folder import claimed
from loadtest.servers.supervisor import descendants
from loadtest.study import sampling
from loadtest.study.run import execute
from tests.study.test_run import STUDY, alive, silent, wait_until

CELL = "vllm-sim_qwq-32b-awq_tp1"
TOML = """
name = "crash"
workload = "math:n=16,seed=1"
levels = [1, 2]
min_requests = {requests}
warmup_requests = 1
workers = {workers}
[[cells]]
engine = "vllm-sim"
model = "qwq-32b-awq"
gpu = "l20"
clock_speed = 100
args = ["--length-scale", "0.04"]
"""
LAST = f"cells/{CELL}/c02-r1"


# What `loadtest run` does before it analyses.
MEASURE = """
import sys; from pathlib import Path; from loadtest.study import parse, run
out, resume = Path(sys.argv[2]), "--resume" in sys.argv
say = lambda line: print(line, file=sys.stderr, flush=True)
sys.exit(bool(run.execute(parse.load_study(Path(sys.argv[1])), out, resume=resume, say=say)))
"""


def measure(folder, *options):
    command = [sys.executable, "-c", MEASURE, str(folder / "study.toml"), str(folder / "run"), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def run(folder, *options, **popen):
    command = [sys.executable, "-m", "loadtest", "run", str(folder / "study.toml"), "--out", str(folder / "run"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


@pytest.fixture
def study(tmp_path):
    def write(requests=16, workers=1):
        (tmp_path / "study.toml").write_text(TOML.format(requests=requests, workers=workers))
        return tmp_path

    return write


def lines(folder, pattern):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


def title(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def family(process):
    """The processes of a run by what they are; of two alike the one that was started later."""
    found = {"orchestrator": process.pid}
    for pid in descendants(process.pid):
        words = title(pid)
        if "supervisor.py" in words:
            found["guard of Locust" if "loadtest.scenario" in words else "guard of the engine"] = pid
        elif "loadtest.scenario" in words:
            found["a worker" if "Locust" in found else "Locust"] = pid
        elif "loadtest.simulator" in words:
            found["the engine"] = pid
    return found


VICTIMS = ["orchestrator", "Locust", "the engine", "guard of Locust"]
WORKERS = [("Locust", 2), ("a worker", 2)]


@pytest.mark.parametrize(("victim", "workers"), [*((one, 1) for one in VICTIMS), *WORKERS])
@pytest.mark.fault("processes", "SIGKILL of any process: no orphan, exit 1; `--resume` completes")
def test_any_process_may_be_killed_and_resume_completes_the_run(victim, workers, study):
    folder = study(workers=workers)
    out = folder / "run"
    process = measure(folder)
    assert wait_until(lambda: lines(out, f"{LAST}/requests-*.jsonl") >= 6), process.communicate()[1]
    processes = family(process)
    os.kill(processes[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode == (-signal.SIGKILL if victim == "orchestrator" else 1)
    assert wait_until(lambda: not alive(list(processes.values())), 20), "an orphan"
    whole = {path: path.read_bytes() for path in out.glob("cells/*/c01-r1/requests-*.jsonl")}

    again = measure(folder, "--resume")
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert read.read_json(out / "manifest.json")["complete"] is True
    assert {path: path.read_bytes() for path in out.glob("cells/*/c01-r1/requests-*.jsonl")} == whole, "measured again"
    [broken] = out.glob(f"{LAST}.broken-1")
    assert lost(broken) <= 2, "more than the requests in flight"
    [cell] = read.read_run(out).cells
    assert [len([r for r in level.requests if r.phase == "measure"]) for level in cell.levels] == [16, 16]


def lost(broken):
    """Requests of a broken pass that have no record, although a later one of the same stream has; and torn lines."""
    found, torn = {}, 0
    for path in broken.glob("requests-*.jsonl"):
        for line in path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line or b"null")
            except ValueError:
                torn += 1
                continue
            if record is not None and record["phase"] == "measure":
                found.setdefault(record["user"], []).append(record["seq"])
    assert sum(map(len, found.values())) >= 3
    return torn + sum((max(seqs) - min(seqs)) // 2 + 1 - len(seqs) for seqs in found.values())


@pytest.mark.fault("processes", "`2>&1 | head -3`: the run goes on")
def test_a_closed_pipe_ends_no_run(study):
    """As of `loadtest run … 2>&1 | head -3`."""
    folder = study(requests=3)
    process = run(folder)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert read.read_json(folder / "run" / "manifest.json")["complete"] is True
    assert (folder / "run" / "report.html").exists()


def test_hardly_any_descriptors_are_one_line(study):
    process = run(study(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == "loadtest: the system refused: [Errno 24] Too many open files"
    assert "Traceback" not in said


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.fault("processes", "A record cannot be written: exit 1 at once")
def test_a_record_that_cannot_be_written_stops_the_run_at_once(study):
    """A file that may grow no further, as on a full disk."""
    folder = study(requests=400)
    process = run(folder, preexec_fn=limit_file_size)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    [last] = [line for line in said.splitlines() if line.startswith("loadtest: ")]
    assert "cannot write a record: File too large" in last or "the disk took" in last
    assert f"what was measured is kept: make room, then --resume --out {folder / 'run'}" in last
    [cell] = read.read_run(folder / "run").cells
    assert cell.engine.status == "failed"
    assert not (folder / "run" / LAST).exists(), "it went on to the next level"
    manifest = read.read_json(folder / "run" / "manifest.json")
    assert manifest["complete"] is False
    [level] = read.read_run(folder / "run").cells[0].levels
    assert len(level.requests) > 10
    assert len(level.torn) <= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.fault("processes", "A full disk: exit 1 at once")
def test_a_full_disk_stops_the_run_at_once(study):
    folder = study(requests=400)
    (folder / "run").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder / "run")], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        process = run(folder)
        _, said = process.communicate(timeout=60)
        [last] = [line for line in said.splitlines() if line.startswith("loadtest: ")]
        assert process.returncode == 1
        assert "Traceback" not in said
        assert re.search("No space left on device|the disk took", last)
        kept = [path for path in (folder / "run").rglob("requests-*.jsonl") if path.stat().st_size]
        assert kept
    finally:
        subprocess.run(["umount", str(folder / "run")], check=True)


@pytest.mark.fault("processes", "A second run into the same folder: exit 1")
def test_two_runs_into_one_folder_are_refused(study):
    folder = study(requests=200)
    first = run(folder)
    try:
        assert wait_until(lambda: (folder / "run" / "manifest.json").exists())
        second = run(folder, "--resume")
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"expected a folder that no other run writes to, found process {first.pid}; name another --out" in said
        assert said.count("\n") == 1
    finally:
        started = list(family(first).values())
        first.kill()
        first.communicate()
        assert wait_until(lambda: not alive(started), 20)
    with claimed(folder / "run"):
        pass  # the system let go of it with the process


HOLDS_MEMORY = """
import os, signal, sys, time
from multiprocessing.shared_memory import SharedMemory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = SharedMemory(create=True, size=4096)
sys.stderr.write(held.name + "\\n")
sys.stderr.flush()
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["ignores", "is killed"])
@pytest.mark.fault("processes", "Shared memory of a killed engine: unlinked")
def test_shared_memory_of_a_killed_runtime_is_unlinked(then):
    command = [
        sys.executable,
        "-m",
        "loadtest.servers.supervisor",
        "0.2",
        sys.executable,
        "-c",
        HOLDS_MEMORY.format(then=then),
    ]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    name = guard.stderr.readline().strip()
    assert name
    said, _ = guard.communicate(timeout=30)
    assert said == "exit -9\n"
    assert not (Path("/dev/shm") / name).exists()


def moments(monkeypatch, *readings):
    told = iter(readings)
    monkeypatch.setattr(sampling.Moment, "now", lambda: sampling.Moment(*next(told)))


@pytest.mark.fault("processes", "Suspended: `the machine was suspended for`; the repeat is broken")
def test_a_suspended_machine_breaks_its_pass_and_resume_measures_it_again(tmp_path, monkeypatch):
    moments(monkeypatch, (0, 0, 0), (650, 50, 650), (700, 100, 700), (710, 110, 710), (711, 111, 711), (720, 120, 720))
    problems = execute(STUDY, tmp_path / "run", say=silent)
    assert problems == (f"{CELL}: concurrency 1, repeat 1: the machine was suspended for 600 s, so its times are not valid",)
    ended = [read.read_json(path) for path in sorted((tmp_path / "run").rglob("pass.json"))]
    assert [(one["complete"], one["clocks"]["suspended_s"]) for one in ended] == [(False, 600), (True, 0)]
    assert execute(STUDY, tmp_path / "run", resume=True, say=silent) == ()
    assert (tmp_path / "run" / "cells" / CELL / "c01-r1.broken-1").exists()


def test_a_clock_that_was_set_is_told_and_recorded(tmp_path, monkeypatch):
    moments(monkeypatch, (1000, 0, 0), (710, 10, 10), (720, 20, 20), (730, 30, 30))
    said = []
    assert execute(STUDY, tmp_path / "run", say=said.append) == ()
    assert any("the wall clock was set back by 300 s; offsets are monotonic and not affected" in line for line in said)
    ended = [read.read_json(path) for path in sorted((tmp_path / "run").rglob("pass.json"))]
    assert [one["clocks"]["wall_set_s"] for one in ended] == [-300, 0]


def test_now_reads_three_clocks():
    before = sampling.Moment.now()
    time.sleep(0.01)
    changes = sampling.ClockChanges.between(before, sampling.Moment.now())
    assert (changes.suspended, changes.set_by) == (None, None)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RecordError, match="file: cannot write here: File exists; name another --out"),
        claimed(tmp_path / "file"),
    ):
        pass
