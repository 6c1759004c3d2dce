"""Edited templates: which are used, and what is said of one that cannot be."""

from __future__ import annotations

import resource
import sys

import pytest

from loadtest import cli, resources
from loadtest.errors import UsageError
from loadtest.report import templates
from loadtest.report.index import index_columns
from loadtest.report.overview import Badge
from loadtest.report.page import Entrance, run_page
from loadtest.report.templates import Templates
from tests.support import builders, runs

OWN = resources.path("reports/templates/style.css").parent


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "templates"
    made.mkdir()
    return made


def index(folder, **values):
    entrance = Entrance("q", "a", Badge((), ""), (), None)
    given = {"title": "Runs", "simulated": False, "rows": (), "entrance": entrance, "columns": index_columns()}
    return Templates(folder).render("index.html.j2", **(given | values))


def edited(folder, name, old, new):
    text = (OWN / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def test_a_file_of_the_folder_replaces_that_of_the_package_and_the_others_stay(folder):
    edited(folder, "index.html.j2", "What each run says", "the newest first of all")
    (folder / "style.css").write_text("h1 { color: teal }", encoding="utf-8")
    page = index(folder)
    assert "the newest first of all" in page
    assert "h1 { color: teal }" in page
    assert "Made by loadtest" in page  # of the frame, which the folder does not have
    assert "the newest first of all" not in index(None)


def test_policy_of_the_page_follows_an_edited_script(folder):
    (folder / "page.js").write_text("var ours;", encoding="utf-8")
    page, own = index(folder), index(None)
    assert "<script>var ours;</script>" in page
    assert page.partition("'sha256-")[2][:44] != own.partition("'sha256-")[2][:44]


def test_text_stays_text_in_an_edited_template(folder):
    (folder / "index.html.j2").write_text("<p>{{ title }}</p>", encoding="utf-8")
    assert index(folder, title="<script>x</script>") == "<p>&lt;script&gt;x&lt;/script&gt;</p>"


def test_a_template_cannot_reach_into_python(folder):
    (folder / "index.html.j2").write_text("{{ title.__class__.__mro__ }}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"index\.html\.j2:1: "):
        index(folder)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("one\n{% if title %}\n", 2, "Unexpected end of template"),
        ("one\ntwo\n{{ titel }}", 3, "'titel' is undefined"),
        ("{{ title / 2 }}", 1, "unsupported operand"),
        ("\n{{ 1 / 0 }}", 2, "division by zero"),
        ("\n\n{% include 'none.j2' %}", 3, "none.j2"),
        ("{{ 'x' * 10 ** 10 }}", 1, "expected numbers beside *"),
        ("{{ 10 ** 400 }}", 1, "out of range"),
        ("{% extends 'index.html.j2' %}", 1, "maximum recursion depth exceeded"),
    ],
)
def test_a_template_with_an_error_is_named_with_its_line(folder, text, line, said):
    path = folder / "index.html.j2"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        index(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.fault("input", "An edited template with loops in loops: stopped, its line is named")
@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
        "{% for a in title %}{% for b in title %}{% for c in title %}{{ loop.index }}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(60) }}",
        "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{% for a in title %}{{ range(900) | sum }}{% endfor %}",
    ],
    ids=["ranges", "values", "macros", "recursive loop", "sums"],
)
def test_a_template_that_would_hardly_end_is_stopped(folder, monkeypatch, text):
    monkeypatch.setattr(templates, "MOST_STEPS", 20_000)
    (folder / "index.html.j2").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"index\.html\.j2:1: expected at most 20,000 steps of loops and calls, got more"):
        index(folder, title="x" * 100)


@pytest.mark.parametrize("text", ["{{ title | center(4000000000) }}", "{{ 'x' | center(4000000000) }}"])
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_a_template_that_takes_all_memory_is_stopped(folder, text):
    (folder / "index.html.j2").write_text(text, encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UsageError, match=r"index\.html\.j2: expected a page of at most 2 GiB, got more; correct"):
        index(folder)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_an_error_in_a_shared_part_is_named_where_it_is(folder):
    edited(folder, "parts.html.j2", "{{ line.answer }}", "{{ line.anser }}")
    with pytest.raises(UsageError, match=r"parts\.html\.j2:\d+: .*anser") as caught:
        Templates(folder).render("comparison.html.j2", **page_values())
    line = int(str(caught.value).partition("parts.html.j2:")[2].partition(":")[0])
    assert "line.anser" in (folder / "parts.html.j2").read_text(encoding="utf-8").splitlines()[line - 1]


def page_values():
    lines = ({"asks": "a", "because": "b", "answer": "c"},)
    entrance = Entrance("q", "a", Badge((), ""), (), None)
    return {"title": "t", "simulated": False, "entrance": entrance, "runs": (), "groups": (), "different": None,
            "failed": (), "decisions": [("x", "y", lines)]}  # fmt: skip


def test_a_file_that_is_no_text_is_an_error(folder):
    (folder / "style.css").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match=r"style\.css: "):
        index(folder)


def test_a_wrong_folder_says_what_was_expected(folder):
    with pytest.raises(UsageError, match="nowhere: expected a folder of templates, found none; loadtest init"):
        Templates(folder / "nowhere")
    with pytest.raises(UsageError, match=r"expected at least one of comparison\.html\.j2, .*, found none; init puts them"):
        Templates(folder)


def test_init_then_a_changed_heading_then_a_report_with_it(tmp_path, capsys):
    run = builders.write(builders.study(levels=(1,), n=6), tmp_path / "run")
    assert cli.main(["init", str(tmp_path / "mine")]) == 0
    mine = tmp_path / "mine" / "reports" / "templates"
    edited(mine, "page.html.j2", ">Every level", ">All that was measured")
    assert cli.main(["report", str(run), "--templates", str(mine)]) == 0
    assert ">All that was measured" in (run / "report.html").read_text(encoding="utf-8")
    (mine / "page.html.j2").write_text("{{ oops", encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["report", str(run), "--templates", str(mine)]) == 2
    assert capsys.readouterr().err.startswith(f"loadtest: {mine / 'page.html.j2'}:1: ")


def test_the_pages_do_not_need_a_folder_of_their_own():
    assert run_page(runs.with_metrics(runs.small(), cells=())).startswith("<!DOCTYPE html>")
