"""Counters of either engine under one set of names."""

import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clock import Clock
from loadtest.records.schema import ServerSample
from loadtest.servers import prometheus
from tests.support.fake_server import serving

VLLM = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwq-32b"} 3.0
vllm:num_requests_running{engine="1",model_name="qwq-32b"} 2.0
vllm:num_requests_waiting{engine="0",model_name="qwq-32b"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="qwq-32b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="qwq-32b"} 0.75
vllm:prompt_tokens_total{engine="0",model_name="qwq-32b"} 12802.0
vllm:prompt_tokens_created{engine="0",model_name="qwq-32b"} 1.7953765794036183e+09
vllm:generation_tokens_total{engine="0",model_name="qwq-32b"} 27362.0
vllm:prefix_cache_queries_total{engine="0",model_name="qwq-32b"} 12802.0
vllm:prefix_cache_hits_total{engine="0",model_name="qwq-32b"} 640.0
vllm:num_preemptions_total{engine="0",model_name="qwq-32b"} 2.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="qwq-32b"} 1.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="qwq-32b"} 156.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="qwq-32b"} 4.0
vllm:request_success_total{engine="0",finished_reason="error",model_name="qwq-32b"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="qwq-32b"} 10.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="qwq-32b"} 150.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="qwq-32b"} 157.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="qwq-32b"} 6.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="qwq-32b"} 157.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="qwq-32b"} 99.5
vllm:e2e_request_latency_seconds_count{engine="0",model_name="qwq-32b"} 157.0
"""
SGLANG = """
sglang:num_running_reqs{engine_type="unified",model_name="tiny",tp_rank="0"} 7.0
sglang:num_queue_reqs{engine_type="unified",model_name="tiny",tp_rank="0"} 0.0
sglang:token_usage{engine_type="unified",model_name="tiny",tp_rank="0"} 0.02
sglang:prompt_tokens_total{engine_type="unified",model_name="tiny"} 15434.0
sglang:generation_tokens_total{engine_type="unified",model_name="tiny"} 6019.0
sglang:cached_tokens_total{cache_source="device",model_name="tiny"} 8000.0
sglang:cached_tokens_total{cache_source="host",model_name="tiny"} 68.0
sglang:num_requests_total{engine_type="unified",model_name="tiny"} 108.0
sglang:num_aborted_requests_total{engine_type="unified",model_name="tiny"} 8.0
sglang:time_to_first_token_seconds_sum{model_name="tiny"} 6.0
sglang:time_to_first_token_seconds_count{model_name="tiny"} 108.0
"""


def test_vllm_by_hand():
    assert prometheus.normalise(VLLM) == {
        "running": 5.0,
        "waiting": 1.0,
        "kv_usage": 0.5,
        "prompt_tokens_total": 12802.0,
        "generation_tokens_total": 27362.0,
        "prefix_cache_hit_tokens_total": 640.0,
        "prefix_cache_query_tokens_total": 12802.0,
        "preemptions_total": 2.0,
        "requests_finished_total": 157.0,
        "requests_aborted_total": 9.0,
        "ttft_sum_s": 6.5,
        "ttft_count": 157.0,
        "e2e_sum_s": 99.5,
        "e2e_count": 157.0,
        "ttft_buckets": ((0.1, 10.0), (0.5, 150.0)),
    }


def test_sglang_by_hand_with_absent_counters_at_zero():
    values = prometheus.normalise(SGLANG)
    assert values["running"] == 7.0
    assert values["prefix_cache_hit_tokens_total"] == 8068.0
    assert values["prefix_cache_query_tokens_total"] == 15434.0
    assert values["preemptions_total"] == 0.0
    assert values["requests_finished_total"] == 100.0, "it counts the aborted ones as finished too"
    assert values["requests_aborted_total"] == 8.0


def test_a_missing_gauge_is_unknown_not_zero():
    assert "running" not in prometheus.normalise("sglang:token_usage 0.5")
    assert "preemptions_total" not in prometheus.normalise("vllm:num_requests_running 1")


def test_names_are_those_of_the_sample():

    known = set(ServerSample.__dataclass_fields__)
    assert set(prometheus.normalise(VLLM)) | set(prometheus.normalise(SGLANG)) <= known


@pytest.mark.parametrize("text", ["", "# only a comment", "python_info 1.0", "<html>busy</html>", "vllm:x NaN\nvllm:y +Inf"])
def test_what_is_of_neither_engine_tells_nothing(text):
    assert prometheus.normalise(text) == {}


def test_a_reading_is_stamped_by_the_clock_it_is_given():
    clock = Clock(origin_monotonic_s=0.0, anchor_unix_s=123.0, speed=20.0)
    with serving({"/metrics": VLLM}) as server:
        sample = prometheus.scrape(server.url, clock)
    assert (sample.running, sample.error, sample.clock_anchor_unix_s, sample.clock_speed) == (5.0, None, 123.0, 20.0)
    assert 0 < sample.t_s <= clock.now_s()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [({}, "HTTP 404"), ({"/metrics": (503, "", {})}, "HTTP 503"), ({"/metrics": "python_info 1"}, "no series")],
)
def test_a_failed_reading_says_why_and_raises_nothing(answers, expected):
    with serving(answers) as server:
        sample = prometheus.scrape(server.url)
    assert expected in (sample.error or "")
    assert sample.running is None
    assert prometheus.scrape(server.url).error is not None, "and so does a server that has gone"


@given(st.text())
def test_any_text_is_read_without_a_traceback(text):
    values = prometheus.normalise(f"{text}\nvllm:num_requests_running{text} 3\nvllm:num_requests_waiting 2")
    assert set(values) <= set(ServerSample.__dataclass_fields__)


MANY = "".join(f'vllm:num_requests_running{{rank="{n}"}} 1.0\nvllm:other_{n} {n}\n' for n in range(10_000))
HOSTILE = {
    "ten thousand series": (MANY, {"running": 10_000.0}),
    "not numbers": (VLLM.replace(" 3.0", " NaN").replace(" 27362.0", " +Inf"), {"running": 2.0}),
    "a gigantic label": (VLLM + f'vllm:num_requests_running{{a="{"x" * 100_000}"}} 9\n', {"running": 5.0}),
    "a gigantic blank": (VLLM + "vllm:num_requests_running" + " " * 100_000 + "\n", {"running": 5.0}),
    "an unfinished label": (VLLM + 'vllm:num_requests_running{a="\n', {"running": 5.0}),
    "a thousand buckets": (
        VLLM + "".join(f'vllm:time_to_first_token_seconds_bucket{{le="{n}.5"}} 1\n' for n in range(1000)),
        {"running": 5.0},
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault("servers", "Metrics with NaN, ten thousand series, labels of 100 kB: under 3 kB per sample")
def test_hostile_metrics_are_read_soon_and_keep_little(name):
    text, expected = HOSTILE[name]
    with serving({"/metrics": (200, text, {"content-type": "image/png"})}) as server:
        sample = prometheus.scrape(server.url)
    assert sample.error is None
    assert {key: getattr(sample, key) for key in expected} == expected
    assert len(msgspec.json.encode(sample)) < 3000


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, "vllm:num_requests_running 1\n" * 400_000, {}), "more than 8 MB"),
        ((200, VLLM, {"content-encoding": "gzip"}), "compressed"),
        ((200, VLLM, {"content-length": "100000", "connection": "close"}), "RemoteProtocolError"),
        ((302, "", {"location": "http://127.0.0.1:1/"}), "HTTP 302"),
    ],
)
def test_a_reply_that_is_none_costs_one_reading_and_no_memory(answer, expected):
    with serving({"/metrics": answer}) as server:
        assert expected in (prometheus.scrape(server.url).error or "")


def read_samples(directory):
    lines = (directory / "server_metrics.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ServerSample) for line in lines]


def test_scraping_reads_before_and_after_even_when_stopped_at_once(tmp_path):
    stop = threading.Event()
    with serving({"/metrics": VLLM}) as server:
        thread = threading.Thread(
            target=prometheus.scrape_forever, args=([server.url], tmp_path, Clock.start(), stop), kwargs={"interval_s": 60}
        )
        thread.start()
        while not server.asked:
            thread.join(0.005)
        stop.set()
        thread.join(10)
    samples = read_samples(tmp_path)
    assert [sample.running for sample in samples] == [5.0, 5.0]
    assert samples[0].t_s <= samples[1].t_s


def test_a_server_without_metrics_is_asked_once(tmp_path):
    with serving({}) as server:
        prometheus.scrape_forever([server.url], tmp_path, Clock.start(), threading.Event(), interval_s=0.0)
    assert len(server.asked) == 1
    assert [sample.error for sample in read_samples(tmp_path)] == ["/metrics: HTTP 404"]


def test_a_server_in_trouble_is_asked_again(tmp_path):
    stop = threading.Event()
    with serving({"/metrics": (503, "", {})}) as server:
        thread = threading.Thread(
            target=prometheus.scrape_forever,
            args=([server.url], tmp_path, Clock.start(), stop),
            kwargs={"interval_s": 0.01},
        )
        thread.start()
        while len(server.asked) < 3:
            thread.join(0.005)
        server.answers["/metrics"] = (200, VLLM, {})
        stop.set()
        thread.join(10)
    samples = read_samples(tmp_path)
    assert samples[0].error == "/metrics: HTTP 503"
    assert samples[-1].running == 5.0


@pytest.mark.fault("servers", "Metrics whose sums overflow: unknown")
def test_sums_that_overflow_are_unknown_and_the_sample_can_be_read_again():
    twice = "\n".join(
        line
        for name in ('vllm:time_to_first_token_seconds_bucket{le="0.5"}', 'vllm:num_requests_running{engine="0"}')
        for line in (f"{name} 1.5e308", f"{name} 1.6e308")
    )
    values = prometheus.normalise(twice + '\nvllm:time_to_first_token_seconds_bucket{le="1"} 2')
    assert values["ttft_buckets"] == ((1.0, 2.0),)
    assert "running" not in values
    sample = ServerSample(t_s=0.0, clock_anchor_unix_s=0.0, clock_speed=1.0, **values)
    assert msgspec.json.decode(msgspec.json.encode(sample), type=ServerSample) == sample


VLLM_DRAFTS = (
    VLLM
    + """
vllm:spec_decode_num_drafts_total{engine="0"} 100.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 300.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 150.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 50.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 90.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="many"} 7.0
"""
)


def test_drafts_of_vllm_by_hand():
    told = prometheus.normalise(VLLM_DRAFTS)
    assert (told["drafts_total"], told["draft_tokens_total"], told["accepted_draft_tokens_total"]) == (100.0, 300.0, 150.0)
    assert told["accepted_by_position_total"] == (91.0, 50.0)
    assert not {key for key in prometheus.normalise(VLLM) if "draft" in key or "position" in key}


def test_drafts_of_sglang_are_the_tokens_beside_the_sure_ones():
    """6,019 tokens of 108 requests, each with a first token, in 2,000 rows of three drafts and the token before them."""
    text = (
        SGLANG + 'sglang:spec_verify_calls_total{model_name="tiny"} 2000.0\nsglang:spec_num_draft_tokens{tp_rank="0"} 4.0\n'
    )
    told = prometheus.normalise(text)
    assert (told["drafts_total"], told["draft_tokens_total"]) == (2000.0, 6000.0)
    assert told["accepted_draft_tokens_total"] == 6019 - 108 - 2000
    assert "drafts_total" not in prometheus.normalise(SGLANG)
    assert "draft_tokens_total" not in prometheus.normalise(text.replace(" 4.0", " 0.0"))


def test_replicas_behind_a_router_are_read_as_one_server_and_get_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", "sk-for-the-router-alone")
    stop = threading.Event()
    stop.set()
    with serving({"/metrics": VLLM}) as a, serving({"/metrics": VLLM.replace("27362.0", "638.0")}) as b:
        prometheus.scrape_forever([a.url, b.url], tmp_path, Clock.start(), stop, keyed=False)
        assert not [headers for _, headers in (*a.asked, *b.asked) if "authorization" in headers]
    (sample,) = read_samples(tmp_path)
    assert (sample.running, sample.kv_usage, sample.generation_tokens_total) == (10.0, 0.5, 28000.0)
    assert sample.ttft_buckets == ((0.1, 20.0), (0.5, 300.0))
    assert [one.source for one in sample.replicas] == [a.url.removeprefix("http://"), b.url.removeprefix("http://")]
    assert [one.generation_tokens_total for one in sample.replicas] == [27362.0, 638.0]


def test_servers_that_requests_are_sent_to_get_their_key(monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", "sk-for-each-of-them")
    with serving({"/metrics": VLLM}) as a, serving({"/metrics": VLLM}) as b:
        assert prometheus.scrape_once([a.url, b.url], Clock.start()).running == 10.0
        assert {headers["authorization"] for _, headers in (*a.asked, *b.asked)} == {"Bearer sk-for-each-of-them"}


def test_if_one_replica_does_not_answer_nothing_is_known(tmp_path):
    stop = threading.Event()
    stop.set()
    with serving({"/metrics": VLLM}) as a, serving({}) as b:
        prometheus.scrape_forever([a.url, b.url], tmp_path, Clock.start(), stop)
    (sample,) = read_samples(tmp_path)
    assert (sample.running, sample.replicas) == (None, ())
    assert sample.error == f"{b.url.removeprefix('http://')}: /metrics: HTTP 404"
