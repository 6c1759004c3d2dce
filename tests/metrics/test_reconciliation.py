"""The load generator's own health, client against server, and the troubles of a model: each made to fail."""

from dataclasses import replace

import pytest
from msgspec import structs

from loadtest.analysis import run, validity
from loadtest.grading.troubles import count_troubles
from loadtest.metrics import client_health, reconciliation, request_arrays
from loadtest.metrics.clock_error import measure_clock_error
from loadtest.metrics.level_schema import ServerCounters
from loadtest.records import schema
from loadtest.records.engine_facts import ClockError
from loadtest.records.folder import request_id
from tests.support import builders
from tests.support.builders import request


def judged(passed, gap_s=0.1):
    return client_health.check_client(
        [(passed, request_arrays.pass_arrays(passed, builders.ANCHOR))], builders.ANCHOR, gap_s
    )


def reconciled(passed):
    return reconciliation.reconcile([(passed, request_arrays.pass_arrays(passed, builders.ANCHOR))], builders.ANCHOR, 0.1)


def passed(requests=None):
    return builders.level(requests or [request(10.0 * i, seq=i) for i in range(5)])


def test_a_healthy_client_passes_and_one_without_samples_fails():
    assert judged(passed()).status == "pass"
    assert "no sample" in judged(replace(passed(), health=())).reasons[0]


def test_in_a_search_for_a_rate_an_arrival_that_finds_no_place_is_not_late():
    """One in flight at most: the second and the third wait for it. The fourth is late for no reason."""
    times = ((0.0, 0.0, 10.0), (1.0, 10.0, 20.0), (15.0, 20.0, 30.0), (40.0, 41.0, 42.0))
    rows = [
        request(sent, seq=i, scheduled_s=due, ttft_s=ended - sent, thinking=0, answer=1)
        for i, (due, sent, ended) in enumerate(times)
    ]
    one = passed(rows)
    columns = request_arrays.pass_arrays(one, builders.ANCHOR)
    assert client_health._found_no_place(columns) == 2
    late = replace(one, health=tuple(builders.health_sample(t, late_starts=3 * (t == 1)) for t in range(45)))
    for counts, share in ((True, 3 / 4), (False, 1 / 4)):
        found = client_health.check_client([(late, columns)], builders.ANCHOR, 0.1, waits_count=counts)
        assert [check.value for check in found.checks if check.name == "late_starts"] == [share]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loop_lag_mean_s": 0.02}, "late on average"),
        ({"loop_lag_max_s": 0.2}, "later than one median token gap"),
        ({"cpu_share": 0.95}, "of a core"),
        ({"gc_pause_s": 0.02}, "garbage collection"),
        ({"late_starts": 1}, "after their schedule"),
    ],
)
def test_each_fault_fails_with_its_reason(change, said):
    one = passed()
    found = judged(replace(one, health=tuple(replace(s, **change) for s in one.health)))
    assert found.status == "fail"
    assert [said in reason for reason in found.reasons] == [True]


def stamped(requests=5, **changes):
    """A level whose arrivals the kernel stamped, and a load generator that was late all the time."""
    late = {"loop_lag_mean_s": 0.5, "loop_lag_max_s": 2.0, "cpu_share": 0.99, "gc_pause_s": 0.1}
    one = passed([request(10.0 * i, seq=i, stamped_by="kernel", **changes) for i in range(requests)])
    return replace(one, health=tuple(replace(s, **late, priority="nice") for s in one.health))


def test_arrivals_by_the_kernel_are_judged_by_their_bounds_not_by_the_lag():
    found = judged(stamped(unread_s=0.4))
    assert (found.status, found.stamped_by, found.longest_unread_s, found.priority) == ("pass", "kernel", 0.4, "nice")
    assert [check.name for check in found.checks] == ["first_token_bound", "gap_bound", "late_starts"]
    mixed = stamped()
    requests = (replace(mixed.requests[0], stamped_by="process"), *mixed.requests[1:])
    assert judged(replace(mixed, requests=requests)).status == "fail"


def test_first_tokens_that_are_not_known_fail():
    """A mean TTFT of 1 s, known within 30 ms: 3 %."""
    one = stamped(write_s=0.03)
    ttft_s = one.requests[0].chunk_s[0] - one.requests[0].sent_s
    (check,) = [check for check in judged(one).checks if check.name == "first_token_bound"]
    assert check.value == pytest.approx(0.03 / ttft_s)
    assert (check.status == "fail") == (0.03 / ttft_s > 0.02)


def test_tokens_that_are_not_known_fail():
    """Half of the chunks came within 0.5 s, the median gap being 0.1 s."""
    chunks = len(request(0.0).chunk_s)
    last = request(0.0).chunk_s[chunks // 2 - 1]
    half = schema.LateChunks(0, chunks // 2, last - 0.5)
    one = passed([request(0.0, seq=0, stamped_by="kernel", late_chunks=(half,))])
    (check,) = [check for check in judged(one).checks if check.name == "gap_bound"]
    assert (check.value, check.status) == (pytest.approx((chunks // 2) / chunks), "fail")
    within = replace(one.requests[0], late_chunks=(half._replace(earliest_s=last - 0.005),))
    (check,) = [check for check in judged(replace(one, requests=(within,))).checks if check.name == "gap_bound"]
    assert (check.value, check.status) == (0.0, "pass")


@pytest.mark.parametrize(("workers", "share", "needed"), [(1, 0.98, 2), (2, 0.95, 4), (4, 0.65, 5)])
def test_a_full_core_says_how_many_processes_are_needed(workers, share, needed):
    one = passed()
    health = tuple(
        replace(s, cpu_share=share, loop_lag_mean_s=0.02, worker=f"w{i}") for s in one.health for i in range(workers)
    )
    found = judged(replace(one, health=health))
    assert all(
        reason.endswith(f"not enough: use --workers {needed} (Locust: --processes {needed})") for reason in found.reasons
    )
    idle = tuple(replace(s, cpu_share=0.2) for s in health)
    assert judged(replace(one, health=idle)).reasons[0].endswith("; leave this machine to the load test alone")


def test_a_lag_counts_in_seconds_of_the_run():
    one = passed()
    slow = tuple(replace(s, loop_lag_max_s=0.02, clock_speed=10.0) for s in one.health)
    assert judged(replace(one, health=slow)).status == "fail"
    assert judged(replace(one, health=tuple(replace(s, clock_speed=1.0) for s in slow))).status == "pass"


def test_equal_totals_pass_and_both_numbers_are_given():
    found = reconciled(passed())
    assert found.status == "pass"
    assert (found.client_output_tokens, found.server_output_tokens) == (50, 50)


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [("generation_tokens_total", 40, "other clients used the server"), ("generation_tokens_total", -40, "counted less"),
     ("requests_finished_total", 1, "requests: client 5, server 6"), ("prompt_tokens_total", 90, "prompt tokens")],
)  # fmt: skip
def test_other_totals_fail(field, change, said):
    one = passed()
    last = replace(one.server[-1], **{field: getattr(one.server[-1], field) + change})
    found = reconciled(replace(one, server=(one.server[0], last)))
    assert found.status == "fail"
    assert said in found.reasons[0]


def told_ttft(mean_s, n=5, buckets=None):
    """Five requests of TTFT 0.5 s and 0.1 s a token, and what the server's own histogram says of them."""
    one = passed()
    first, last = one.server
    first = replace(first, ttft_sum_s=3.0, ttft_count=2.0, ttft_buckets=((0.25, 1.0), (1.0, 2.0)))
    ends = buckets or ((0.25, 1.0), (1.0, 2.0 + n))
    last = replace(last, ttft_sum_s=3.0 + n * mean_s, ttft_count=2.0 + n, ttft_buckets=ends)
    return reconciled(replace(one, server=(first, last)))


@pytest.mark.parametrize(
    ("mean_s", "said"),
    [
        (0.5, None),
        (0.25, None),  # 0.5 - 0.25 = 0.25; tolerance 0.1 + 2 x 0.1 + 0.0125
        (0.52, None),
        (0.15, "mean TTFT: client 0.5 s, server 0.15 s, beyond the tolerance of 0.307 s: the network"),
        (0.6, "mean TTFT: client 0.5 s, server 0.6 s, beyond the tolerance of 0.03 s: the server measures something else"),
    ],
)
def test_the_mean_ttft_of_both_sides_must_agree(mean_s, said):
    found = told_ttft(mean_s)
    told = found.passes[0].ttft
    assert (told.client_mean_s, told.server_mean_s) == (pytest.approx(0.5), pytest.approx(mean_s))
    assert told.difference_s == pytest.approx(0.5 - mean_s)
    assert told.server_p50_s == (0.25, 1.0)
    assert found.status == ("pass" if said is None else "fail")
    assert said is None or said in found.reasons[0]


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        (((0.1, 1.0), (0.15, 6.0)), "median TTFT: client 0.5 s, server 0.1 to 0.15 s"),
        (((1.0, 2.0), (2.0, 7.0)), "median TTFT: client 0.5 s, server 1 to 2 s"),
        (((0.25, 1.0), (1.0, 2.0)), "median TTFT: client 0.5 s, server 1 to more s"),
    ],
)
def test_the_median_must_lie_in_the_servers_bucket(buckets, said):
    assert said in told_ttft(0.5, buckets=buckets).reasons[0]


def test_first_tokens_of_others_make_ttft_incomparable_and_nothing_else():
    found = told_ttft(9.0, n=6)
    assert found.status == "pass"
    assert found.passes[0].ttft.status == "not_checked"
    assert found.passes[0].ttft.reason == "first tokens: client 5, server 6: not the same requests"


def test_readings_that_do_not_bracket_the_requests_check_nothing():
    one = passed()
    late = replace(one.server[0], t_s=1.0)
    found = reconciled(replace(one, server=(late, one.server[1])))
    assert found.status == "not_checked"
    assert "after the first request" in found.reasons[0]
    assert reconciled(replace(one, server=())).status == "not_checked"


@pytest.mark.parametrize(("counted", "status"), [(50, "pass"), (65, "pass"), (40, "fail"), (200, "fail")])
def test_a_cut_off_request_makes_a_range(counted, status):
    """Five finished with 50 tokens; a sixth was cut off after 10: the server may have counted 50, 60, or, decoding on for
    2 s at 10 tokens/s, 80 tokens, give or take one a request."""
    one = passed([request(10.0 * i, seq=i) for i in range(5)] + [request(60.0, seq=5, outcome="cut_off")])
    first, last = one.server
    last = replace(last, generation_tokens_total=first.generation_tokens_total + counted)
    assert reconciled(replace(one, server=(first, last))).status == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "not_applicable"),
        ({"forced_tokens": 10, "completion_tokens": 10}, "pass"),
        ({"forced_tokens": 10, "completion_tokens": 9}, "fail"),
        ({"forced_tokens": 10, "completion_tokens": 11}, "fail"),
        ({"forced_tokens": 10, "completion_tokens": 10, "asked_prompt_tokens": 90, "prompt_tokens": 90}, "pass"),
        ({"forced_tokens": 10, "completion_tokens": 10, "asked_prompt_tokens": 90, "prompt_tokens": 91}, "fail"),
        ({"forced_tokens": 10, "completion_tokens": 3, "outcome": "cut_off"}, "not_applicable"),
        ({"forced_tokens": 10, "completion_tokens": 9, "token_count_source": "chunks"}, "not_applicable"),
    ],
)
def test_forced_lengths_are_verified(changes, status):
    found = validity.equal_work([request(**changes)])
    assert found.status == status
    assert bool(found.reasons) == (status == "fail")


def test_unequal_work_is_a_reason_not_to_rely_on_a_run():
    made = builders.run([builders.cell([builders.level([request(forced_tokens=12)])])])
    reasons = run.analyze(made).health.reasons
    assert any("1 of 1 output lengths differ from the forced length" in one for one in reasons)


def test_troubles_are_counted_and_simulated_text_is_not_read():
    made = [
        request(think_closed=False),
        request(outcome="truncated"),
        replace(request(outcome="no_answer", answer=0), answer=None),
        replace(request(), answer=" "),
        replace(request(), answer="I see. " + "Wait, let me check that. " * 20),
        replace(request(), answer="The answer is 四"),
        replace(request(outcome="truncated", think_closed=False, answer=0), output_end="Wait, let me check that. " * 20),
        replace(request(outcome="cut_off", answer=0), output_end="Hmm, no. " * 60),
        request(outcome="truncated", answer=0, thinking_field="reasoning"),
    ]
    found = count_troubles(made, simulated=False)
    assert found == {
        "no_closing_think": 3,
        "truncated": 3,
        "no_answer": 1,
        "empty_answer": 2,
        "repetition": 3,
        "wrong_language": 1,
    }
    simulated = count_troubles(made, simulated=True)
    assert simulated == found | {"repetition": 0, "wrong_language": 0}


def test_a_forced_length_owes_no_answer():
    forced = replace(request(), answer="", forced_tokens=10, think_closed=False)
    assert sum(count_troubles([forced], simulated=False).values()) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("text", ["ab" * 2048, "a" * 4096, ("x" * 50 + "y") * 80, " \n" * 2048 + "a"])
def test_hostile_answers_are_judged_soon(text):
    assert sum(count_troubles([replace(request(), answer=text)] * 200, simulated=False).values()) in (0, 200)


def test_what_the_server_says_of_itself_is_summed_over_the_passes_and_null_where_untold():
    one = passed()
    first, last = one.server
    first = replace(first, preemptions_total=2.0, kv_usage=0.4, waiting=0.0)
    first = replace(first, prefix_cache_hit_tokens_total=10.0, prefix_cache_query_tokens_total=100.0)
    last = replace(last, preemptions_total=5.0, kv_usage=0.9, waiting=3.0)
    last = replace(last, prefix_cache_hit_tokens_total=60.0, prefix_cache_query_tokens_total=300.0)
    told = (replace(one, server=(first, last)), request_arrays.pass_arrays(one, builders.ANCHOR))
    found = reconciliation.count_server([told, told], builders.ANCHOR)
    assert found == ServerCounters(
        n_preemptions=6.0, prefix_cache_hit_share=0.25, peak_kv_usage_share=0.9, peak_waiting_at_once=3.0
    )
    silent = replace(one, server=())
    nothing = reconciliation.count_server([(silent, request_arrays.pass_arrays(silent, builders.ANCHOR))], builders.ANCHOR)
    assert set(structs.asdict(nothing).values()) == {None, ()}


def drafted(rows, accepted, by_position):
    """A pass in which so many rows of three drafts were verified."""
    one = passed()
    first, last = (replace(s, drafts_total=0.0) for s in one.server)
    last = replace(last, drafts_total=rows, draft_tokens_total=3 * rows, accepted_draft_tokens_total=accepted)
    last = replace(last, accepted_by_position_total=by_position)
    return replace(one, server=(first, last)), request_arrays.pass_arrays(one, builders.ANCHOR)


def test_drafts_are_pooled_over_passes_with_an_interval_over_them():
    told = [drafted(100.0, 120.0, (80.0, 40.0)), drafted(300.0, 480.0, (270.0, 180.0, 30.0))]
    found = reconciliation.count_server(told, builders.ANCHOR).speculation
    assert found.n_drafts == 400
    assert found.accepted_share.value == pytest.approx(600 / 1200)
    assert found.accepted_length.value == pytest.approx(2.5)
    assert found.accepted_length.low < 2.2 < 2.6 < found.accepted_length.high
    assert found.accepted_share_by_position == pytest.approx((350 / 400, 220 / 400, 30 / 400))
    assert (found.thinking_tokens_per_chunk, found.answer_tokens_per_chunk) == (1.0, 1.0)
    alone = reconciliation.count_server(told[:1], builders.ANCHOR).speculation
    assert alone.accepted_length.ci95 is None
    assert reconciliation.count_server([drafted(0.0, 0.0, ())], builders.ANCHOR).speculation is None


def test_each_replica_has_its_share_of_the_work_and_what_it_alone_tells():
    def told(requests, hits):
        return [
            schema.ReplicaSample(
                source=source, waiting=float(n), kv_usage=0.1 * n, requests_finished_total=n * requests,
                generation_tokens_total=10.0 * n * requests, prefix_cache_hit_tokens_total=hits,
                prefix_cache_query_tokens_total=100.0 * requests,
            )
            for source, n in (("a:1", 1), ("b:1", 3))
        ]  # fmt: skip

    one = passed()
    first, last = (
        replace(sample, replicas=tuple(told(*counted)))
        for sample, counted in zip(one.server, [(1.0, 0.0), (5.0, 100.0)], strict=True)
    )
    read = (replace(one, server=(first, last)), request_arrays.pass_arrays(one, builders.ANCHOR))
    a, b = reconciliation.count_server([read], builders.ANCHOR).replicas
    assert (a.source, a.n_requests, a.request_share, a.output_token_share) == ("a:1", 4.0, 0.25, 0.25)
    assert (b.n_requests, b.request_share, b.peak_waiting_at_once) == (12.0, 0.75, 3.0)
    assert b.peak_kv_usage_share == pytest.approx(0.3)
    assert a.prefix_cache_hit_share == 0.25


@pytest.mark.parametrize(
    ("sources", "counted_by"),
    [((), None), (("server",), "server"), (("server", "tokenizer"), "tokenizer"), (("tokenizer", "chunks"), "chunks")],
)
def test_the_summary_says_who_counted_the_tokens(sources, counted_by):
    levels = [
        builders.level([request(token_count_source=source)], concurrency=concurrency)
        for concurrency, source in enumerate(sources, start=1)
    ]
    assert run.analyze(builders.run([builders.cell(levels)])).health.counted_by == counted_by


# The clock of a simulator --------------------------------------------------------------------------------------------


def clock_error(ttft_s, off_s, tpot_s=0.0):
    return ClockError(
        n=8, ttft_s=ttft_s, tpot_s=tpot_s, time_to_final_answer_s=0.001,
        ttft_off_s=off_s, tpot_off_s=tpot_s * 0.02, time_to_final_answer_off_s=0.01,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (clock_error(0.04, 0.002), "pass", ""),  # 2 ms of 50 ms
        (clock_error(0.019, 0.2), "pass", ""),  # 1.9 % of 10 s
        (clock_error(0.04, 0.02), "fail", "TTFT +4.0 % (+20 ms) off the simulator's own; at most 2%, or 5 ms"),
        (clock_error(0.0, 0.0, 0.3), "fail", "time per token +30.0 % (+6 ms) off the simulator's own"),
        (ClockError(n=8, ttft_s=-0.03, tpot_s=None, time_to_final_answer_s=None), "fail", "TTFT -3.0 % off the simulator's"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("speed", [1.0, 20.0])
def test_a_time_is_off_by_a_share_and_by_milliseconds(error, status, said, speed):
    one = passed()
    health = tuple(replace(s, loop_lag_mean_s=0.02, clock_speed=speed) for s in one.health)
    arrays = request_arrays.pass_arrays(one, builders.ANCHOR)
    found = client_health.check_client([(replace(one, health=health), arrays)], builders.ANCHOR, 0.1, error)
    assert (found.status, len(found.reasons)) == (status, int(status == "fail"))
    assert "fast clock" not in str(found)
    for reason in found.reasons:
        assert reason.startswith(said)
        cure = "lower the simulator's clock speed from 20, or leave" if speed > 1 else "; leave"
        assert reason.endswith("this machine to the load test alone")
        assert cure in reason


def test_each_level_is_judged_by_its_own_clock_error():
    """An older run has one error for the whole cell."""
    off = clock_error(0.25, 0.1)
    levels = [builders.level([request(10.0 * i, seq=i) for i in range(5)], concurrency=c) for c in (1, 2)]
    cell = builders.cell(levels, "vllm-sim", clock_error=off, clock_error_by_level={1: clock_error(0.0, 0.0), 2: off})
    found = run.analyze(builders.run([cell])).cells[0].levels
    assert [level.client_health.status for level in found] == ["pass", "fail"]
    older = run.analyze(builders.run([builders.cell(levels, "vllm-sim", clock_error=off)])).cells[0].levels
    assert [level.client_health.status for level in older] == ["fail", "fail"]


def test_the_error_is_of_means_over_requests_that_both_sides_know():
    """Client: first tokens after 0.5 and 0.7 s, 0.1 s a token; simulator: 0.5 and 0.5 s, the same a token; ends alike."""
    requests = [request(0.0), request(10.0, ttft_s=0.7, seq=1), request(20.0, seq=2)]
    rows = [
        {"request_id": request_id(r.run_id, r.cell, "c01-r1", "measure", r.seq), "arrival_s": 0.0, "first_token_s": 0.5,
         "finished_s": r.ended_s - r.sent_s - (0.2 if r.seq else 0.0), "completion_tokens": 10}
        for r in requests[:2]
    ]  # fmt: skip
    found = measure_clock_error(requests, rows)
    assert (found.n, found.ttft_s, found.ttft_off_s) == (2, pytest.approx(0.2), pytest.approx(0.1))
    assert found.tpot_s == pytest.approx(0, abs=1e-9)
    assert found.time_to_final_answer_off_s == pytest.approx(0.1)
