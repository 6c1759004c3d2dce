"""`compare` and `check` as a script meets them: exit code, standard output, one line of error."""

import json

import pytest

from loadtest import cli
from tests.support import builders


def run_folder(path, gap_s=0.03, engine="vllm", starts=3, **manifest):
    """Three starts of one cell."""
    made = [builders.level(builders.closed_loop(1, 12, gap_s=gap_s, seed=r), repeat=r) for r in range(1, 1 + starts)]
    return str(builders.write(builders.run([builders.cell(made, engine)], **manifest), path))


def said(argv, capsys, lines=1):
    code = cli.main(argv)
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= lines
    return code, captured.out, captured.err


def test_compare_ends_in_3_on_a_regression_and_says_why(tmp_path, capsys):
    old, slow = run_folder(tmp_path / "old"), run_folder(tmp_path / "slow", gap_s=0.04)
    code, out, err = said(["compare", old, slow], capsys)
    assert code == 3
    assert "slower" in out
    assert "time per token" in out
    assert "significant regression" in err
    assert said(["compare", old, slow, "--tolerance", "50"], capsys)[0] == 0
    assert said(["compare", slow, old], capsys)[0] == 0
    code, out, _ = said(["compare", old, slow, "--json"], capsys)
    assert (code, len(json.loads(out)["regressions"]) > 0) == (3, True)


def test_one_start_each_says_what_it_would_take(tmp_path, capsys):
    old, slow = (run_folder(tmp_path / f"r{gap_s}", gap_s=gap_s, starts=1) for gap_s in (0.03, 0.04))
    code, out, _ = said(["compare", old, slow], capsys)
    assert code == 0
    assert "No verdict from one start each (the baseline was 2" in out
    assert "measure two or more starts of each, or say start_sd" in out
    assert said(["compare", old, slow, "--start-sd", "1"], capsys)[0] == 3
    assert "--start-sd: expected a percentage" in said(["compare", old, slow, "--start-sd", "-1"], capsys)[2]


def test_compare_names_the_key_and_the_way_around_it(tmp_path, capsys):
    old, other = run_folder(tmp_path / "old"), run_folder(tmp_path / "other", contract={"top_k": 20})
    code, out, err = said(["compare", old, other], capsys)
    assert (code, out) == (2, "")
    assert "--allow top_k" in err
    code, out, _ = said(["compare", old, other, "--allow", "top_k"], capsys)
    assert code == 0
    assert "although they differ in top_k" in out


@pytest.mark.parametrize(
    ("require", "code", "word"),
    [("ttft_s:p50<2", 0, "met"), ("ttft_s:p50<0.1", 3, "not met"), ("ttft_s:p99<2", 3, "not shown (needs 368 requests)")],
)
def test_check_passes_only_what_is_shown(require, code, word, tmp_path, capsys):
    found, out, err = said(["check", run_folder(tmp_path), "--require", require], capsys)
    assert found == code
    assert word in out
    assert (require in err) == (code == 3)


def test_check_relies_on_no_sick_run(tmp_path, capsys):
    sick = run_folder(tmp_path, complete=False, incomplete_reason="interrupted")
    code, out, err = said(["check", sick, "--require", "ttft_s:p50<2"], capsys)
    assert (code, "DOUBTFUL: the run is incomplete" in out) == (3, True)
    assert "--allow-unhealthy" in err
    assert said(["check", sick, "--require", "ttft_s:p50<2", "--allow-unhealthy"], capsys)[0] == 0
    assert said(["check", sick, "--require", "ttft_s:p50<2", "--concurrency", "4"], capsys)[0] == 2
