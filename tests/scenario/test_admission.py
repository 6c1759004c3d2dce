"""Who may be a worker of a master: foreign, late, different, and hostile ones beside the right ones."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
import zmq

from loadtest.servers import preflight
from tests.scenario.test_user import ROOT, SCENARIO, asked, manifest, port, records

__all__ = ["port"]  # a fixture

FOREIGN = "from locust import User, task\nclass Foreign(User):\n    @task\n    def nothing(self): pass\n"


def start(*argv, cwd=ROOT):
    words = [sys.executable, "-m", "locust", *map(str, argv)]
    return subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Deployment:
    """A master on a port of its own, and workers; all are gone in the end."""

    def __init__(self, server_port, out):
        self.server_port, self.out, self.port = server_port, out, preflight.free_port()
        self.started = []

    def master(self, *options, expected=2, workload="math:n=8", cwd=ROOT):
        argv = ["-f", SCENARIO, "--headless", "-u", "4", "-r", "100", "--only-summary", "--workload", workload]
        argv += [
            "--master",
            "--master-bind-host",
            "127.0.0.1",
            "--master-bind-port",
            self.port,
            "--expect-workers",
            expected,
        ]
        argv += ["--host", f"http://127.0.0.1:{self.server_port}", "--engine", "other", "--model", "known"]
        return self._start(*argv, "--clock-speed", "1", "--out", self.out, *options, cwd=cwd)

    def worker(self, scenario=SCENARIO, cwd=ROOT):
        return self._start("-f", scenario, "--worker", "--master-host", "127.0.0.1", "--master-port", self.port, cwd=cwd)

    def _start(self, *argv, cwd=ROOT):
        self.started.append(start(*argv, cwd=cwd))
        return self.started[-1]


@pytest.fixture
def deployed(port, tmp_path):
    deployment = Deployment(port, tmp_path / "run")
    yield deployment
    for process in deployment.started:
        process.kill()
        process.communicate()


def ended(process):
    said, _ = process.communicate(timeout=140)
    return process.returncode, said


def wait_for_records(out, n=1):
    deadline = time.monotonic() + 140
    while len(records(out)) < n:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.fault("processes", "A foreign or late worker: no users")
def test_foreign_and_late_workers_get_no_users(deployed, tmp_path):
    (tmp_path / "foreign.py").write_text(FOREIGN)
    master = deployed.master("--duration", "15")
    foreign = deployed.worker(tmp_path / "foreign.py")
    workers = [deployed.worker(), deployed.worker()]
    wait_for_records(deployed.out)
    late, another = deployed.worker(), deployed.worker(tmp_path / "foreign.py")
    code, said = ended(master)
    assert code == 0, said
    assert "it waits for the next" in said
    assert [ended(one)[0] for one in (*workers, late)] == [0, 0, 0]
    assert {ended(one)[0] for one in (foreign, another)} <= {0, 1}, "the master sends them away"
    assert manifest(deployed.out)["complete"] is True
    assert {r["user"] for r in records(deployed.out)} == {0, 1, 2, 3}
    assert len({r["worker"] for r in records(deployed.out)}) == 2


@pytest.mark.fault("processes", "Another scenario or version: `it gets no users`")
def test_a_worker_with_another_scenario_is_refused(deployed, tmp_path):
    other = tmp_path / "long_reasoning.py"
    other.write_text(SCENARIO.read_text() + "\n# as edited on this host alone\n")
    master = deployed.master("--requests", "8")
    wrong = deployed.worker(other)
    code, said = ended(wrong)
    assert code == 1
    assert "scenario: expected the master's" in said
    workers = [deployed.worker(), deployed.worker()]
    code, said = ended(master)
    assert (code, [ended(one)[0] for one in workers]) == (0, [0, 0]), said
    assert "scenario: expected the master's" in said
    assert [seq for seq, _ in asked(deployed.out)] == list(range(8))


@pytest.mark.fault("processes", "Other prompts: `expected the master's prompts`, exit 2")
def test_a_worker_with_other_prompts_sends_nothing(deployed, tmp_path):
    for name, text in (("here", "What is 1 + 1?"), ("there", "What is 2 + 2?")):
        (tmp_path / name).mkdir()
        line = json.dumps({"id": "a", "messages": [{"role": "user", "content": text}]})
        (tmp_path / name / "prompts.jsonl").write_text(line + "\n")
    master = deployed.master("--requests", "8", workload="prompts.jsonl", expected=1, cwd=tmp_path / "here")
    deployed.worker(cwd=tmp_path / "there")
    code, said = ended(master)
    assert code == 2, said
    assert "prompts.jsonl: expected the master's prompts" in said
    assert records(deployed.out) == []
    assert manifest(deployed.out)["complete"] is False


@pytest.mark.fault("processes", "A rogue on the master's port: refused, told once")
def test_a_rogue_on_the_port_changes_nothing(deployed, tmp_path):
    """The worker has a folder of its own, so that its records come over the same port."""
    deployed.out = Path("run")
    for name in ("master", "worker"):
        (tmp_path / name).mkdir()
    master = deployed.master("--requests", "24", expected=1, cwd=tmp_path / "master")
    rogue = zmq.Context.instance().socket(zmq.DEALER)
    rogue.setsockopt(zmq.IDENTITY, b"rogue")
    rogue.setsockopt(zmq.LINGER, 0)
    rogue.connect(f"tcp://127.0.0.1:{deployed.port}")
    worker = deployed.worker(cwd=tmp_path / "worker")
    rogue.send(bytes(17 * 2**20))  # a MiB more than `admission.LARGEST_MESSAGE_BYTES`
    try:
        while master.poll() is None:
            for kind, data in HOSTILE:
                for name in ("rogue", "another"):
                    rogue.send(msgpack.dumps((kind, data, name)))
            rogue.send(b"\xc1 no message")
            rogue.send(msgpack.dumps(7))
            rogue.send(msgpack.dumps(("stats", {"__ObjectId__": 1, "as_str": "no"}, "rogue")))
            time.sleep(0.2)
    finally:
        rogue.close()
    code, said = ended(master)
    assert (code, ended(worker)[0]) == (0, 0), said
    assert [seq for seq, _ in asked(tmp_path / "master/run")] == list(range(24))
    assert asked(tmp_path / "worker/run") == asked(tmp_path / "master/run")
    assert manifest(tmp_path / "master/run")["complete"] is True
    assert said.count("refused, from 'rogue'") <= 1 <= said.count("refused, from"), said


HOSTILE = [
    ("client_ready", "2.47.0"),
    ("loadtest_proof", {"loadtest": "0", "locust": "0", "scenario": "0"}),
    ("loadtest_proof", 7),
    ("loadtest_done", {}),
    ("loadtest_final", {}),
    ("loadtest_failed", {"kind": "bug", "message": "no"}),
    ("loadtest_batch", {"token": "", "file": "../x", "offset_bytes": 0, "size_bytes": 1, "packed": b""}),
    ("loadtest_kept", 7),
    ("exception", None),
    ("exception", {"msg": "no", "traceback": "no"}),
    ("stats", None),
    ("heartbeat", {}),
    ("spawning_complete", None),
    ("client_stopped", None),
    ("quit", None),
]
