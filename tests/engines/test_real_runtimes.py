"""The real servers on the CPU: started, asked, read, broken on purpose, stopped."""

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from loadtest import engines, guard
from loadtest.errors import EngineError

pytestmark = pytest.mark.timeout(600)
READY_S = 300.0
BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"])


# One client for all: made once, so that eight requests really leave together (each client of its own reads all CA roots).
CLIENT = httpx.Client(timeout=300, trust_env=False)


def ask(server, **fields):
    body = {"model": "tiny-qwq", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 4000, **fields}
    answer = CLIENT.post(f"{server.base_url}/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()


def left_over(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def noticed_s(server, limit_s=30.0):
    """Seconds until `died` speaks up, and what it says."""
    began = time.monotonic()
    while (reason := server.died()) is None:
        assert time.monotonic() - began < limit_s, "nobody noticed"
        time.sleep(0.05)
    return time.monotonic() - began, reason


@BOTH
def test_a_whole_life(engine, spec, tmp_path):
    with engines.Server(spec(engine), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        family = guard.descendants(server.pid)
        info = engines.probe(server.base_url)
        assert (info.engine, info.model, info.max_model_len, info.simulated) == (engine, "tiny-qwq", 8192, False)
        assert info.version

        before = engines.scrape(server.base_url)
        answers = [ask(server, seed=number) for number in range(3)]
        time.sleep(1)  # SGLang counts a request a moment after its last byte
        after = engines.scrape(server.base_url)
        for answer in answers:
            message = answer["choices"][0]["message"]
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert message.get("reasoning") or message.get("reasoning_content")
            assert message["content"], "thinking is followed by an answer"
        for ours, theirs in (("prompt_tokens", "prompt_tokens_total"), ("completion_tokens", "generation_tokens_total")):
            told = sum(answer["usage"][ours] for answer in answers)
            assert getattr(after, theirs) - getattr(before, theirs) == told
        assert after.requests_finished_total - before.requests_finished_total == 3
        if engine == "vllm":  # SGLang's gauges keep their last value until it has something to do again
            assert after.running == 0
        assert engines.flush_cache(server.base_url, engine) is True
        assert server.died() is None
    assert left_over(family) == []
    if engine == "vllm":
        assert server.exit_code == 0
    else:
        assert server.exit_code in (0, -signal.SIGKILL), "SGLang ends itself with SIGKILL after draining"


@BOTH
def test_yarn_stretches_the_context(engine, spec, tmp_path):
    with engines.Server(spec(engine, yarn=True, context_tokens=None), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        assert engines.probe(server.base_url).max_model_len == 131072


def test_sglang_starts_on_a_high_port(spec, tmp_path):
    with engines.Server(spec("sglang", port=60123), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)


@BOTH
def test_a_killed_scheduler_is_noticed_within_two_seconds(engine, spec, tmp_path):
    with engines.Server(spec(engine), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        family = guard.descendants(server.pid)
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
    assert seconds < 2
    assert "died" in reason or "killed" in reason
    assert left_over(family) == []


@pytest.mark.parametrize(
    ("engine", "extra", "changes", "expected"),
    [
        ("vllm", ("--num-gpu-blocks-override", "10"), {}, "the KV cache is too small"),
        ("sglang", (), {"memory_fraction": 0.0001}, "the KV cache is too small"),
        ("vllm", ("--no-such-flag",), {}, "does not know an argument"),
        ("sglang", ("--no-such-flag",), {}, "does not know an argument"),
    ],
)
def test_a_start_that_fails_is_explained(engine, extra, changes, expected, spec, tmp_path):
    server = engines.Server(spec(engine, *extra, **changes), tmp_path / "engine.log")
    with server, pytest.raises(EngineError, match=expected) as caught:
        server.wait_ready(READY_S)
    assert "\n" not in str(caught.value)


# A KV cache so small that eight long answers do not fit together, and what makes each runtime admit them all the same.
CROWDED = {
    "vllm": ("--num-gpu-blocks-override", "40", "--max-model-len", "4096"),
    "sglang": ("--max-total-tokens", "4000", "--schedule-conservativeness", "0.01"),
}


@BOTH
def test_preemptions_are_counted(engine, spec, tmp_path):
    """Without a seed: vLLM 0.32 on a CPU dies when it preempts a seeded request ("CPU Generator does not use offset")."""
    with engines.Server(spec(engine, *CROWDED[engine], context_tokens=4096), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(server, max_tokens=1500, ignore_eos=True), range(8)))
        time.sleep(1)
        sample = engines.scrape(server.base_url)
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [1500] * 8
    assert sample.preemptions_total is not None
    assert sample.preemptions_total > 0


FULL = {
    "vllm": ("--max-num-seqs", "1", "--max-num-queued-reqs", "1"),
    "sglang": ("--max-running-requests", "1", "--max-queued-requests", "1"),
}


@BOTH
def test_a_full_queue_refuses_with_an_error_inside(engine, spec, tmp_path):
    """Mostly with HTTP 200 and the error in the stream; with 503 where the queue was full before the request was read."""
    body = {"model": "tiny-qwq", "messages": [{"role": "user", "content": "x"}], "max_tokens": 600, "ignore_eos": True}

    def stream(_):
        answer = CLIENT.post(f"{server.base_url}/v1/chat/completions", json={**body, "stream": True})
        return answer.status_code, '"error"' in answer.text

    with engines.Server(spec(engine, *FULL[engine]), tmp_path / "engine.log") as server:
        server.wait_ready(READY_S)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(stream, range(8)))
        assert server.died() is None
    refused = [status for status, has_error in answers if has_error]
    assert refused
    assert set(refused) <= {200, 503}
    assert (200, False) in answers
