"""Searches against a server: a simulator behind a socket, driven by Locust."""

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from loadtest import cli
from loadtest.records import read
from loadtest.servers import preflight

SLO = ["--slo", "ttft_s:p50<4"]
SHORT = ["--start", "4", "--max-concurrency", "16", "--workload", "math:n=16", "--requests", "24"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    port = preflight.free_port()
    argv = [sys.executable, "-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--gpu", "l20"]
    argv += ["--port", str(port), "--clock-speed", "10", "--length-scale", "0.1"]
    argv += ["--max-running", "8"]  # so that whoever comes ninth waits for another's whole answer
    log = tmp_path_factory.mktemp("simulator") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    while not log.read_text() and server.poll() is None:
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


def searched(capsys, *arguments):
    command = ["search", *arguments, "--json"]
    with mock.patch.object(sys, "argv", ["loadtest", *command]):  # which the manifest keeps, for --resume
        code = cli.main(command)
    out, err = capsys.readouterr()
    return code, json.loads(out)["searches"][0] if out else None, err


def test_a_search_through_sockets_finds_a_frontier(url, tmp_path, capsys):
    code, found, said = searched(capsys, "--base-url", url, *SLO, *SHORT, "--out", str(tmp_path / "run"))
    assert code == 0
    assert found["limit"] in ("slo", "undecided")
    assert 4 <= found["within"] < found["broken"] <= 16
    assert " at  4 " in said
    run = read.read_run(tmp_path / "run")
    assert (run.manifest.complete, run.manifest.levels) == (True, ())
    assert {one.concurrency for one in run.cells[0].levels} == {one["concurrency"] for one in found["levels"]}
    passed = json.loads((run.cells[0].levels[0].path / "pass.json").read_text())
    assert passed["complete"]  # although Locust was stopped when the level was decided
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{found['broken']} breaks ttft_s:p50" in page
    assert "Every level that the search tried" in page
    # resumed, it measures nothing again
    before = len(list((tmp_path / "run").rglob("requests-*.jsonl")))
    code, resumed, _ = searched(capsys, "--resume", str(tmp_path / "run"))
    assert (code, resumed["within"], resumed["broken"]) == (0, found["within"], found["broken"])
    assert len(list((tmp_path / "run").rglob("requests-*.jsonl"))) == before


def test_an_interrupted_search_leaves_the_frontier_so_far_and_goes_on_when_resumed(url, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--base-url", url, *SLO, *SHORT, "--out", str(out)]
    command = [sys.executable, "-m", "loadtest", "search", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "requests: within" in line or "requests: broken" in line:
                break
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in said
    [found] = json.loads((out / "metrics.json").read_text())["searches"]
    assert found["limit"] == "stopped"
    assert found["reason"].startswith("interrupted")
    assert found["levels"]
    code, whole, _ = searched(capsys, "--resume", str(out))
    assert code == 0
    assert whole["limit"] in ("slo", "undecided")
    assert whole["levels"][0] == found["levels"][0]


def test_a_search_ends_with_its_budget(url, tmp_path, capsys):
    code, found, _ = searched(capsys, "--base-url", url, *SLO, *SHORT, "--out", str(tmp_path / "run"), "--budget", "0.0001")
    assert code == 0
    assert (found["limit"], found["reason"]) == ("stopped", "the budget is spent")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "--base-url", "http://127.0.0.1:1", "--slo", "ttft_s<2"], "expected a statistic of ttft_s"),
        (["search", "--base-url", "http://127.0.0.1:1"], "--slo: expected at least one"),
        (["search", *SLO], "search: expected --base-url URL, or --resume RUN"),
        (["search", "--base-url", "http://127.0.0.1:1", *SLO, "--budget", "-1"], "--budget: expected hours above 0"),
        (["attach", "--base-url", "http://127.0.0.1:1", "--find-max"], "--slo: expected at least one with a search"),
        (
            ["attach", "--base-url", "http://127.0.0.1:1", "--max-concurrency", "8"],
            "--max-concurrency: expected with --find",
        ),
        (["attach", "--base-url", "http://127.0.0.1:1", "--budget", "1"], "--budget: expected with --find-max"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments, said, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err
