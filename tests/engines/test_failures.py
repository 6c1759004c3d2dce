"""Failures provoked for real inside `loadtest run` and `loadtest serve`, and what the user sees: the table in README.md."""

import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadtest.errors import EngineError
from loadtest.records import read
from loadtest.servers import preflight, supervisor
from loadtest.servers import server as servers
from tests.engines.conftest import MODEL, beginning, cell, ended, left_over, wait_until

pytestmark = pytest.mark.timeout(1800)
READY_S = 900.0
STUDY = """
name = "failures"
workload = "math:n=16,seed=7"
requests_per_stream = 1
warmup_requests = 0
mode = "equal-work"
seed = 7
"""


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


def is_streaming(cell_folder):
    """Has the server run requests in two samples, a second apart? SGLang counts the tokens of an answer once it ends."""
    lines = [line for path in cell_folder.glob("*/server_metrics.jsonl") for line in path.read_text().splitlines(True)]
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return len(whole) > 1 and all(one["running"] for one in whole[-2:])


def vital(pid):
    """The scheduler of the engine that this process has started."""
    return next(
        p for p in supervisor.descendants(pid) if servers._title(p).startswith(("VLLM::EngineCore", "sglang::scheduler"))
    )


# A KV cache that holds no request of the context; one that holds some of eight answers, and each engine made to admit all.
CRAMPED = {"vllm": (("--num-gpu-blocks-override", "10"), {}), "sglang": ((), {"memory_fraction": 0.0001})}
CROWDED = {
    "vllm": ("--num-gpu-blocks-override", "40"),
    "sglang": ("--max-total-tokens", "4000", "--schedule-conservativeness", "0.01"),
}
# Two answers a stream: seconds of streaming, to be killed amid. No seed: vLLM 0.32 on a CPU dies when it preempts a request
# with a seed ("CPU Generator does not use offset").
LEVEL_OF_FAILURES = """
levels = [8]
min_requests = 16
[contract]
max_tokens = 1500
context_tokens = 4096
memory_fraction = 0.3
omit = ["seed"]
"""


@dataclass(frozen=True, slots=True)
class Failures:
    """A finished study of three cells of one engine: one does not start, one is killed in mid-stream, one is crowded."""

    out: Path
    code: int
    said: str
    left: list[int]  # processes of the killed cell that outlived the study
    cramped: str
    killed: str
    crowded: str


@pytest.fixture(scope="module")
def failures(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp(engine)
    names = ("cramped", "killed", "crowded")
    for name in names:
        (folder / name).symlink_to(MODEL)
    extra, keys = CRAMPED[engine]
    path = study(
        folder / "study.toml",
        LEVEL_OF_FAILURES,
        cell(engine, *extra, model=folder / "cramped", **keys),
        cell(engine, model=folder / "killed"),
        cell(engine, *CROWDED[engine], model=folder / "crowded"),
    )
    out = folder / "run"
    ids = {name: f"{engine}_{name}_tp1" for name in names}
    with beginning() as start:
        process = start("run", path, "--out", out)
        wait_until(lambda: is_streaming(out / "cells" / ids["killed"]), "the middle of an answer")
        family = supervisor.descendants(process.pid)
        os.kill(vital(process.pid), signal.SIGKILL)
        code, said = ended(process)
    return Failures(out, code, said, left_over(family), **ids)


@pytest.mark.fault("processes", "Real engines, one killed: the run goes on, `--resume` completes")
def test_a_study_goes_on_after_a_failed_start_and_a_killed_engine(engine, failures):
    manifest, facts, page = run_of(failures.out)
    states = {failures.cramped: "failed", failures.killed: "died", failures.crowded: "ok"}
    assert {one: facts[one]["status"] for one in facts} == states
    by_itself = "exited with code 1" if engine == "vllm" else "killed by SIGKILL"  # SGLang ends itself so
    assert f"did not start: {by_itself}: the KV cache is too small" in facts[failures.cramped]["reason"]
    assert "dmesg" not in facts[failures.cramped]["reason"]
    assert "died: " in facts[failures.killed]["reason"]
    for one in (failures.cramped, failures.killed):
        assert f"{one}: {facts[one]['reason']}" in failures.said, "told as it happens"
        assert facts[one]["reason"] in manifest["incomplete_reason"]
    assert "the KV cache is too small" in page
    assert failures.code == 1
    last = failures.said.splitlines()[-1]
    assert last.startswith(f"loadtest: 2 problem(s) left the run incomplete ({failures.cramped}: ")
    assert "Traceback" not in failures.said
    assert failures.left == []


def test_what_was_running_when_an_engine_was_killed_is_recorded(failures):
    levels = {one.id: one.levels for one in read.read_run(failures.out).cells}
    broken = [request for request in levels[failures.killed][0].requests if request.outcome != "ok"]
    assert broken
    assert any(request.chunk_s for request in broken), "with the tokens that had come"


def test_preemptions_are_counted_and_every_answer_is_whole(failures):
    (level,) = next(one for one in read.read_run(failures.out).cells if one.id == failures.crowded).levels
    assert [request.outcome for request in level.requests] == ["ok"] * 16
    assert [request.completion_tokens for request in level.requests] == [1500] * 16
    cells = json.loads((failures.out / "metrics.json").read_text())["cells"]
    (told,) = next(one for one in cells if one["id"] == failures.crowded)["levels"]
    assert told["server"]["n_preemptions"] > 0
    assert "preemptions" in run_of(failures.out)[2]


LEVELS_OF_INTERRUPTIONS = """
levels = [1, 2]
min_requests = 6
[contract]
max_tokens = 600
context_tokens = 8192
memory_fraction = 0.3
"""


@pytest.mark.fault("processes", "Ctrl-C, SIGKILL, `--resume`, real engines")
def test_interrupted_then_killed_then_resumed(engine, begin, tmp_path):
    """Ctrl-C, then SIGKILL to the orchestrator: no process of the engine is left, and --resume completes the run."""
    path = study(tmp_path / "study.toml", LEVELS_OF_INTERRUPTIONS, cell(engine))
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
    assert len(family) > 4, "guards, engine, its scheduler, Locust"
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


@pytest.mark.fault("processes", "A taken port, real engines: refused with its owner")
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
