"""Every failure provoked for real, and what the user sees of it: the table in README.md."""

import json
import os
import signal
import socket
import time

import pytest

from loadtest.errors import EngineError
from loadtest.records import read
from loadtest.servers import preflight, supervisor
from loadtest.servers import server as servers
from tests.engines.conftest import MODEL, cell, ended, left_over, wait_until

pytestmark = pytest.mark.timeout(1800)
BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"])
READY_S = 900.0
STUDY = """
name = "failures"
workload = "math:n=16,seed=7"
requests_per_stream = 1
warmup_requests = 0
mode = "equal-work"
seed = 7
"""
CONTRACT = "[contract]\nmax_tokens = 600\ncontext_tokens = 8192\nmemory_fraction = 0.3\n"


def study(path, *parts):
    path.write_text("\n".join([STUDY, *parts]))
    return path


def run_of(out):
    """Of a finished run: the manifest, engine.json of each cell by its id, and the text of the page."""
    facts = {path.parent.name: json.loads(path.read_text()) for path in out.glob("cells/*/engine.json")}
    return json.loads((out / "manifest.json").read_text()), facts, (out / "report.html").read_text()


def first_record(out, pattern="requests-*.jsonl"):
    """Has a request ended and been recorded?"""
    return any(path.stat().st_size for path in out.rglob(pattern) if ".broken" not in str(path))


def vital(pid):
    """The scheduler of the runtime that this process has started."""
    return next(
        p for p in supervisor.descendants(pid) if servers._title(p).startswith(("VLLM::EngineCore", "sglang::scheduler"))
    )


CRAMPED = {"vllm": (("--num-gpu-blocks-override", "10"), {}), "sglang": ((), {"memory_fraction": 0.0001})}


@BOTH
def test_a_study_goes_on_after_a_failed_start_and_a_killed_engine(engine, begin, tmp_path):
    """One cell whose KV cache is too small, one whose scheduler is killed in mid-stream, and the other runtime."""
    for name in ("cramped", "killed"):
        (tmp_path / name).symlink_to(MODEL)
    extra, keys = CRAMPED[engine]
    other = "sglang" if engine == "vllm" else "vllm"
    path = study(
        tmp_path / "study.toml",
        "levels = [2]\nmin_requests = 6\n" + CONTRACT.replace("600", "3000"),  # seconds of streaming, to be killed amid
        cell(engine, *extra, model=tmp_path / "cramped", **keys),
        cell(engine, model=tmp_path / "killed"),
        cell(other),
    )
    out = tmp_path / "run"
    process = begin("run", path, "--out", out)
    cramped, killed, healthy = f"{engine}_cramped_tp1", f"{engine}_killed_tp1", f"{other}_tiny-qwq_tp1"
    wait_until(lambda: first_record(out / "cells" / killed), "a first record")
    family = supervisor.descendants(process.pid)
    time.sleep(0.5)  # both streams end together: now others are under way
    os.kill(vital(process.pid), signal.SIGKILL)
    code, errors = ended(process)
    manifest, facts, page = run_of(out)

    assert {one: facts[one]["status"] for one in facts} == {cramped: "failed", killed: "died", healthy: "ok"}
    by_itself = "exited with code 1" if engine == "vllm" else "killed by SIGKILL"  # SGLang ends itself so
    assert f"did not start: {by_itself}: the KV cache is too small" in facts[cramped]["reason"]
    assert "dmesg" not in facts[cramped]["reason"]
    assert "died: " in facts[killed]["reason"]
    for one in (cramped, killed):
        assert f"{one}: {facts[one]['reason']}" in errors, "told as it happens"
        assert facts[one]["reason"] in manifest["incomplete_reason"]
    assert "the KV cache is too small" in page
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"loadtest: 2 problem(s) left the run incomplete ({cramped}: ")
    assert "Traceback" not in errors
    assert left_over(family) == []

    levels = {one.id: one.levels for one in read.read_run(out).cells}
    broken = [request for request in levels[killed][0].requests if request.outcome != "ok"]
    assert broken, "what was running when it was killed is a record too"
    assert any(request.chunk_s for request in broken), "with the tokens that had come"
    assert [request.outcome for request in levels[healthy][0].requests] == ["ok"] * 6


@BOTH
def test_interrupted_then_killed_then_resumed(engine, begin, tmp_path):
    """Ctrl-C, then SIGKILL to the orchestrator: no process of the runtime is left, and --resume completes the run."""
    path = study(tmp_path / "study.toml", "levels = [1, 2]\nmin_requests = 6\n" + CONTRACT, cell(engine))
    out = tmp_path / "run"
    process = begin("run", path, "--out", out)
    wait_until(lambda: first_record(out), "a first record")
    family = supervisor.descendants(process.pid)
    process.send_signal(signal.SIGINT)
    code, errors = ended(process)
    assert (code, left_over(family)) == (130, [])
    assert "interrupted; what was measured is in" in errors.splitlines()[-1]
    manifest, _, page = run_of(out)
    assert (manifest["complete"], manifest["interrupted"]) == (False, True)
    assert "incomplete" in page.lower()

    process = begin("run", path, "--out", out, "--resume")
    wait_until(lambda: first_record(out, "c02-r1/requests-*.jsonl"), "a record of the second level")
    family = supervisor.descendants(process.pid)
    assert len(family) > 4, "guards, runtime, its scheduler, Locust"
    process.kill()
    process.communicate()
    wait_until(lambda: left_over(family) == [], "the end of every process", 90.0)

    code, errors = ended(begin("run", path, "--out", out, "--resume"))
    assert code == 0, errors
    assert "c01-r1" not in errors, "the first level was whole: it is not measured again"
    manifest, facts, _ = run_of(out)
    assert (manifest["complete"], manifest["interrupted"]) == (True, False)
    assert [one["status"] for one in facts.values()] == ["ok"]
    (measured,) = read.read_run(out).cells
    assert [len(level.requests) for level in measured.levels] == [6, 6]
    assert all(request.outcome == "ok" for level in measured.levels for request in level.requests)


FULL = {
    "vllm": ("--max-num-seqs", "1", "--max-num-queued-reqs", "1"),
    "sglang": ("--max-running-requests", "1", "--max-queued-requests", "1"),
}


@BOTH
def test_a_full_queue_is_an_error_of_the_server_not_an_answer(engine, spec, begin, tmp_path):
    """Eight streams to a server that takes two: it refuses with HTTP 200 and an error inside the stream, else with 503."""
    out = tmp_path / "run"
    with servers.Server(spec(engine, *FULL[engine]), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        options = ("--concurrency", 8, "--requests", 24, "--mode", "equal-work", "--max-tokens", 300, "--warmup-requests", 0)
        code, seen = ended(begin("attach", "--base-url", server.base_url, *options, "--out", out))
        assert server.died() is None
    assert code == 0, "a server that refuses is a finding, not a failure to measure"
    (level,) = json.loads((out / "metrics.json").read_text())["cells"][0]["levels"]
    outcomes = level["outcomes"]
    assert set(outcomes) <= {"ok", "server_error", "http_error"}
    assert 0 < outcomes["ok"] < 24
    assert sum(outcomes.values()) == level["n_requests"] == 24
    assert level["failed_share"]["value"] == pytest.approx(1 - outcomes["ok"] / 24)
    assert set(level["error_kinds"]) <= {"error_in_stream", "http_503"}, "full after the request was taken, or before"
    refused = [one for one in read.read_run(out).cells[0].levels[0].requests if one.outcome != "ok"]
    assert {one.completion_tokens or 0 for one in refused} == {0}
    assert f"FAILED: {24 - outcomes['ok']} of 24 requests" in seen


# A KV cache so small that eight long answers do not fit together, and what makes each runtime admit them all the same.
CROWDED = {
    "vllm": ("--num-gpu-blocks-override", "40"),
    "sglang": ("--max-total-tokens", "4000", "--schedule-conservativeness", "0.01"),
}


@BOTH
def test_preemptions_are_counted_and_every_answer_is_whole(engine, begin, tmp_path):
    """Without a seed: vLLM 0.32 on a CPU dies when it preempts a seeded request ("CPU Generator does not use offset")."""
    contract = CONTRACT.replace("600", "1500").replace("8192", "4096") + 'omit = ["seed"]\n'
    out = tmp_path / "run"
    path = study(tmp_path / "study.toml", "levels = [8]\nmin_requests = 8\n" + contract, cell(engine, *CROWDED[engine]))
    code, errors = ended(begin("run", path, "--out", out))
    assert code == 0, errors
    (level,) = read.read_run(out).cells[0].levels
    assert [request.completion_tokens for request in level.requests] == [1500] * 8
    (told,) = json.loads((out / "metrics.json").read_text())["cells"][0]["levels"]
    assert told["server"]["n_preemptions"] > 0
    assert "preemptions" in run_of(out)[2]


@BOTH
def test_a_taken_port_is_refused_with_who_has_it(engine, begin):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = ended(begin("serve", engine, "--model", MODEL, "--port", port))
    assert code == 1
    line = errors.splitlines()[-1]
    assert line.startswith(
        f"loadtest: 127.0.0.1:{port}: expected a free port: Address already in use by process {os.getpid()} ("
    )
    assert line.endswith("; choose another --port or stop it")


@BOTH
def test_a_port_that_is_taken_after_the_check_is_explained_from_the_log(engine, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_port_free", lambda port: None)
    with socket.socket() as taken:
        port = preflight.free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        server = servers.Server(spec(engine, port=port), tmp_path / "engine.log")
        with server, pytest.raises(EngineError, match="the port is taken") as caught:
            server.wait_ready(READY_S)
    print(caught.value)
