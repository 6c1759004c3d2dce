"""`plan` as a planner meets it: requests in flight, users who think, arrivals; filters, words, and what is refused."""

import json
from dataclasses import replace

import pytest

from loadtest import cli
from loadtest.study import fast_forward
from loadtest.study.schema import Cell, Study
from tests.support import builders
from tests.support.peer_files import write_vllm


def run_folder(path, gap_s=0.03, engine="vllm", levels=(1,), n=12, prompt_tokens=100, **manifest):
    """One start of one cell."""
    made = [
        builders.level(builders.closed_loop(users, n, gap_s=gap_s, prompt_tokens=prompt_tokens), concurrency=users)
        for users in levels
    ]
    return str(builders.write(builders.run([builders.cell(made, engine)], **manifest), path))


def said(argv, capsys, lines=9):
    code = cli.main(argv)
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= lines
    return code, captured.out, captured.err


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
    assert "\nPREDICTED  vllm-sim_qwq-32b-awq_tp1" in captured.out


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
    code, out, _ = said(["plan", *ARRIVALS, "--from", run], capsys)
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
        (["--think-time", "10"], "with --users U, who are at work at once"),
        (["--users", "9", "--think-time", "10", "--requests-per-session", "3"], "changes nothing"),
        (["--users", "9", "--model", "llama"], "--model llama: expected one of Qwen/QwQ-32B-AWQ, Qwen/QwQ-32B,"),
        (["--users", "9", "--tp", "8"], "--tp 8: expected one of 1, 2"),
        (["--users", "9", "--engine", "other"], "--engine other: expected one of sglang, vllm"),
        (["--arrivals-per-hour", "10", "--think-time", "3"], "--requests-per-session above 1"),
        (["--arrivals-per-hour", "10", "--out", "chart.pdf"], "ends in .png or .svg"),
        (["--arrivals-per-hour", "-1"], "--arrivals-per-hour: expected from 0.001 to 1e9, got -1"),
        (["--users", "3", "--peak-factor", "2"], "--peak-factor: expected with --arrivals-per-hour"),
        (["--arrivals-per-hour", "10", "--slo", "itl_s:p90<1"], "with arrivals expected one of ttft_s"),
    ],
)
def test_plan_refuses_arrivals_that_make_no_sense(argv, expected, capsys):
    assert cli.main(["plan", *argv]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("short_peaks")
def test_plan_for_users_who_think(tmp_path, capsys):
    asked = ["plan", "--users", "40", "--think-time", "30", "--slo", "ttft_s:p90<2", "--study", study_of(tmp_path)]
    code, out, _ = said([*asked, "--gpu-hour-price", "2"], capsys)
    assert code == 0
    assert "40 users at work at once, 30 s of thought between requests: about" in out
    assert out.startswith("40 users who think 30 s between requests need 1 L20 GPU")
    assert "predicted, not measured" in out
    found = json.loads(said([*asked, "--json"], capsys)[1])
    assert found["users"] == 40
    assert found["requests_per_day"] < 40 * 86_400 / 30


def test_plan_for_one_model_and_engine(tmp_path, capsys):
    """The published study has three models on L20; the question is about one."""
    asked = ["plan", "--users", "20", "--slo", "ttft_s:p90<2", "--model", "7b", "--engine", "vllm", "--tp", "1"]
    code, out, _ = said(asked, capsys)
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith("PREDICTED")]
    assert len(rows) == 1
    assert "vllm-sim_qwen2.5-7b-instruct_tp1" in rows[0]
    assert out.splitlines()[0].endswith("(predicted, not measured; within 90th percentile of time to first token < 2 s).")


def test_plan_for_a_model_and_a_gpu_of_no_study(capsys):
    asked = ["plan", "--users", "4", "--slo", "ttft_s:p90<2", "--model", "qwen2.5-7b-instruct", "--gpu", "h100", "--tp", "1"]
    code, out, _ = said(asked, capsys)
    assert code == 0
    assert "1 H100 GPU (1 to be safe) with SGLang or vLLM" in out


def test_plan_of_a_short_run_composes_what_the_levels_lack(tmp_path, capsys):
    """12 requests a level give no p90 of their own."""
    run = run_folder(tmp_path / "run", levels=(1, 2, 4))
    asked = ["plan", "--users", "40", "--slo", "time_to_final_answer_s:p90<100", "--from", run, "--gpu-hour-price", "2"]
    code, out, _ = said(asked, capsys)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("measured"))
    assert "at most 13" in row
    assert "—" not in row
    assert "measure 8 users next" in out


def test_an_slo_that_nothing_meets_is_said_in_the_sentence(tmp_path, capsys):
    asked = ["plan", "--users", "4", "--slo", "ttft_s:p90<0.000001", "--from", run_folder(tmp_path / "run", n=40)]
    code, out, _ = said(asked, capsys)
    assert code == 0
    assert "not even the lowest level meets ttft_s:p90<0.000001" in out
    assert out.startswith("No configuration here is known to serve 4 requests in flight")
    assert "not even the lowest level meets ttft_s:p90<0.000001." in out.splitlines()[0]


@pytest.mark.usefixtures("short_peaks")
@pytest.mark.parametrize(("asked", "why"), [
    (["--users", "8"], "tpot_s:p90<1 cannot be judged at concurrency 1: needs 36 requests there"),
    (["--arrivals-per-hour", "99"], "no finished request tells its prompt and output tokens; measure some"),
])  # fmt: skip
def test_plan_says_first_what_a_run_does_not_tell(asked, why, tmp_path, capsys):
    run = run_folder(tmp_path / "run", n=3, prompt_tokens=None)
    code, out, _ = said(["plan", *asked, "--slo", "tpot_s:p90<1", "--from", run], capsys)
    assert code == 0
    assert out.startswith("No configuration here is known to serve ")
    assert why in out.splitlines()[0]


@pytest.mark.usefixtures("short_peaks")
def test_plan_takes_an_imported_run_and_a_bundle(tmp_path, capsys):
    write_vllm(tmp_path / "c4.json", n=48)
    told = [str(tmp_path / "c4.json"), "--engine", "vllm", "--tp", "1", "--gpu", "l20", "--out", str(tmp_path / "run")]
    assert cli.main(["import", *told]) == 0
    assert cli.main(["bundle", str(tmp_path / "run"), "-o", str(tmp_path / "one.loadtest")]) == 0
    capsys.readouterr()
    for source in ("run", "one.loadtest"):
        assert cli.main(["plan", *ARRIVALS, "--from", str(tmp_path / source), "--json"]) == 0
        [option] = json.loads(capsys.readouterr().out)["options"]
        assert option["known_streams"] == 4
        assert option["replicas"]["likely"] >= 1


def test_plan_takes_no_capacity_from_an_open_loop(tmp_path, capsys):
    run = run_folder(tmp_path / "run", scenario_options={"arrivals": "poisson", "rate": 1.0})
    code, _, err = said(["plan", "--users", "8", "--slo", "ttft_s:p50<9", "--from", run], capsys)
    assert code == 2
    assert "expected a run at levels of concurrency, got an open loop" in err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same engine measured by bursts and by levels, in virtual time."""
    folder = tmp_path_factory.mktemp("runs")
    cell = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20", args=("--length-scale", "0.1"))
    study = Study(name="s", workload="math:n=64,seed=7", cells=(cell,), levels=(1, 8), min_requests=64)
    by_bursts = replace(study, mode="decision", natural_users=8, natural_prompts=64)
    for name, one in (("levels", study), ("bursts", by_bursts)):
        assert fast_forward.simulate_study(one, folder / name, say=lambda line: None) == ()
    return folder


SLOW = ["--slo", "tokens_per_s_per_user:p50>5", "--json"]


@pytest.mark.parametrize("asked", [["--users", "100"], ["--arrivals-per-hour", "20000", "--peak-factor", "1"]])
@pytest.mark.usefixtures("short_peaks")
def test_plan_from_bursts_needs_what_plan_from_levels_needs(asked, runs, capsys):
    found = {}
    for name in ("levels", "bursts"):
        assert cli.main(["plan", *asked, "--from", str(runs / name), *SLOW]) == 0
        [found[name]] = json.loads(capsys.readouterr().out)["options"]
    assert (found["levels"]["composed"], found["bursts"]["composed"]) == (False, True)
    likely = {name: one["replicas"].get("value") or one["replicas"].get("likely") for name, one in found.items()}
    assert likely["bursts"] == pytest.approx(likely["levels"], rel=0.1)
    assert found["bursts"]["next_measurement"] == "measure 16 users next"


def test_plan_from_bursts_says_so(runs, capsys):
    assert cli.main(["plan", "--users", "100", "--from", str(runs / "bursts"), *SLOW[:2]]) == 0
    out = capsys.readouterr().out
    assert "composed: the speeds of vllm-sim_qwq-32b-awq_tp1 are of bursts" in out
    assert "no bound: too few requests, prompts or starts for an interval" in out
