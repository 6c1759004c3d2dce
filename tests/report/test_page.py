"""The page of a run: what it says, what it leaves out, and that nothing of a stranger's gets through."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loadtest.analysis.validity import window_doubts
from loadtest.errors import RecordError
from loadtest.metrics.catalogue import METRICS
from loadtest.report.overview import answer_of
from loadtest.report.page import run_page, write_run_page
from tests.support import runs
from tests.support.pages import page
from tests.support.runs import change

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page, and whether every element was closed."""

    def __init__(self, html):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def full():
    return page("simulated")


@pytest.fixture(scope="module")
def damaged():
    return Page(page("damaged"))


@pytest.fixture(scope="module")
def hostile():
    return page("hostile")


def test_page_is_well_formed_and_has_one_first_heading(full):
    page = Page(full)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_identifiers_are_unique_and_links_lead_somewhere(full):
    found = [str(a["id"]) for _, a in Page(full).tags if "id" in a]
    assert len(found) == len(set(found))
    targets = [a.get("href") or a.get("xlink:href") or "" for _, a in Page(full).tags if "href" in a or "xlink:href" in a]
    assert targets
    assert {target[1:] for target in targets} <= set(found)


def test_page_refers_to_nothing_outside_itself(full):
    for tag, attributes in Page(full).tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "img")
        for name in ("src", "href", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(http" not in full
    assert "@import" not in full


def test_policy_names_the_hash_of_the_only_script(full):
    scripts = re.findall(r"<script>(.*?)</script>", full, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(
        a["content"] for t, a in Page(full).tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert len(scripts) == 1
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_every_metric_is_defined_once(full):
    text = Page(full).text
    assert all(metric.definition in text for metric in METRICS.values())


# Simulated or measured -----------------------------------------------------------------------------------------------


def test_simulated_run_says_so_in_title_banner_and_headings(full):
    assert re.search(r"<title>Simulated: ", full)
    assert "Every figure on this page is a prediction" in Page(full).text
    assert "No verdict: simulated run" in Page(full).text
    assert "reproduced" not in Page(full).text


def test_measured_run_nowhere_says_simulated_but_in_the_definitions():
    shown = Page(run_page(runs.small()))
    assert shown.text.lower().count("simulated") == 2  # the term, and where accuracy says so
    assert "Every figure on this page is a prediction" not in shown.text


# What is missing -----------------------------------------------------------------------------------------------------


def test_damaged_run_warns_first_and_lists_what_is_missing(damaged):
    for words in (
        "Do not rely on this run",
        "the event loop woke up to 0.31 s late",
        "incomplete: interrupted by the user",
        "SGLang QwQ-32B-AWQ, 2 GPUs: died: the server was killed: out of memory",
        "SGLang QwQ-32B, 1 GPU and vLLM QwQ-32B, 1 GPU: refused: ",
        "SGLang QwQ-32B-AWQ, 1 GPU: no data at concurrency 1",
        "1 comparison: too few samples: needs 8 pairs, has 3",
        "1 comparison: not comparable: different top_k",
    ):
        assert words in damaged.text, words


def test_failed_health_stands_before_any_figure(damaged, full):
    assert damaged.text.index("doubtful incomplete Load generator: the event loop") < damaged.text.index("Tokens/s")
    assert "doubtful" not in Page(full).text


def test_run_whose_every_level_failed_a_check_has_no_answer():
    def sicken(level):
        return change(level, client_health=change(level.client_health, status="fail", reasons=("late",)))

    sick = runs.with_levels(runs.measured(), sicken)
    assert answer_of(sick.metrics, sick.manifest) == "No answer: a check failed at every level."


def test_verdict_of_a_failed_run_is_said_to_be_conditional(damaged, full):
    words = "The verdict if the figures were reliable"
    assert damaged.text.index(words) < damaged.text.index("Which engine")
    assert words not in Page(full).text


def test_claims_stand_last_and_only_where_the_study_names_them(full):
    text = Page(full).text
    assert all(row.reason in text for row in runs.simulated().metrics.findings)
    assert text.index("Published claims") > text.index("Exact commands")
    assert "claims" not in Page(run_page(runs.with_metrics(runs.simulated(), findings=()))).text.lower()


def test_a_figure_that_cannot_be_drawn_says_why_in_its_place(full):
    assert "Not drawn" not in re.sub(r"Not drawn: p\d+", "", Page(full).text)
    text = Page(run_page(runs.with_levels(runs.simulated(), lambda one: runs.without_distribution(one, "ttft_s")))).text
    assert "Time to first token Not drawn: no level has enough requests for a figure." in text
    assert "Where the time to the final answer goes Not drawn: no level has all of its parts." in text


def test_doubts_about_windows_are_told_apart_from_failures(full):
    text = Page(full).text
    assert "doubts about the steady windows (they do not fail the run)" in text
    doubt = next(window_doubts(runs.simulated().metrics.cells))
    assert f"{doubt.cell} at concurrency {doubt.concurrency}: {doubt.reason}" in text
    assert "The run is sound" in text


def test_run_without_a_cell_is_a_page_that_says_so():
    shown = Page(run_page(runs.with_metrics(runs.simulated(), cells=(), comparisons=(), findings=())))
    assert "Nothing was measured" in shown.text
    assert shown.open == []


def test_no_number_is_nan_or_infinite(full):
    assert not re.search(r"\b(nan|inf|None|null)\b", re.sub(r"\. None (up to|where|without)", "", Page(full).text))


# A stranger's text ---------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(hostile):
    page = Page(hostile)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{7*7}}" in page.text
    assert "\\u202egnp.exe\\u200b\\u0007" in page.text


def test_no_invisible_character_reaches_the_page(hostile):
    assert not set("\u202e\u200b\x07") & set(hostile)


# Writing -------------------------------------------------------------------------------------------------------------


def write(source, folder):
    write_run_page(source, folder / "report.html", folder / "plots")


def test_write_leaves_page_and_figures(tmp_path):
    write(runs.small(), tmp_path)
    names = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert names == {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert "ttft" in names
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_write_says_what_the_disk_refused(tmp_path):
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(RecordError, match="plots: cannot write: File exists"):
        write(runs.with_metrics(runs.small(), cells=()), tmp_path)


def test_question_of_the_study_stands_above_all():
    sample = runs.small()
    asked = replace(sample, manifest=change(sample.manifest, question="Is it fast?"))
    assert "<title>Is it fast?</title>" in run_page(runs.with_metrics(asked, cells=()))
