"""What a person sees of `attach`: live, interrupted, as plain lines, and quiet; against a simulator that runs."""

import os
import re
import subprocess
import sys

import pytest

from loadtest.records import read
from loadtest.servers import flags, preflight
from loadtest.servers.server import Server
from tests.support.terminal import Terminal

LOADTEST = [sys.executable, "-m", "loadtest"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    spec = flags.LaunchSpec(
        engine="vllm-sim", model="qwq-32b-awq", gpu="l20", port=preflight.free_port(), clock_speed=25.0,
        extra_args=("--length-scale", "0.1"),
    )  # fmt: skip
    with Server(spec, tmp_path_factory.mktemp("simulator") / "engine.log", set()) as server:
        server.wait_ready()
        yield server.base_url


def attach(url, out, *options):
    command = [*LOADTEST, "attach", "--base-url", url, "--workload", "math:n=8", "--concurrency", "2", "--out", str(out)]
    return [*command, *options]


def told(argv):
    """Exit code, result and what was told meanwhile, of a command in a pipe."""
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "TERM")}
    ended = subprocess.run(argv, capture_output=True, text=True, env=plain, timeout=100)
    return ended.returncode, ended.stdout, ended.stderr


def test_plain_lines_with_commands_and_files(url, tmp_path):
    code, out, err = told(attach(url, tmp_path / "run", "--verbose"))
    assert code == 0, err
    lines = [re.sub(r"^\[\d\d:\d\d\] ", "", line) for line in err.splitlines()]
    assert all(re.match(r"\[\d\d:\d\d\] ", line) for line in err.splitlines())
    cell = "vllm-sim_qwq-32b-awq_tp1"
    assert lines[0] == f"vllm-sim at {url}: 1 cell, concurrency 2"
    assert lines[1] == f"records: {tmp_path}/run/cells/{cell}/c02-r1"
    assert lines[2].startswith("command: ")
    assert " -m loadtest.scenario --locustfile " in lines[2]
    assert re.fullmatch(rf"{cell} at  2  0 of 8 requests, warm-up 0 of 2, about \d+ (s|min) left", lines[3])
    assert re.fullmatch(rf"{cell} at  2     8 requests in +[\d.]+ s", lines[-3])
    assert lines[-2:] == ["analysing", "drawing the page"]
    assert out.startswith("SIMULATED")
    assert out.rstrip().endswith("report.html")
    assert "\x1b" not in out + err


def test_quiet_tells_the_result_alone(url, tmp_path):
    code, out, err = told(attach(url, tmp_path / "run", "--quiet", "--requests", "2"))
    assert (code, err) == (0, "")
    assert out.startswith("SIMULATED")


LIVE = (
    r"^vllm-sim_qwq-32b-awq_tp1, concurrency 2 \(level 2 of 2\)",
    r" [1-9]\d* of 40 requests  2 running  0 failed",
    r"^tokens/s [\d.,]+ \([\d.,]+ per user\)   TTFT [\d.]+ s   warm-up 2 of 2",
    r"^0:\d\d in this level, about \d+ (s|min) left",
)


def test_ctrl_c_leaves_the_terminal_as_it_was_and_names_the_command_that_continues(url, tmp_path):
    run = tmp_path / "run"
    argv = attach(url, run, "--requests", "40")
    argv[argv.index("2")] = "1,2"
    with Terminal(argv, columns=500) as terminal:
        assert terminal.until(lambda seen: all(any(re.search(one, line) for line in seen.lines) for one in LIVE))
        terminal.press(b"\x03")
        assert terminal.end() == 130
        assert not terminal.screen.cursor.hidden
        assert not any("concurrency 2 (" in line for line in terminal.lines), "the live lines are gone"
        (last,) = (line for line in terminal.lines if line.startswith("loadtest: interrupted; what was measured is in"))
    (cell,) = read.read_run(run).cells
    assert {one.outcome for one in cell.levels[1].requests} == {"ok", "cut_off"}
    first = records_of(run, "c01-r1")
    command = last.partition("continue with: loadtest ")[2].split()
    assert command == ["attach", "--resume", str(run)]
    code, _, err = told([*LOADTEST, *command])
    assert code == 0, err
    assert records_of(run, "c01-r1") == first, "a level on disk is not measured again"
    assert "an incomplete c02-r1 is kept as c02-r1.broken-1" in err
    resumed = read.read_run(run)
    assert resumed.manifest.complete is True
    assert [len(level.requests) for level in resumed.cells[0].levels] == [41, 42]


def records_of(run, level):
    return {path: path.read_bytes() for path in run.glob(f"cells/*/{level}/requests-*.jsonl")}


def test_a_rate_is_kept_by_the_clock(url, tmp_path):
    code, out, err = told(attach(url, tmp_path / "run", "--rate", "5", "--requests", "12", "--arrivals", "constant"))
    assert code == 0, err
    assert "Open loop: 5 requests/s (constant); concurrency is the most in flight" in out
    (level,) = read.read_run(tmp_path / "run").cells[0].levels
    due_s = sorted(one.scheduled_s for one in level.requests)
    assert [later - due_s[0] for later in due_s] == pytest.approx([n / 5 for n in range(12)])


def test_prompts_of_exact_lengths_are_fitted_by_a_few_requests_that_are_not_measured(url, tmp_path):
    workload = "synthetic:isl=400,osl=30,prefix=100,n=8"
    code, out, err = told(attach(url, tmp_path / "run", "--workload", workload, "--requests", "4"))
    assert code == 0, err
    assert "prompts fitted to the server's count by 3 short requests" in err
    (cell,) = read.read_run(tmp_path / "run").cells
    assert cell.engine.prompt_lengths.workload == f"{workload},template=13,words=abcdefgh"
    measured = [one for one in cell.levels[0].requests if one.phase == "measure"]
    assert [(one.prompt_tokens, one.completion_tokens) for one in measured] == [(400, 30)] * 4
    assert "had the lengths asked for" in (tmp_path / "run" / "report.html").read_text()
    code, out, err = told([*LOADTEST, "workload", "from-run", str(tmp_path / "run"), "-o", str(tmp_path / "again.jsonl")])
    assert (code, "4 prompts" in out) == (0, True), err
