"""What may never happen, whatever bytes come: each target takes some bytes and fails on a traceback or a broken promise.

`tests/fuzz/__main__.py` drives them by coverage (atheris), `tests/test_fuzz_targets.py` with a few hundred damaged seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from loadtest.client import http1, reply, sse
from loadtest.client.exchange import Exchange
from loadtest.clock import Clock
from loadtest.errors import UsageError
from loadtest.records.peers import catalogue, result
from loadtest.records.peers.request import Place, record_of
from loadtest.records.schema import RequestRecord, ServerSample
from loadtest.servers import prometheus
from loadtest.study import parse

DATA = Path(__file__).parent.parent / "data"
_PLACE = Place(run_id="r", cell="c", concurrency=1, repeat=1, worker="w", file="f.json", zero_s=0.0)
_CLOCK = Clock(origin_monotonic_s=0.0, anchor_unix_s=0.0)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_METRICS = b"""# HELP %b:num_requests_running Now.
%b:num_requests_running{engine="0",model_name="a \\" b"} 3.0 1700000000
%b:time_to_first_token_seconds_bucket{le="0.5"} 7
vllm:request_success_total{finished_reason="stop"} 5
sglang:num_running_reqs{tp_rank="0"} 7.0
sglang:num_aborted_requests_total 1
vllm:kv_cache_usage_perc 1e-3
"""
_STUDY = b"""name = "x"
workload = "math:n=8"
levels = [1, 2]
slo = ["ttft_s:p90<2"]
[[cells]]
engine = ["vllm"]
model = "qwq-32b"
tp = [1, 2]
gpu = "l20"
[prices]
gpu_hour = 1.5
[contract]
temperature = 0.6
"""


def cut(data):
    """Some bytes as a whole, and in reads whose lengths the first byte decides."""
    width, whole = (data[0] % 97 + 1, data[1:]) if data else (1, b"")
    return whole, [whole[i : i + width] for i in range(0, len(whole), width)]


def http(data):
    """However a response is cut into reads, it has one body and one end; what is not HTTP ends in one error."""
    whole, reads = cut(data)
    one, many = _response([whole]), _response(reads)
    assert (one is None) == (many is None)
    assert one is None or one == many


def _response(reads):
    """Status, body and end of a response, fed as the client feeds it; null where it is no HTTP."""
    response = http1.Response()
    body = b""
    try:
        for read in filter(None, reads):
            piece = response.whole_chunk(read)
            body += response.feed(read) if piece is None else piece
    except http1.NotHttp as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 300
        return None
    return response.status, body, response.done, response.content_type


def stream(data):
    """However a stream is cut, it means the same, and nothing that is in it raises."""
    whole, reads = cut(data)
    for status in (200, 500):
        one, many = _reply([whole], status), _reply(reads, status)
        assert replace(one, chunk_s=()) == replace(many, chunk_s=())
        assert len(one.chunk_s) == len(many.chunk_s)
        assert not one.chunk_tokens or sum(one.chunk_tokens) == one.completion_tokens
        assert all(0 <= call.first_chunk <= call.last_chunk < len(one.chunk_s) for call in one.tool_calls)
        assert one.error is None or len(one.error.message) < 2000
        assert msgspec.json.decode(msgspec.json.encode(one), type=reply.Reply) == one  # it can be kept, and read again


def _reply(reads, status):
    exchange = Exchange(body=b"", status=status, content_type="text/event-stream", sent=0.0)
    exchange.pieces = reads
    exchange.reads = [float(i) for i in range(len(reads))]
    return reply.read_reply(exchange, _CLOCK, opened=True)


def events(data):
    """Events are hardly more than came (an error may be named as one), and their times never run backwards."""
    whole, reads = cut(data)
    found = list(sse.events((float(i), read) for i, read in enumerate(reads)))
    assert sum(len(payload) for _, payload in found) <= len(whole) + 4000 * len(found)
    assert [at for at, _ in found] == sorted(at for at, _ in found)


def metrics(data):
    """A page of metrics gives fields of a sample, finite, or nothing."""
    values = prometheus.normalise(data.decode("utf-8", "replace"))
    sample = ServerSample(t_s=0.0, clock_anchor_unix_s=0.0, clock_speed=1.0, **values)
    assert len(msgspec.json.encode(sample)) < 5000
    assert msgspec.json.decode(msgspec.json.encode(sample), type=ServerSample) == sample


def studies(data):
    """A study is one, or one line says why not."""
    try:
        parse.parse_study(data.decode("utf-8", "replace"), "s.toml")
    except UsageError as error:
        assert str(error).startswith("s.toml:")


def results(data):
    """A result file of another tool gives records that can be kept, or one line says why not."""
    try:
        told = catalogue.told_by(result.file_of(Path("f.json"), data))
        for one in told.result.passes:
            for seq, request in enumerate(one.requests):
                record = record_of(request, seq, _PLACE)
                assert msgspec.json.decode(msgspec.json.encode(record), type=RequestRecord) == record
    except UsageError as error:
        assert str(error).startswith("f.json:")
        assert "\n" not in str(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "http": http,
    "stream": stream,
    "events": events,
    "metrics": metrics,
    "studies": studies,
    "results": results,
}


def seeds(target):
    """Whole and right inputs of a target, to be damaged."""
    streams = [path.read_bytes() for path in sorted((DATA / "streams").glob("*"))]
    streams.append(b'event: error\ndata: {"error":{"message":"busy","code":"503"}}\n\n')
    if target == "http":
        short = [_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(s[:200]), s[:200]) for s in streams[:3]) + b"0\r\nA: b\r\n\r\n"]
        sized = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        return [
            b"\x10" + data for data in (*short, sized, b"HTTP/1.0 200 OK\r\n\r\nabc", _HEAD + b"3;a=b\r\nabc\r\n0\r\n\r\n")
        ]
    if target in ("stream", "events"):
        return [b"\x20" + data[-3000:] for data in streams]
    if target == "metrics":
        return [_METRICS % (prefix, prefix, prefix) for prefix in (b"vllm", b"sglang")]
    if target == "results":
        return [path.read_bytes() for path in sorted((DATA / "peers").rglob("*.*")) if path.is_file()]
    return [_STUDY]
