"""The simulator's HTTP face: shapes key for key, streams, errors, faults, metrics against its own truth, ends in time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.client.exchange import Exchange
from loadtest.client.reply import read_reply
from loadtest.clock import Clock
from loadtest.simulator.__main__ import API_KEY_VARIABLE
from loadtest.simulator.core import faults
from loadtest.simulator.core.behaviour import BEHAVIOURS, behaviour
from loadtest.simulator.core.chat import Served, parse
from loadtest.simulator.core.engine import Engine, EngineConfig
from loadtest.simulator.http import routes, server, stream
from loadtest.simulator.http.connection import ServedConnection
from loadtest.simulator.http.event_loop import new_event_loop
from tests.simulator.replay import fast_forward

TRANSCRIPTS = Path(__file__).parents[3] / "shared" / "engines"
SPEED = 1000.0
LENGTHS = {"thinking_tokens": 4, "answer_tokens": 3}  # with the closing tag, with the end of text

Reply = tuple[int, dict[str, str], bytes]
Ask = Callable[..., Awaitable[Reply]]


def simulate(kind, test, **settings):
    """Run a test against a simulator in this process: a step takes 10 ms of simulated time."""
    context = settings.pop("context_tokens", 1024)
    config = EngineConfig(
        behaviour=behaviour(kind),
        kv_tokens=settings.pop("kv_tokens", 4096),
        max_running=settings.pop("max_running", None),
        max_queued=settings.pop("max_queued", None),
        speculation=settings.pop("speculation", None),
    )
    served = Served(
        behaviour=behaviour(kind), model="qwq-32b", context_tokens=context, kv_tokens=config.kv_tokens, length_scale=0.02
    )
    served = replace(
        served, separates=settings.pop("separates", True), counts_thinking=settings.pop("counts_thinking", True)
    )
    speed = settings.pop("clock_speed", SPEED)

    async def main():
        identity = stream.Identity(tp=1, gpu="l20", model="qwq-32b", clock_speed=speed)
        simulator = server.Simulator(Engine(config, lambda work: 0.01), served, identity, **settings)
        stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
        task = asyncio.create_task(routes.serve(simulator, 0, port.set_result, stop))
        number = await port

        async def ask(path, body=None, method=None, **headers):
            return await request(number, path, body, method, headers)

        try:
            await asyncio.wait_for(test(simulator, ask), 20)
        finally:
            stop.set()
            await task

    loop = new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def request(port, path, body, method, headers):
    """One request on a connection of its own; the body comes back unchunked, as far as it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"content-length: {len(data)}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)
    try:
        raw = await reader.read()
    except ConnectionResetError:
        return 0, {}, b"reset"
    finally:
        writer.close()
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    names = {k.lower(): v for k, v in (field.split(": ", 1) for field in fields)}
    return int(status.split()[1]), names, unchunk(rest) if "transfer-encoding" in names else rest


def unchunk(data):
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        out, data = out + data[:n], data[n + 2 :]
    return out


def chat(**extra):
    messages = [{"role": "user", "content": "Why?"}]
    return {"model": "qwq-32b", "messages": messages, "stream": True, "loadtest_sim": LENGTHS} | extra


WITH_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def events(body):
    """The JSON of every event; [DONE] as it is."""
    lines = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def shape(value):
    """Keys all the way down; the type of what is no object."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


# -- shapes ----------------------------------------------------------------------------------------------------------------


def split(text):
    head, _, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
    status = int(re.search(rb"HTTP(?:/1.1)? (\d+)", head)[1])
    body = body.strip()
    return status, events(body + b"\n\n") if body.startswith(b"data: ") else json.loads(body)


def one_of_each(chunks):
    """The shapes of a stream in order, repeats dropped."""
    shapes = [json.dumps(shape(chunk)) for chunk in chunks]
    return [one for i, one in enumerate(shapes) if i == 0 or shapes[i - 1] != one]


STREAMS = [
    ("vllm-sim", "vllm-0.32.0/stream_plain.txt", {}),
    ("vllm-sim", "vllm-0.32.0/stream_usage.txt", {"stream_options": {"include_usage": True}}),
    ("vllm-sim", "vllm-0.32.0/stream_usage_cont.txt", WITH_USAGE),
    ("sglang-sim", "sglang-0.5.23/stream_nousage.txt", {}),
    ("sglang-sim", "sglang-0.5.23/stream_continuous_usage.txt", WITH_USAGE),
]


@pytest.mark.parametrize(("kind", "transcript", "options"), STREAMS)
def test_stream_has_the_keys_of_the_real_one(kind, transcript, options):
    path = TRANSCRIPTS / transcript
    if not path.is_file():
        pytest.skip("the transcripts of the real runtimes are not here")
    _, expected = split(path.read_bytes())

    async def test(simulator, ask):
        limits = {"max_tokens": 4, "ignore_eos": True, "loadtest_sim": {"thinking_tokens": 9, "answer_tokens": 9}}
        status, headers, body = await ask("/v1/chat/completions", chat(**options, **limits))
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert one_of_each(events(body)) == one_of_each(expected)

    simulate(kind, test)


ANSWERS = [
    ("vllm-sim", "vllm-0.32.0/nonstream_think_end.txt", {"max_tokens": 3, "ignore_eos": True}),
    ("vllm-sim", "vllm-0.32.0/err_unknown_model.txt", {"model": "nope"}),
    ("vllm-sim", "vllm-0.32.0/err_maxtok_over_stream.txt", {"max_tokens": 100000}),
    ("vllm-sim", "vllm-0.32.0/err_prompt_too_long.txt", {"messages": [{"role": "user", "content": "long " * 4000}]}),
    ("vllm-sim", "vllm-0.32.0/err_temp.txt", {"temperature": -1}),
    ("vllm-sim", "vllm-0.32.0/err_bad_json.txt", b'{"model":'),
    ("sglang-sim", "sglang-0.5.23/max_completion_tokens.txt", {"max_completion_tokens": 3, "ignore_eos": True}),
    ("sglang-sim", "sglang-0.5.23/unknown_model.txt", {"model": "no-such", "max_tokens": 2, "ignore_eos": True}),
    ("sglang-sim", "sglang-0.5.23/toolong_prompt.txt", {"messages": [{"role": "user", "content": "long " * 4000}]}),
    ("sglang-sim", "sglang-0.5.23/toolong_sum.txt", {"max_tokens": 5000}),
    ("sglang-sim", "sglang-0.5.23/bad_temperature.txt", {"temperature": -1}),
    ("sglang-sim", "sglang-0.5.23/neg_max_tokens.txt", {"max_tokens": -1}),
    ("sglang-sim", "sglang-0.5.23/no_messages.txt", {"messages": None}),
    ("sglang-sim", "sglang-0.5.23/bad_json.txt", b'{"model":\n'),
]


@pytest.mark.parametrize(("kind", "transcript", "change"), ANSWERS)
def test_answer_has_the_keys_of_the_real_one(kind, transcript, change):
    path = TRANSCRIPTS / transcript
    if not path.is_file():
        pytest.skip("the transcripts of the real runtimes are not here")
    expected_status, expected = split(path.read_bytes())
    body = change if isinstance(change, bytes) else chat(loadtest_sim={"thinking_tokens": 9, "answer_tokens": 9}) | change

    async def test(simulator, ask):
        status, _, answer = await ask("/v1/chat/completions", body if isinstance(body, bytes) else body | {"stream": False})
        assert (status, shape(json.loads(answer))) == (expected_status, shape(expected))

    simulate(kind, test)


VLLM_CHOICE = {"index": "int", "logprobs": "NoneType", "token_ids": "NoneType"}


def test_vllm_like_chunks_key_by_key():
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat(**WITH_USAGE))
        role, *tokens, stop, usage, done = events(body)
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert role["usage"]["completion_tokens"] == 0
        assert [t["choices"][0]["delta"] for t in tokens] == [
            *({"reasoning": text} for text in (" let", " me", " try")),
            *({"content": text} for text in (" [simulated", " answer]")),
        ]
        assert shape(tokens[0]["choices"][0]) == {**VLLM_CHOICE, "delta": {"reasoning": "str"}, "finish_reason": "NoneType"}
        assert [t["usage"]["completion_tokens"] for t in tokens] == [
            1,
            2,
            3,
            5,
            6,
        ]  # the fourth closes the thinking, silently
        assert (stop["choices"][0]["delta"], stop["choices"][0]["finish_reason"]) == ({"content": ""}, "stop")
        details = {"completion_tokens_details": {"reasoning_tokens": 4}}
        prompt = usage["usage"]["prompt_tokens"]
        assert usage["usage"] == {"prompt_tokens": prompt, "total_tokens": prompt + 7, "completion_tokens": 7, **details}
        assert (usage["choices"], done) == ([], "[DONE]")

    simulate("vllm-sim", test)


def test_sglang_like_chunks_key_by_key():
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat(**WITH_USAGE))
        role, *tokens, stop, usage, done = events(body)
        assert role["choices"][0]["delta"] == {"reasoning_content": None, "role": "assistant", "content": ""}
        assert [t["choices"][0]["delta"] for t in tokens] == [
            *({"reasoning_content": text} for text in (" let", " me", " try")),
            *({"reasoning_content": None, "content": text} for text in (" [simulated", " answer]")),
        ]
        assert "usage" not in role
        assert "usage" not in stop
        assert stop["choices"][0]["delta"] == {"reasoning_content": None}
        assert usage["usage"]["reasoning_tokens"] == 4
        assert usage["usage"]["completion_tokens"] == 7
        assert done == "[DONE]"

    simulate("sglang-sim", test)


def text_of(body, *fields):
    deltas = [e["choices"][0]["delta"] for e in events(body) if e != "[DONE]" and e["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas for field in fields)


THOUGHT, ANSWER = " let me try", " [simulated answer]"


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_thinking_inline(kind):
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat())
        assert text_of(body, "content") == f"{THOUGHT}</think>{ANSWER}"
        assert text_of(body, "reasoning", "reasoning_content") == ""

    simulate(kind, test, separates=False)


def test_parser_that_counts_no_thinking():
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat(**WITH_USAGE))
        assert text_of(body, "reasoning") == THOUGHT
        assert {e["usage"]["completion_tokens_details"]["reasoning_tokens"] for e in events(body)[:-1]} == {0}

    simulate("vllm-sim", test, counts_thinking=False)


def test_separate_reasoning_and_stream_reasoning_of_a_request():
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat(separate_reasoning=False))
        assert text_of(body, "content") == f"{THOUGHT}</think>{ANSWER}"
        _, _, body = await ask("/v1/chat/completions", chat(stream_reasoning=False))
        deltas = [e["choices"][0]["delta"] for e in events(body)[:-1]]
        assert deltas[1] == {"reasoning_content": THOUGHT}
        assert text_of(body, "content") == ANSWER

    simulate("sglang-sim", test)


@pytest.mark.parametrize("kind", BEHAVIOURS)
@pytest.mark.parametrize("interval", [2, 3, 100])
def test_stream_interval_loses_no_text(kind, interval):
    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat())
        assert text_of(body, "reasoning", "reasoning_content") == THOUGHT
        assert text_of(body, "content") == ANSWER

    simulate(kind, test, stream_interval=interval)


@pytest.mark.parametrize("kind", BEHAVIOURS)
@pytest.mark.parametrize("lengths", [(4, 3), (1, 1), (0, 5), (2, 0), (5, 1), (40, 40)])
def test_whole_answer_equals_the_streamed_one(kind, lengths):
    forced = {"loadtest_sim": dict(zip(LENGTHS, lengths, strict=True)), "max_tokens": 60}

    async def test(simulator, ask):
        _, _, body = await ask("/v1/chat/completions", chat(**forced, **WITH_USAGE))
        _, _, whole = await ask("/v1/chat/completions", chat(**forced) | {"stream": False})
        message = json.loads(whole)["choices"][0]["message"]
        assert (message["content"] or "") == text_of(body, "content")
        thinking = message.get("reasoning", message.get("reasoning_content"))
        assert (thinking or "") == text_of(body, "reasoning", "reasoning_content")
        assert json.loads(whole)["usage"]["completion_tokens"] == events(body)[-2]["usage"]["completion_tokens"]

    simulate(kind, test)


# -- limits, keys, endpoints -----------------------------------------------------------------------------------------------


def test_vllm_like_clamps_silently():
    async def test(simulator, ask):
        body = chat(max_tokens=1020, ignore_eos=True, stream_options={"include_usage": True})
        _, _, answer = await ask("/v1/chat/completions", body)
        assert events(answer)[-2]["usage"]["total_tokens"] == 1024

    simulate("vllm-sim", test, clock_speed=20000.0)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_full_queue(kind):
    async def test(simulator, ask):
        long = chat(max_tokens=500, ignore_eos=True)
        running = [asyncio.create_task(ask("/v1/chat/completions", long))]
        while not simulator.engine.running:
            await asyncio.sleep(0.001)
        running.append(asyncio.create_task(ask("/v1/chat/completions", long)))
        while not simulator.engine.waiting:
            await asyncio.sleep(0.001)
        status, _, body = await ask("/v1/chat/completions", chat(stream=False))
        assert status == 503
        assert "queue is full" in body.decode()
        status, _, body = await ask("/v1/chat/completions", chat())
        error, done = events(body)
        assert (status, error["error"]["code"], done) == (200, 503, "[DONE]")
        assert [status for status, _, _ in await asyncio.gather(*running)] == [200, 200]

    simulate(kind, test, max_running=1, max_queued=1, clock_speed=25.0)


@pytest.mark.parametrize(("kind", "closed"), [("vllm-sim", "/v1/models"), ("sglang-sim", "/server_info")])
def test_api_key(kind, closed):
    async def test(simulator, ask):
        assert await statuses(ask, closed, "/v1/models", "/health", "/metrics") == [401, 401, 200, 200]
        status, _, body = await ask("/v1/chat/completions", chat(), authorization="Bearer wrong")
        assert (status, json.loads(body)) == (401, {"error": "Unauthorized"})
        status, _, _ = await ask("/v1/chat/completions", chat(), authorization="Bearer right")
        assert status == 200

    simulate(kind, test, api_key="right")


async def statuses(ask, *paths):
    return [(await ask(path))[0] for path in paths]


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_endpoints_and_identity(kind):
    async def test(simulator, ask):
        _, _, body = await ask("/version")
        identity = {"simulated": True, "engine": kind, "clock_speed": SPEED, "model": "qwq-32b", "tp": 1, "gpu": "l20"}
        assert json.loads(body) == identity | {"version": behaviour(kind).version}
        _, _, body = await ask("/v1/models")
        assert [(row["id"], row["max_model_len"]) for row in json.loads(body)["data"]] == [("qwq-32b", 1024)]
        only_sglang = 200 if kind == "sglang-sim" else 404
        assert await statuses(ask, "/health", "/nothing", "/server_info", "/health_generate") == [
            *(200, 404, only_sglang, only_sglang)
        ]
        if kind == "sglang-sim":
            assert simulator.engine.totals.generation_tokens == 1
            assert (await ask("/flush_cache", b""))[0] == 200

    simulate(kind, test)


# -- truth, metrics, aborts ------------------------------------------------------------------------------------------------


def series(page):
    """Sum of each series over its labels, buckets left out."""
    sums: dict[str, float] = {}
    for line in page.decode().splitlines():
        if not line.startswith("#") and "_bucket" not in line:
            name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
            sums[name] = sums.get(name, 0.0) + value
    return sums


def test_the_truth_of_a_large_run_arrives_whole_at_a_client_that_reads_slowly():
    async def test(simulator, ask):
        simulator.truth.extend({"request_id": "x" * 1_000_000} for _ in range(20))
        _, _, body = await ask("/loadtest/truth")
        assert len(json.loads(body)) == 20

    simulate("vllm-sim", test)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_metrics_recover_the_truth(kind):
    async def test(simulator, ask):
        ids = [f"request-{i}" for i in range(6)]
        bodies = [chat(loadtest_sim={"thinking_tokens": 5 + i, "answer_tokens": 4}) for i in range(6)]
        await asyncio.gather(*(ask("/v1/chat/completions", b, x_request_id=i) for b, i in zip(bodies, ids, strict=True)))
        _, _, body = await ask("/loadtest/truth")
        truth = {row["request_id"]: row for row in json.loads(body)}
        assert sorted(truth) == ids
        assert [truth[i]["completion_tokens"] for i in ids] == [9, 10, 11, 12, 13, 14]
        assert [truth[i]["reasoning_tokens"] for i in ids] == [5, 6, 7, 8, 9, 10]
        for row in truth.values():
            assert row["arrival_s"] < row["first_token_s"] < row["first_answer_s"] < row["finished_s"]
            assert row["first_answer_s"] - row["first_token_s"] >= row["reasoning_tokens"] * 0.01 - 1e-9
        _, _, page = await ask("/metrics")
        seen = series(page)
        prefix = "vllm:" if kind == "vllm-sim" else "sglang:"
        rows = list(truth.values())
        assert seen[prefix + "generation_tokens_total"] == sum(row["completion_tokens"] for row in rows)
        assert seen[prefix + "prompt_tokens_total"] == sum(row["prompt_tokens"] for row in rows)
        assert seen[prefix + "time_to_first_token_seconds_count"] == 6
        assert seen[prefix + "time_to_first_token_seconds_sum"] == pytest.approx(
            sum(row["first_token_s"] - row["arrival_s"] for row in rows)
        )
        assert seen[prefix + "e2e_request_latency_seconds_sum"] == pytest.approx(
            sum(row["finished_s"] - row["arrival_s"] for row in rows)
        )
        assert seen[prefix + "inter_token_latency_seconds_count"] == sum(row["completion_tokens"] - 1 for row in rows)
        assert seen[prefix + "inter_token_latency_seconds_sum"] == pytest.approx(
            sum(row["finished_s"] - row["first_token_s"] for row in rows)
        )
        assert seen["loadtest_sim:late_seconds_max"] >= 0
        assert seen["loadtest_sim:sent_tokens_total"] == seen[prefix + "generation_tokens_total"]

    simulate(kind, test)


REAL_METRICS = [
    ("vllm-sim", "vllm-0.32.0/metrics.txt", "vllm:"),
    ("sglang-sim", "sglang-0.5.23/metrics_after_traffic.txt", "sglang:"),
]


@pytest.mark.parametrize(("kind", "transcript", "prefix"), REAL_METRICS)
def test_metrics_use_names_labels_and_buckets_of_the_real_ones(kind, transcript, prefix):
    path = TRANSCRIPTS / transcript
    if not path.is_file():
        pytest.skip("the transcripts of the real runtimes are not here")

    def names(text):
        found = set()
        for name, labels in re.findall(rf"^({prefix}\w+)\{{(.*)\}} ", text, re.MULTILINE):
            keys = re.findall(r'(\w+)="([^"]*)"', labels)
            found.add((name, *sorted(f"{k}={v}" if k == "le" else k for k, v in keys if k != "pid")))
        return found

    async def test(simulator, ask):
        await ask("/v1/chat/completions", chat())
        _, _, page = await ask("/metrics")
        ours = {one for one in names(page.decode()) if "cache_config_info" not in one[0]}
        assert len(ours) > 60
        assert ours - names(path.read_text()) == set()

    simulate(kind, test)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_disconnect_aborts(kind):
    async def test(simulator, ask):
        task = asyncio.create_task(ask("/v1/chat/completions", chat(max_tokens=900, ignore_eos=True)))
        while not simulator.engine.totals.generation_tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while simulator.engine.sequences:
            await asyncio.sleep(0.001)
        assert simulator.engine.cache.used_tokens() == 0
        assert simulator.seen.finished["abort"] == 1
        assert not simulator.truth
        page = series((await ask("/metrics"))[2])
        counted = page.get("vllm:generation_tokens_total", page.get("sglang:generation_tokens_total", 0.0))
        assert counted == (simulator.engine.totals.generation_tokens if kind == "vllm-sim" else 0)

    simulate(kind, test, clock_speed=10.0)


def test_two_requests_on_one_connection():
    async def test(simulator, ask):
        endpoints = routes.Face(simulator)
        listener = await asyncio.get_running_loop().create_server(
            lambda: ServedConnection(simulator.connections, endpoints.answer), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        body = json.dumps(chat()).encode()
        one = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        writer.write(one + one + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        raw = await reader.read()
        assert raw.count(b"HTTP/1.1 200 OK") == 3
        assert raw.count(b"data: [DONE]") == 2
        writer.close()
        listener.close()

    simulate("sglang-sim", test)


def test_large_body_after_expect_continue():
    async def test(simulator, ask):
        endpoints = routes.Face(simulator)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: ServedConnection(simulator.connections, endpoints.answer), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        body = json.dumps(chat(padding="x" * 2_000_000)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        raw = await reader.read()
        assert raw.startswith(b"HTTP/1.1 200 OK")
        assert b"data: [DONE]" in raw
        writer.close()
        listener.close()

    simulate("vllm-sim", test)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_replay_tells_the_same_timeline_as_the_server(kind):
    """One request after another: the transport then adds nothing to what the engine plans."""
    bodies = [
        chat(messages=[{"role": "user", "content": f"problem {i} " * (1 + 30 * i)}], loadtest_sim={}) for i in range(4)
    ]

    async def test(simulator, ask):
        for body in bodies:
            await ask("/v1/chat/completions", body)
        chats = [parse(json.dumps(body).encode(), simulator.served) for body in bodies]
        timelines = list(fast_forward(simulator.engine.config, lambda work: 0.01, chats, 1))
        assert len(simulator.truth) == 4
        for row, timeline in zip(simulator.truth, timelines, strict=True):
            assert row["completion_tokens"] == timeline.completion_tokens
            assert row["first_token_s"] - row["arrival_s"] == pytest.approx(timeline.chunk_s[0] - timeline.arrival_s)
            assert row["finished_s"] - row["arrival_s"] == pytest.approx(timeline.ended_s - timeline.arrival_s)
            assert timeline.first_answer_chunk is not None
            first_answer_s = timeline.chunk_s[timeline.first_answer_chunk]
            assert row["first_answer_s"] - row["arrival_s"] == pytest.approx(first_answer_s - timeline.arrival_s)

    simulate(kind, test)


def test_not_http_is_answered_and_closed():
    async def test(simulator, ask):
        status, _, _ = await ask("/x\x01y")
        assert status == 400
        status, _, _ = await ask("/v1/chat/completions", b"\xff\xfe[1,2")
        assert status == 400
        status, _, _ = await ask("/v1/chat/completions", b"[" * 200_000)
        assert status == 400

    simulate("vllm-sim", test)


# -- faults ----------------------------------------------------------------------------------------------------------------


def faulty(kind, fault, check):
    async def test(simulator, ask):
        check(await ask("/v1/chat/completions", chat(loadtest_sim={**LENGTHS, "fault": fault}, **WITH_USAGE)))
        assert not simulator.engine.sequences
        status, _, body = await ask("/v1/chat/completions", chat())
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)

    simulate(kind, test)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_fault_garbage_invalid_utf8_and_no_done(kind):
    faulty(kind, "garbage:2", lambda reply: expect(b"data: {this is not JSON\n\n" in reply[2]))
    faulty(kind, "invalid-utf8:2", lambda reply: expect(b"\xff\xfe" in reply[2] and reply[2].endswith(b"[DONE]\n\n")))
    faulty(kind, "no-done", lambda reply: expect(b'"usage"' in reply[2] and b"[DONE]" not in reply[2]))
    faulty(kind, "lying-usage", lambda reply: expect(events(reply[2])[-2]["usage"]["completion_tokens"] == 14))
    faulty(kind, "early-role", lambda reply: expect("role" in events(reply[2])[0]["choices"][0]["delta"]))
    faulty(kind, "engine-error:3", lambda reply: expect(events(reply[2])[-2]["error"]["code"] == 500))
    faulty(kind, "reset:2", lambda reply: expect(reply[2] == b"reset" or b"[DONE]" not in reply[2]))


def expect(truth):
    assert truth


def test_fault_stall_keeps_the_connection_open_and_frees_the_engine():
    async def test(simulator, ask):
        task = asyncio.create_task(ask("/v1/chat/completions", chat()))
        while simulator.engine.totals.generation_tokens < 2 or simulator.engine.sequences:
            await asyncio.sleep(0.001)
        assert not task.done()
        assert len(simulator.connections) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    simulate("vllm-sim", test, faults=(faults.parse("stall:2"),))


def test_fault_endless_goes_past_every_limit():
    async def test(simulator, ask):
        task = asyncio.create_task(ask("/v1/chat/completions", chat(max_tokens=5)))
        while simulator.engine.totals.generation_tokens < 1500:
            await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    simulate("sglang-sim", test, faults=(faults.parse("endless"),), clock_speed=100_000.0, kv_tokens=1200)


def test_fault_every_kth_request():
    async def test(simulator, ask):
        bodies = [(await ask("/v1/chat/completions", chat()))[2] for _ in range(6)]
        assert [b"[DONE]" in body for body in bodies] == [True, True, False, True, True, False]

    simulate("vllm-sim", test, faults=(faults.parse("no-done"),), fault_every=3)


# -- the process -----------------------------------------------------------------------------------------------------------


def start(*argv, **environment):
    command = [
        sys.executable,
        "-m",
        "loadtest.simulator",
        "--engine",
        "sglang-sim",
        "--model",
        "qwq-32b-awq",
        "--port",
        "0",
        *argv,
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def port_of(process):
    assert process.stderr is not None
    line = process.stderr.readline()
    match = re.search(r"ready: .*http://127\.0\.0\.1:(\d+),", line)
    assert match, line
    return int(match[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_stops_in_time_with_a_stream_open(number):
    with start("--clock-speed", "20", **{API_KEY_VARIABLE: "right"}) as process:
        port = port_of(process)
        with socket.create_connection(("127.0.0.1", port)) as client:
            body = json.dumps(chat(model="x", max_tokens=5000, ignore_eos=True)).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer right\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
            process.send_signal(number)
            assert process.wait(timeout=5) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_process_dies_at_a_token():
    with start("--fault", "die:3", "--clock-speed", "100") as process:
        with socket.create_connection(("127.0.0.1", port_of(process))) as client:
            body = json.dumps(chat()).encode()
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            received = b""
            while data := client.recv(4096):
                received += data
        assert process.wait(timeout=5) == 1
    assert len(re.findall(rb"data: ", received)) == 4  # the role and three tokens


REFUSALS = [
    (("--model", "qwq-32b", "--gpu", "l20", "--tp", "1"), 1, "torch.OutOfMemoryError: CUDA out of memory"),
    (("--fault", "oom"), 1, "torch.OutOfMemoryError: CUDA out of memory"),
    (("--engine", "vllm-sim", "--kv-tokens", "8192"), 1, "To serve at least one request"),
    (("--fault", "nonsense"), 2, "fault: expected one of"),
    (("--clock-speed", "-1"), 2, "--clock-speed: expected a number above 0"),
    (("--gpu", "no-such-card"), 2, "no-such-card"),
]


@pytest.mark.parametrize(("argv", "code", "message"), REFUSALS)
def test_refusals_at_the_start(argv, code, message):
    with start(*argv) as process:
        assert process.stderr is not None
        text = process.stderr.read()
        assert (process.wait(timeout=5), len(text.splitlines())) == (code, 1)
    assert message in text


def test_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken, start("--port", str(taken.getsockname()[1])) as process:
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.wait(timeout=5) == 1
    assert "cannot listen" in text
    assert len(text.splitlines()) == 1


OTHERS = {
    "completions": ("/v1/completions", {"prompt": "Why?", "max_tokens": 50}),
    "responses": ("/v1/responses", {"input": [{"role": "user", "content": "Why?"}], "max_output_tokens": 50}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 50}),
}


@pytest.mark.parametrize("kind", BEHAVIOURS)
@pytest.mark.parametrize("api", OTHERS)
def test_the_other_endpoints_are_streamed_as_our_client_reads_them(api, kind):
    async def test(simulator, ask):
        path, body = OTHERS[api]
        _, _, content = await ask(
            path, {"stream": True, "stream_options": {"include_usage": True}, "loadtest_sim": LENGTHS, **body}
        )
        exchange = Exchange(body=b"", status=200, content_type="text/event-stream", sent=0.0)
        exchange.reads, exchange.pieces = [1.0], [content]
        got = read_reply(exchange, Clock(origin_monotonic_s=0.0, anchor_unix_s=0.0, speed=1.0), opened=True, api=api)
        assert (got.outcome, got.completion_tokens, got.token_count_source) == ("ok", 7, "server")
        assert got.answer == "[simulated answer]"
        assert got.thinking_field == ("inline" if api == "completions" else "reasoning")
        status, _, whole = await ask(path, {"loadtest_sim": LENGTHS, **body})
        usage = json.loads(whole)["usage"]
        assert status == 200
        assert (
            usage.get("prompt_tokens", usage.get("input_tokens")) + usage.get("cache_read_input_tokens", 0)
            == got.prompt_tokens
        )

    simulate(kind, test)
