"""The real servers on the CPU: started, asked, read, broken on purpose, stopped."""

import contextlib
import os
import signal
import threading
import time

import httpx
import pytest

from loadtest.errors import EngineError
from loadtest.servers import probe, prometheus, supervisor
from loadtest.servers.server import Server
from tests.engines.conftest import left_over, wait_until

pytestmark = pytest.mark.timeout(1800)
READY_S = 900.0
BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"])


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


@BOTH
def test_a_whole_life(engine, spec, tmp_path):
    with Server(spec(engine), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        family = supervisor.descendants(server.pid)
        info = probe.probe(server.base_url)
        assert (info.engine, info.model, info.max_model_len, info.simulated) == (engine, "tiny-qwq", 8192, False)
        assert info.version

        before = prometheus.scrape(server.base_url)
        answers = [ask(server, seed=number) for number in range(3)]
        after = wait_until(lambda: counted(server, before, 3), "the server's own count of three requests", 30.0)
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
        assert probe.flush_cache(server.base_url, engine) is True
        assert server.died() is None
    assert left_over(family) == []
    if engine == "vllm":
        assert server.exit_code == 0
    else:
        assert server.exit_code in (0, -signal.SIGKILL), "SGLang ends itself with SIGKILL after draining"


@BOTH
def test_yarn_stretches_the_context(engine, spec, tmp_path):
    with Server(spec(engine, yarn=True, context_tokens=None), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        assert probe.probe(server.base_url).max_model_len == 131072


def test_sglang_starts_on_a_high_port(spec, tmp_path):
    with Server(spec("sglang", port=60123), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)


@BOTH
def test_a_killed_scheduler_is_noticed_within_two_seconds(engine, spec, tmp_path):
    with Server(spec(engine), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        family = supervisor.descendants(server.pid)
        pid = next(pid for pid, title in server._vital.items() if "scheduler" in title or "EngineCore" in title)
        with httpx.stream(
            "POST",
            f"{server.base_url}/v1/chat/completions",
            json={"model": "tiny-qwq", "messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True},
            timeout=60,
        ) as stream:
            next(stream.iter_bytes())
            os.kill(pid, signal.SIGKILL)
            seconds, reason = noticed_s(server)
    print(f"noticed after {seconds:.2f} s: {reason}")
    assert seconds < 2
    assert "died" in reason or "killed" in reason
    assert left_over(family) == []


@pytest.mark.parametrize(
    ("engine", "extra", "changes", "expected"),
    [
        ("vllm", ("--no-such-flag",), {}, "does not know an argument"),
        ("sglang", ("--no-such-flag",), {}, "does not know an argument"),
        ("vllm", (), {"model": "someone/never-downloaded"}, "the model was not found"),
        ("sglang", (), {"model": "someone/never-downloaded"}, "the model was not found"),
    ],
)
def test_a_start_that_fails_is_explained(engine, extra, changes, expected, spec, tmp_path):
    server = Server(spec(engine, *extra, **changes), tmp_path / "engine.log")
    with server, pytest.raises(EngineError, match=expected) as caught:
        server.wait_ready(READY_S)
    assert "\n" not in str(caught.value)
