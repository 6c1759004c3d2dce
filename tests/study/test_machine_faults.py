"""The machine itself fails during a run: a disk, a clock, shared memory, as the kernel does it, in namespaces."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from loadtest.records import read

STUDY = """
name = "small"
workload = "math:n=8,seed=1"
levels = [2]
duration_s = 30
[contract]
max_tokens = 256
[[cells]]
engine = ["vllm-sim"]
model = "qwq-32b-awq"
tp = [1]
gpu = "l20"
clock_speed = 10.0
args = ["--length-scale", "0.02"]
"""
RUN = '"$PYTHON" -m loadtest run study.toml --out place/run'
WHEN_RECORDS_COME = 'while ! [ -s "$(echo place/run/cells/*/c02-r1/requests*)" ]; do sleep 0.1; done'

# A program sees another wall clock from the moment on that a file exists; its other clocks go on.
STEPPED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long step(void) { return access("stepped", F_OK) == 0 ? -300 : 0; }
int clock_gettime(clockid_t clock, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, t);
    if (clock == CLOCK_REALTIME) t->tv_sec += step();
    return done;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return t ? (*t = now.tv_sec) : now.tv_sec;
}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "place").mkdir()
    return tmp_path


def carried_out(folder, script, *namespaces, **settings):
    """What a shell does in namespaces of its own, where they are permitted."""
    argv = ["unshare", *namespaces, "bash", "-c", script] if namespaces else ["bash", "-c", script]
    environment = {**os.environ, "PYTHON": sys.executable, **settings}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)


def permitted(*needed):
    if subprocess.run(["unshare", *needed], capture_output=True, input="", text=True).returncode:
        pytest.skip(f"unshare {needed[0]} is not permitted here")


@pytest.mark.fault("processes", "The disk turns read-only: exit 1")
def test_a_disk_that_turns_read_only_stops_the_run_and_keeps_its_records(folder):
    """ext4 on an error: the kernel remounts it read-only while files are open."""
    permitted("--mount", "true")
    subprocess.run("truncate -s 32M disk && mkfs.ext4 -q disk", shell=True, cwd=folder, check=True)
    if carried_out(folder, "mount -o loop,errors=remount-ro disk place && umount place", "--mount").returncode:
        pytest.skip("no loop device here")
    script = f"""
        mount -o loop,errors=remount-ro disk place
        trigger=/sys/fs/ext4/$(basename $(findmnt -no SOURCE place))/trigger_fs_error
        ({WHEN_RECORDS_COME}; sleep 1; echo 1 > $trigger) &
        timeout 120 {RUN}; echo "exit $?"; pgrep -f "$PWD/place/run"
        cp -r place/run kept; umount place
    """
    done = carried_out(folder, script, "--mount")
    assert done.stdout.splitlines()[-1] == "exit 1", done
    said = done.stderr.splitlines()
    assert [line.endswith("cannot write: Read-only file system") for line in said if line.startswith("loadtest: ")] == [True]
    kept = read.read_run(folder / "kept")
    assert kept.manifest.complete is False
    assert len(kept.cells[0].levels[0].requests) > 0


@pytest.mark.fault("processes", "`/dev/shm` is full: no matter")
def test_a_full_shared_memory_is_no_matter(folder):
    permitted("--mount", "true")
    script = f"mount -t tmpfs -o size=4096 tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/full; timeout 120 {RUN}"
    done = carried_out(folder, script, "--mount")
    assert done.returncode == 0, done.stderr
    assert read.read_manifest(folder / "place/run/manifest.json").complete


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.fault("processes", "`the wall clock was set`: no figure depends on it")
def test_a_wall_clock_that_steps_in_mid_run_changes_no_figure(folder):
    (folder / "clock.c").write_text(STEPPED_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], cwd=folder, check=True)
    began_s = time.time()
    done = carried_out(
        folder, f"({WHEN_RECORDS_COME}; touch stepped) & timeout 120 {RUN}", LD_PRELOAD=str(folder / "clock.so")
    )
    assert done.returncode == 0, done.stderr
    assert "the wall clock was set back by 300 s; offsets are monotonic and not affected" in done.stderr
    run = read.read_run(folder / "place/run")
    assert run.manifest.ended_unix_s < began_s - 200, "the program saw it"
    [level] = run.cells[0].levels
    assert level.requests[0].sent_s < level.requests[-1].ended_s < 120
    assert all(later >= sooner for r in level.requests for sooner, later in zip(r.chunk_s, r.chunk_s[1:], strict=False))
    figures = json.loads((folder / "place/run/metrics.json").read_text())
    assert figures["complete"]
    assert 0 < figures["cells"][0]["levels"][0]["ttft_s"]["mean"] < 10


def test_a_machine_whose_monotonic_clock_is_far_ahead_is_as_any_other(folder):
    permitted("--time", "--monotonic", "1000000000", "--boottime", "1000000000", "true")
    done = carried_out(folder, f"timeout 120 {RUN}", "--time", "--monotonic", "1000000000", "--boottime", "1000000000")
    assert done.returncode == 0, done.stderr
    [level] = read.read_run(folder / "place/run").cells[0].levels
    assert 0 < level.requests[-1].ended_s < 120
