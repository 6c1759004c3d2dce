"""`duel`: two simulators behind sockets take turns; wrong command lines are one clear line."""

import json
import subprocess
import sys
import time

import pytest

from loadtest import cli
from loadtest.servers import preflight

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
    assert cli.main(["duel", *urls[:2], "--concurrency", "1,2", "--budget", "0.004", "--out", str(out), "--json"]) == 0
    printed, said = capsys.readouterr()
    metrics = json.loads(printed)
    assert [(cell["side"], cell["engine"]) for cell in metrics["cells"]] == [("a", "vllm-sim"), ("b", "vllm-sim")]
    [decision] = metrics["decisions"]
    assert decision["unit"] == "round"
    assert decision["verdict"] in ("equal", "undecided", "too few samples")  # a busy machine may fail its checks
    assert "as they stand" in decision["population"]
    sides = [line.split(" at ")[0][-1] for line in said.splitlines() if " requests in " in line]
    turns = [one for at, one in enumerate(sides) if at == 0 or sides[at - 1] != one]
    assert turns[:2] == ["a", "b"]
    assert "Which of two servers is faster?" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:1", "http://127.0.0.1:1/v1"], "duel: expected two servers, got http://127.0.0.1:1 twice"),
        (["nowhere", "http://127.0.0.1:1"], "nowhere: expected a URL such as"),
        (["http://127.0.0.1:1", "http://127.0.0.1:2", "--matters", "0"], "--matters: expected a percentage above 0"),
        (["http://127.0.0.1:1", "http://127.0.0.1:2", "--start-sd", "-1"], "--start-sd: expected a percentage above 0"),
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
