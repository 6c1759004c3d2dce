"""What the documents show exists: options, targets, files, links, figures. `make test-newcomer` runs their commands."""

import argparse
import dataclasses
import os
import re
import shlex
import tomllib

import pytest

from loadtest import __version__, cli
from loadtest.analysis import claims as published
from loadtest.analysis import run
from loadtest.records import schema
from loadtest.scenario import options as scenario_options
from loadtest.simulator import options as simulator
from loadtest.simulator.core import faults
from loadtest.study import parse
from loadtest.workload import generators
from loadtest.workload.contract import Contract
from tests.docs import generate
from tests.support import builders
from tests.support.documents import DOCUMENTS, ROOT, commands
from tests.test_architecture import FOLDERS

SHOWN = [one for document in DOCUMENTS for one in commands(document)]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def words(text):
    """A command without settings in front and without a prompt."""
    found = shlex.split(os.path.expandvars(text).split("\n")[0])
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        del found[0]
    return found


def of(program):
    return [one for one in SHOWN if words(one.text)[0].rpartition("/")[2] == program]


def where(one):
    return one.where


def test_commands_are_found():
    assert len(SHOWN) > 50
    assert {"README.md", "docs/studies.md", "launchers/README.md"} <= {one.where.partition(":")[0] for one in SHOWN}


@pytest.mark.parametrize("one", of("loadtest"), ids=where)
def test_the_command_line_takes_what_is_shown(one, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_ARGUMENTS", "--some arguments")
    cli._parse(words(one.text)[1:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_exist(document):
    text = document.read_text()
    named = set(re.findall(r"`make ([\w-]+)", text)) | set(re.findall(r"^(?:\$ )?make ([\w-]+)", text, re.MULTILINE))
    assert named <= TARGETS


@pytest.mark.parametrize("one", [*of("locust"), *of("python"), *of("loadtest")], ids=where)
def test_files_that_are_shown_exist(one):
    ours = [word for word in words(one.text) if re.match(r"(scenarios|tests|launchers|reports)/", word)]
    assert [word for word in ours if not (ROOT / word).exists()] == []


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in LINK.findall(document.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        place = document if not target else (document.parent / target)
        assert place.exists(), link
        assert not anchor or anchor in anchors(place.read_text()), link


def test_every_document_is_reached_from_the_readme():
    reached = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text())}
    assert [path.name for path in ROOT.glob("docs/*.md") if f"docs/{path.name}" not in reached] == []


def test_the_documents_are_short():
    ours = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    assert len(ours) <= 16
    assert sum(len(generate.handwritten(path.read_text()).split()) for path in ours) <= 14_000
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_generated_parts_are_those_of_the_code():
    for document in generate.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert generate.BLOCK.search(text)
        assert generate.generated(text) == text, "run `python -m tests.docs.generate`"


def test_the_architecture_lists_the_folders_in_the_order_of_imports():
    listed = re.findall(r"^- `(\w+)/`", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert tuple(listed) == FOLDERS


def test_the_picture_of_the_page_is_small():
    assert (ROOT / "docs/page.png").stat().st_size < 200_000


def test_the_version_stands_in_one_place_and_the_files_that_repeat_it_agree():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^## \[({re.escape(__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_nobody_is_sent_to_the_stranger_of_our_name_on_the_package_index():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "reasoning-loadtest"
    places = [*DOCUMENTS, *ROOT.glob("loadtest/**/*.py"), *ROOT.glob("launchers/**/*Dockerfile")]
    texts = [path.read_text() for path in places]
    assert [text for text in texts if re.search(r"pip install [^\n]*\bloadtest(?![-/.\w])", text)] == []


def test_the_hours_of_the_published_study_are_those_of_the_dry_run(capsys):
    assert cli.main(["run", str(ROOT / "scenarios/studies/qwq-32b-ada.toml"), "--dry-run"]) == 0
    (told,) = re.findall(r"^in all: about ([\d.]+) h", capsys.readouterr().out, re.MULTILINE)
    (shown,) = re.findall(r"all, three repeats \| \| \*\*([\d.]+)\*\*", (ROOT / "docs/deciding.md").read_text())
    assert float(shown) == pytest.approx(float(told), rel=0.05)


def options(parser):
    """Every option of a command line and of its commands, by its longest name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from options(one)
        elif action.option_strings:
            yield max(action.option_strings, key=len)


def keys_of(made):
    """The keys of metrics.json down to those of a level, a comparison and a finding."""
    cell = made.cells[0]
    nested = (made, cell, cell.levels[0], made.comparisons[0], made.findings[0], made.health)
    return {key for one in nested for key in one.__struct_fields__}


def test_the_reference_names_every_option_every_field_and_every_key():
    claims = published.parse_claims((ROOT / "reports/findings/qwq-32b-ada.toml").read_bytes(), "qwq-32b-ada.toml")
    level = builders.level(builders.closed_loop(2, 8), concurrency=2)
    cells = [builders.cell([level], engine) for engine in ("vllm", "sglang")]
    made = run.analyze(builders.run(cells), claims)
    scenario_options.add_options(scenario := argparse.ArgumentParser())
    shown = {*options(cli._parser()), *options(scenario)} - {"--help", "--version"}
    expected = shown | {one.name for one in dataclasses.fields(schema.RequestRecord)} | keys_of(made)
    named = set(re.findall(r"[\w-]+", (ROOT / "docs/reference.md").read_text()))
    assert sorted(expected - named) == []


def test_the_lines_for_a_notebook_work(tmp_path, capsys):
    """Those of the reference, as they stand there."""
    (lines,) = re.findall(r"```python\n(from pathlib.*?)```", (ROOT / "docs/reference.md").read_text(), re.DOTALL)
    run = builders.write(builders.study(levels=(1,), n=8), tmp_path / "mine")
    exec(lines.replace('"runs/mine"', repr(str(run))), {})
    *levels, fit = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in levels] == ["sglang_qwq-32b-awq_tp1", "vllm_qwq-32b-awq_tp1"]
    assert fit.startswith("True ")


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ("docs/studies.md", {*parse._StudyTable.__struct_fields__, *parse._CellTable.__struct_fields__}),
        ("docs/workloads.md", {one.name for one in dataclasses.fields(Contract)}),
        ("docs/workloads.md", set(generators.GENERATORS)),
        ("docs/simulator.md", set(options(simulator.build_parser())) - {"--help"}),
        ("docs/simulator.md", set(faults.KINDS)),
        ("docs/instrument.md", set(schema.OUTCOMES)),
    ],
    ids=["study", "contract", "workloads", "simulator", "faults", "outcomes"],
)
def test_tables_of_keys_are_whole(document, keys):
    assert sorted(keys - set(re.findall(r"[\w-]+", (ROOT / document).read_text()))) == []
