"""Servers started, watched and stopped: with the simulator, and with small scripts that fail the way engines do."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.errors import EngineError
from loadtest.servers import flags, preflight, probe, prometheus, supervisor
from loadtest.servers import server as servers
from loadtest.servers.process import Guarded

GENERATION = '{"choices": [], "usage": {"completion_tokens": 4}}'
# An engine in a few lines: healthy, answering as told; argv: port, HTTP status of a generation, its body.
FAKE_ENGINE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, status, body):
        self.send_response(status); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.reply(200, b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"])); self.reply(int(sys.argv[2]), sys.argv[3].encode())
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port():
    return preflight.free_port()


def test_a_program_that_is_not_there_is_named_without_a_traceback(tmp_path):
    with (tmp_path / "log").open("w") as log:
        started = Guarded([str(tmp_path / "vllm"), "serve"], log, grace_s=1, environment=os.environ)
    wait_until(lambda: started.poll() is not None)
    assert started.exit_code == 127
    assert (tmp_path / "log").read_text() == f"error: {tmp_path / 'vllm'}: cannot be run: No such file or directory\n"


def simulator(port):
    return flags.LaunchSpec(engine="sglang-sim", model="qwq-32b-awq", gpu="l20", port=port, clock_speed=20)


@pytest.fixture
def engine(monkeypatch, port, tmp_path):
    """Make `vllm` a script of ours; returns a Server of it."""

    def make(script, *arguments):
        words = [sys.executable, "-c", script, *map(str, arguments)]
        monkeypatch.setenv("LOADTEST_VLLM", shlex.join(words))
        return servers.Server(flags.LaunchSpec(engine="vllm", model="qwq-32b", port=port), tmp_path / "cell" / "engine.log")

    return make


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def numbers_in(path):
    return [int(word) for word in path.read_text().split() if word.isdigit()] if path.exists() else []


def test_a_simulator_from_start_to_stop(port, tmp_path):
    log = tmp_path / "engine.log"
    with servers.Server(simulator(port), log) as server:
        server.wait_ready(60)
        info = probe.probe(server.base_url)
        assert (info.engine, info.simulated, info.clock_speed) == ("sglang-sim", True, 20.0)
        assert prometheus.scrape(server.base_url).requests_finished_total == 1.0, "the generation that proved it ready"
        assert probe.flush_cache(server.base_url, "sglang-sim") is True
        assert server.died() is None
        with pytest.raises(EngineError, match=f"127.0.0.1:{port}: expected a free port"):
            servers.Server(simulator(port), log).start()
    assert server.exit_code == 0
    assert "simulated" in log.read_text()
    preflight.check_port_free(port)


def test_a_killed_server_is_noticed_and_explained(port, tmp_path):
    with servers.Server(simulator(port), tmp_path / "engine.log") as server:
        server.wait_ready(60)
        os.kill(supervisor.descendants(server.pid)[0], signal.SIGKILL)
        wait_until(server.died)
        assert server.died().startswith("killed by SIGKILL")
    assert server.exit_code == -signal.SIGKILL


def test_a_failed_start_tells_the_cause_from_the_log(engine):
    server = engine("import sys; print('torch.OutOfMemoryError: CUDA out of memory.', file=sys.stderr); sys.exit(1)")
    with server, pytest.raises(EngineError) as caught:
        server.wait_ready(30)
    assert str(caught.value).startswith("vllm qwq-32b: did not start: exited with code 1: CUDA out of memory (torch.")
    assert "CUDA out of memory." in server.log.read_text()


def test_an_earlier_failure_in_the_same_log_is_not_blamed_again(engine, tmp_path):
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "engine.log").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    server = engine("raise SystemExit('NewError: something else')")
    with server, pytest.raises(EngineError, match="exited with code 1: NewError: something else"):
        server.wait_ready(30)


def test_healthy_is_not_working(engine, port, monkeypatch):
    monkeypatch.setattr(servers, "_DEATH_FOLLOWS_S", 0.0)
    server = engine(FAKE_ENGINE, port, 500, "awq_dequantize is missing")
    with server, pytest.raises(EngineError, match="healthy, but cannot generate: HTTP 500: awq_dequantize is missing"):
        server.wait_ready(30)


@pytest.mark.parametrize("body", ["{}", "no json", '{"usage": {"completion_tokens": 0}}'])
def test_an_answer_without_a_token_is_no_generation(engine, port, monkeypatch, body):
    monkeypatch.setattr(servers, "_DEATH_FOLLOWS_S", 0.0)
    server = engine(FAKE_ENGINE, port, 200, body)
    with server, pytest.raises(EngineError, match="cannot generate"):
        server.wait_ready(30)


def test_an_engine_that_hangs_without_its_port_is_not_waited_for(engine):
    """As SGLang 0.5.15 does, with its own words."""
    said = "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use"
    server = engine(f"import time; print({said!r}, flush=True); time.sleep(600)")
    with server, pytest.raises(EngineError, match="did not start: the port is taken .*choose another --port"):
        server.wait_ready(60)


def test_never_healthy_is_told_after_the_timeout(engine):
    server = engine("import time; time.sleep(600)")
    with server, pytest.raises(EngineError, match=r"not healthy after 0\.2 s"):
        server.wait_ready(0.2)
    assert server.exit_code == -signal.SIGTERM


def test_keys_never_reach_an_engine(engine, monkeypatch):
    for name in ("LOADTEST_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY"):
        monkeypatch.setenv(name, "s3cret")
    server = engine("import os; print(dict(os.environ), flush=True)")
    with server:
        wait_until(server.died)
    assert "VLLM_NO_USAGE_STATS" in server.log.read_text()
    assert "s3cret" not in server.log.read_text()


def test_what_is_not_installed_is_named(monkeypatch, port, tmp_path):
    monkeypatch.setenv("LOADTEST_VLLM", "no-such-program")
    with pytest.raises(EngineError, match=r"vllm: no-such-program: not found; python3 -m venv .* LOADTEST_VLLM"):
        servers.Server(flags.LaunchSpec(engine="vllm", model="qwq-32b", port=port), tmp_path / "log").start()


# Deaf to SIGTERM, with a child that has left the session, which has one of its own.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = (
    "import os, subprocess, time; p = subprocess.Popen(['sleep', '600']); "
    "print(os.getpid(), p.pid, flush=True); time.sleep(600)"
)
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.fault("processes", "An engine ignores SIGTERM: killed")
def test_no_orphan_after_a_stop_that_is_ignored(engine, monkeypatch):
    monkeypatch.setattr(servers, "STOP_GRACE_S", 0.2)
    server = engine(STUBBORN)
    with server:
        wait_until(lambda: len(numbers_in(server.log)) == 3)
    assert server.exit_code == -signal.SIGKILL
    assert all(gone(pid) for pid in numbers_in(server.log))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphan_after_our_own_death(tmp_path, port, number):
    log = tmp_path / "engine.log"
    parent = (
        "import pathlib, sys, time; from loadtest.servers import flags, server; server.STOP_GRACE_S = 0.2;"
        f"s = flags.LaunchSpec(engine='vllm', model='qwq-32b', port={port});"
        "server.Server(s, pathlib.Path(sys.argv[1])).start(); time.sleep(600)"
    )
    environment = os.environ | {"LOADTEST_VLLM": shlex.join([sys.executable, "-c", STUBBORN])}
    ours = subprocess.Popen([sys.executable, "-c", parent, str(log)], env=environment)
    try:
        wait_until(lambda: len(numbers_in(log)) == 3)
        ours.send_signal(number)
        ours.wait()
        wait_until(lambda: all(gone(pid) for pid in numbers_in(log)))
    finally:
        ours.kill()
        ours.wait()


def test_no_orphan_after_the_guard_is_killed(engine):
    server = engine(STUBBORN)
    with server:
        wait_until(lambda: len(numbers_in(server.log)) == 3)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(server.died)
        wait_until(lambda: gone(numbers_in(server.log)[0]))
    for pid in numbers_in(server.log):
        if not gone(pid):  # the price of killing the guard itself: what left the session is left to us
            os.kill(pid, signal.SIGKILL)


def test_a_vital_part_that_has_gone_is_noticed_while_the_front_answers(engine, port, monkeypatch):
    monkeypatch.setattr(servers, "_VITAL", ("sleep",))
    monkeypatch.setattr(servers, "_LAST_WORDS_S", 0.0)
    server = engine("import subprocess; subprocess.Popen(['sleep', '600'])" + FAKE_ENGINE, port, 200, GENERATION)
    with server:
        server.wait_ready(30)
        assert server.died() is None
        os.kill(next(iter(server._vital)), signal.SIGKILL)
        wait_until(server.died)
        assert "sleep" in server.died()


def test_a_scheduler_that_dies_of_the_first_request_is_noticed_while_the_front_hangs(engine, port, monkeypatch):
    monkeypatch.setattr(servers, "_VITAL", ("sleep",))
    monkeypatch.setattr(servers, "_LAST_WORDS_S", 0.0)
    scheduler = "import subprocess; one = subprocess.Popen(['sleep', '600'])"
    hanging = FAKE_ENGINE.replace(
        "def do_POST(self):", "def do_POST(self):\n        one.kill(); __import__('time').sleep(600)"
    )
    with (
        engine(scheduler + hanging, port, 200, GENERATION) as server,
        pytest.raises(EngineError, match="died of its first"),
    ):
        server.wait_ready(30)


def test_serving_in_the_foreground_fails_when_the_engine_does(engine, port):
    engine("raise SystemExit(3)")
    with pytest.raises(EngineError, match="vllm: exited with code 3"):
        servers.run_in_foreground(flags.LaunchSpec(engine="vllm", model="qwq-32b", port=port))
