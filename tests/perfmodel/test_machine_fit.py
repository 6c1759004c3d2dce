"""Calibration on one's own runs: hidden constants recovered, levels that were not measured predicted, files."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, machine_fit, measurements, models
from loadtest.perfmodel.constants import FACTORS, Machine
from loadtest.perfmodel.machine_fit import RunLevel
from loadtest.perfmodel.memory import Deployment

HIDDEN = Machine(overhead=1.6, weights=1.15, kv=1.3, all_reduce=1.5)
TABLE = Path(__file__).parents[3] / "shared" / "data" / "batched" / "batched_dennislee22_a100.csv"


def level(concurrency, model="qwq-32b", machine=HIDDEN, tp=2, prompt_tokens=400):
    deployment = Deployment(models.model(model), gpus.gpu("l20"), tp, "vllm", interconnect="pcie-host")
    blank = RunLevel(deployment, concurrency, prompt_tokens, 2000, 1.0)
    return replace(blank, tpot_s=machine_fit.tpot_s(blank, machine))


def test_hidden_constants_are_found_by_what_they_do():
    found = machine_fit.fit_machine([level(n) for n in (1, 4, 16)], "made up")
    for n in (2, 8, 12, 24):
        assert abs(machine_fit.residual(level(n), found)) < 0.03
    other = level(4, "qwq-32b-awq")
    assert abs(machine_fit.residual(other, found)) < 0.12
    assert abs(machine_fit.residual(other, found)) < abs(machine_fit.residual(other, Machine()))


def test_a_small_and_a_large_model_at_short_and_long_contexts_show_every_factor():
    hidden = Machine(overhead=1.6, streams=1.4, weights=1.15, kv=1.3, all_reduce=1.5, prefill=1.2)
    levels = [
        replace(level(n, name, hidden, tp, prompt), output_tokens=500)
        for name in ("qwen2.5-1.5b-instruct", "qwen2.5-7b-instruct")
        for tp in (1, 2) for n in (1, 8, 64) for prompt in (100, 16_000)
    ]  # fmt: skip
    levels = [replace(one, tpot_s=machine_fit.tpot_s(one, hidden)) for one in levels]
    found = machine_fit.fit_machine(levels, "made up")
    for key in FACTORS:
        assert getattr(found, key) == pytest.approx(getattr(hidden, key), rel=0.03)


def test_a_machine_like_the_model_stays_at_one():
    found = machine_fit.fit_machine([level(n, machine=Machine()) for n in (1, 8)], "made up")
    assert [getattr(found, key) for key in FACTORS] == pytest.approx([1.0] * len(FACTORS), abs=0.01)


def test_what_the_levels_leave_unexplained_becomes_the_range():
    odd = [replace(level(n), tpot_s=level(n).tpot_s * wobble) for n, wobble in ((1, 1.3), (2, 0.8), (4, 1.25), (8, 0.75))]
    assert machine_fit.fit_machine(odd, "made up").range > 0.2
    assert machine_fit.fit_machine([level(1)], "made up").range == pytest.approx(0.08)


@pytest.mark.skipif(not TABLE.is_file(), reason="the published table is not beside this checkout")
@pytest.mark.parametrize(
    ("family", "tp", "worst"), [("Qwen2-7B-Instruct", 1, 0.09), ("Qwen2-7B-Instruct", 2, 0.10), ("Qwen2.5-32B", 2, 0.12)]
)
def test_two_published_levels_predict_the_others(family, tp, worst):
    """Levels 1 and 10 fitted; 20, 30 and 50 predicted, prompts all at once (so that half of them delay a stream, not
    all)."""
    rows = {
        round(one.streams): one
        for one in measurements.read_measurements(TABLE)
        if (one.family, one.deployment.tp, one.output_tokens) == (family, tp, 1024)
    }
    levels = {
        n: RunLevel(one.deployment, n, 1024, 1024, one.measured_s - one.wait_s / 1023 + _closed_loop_s(one, n))
        for n, one in rows.items()
    }
    found = machine_fit.fit_machine([levels[1], levels[10]], "levels 1 and 10")
    predicted = [n for n in (20, 30, 50) if n in levels]
    assert len(predicted) >= 2
    for n in predicted:
        assert abs(machine_fit.residual(levels[n], found)) < worst


def _closed_loop_s(one, n):
    """What the prompts of the others would add to a token in a closed loop, by the model (s)."""
    from loadtest.perfmodel.prediction import cycle

    return cycle(one.deployment, 1024, 1024, n).halted_s / 1023


def test_a_file_holds_what_was_found(tmp_path):
    machine = Machine(overhead=1.25, kv=0.9, range=0.11, source='two "runs"')
    path = tmp_path / "machine.toml"
    path.write_text(machine_fit.as_toml(machine))
    assert machine_fit.read_machine(path) == replace(machine, source="two 'runs'")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 1\n", "unknown key 'colour'"),
        ('overhead = "much"\n', "overhead must be a number, got 'much'"),
        ("overhead = 5000\n", "overhead: expected a factor from 0.01 to 1000, got 5000"),
        ("range = -1\n", "range: expected a ratio above 0"),
        ("not toml", "is not TOML"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path, text, complaint):
    path = tmp_path / "machine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as raised:
        machine_fit.read_machine(path)
    assert "machine.toml" in str(raised.value)


def test_nothing_measured_is_a_usage_error():
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        machine_fit.fit_machine([], "none")
