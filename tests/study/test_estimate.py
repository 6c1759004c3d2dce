"""The time a study may take: by hand from the performance model's rate."""

from dataclasses import replace

import pytest

from loadtest.perfmodel import gpus, memory, models, prediction, step_time
from loadtest.study import estimate
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt
from loadtest.workload.workload import Workload

PROMPTS = tuple(
    Prompt(id=str(n), messages=({"role": "user", "content": "x" * 400},), thinking_tokens=900, answer_tokens=100)
    for n in range(4)
)
WORKLOAD = Workload(name="w", prompts=PROMPTS, identity="0" * 64, source="w")
CELL = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20")
STUDY = Study(name="s", workload="w", cells=(CELL,), levels=(1, 4), min_requests=6, requests_per_stream=3, repeats=2)


def passes_s(found):
    return {one.concurrency: seconds for one, seconds in found.passes_s.items()}


def level(concurrency):
    return AskedPass(concurrency=concurrency, requests=8)


def test_by_hand():
    made = memory.Deployment(models.model("qwq-32b-awq"), gpus.gpu("l20"), 1, "vllm", 0.9)
    found = estimate.of_cell(STUDY, CELL, WORKLOAD, Contract())
    for level, requests in ((1, 6 + 1), (4, 12 + 4)):  # measured and warm-up
        rate = prediction.predict(made, prompt_tokens=112, output_tokens=1000, concurrency=level).output_tokens_per_s.value
        assert passes_s(found)[level] == pytest.approx(requests * 1000 / rate + 3)
    assert found.start_s == pytest.approx(60 + models.model("qwq-32b-awq").weight_bytes / 1e9)
    assert found.all_s(2) == pytest.approx(2 * (found.start_s + passes_s(found)[1] + passes_s(found)[4]))


def test_the_speed_of_a_clock_and_the_scale_of_lengths_count():
    slow = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20")
    drawn = replace(WORKLOAD, prompts=tuple(replace(p, thinking_tokens=None, answer_tokens=None) for p in PROMPTS))
    one = passes_s(estimate.of_cell(STUDY, slow, drawn, Contract()))[1]
    fast = passes_s(estimate.of_cell(STUDY, replace(slow, clock_speed=10.0), drawn, Contract()))[1]
    assert fast - 3 == pytest.approx((one - 3) / 10)
    short = passes_s(estimate.of_cell(STUDY, replace(slow, args=("--length-scale", "0.1")), drawn, Contract()))[1]
    assert (short - 3) / (one - 3) == pytest.approx(0.1, rel=0.05)


def test_drafts_of_a_simulator_shorten_a_pass():
    slow = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20")
    plain, drafted, wrong = (
        passes_s(estimate.of_cell(STUDY, replace(slow, args=args), WORKLOAD, Contract()))[1]
        for args in ((), ("--speculation", "3,4,4"), ("--speculation",))
    )
    assert drafted < plain / 1.5
    assert wrong == plain


@pytest.mark.parametrize(
    ("engine", "args", "told"),
    [
        ("vllm", ("--enable-expert-parallel",), (True, False)),
        ("sglang", ("--ep-size", "8"), (True, False)),
        ("sglang", ("--moe-a2a-backend", "none"), (False, False)),
        ("sglang", ("--moe-a2a-backend=deepep",), (True, True)),
        ("sglang-sim", ("--expert-parallel", "all-to-all"), (True, True)),
        ("vllm-sim", ("--expert-parallel",), (True, False)),
    ],
)
def test_how_experts_get_their_tokens_is_read_from_the_arguments(engine, args, told):
    cell = Cell(engine=engine, model="qwen3-235b-a22b-fp8", gpu="h200", tp=8, args=args)
    made = estimate.deployment_of(cell, Contract())
    assert (made.expert_parallel, made.all_to_all) == told


def test_a_duration_is_taken_at_its_word():
    found = estimate.of_cell(replace(STUDY, duration_s=60.0), replace(CELL, gpu=None), WORKLOAD, Contract())
    assert passes_s(found) == {1: 63.0, 4: 63.0}


@pytest.mark.parametrize("cell", [replace(CELL, gpu=None), replace(CELL, model="a/b"), replace(CELL, model="qwq-32b")])
def test_what_cannot_be_foreseen_is_null(cell):
    found = estimate.of_cell(STUDY, cell, WORKLOAD, Contract())
    assert passes_s(found) == {1: None, 4: None}
    assert found.all_s(1) is None


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s


def test_what_remains_follows_the_pace_and_leaves_out_what_will_never_be(monkeypatch):
    """Two cells, two levels, two passes, and nothing foreseen: each pass counts alike, and the first took 100 s."""
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    first, second = replace(CELL, gpu=None), replace(CELL, gpu=None, engine="sglang")
    left = estimate.Remaining(replace(STUDY, cells=(first, second)), WORKLOAD, Contract())
    clock.now_s = 100.0
    assert left.after(first, level(1)) == ", about 12 min left"  # 7 passes
    left.never(second.id)
    clock.now_s = 200.0
    assert left.after(first, level(4)) == ", about 3 min left"  # its second pass over both levels
    left.ended(first, 1)
    left.ended(second, 1)
    clock.now_s = 300.0
    assert left.after(first, level(1)) == ", about 2 min left"
    assert left.after(first, level(4)) == ""


def test_a_cell_that_dies_leaves_the_rest_of_its_pass_unmeasured(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    cell = replace(CELL, gpu=None)
    left = estimate.Remaining(replace(STUDY, cells=(cell,), repeats=2), WORKLOAD, Contract())
    left.ended(cell, 1)
    clock.now_s = 60.0
    assert left.after(cell, level(1)) == ", about 60 s left"


def test_a_cool_down_is_time_too():
    rested = estimate.of_cell(replace(STUDY, cooldown_s=10.0), CELL, WORKLOAD, Contract())
    assert passes_s(rested)[1] == pytest.approx(passes_s(estimate.of_cell(STUDY, CELL, WORKLOAD, Contract()))[1] + 10)


@pytest.mark.parametrize(
    ("of", "n_ended", "expected_s", "left_s"),
    [
        ({}, 0, None, None),
        ({}, 0, 80.0, 20.0),
        ({}, 0, 50.0, 0.0),  # it takes longer than expected
        ({}, 10, 80.0, 60 / 11),  # 11 of 12 done in 60 s
        ({}, 12, 80.0, 0.0),
        ({}, 13, 80.0, None),  # tasks of several turns
        ({"contexts_tokens": (200, 1500)}, 4, 90.0, 30.0),
    ],
)
def test_how_long_a_pass_will_still_take(of, n_ended, expected_s, left_s):
    asked = AskedPass(**{"concurrency": 4, "requests": 8, "warmup_requests": 1} | of)
    assert estimate.level_left_s(asked, n_ended, 60.0, expected_s) == (left_s and pytest.approx(left_s))


def test_the_passes_beyond_one_follow_its_pace_until_another_has_ended(monkeypatch):
    """Two levels, two repeats, nothing foreseen: four passes alike."""
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    cell = replace(CELL, gpu=None)
    left = estimate.Remaining(replace(STUDY, cells=(cell,), repeats=2), WORKLOAD, Contract())
    assert left.pass_s(cell, level(1)) is None
    assert left.beyond_s(cell, level(1), 50.0) == pytest.approx(150.0)
    clock.now_s = 100.0
    left.after(cell, level(1))
    assert left.pass_s(cell, level(4)) == pytest.approx(100.0)
    assert left.beyond_s(cell, level(4), 50.0) == pytest.approx(200.0)


def test_what_is_foreseen_is_told_from_the_start():
    left = estimate.Remaining(STUDY, WORKLOAD, Contract())
    foreseen = passes_s(estimate.of_cell(STUDY, CELL, WORKLOAD, Contract()))
    assert left.pass_s(CELL, level(4)) == pytest.approx(foreseen[4])


def test_bursts_take_their_prompts_one_after_another_and_then_their_outputs_together():
    study = replace(STUDY, mode="decision", natural_users=4, natural_prompts=8)
    found = estimate.of_cell(study, CELL, WORKLOAD, Contract())
    made = memory.Deployment(models.model("qwq-32b-awq"), gpus.gpu("l20"), 1, "vllm", 0.9)
    chunk = step_time.chunk_tokens(made, 5000)
    prefills_s = sum(4 * step_time.prefill_s(made, tokens, chunk) for tokens in (200, 200, 1500, 5000))
    decoding_s = sum(
        step_time.decode_s(made, tokens, n, 4) for tokens, n in ((200, 32), (200, 256), (1500, 256), (5000, 256))
    )
    lone_s = 4 * (step_time.prefill_s(made, 112, chunk) + step_time.decode_s(made, 112, 8))
    assert passes_s(found)[4] == pytest.approx(prefills_s + decoding_s + lone_s + 3)
    assert [(one.concurrency, one.kind, one.requests) for one in found.once_s] == [(4, "level", 8)]
    assert found.all_s(3) == pytest.approx(3 * (found.start_s + sum(passes_s(found).values())) + sum(found.once_s.values()))
    assert estimate.of_cell(study, CELL, WORKLOAD, Contract(), natural=False).once_s == {}
