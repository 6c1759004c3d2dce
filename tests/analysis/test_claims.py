"""Published claims against cells whose answer is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.analysis import claims, run
from loadtest.errors import UsageError
from tests.support import builders

ADA = Path(__file__).parents[2] / "reports" / "findings" / "qwq-32b-ada.toml"


def judged(cells, **manifest):
    rows = run.analyze(builders.run(cells, **manifest), claims.parse_claims(ADA.read_bytes(), str(ADA))).findings
    return {row.id: row for row in rows}


def measured(tokens_per_s, engine="vllm", model="qwq-32b-awq", tp=1, concurrency=1, seed=0, **facts):
    records = builders.closed_loop(concurrency, 40, gap_s=1 / tokens_per_s, noise=0.01, seed=seed)
    return builders.cell([builders.level(records, concurrency=concurrency)], engine, model, tp, **facts)


def test_the_file_holds_every_published_row():
    ids = [claim.id for claim in claims.parse_claims(ADA.read_bytes(), str(ADA))]
    assert ids == ["awq-tp1-speed", "awq-tp2-speed", "full-tp2-speed", "full-tp1-fit", "awq-max-concurrency",
                   "full-max-concurrency", "sglang-ahead", "tp2-helps-more", "full-4x24gb-fit", "full-24gb-fit",
                   "awq-24gb-fit", "awq-memory", "groq-speed"]  # fmt: skip


@pytest.mark.parametrize(
    ("speed", "engine", "verdict"),
    [
        (35, "vllm", "reproduced"),
        (25, "vllm", "contradicted"),
        (35, "vllm-sim", "predicted"),
        (25, "vllm-sim", "not_predicted"),
    ],
)
def test_a_speed_is_judged_and_a_simulated_one_only_predicts(speed, engine, verdict):
    row = judged([measured(speed, engine)])["awq-tp1-speed"]
    assert row.verdict == verdict
    assert row.measured == pytest.approx(speed, rel=0.02)
    assert row.ci95[0] < row.measured < row.ci95[1]


def test_on_other_cards_the_absolute_value_is_not_judged_and_the_share_of_the_bound_is_shown():
    row = judged([measured(90, gpu="h100")])["awq-tp1-speed"]
    assert row.verdict == "not_measured"
    assert "of the bound" in row.reason


def test_what_was_not_measured_says_so():
    rows = judged([])
    assert {row.verdict for row in rows.values()} == {"not_measured"}
    assert all(row.reason for row in rows.values())


@pytest.mark.parametrize(("engine", "verdict"), [("vllm", "reproduced"), ("vllm-sim", "predicted")])
def test_a_refused_cell_bears_out_that_it_does_not_fit(engine, verdict):
    refused = builders.cell(
        [], engine, "qwq-32b", status="refused", reason="65.5 GB do not fit", fit=builders.fit(fits=False)
    )
    assert judged([refused])["full-tp1-fit"].verdict == verdict


def test_a_served_cell_contradicts_that_it_does_not_fit():
    assert judged([measured(20, model="qwq-32b")])["full-tp1-fit"].verdict == "contradicted"


def levels(broken_from):
    made = []
    for concurrency in (1, 2, 4, 8):
        ttft_s = 5.0 if concurrency >= broken_from else 0.5
        made.append(builders.level(builders.closed_loop(concurrency, 40, ttft_s=ttft_s), concurrency=concurrency))
    return builders.cell(made)


def test_the_maximum_concurrency_is_the_last_level_within_the_slos():
    slo = ["ttft_s:p50<2"]
    row = judged([levels(8)], slo=slo)["awq-max-concurrency"]
    assert (row.measured, row.ci95, row.verdict) == (4, (4, 4), "reproduced")
    assert judged([levels(99)], slo=slo)["awq-max-concurrency"].verdict == "contradicted"
    assert judged([levels(8)])["awq-max-concurrency"].reason == "no SLO was given"
    needs = judged([levels(8)], slo=["ttft_s:p99<2"])["awq-max-concurrency"]
    assert (needs.verdict, "368" in needs.reason) == ("not_measured", True)


def test_ahead_counts_verdicts_not_figures():
    ahead = judged([measured(45, "sglang", seed=1), measured(35, "vllm", seed=2)], start_sd=0.01)["sglang-ahead"]
    assert (ahead.verdict, ahead.measured) == ("reproduced", 1.0)
    behind = judged([measured(30, "sglang", seed=1), measured(40, "vllm", seed=2)], start_sd=0.01)["sglang-ahead"]
    assert behind.verdict == "contradicted"
    equal = judged([measured(35, "sglang", seed=1), measured(35, "vllm", seed=2)], start_sd=0.01)["sglang-ahead"]
    assert equal.verdict == "undecided"
    once = judged([measured(45, "sglang"), measured(35, "vllm")])["sglang-ahead"]
    assert once.verdict == "not_measured"


def test_a_speed_whose_interval_reaches_over_the_edge_of_the_band_is_undecided():
    """Band 29.75 to 40.25."""
    records = builders.closed_loop(1, 12, gap_s=1 / 30, noise=0.1, seed=3)
    row = judged([builders.cell([builders.level(records)])])["awq-tp1-speed"]
    low, high = row.ci95
    assert low < 29.75 < high
    assert row.verdict == "undecided"


def test_ahead_is_not_judged_by_a_cpu():
    cpu = [measured(speed, engine, seed=seed, gpu=None) for speed, engine, seed in ((30, "sglang", 1), (40, "vllm", 2))]
    alone = judged(cpu, start_sd=0.01)["sglang-ahead"]
    assert (alone.verdict, alone.measured) == ("not_measured", 0.0)
    assert alone.reason.startswith(
        "claimed of l20 or l40s or rtx-6000-ada, measured on an unknown GPU: faster in 0, slower in 1"
    )
    both = judged([*cpu, measured(45, "sglang", tp=2, seed=3), measured(35, "vllm", tp=2, seed=4)], start_sd=0.01)[
        "sglang-ahead"
    ]
    assert (both.verdict, both.measured) == ("reproduced", 1.0)


def test_two_cards_help_the_more_demanding_model_more():
    small = [measured(80, model="qwen2.5-7b-instruct", tp=1), measured(90, model="qwen2.5-7b-instruct", tp=2)]
    large = [measured(35, tp=1), measured(60, tp=2)]
    row = judged([*small, *large])["tp2-helps-more"]
    assert row.verdict == "reproduced"
    assert row.measured == pytest.approx((60 / 35) / (90 / 80), rel=0.02)


def test_where_nothing_is_within_the_slos_nothing_is_said_of_the_maximum():
    row = judged([levels(1)], slo=["ttft_s:p50<2"])["awq-max-concurrency"]
    assert (row.verdict, row.measured) == ("not_measured", 0)
    assert "not even the lowest level" in row.reason


def test_what_others_say_of_memory():
    """Four cards of 24 GB serve it, one refuses the full model; the arithmetic of 4 bits only predicts; all others say what
    arithmetic knows."""
    served = measured(15, model="qwq-32b", tp=4, gpu="a10")
    refused = builders.cell(
        [], "vllm", "qwq-32b", status="refused", reason="does not fit", fit=builders.fit(fits=False), gpu="a10"
    )
    counted = measured(35, fit=builders.fit(weight_bytes_per_card=19.3e9))
    rows = judged([served, refused, counted])
    verdicts = {name: rows[name].verdict for name in ("full-4x24gb-fit", "full-24gb-fit", "awq-memory", "awq-24gb-fit")}
    assert list(verdicts.values()) == ["reproduced", "contradicted", "predicted", "not_measured"]
    assert "19.3 GB of weights" in rows["awq-24gb-fit"].reason


def test_a_hosted_claim_is_judged_only_where_it_is_hosted():
    here = measured(450, model="qwq-32b", tp=1, gpu=None)
    there = measured(450, "other", "qwen-qwq-32b", gpu=None, base_url="https://api.groq.com/openai")
    assert judged([here])["groq-speed"].verdict == "not_measured"
    assert judged([there])["groq-speed"].verdict == "reproduced"
    slow = measured(200, "other", "qwen-qwq-32b", gpu=None, base_url="https://api.groq.com/openai")
    assert judged([here, slow])["groq-speed"].verdict == "contradicted"


@pytest.mark.parametrize("text", ["title = 1", 'title="t"\nsource="s"\n[[claims]]\nid="a"\nkind="guess"', "claims = ["])
def test_a_wrong_file_is_named(tmp_path, text):
    path = tmp_path / "findings.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="findings.toml"):
        claims.parse_claims(path.read_bytes(), str(path))


def test_claims_are_judged_by_the_first_mode_and_by_the_second_where_it_is_alone():
    natural, forced = measured(35), measured(25, mode="equal-work")
    forced = replace(forced, id=f"{forced.id}_equal-work")
    both = judged([natural, forced], mode="natural")["awq-tp1-speed"]
    assert (both.verdict, both.cells) == ("reproduced", (natural.id,))
    alone = judged([forced], mode="natural")["awq-tp1-speed"]
    assert (alone.verdict, alone.cells) == ("contradicted", (forced.id,))


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ('metric = "speed"', "metric: expected one of output_tokens_per_s, .*, got 'speed'"),
        (
            'metric = "ttft_s"\nstatistic = "value"',
            "statistic: expected mean or p50 or p90 or p95 or p99 or min or max of ttft_s, got 'value'",
        ),
        ('metric = "accuracy"', "statistic: expected value of accuracy, got 'mean'"),
    ],
)
def test_a_claim_of_no_such_figure_is_refused(claim, said):
    text = f'title="t"\nsource="s"\n[[claims]]\nid="a"\nclaim="c"\nexpected="e"\nkind="value"\nbecause="b"\n{claim}'
    with pytest.raises(UsageError, match=f"claims.toml: claim a: {said}"):
        claims.parse_claims(text.encode(), "claims.toml")
