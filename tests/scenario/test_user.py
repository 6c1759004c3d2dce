"""Real headless Locust runs, in processes of their own, against a server that streams in a moment."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.study import locust_pass

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "long_reasoning.py"


@pytest.fixture(scope="module")
def port():
    argv = [
        sys.executable,
        "-m",
        "loadtest.simulator.known_times",
        "--port",
        "0",
        "--tokens",
        "20",
        "--thinking",
        "5",
        "--first",
        "0.01",
        "--gap",
        "0.002",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    yield int(process.stdout.readline())
    process.kill()
    process.communicate()


def locust(port, out, *extra, users=2):
    argv = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(SCENARIO),
        "--headless",
        "-u",
        str(users),
        "-r",
        "100",
        "--only-summary",
    ]
    argv += ["--host", f"http://127.0.0.1:{port}", "--engine", "other", "--model", "known", "--clock-speed", "1"]
    return [*argv, "--out", str(out), *extra]


def run(argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def records(out):
    return [json.loads(line) for path in out.glob("cells/*/*/requests-*.jsonl") for line in path.read_bytes().splitlines()]


def manifest(out):
    return json.loads((out / "manifest.json").read_bytes())


def asked(out):
    return sorted((r["seq"], r["prompt_id"]) for r in records(out) if r["phase"] == "measure")


def test_a_number_of_requests(port, tmp_path):
    done = run(locust(port, tmp_path, "--requests", "7"))
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert [r["phase"] for r in found].count("warmup") == 2
    assert [seq for seq, _ in asked(tmp_path)] == list(range(7))
    assert {r["outcome"] for r in found} == {"ok"}
    assert all(len(r["chunk_s"]) == 20 and r["first_answer_chunk"] == 5 for r in found)
    assert manifest(tmp_path)["complete"] is True
    for row in ("TTFT", "first answer", "final answer"):
        assert row in done.stdout + done.stderr


def test_a_run_that_ends_by_time_cuts_off_and_counts_no_success(port, tmp_path):
    done = run(locust(port, tmp_path / "run", "--run-time", "6s", "--csv", str(tmp_path / "stats"), users=3))
    assert done.returncode == 0, done.stderr  # cut off by plan: not an error
    found = records(tmp_path / "run")
    outcomes = [r["outcome"] for r in found]
    cut_off = outcomes.count("cut_off")
    assert 1 <= cut_off <= 3  # a user may be between two requests
    assert set(outcomes) == {"ok", "cut_off"}
    text = done.stdout + done.stderr
    row = next(line for line in text.splitlines() if line.startswith("stream") and "final answer" in line).split()
    assert int(row[3]) == outcomes.count("ok")
    assert row[4].startswith("0(")
    with (tmp_path / "stats_failures.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == []
    with (tmp_path / "stats_stats.csv").open(newline="") as stream:
        counted = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(stream)}
    assert counted["cut off at the end"] == cut_off
    assert counted["Aggregated"] == outcomes.count("ok")
    assert manifest(tmp_path / "run")["complete"] is True


def test_a_duration_counts_from_the_first_user_on_by_the_clock_of_the_run(port, tmp_path):
    done = run(locust(port, tmp_path, "--duration", "37.5", "--clock-speed", "25"))
    assert done.returncode == 0, done.stderr
    ends = [r["ended_s"] for r in records(tmp_path)]
    assert [r["outcome"] for r in records(tmp_path)].count("cut_off") == 2
    assert 37.5 <= max(ends) < 37.5 + 25 * 1.0  # a second of the machine's
    assert manifest(tmp_path)["complete"] is True


def test_rows_of_locusts_own_files_lose_nothing(port, tmp_path):
    stats, page = tmp_path / "stats", tmp_path / "page.html"
    done = run(locust(port, tmp_path / "run", "--requests", "8", "--csv", str(stats), "--html", str(page), users=4))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "stats_stats.csv").open(newline="") as stream:
        rows = {row["Name"]: row for row in csv.DictReader(stream)}
    found = records(tmp_path / "run")
    assert len(found) == 8 + 4
    for name in ("TTFT", "first answer", "final answer", "time per token"):
        row = rows[name]
        assert (row["Type"], int(row["Request Count"]), int(row["Failure Count"])) == ("stream", 12, 0)
        assert name in page.read_text()
    finals = [(r["chunk_s"][-1] - r["sent_s"]) * 1000 for r in found]
    firsts = [(r["chunk_s"][0] - r["sent_s"]) * 1000 for r in found]
    assert float(rows["final answer"]["Average Response Time"]) == pytest.approx(sum(finals) / 12, abs=0.01)
    assert float(rows["TTFT"]["Max Response Time"]) == pytest.approx(max(firsts), abs=0.01)
    assert (rows["Aggregated"]["Request Count"], rows["Aggregated"]["Failure Count"]) == ("12", "0")
    tokens = rows["output tokens (RPS = tokens/s)"]
    assert int(tokens["Request Count"]) == 12 * 20
    took_s = 12 / float(rows["final answer"]["Requests/s"])
    assert float(tokens["Requests/s"]) == pytest.approx(240 / took_s, rel=0.2)
    assert "output tokens (RPS = tokens/s)" in page.read_text()


def test_two_processes_send_the_same_requests_and_lose_no_record(port, tmp_path):
    one, two = (
        run(locust(port, tmp_path / "one", "--requests", "9")),
        run(locust(port, tmp_path / "two", "--requests", "9", *locust_pass.shared(2))),
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert asked(tmp_path / "one") == asked(tmp_path / "two")
    assert len({r["worker"] for r in records(tmp_path / "two")}) == 2
    assert manifest(tmp_path / "two")["complete"] is True
    row = next(line for line in two.stdout.splitlines() + two.stderr.splitlines() if "final answer" in line).split()
    assert int(row[3]) == len(records(tmp_path / "two")) == 11


@pytest.mark.fault("processes", "A lost worker: incomplete")
def test_a_lost_worker_makes_the_run_incomplete(port, tmp_path):
    argv = locust(port, tmp_path, *locust_pass.shared(2), "--run-time", "60s")
    master = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len({r["worker"] for r in records(tmp_path)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    victim = int(records(tmp_path)[0]["worker"].rpartition("-")[2])
    os.kill(victim, signal.SIGKILL)
    output, _ = master.communicate(timeout=40)
    assert master.returncode == 1
    assert "was lost" in output
    assert manifest(tmp_path)["complete"] is False
    assert "was lost" in manifest(tmp_path)["incomplete_reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.fault("processes", "Ctrl-C under plain Locust: exit 130, everything is kept")
def test_an_interrupt_keeps_everything(number, port, tmp_path):
    process = subprocess.Popen(locust(port, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not records(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert [r["outcome"] for r in records(tmp_path)].count("cut_off") == 2
    assert manifest(tmp_path)["interrupted"] is True
    assert manifest(tmp_path)["complete"] is False


@pytest.mark.fault("processes", "A second plain Locust run into the same folder: exit 1")
def test_a_second_run_into_the_folder_is_refused(port, tmp_path):
    first = subprocess.Popen(locust(port, tmp_path, "--run-time", "60s"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not records(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = run(locust(port, tmp_path, "--requests", "3"))
    assert second.returncode == 1
    assert f"expected a folder that no other run writes to, found process {first.pid}" in second.stderr
    first.kill()
    first.wait()
    assert {r["user"] for r in records(tmp_path)} == {0, 1}
    assert len({r["worker"] for r in records(tmp_path)}) == 1
    after = run(locust(port, tmp_path, "--requests", "3"))  # the lock of the dead holds nobody up
    assert [r["repeat"] for r in records(tmp_path)].count(2) == 3 + 2, after.stderr


def test_refused_requests_are_data_and_fail_locust_as_it_is_used_to(tmp_path):
    done = run(locust(9, tmp_path, "--requests", "3", "--warmup-requests", "0"))  # nobody listens on port 9
    assert done.returncode == 1
    assert [r["outcome"] for r in records(tmp_path)] == ["connection_error"] * 3
    assert manifest(tmp_path)["complete"] is True  # what was asked for was measured


def test_a_wrong_setting_is_one_line_and_exit_code_2(port, tmp_path):
    done = run(locust(port, tmp_path, "--workload", "no-such-file.jsonl"))
    assert done.returncode == 2
    assert "no-such-file.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault("processes", "Too few descriptors: exit 1")
def test_too_few_descriptors_for_the_streams_end_the_run_before_it_starts(tmp_path):
    argv = [sys.executable, "-m", "locust", "-f", str(SCENARIO), "--headless", "-u", "300", "-r", "300"]
    argv += [
        "--host",
        "http://127.0.0.1:9",
        "--engine",
        "other",
        "--model",
        "m",
        "--clock-speed",
        "1",
        "--out",
        str(tmp_path),
    ]
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # noqa: E731
    done = subprocess.run([*argv, "--run-time", "120s"], capture_output=True, text=True, timeout=240, preexec_fn=few)
    assert done.returncode == 1
    assert "open files: expected room for 428 (300 connections and what Locust needs), got a limit of 256" in done.stderr


def test_a_bug_at_the_start_ends_the_run(port, tmp_path):
    """Locust only logs what a listener raises: it would go on for ever, without a request."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        f"from loadtest.scenario import run_folder, user\nexec(open({str(SCENARIO)!r}).read())\n"
        "run_folder.open_run = lambda *_: 1 / 0\n"
    )
    argv = [str(broken) if part == str(SCENARIO) else part for part in locust(port, tmp_path / "run")]
    done = run(argv)
    assert done.returncode == 1
    assert "a bug: the start of the test ended with ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


def test_a_signal_while_a_level_ends_by_itself_leaves_the_exit_to_the_main_greenlet():
    code = """
import gevent.event
from types import SimpleNamespace
from loadtest.scenario.session import Session
session, closed = Session.__new__(Session), gevent.event.Event()
session.options, session.runner, session.environment = SimpleNamespace(headless=True), None, None
session.workers = session.admission = session.level = None
session.shutting_down, session._end = False, gevent.spawn(closed.wait)
signalled = gevent.spawn(session.quitting)
gevent.spawn(closed.set)
session._end.join()
gevent.idle()
print(signalled.dead, session.shutting_down)
session.quitting()
print(session.shutting_down)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("False False\nTrue\n", "")
