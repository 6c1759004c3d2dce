"""The real servers on the CPU: asked, overloaded, killed, stopped, and started wrongly.

Two servers of each engine are shared: `narrow` until the test that kills it, then `stretched` until the test that stops it.
"""

import contextlib
import json
import os
import signal
import threading
import time

import httpx
import pytest

from loadtest.errors import EngineError
from loadtest.records import read
from loadtest.servers import preflight, probe, prometheus, supervisor
from loadtest.servers.salts import salting_of
from loadtest.servers.server import Server
from tests.engines.conftest import CHECKOUT, assert_counts_agree, ended, left_over, wait_until

pytestmark = pytest.mark.timeout(1800)
READY_S = 900.0
HIGH_PORT = 60123  # SGLang chooses further ports above its own
AIME = CHECKOUT.parent / "shared" / "data"
ONE_AT_A_TIME = {
    "vllm": ("--max-num-seqs", "1", "--max-num-queued-reqs", "1"),
    "sglang": ("--max-running-requests", "1", "--max-queued-requests", "1"),
}


@pytest.fixture(scope="module")
def narrow(engine, spec, tmp_path_factory):
    """A server that works on one request and lets one more wait."""
    with Server(spec(engine, *ONE_AT_A_TIME[engine]), tmp_path_factory.mktemp(engine) / "engine.log") as server:
        server.wait_ready(READY_S)
        yield server


@pytest.fixture(scope="module")
def stretched(engine, spec, tmp_path_factory):
    """A server whose context YaRN stretches; SGLang's on a high port."""
    port = HIGH_PORT if engine == "sglang" else preflight.free_port()
    launch = spec(engine, yarn=True, context_tokens=None, port=port)
    with Server(launch, tmp_path_factory.mktemp(engine) / "engine.log") as server:
        server.wait_ready(READY_S)
        yield server


# One client for all: made once, so that eight requests really leave together (each client of its own reads all CA roots).
CLIENT = httpx.Client(timeout=300, trust_env=False)


def ask(server, **fields):
    body = {"model": "tiny-qwq", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 4000, **fields}
    answer = CLIENT.post(f"{server.base_url}/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()


def counted(server, before, requests):
    """A reading of the counters in which so many more have finished: SGLang counts one a moment after its last byte."""
    now = prometheus.scrape(server.base_url)
    return now if (now.requests_finished_total or 0) - (before.requests_finished_total or 0) == requests else None


@contextlib.contextmanager
def metronome():
    """How many seconds too late a thread has woken that sleeps 10 ms at a time: those in which this machine stood still."""
    late_s, stop = [0.0], threading.Event()

    def tick():
        while not stop.is_set():
            began_s = time.monotonic()
            time.sleep(0.01)
            late_s[0] += time.monotonic() - began_s - 0.01

    threading.Thread(target=tick, daemon=True).start()
    yield lambda: late_s[0]
    stop.set()


def noticed_s(server):
    """Seconds until `died` speaks up, asked as often as a study asks it, and what it says."""
    with metronome() as late_s:
        began_s = time.monotonic()
        reason = wait_until(server.died, "a notice of its death", 60.0)
        return time.monotonic() - began_s - late_s(), reason


def test_a_server_tells_what_it_is(engine, narrow):
    info = probe.probe(narrow.base_url)
    assert (info.engine, info.model, info.max_model_len, info.simulated) == (engine, "tiny-qwq", 8192, False)
    assert info.version


def test_rounds_of_the_same_prompts_are_kept_apart_by_salts(narrow):
    assert salting_of(narrow.base_url, "tiny-qwq") == "kept"


def test_answers_and_counters_agree(engine, narrow):
    before = prometheus.scrape(narrow.base_url)
    answers = [ask(narrow, seed=number) for number in range(3)]
    after = wait_until(lambda: counted(narrow, before, 3), "the server's own count of three requests", 30.0)
    for answer in answers:
        message = answer["choices"][0]["message"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert message.get("reasoning") or message.get("reasoning_content")
        assert message["content"], "thinking is followed by an answer"
    for ours, theirs in (("prompt_tokens", "prompt_tokens_total"), ("completion_tokens", "generation_tokens_total")):
        told = sum(answer["usage"][ours] for answer in answers)
        assert getattr(after, theirs) - getattr(before, theirs) == told
    if engine == "vllm":  # SGLang's gauges keep their last value until it has something to do again
        assert after.running == 0
    assert probe.flush_cache(narrow.base_url, engine) is True
    assert narrow.died() is None


@pytest.mark.fault("servers", "A full queue, real engines")
def test_a_full_queue_is_an_error_of_the_server_not_an_answer(narrow, begin, tmp_path):
    """Eight streams to a server that takes two: it refuses with HTTP 200 and an error inside the stream, else with 503."""
    out = tmp_path / "run"
    options = ("--concurrency", 8, "--requests", 24, "--mode", "equal-work", "--max-tokens", 300, "--warmup-requests", 0)
    code, seen = ended(begin("attach", "--base-url", narrow.base_url, *options, "--out", out))
    assert narrow.died() is None
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


@pytest.mark.fault("processes", "A scheduler killed behind its front: noticed")
def test_a_killed_scheduler_is_noticed_within_two_seconds(narrow):
    """The last test of this server."""
    family = supervisor.descendants(narrow.pid)
    pid = next(pid for pid, title in narrow._vital.items() if "scheduler" in title or "EngineCore" in title)
    with httpx.stream(
        "POST",
        f"{narrow.base_url}/v1/chat/completions",
        json={"model": "tiny-qwq", "messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True},
        timeout=60,
    ) as stream:
        next(stream.iter_bytes())
        os.kill(pid, signal.SIGKILL)
        seconds, reason = noticed_s(narrow)
    narrow.stop()
    print(f"noticed after {seconds:.2f} s: {reason}")
    assert seconds < 2
    assert "died" in reason or "killed" in reason
    assert left_over(family) == []


def test_yarn_stretches_the_context(stretched):
    assert probe.probe(stretched.base_url).max_model_len == 131072


@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime(name, stretched, begin, tmp_path):
    """A model that speaks nonsense answers nothing rightly; what counts is that every problem is asked, ended and judged."""
    if not AIME.is_dir():
        pytest.skip("the AIME files are not beside this checkout (../shared/data)")
    out = tmp_path / "run"
    words = ("--workload", AIME / f"{name}.jsonl", "--concurrency", 8, "--requests", 30, "--max-tokens", 2048)
    code, seen = ended(begin("attach", "--base-url", stretched.base_url, *words, "--mode", "natural", "--out", out))
    assert code == 0, seen
    (cell,) = assert_counts_agree(out)
    (level,) = cell["levels"]
    assert level["n_requests"] == 30
    assert set(level["outcomes"]) <= {"ok", "truncated"}
    assert level["accuracy"]["n"] == level["outcomes"]["ok"] > 15


def test_a_stop_leaves_no_process(engine, stretched):
    """The last test of this server."""
    family = supervisor.descendants(stretched.pid)
    assert stretched.died() is None
    stretched.stop()
    assert left_over(family) == []
    if engine == "vllm":
        assert stretched.exit_code == 0
    else:
        assert stretched.exit_code in (0, -signal.SIGKILL), "SGLang ends itself with SIGKILL after draining"


@pytest.mark.parametrize(
    ("extra", "changes", "expected"),
    [
        (("--no-such-flag",), {}, "does not know an argument"),
        ((), {"model": "someone/never-downloaded"}, "the model was not found"),
    ],
)
def test_a_start_that_fails_is_explained(engine, extra, changes, expected, spec, tmp_path):
    server = Server(spec(engine, *extra, **changes), tmp_path / "engine.log")
    with server, pytest.raises(EngineError, match=expected) as caught:
        server.wait_ready(READY_S)
    assert "\n" not in str(caught.value)
