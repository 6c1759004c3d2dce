"""Records are held against what their writers say: a file that was cut, copied, emptied, deleted or changed is named."""

import json
import shutil
from pathlib import Path

import pytest

from loadtest.analysis.run import analyze
from loadtest.errors import RecordError
from loadtest.records import read
from loadtest.study import fast_forward
from loadtest.study import parse as studies
from tests.support import builders

STUDY = """
name = "small"
workload = "ledger:n=8,seed=7,difficulty=2"
levels = [1, 2]
min_requests = 6
[contract]
max_tokens = 256
[[cells]]
engine = ["vllm-sim"]
model = "qwq-32b-awq"
tp = [1]
gpu = "l20"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "run"
    fast_forward.simulate_study(studies.parse_study(STUDY), out, say=lambda _: None)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def analysed(run):
    return analyze(read.read_run(run))


def cut(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def empty(path):
    path.write_bytes(b"")


def change(path):
    path.write_bytes(path.read_bytes().replace(b'"clock_speed":1.0', b'"clock_speed":1.5', 1))


def copy(path):
    shutil.copy(path, path.with_name(f"{path.stem}-9.jsonl"))


DAMAGES = {
    cut: "expected 7 lines, as its writer counted, found 5",
    empty: "expected 7 lines, as its writer counted, found 0",
    Path.unlink: "expected 7 lines, as its writer counted, found no file",
    change: "expected the content that was written, SHA-256 ",
    copy: "expected no such file, as no writer of this pass tells of it",
}


def test_a_run_as_it_was_written_has_no_doubt(run):
    found = analysed(run)
    assert found.complete
    assert [level.damaged_files for cell in found.cells for level in cell.levels] == [(), ()]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["requests-*.jsonl", "server_metrics.jsonl"])
@pytest.mark.fault("input", "Records cut, copied, emptied, changed or deleted: named")
def test_a_record_file_that_is_not_as_it_was_written_is_named(name, damage, run):
    path = next(run.glob(f"cells/*/c01-r1/{name}"))
    damage(path)
    found = analysed(run)
    said = DAMAGES[damage] if name.startswith("requests") else DAMAGES[damage].partition(" 7 ")[0]
    named = [reason for reason in found.health.reasons if f"c01-r1/{path.stem}" in reason]
    assert [said in reason for reason in named] == [True], found.health.reasons
    assert not found.complete


def test_a_copied_file_changes_no_figure(run):
    before = analysed(run).cells[0].levels[0]
    copy(next(run.glob("cells/*/c01-r1/requests-*.jsonl")))
    after = analysed(run).cells[0].levels[0]
    assert (after.n_requests, after.output_tokens_per_s) == (before.n_requests, before.output_tokens_per_s)
    assert "7 request(s) recorded twice: each counts once" in str(after.damaged_files)


def test_a_pass_that_is_gone_or_has_no_digests_is_named(run):
    next(run.glob("cells/*/c01-r1/digests-*.jsonl")).unlink()
    shutil.rmtree(next(run.glob("cells/*/c02-r1")))
    reasons = analysed(run).health.reasons
    assert any("c02-r1: expected a pass that ended, found no folder" in reason for reason in reasons)
    assert any("digests-*.jsonl: expected what the writers say of their files, found none" in reason for reason in reasons)


def test_a_worker_that_counted_more_than_is_there(tmp_path):
    """Also of a run that an older release made, which kept no digests."""
    run = builders.write(builders.study(engines=("vllm",), levels=(1,), n=3), tmp_path / "run")
    (folder,) = run.glob("cells/*/c01-r1")
    for path in folder.glob("digests-*"):
        path.unlink()
    level = folder / "level-h-0.json"
    level.write_text(json.dumps({"file": "requests-h-0.jsonl", "written": 3, "started": 3}))
    assert analysed(run).complete
    level.write_text(json.dumps({"file": "requests-h-0.jsonl", "written": 5, "started": 5}))
    assert "requests-h-0.jsonl: expected 5 records, as its writer counted, found 3" in str(analysed(run).health.reasons)


def test_a_run_of_before_digests_is_not_doubted(run):
    manifest = run / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"passes": []}))
    for path in run.glob("cells/*/*/digests-*"):
        path.unlink()
    assert analysed(run).complete


@pytest.mark.parametrize("name", ["manifest.json", "cells/vllm-sim_qwq-32b-awq_tp1/engine.json"])
@pytest.mark.fault("input", "`manifest.json` or `engine.json` altered: named")
def test_a_description_of_which_any_value_was_altered_is_named(name, run):
    path = run / name
    table = json.loads(path.read_text())
    for key in table:
        path.write_text(json.dumps(table | {key: [table[key]] if key in ("sha256", "note") else swapped(table[key])}))
        try:
            altered = read.read_run(run).altered
        except RecordError:
            continue  # no value that it may have
        assert [one.startswith(f"{name}: expected the content that was written") for one in altered] == [True], key


def swapped(value):
    """Another value of the same kind, or near it."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, dict | list):
        return {**value, "x": 1} if isinstance(value, dict) else [*value, *value] or ["x"]
    return value + 1 if isinstance(value, int | float) else value + "x"


def test_an_altered_description_is_a_reason_and_written_otherwise_it_is_none(run):
    path = run / "manifest.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table))
    assert read.read_run(run).altered == (), "the same content in another layout"
    path.write_text(json.dumps(table | {"seed": 8}))
    assert any("manifest.json: expected the content that was written" in one for one in analysed(run).health.reasons)
    with pytest.raises(RecordError, match="manifest.json: expected the content that was written"):
        read.read_own_manifest(path)


def test_a_description_without_its_digest_or_gone_is_named(run):
    manifest, engine = run / "manifest.json", next(run.glob("cells/*/engine.json"))
    table = json.loads(manifest.read_text())
    del table["sha256"]
    manifest.write_text(json.dumps(table))
    engine.unlink()
    first, second = read.read_run(run).altered
    assert "manifest.json: expected the content that was written, with its SHA-256" in first
    assert "engine.json: expected what is known of the engine that was measured, found no file" in second
