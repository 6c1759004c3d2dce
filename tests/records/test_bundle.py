"""A run in one file: whole, equal when it comes back, without names on request; one from a stranger does no harm."""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import msgspec
import pytest

from loadtest.analysis.run import analyze
from loadtest.errors import RecordError, UsageError
from loadtest.records import bundle, read
from loadtest.study import fast_forward
from loadtest.study import parse as studies

STUDY = """
name = "small"
workload = "ledger:n=8,seed=7,difficulty=2"
levels = [1]
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
    """A run whose records were written by processes of a host of that name."""
    run = tmp_path_factory.mktemp("small") / "run"
    fast_forward.simulate_study(studies.parse_study(STUDY), run, say=lambda _: None)
    (home,) = run.glob("cells/*/c01-r1")
    (home / "requests-virtual-time.jsonl").rename(home / "requests-gpu7-example-41.jsonl")
    (digests,) = home.glob("digests-*.jsonl")
    text = digests.read_text().replace("requests-virtual-time", "requests-gpu7-example-41")
    digests.unlink()
    (home / "digests-gpu7-example-41.jsonl").write_text(text)
    (home / "locust.log").write_text(
        "gpu7-example-41 at /home/lovelace/x asks http://10.1.2.3:8000 and http://127.0.0.1:1\n"
    )
    (run / "report.html").write_text("derived")
    return run


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def figures(path):
    with bundle.unpacked(path) as folder:
        metrics = analyze(read.read_run(folder))
    return msgspec.json.encode(metrics.cells), metrics.health.reasons


def test_what_comes_back_is_what_was_packed(run, tmp_path):
    target = tmp_path / "mine.loadtest"
    listed = bundle.pack(run, target)
    assert "report.html" not in listed.files
    assert figures(target) == figures(run)
    with bundle.unpacked(target) as folder:
        assert {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()} == set(listed.files)
    assert not folder.exists()


def test_two_bundles_of_one_run_are_equal(run, tmp_path):
    for name in ("a", "b"):
        bundle.pack(run, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_is_itself(run):
    with bundle.unpacked(run) as folder:
        assert folder == run


def test_names_are_replaced_and_the_figures_stay(run, tmp_path):
    target = tmp_path / "mine.loadtest"
    listed = bundle.pack(run, target, redact=True, hidden=["small"])
    content = b"".join(zipfile.ZipFile(target).read(name) for name in zipfile.ZipFile(target).namelist())
    for name in (b"gpu7", b"lovelace", b"10.1.2.3", b"small"):
        assert name not in content
    assert b"host-1-41 at /home/user-1/x asks http://host-2:8000 and http://127.0.0.1:1" in content
    assert listed.redacted
    assert figures(target) == figures(run)


def test_servers_are_replaced_wherever_they_stand_with_their_port(run, tmp_path):
    """As in the records of several that took turns, and in why a connection failed."""
    (engine,) = run.glob("cells/*/engine.json")
    engine.write_text(json.dumps(json.loads(engine.read_text()) | {"base_urls": ["http://gpu8:8000", "http://gpu9:8000"]}))
    (records,) = run.glob("cells/*/c01-r1/requests-*.jsonl")
    lines = [json.loads(line) | {"replica": "gpu9:8000"} for line in records.read_text().splitlines()]
    records.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    bundle.pack(run, tmp_path / "mine.loadtest", redact=True)
    with bundle.unpacked(tmp_path / "mine.loadtest") as folder:
        text = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not re.search(rb"gpu[89]", text)
    assert len(set(re.findall(rb'"replica": ?"(host-\d):8000"', text))) == 1


def test_damage_stays_visible_when_names_are_replaced(run, tmp_path):
    (records,) = run.glob("cells/*/c01-r1/requests-*.jsonl")
    records.write_text(records.read_text().replace('"seq":2', '"seq":9'))
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"small"', '"large"'))
    bundle.pack(run, tmp_path / "mine.loadtest", redact=True)
    said = " ".join(figures(tmp_path / "mine.loadtest")[1])
    assert "requests-host-1-41.jsonl: expected the content that was written" in said
    assert "manifest.json: expected the content that was written" in said


def test_no_file_is_overwritten(run, tmp_path):
    (tmp_path / "mine.loadtest").write_text("dear")
    with pytest.raises(UsageError, match="expected a new file"):
        bundle.pack(run, tmp_path / "mine.loadtest")
    assert (tmp_path / "mine.loadtest").read_text() == "dear"


def test_a_link_in_the_run_is_refused(run, tmp_path):
    (run / "programs.json").symlink_to("/etc/passwd")
    with pytest.raises(RecordError, match="got a link"):
        bundle.pack(run, tmp_path / "mine.loadtest")


def archive(path, files, listed=None):
    """An archive with a list of what it holds, as a stranger may make it."""
    told = {name: {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files}
    about = {"schema_version": 1, "loadtest": "0", "redacted": False, "files": told, **(listed or {})}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("bundle.json", json.dumps(about))
        for name, data in files:
            made.writestr(name, data)
    return path


MANIFEST = ("manifest.json", b"{}")


@pytest.mark.fault("input", "A bundle from a stranger: names, sizes and content are held against its list")
@pytest.mark.parametrize(
    ("files", "listed", "said"),
    [
        ([("../../x.json", b"")], None, "expected files of a run"),
        ([("cells/a/../x.json", b"")], None, "expected files of a run"),
        ([("/etc/x.json", b"")], None, "expected files of a run"),
        ([("cells/a/run.sh", b"")], None, "expected files of a run"),
        ([MANIFEST, ("cells/a", b"")], None, "expected files of a run"),
        ([MANIFEST], {"files": {}}, "each once, got others"),
        ([MANIFEST], {"files": {"manifest.json": {"n_bytes": 2, "sha256": "0"}}}, "expected the content of its list"),
        ([MANIFEST], {"files": {"manifest.json": {"n_bytes": 1, "sha256": "0"}}}, "expected the content of its list"),
        ([MANIFEST], {"schema_version": 9}, "schema_version: expected 1, got 9"),
        ([MANIFEST], {"files": 7}, "expected the list of a bundle"),
        ([("cells/a/c01-r1/x.log", b""), ("cells/a/c01-r1/x.log/y.log", b"")], None, "expected files of a run"),
        ([("cells/a/x.log", b""), ("cells/a/x.log/y.log", b"")], None, "cannot unpack"),
    ],
)
def test_a_hostile_bundle_is_one_line(tmp_path, files, listed, said):
    path = archive(tmp_path / "x.loadtest", files, listed)
    with pytest.raises(RecordError, match=said), bundle.unpacked(path):
        pass


def test_a_file_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "x.loadtest", [MANIFEST, MANIFEST])
    with pytest.raises(RecordError, match="each once"), bundle.unpacked(path):
        pass


def test_what_unpacks_to_too_much_is_refused_before(tmp_path, monkeypatch):
    path = archive(tmp_path / "x.loadtest", [("manifest.json", b"0" * 10_000_000)])
    monkeypatch.setattr(bundle, "MOST_BYTES", 1_000_000)
    with pytest.raises(RecordError, match="bytes unpacked, got more"), bundle.unpacked(path):
        pass


def test_an_entry_larger_than_it_says_is_cut(tmp_path):
    """The size in the archive's directory is as little to be trusted as the rest."""
    path = archive(tmp_path / "x.loadtest", [("manifest.json", b"0" * 5_000_000)])
    data = path.read_bytes()
    path.write_bytes(data.replace((5_000_000).to_bytes(4, "little"), (2).to_bytes(4, "little")))
    with pytest.raises(RecordError), bundle.unpacked(path):
        pass


def test_any_byte_of_a_bundle_may_be_wrong(run, tmp_path):
    path = tmp_path / "mine.loadtest"
    bundle.pack(run, path)
    whole, good = path.read_bytes(), figures(path)
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            with bundle.unpacked(path) as folder:
                content = (folder / "manifest.json").read_bytes()
        except RecordError:
            continue
        assert content == (run / "manifest.json").read_bytes()  # a byte that says nothing, such as a time
    path.write_bytes(whole)
    assert figures(path) == good


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive", b"\0" * 100])
def test_another_file_is_named(tmp_path, content):
    (tmp_path / "x.loadtest").write_bytes(content)
    with pytest.raises(RecordError, match="expected a bundle"), bundle.unpacked(tmp_path / "x.loadtest"):
        pass
