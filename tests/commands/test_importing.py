"""`import`: results of another tool as a run of ours, on every way that a run goes, and never more certain than they are."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from loadtest import cli
from loadtest.analysis.run import analyze
from loadtest.commands.finish import read_metrics
from loadtest.records.read import read_run
from tests.support.peer_files import write_vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two imported runs, the second with gaps twice as long."""
    found = tmp_path_factory.mktemp("imported")
    for name, gap_s in (("fast", 0.02), ("slow", 0.04)):
        file = write_vllm(found / f"{name}.json", gap_s=gap_s)
        assert cli.main(["import", str(file), "--out", str(found / name), "--engine", "vllm"]) == 0
    return found


@pytest.fixture
def runs(folder):
    return str(folder / "fast"), str(folder / "slow")


def level(run):
    (cell,) = analyze(read_run(run)).cells
    return cell.levels[0]


def test_what_is_told_is_measured_and_what_is_not_is_unknown(folder):
    found = level(folder / "fast")
    assert found.outcomes == {"ended": 24}
    assert found.ttft_s.p50 == pytest.approx(0.2)
    assert found.chunk_gap_s.p50 == pytest.approx(0.02)
    assert found.tokens_per_s_per_user.p50 == pytest.approx(50 * 30 / 31)  # 31 chunks, one of them of the role
    assert found.output_tokens_per_s.value == pytest.approx(4 * 30 / 0.8, rel=0.05)
    assert (found.failed_share.value, found.client_health.status, found.reconciliation.status) == (
        0.0, "not_checked", "not_checked",
    )  # fmt: skip
    for name in ("time_to_final_answer_s", "time_to_first_answer_s", "thinking_s", "reasoning_tokens", "itl_s", "queued_s"):
        assert (name, found.estimate(name, "p50").value, found.figure(name).n) == (name, None, 0)
    for name in ("answers_per_hour", "goodput_answers_per_hour", "accuracy", "joules_per_answer"):
        assert (name, found.estimate(name).value) == (name, None)
    assert found.curves.timeline == ()


def test_the_page_says_whose_figures_they_are_and_what_is_unknown(folder):
    page = (folder / "fast" / "report.html").read_text()
    for words in (
        "Measured by vLLM bench, not by loadtest: nothing here is verified.",
        "imported from vLLM bench (fast.json)",
        "where thinking ends",
        "Its time to first token ends at the first chunk, also one without text (the role).",
        "mean_ttft_ms",
        "no two imported runs are known to have asked alike",
    ):
        assert words in page
    assert '<strong class="badge imported">' in page
    assert '<strong class="badge sound">' not in page


def test_compare_gives_ratios_and_no_verdict(runs, capsys):
    assert cli.main(["compare", *runs]) == 0
    said = capsys.readouterr().out
    assert "No verdict from one start each (the baseline was" in said
    assert "Imported: all files of a run count as one start" in said
    assert "imported: nothing tells whether the load generator kept up" in said
    assert cli.main(["compare", *runs, "--start-sd", "1"]) == 2
    assert "--start-sd: expected two runs that loadtest measured" in capsys.readouterr().err


def test_check_does_not_pass_on_times_that_nobody_verified(runs, capsys):
    argv = ["check", runs[0], "--require", "ttft_s:p50<1"]
    assert cli.main(argv) == 3
    assert "imported from vLLM bench: nothing shows that its times are right" in capsys.readouterr().err
    assert cli.main([*argv, "--allow-unhealthy"]) == 0


def test_runs_of_two_tools_are_not_comparable(runs, tmp_path, capsys):
    other = shutil.copytree(runs[1], tmp_path / "other")
    manifest = other / "manifest.json"
    table = json.loads(manifest.read_text())
    table["imported"]["tool"] = "another"
    manifest.write_text(json.dumps(table))
    assert cli.main(["compare", runs[0], str(other)]) == 2
    assert "tool (vLLM bench against another)" in capsys.readouterr().err


def test_an_imported_run_goes_where_runs_go(runs, tmp_path, capsys):
    bundle = tmp_path / "fast.loadtest"
    assert cli.main(["bundle", runs[0], "-o", str(bundle)]) == 0
    assert cli.main(["export", str(bundle), "-o", str(tmp_path / "r.csv")]) == 0
    assert cli.main(["report", *runs, "-o", str(tmp_path / "both.html")]) == 0
    assert "Another tool measured" in (tmp_path / "both.html").read_text()


def test_a_bundle_becomes_the_run_that_it_was(runs, tmp_path, capsys):
    bundle, out = tmp_path / "fast.loadtest", tmp_path / "again"
    assert cli.main(["bundle", runs[0], "-o", str(bundle)]) == 0
    assert cli.main(["import", str(bundle), "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert read_metrics(out / "metrics.json").cells == read_metrics(Path(runs[0]) / "metrics.json").cells
    assert cli.main(["compare", runs[0], str(out)]) == 0
    assert cli.main(["import", str(bundle), "--out", str(out)]) == 2
    assert "expected a new folder, got one with a run" in capsys.readouterr().err


@pytest.mark.fault("input", "A bundle whose content is not what its list says leaves nothing where it was to be imported")
def test_a_bundle_that_was_changed_leaves_nothing(runs, tmp_path, capsys):
    bundle, changed, out = tmp_path / "fast.loadtest", tmp_path / "changed.loadtest", tmp_path / "out"
    assert cli.main(["bundle", runs[0], "-o", str(bundle)]) == 0
    with zipfile.ZipFile(bundle) as whole, zipfile.ZipFile(changed, "w") as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name) + (b" " if name == "manifest.json" else b""))
    assert cli.main(["import", str(changed), "--out", str(out)]) == 1
    assert "manifest.json" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main(["import", str(bundle), "--engine", "vllm", "--out", str(out)]) == 2
    assert "expected a bundle alone, as it tells all of its run, got --engine" in capsys.readouterr().err


def test_totals_alone_are_shown_as_the_tool_tells_them(tmp_path, capsys):
    detail = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
    file = write_vllm(tmp_path / "x.json", **dict.fromkeys(detail))
    assert cli.main(["import", str(file), "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "vLLM bench tells totals alone: see its own figures." in page
    assert "every figure but the tool" in page
    assert "mean_ttft_ms" in page
    assert cli.main(["check", str(tmp_path / "run"), "--require", "ttft_s:p50<1"]) == 3


@pytest.mark.parametrize(
    ("argv", "said"), [(["--tp", "0"], "--tp: expected"), (["--concurrency", "0"], "--concurrency: expected")]
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, capsys, argv, said):
    assert cli.main(["import", str(write_vllm(tmp_path / "x.json")), *argv]) == 2
    assert said in capsys.readouterr().err
