"""Each row of an acceptance, passed, failed and not run, by hand-made records and figures."""

from dataclasses import replace

import msgspec
import pytest

from loadtest.analysis import acceptance
from loadtest.analysis.acceptance import AcceptanceRow, GpusHere, Stage, checks
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


L20 = GpusHere(("NVIDIA L20",), 1, "l20")


def accepted(cells, extremes=(), predicted=None, smi=(), gpus=L20, edit=lambda metrics: metrics):
    stages = []
    for title, each in (("one GPU", cells), ("extremes", extremes)):
        run = builders.run(each, repeats=2 if title == "one GPU" else 1)
        stages.append(Stage(title, run, edit(analyze(run))) if each else Stage(title, reason="no time left"))
    return checks(stages, gpus, predicted or {}, smi)


def row(found, check, of=None):
    (one,) = [each for each in found if each.check == check and of in (None, each.of)]
    return one


def test_a_start_says_how_long_it_took_or_why_it_failed():
    assert row(accepted([cell()]), "start and stop").got == "1.0, ready after 30 s, exit code 0"
    failed = row(accepted([builders.cell([], "vllm", status="failed", reason="CUDA error")]), "start and stop")
    assert (failed.result, failed.got) == ("fail", "failed: CUDA error")
    skipped = row(accepted([builders.cell([], "vllm", status="skipped", reason="vllm: not found")]), "start and stop")
    assert (skipped.result, skipped.got) == ("not run", "vllm: not found")


def test_what_no_time_was_left_for_is_not_run():
    late = row(accepted([cell(status="skipped", reason="no time left: ...")]), "start and stop")
    assert (late.result, late.got) == ("pass", "1.0, ready after 30 s, exit code 0; no time left: ...")
    cut = cell(status="skipped", reason="no time left: not healthy after 9 s", ready_unix_s=None)
    found = accepted([cut])
    assert row(found, "start and stop").result == "not run"
    assert row(found, "token counts").result == "pass", "of its earlier start"
    assert row(found, "extremes") == AcceptanceRow(
        "extremes", "both engines", "ready, measured and stopped", "no time left", "not run"
    )


def test_what_was_interrupted_did_not_fail():
    during_start = builders.cell([], "vllm", status="interrupted", reason="interrupted before ...", started_unix_s=1.0)
    found = accepted([during_start], smi=[by_wall_time(one) for one in samples(100.0)])
    assert not [each for each in found if each.result == "fail"]
    assert row(found, "start and stop").got == "interrupted before ..."
    assert row(found, "joules against nvidia-smi").result == "not run"


def test_a_cell_that_an_interruption_left_out_has_a_row():
    run = builders.run([cell()], incomplete_reason="interrupted")
    asked = (*run.manifest.cells, change(run.manifest.cells[0], id="vllm_m_tp1"))
    run = replace(run, manifest=change(run.manifest, cells=asked))
    found = checks([Stage("one GPU", run, analyze(run))], L20, {}, ())
    assert row(found, "start and stop", "vllm_m_tp1").got == "interrupted"


@pytest.mark.parametrize(
    ("gpus", "got", "result"),
    [
        (GpusHere(("NVIDIA L20",) * 2, 2, "l20"), "2 x NVIDIA L20 (l20); NVML counts 2", "pass"),
        (GpusHere(("NVIDIA X1",), None, None), "1 x NVIDIA X1 (not in the registry); NVML has no bindings (the extra gpu)",
         "fail"),
        (GpusHere((), 1, None), "none by nvidia-smi (not in the registry); NVML counts 1", "fail"),
        (GpusHere(), "no GPU", "not run"),
    ],
)  # fmt: skip
def test_both_witnesses_count_the_gpus(gpus, got, result):
    found = row(accepted([cell()], gpus=gpus), "GPUs")
    assert (found.got, found.result) == (got, result)


@pytest.mark.parametrize(
    ("field", "got", "result"),
    [
        ("reasoning", "reasoning in 24 of 24 answers, 24 went on to an answer", "pass"),
        ("inline", "inline in 24 of 24 answers, 24 went on to an answer", "fail"),
        (None, "none in 24 answers", "not run"),
    ],
)
def test_thinking_comes_in_a_field_of_its_own(field, got, result):
    levels = [builders.level(builders.closed_loop(1, 12, seed=r, thinking_field=field), repeat=r) for r in (1, 2)]
    found = row(accepted([builders.cell(levels, **START)]), "thinking")
    assert (found.got, found.result) == (got, result)


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
        levels = [change(one, joules_per_output_token=Estimate(0.5, (0.4, 0.6), 2)) for one in metrics.cells[0].levels]
        return change(metrics, cells=(change(metrics.cells[0], levels=tuple(levels)),))

    assert row(accepted([cell()]), "power by NVML").result == "fail"
    assert row(accepted([cell()], gpus=GpusHere()), "power by NVML").result == "not run"
    assert row(accepted([cell()], edit=known), "power by NVML").got == "0.5 J (1 of 1 levels)"


@pytest.mark.parametrize(("low", "high", "result"), [(0.02, 0.04, "pass"), (0.04, 0.05, "fail"), (0.01, 0.02, "fail")])
def test_speed_lies_in_the_predicted_range(low, high, result):
    tpot = PredictedRange(0.03, low, high)
    told = Prediction(True, tpot, tpot, None, tpot, tpot, True, 1, "", ())
    one = cell()
    assert row(accepted([one], predicted={one.id: told}), "time per token, one user").result == result
    assert row(accepted([one]), "time per token, one user").result == "not run"


def samples(power_w, n=11, every_s=1.0, **more):
    facts = {"clock_anchor_unix_s": 1000.0, "clock_speed": 1.0, "gpu": 0, "power_w": power_w} | more
    return [GpuSample(t_s=every_s * k, **facts) for k in range(n)]


@pytest.mark.parametrize(("power_w", "result"), [(100.0, "pass"), (109.0, "pass"), (120.0, "fail"), (80.0, "fail")])
def test_both_witnesses_of_the_energy_agree(power_w, result):
    theirs = [by_wall_time(one) for gpu in (0, 1) for one in samples(100.0, n=45, every_s=0.25, gpu=gpu)]
    found = row(accepted([watched(samples(power_w))], smi=theirs), "joules against nvidia-smi")
    assert found.result == result
    assert found.got == f"NVML {2 * 8 * power_w:.0f} J, nvidia-smi 1600 J over 2 repeats"


def watched(gpu):
    """A cell whose GPU gave these readings in every repeat."""
    records = cell()
    return replace(records, levels=tuple(replace(one, gpu=tuple(gpu)) for one in records.levels))


@pytest.mark.parametrize(("used_gb", "result"), [(70, "pass"), (71, "pass"), (72, "fail"), (68, "fail")])
def test_both_witnesses_of_the_memory_agree(used_gb, result):
    ours = samples(100.0, memory_used_bytes=used_gb * 10**9)
    theirs = [by_wall_time(one) for one in samples(100.0, memory_used_bytes=70 * 10**9)]
    idle = [by_wall_time(one) for one in samples(100.0, memory_used_bytes=99 * 10**9, clock_anchor_unix_s=5000.0)]
    found = row(accepted([watched(ours)], smi=[*theirs, *idle]), "memory against nvidia-smi")
    assert found.result == result
    assert found.got == f"GPU 0: NVML {used_gb}.0 GB, nvidia-smi 70.0 GB"


@pytest.mark.parametrize(("after_gb", "result"), [(1, "pass"), (2, "pass"), (3, "fail")])
def test_the_memory_is_given_back(after_gb, result):
    used = [(0.0, 1), (1.0, 70), (2.0, after_gb)]
    told = [samples(100.0, n=1, clock_anchor_unix_s=at_s, memory_used_bytes=gb * 10**9)[0] for at_s, gb in used]
    found = row(accepted([cell()], smi=told), "memory given back")
    assert (found.result, found.got) == (result, f"GPU 0: 1.0 GB before, {after_gb}.0 GB after")


def by_wall_time(one):
    """As nvidia-smi's are kept."""
    return replace(one, clock_anchor_unix_s=one.clock_anchor_unix_s + one.t_s, t_s=0.0)


def test_without_nvidia_smi_the_energy_is_not_run():
    for check in ("joules against nvidia-smi", "memory against nvidia-smi", "memory given back"):
        assert row(accepted([cell()]), check).result == "not run"


def test_two_starts_of_each_engine_decide_and_tell_how_they_vary():
    found = accepted([cell("vllm"), cell("sglang", gap_s=0.04)])
    assert row(found, "decision").result == "pass"
    assert row(found, "start-to-start variation").result == "pass"
    alone = accepted([cell("vllm")])
    assert row(alone, "decision") == AcceptanceRow(
        "decision",
        "both engines",
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
    for name, check in ((acceptance.SPECULATIVE, "speculative decoding"), (acceptance.TOO_LARGE, "out of memory")):
        for status in ("skipped", "interrupted"):
            left_out = extreme(name, status=status, reason="not here")
            found = accepted([cell()], [left_out])
            assert row(found, check).result == "not run"
            assert {each.got for each in found if each.check == "refusal"} <= {"not here"}
