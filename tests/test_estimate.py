"""The time a study may take: by hand from the performance model's rate."""

from dataclasses import replace

import pytest

from loadtest import estimate, hardware, models, roofline
from loadtest.contract import Contract
from loadtest.prompts import Prompt
from loadtest.study import Cell, Study
from loadtest.workload import Workload

PROMPTS = tuple(
    Prompt(id=str(n), messages=({"role": "user", "content": "x" * 400},), thinking_tokens=900, answer_tokens=100)
    for n in range(4)
)
WORKLOAD = Workload(name="w", prompts=PROMPTS, identity="0" * 64, source="w")
CELL = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20")
STUDY = Study(name="s", workload="w", cells=(CELL,), levels=(1, 4), min_requests=6, requests_per_stream=3, repeats=2)


def test_by_hand():
    made = roofline.Deployment(models.model("qwq-32b-awq"), hardware.gpu("l20"), 1, "vllm", 0.9)
    found = estimate.of_cell(STUDY, CELL, WORKLOAD, Contract())
    for level, requests in ((1, 6 + 1), (4, 12 + 4)):  # measured and warm-up
        rate = roofline.predict(made, prompt_tokens=112, output_tokens=1000, concurrency=level).output_tokens_per_s.value
        assert found.pass_s[level] == pytest.approx(requests * 1000 / rate + 3)
    assert found.start_s == pytest.approx(60 + models.model("qwq-32b-awq").weight_bytes / 1e9)
    assert found.all_s(2) == pytest.approx(2 * (found.start_s + found.pass_s[1] + found.pass_s[4]))


def test_the_speed_of_a_clock_and_the_scale_of_lengths_count():
    slow = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20")
    drawn = replace(WORKLOAD, prompts=tuple(replace(p, thinking_tokens=None, answer_tokens=None) for p in PROMPTS))
    one = estimate.of_cell(STUDY, slow, drawn, Contract()).pass_s[1]
    fast = estimate.of_cell(STUDY, replace(slow, clock_speed=10.0), drawn, Contract()).pass_s[1]
    assert fast - 3 == pytest.approx((one - 3) / 10)
    short = estimate.of_cell(STUDY, replace(slow, args=("--length-scale", "0.1")), drawn, Contract()).pass_s[1]
    assert (short - 3) / (one - 3) == pytest.approx(0.1, rel=0.05)


def test_a_duration_is_taken_at_its_word():
    found = estimate.of_cell(replace(STUDY, duration_s=60.0), replace(CELL, gpu=None), WORKLOAD, Contract())
    assert found.pass_s == {1: 63.0, 4: 63.0}


@pytest.mark.parametrize("cell", [replace(CELL, gpu=None), replace(CELL, model="a/b"), replace(CELL, model="qwq-32b")])
def test_what_cannot_be_foreseen_is_null(cell):
    found = estimate.of_cell(STUDY, cell, WORKLOAD, Contract())
    assert found.pass_s == {1: None, 4: None}
    assert found.all_s(1) is None
