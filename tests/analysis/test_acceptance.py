"""Each row of an acceptance, passed and failed, by hand-made records and figures."""

from dataclasses import replace

import msgspec
import pytest

from loadtest.analysis import acceptance
from loadtest.analysis.acceptance import AcceptanceRow, checks
from loadtest.analysis.run import analyze
from loadtest.metrics.figures import Estimate
from loadtest.perfmodel.prediction import PredictedRange, Prediction
from loadtest.records.engine_facts import ContractFacts
from loadtest.records.schema import GpuSample
from tests.support import builders

change = msgspec.structs.replace
START = {"started_unix_s": 100.0, "ready_unix_s": 130.0, "stopped_unix_s": 400.0, "exit_code": 0, "status": "ok"}


def cell(engine="vllm", gap_s=0.03, **facts):
    levels = [builders.level(builders.closed_loop(1, 12, gap_s=gap_s, seed=r), repeat=r) for r in (1, 2)]
    return builders.cell(levels, engine, **{**START, **facts})


def accepted(cells, extremes=(), predicted=None, smi=(), edit=lambda metrics: metrics):
    run, beside = builders.run(cells), builders.run(extremes)
    return checks((run, edit(analyze(run))), (beside, analyze(beside)), predicted or {}, smi)


def row(found, check, of=None):
    (one,) = [each for each in found if each.check == check and of in (None, each.of)]
    return one


def test_a_start_says_how_long_it_took_or_why_it_failed():
    assert row(accepted([cell()]), "start and stop").got == "ready after 30 s, exit code 0"
    failed = row(accepted([builders.cell([], "vllm", status="failed", reason="CUDA error")]), "start and stop")
    assert (failed.result, failed.got) == ("fail", "failed: CUDA error")
    skipped = row(accepted([builders.cell([], "vllm", status="skipped", reason="vllm: not found")]), "start and stop")
    assert (skipped.result, skipped.got) == ("not run", "vllm: not found")


@pytest.mark.parametrize(
    ("contract", "result"),
    [
        (None, "not run"),
        (ContractFacts(requested={"yarn": False, "seed": 1}, effective={"yarn": False}), "pass"),
        (ContractFacts(requested={"yarn": False}, effective={"yarn": True}, violations=("yarn: ...",)), "fail"),
    ],
)
def test_settings(contract, result):
    assert row(accepted([cell(contract=contract)]), "settings").result == result


@pytest.mark.parametrize(
    ("told", "result"), [(1000, "pass"), (1140, "pass"), (1160, "fail"), (840, "fail"), (None, "not run")]
)
def test_the_kv_cache_is_as_large_as_computed(told, result):
    fit = builders.fit(kv_capacity_tokens=1000)
    assert row(accepted([cell(fit=fit, server_info={"kv_cache_tokens": told})]), "KV cache").result == result


def test_power_must_be_known_at_every_level():
    def known(metrics):
        levels = [change(one, joules_per_answer=Estimate(50.0, (40.0, 60.0), 2)) for one in metrics.cells[0].levels]
        return change(metrics, cells=(change(metrics.cells[0], levels=tuple(levels)),))

    assert row(accepted([cell()]), "power by NVML").result == "fail"
    assert row(accepted([cell()], edit=known), "power by NVML").got == "50 J (1 of 1 levels)"


@pytest.mark.parametrize(("low", "high", "result"), [(0.02, 0.04, "pass"), (0.04, 0.05, "fail"), (0.01, 0.02, "fail")])
def test_speed_lies_in_the_predicted_range(low, high, result):
    tpot = PredictedRange(0.03, low, high)
    told = Prediction(True, tpot, tpot, None, tpot, tpot, True, 1, "", ())
    one = cell()
    assert row(accepted([one], predicted={one.id: told}), "time per token, one user").result == result
    assert row(accepted([one]), "time per token, one user").result == "not run"


def samples(power_w, n=11, every_s=1.0):
    return [
        GpuSample(t_s=every_s * k, clock_anchor_unix_s=1000.0, clock_speed=1.0, gpu=0, power_w=power_w) for k in range(n)
    ]


@pytest.mark.parametrize(("power_w", "result"), [(100.0, "pass"), (109.0, "pass"), (120.0, "fail"), (80.0, "fail")])
def test_both_witnesses_of_the_energy_agree(power_w, result):
    records = cell()
    measured = replace(records, levels=tuple(replace(one, gpu=tuple(samples(power_w))) for one in records.levels))
    theirs = [by_wall_time(one) for one in samples(100.0, n=45, every_s=0.25)]
    found = row(accepted([measured], smi=theirs), "joules against nvidia-smi")
    assert found.result == result
    assert found.got == f"NVML {2 * 8 * power_w:.0f} J, nvidia-smi 1600 J over 2 repeats"


def by_wall_time(one):
    """As nvidia-smi's are kept."""
    return replace(one, clock_anchor_unix_s=one.clock_anchor_unix_s + one.t_s, t_s=0.0)


def test_without_nvidia_smi_the_energy_is_not_run():
    assert row(accepted([cell()]), "joules against nvidia-smi").result == "not run"


def test_two_starts_of_each_engine_decide_and_tell_how_they_vary():
    found = accepted([cell("vllm"), cell("sglang", gap_s=0.04)])
    assert row(found, "decision").result == "pass"
    assert row(found, "start-to-start variation").result == "pass"
    alone = accepted([cell("vllm")])
    assert row(alone, "decision") == AcceptanceRow(
        "decision",
        "the engines",
        "a verdict with its interval, from two starts of each",
        "one engine was measured",
        "not run",
    )


def extreme(name, **facts):
    return builders.cell([], "vllm", name=name, **facts)


def test_what_is_too_large_is_foretold_and_then_fails_for_memory():
    fit = builders.fit(fits=False, reason="needs 1.5 GB, has 0.7 GB")
    dead = extreme(acceptance.TOO_LARGE, fit=fit, status="failed", reason="CUDA out of memory: ...")
    found = accepted([cell()], [dead])
    assert row(found, "refusal").got == "needs 1.5 GB, has 0.7 GB"
    assert row(found, "out of memory").result == "pass"
    other = extreme(acceptance.TOO_LARGE, fit=builders.fit(), status="failed", reason="the port is taken")
    found = accepted([cell()], [other])
    assert (row(found, "refusal").result, row(found, "out of memory").result) == ("fail", "fail")


def test_speculation_must_be_counted_by_the_engine():
    assert row(accepted([cell()], [extreme(acceptance.SPECULATIVE, status="ok")]), "speculative decoding").result == "fail"
    skipped = extreme(acceptance.SPECULATIVE, status="skipped", reason="not here")
    assert row(accepted([cell()], [skipped]), "speculative decoding").result == "not run"
