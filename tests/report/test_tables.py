"""The tables of the page, and the checks beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.level_schema import DraftFigures
from loadtest.records.engine_facts import ContractFacts, EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.report.cells import cells_of
from loadtest.report.checklist import gate_checks
from loadtest.report.plots.figure import Table
from loadtest.report.tables import (
    caching_table,
    capacity_table,
    command_lines,
    contract_table,
    failures_table,
    findings,
    levels_table,
    population_note,
)
from tests.support import runs
from tests.support.runs import change


def test_commands_are_those_of_the_run_the_engines_and_the_load_without_folders():
    load = (
        "/usr/bin/python",
        "-m",
        "locust",
        "--locustfile",
        "/srv/site-packages/scenarios/long_reasoning.py",
        "--users",
        "8",
    )
    engine = EngineFacts(id="x", command=("/srv/vllm/bin/vllm", "serve", "m"), env={"A": "b c"})
    manifest = Manifest(run_id="r", commands=("loadtest run study.toml",))
    found = command_lines(manifest, {"vllm_m_tp1": engine}, {"vllm_m_tp1": load})
    assert [one.text for one in found] == [
        "loadtest run study.toml",
        "A='b c' vllm serve m",
        "python -m locust --locustfile scenarios/long_reasoning.py --users 8",
    ]


@pytest.mark.parametrize(
    ("kind", "measured", "metric", "text"),
    [
        ("value", 34.96, "tokens_per_s_per_user", "35.0 tokens/s"),
        ("maximum_concurrency", 8, "", "8"),
        ("ahead", 0.75, "output_tokens_per_s", "75 % of the scenarios"),
        ("weights", 19.33e9, "", "19.3 GB"),
        ("gain", 1.5, "tokens_per_s_per_user", "1.50 times"),
        ("fit", "refused", "", "refused"),
        ("value", None, "", "—"),
    ],
)
def test_figure_of_a_claim_carries_its_unit(kind, measured, metric, text):
    metrics = runs.simulated().metrics
    row = change(metrics.findings[0], kind=kind, measured=measured, metric=metric)
    assert findings(change(metrics, findings=(row,)))[0].measured == text


def test_columns_of_numbers_stand_flush_right():
    rows = (("vLLM", "1,234", "34.1 to 35.7", "—\nneeds n ≥ 6", "0.32.0"), ("SGLang", "−0.5", "—", "7\n6 to 8", "0.5.15"))
    assert Table(("cell", "a", "b", "c", "version"), rows).numeric == (False, True, True, True, False)


def test_a_level_shows_each_figure_with_its_interval_or_the_n_that_it_needs():
    table = levels_table(cells_of(runs.simulated().metrics))
    first, second = (dict(zip(table.head, row, strict=True)) for row in table.rows[:2])
    assert (first["concurrency"], first["n"], second["n"]) == ("1", "12", "40")
    assert " to " in first["tokens/s, all"]
    assert [first[f"final answer, s, {one}"] for one in ("p90", "p95", "p99")] == ["n ≥ 36", "n ≥ 72", "n ≥ 368"]
    assert " to " in second["final answer, s, p90"]
    assert any("Known at no level: right answers" in note for note in table.notes)


def test_waits_in_the_load_generator_are_a_note_where_there_are_any():
    sample = runs.simulated()
    assert "load generator" not in " ".join(levels_table(cells_of(sample.metrics)).notes)
    waited = runs.with_levels(
        sample,
        lambda level: change(
            level, queued_s=change(level.queued_s, mean=0.4, ci95=change(level.queued_s.ci95, mean=(0.3, 0.5)))
        ),
    )
    [note] = [one for one in levels_table(cells_of(waited.metrics)).notes if "load generator" in one]
    assert "at concurrency 1: 0.400 s 0.300 to 0.500" in note


def test_cache_hits_and_drafts_are_a_row_for_each_level_that_tells():
    cells = cells_of(runs.small().metrics)
    assert caching_table(cells) is None

    def telling(**counted):
        (first, *others) = cells[0].levels
        levels = (change(first, server=change(first.server, **counted)), *others)
        return [replace(cells[0], figures=change(cells[0].figures, levels=levels)), *cells[1:]]

    hits = caching_table(telling(prefix_cache_hit_share=0.25))
    assert hits.rows == (("SGLang QwQ-32B-AWQ, 1 GPU", "1", "25 %"),)
    drafts = DraftFigures(
        n_drafts=10.0, accepted_share=Bounded(0.5, (0.4, 0.6)), accepted_length=Bounded(2.5, None),
        accepted_share_by_position=(0.8, 0.4), thinking_tokens_per_chunk=2.6, answer_tokens_per_chunk=None,
    )  # fmt: skip
    (row,) = caching_table(telling(speculation=drafts)).rows
    assert row[1:] == ("1", "—", "50 %\n40 % to 60 %", "2.50", "80 40 %", "2.60", "—")


def test_failures_have_a_column_where_they_occurred_and_are_named_where_not():
    sample = runs.with_levels(runs.simulated(), lambda level: change(level, outcomes={"ok": 10, "truncated": 2}))
    table = failures_table(cells_of(sample.metrics))
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["ok"], row["truncated"], row["load generator"]) == ("10", "2", "none ran")
    assert "repetition" in table.notes[0]
    assert "truncated" not in table.notes[0]


def test_capacity_is_a_row_for_each_cell_with_a_level():
    sample = runs.simulated()
    table = capacity_table(cells_of(sample.metrics), sample.metrics, sample.manifest)
    assert table is not None
    assert len(table.rows) == 6
    assert table.head[1] == "concurrency within the SLOs"
    assert capacity_table(cells_of(runs.small().metrics), runs.small().metrics, runs.small().manifest) is None


def test_contract_marks_what_was_not_kept_and_what_differs():
    sample = runs.simulated()
    told = (
        ContractFacts(effective={"kv_dtype": "fp8"}, violations=("kv_dtype: expected auto, got fp8",)),
        ContractFacts(effective={"kv_dtype": "auto"}),
    )
    names = [cell.id for cell in sample.metrics.cells[:2]]
    engines = {name: EngineFacts(id=name, contract=contract) for name, contract in zip(names, told, strict=True)}
    table = contract_table(sample.manifest, cells_of(sample.metrics), engines)
    row = next(row for row in table.rows if row.key == "kv dtype")
    assert (row.told, row.differ) == ((("fp8", True), ("auto", False)), True)
    [check] = [one for one in gate_checks(sample.metrics, sample.manifest, engines) if one.name == "Contract"]
    cure = "start it as asked, or put what it runs with into [contract]"
    assert (check.state, check.words) == ("fail", f"not the requested settings: {names[0]} kv_dtype; {cure}")


# Checks --------------------------------------------------------------------------------------------------------------


def completeness(source):
    return next(one.words for one in gate_checks(source.metrics, source.manifest) if one.name == "Completeness")


def test_a_run_that_ended_says_how_many_of_its_requests_failed():
    sample = runs.small()
    assert completeness(sample) == "each level that began has ended"
    n = sum(level.n_requests for cell in sample.metrics.cells for level in cell.levels)
    failed = runs.with_levels(sample, lambda level: change(level, failed_share=Estimate(0.75, (0.5, 0.9), level.n_requests)))
    assert completeness(failed) == f"each level that began has ended, but {0.75 * n:.0f} of {n} requests failed"


def test_an_incomplete_run_says_why():
    torn = runs.with_metrics(runs.with_levels(runs.small(), lambda level: change(level, torn_lines=1)), complete=False)
    assert completeness(torn) == "incomplete: some records are torn; measure again"


def test_the_health_of_a_fast_forwarded_run_has_no_load_generator():
    check = gate_checks(runs.simulated().metrics, runs.simulated().manifest)[0]
    assert (check.state, check.words) == ("none", "none ran: simulated in virtual time")


def test_the_levels_say_for_which_prompts_their_intervals_hold():
    [cell, *_] = cells_of(runs.small().metrics)
    asked = [(cell, change(level, population="prompts of this kind")) for level in cell.levels]
    assert population_note(asked) == "Intervals hold for prompts of this kind."
    again = [(cell, change(cell.levels[0], population="these prompts")), *asked[1:]]
    assert population_note(again).startswith("Intervals hold for these prompts at concurrency 1, as some were asked")


def test_calls_and_json_have_a_line_where_a_run_has_them():
    sample = runs.simulated()
    assert not any("of a tool" in one or "valid" in one for one in levels_table(cells_of(sample.metrics)).notes)
    share = Estimate(0.9, (0.8, 0.95), 40)

    def called(level):
        timed = change(level.ttft_s, p50=1.5, ci95=change(level.ttft_s.ci95, p50=(1.2, 1.75)))
        return change(level, tool_call_s=timed, valid_call_share=share, valid_json_share=share)

    calls, answers = levels_table(cells_of(runs.with_levels(sample, called).metrics)).notes[-2:]
    assert calls.startswith("Tool calls (median time to the complete call): ")
    assert calls.endswith(" at concurrency 4: complete after 1.50 s 1.20 to 1.75, 90 % [80 %, 95 %] of 40 valid.")
    assert answers.endswith("concurrency 4: 90 % [80 %, 95 %] of 40 valid.")
