"""Hand-computed numbers of small runs; properties: order and files do not matter, tokens are conserved, no NaN."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadtest.analysis import export, validity
from loadtest.analysis.run import analyze
from loadtest.metrics import request_arrays, steady_window
from loadtest.metrics.catalogue import CENSORED_METRICS, METRICS
from loadtest.metrics.level_schema import TokenCounts
from loadtest.metrics.schema import encode
from loadtest.records import read, schema
from loadtest.records.read import LevelRecords
from loadtest.records.schema import RequestError
from tests.support import builders
from tests.support.builders import request


def analyzed(requests, concurrency=1, **manifest):
    return analyze(builders.run([builders.cell([builders.level(requests, concurrency=concurrency)])], **manifest))


def only(numbers):
    return numbers.cells[0].levels[0]


def as_pass(requests, concurrency=1):
    return request_arrays.pass_arrays(builders.level(requests, concurrency=concurrency), builders.ANCHOR)


def test_one_request_by_hand():
    """First token at 0.5 s, then one every 0.1 s: 6 thought, 4 answered. Window 0 to 1.4 s: 10 / 1.4 tokens/s."""
    level = only(analyzed([request()]))
    expected = {"ttft_s": 0.5, "time_to_first_answer_s": 1.1, "time_to_final_answer_s": 1.4, "thinking_s": 0.6, "itl_s": 0.1,
                "tpot_s": 0.1, "tokens_per_s_per_user": 10.0, "reasoning_tokens": 6, "answer_tokens": 4}  # fmt: skip
    assert {name: level.estimate(name, "mean").value for name in expected} == pytest.approx(expected)
    assert level.output_tokens_per_s.value == pytest.approx(10 / 1.4)
    assert level.answers_per_hour.value == pytest.approx(3600 / 1.4)
    assert (level.ttft_s.p50, level.ttft_s.n_needed.p50) == (None, 6)
    assert level.outcomes == {"ok": 1}


def test_each_of_several_servers_has_the_figures_of_its_requests():
    """b's two requests are refused; a's begin at 0 and 2 s and last 1.4 s: 20 tokens in 3.4 s."""
    refused = {"outcome": "connection_error", "error": RequestError("refused", "no"), "chunk_s": (), "chunk_tokens": (),
               "first_answer_chunk": None, "completion_tokens": None, "replica": "b:1"}  # fmt: skip
    made = [request(0.0, seq=0, replica="a:1"), request(2.0, seq=2, replica="a:1", ttft_s=0.5)]
    made += [request(1.0, seq=1, **refused), request(3.0, seq=3, **refused)]
    level = only(analyzed(made))
    a, b = level.server.replicas
    assert (a.source, a.n_requests, a.asked.n_requests, a.asked.failed_share.value) == ("a:1", None, 2, 0.0)
    assert a.asked.run_tokens_per_s.value == pytest.approx(20 / 3.4)
    assert a.asked.ttft_s.mean == pytest.approx(0.5)
    assert (b.asked.error_kinds, b.asked.failed_share.value, b.asked.run_tokens_per_s.value) == ({"refused": 2}, 1.0, None)
    assert validity.dead_replicas(level) == ("b:1 answered none of its 2 requests (refused)",)
    assert validity.dead_replicas(level)[0] in validity.unsound_reasons(level)
    assert only(analyzed([request()])).server.replicas == ()


def test_intervals_hold_for_others_of_their_kind_only_where_no_prompt_is_asked_twice():
    asked = [replace(request(seq=n), prompt_id=f"p{n % 8}") for n in range(12)]
    for n, population in ((8, "prompts of this kind"), (12, "these prompts")):
        found = analyze(builders.run([builders.cell([builders.level(asked[:n])])])).cells[0].levels[0]
        assert (found.n_prompts, found.population) == (8, population)


def test_a_chunk_of_k_tokens_counts_k_gaps_and_an_empty_one_passes_its_gap_on():
    """Chunks at 1.0 (2 tokens), 1.3 (3), 1.4 (0), 1.6 (2): gaps 0.1 x 3 and 0.15 x 2; tpot 0.6 / 5."""
    made = request(chunk_s=(1.0, 1.3, 1.4, 1.6), chunk_tokens=(2, 3, 0, 2), first_answer_chunk=3, completion_tokens=7,
                   reasoning_tokens=5, ended_s=1.6)  # fmt: skip
    gaps, weights, _ = as_pass([made]).gaps()
    assert gaps == pytest.approx([0.1, 0.15])
    assert weights.tolist() == [3, 2]
    level = only(analyzed([made]))
    assert level.itl_s.n == 5
    assert level.itl_s.mean == pytest.approx(0.6 / 5)
    assert level.tpot_s.mean == pytest.approx(0.6 / 5)
    assert (level.chunk_gap_s.n, level.chunk_gap_s.max) == (2, pytest.approx(0.3))  # what a user sees arrive at once


def test_the_rate_of_the_whole_run_counts_its_idle_ends():
    """20 tokens from 0 s to the last token at 4.4 s; only from 3 s on are both streams in flight."""
    two = [request(0.0, user=0), request(3.0, user=1)]
    level = only(analyzed(two, concurrency=2))
    assert level.run_tokens_per_s.value == pytest.approx(20 / 4.4)
    assert (level.run_tokens_per_s.ci95, level.run_tokens_per_s.n_needed) == (None, 3)


def test_the_wait_in_the_load_generator_counts_in_goodput_where_an_slo_limits_it():
    late = [request(10.0 * i, scheduled_s=10.0 * i - (3.0 if i % 2 else 0.0), seq=i) for i in range(8)]
    run = builders.run([builders.cell([builders.level(late)])], slo=["ttft_s:p50<2", "queued_s:p50<1"])
    level = only(analyze(run))
    assert level.goodput_answers_per_hour.value == pytest.approx(level.answers_per_hour.value / 2)
    assert [one.slo for one in level.slo] == ["ttft_s:p50<2", "queued_s:p50<1"]


def test_the_window_holds_all_streams_and_both_sides_of_the_ratio():
    """Two streams: 0-4 then 4.1-6 s; 1-5 s. Both in flight from 1 s until 5 s, the gap at 4 s inside. Tokens credited by
    arrival in (1, 5]."""
    a = request(0.0, ttft_s=0.5, gap_s=0.5, thinking=4, answer=4, user=0, ended_s=4.0)
    b = request(1.0, ttft_s=1.0, gap_s=0.5, thinking=4, answer=3, user=1, ended_s=5.0)
    c = request(4.1, ttft_s=0.4, gap_s=0.5, thinking=2, answer=2, user=0, seq=1, ended_s=6.0)
    level = only(analyzed([a, b, c], concurrency=2))
    assert (level.window.start_s, level.window.end_s) == (1.0, 5.0)
    # a: 1.5 .. 4.0 -> 6 (1.0 itself is outside); b: all 7; c: 4.5, 5.0 -> 2
    assert level.output_tokens_per_s.value == pytest.approx(15 / 4)
    # three answers of 8 + 7 + 4 tokens: those 15 are worth 15 x 3 / 19 answers, in 4 s
    assert level.answers_per_hour.value == pytest.approx(15 * 3 / 19 / 4 * 3600)


def test_a_window_counts_a_warm_up_that_outlasts_all_measured_requests():
    """User 1 warms up from 0 to 5.4 s; user 0 until 1.4 s, and answers both measured requests until 4.2 s. So two are in
    flight in (1.4, 4.2]: 20 tokens of user 0; of user 1, one each 0.5 s from 0.4 s on, those of 1.9 to 3.9 s, five."""
    made = [request(0.0, phase="warmup"), request(0.0, ttft_s=0.4, gap_s=0.5, thinking=8, answer=3, user=1, phase="warmup")]
    made += [request(1.4), request(2.8, seq=1)]
    level = only(analyzed(made, concurrency=2))
    assert (level.window.start_s, level.window.end_s) == pytest.approx((1.4, 4.2))
    assert level.passes[0].output_tokens_per_s == pytest.approx(25 / 2.8)
    assert level.throughput_method == "renewal"
    assert level.n_requests == 2


def test_users_that_never_all_wait_have_no_window_and_it_says_what_would_give_one():
    level = only(analyzed([request(0.0), request(5.0, user=1)], concurrency=2))
    assert level.window.start_s is None
    assert level.checks.long_enough.status == "fail"
    for found in (level.output_tokens_per_s, level.answers_per_hour):
        assert (found.value, found.n, found.n_needed) == (None, 2, 4)
        assert found.reason == "no steady window: 2 more measured requests needed, 2 for each of 2 users"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, "they pause between requests, or start too late"), ({"outcome": "http_error"}, "4 of 4 requests failed")],
)
def test_more_requests_are_not_asked_for_where_they_would_not_help(changes, why):
    made = [request(10.0 * i, user=i % 2, seq=i // 2, **changes) for i in range(4)]
    found = only(analyzed(made, concurrency=2)).output_tokens_per_s
    assert (found.value, found.n_needed) == (None, None)
    assert found.reason == f"no steady window: the 2 users never all waited at once; {why}"


def test_warm_up_is_in_no_distribution_but_its_tokens_in_the_window_count():
    warm = request(0.0, ttft_s=0.2, gap_s=0.25, phase="warmup", user=1)
    numbers = only(analyzed([warm, request(0.0, user=0)]))
    assert (numbers.n_requests, numbers.n_warmup, numbers.ttft_s.n) == (1, 1, 1)
    assert numbers.output_tokens_per_s.value == pytest.approx((10 + 5) / 1.4)  # the warm one's of 0.2 .. 1.2 s


def test_cut_off_and_truncated_are_censored_and_failures_stand_beside():
    made = [request(10.0 * i, seq=i) for i in range(8)]
    made += [request(100.0, outcome="cut_off", answer=0, thinking=30), request(110.0, outcome="truncated", answer=0, seq=9)]
    broken = RequestError(kind="http_503", message="full", http_status=503)
    made.append(request(120.0, outcome="http_error", thinking=0, answer=0, error=broken, seq=10))
    level = only(analyzed(made))
    final = level.time_to_final_answer_s
    assert (final.n, final.n_censored) == (10, 2)
    assert final.mean is None
    assert final.restricted_mean.horizon_s == pytest.approx(0.5 + 29 * 0.1)
    # the one truncated at 1.0 s leaves first: S falls from 1 to 1/9 at 1.4 s
    assert final.restricted_mean.value == pytest.approx(1.4 + (3.4 - 1.4) / 9)
    assert level.outcomes == {"cut_off": 1, "http_error": 1, "ok": 8, "truncated": 1}
    assert level.error_kinds == {"http_503": 1}
    assert level.ttft_s.n == 10


def test_a_forced_length_that_was_reached_counts_as_finished():
    made = [
        request(10.0 * i, seq=i, answer=0, thinking=10, outcome="ok", finish_reason="length", forced_tokens=10)
        for i in range(6)
    ]
    level = only(analyzed(made))
    assert level.time_to_final_answer_s.n_censored == 0
    assert level.time_to_final_answer_s.p50 == pytest.approx(1.4)
    assert level.time_to_first_answer_s.n == 0


def test_tokens_that_the_server_does_not_tell_by_chunk_are_spread():
    made = request(chunk_tokens=None, completion_tokens=30)
    level = only(analyzed([made]))
    assert level.token_counts == TokenCounts(told_by_chunk=0, spread_over_chunks=1)
    assert level.token_count_sources == {"server": 1}
    assert level.output_tokens_per_s.value == pytest.approx(30 / 1.4)
    assert level.tpot_s.mean == pytest.approx(0.9 / 27)


def test_workers_are_aligned_by_their_anchors_and_clock_speed():
    """A second worker's clock began 2 wall seconds later at speed 5: its 0 is 10 s of the run."""
    a = request(10.0, user=0, clock_speed=5.0)
    b = request(0.2, user=1, worker="v", clock_anchor_unix_s=builders.ANCHOR + 2, clock_speed=5.0)
    level = LevelRecords("c", 2, 1, None, (a, b), (), ())
    span = steady_window.steady(request_arrays.pass_arrays(level, request_arrays.earliest_anchor([level])))
    assert (span.start_s, span.end_s) == pytest.approx((10.2, 11.4))


def test_queueing_in_the_client_is_apart_from_every_latency():
    late = [replace(request(sent_s=2.0 * i), scheduled_s=2.0 * i - 0.3, connect_s=0.1) for i in range(3)]
    level = only(analyzed(late))
    assert level.queued_s.mean == pytest.approx(0.2)
    assert level.ttft_s == only(analyzed([request(sent_s=2.0 * i) for i in range(3)])).ttft_s


def test_goodput_counts_requests_that_meet_every_limit():
    made = [request(10.0 * i, seq=i, ttft_s=0.5 if i % 2 else 3.0) for i in range(10)]
    level = only(analyzed(made, slo=["ttft_s:p50<2", "time_to_final_answer_s:p50<60"]))
    assert level.goodput_answers_per_hour.value == pytest.approx(level.answers_per_hour.value / 2)
    assert [row.met for row in level.slo] == [None, True]


def test_a_request_that_was_cut_off_hands_its_weight_to_longer_ones():
    """Answers of 4 and 10 tokens, and 7 tokens of one that was cut off: by Kaplan-Meier the answer after 4 tokens has the
    weight 1/3 and that after 10 the rest, 2/3; so an answer takes 8 tokens, and the window's 21 are worth 21/8 answers."""
    made = [
        request(0.0, thinking=3, answer=1),
        request(10.0, seq=1),
        request(20.0, thinking=7, answer=0, outcome="cut_off", seq=2),
    ]
    level = only(analyzed(made))
    window = level.window
    tokens = level.output_tokens_per_s.value * (window.end_s - window.start_s)
    assert tokens == pytest.approx(21)
    assert level.answers_per_hour.value == pytest.approx(21 / 8 / (window.end_s - window.start_s) * 3600)


def test_a_level_without_an_answer_has_none_an_hour_and_at_most_so_many():
    """Exactly: none in the window of 10.9 s, at most 3.69 of them by Garwood."""
    level = only(analyzed([request(5.0 * i, seq=i, outcome="no_answer", answer=0, thinking=10) for i in range(3)]))
    hours = (level.window.end_s - level.window.start_s) / 3600
    assert level.answers_per_hour.value == 0
    assert level.answers_per_hour.ci95 == pytest.approx([0, 3.6889 / hours], rel=1e-4)


def test_accuracy_is_null_when_simulated_or_unchecked():
    made = [request(10.0 * i, seq=i, answer_correct=i < 8) for i in range(10)]
    assert only(analyzed(made)).accuracy.value == 0.8
    assert only(analyzed([replace(r, answer_correct=None) for r in made])).accuracy.value is None
    simulated = analyze(builders.run([builders.cell([builders.level(made)], "vllm-sim")]))
    assert simulated.simulated is True
    assert only(simulated).accuracy.value is None


def test_the_speed_that_nine_users_in_ten_get():
    """40 requests at 1 to 40 tokens/s: 36 of them get 5 or more. Its interval is that of the 90th percentile of the time per
    token, inverted."""
    made = [request(100.0 * i, seq=i, gap_s=1 / (i + 1)) for i in range(40)]
    level = only(analyzed(made, slo=["tokens_per_s_per_user:p10>=4.9", "tokens_per_s_per_user:p10>6"]))
    found = level.estimate("tokens_per_s_per_user", "p10")
    assert (found.value, found.n) == (pytest.approx(5), 40)
    assert found.ci95 == pytest.approx(tuple(1 / end for end in reversed(level.tpot_s.ci95.p90)))
    assert [one.likely for one in level.slo] == [True, False]


def test_the_roofline_share_is_of_the_bound_of_one_stream():
    numbers = analyze(builders.run([builders.cell([builders.level(builders.closed_loop(1, 20))])]))
    found = numbers.cells[0].roofline
    assert 44 < found.bound_tokens_per_s < 45.5  # 864 GB/s / 19.3 GB: about 44 on one L20
    assert found.reached_share.value == pytest.approx(found.reached_tokens_per_s / found.bound_tokens_per_s)
    unknown = analyze(builders.run([builders.cell([builders.level([request()])], gpu=None)])).cells[0].roofline
    assert unknown.bound_tokens_per_s is None
    assert "the GPU is unknown" in unknown.reason


@pytest.mark.parametrize(("seed", "files"), [(1, 1), (2, 3), (3, 5)])
def test_shuffled_and_split_records_change_nothing(tmp_path, seed, files):
    """Two passes, some requests cut off or failed: in any order, from so many files, and read from disk."""
    run = builders.study(levels=(2,), repeats=2, n=14, slo=["ttft_s:p50<2"])
    run = replace(run, cells=tuple(replace(c, levels=tuple(map(_troubled, c.levels))) for c in run.cells))
    expected = encode(analyze(run))
    mixed = random.Random(seed)
    shuffled = []
    for cell in run.cells:
        passes = [
            replace(
                p, **{k: tuple(mixed.sample(getattr(p, k), len(getattr(p, k)))) for k in ("requests", "server", "health")}
            )
            for p in cell.levels
        ]
        shuffled.append(replace(cell, levels=tuple(passes)))
    assert encode(analyze(replace(run, cells=tuple(shuffled)))) == expected
    on_disk = read.read_run(builders.write(replace(run, cells=tuple(shuffled)), tmp_path, files=files))
    assert encode(analyze(on_disk)) == expected


def _troubled(passed):
    changes = {3: "cut_off", 5: "http_error", 8: "truncated"}
    requests = tuple(replace(r, outcome=changes.get(r.seq, r.outcome)) for r in passed.requests)
    return replace(passed, requests=requests)


OUTCOMES = (
    "ok",
    "ok",
    "no_answer",
    "truncated",
    "cut_off",
    "timeout",
    "http_error",
    "connection_error",
    "server_error",
    "stalled",
)


@st.composite
def any_request(draw):
    sent = draw(st.none() | st.floats(0, 100))
    made = request(
        sent or 0.0, ttft_s=draw(st.floats(0, 5)), gap_s=draw(st.sampled_from([0.0, 1e-6, 0.02, 3.0])),
        thinking=draw(st.integers(0, 5)), answer=draw(st.integers(0, 3)), outcome=draw(st.sampled_from(OUTCOMES)),
        user=draw(st.integers(0, 3)), seq=draw(st.integers(0, 9)), phase=draw(st.sampled_from(["warmup", "measure"])),
    )  # fmt: skip
    changes = draw(st.sampled_from([{}, {"chunk_tokens": None}, {"completion_tokens": None, "reasoning_tokens": None,
        "chunk_tokens": None, "prompt_tokens": None, "token_count_source": "chunks"}]))  # fmt: skip
    if sent is None:
        changes = changes | {"sent_s": None, "chunk_s": (), "chunk_tokens": (), "first_answer_chunk": None}
    return replace(made, **changes)


def called(sent_s=0.0, *, form="call", valid=True, first=2, last=5, **changes):
    """A request whose tool call began with chunk `first` and was complete with `last`."""
    call = schema.ToolCall(name="add", arguments="{}", first_chunk=first, last_chunk=last)
    return request(sent_s, output_form=form, form_valid=valid, tool_calls=(call,), **changes)


def test_calls_are_timed_from_sending_and_their_valid_share_has_an_interval():
    made = [called(20.0 * i, seq=i, valid=i > 0) for i in range(10)]
    level = only(analyzed(made))
    assert level.tool_call_start_s.mean == pytest.approx(0.5 + 2 * 0.1)
    assert level.tool_call_s.p50 == pytest.approx(0.5 + 5 * 0.1)
    assert (level.tool_call_s.n, level.tool_call_s.n_censored) == (10, 0)
    assert (level.valid_call_share.value, level.valid_call_share.n) == (0.9, 10)
    assert level.valid_call_share.low < 0.9 < level.valid_call_share.high
    assert level.valid_json_share.value is None


def test_a_call_that_was_still_waited_for_is_censored_and_one_that_nobody_asked_for_is_not():
    cut = {"outcome": "cut_off", "valid": None}
    begun = called(20.0, seq=1, form="call or text", **cut)
    owed = request(40.0, seq=2, output_form="call", outcome="cut_off")
    free = request(60.0, seq=3, output_form="call or text", outcome="cut_off")
    level = only(analyzed([called(seq=0), begun, owed, free]))
    assert (level.tool_call_s.n, level.tool_call_s.n_censored) == (3, 2)
    assert (level.tool_call_start_s.n, level.tool_call_start_s.n_censored) == (3, 1)
    assert level.valid_call_share.n == 1


def test_json_by_a_schema_has_a_share_of_its_own():
    made = [request(20.0 * i, seq=i, output_form="json", form_valid=i > 1) for i in range(8)]
    level = only(analyzed(made))
    assert (level.valid_json_share.value, level.valid_json_share.n) == (0.75, 8)
    assert (level.valid_call_share.value, level.tool_call_s.n) == (None, 0)


@example([request(ttft_s=8e-307, thinking=0, answer=0, outcome="no_answer")], 1)
@settings(max_examples=60, deadline=None)
@given(st.lists(any_request(), max_size=12), st.integers(1, 3))
def test_whatever_happened_there_is_an_answer_without_nan(made, concurrency):
    passed = builders.level(made, concurrency=concurrency)
    numbers = analyze(builders.run([builders.cell([passed], e) for e in ("vllm", "sglang")], slo=["ttft_s:p90<2"]))
    json.dumps(export.to_rows(numbers), allow_nan=False)
    level = only(numbers)
    assert sum(level.outcomes.values()) == level.n_requests == sum(r.phase == "measure" for r in made)
    for name in (name for name, metric in METRICS.items() if metric.shape != "estimate"):
        values = [level.estimate(name, statistic).value for statistic in ("min", "p50", "p90", "p95", "p99", "max")]
        known = [value for value in values if value is not None]
        if name not in CENSORED_METRICS or level.figure(name).n_censored == 0:
            assert known == sorted(known)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(4, 20), st.integers(1, 12))
def test_tokens_are_conserved_over_the_parts_of_a_window(concurrency, n, parts):
    made = as_pass(builders.closed_loop(concurrency, n, tokens=10), concurrency)
    span = steady_window.steady(made)
    if span is not None:
        whole = steady_window.tokens_in(made, span)[0]
        assert np.sum(steady_window.tokens_in(made, span, parts)) == pytest.approx(whole)
        assert whole <= np.sum(made.tokens)


def test_rows_and_frame_hold_the_same_numbers():
    run = builders.study(engines=("vllm",), levels=(1,), n=10)
    numbers = analyze(run)
    rows = {(r["metric"], r["statistic"]): r for r in export.to_rows(numbers)}
    frame = export.to_frame(run)
    assert list(rows["ttft_s", "mean"]) == ["cell", "engine", "model", "tp", "gpu", "simulated", "concurrency", "metric",
                                            "statistic", "value", "ci95_low", "ci95_high", "n"]  # fmt: skip
    assert len(frame) == 10
    assert {f"{name}_exact" for name in CENSORED_METRICS} <= set(frame.columns)
    assert rows["ttft_s", "mean"]["value"] == pytest.approx(frame.ttft_s.mean())
    assert rows["time_to_final_answer_s", "p50"]["value"] == pytest.approx(
        frame.time_to_final_answer_s.sort_values().iloc[4]
    )


def test_the_throughput_of_a_closed_loop_is_covered_by_its_interval():
    """Twenty streams' worth of runs at 1 / 0.03 tokens/s a stream: the interval of one window covers the long-run rate."""
    pool = builders.closed_loop(2, 1500, seed=1, tokens=20)
    long_run = only(analyzed(pool, concurrency=2)).output_tokens_per_s.value
    hits = []
    for seed in range(60):
        lengths = np.random.default_rng(seed).permutation(1500)[:60]
        made, free = [], [0.0, 0.0]
        for i, pick in enumerate(lengths):
            user = int(np.argmin(free))
            moved = free[user] - pool[pick].sent_s
            source = pool[pick]
            chunks = tuple(t + moved for t in source.chunk_s)
            made.append(
                replace(
                    source, sent_s=free[user], scheduled_s=free[user], chunk_s=chunks, ended_s=chunks[-1], user=user, seq=i
                )
            )
            free[user] = chunks[-1] + 0.01
        low, high = only(analyzed(made, concurrency=2)).output_tokens_per_s.ci95
        hits.append(low <= long_run <= high)
    assert np.mean(hits) >= 0.85


def test_a_torn_line_makes_a_run_incomplete():
    whole = builders.level([request()])
    torn = replace(whole, torn=("requests-a.jsonl:2: torn line of 9 bytes left out",))
    numbers = analyze(builders.run([builders.cell([torn])]))
    assert only(numbers).torn_lines == 1
    assert (numbers.complete, numbers.health.complete) == (False, False)
    assert "vllm_qwq-32b-awq_tp1 at 1: 1 torn line(s) left out" in numbers.health.reasons
    assert analyzed([request()]).complete is True


def with_failures(n_failed, n=40):
    broken = RequestError(kind="http_503", message="full", http_status=503)
    made = [request(10.0 * i, seq=i) for i in range(n)]
    made += [
        request(500.0 + i, outcome="http_error", thinking=0, answer=0, error=broken, seq=n + i) for i in range(n_failed)
    ]
    return only(analyzed(made, slo=["ttft_s:p90<2"]))


def test_failed_requests_never_got_their_answer():
    """40 served in 0.5 s. None failed: p90 < 2 s is met; 20 of 60 failed: it is not; 4 of 44 (2 to 21 %): not shown."""
    assert [with_failures(n).slo[0].met for n in (0, 20, 4)] == [True, False, None]
    assert with_failures(20).failed_share.value == pytest.approx(1 / 3)


def test_joules_are_those_of_the_window_for_each_answer_and_token():
    """Two requests of 1.4 s, back to back, at 100 W: 280 J over 2 answers and 20 tokens (the window opens at 0)."""
    made = builders.level([request(0.0), request(1.4, seq=1)])
    power = tuple(
        schema.GpuSample(t_s=t, clock_anchor_unix_s=builders.ANCHOR, clock_speed=1.0, gpu=0, power_w=100.0)
        for t in (-1.0, 1.0, 3.0)
    )
    level = only(analyze(builders.run([builders.cell([replace(made, gpu=power)])])))
    assert level.joules_per_answer.value == pytest.approx(140.0)
    assert level.joules_per_output_token.value == pytest.approx(14.0)
    absent = only(analyzed([request()])).joules_per_answer
    assert (absent.value, "power" in absent.reason) == (None, True)


def slowing(factor):
    """Eight requests of 40 tokens one after the other, each `factor` times as slow as the one before."""
    made, start = [], 0.0
    for i in range(8):
        made.append(request(start, ttft_s=0.1, gap_s=0.05 * factor**i, thinking=36, seq=i))
        start = made[-1].ended_s
    return only(analyzed(made)).checks


def test_a_level_that_slows_down_is_not_steady_and_one_that_does_not_is():
    assert slowing(1.0).steady.status == "pass"
    assert slowing(1.08).steady.status == "fail"


def test_a_cold_engine_is_seen_by_the_first_request_of_each_stream():
    def level(first):
        made = []
        for user in range(4):
            made += [request(0.01 * user, gap_s=first, user=user), request(30.0, gap_s=0.1, user=user, seq=1)]
        return analyzed(made, concurrency=4)

    assert only(level(0.1)).checks.warm.status == "pass"
    cold = level(0.15)
    assert only(cold).checks.warm.status == "fail"
    assert any("warm: first requests took +50.0%" in reason for reason in cold.health.windows)


def test_the_notebook_s_lines_work_as_documented(tmp_path):
    """The lines of docs/metrics.md, run as they stand there."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    lines = text.split("```python\n")[1].split("```")[0]
    builders.write(builders.study(levels=(1,), n=8), tmp_path / "RUN")
    found = {}
    exec(lines.replace('"RUN"', repr(str(tmp_path / "RUN"))), found)
    assert found["frame"].simulated.tolist() == [False] * 16
    assert len(found["medians"]) == 2
