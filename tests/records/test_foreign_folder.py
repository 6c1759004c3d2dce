"""A run folder from elsewhere: it leads no command out of itself, holds none up, and takes no memory."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest

from loadtest import cli
from loadtest.errors import RecordError
from loadtest.records import folder as folders
from loadtest.records import write
from tests.support import builders

RUN = builders.study(engines=("vllm",), levels=(1,), n=3)
PASS = "cells/vllm_qwq-32b-awq_tp1/c01-r1"
WRITTEN = ("metrics.json", "metrics.csv", "report.html", "plots", ".lock", "plots/ttft.svg", "manifest.json")
IN_A_PASS = ("server_metrics.jsonl", "requests-h-0.jsonl", "requests-z.jsonl", "failure.json", "pass.json")
READ = (
    *("manifest.json", "programs.json", "metrics.json", "cells", "cells/vllm_qwq-32b-awq_tp1", PASS),
    *(f"{PASS}/{name}" for name in IN_A_PASS),
)


@pytest.fixture
def folder(tmp_path):
    made = builders.write(RUN, tmp_path / "run")
    return made.rename(made.with_name("sent"))


def refused(capsys, *arguments):
    """The one line that a command ends with."""
    assert cli.main([str(one) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("command", ["analyze", "report"])
@pytest.mark.fault("input", "Links, pipes, devices")
def test_a_link_leads_no_command_out_of_a_run_folder(name, command, folder, tmp_path, capsys):
    outside = tmp_path / "outside"
    (outside / "plots").mkdir(parents=True)
    (outside / "mine").write_text("mine")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / ("plots" if name == "plots" else "mine"))
    assert f"{path}: expected a file or a folder of the run, got a link; remove it" in refused(capsys, command, folder)
    assert (outside / "mine").read_text() == "mine"
    assert list((outside / "plots").iterdir()) == []


@pytest.mark.parametrize("page", ["comparison.html", "comparison-plots"])
def test_nor_does_one_beside_two_runs(page, folder, tmp_path, capsys):
    other = builders.write(RUN, tmp_path / "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / page).symlink_to(outside / "mine.html" if page.endswith("html") else outside)
    assert f"{tmp_path / page}: expected a" in refused(capsys, "report", folder, other)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", READ)
def test_a_pipe_or_a_link_in_the_place_of_anything_is_one_line(name, make, folder, capsys):
    path = folder / name
    if path.exists():
        path.rename(folder / "before")
    make(path)
    for command in ("analyze", "report"):
        said = refused(capsys, command, folder)
        assert said.startswith(f"loadtest: {path}: expected ")


def test_a_run_is_not_measured_into_a_folder_with_links(folder, tmp_path):
    (folder / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(RecordError, match="got a link"), folders.claimed(folder):
        pass
    assert not (tmp_path / "mine").exists()


@pytest.mark.fault("input", "A failed report: old page")
def test_a_report_that_fails_keeps_the_page_before(folder, capsys, monkeypatch):
    assert cli.main(["report", str(folder)]) == 0
    before = (folder / "report.html").read_bytes()
    capsys.readouterr()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "replace", full)
    assert "No space left on device" in refused(capsys, "report", folder)
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.rglob(".*.html.*"))


@pytest.mark.parametrize("name", ["manifest.json", f"{PASS}/requests-h-0.jsonl", f"{PASS}/server_metrics.jsonl"])
@pytest.mark.fault("input", "Sparse files")
def test_a_sparse_file_of_terabytes_is_one_line_and_little_memory(name, folder):
    with (folder / name).open("r+b") as stream:
        stream.truncate(2**43)
    limit = 3 * 2**30
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "analyze", str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"loadtest: {folder / name}")
    assert "expected" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_cells_that_may_not_be_read_are_one_line(folder, capsys):
    (folder / "cells").chmod(0)
    assert "cells: cannot read: Permission denied" in refused(capsys, "analyze", folder)
    (folder / "cells").chmod(0o755)


def test_cells_that_cannot_be_listed_are_one_line(folder, capsys, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("cells"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    assert "cells: cannot read: Permission denied" in refused(capsys, "analyze", folder)


@pytest.mark.parametrize("name", ["c0-r0", "c00-r1", "c01-r0", "c" + "9" * 200 + "-r1", "c٣-r1"])
def test_a_level_of_no_users_or_too_many_is_none(name, folder, capsys):
    (folder / PASS).rename((folder / PASS).with_name(name))
    assert cli.main(["analyze", str(folder)]) == 0
    assert json.loads((folder / "metrics.json").read_text())["cells"][0]["levels"] == []


def test_names_of_20000_characters_make_a_page_all_the_same(folder, capsys):
    for path in folder.glob("cells/*/engine.json"):
        long = dict.fromkeys(("model", "gpu", "engine_version", "reason"), "x" * 20_000)
        path.write_text(json.dumps(json.loads(path.read_text()) | long))
    began_s = time.process_time()
    assert cli.main(["report", str(folder)]) == 0
    assert time.process_time() - began_s < 15
    assert "x" * 100 not in (folder / "plots/ttft.svg").read_text()


def test_samples_that_cover_no_time_are_no_division(folder, capsys):
    path = next(folder.rglob("client_health*"))
    lines = [json.loads(line) | {"interval_s": 0.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["analyze", str(folder)]) == 0


def test_a_folder_whose_name_is_not_unicode(folder, tmp_path, capsys):
    path = folder.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    for command in ("analyze", "report"):
        assert cli.main([command, str(path)]) == 0
    write.write_json(path / "name.json", {"out": str(path)})
    assert json.loads((path / "name.json").read_text())["out"].endswith("caf\\udce9")
