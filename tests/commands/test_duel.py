"""`duel`: two simulators behind sockets take turns; wrong command lines are one clear line."""

import json
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest

from loadtest import cli
from loadtest.servers import preflight
from loadtest.study import passes

PRESENT = "http://127.0.0.1:{}"


def simulator(folder, model):
    port = preflight.free_port()
    argv = [sys.executable, "-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", model, "--gpu", "l20"]
    argv += ["--port", str(port), "--clock-speed", "20", "--length-scale", "0.05"]
    log = folder / f"{port}.log"
    with log.open("w") as output:
        server = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    while not log.read_text() and server.poll() is None:
        time.sleep(0.1)
    return server, PRESENT.format(port)


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulators")
    servers = [simulator(folder, model) for model in ("qwq-32b-awq", "qwq-32b-awq", "qwen2.5-7b-instruct")]
    yield [url for _, url in servers]
    for server, _ in servers:
        server.terminate()
        server.wait()


@pytest.mark.timeout(300)
def test_two_servers_take_turns_and_leave_one_run(urls, tmp_path, capsys):
    out = tmp_path / "run"
    assert dueled([*urls[:2], "--concurrency", "1,2", "--budget", "0.002", "--out", str(out), "--json"]) == 0
    printed, said = capsys.readouterr()
    metrics = json.loads(printed)
    assert [(cell["side"], cell["engine"]) for cell in metrics["cells"]] == [("a", "vllm-sim"), ("b", "vllm-sim")]
    [decision] = metrics["decisions"]
    assert decision["unit"] == "round"
    assert decision["verdict"] in ("equal", "undecided", "too few samples")  # a busy machine may fail its checks
    assert "as they stand" in decision["population"]
    sides = [line.partition("] ")[2].split(" at ")[0] for line in said.splitlines() if " requests in " in line]
    turns = [one for at, one in enumerate(sides) if at == 0 or sides[at - 1] != one]
    assert turns[:2] == [f"A ({urls[0]})", f"B ({urls[1]})"]
    assert "vllm-sim" not in said
    assert "Which of two servers is faster?" in (out / "report.html").read_text()
    # resumed, it goes on where it stopped
    done = max(rounds_on_disk(out))
    assert dueled(["--resume", str(out), "--budget", "0.0001", "--json"]) == 0
    printed, said = capsys.readouterr()
    [decision] = json.loads(printed)["decisions"]
    assert f"round {done} is complete on disk already" in said
    assert decision["verdict"] in ("equal", "undecided", "too few samples")
    assert max(rounds_on_disk(out)) == done + (" requests in " in said)
    assert json.loads((out / "manifest.json").read_text())["repeats"] == 40 + done


def dueled(arguments):
    """The exit code; the manifest keeps the command line, for --resume."""
    with mock.patch.object(sys, "argv", ["loadtest", "duel", *arguments]):
        return cli.main(["duel", *arguments])


def rounds_on_disk(out):
    return {int(re.search(r"-r(\d+)$", path.parent.name)[1]) for path in out.glob("cells/*/bursts-*/pass.json")}


class Silent(BaseHTTPRequestHandler):
    """Says what it serves, takes every request, and answers none."""

    done = threading.Event()

    def do_GET(self):
        body = json.dumps({"data": [{"id": "qwq-32b-awq", "max_model_len": 32768}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.done.wait(120)

    def log_message(self, *arguments):
        pass


@pytest.mark.timeout(300)
def test_a_server_that_never_answers_ends_with_the_budget(urls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(passes, "SILENCE_S", 1.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as silent:
        threading.Thread(target=silent.serve_forever, daemon=True).start()
        url = PRESENT.format(silent.server_port)
        assert dueled([url, urls[0], "--concurrency", "1,2", "--budget", "0.0005", "--out", str(tmp_path / "run")]) == 1
        silent.shutdown()
        Silent.done.set()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"A ({url}): concurrency 1, round 1: the budget is spent, and nothing came for " in said
    assert said.endswith(f"continue with: loadtest duel --resume {tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:1", "http://127.0.0.1:1/v1"], "duel: expected two servers, got http://127.0.0.1:1 twice"),
        (["nowhere", "http://127.0.0.1:1"], "nowhere: expected a URL such as"),
        (["http://127.0.0.1:1", "http://127.0.0.1:2", "--matters", "0"], "--matters: expected a percentage above 0"),
        (["http://127.0.0.1:1", "http://127.0.0.1:2", "--budget", "0"], "--budget: expected hours above 0"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments, said, capsys):
    assert cli.main(["duel", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_servers_of_two_models_are_refused(urls, capsys):
    assert cli.main(["duel", urls[0], urls[2]]) == 2
    assert "expected one model on both servers, got qwq-32b-awq and qwen2.5-7b-instruct" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:1"], "duel: expected URL_A URL_B, or --resume RUN for an unfinished run"),
        ([], "duel: expected URL_A URL_B, or --resume RUN for an unfinished run"),
    ],
)
def test_urls_or_a_run_are_needed(arguments, said, capsys):
    with pytest.raises(SystemExit):
        cli.main(["duel", *arguments])
    assert said in capsys.readouterr().err
