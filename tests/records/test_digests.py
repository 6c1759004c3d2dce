"""Records are held against what their writers say: a file that was cut, copied, emptied, deleted or changed is named."""

import json
import shutil
from pathlib import Path

import pytest

from loadtest.analysis.run import analyze
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
