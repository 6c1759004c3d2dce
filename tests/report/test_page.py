"""The page and the terminal's table: the decision, its words, and that nothing of a stranger's gets through."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import RecordError
from loadtest.report import cells, checklist, decision, formatting, tables, terminal
from loadtest.report import page as pages
from loadtest.report.plots import catalogue, figure
from tests.support import pages as sample_metrics

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page, and whether every element was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def build(sample: sample_metrics.Sample) -> str:
    return pages.build(sample.metrics, sample.manifest, sample.engines)


@pytest.fixture(scope="module")
def full() -> str:
    return sample_metrics.page("demo")


@pytest.fixture(scope="module")
def damaged() -> Page:
    return Page(sample_metrics.page("damaged"))


@pytest.fixture(scope="module")
def hostile() -> str:
    return sample_metrics.page("hostile")


def test_page_is_well_formed_and_has_one_first_heading(full: str) -> None:
    page = Page(full)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_identifiers_are_unique_and_links_lead_somewhere(full: str) -> None:
    found = [str(a["id"]) for _, a in Page(full).tags if "id" in a]
    assert len(found) == len(set(found))
    targets = [a.get("href") or a.get("xlink:href") or "" for _, a in Page(full).tags if "href" in a or "xlink:href" in a]
    assert targets
    assert {target[1:] for target in targets} <= set(found)


def test_page_refers_to_nothing_outside_itself(full: str) -> None:
    for tag, attributes in Page(full).tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "img")
        for name in ("src", "href", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(http" not in full
    assert "@import" not in full


def test_policy_names_the_hash_of_the_only_script(full: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", full, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(
        a["content"] for t, a in Page(full).tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert len(scripts) == 1
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_simulated_run_says_so_in_title_banner_and_headings(full: str) -> None:
    assert re.search(r"<title>Simulated: ", full)
    assert "Every figure on this page predicts" in Page(full).text
    assert "Not for a simulation to say" in Page(full).text
    assert "reproduced" not in Page(full).text


def test_measured_run_nowhere_says_simulated_but_in_the_definitions() -> None:
    page = Page(build(sample_metrics.full_matrix(simulated=False, levels=(1,), deployments=1)))
    assert page.text.lower().count("simulated") == 1


def test_damaged_run_warns_first_and_lists_what_is_missing(damaged: Page) -> None:
    for words in (
        "Do not rely on this run",
        "the event loop woke up to 0.31 s late",
        "incomplete: interrupted by the user",
        "vLLM QwQ-32B-AWQ, 1 card: died: the server was killed: out of memory",
        "SGLang QwQ-32B-AWQ, 1 card: no data for 1 concurrent users",
        "1 comparison: too few samples: needs 8 pairs, has 3",
        "1 comparison: not comparable: top_k differs: 40 against 20",
    ):
        assert words in damaged.text, words


def test_failed_health_stands_before_the_verdict_it_spoils(damaged: Page, full: str) -> None:
    assert damaged.text.index("Do not rely on this run") < damaged.text.index("Which runtime")
    assert Page(full).text.index("The run is sound") > Page(full).text.index("Which runtime")


def test_figures_of_a_failed_run_are_said_to_be_conditional(damaged: Page, full: str) -> None:
    words = "What the figures would say if they could be relied on"
    assert damaged.text.index(words) < damaged.text.index("Which runtime")
    assert words not in Page(full).text


def test_long_list_of_what_is_missing_is_folded_and_lost_nowhere() -> None:
    sample = sample_metrics.full_matrix(levels=(1,), deployments=1)
    sample.manifest["levels"] = [1, 2]
    for row in sample.metrics["findings"]:
        row.update(verdict="not_measured", reason=f"reason {row['id']}")
    sample.metrics["findings"][0]["verdict"] = "predicted"
    page = Page(build(sample))
    assert "3 more" in page.text
    assert all(f"reason {row['id']}" in page.text for row in sample.metrics["findings"])


def test_claims_that_no_cell_speaks_of_are_one_line_to_open() -> None:
    sample = sample_metrics.full_matrix(levels=(1,), deployments=1)
    for row in sample.metrics["findings"]:
        row["verdict"] = "not_measured"
    assert "None of the 5 claims can be judged by this run" in Page(build(sample)).text


def test_doubts_about_windows_are_told_apart_from_failures() -> None:
    sample = sample_metrics.full_matrix(levels=(1,), deployments=1)
    sample.metrics["health"]["windows"] = ["a at 4: warm: slow at first", "a at 8: warm: slow at first"]
    page = Page(build(sample))
    assert "1 doubt about the windows" in page.text
    assert "a at 4, 8: warm: slow at first" in page.text
    assert "The run is sound" in page.text


def test_commands_are_those_of_the_run_the_servers_and_the_load_without_folders() -> None:
    load = [
        "/usr/bin/python",
        "-m",
        "locust",
        "--locustfile",
        "/srv/site-packages/scenarios/long_reasoning.py",
        "--users",
        "8",
    ]
    engines = {"vllm_m_tp1": {"command": ["/srv/vllm/bin/vllm", "serve", "m"], "env": {"A": "b c"}, "load": load}}
    found = tables.commands({"commands": ["loadtest run study.toml"]}, engines)
    assert [one.text for one in found] == [
        "loadtest run study.toml",
        "A='b c' vllm serve m",
        "python -m locust --locustfile scenarios/long_reasoning.py --users 8",
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"measured": 34.96, "kind": "value", "metric": "tokens_per_s_per_user"}, "35.0 tokens/s"),
        ({"measured": 8.0, "kind": "maximum_concurrency", "metric": ""}, "8 users"),
        ({"measured": 0.75, "kind": "ahead", "metric": "output_tokens_per_s"}, "75 % of the scenarios"),
        ({"measured": 19.33e9, "kind": "weights", "metric": ""}, "19.3 GB"),
        ({"measured": "refused", "kind": "fit"}, "refused"),
        ({"measured": None, "kind": "value"}, "—"),
    ],
)
def test_figure_of_a_finding_carries_its_unit(row: dict[str, object], text: str) -> None:
    known = {"claim": "c", "expected": "e", "verdict": "reproduced", **row}
    assert tables.findings({"findings": [known]})[0]["measured"] == text


def test_columns_of_numbers_stand_flush_right() -> None:
    rows = (("vLLM", "1,234", "34.1 to 35.7", "—\nneeds n ≥ 6", "0.32.0"), ("SGLang", "−0.5", "—", "7\n6 to 8", "0.5.15"))
    assert figure.Table(("cell", "a", "b", "c", "version"), rows).numeric == (False, True, True, True, False)


def test_hostile_text_stays_text(hostile: str) -> None:
    page = Page(hostile)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{7*7}}" in page.text
    assert "\\u202egnp.exe\\u200b\\u0007" in page.text


def test_no_invisible_character_reaches_the_page(hostile: str) -> None:
    assert not set("\u202e\u200b\x07") & set(hostile)


@pytest.mark.parametrize("lost", ["cells", "comparisons", "findings", "run", "health", "complete", "run_id", "simulated"])
def test_page_stands_without_any_one_key_of_metrics(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "draw_all", lambda metrics: ())  # figures without a key: test_plots
    sample = sample_metrics.full_matrix(levels=(1, 2))
    del sample.metrics[lost]
    page = Page(build(sample))
    assert page.open == []
    assert "How each number is defined" in page.text


def test_page_stands_on_nothing_at_all() -> None:
    page = Page(pages.build({}, {}, {}))
    assert "Nothing was measured" in page.text
    assert page.open == []


def test_no_number_is_nan_or_infinite(full: str) -> None:
    assert not re.search(r"\b(nan|inf|None|null)\b", Page(full).text)


def test_write_leaves_page_and_figures(tmp_path: Path) -> None:
    sample = sample_metrics.full_matrix(levels=(1,), deployments=1)
    out, folder = tmp_path / "report.html", tmp_path / "plots"
    pages.write(sample.metrics, sample.manifest, sample.engines, out, folder)
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {path.stem for path in folder.glob("*.png")}
    assert "ttft" in names
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert out.stat().st_size < 5_000_000


def test_write_says_what_the_disk_refused(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(RecordError, match="plots: cannot write the report: File exists"):
        pages.write({}, {}, {}, tmp_path / "report.html", tmp_path / "plots")


# The decision --------------------------------------------------------------------------------------------------------


def answers(sample: sample_metrics.Sample) -> dict[str, decision.Line]:
    return {line.asks: line for line in decision.lines(sample.metrics, sample.manifest)}


def test_every_sentence_of_the_decision_carries_its_interval() -> None:
    for line in answers(sample_metrics.full_matrix()).values():
        assert "interval" in line.because, line


def test_runtime_is_ahead_only_where_most_comparisons_say_so() -> None:
    sample = copy.deepcopy(sample_metrics.full_matrix(simulated=False))
    assert answers(sample)["Which runtime"].answer == "SGLang was ahead in 12 of 12 comparisons"
    for row in sample.metrics["comparisons"]:
        row["verdict"] = "no detectable difference"
    assert answers(sample)["Which runtime"].answer == "No detectable difference in 12 of 12 comparisons"


def test_what_could_not_be_judged_is_counted_beside_what_could() -> None:
    rows = [{"verdict": "faster"}, {"verdict": "too few samples"}, {"verdict": "not comparable"}]
    assert decision.ahead("SGLang", "vLLM", rows) == "SGLang was ahead in 1 of 3 comparisons; 2 could not be judged"
    tied = [{"verdict": "no detectable difference"}, {"verdict": "too few samples"}]
    assert decision.ahead("a", "b", tied) == "No detectable difference in 1 of 2 comparisons; 1 could not be judged"
    assert decision.ahead("a", "b", rows[1:]) == "No verdict in 2 comparisons"


def test_lost_comparisons_count_for_the_other_runtime() -> None:
    sample = copy.deepcopy(sample_metrics.full_matrix(simulated=False))
    for row in sample.metrics["comparisons"]:
        row["verdict"] = "slower"
    assert answers(sample)["Which runtime"].answer == "vLLM was ahead in 12 of 12 comparisons"


def test_users_are_those_of_the_cell_that_carries_most() -> None:
    sample = copy.deepcopy(sample_metrics.full_matrix())
    for number, cell in enumerate(sample.metrics["cells"]):
        cell["maximum_concurrency"].update(by_slo=number, ci95=[0, None])
    line = answers(sample)["How many users"]
    assert line.answer == "5 users within the SLO"
    assert line.because.startswith("vLLM (simulated), QwQ-32B, 2 cards; with the whole 95 % interval at no level.")


def test_no_user_is_promised_where_no_level_meets_the_slo() -> None:
    sample = copy.deepcopy(sample_metrics.full_matrix())
    for cell in sample.metrics["cells"]:
        cell["maximum_concurrency"].update(by_slo=0, ci95=[0, None], binds="ttft_s:p90<2")
    line = answers(sample)["How many users"]
    assert line.answer == "No level is shown to be within the SLO"
    assert line.because.endswith("too few requests to tell: 90th percentile of time to first token < 2 s.")


def test_cost_is_price_times_cards_over_answers_with_the_interval_turned_round() -> None:
    level = {"answers_per_hour": {"value": 100.0, "ci95": [80.0, 125.0]}}
    cell = cells.cells({"cells": [{"id": "x", "engine": "vllm", "model": "m", "tp": 2}]})[0]
    found = decision.cost_per_1000_answers(cell, level, 1.5)
    assert (found.value, found.low, found.high) == (30.0, 24.0, 37.5)


def test_terminal_table_has_a_line_for_each_level_and_the_decision() -> None:
    sample = sample_metrics.full_matrix(levels=(1, 8))
    text = terminal.decision(sample.metrics, sample.manifest)
    lines = text.splitlines()
    assert lines[0].startswith("SIMULATED")
    assert sum(line.startswith(("sglang-sim_", "vllm-sim_")) for line in lines) == 6 * 2 + 2
    assert "Which runtime: Not for a simulation to say" in text
    assert "refused" in text


def test_terminal_table_shows_failed_gates() -> None:
    assert "Load generator FAIL" in terminal.decision(sample_metrics.damaged().metrics, {})


def test_tokens_that_only_chunks_count_are_said_to_be() -> None:
    metrics = {"health": {"client": "pass", "reconciliation": "pass", "complete": True, "counted_by": "server"}}
    assert "Token counts" not in terminal.decision(metrics, {})
    metrics["health"]["counted_by"] = "chunks"
    assert "Token counts: the server told none, so each chunk of text counts as one" in terminal.decision(metrics, {}, 120)
    assert "each chunk of text counts as one token" in pages.build(metrics, {}, {})


def test_waits_in_the_load_generator_are_a_note_where_there_are_any() -> None:
    sample = sample_metrics.full_matrix(levels=(1,), deployments=1)
    first = sample.metrics["cells"][0]
    assert "load generator" not in " ".join(tables.levels(cells.cells(sample.metrics)).notes)
    first["levels"][0]["queued_s"] = {"n": 9, "mean": 0.4, "ci95": {"mean": [0.3, 0.5]}}
    [note] = [one for one in tables.levels(cells.cells(sample.metrics)).notes if "load generator" in one]
    assert "1 at once: 0.400 s" in note


def test_unknown_hardware_is_not_called_a_card() -> None:
    metrics = {"cells": [{"id": "x", "engine": "vllm", "model": "Qwen/Qwen2.5-0.5B-Instruct", "tp": 1, "gpu": None}]}
    assert cells.cells(metrics)[0].deployment == "Qwen2.5-0.5B-Instruct"
    assert decision.question(metrics, {}) == "How fast does vLLM serve Qwen2.5-0.5B-Instruct, and for how many users?"


def test_the_cells_of_a_second_mode_stand_apart_whichever_it_is() -> None:
    rows = [
        {"id": f"vllm_qwq-32b_tp2{mode}", "engine": "vllm", "model": "qwq-32b", "tp": 2, "gpu": "l20"}
        for mode in ("", "_equal-work", "_natural")
    ]
    assert [cell.deployment for cell in cells.cells({"cells": rows})] == [
        "QwQ-32B, 2 cards",
        "QwQ-32B, 2 cards, equal work",
        "QwQ-32B, 2 cards, natural stopping",
    ]


# How values are written ----------------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-6, max_value=1e12))
def test_number_keeps_three_digits(value: float) -> None:
    shown = float(formatting.number(value).replace(",", ""))
    assert math.isclose(shown, value, rel_tol=0.0051) or abs(shown - value) <= 5.6e-7


@given(st.text())
def test_clean_text_shows_every_invisible_character(text: str) -> None:
    shown = formatting.clean(text)
    assert formatting.clean(shown) == shown
    assert not any(character in shown for character in "\u202e\u200b\u2066\x00\x1b")


JSON_LEAF = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
KEY = st.sampled_from(["value", "ci95", "n", "p50", "n_needed"])


@given(st.recursive(JSON_LEAF, lambda x: st.lists(x, max_size=3) | st.dictionaries(KEY, x, max_size=4), max_leaves=8))
def test_estimate_takes_any_json_and_never_gives_nan(value: object) -> None:
    found = formatting.estimate({"it": value}, "it", "p50")
    assert all(one is None or math.isfinite(one) for one in (found.value, found.low, found.high))
    json.dumps([found.value, found.low, found.high], allow_nan=False)


@pytest.mark.parametrize(
    ("speed", "said"), [(10.0, "What the fast clock costs"), (1.0, "How far off the simulator's own times")]
)
def test_the_terminal_says_what_a_simulated_clock_is_off(speed: float, said: str) -> None:
    metrics = sample_metrics.damaged().metrics
    metrics["run"] |= {"clock_speed": speed, "clock_error": {"n": 12, "ttft_s": 0.01}}
    assert f"{said}, measured: time to first token +1.0 % (means over 12 requests)" in terminal.decision(metrics, {}, 200)


def test_a_run_that_ended_says_how_many_of_its_requests_failed() -> None:
    level = {"concurrency": 8, "n_requests": 64, "failed_share": {"value": 0.75}}
    metrics = {"complete": True, "health": {}, "cells": [{"id": "a", "levels": [level, {**level, "n_requests": 16}]}]}
    said = [check.words for check in checklist.checks(metrics, {}) if check.name == "Completeness"]
    assert said == ["every cell and level has ended, but 60 of 80 requests failed"]
    level["failed_share"] = {"value": 0.0}
    metrics["cells"] = [{"id": "a", "levels": [level]}]
    assert [check.words for check in checklist.checks(metrics, {})][2:3] == ["every cell and level has ended"]


def test_the_terminal_says_which_requests_failed_and_nothing_where_none_did() -> None:
    level = {"concurrency": 8, "n_requests": 24, "failed_share": {"value": 0.625}}
    level["error_kinds"] = {"error_in_stream": 14, "http_503": 1}
    metrics = {"cells": [{"id": "vllm_m_tp1", "engine": "vllm", "model": "m", "tp": 1, "levels": [level]}]}
    told = "FAILED: 15 of 24 requests, vllm_m_tp1 at 8 users (error_in_stream 14, http_503 1)"
    assert told in terminal.decision(metrics, {}, 120)
    level["failed_share"] = {"value": 0.0}
    assert "FAILED" not in terminal.decision(metrics, {}, 120)
