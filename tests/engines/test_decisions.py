"""Decisions between real engines: one against itself, one that a proxy slows by a known share, and vLLM against SGLang.

Wide intervals are allowed, as these two cores also run the load generator; a wrong verdict is not. README.md says what was
seen.
"""

import subprocess
import sys
import time

import httpx
import pytest

from loadtest.commands.finish import read_metrics
from loadtest.servers.server import Server
from tests.engines.conftest import cell, ended
from tests.engines.stretching_proxy import stretching_proxy

pytestmark = pytest.mark.timeout(1800)
CONTEXT_TOKENS = 16384  # two tokens of the tiny model to a word: its prompts are twice as long as those of other models
# vLLM 0.32 on a CPU dies where it cuts a prompt with a seed into chunks: "CPU Generator does not use offset".
WHOLE_PROMPTS = ("--max-num-batched-tokens", "32768")
DUEL = ("--concurrency", 2, "--workload", "math:n=16,seed=7", "--budget", 0.03, "--plain")
TIMES = ("--port", "0", "--first", "0.2", "--gap", "0.02", "--tokens", "100")
OPEN = ("undecided", "too few samples", "not comparable", None)  # nothing is claimed
STUDY = f"""
name = "a decision on a CPU"
question = "Which engine is faster with the tiny model on a CPU?"
workload = "math:n=16,seed=7"
mode = "decision"
levels = [1, 2]
repeats = 2
natural_users = 2
natural_prompts = 16
min_requests = 8
requests_per_stream = 1
seed = 7
[contract]
max_tokens = 4096
context_tokens = {CONTEXT_TOKENS}
memory_fraction = 0.3
"""


@pytest.fixture(scope="module")
def port(spec, tmp_path_factory):
    """Of a vLLM server."""
    launch = spec("vllm", *WHOLE_PROMPTS, context_tokens=CONTEXT_TOKENS)
    with Server(launch, tmp_path_factory.mktemp("vllm") / "engine.log") as server:
        server.wait_ready(900.0)
        yield launch.port


@pytest.fixture
def duel(port, begin, tmp_path):
    """The decision between the server and itself, B stretched; both behind a proxy, so that nothing else differs."""

    def decide(stretch):
        with stretching_proxy(port, 1.0) as a, stretching_proxy(port, stretch) as b:
            code, seen = ended(begin("duel", a, b, *DUEL, "--out", tmp_path / "run"))
        assert code == 0 or "the budget is spent" in seen, seen
        return verdict_of(tmp_path / "run")

    return decide


def verdict_of(out):
    """The verdict of a duel; None where the run doubts itself, as on a starved machine: then it claims nothing."""
    figures = read_metrics(out / "metrics.json")
    return only_decision(out).verdict if figures.decisions or not figures.health.reasons else None


def only_decision(out):
    figures = read_metrics(out / "metrics.json")
    assert (out / "report.html").stat().st_size > 10_000
    [found] = figures.decisions
    print(f"{found.a} against {found.b}: {found.verdict}; {found.reason}; {found.ratio}; {found.n_a} and {found.n_b}")
    print(*(f"{one.name}: {one.status}: {one.reason}" for made in figures.cells for one in made.conditions), sep="\n")
    return found


@pytest.fixture
def known_times():
    """Port of a server that sends a token every 20 ms."""
    argv = [sys.executable, "-m", "loadtest.simulator.known_times", *TIMES]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        yield int(server.stdout.readline())
        server.terminate()


def arrivals_s(url):
    """When the events of one answer came: the role at once, then its tokens."""
    body = {"model": "known", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 100}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, trust_env=False) as answer:
        return [time.monotonic() for line in answer.iter_lines() if '"delta"' in line]


@pytest.mark.parametrize("stretch", [1.0, 1.1])
def test_the_proxy_slows_tokens_by_its_share(known_times, stretch):
    with stretching_proxy(known_times, stretch) as url:
        seen_s = arrivals_s(url)
    took_s = seen_s[-1] - seen_s[0]
    print(f"{len(seen_s)} events in {took_s:.3f} s")
    assert took_s == pytest.approx((0.2 + 99 * 0.02) * stretch, rel=0.03)


def test_an_engine_is_neither_faster_nor_slower_than_itself(duel):
    assert duel(1.0) in ("equal", *OPEN)


def test_an_engine_that_is_slowed_by_ten_percent_is_neither_the_faster_nor_equal(duel):
    assert duel(1.1) in ("faster", *OPEN), "of A, which is not slowed"


def test_a_decision_between_both_engines(begin, tmp_path):
    """Whatever it says, it says it of starts of both, with the conditions of its bursts and an interval or a reason."""
    cells = [cell("vllm", *WHOLE_PROMPTS), cell("sglang")]
    (tmp_path / "study.toml").write_text(STUDY + "\n".join(cells))
    code, seen = ended(begin("run", tmp_path / "study.toml", "--plain", "--out", tmp_path / "run"))
    assert code == 0, seen
    found = only_decision(tmp_path / "run")
    figures = read_metrics(tmp_path / "run" / "metrics.json")
    assert [made.engine for made in figures.cells] == ["sglang", "vllm"]
    for made in figures.cells:
        assert {"straight line", "own times", "no preemption"} <= {one.name for one in made.conditions}
    assert found.ratio.low is not None or found.reason
