"""What users and scripts rely on: every file of a run, every field in it, every key of metrics.json, by a real small run."""

import json
import math
import re

import msgspec
import pytest

from loadtest import cli
from loadtest.analysis import export
from loadtest.records import schema
from loadtest.records.read import read_run

STUDY = """
name = "tiny"
workload = "math:n=8,seed=1"
mode = "natural"
levels = [1]
min_requests = 6
seed = 1
slo = ["ttft_s:p50<60"]
findings = "{findings}"

[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b-awq"
gpu = "l20"
clock_speed = 10
args = ["--length-scale", "0.02"]

[[cells]]
engine = "vllm-sim"
model = "qwq-32b"
gpu = "l20"
"""
CLAIMS = """
title = "one claim"
source = "this test"

[[claims]]
id = "full-tp1-fit"
claim = "QwQ-32B on one card"
expected = "does not fit"
kind = "fit"
model = "qwq-32b"
tp = 1
because = "arithmetic"

[[claims]]
id = "absent"
claim = "a model that nobody measured"
expected = "about 1 token/s"
kind = "value"
model = "qwen2.5-7b-instruct"
tp = 1
metric = "tokens_per_s_per_user"
value = 1.0
tolerance = 0.1
because = "nobody says so"
"""

MEASURED = ("sglang-sim_qwq-32b-awq_tp1", "vllm-sim_qwq-32b-awq_tp1")
REFUSED = "vllm-sim_qwq-32b_tp1"

RECORD = [
    "schema_version",
    "run_id",
    "cell",
    "concurrency",
    "repeat",
    "phase",
    "worker",
    "user",
    "seq",
    "prompt_id",
    "scheduled_s",
    "sent_s",
    "headers_s",
    "chunk_s",
    "chunk_tokens",
    "first_answer_chunk",
    "ended_s",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "token_count_source",
    "finish_reason",
    "outcome",
    "error",
    "answer",
    "answer_correct",
    "request_sha256",
]
OUTCOMES = {
    "ok",
    "no_answer",
    "truncated",
    "http_error",
    "timeout",
    "stalled",
    "connection_error",
    "protocol_error",
    "server_error",
    "cut_off",
    "ended",
    "failed",
}
DISTRIBUTIONS = [
    "ttft_s",
    "time_to_first_answer_s",
    "time_to_final_answer_s",
    "thinking_s",
    "itl_s",
    "chunk_gap_s",
    "queued_s",
    "tpot_s",
    "tokens_per_s_per_user",
    "reasoning_tokens",
    "answer_tokens",
]
CALLS = ("tool_call_start_s", "tool_call_s")  # of which this workload has none
GAPS = ("itl_s", "chunk_gap_s")
QUANTILES = ["p50", "p90", "p95", "p99"]
FIGURES = [
    "output_tokens_per_s",
    "answers_per_hour",
    "goodput_answers_per_hour",
    "accuracy",
    "valid_call_share",
    "valid_json_share",
    "failed_share",
    "joules_per_answer",
    "joules_per_output_token",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    (folder / "claims.toml").write_text(CLAIMS)
    (folder / "study.toml").write_text(STUDY.format(findings=folder / "claims.toml"))
    assert cli.main(["run", str(folder / "study.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def numbers(run):
    return read(run / "metrics.json")


@pytest.fixture(scope="module")
def levels(numbers):
    return [level for cell in numbers["cells"] for level in cell["levels"]]


def refuse(token):
    raise AssertionError(f"{token} is no JSON")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def lines(run, pattern):
    found = [path for cell in MEASURED for path in (run / "cells" / cell / "c01-r1").glob(pattern)]
    assert len(found) == len(MEASURED), pattern
    return [json.loads(line, parse_constant=refuse) for path in found for line in path.read_text("utf-8").splitlines()]


def test_every_file_is_there(run):
    for name in ("manifest.json", "metrics.json", "metrics.csv", "report.html"):
        assert (run / name).stat().st_size > 0
    assert sorted(p.name for p in (run / "cells").iterdir()) == sorted((*MEASURED, REFUSED))
    for cell in MEASURED:
        assert (run / "cells" / cell / "engine.log").is_file()
        assert [p.name for p in (run / "cells" / cell).iterdir() if p.is_dir()] == ["c01-r1"]
    drawn = {suffix: {p.stem for p in (run / "plots").glob(f"*{suffix}")} for suffix in (".png", ".svg")}
    assert drawn[".png"] == drawn[".svg"] >= {"tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-final-answer"}


def test_no_json_holds_what_is_no_number(run):
    for path in run.rglob("*.json"):
        assert read(path) is not None
    for path in run.rglob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            json.loads(line, parse_constant=refuse)
    assert not re.search(r"\b(nan|inf)\b", (run / "metrics.csv").read_text("utf-8"), re.IGNORECASE)


def test_the_manifest_says_what_was_run_and_that_it_is_simulated(run):
    manifest = read(run / "manifest.json")
    assert (manifest["schema_version"], manifest["simulated"], manifest["complete"]) == (1, True, True)
    assert manifest["workload"] == {"source": "math:n=8,seed=1", "name": "math", "n_prompts": 8} | {
        "identity": manifest["workload"]["identity"]
    }
    assert re.fullmatch("[0-9a-f]{64}", manifest["workload"]["identity"])
    assert {"run_id", "name", "started_unix_s", "contract", "slo", "environment", "levels", "repeats", "mode"} <= set(
        manifest
    )
    assert {"python", "platform", "cpu", "packages"} <= set(manifest["environment"])
    assert [cell["id"] for cell in manifest["cells"]] == [*MEASURED, REFUSED]


def test_engine_json_says_how_it_was_started_and_how_it_ended(run):
    for cell in MEASURED:
        engine = read(run / "cells" / cell / "engine.json")
        assert (engine["id"], engine["status"], engine["exit_code"], engine["simulated"]) == (cell, "ok", 0, True)
        assert engine["engine_version"]
        assert "loadtest.simulator" in engine["command"]
        assert engine["started_unix_s"] <= engine["ready_unix_s"] <= engine["stopped_unix_s"]
        assert engine["fit"]["fits"] is True
        assert isinstance(engine["env"], dict)
    refused = read(run / "cells" / REFUSED / "engine.json")
    assert (refused["status"], refused["fit"]["fits"]) == ("refused", False)
    assert "does not fit" in refused["reason"]


def test_every_request_has_every_field(run):
    found = lines(run, "requests-*.jsonl")
    assert len(found) == len(MEASURED) * (6 + 1)  # six measured, one to warm up
    for record in found:
        assert [name for name in RECORD if name not in record] == []
        assert (record["schema_version"], record["cell"] in MEASURED, record["phase"] in ("warmup", "measure")) == (
            1,
            True,
            True,
        )
        assert record["outcome"] in OUTCOMES
        assert record["token_count_source"] in ("server", "tokenizer", "chunks")
        assert 0 <= record["scheduled_s"] <= record["sent_s"] <= record["chunk_s"][0]
        assert record["chunk_s"] == sorted(record["chunk_s"])
        assert record["chunk_s"][-1] <= record["ended_s"]
        assert sum(record["chunk_tokens"]) == record["completion_tokens"]
        assert re.fullmatch("[0-9a-f]{64}", record["request_sha256"])
    assert set(schema.OUTCOMES) == OUTCOMES


def test_the_server_and_the_load_generator_are_sampled(run):
    for sample in lines(run, "server_metrics.jsonl"):
        assert {"t_s", "running", "waiting", "kv_usage", "generation_tokens_total", "prompt_tokens_total"} <= set(sample)
    for sample in lines(run, "client_health*.jsonl"):
        assert {"t_s", "loop_lag_mean_s", "loop_lag_max_s", "cpu_share", "rss_bytes", "gc_pause_s"} <= set(sample)


def test_metrics_json_has_its_keys(numbers):
    top = {"schema_version", "run_id", "simulated", "complete", "cells", "comparisons", "findings", "run", "health"}
    assert top <= set(numbers)
    assert (numbers["simulated"], numbers["complete"]) == (True, True)
    assert [cell["id"] for cell in numbers["cells"]] == sorted((*MEASURED, REFUSED))
    for cell in numbers["cells"]:
        assert {"id", "engine", "engine_version", "model", "tp", "gpu", "simulated", "fit", "roofline", "levels"} <= set(
            cell
        )
        assert cell["simulated"] is True
        assert len(cell["levels"]) == (cell["id"] in MEASURED)
        assert cell["roofline"]["bound_tokens_per_s"] > 0


def test_a_level_has_its_keys(levels):
    for level in levels:
        assert (level["concurrency"], level["n_requests"], level["outcomes"]) == (1, 6, {"ok": 6})
        assert {"start_s", "end_s"} <= set(level["window"])
        assert len(level["passes"]) == 1
        for gate in ("client_health", "reconciliation"):
            assert level[gate]["status"] in ("pass", "fail", "not_checked")
            assert isinstance(level[gate]["reasons"], list)
        assert level["reconciliation"]["status"] == "pass"
        assert level["accuracy"]["value"] is None  # simulated text answers nothing


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_has_its_keys_and_bounds_what_it_gives(levels, name):
    for level in levels:
        found = level[name]
        assert {"n", "mean", *QUANTILES, "min", "max", "ci95", "n_needed"} <= set(found)
        assert found["n"] >= 6
        assert found["min"] <= found["mean"] <= found["max"]
        for statistic in ("mean", *QUANTILES):
            interval = found["ci95"][statistic]
            assert (interval is None) == (found[statistic] is None)
            if interval is None:
                assert found["n_needed"][statistic] > (found["n_requests"] if name in GAPS else found["n"])
            else:
                assert interval[0] <= found[statistic] <= interval[1]
    assert found["p99"] is None or name in GAPS  # of six requests


@pytest.mark.parametrize("name", FIGURES)
def test_a_single_figure_has_its_interval(levels, name):
    for level in levels:
        value, interval = level[name]["value"], level[name]["ci95"]
        assert (value is None) == (interval is None)
        assert value is None or interval[0] <= value <= interval[1]


def test_every_duration_rate_and_size_names_its_unit(numbers):
    """Every number stands under a key that ends in its unit, or is a count, a share, a ratio, or a statistic of such."""
    plain = re.compile(
        r".*(_s|_bytes|_tokens|_per_s|_per_hour|_per_user|_token|_per_card|_ratio|_share|_at_once|tokens_total|_tokens_per_s)$"
        r"|^(n|n_.*|p\d\d|mean|min|max|value|ci95|limit|p_value.*|likely|met|measured|horizon_s)$"
        r"|^(start_sd|schema_version|tp|concurrency|repeat|torn_lines|clock_speed|max_streams|tried|by_slo|by_kv_cache|by_kv_workload|user|seq|running|waiting"
        r"|kv_usage|shares|time_to_final_answer_survival|told_by_chunk|spread_over_chunks|client_requests|server_requests)$"
    )
    wrong = {
        key
        for key, inside in keyed(numbers, "")
        if not plain.match(key) and inside not in ("outcomes", "troubles", "token_count_sources")
    }
    assert wrong == set()


def keyed(value, inside):
    """Each key with a number right under it (or in a list there), and the key that it stands in."""
    if isinstance(value, dict):
        for key, one in value.items():
            if any(isinstance(n, int | float) and not isinstance(n, bool) for n in flat(one)):
                yield key, inside
            yield from keyed(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from keyed(one, inside)


def flat(value):
    return [n for one in value for n in flat(one)] if isinstance(value, list) else [value]


def test_a_comparison_has_a_verdict_with_its_interval(tmp_path):
    """In virtual time: a busy machine would make levels unsound, which are not compared."""
    words = {"faster", "slower", "equal", "undecided", "one start each", "not comparable", "too few samples"}
    (tmp_path / "claims.toml").write_text(CLAIMS)
    (tmp_path / "study.toml").write_text(STUDY.format(findings=tmp_path / "claims.toml"))
    assert cli.main(["predict", "--study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "run")]) == 0
    comparisons = read(tmp_path / "run" / "metrics.json")["comparisons"]
    assert comparisons
    for row in comparisons:
        assert {row["a"], row["b"]} == set(MEASURED)
        assert row["verdict"] in words
        assert row["simulated"] is True
        assert {"metric", "concurrency", "ratio", "smallest_detectable_ratio", "n_a", "n_b", "reason"} <= set(row)
        if row["verdict"] in ("faster", "slower", "equal", "undecided"):
            low, high = row["ratio"]["ci95"]
            assert low <= row["ratio"]["value"] <= high


def test_a_simulated_finding_predicts_and_never_reproduces(numbers):
    verdicts = {row["id"]: row["verdict"] for row in numbers["findings"]}
    assert verdicts == {"full-tp1-fit": "predicted", "absent": "not_measured"}  # those of the study's own file, no others
    for row in numbers["findings"]:
        assert {"id", "claim", "expected", "measured", "ci95", "verdict", "reason"} <= set(row)
        assert row["reason"]


def test_the_page_and_each_plot_say_that_it_is_simulated(run):
    page = (run / "report.html").read_text("utf-8")
    assert "<title>Simulated: " in page
    for path in (run / "plots").glob("*.svg"):
        assert "simulated" in path.read_text("utf-8").lower(), path.name


def test_metrics_csv_is_read_by_pandas(run, numbers):
    import pandas as pd

    frame = pd.read_csv(run / "metrics.csv")
    columns = [
        "cell",
        "engine",
        "model",
        "tp",
        "gpu",
        "simulated",
        "concurrency",
        "metric",
        "statistic",
        "value",
        "ci95_low",
        "ci95_high",
        "n",
    ]
    assert list(frame.columns) == columns
    assert set(frame.metric) == {*DISTRIBUTIONS, *CALLS, *FIGURES, "context_tokens", "run_tokens_per_s"}
    assert frame.simulated.all()
    row = frame[(frame.cell == MEASURED[1]) & (frame.metric == "ttft_s") & (frame.statistic == "mean")].iloc[0]
    [level] = next(cell for cell in numbers["cells"] if cell["id"] == MEASURED[1])["levels"]
    assert math.isclose(row.value, level["ttft_s"]["mean"])
    assert row.n == level["ttft_s"]["n"]


def test_a_notebook_needs_three_lines(run, numbers):
    frame = export.to_frame(read_run(run))
    medians = frame[frame.phase == "measure"].groupby(["cell", "concurrency"]).ttft_s.median()
    assert set(medians.index) == {(cell, 1) for cell in MEASURED}
    for cell in numbers["cells"]:
        for level in cell["levels"]:
            low, high = level["ttft_s"]["min"], level["ttft_s"]["max"]
            assert low <= medians[cell["id"], level["concurrency"]] <= high


def test_analysing_again_changes_nothing(run, numbers, capsys):
    before = (run / "metrics.json").read_bytes()
    assert cli.main(["analyze", str(run)]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert (run / "metrics.json").read_bytes() == before
    assert msgspec.json.decode(before) == numbers
