"""The key is searched for after every kind of run: in its files, in what was printed, in every command line."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.servers import preflight
from loadtest.servers.supervisor import descendants
from tests.support.proxy import make_certificate, proxying, server_context

ROOT = Path(__file__).parent.parent
KEY = "sk-hunter2-0123456789"
QUICK = ("--concurrency", "2", "--requests", "4", "--warmup-requests", "1", "--workload", "math:n=4")
EVENTS = (
    {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
)


class Telltale(BaseHTTPRequestHandler):
    """A server that repeats the caller's key wherever it can; `/refuse` in its address has it refuse every completion."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.endswith("/v1/models"):
            self.reply(200, json.dumps({"data": [{"id": "m", "owned_by": self.key}]}).encode())
        elif self.path.endswith("/metrics"):
            self.reply(200, f'vllm:num_requests_running{{key="{self.key}"}} 1\n'.encode(), "text/plain")
        else:
            self.reply(404, json.dumps({"error": {"message": f"no such page for {self.key}"}}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/refuse"):
            self.reply(401, json.dumps({"error": {"message": f"Incorrect API key provided: {self.key}"}}).encode())
        elif self.path.startswith("/fail"):
            self.stream([{"error": {"message": f"quota of {self.key} is used up", "code": 500}}])
        else:
            self.stream(EVENTS)

    @property
    def key(self):
        return self.headers.get("Authorization", "nobody")

    def stream(self, events):
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.reply(200, "".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def reply(self, status, body, kind="application/json"):
        self.send_response(status, f"for {self.key}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Echo", self.key)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def telltale():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Telltale)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def started(argv, folder, **settings):
    settings = {**os.environ, **(settings or {"LOADTEST_API_KEY": KEY})}
    return subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def command_lines():
    """The command line of every process that is alive now."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


def finished(process):
    """What a command printed; while it ran, no command line held the key."""
    watched = []
    while process.poll() is None:
        watched.append(command_lines())
        time.sleep(0.2)
    assert not [lines for lines in watched if KEY in lines]
    return process.communicate()[0]


def holding_the_key(folder):
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_the_value_of_a_header_is_nowhere_either(telltale, tmp_path):
    argv = [
        "loadtest",
        "attach",
        "--base-url",
        f"{telltale}/refuse",
        *QUICK,
        "--header",
        "Authorization=TEAM_KEY",
        "--out",
        "run",
    ]
    said = finished(started(argv, tmp_path, TEAM_KEY=f"Bearer {KEY}"))
    records = [json.loads(line) for p in (tmp_path / "run").rglob("requests-*.jsonl") for line in p.read_text().splitlines()]
    assert {record["outcome"] for record in records} == {"http_error"}
    assert all("Incorrect API key provided: [API key]" in record["error"]["message"] for record in records)
    assert json.loads((tmp_path / "run/manifest.json").read_text())["cells"][0]["headers"] == {"Authorization": "TEAM_KEY"}
    assert KEY not in said
    assert holding_the_key(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "outcome"), [("", "ok"), ("/refuse", "http_error"), ("/fail", "server_error")], ids=["ok", "401", "stream"]
)
@pytest.mark.fault("secrets", "A server repeats the key: no file has it")
def test_a_run_against_a_server_that_repeats_the_key(telltale, place, outcome, tmp_path):
    process = started(["loadtest", "attach", "--base-url", f"{telltale}{place}", *QUICK, "--out", "run"], tmp_path)
    said = finished(process)
    assert "run/report.html" in said
    records = [json.loads(line) for p in (tmp_path / "run").rglob("requests-*.jsonl") for line in p.read_text().splitlines()]
    assert {record["outcome"] for record in records} == {outcome}
    assert KEY not in said
    assert holding_the_key(tmp_path) == []


@pytest.mark.fault("secrets", "The password of a proxy: no file has it")
def test_a_run_through_a_proxy_to_a_server_that_nobody_vouches_for(tmp_path):
    """All of it goes through the proxy, and the page says so, and that the certificate was not verified."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Telltale)
    server.socket = server_context(make_certificate(tmp_path)).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{server.server_address[1]}"
    with proxying() as between:
        argv = ["loadtest", "attach", "--base-url", url, *QUICK, "--insecure", "--proxy", between.url, "--out", "run"]
        said = finished(started(argv, tmp_path, LOADTEST_PROXY_AUTH=f"who:{KEY}"))
    server.shutdown()
    server.server_close()
    thread.join()
    records = [json.loads(line) for p in (tmp_path / "run").rglob("requests-*.jsonl") for line in p.read_text().splitlines()]
    assert {record["outcome"] for record in records} == {"ok"}
    login = base64.b64encode(f"who:{KEY}".encode())
    assert between.heads
    assert all(head.startswith(b"CONNECT ") and login in head for head in between.heads)
    [facts] = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("cells/*/engine.json")]
    assert (facts["proxy"], facts["insecure"]) == (between.url, True)
    page = (tmp_path / "run/report.html").read_text()
    assert f"through the proxy {between.url}: its time is in every figure" in page
    assert "its certificate was not verified (--insecure)" in page
    assert KEY not in said
    assert [one for one in holding_the_key(tmp_path) if one.startswith("run")] == []


@pytest.mark.fault("secrets", "A server repeats the key under plain Locust with `--csv`: no file has it")
def test_a_scenario_under_plain_locust(telltale, tmp_path):
    scenario = str(ROOT / "scenarios/long_reasoning.py")
    argv = ["locust", "-f", scenario, "--headless", "-u", "2", "-r", "2", "--requests", "4", "--host", f"{telltale}/refuse"]
    said = finished(started([*argv, "--workload", "math:n=4", "--csv", "stats", "--out", "run"], tmp_path))
    assert list((tmp_path / "run").rglob("requests-*.jsonl"))
    assert KEY not in said
    assert holding_the_key(tmp_path) == []


def test_an_interrupted_run(telltale, tmp_path):
    argv = ["loadtest", "attach", "--base-url", telltale, "--concurrency", "1", "--duration", "60", "--out", "run"]
    process = started(argv, tmp_path)
    while not list(tmp_path.rglob("requests-*.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = finished(process)
    assert process.returncode == 130, said
    assert KEY not in said
    assert holding_the_key(tmp_path) == []


def aborted(argv, folder, name, **settings):
    """Start it where cores are written, abort it and all of its processes; the core dumps that hold the key."""
    limited = ["bash", "-c", 'ulimit -c unlimited; exec "$@"', "-", sys.executable, "-m", *argv]
    environment = {**os.environ, "LOADTEST_API_KEY": KEY, **settings}
    process = subprocess.Popen(limited, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list(folder.rglob(name)):
        assert process.poll() is None
        time.sleep(0.05)
    for pid in (*reversed(descendants(process.pid)), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
    process.communicate(timeout=60)
    return holding_the_key(folder)


@pytest.fixture
def cores(tmp_path):
    """A folder into which core dumps are written, with the key of a process that does nothing about it."""
    folder = tmp_path / "control"
    folder.mkdir()
    code = ["timeit", "-n", "1", "-r", "1", "open('begun', 'w').close(); import time; time.sleep(60)"]
    if not aborted(code, folder, "begun"):
        pytest.skip("this system writes core dumps elsewhere, or none")
    return tmp_path


@pytest.mark.fault("secrets", "A core dump of ours: none")
def test_no_core_dump_holds_the_key(telltale, cores):
    run = ["loadtest", "attach", "--base-url", telltale, "--concurrency", "1", "--duration", "60", "--out", "run"]
    assert [one for one in aborted(run, cores, "requests-*.jsonl") if not one.startswith("control")] == []


def test_no_core_dump_of_plain_locust_holds_the_key(telltale, cores):
    argv = ["locust", "-f", str(ROOT / "scenarios/long_reasoning.py"), "--headless", "-u", "2", "--host", telltale]
    argv += ["--run-time", "60s", "--workload", "math:n=4", "--out", "run", "--processes", "2"]
    assert [one for one in aborted(argv, cores, "requests-*.jsonl") if not one.startswith("control")] == []


@pytest.mark.fault("secrets", "A traceback of ours: no key")
def test_a_traceback_of_a_bug_shows_no_key(telltale, tmp_path):
    """The key is in no local variable that Python or Locust prints: a bug is provoked where the key is at hand."""
    code = (
        "from loadtest import cli\nfrom loadtest.servers import probe\n"
        "def bug(*_, **__): raise ZeroDivisionError\n"
        "probe.probe = bug\n"
        f"cli.main(['attach', '--base-url', '{telltale}'])\n"
    )
    process = started(["timeit", "-n", "1", "-r", "1", code], tmp_path)
    said = finished(process)
    assert "ZeroDivisionError" in said
    assert KEY not in said


@pytest.mark.fault("secrets", "An engine's environment: no key")
def test_a_runtime_that_needs_no_key_is_not_given_one(tmp_path):
    """The simulator, started by a run, finds no key in its environment."""
    port = str(preflight.free_port())
    argv = ["loadtest", "serve", "vllm-sim", "--model", "qwq-32b-awq", "--gpu", "l20", "--port", port]
    process = started(argv, tmp_path)
    try:
        child = None
        while child is None:
            assert process.poll() is None
            time.sleep(0.1)
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if b"loadtest.simulator" in (path / "cmdline").read_bytes() and str(tmp_path) == os.readlink(
                        path / "cwd"
                    ):
                        child = path
        assert KEY.encode() not in (child / "environ").read_bytes()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
