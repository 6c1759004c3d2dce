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


def test_plan_says_where_each_line_comes_from(tmp_path, capsys):
    run = run_folder(tmp_path / "run", engine="vllm-sim", prices={"gpu_hour": 1.5, "currency": "USD"})
    code, out, _ = said(["plan", "--users", "4", "--slo", "ttft_s:p50<2", "--from", run], capsys)
    assert code == 0
    assert next(line for line in out.splitlines() if "vllm-sim_" in line).startswith("SIMULATED")
    code, out, _ = said(["plan", "--users", "4", "--slo", "ttft_s:p50<2", "--from", run, "--json"], capsys)
    found = json.loads(out)
    assert found["options"][0]["replicas"]["value"] == 5  # one stream each, a fifth kept free
    assert found["gpu_hour_price"] == 1.5
    assert said(["plan", "--users", "4", "--from", run], capsys)[0] == 2  # no SLO anywhere
    assert said(["plan", "--slo", "ttft_s:p50<2", "--from", run], capsys)[0] == 2


def test_plan_takes_no_capacity_from_an_open_loop(tmp_path, capsys):
    run = run_folder(tmp_path / "run", scenario_options={"arrivals": "poisson", "rate": 1.0})
    code, _, err = said(["plan", "--users", "8", "--slo", "ttft_s:p50<9", "--from", run], capsys)
    assert code == 2
    assert "expected a run at levels of concurrency, got an open loop" in err


def test_plan_without_measurements_predicts_and_says_so(tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "s"\nworkload = "math:n=8,seed=1"\n[contract]\nmax_tokens = 256\n'
        '[[cells]]\nengine = "vllm"\nmodel = "qwq-32b-awq"\ngpu = "l20"\n'
    )
    code = cli.main(["plan", "--users", "40", "--slo", "ttft_s:p90<60", "--study", str(study)])
    captured = capsys.readouterr()
    assert code == 0
    assert "nothing is measured" in captured.err
    assert next(line for line in captured.out.splitlines() if "vllm-sim_qwq-32b-awq_tp1" in line).startswith("PREDICTED")


def study_of(tmp_path, levels="[1, 8]"):
    study = tmp_path / "study.toml"
    study.write_text(
        f'name = "small"\nworkload = "math:n=8"\nlevels = {levels}\n\n[[cells]]\nengine = "vllm"\n'
        'model = "qwen2.5-7b-instruct"\ntp = 1\ngpu = "l20"\n'
    )
    return str(study)


ARRIVALS = ["--arrivals-per-hour", "9000", "--slo", "time_to_final_answer_s:p90<60", "--router", "round-robin"]


@pytest.fixture
def short_peaks(monkeypatch):
    monkeypatch.setattr("loadtest.analysis.fleet.peak.ENOUGH_REQUESTS", 200)
    monkeypatch.setattr("loadtest.analysis.fleet.peak.MOST_DAYS", 1)
    monkeypatch.setattr("loadtest.analysis.fleet.peak.SAMPLE", 4)


@pytest.mark.usefixtures("short_peaks")
def test_plan_with_arrivals_predicts_a_fleet_and_draws_it(tmp_path, capsys):
    chart = tmp_path / "made" / "chart.svg"
    asked = ["plan", *ARRIVALS, "--study", study_of(tmp_path), "--gpu-hour-price", "2", "--out", str(chart)]
    assert cli.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    option = found["options"][0]
    assert found["simulated"]
    assert (found["requests_per_day"], found["peak_requests_per_hour"]) == pytest.approx((216_000, 18_000))
    assert option["cost_per_day"]["likely"] == 48 * option["replicas"]["likely"]
    assert option["replicas"]["careful"] >= option["replicas"]["likely"] >= 1
    assert chart.read_bytes().startswith(b"<?xml")


@pytest.mark.usefixtures("short_peaks")
def test_plan_with_arrivals_names_the_next_measurement(tmp_path, capsys):
    run = run_folder(tmp_path / "run", gap_s=0.2)
    code, out, _ = said(["plan", *ARRIVALS, "--from", run], capsys, lines=9)
    assert code == 0
    assert "216,000 requests a day, 18,000 in the peak hour (2 x the mean)" in out
    assert "at most" in out
    assert "as no replica is given more than the 1 users that were measured; measure 2 users next" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--arrivals-per-hour", "10", "--users", "3"], "--arrivals-per-hour N alone"),
        (["--sessions-per-day", "2"], "--users U --sessions-per-day S"),
        (["--arrivals-per-hour", "10", "--answers-per-hour", "3"], "without --answers-per-hour"),
        (["--arrivals-per-hour", "10", "--think-time", "3"], "--requests-per-session above 1"),
        (["--arrivals-per-hour", "10", "--out", "chart.pdf"], "ends in .png or .svg"),
        (["--arrivals-per-hour", "-1"], "sessions a day: expected from above 0"),
        (["--users", "3", "--peak-factor", "2"], "--peak-factor: expected with --arrivals-per-hour"),
        (["--arrivals-per-hour", "10", "--slo", "itl_s:p90<1"], "with arrivals expected one of ttft_s"),
    ],
)
def test_plan_refuses_arrivals_that_make_no_sense(argv, expected, capsys):
    assert cli.main(["plan", *argv]) == 2
    assert expected in capsys.readouterr().err
