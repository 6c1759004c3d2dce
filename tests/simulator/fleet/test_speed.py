"""Tables of a step against the model that they were read off, and from levels by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import step_time
from loadtest.perfmodel.gpus import gpu
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.models import model
from loadtest.perfmodel.step_time import StepWork
from loadtest.simulator.fleet import speed

DEPLOYMENT = Deployment(model("qwq-32b-awq"), gpu("l20"), 2)
TABLES = speed.from_steps(lambda work: step_time.step_time_s(DEPLOYMENT, work), 2048, 64)


@given(st.integers(1, 2048), st.integers(0, 64), st.integers(0, 60_000), st.integers(1, 30_000))
def test_a_step_takes_what_the_model_says(prompt, streams, context, before):
    work = StepWork(prompt, prompt * before, streams, context if streams else 0)
    columns = (np.array([n]) for n in (work.prefill_tokens, work.prefill_pairs, streams, work.kv_read_tokens))
    assert TABLES.step_s(*columns)[0] == pytest.approx(step_time.step_time_s(DEPLOYMENT, work), rel=1e-6)


@given(st.integers(1, 64), st.integers(0, 60_000))
def test_a_decoding_step_takes_what_the_model_says(streams, context):
    expected = step_time.step_time_s(DEPLOYMENT, StepWork(decode_streams=streams, kv_read_tokens=context))
    assert TABLES.decode_s(np.array([streams]))[0] + TABLES.context_s * context == pytest.approx(expected, rel=1e-9)


def test_levels_by_hand():
    """A prefill of 0.5 s and outputs of 100 tokens: with 5 users a token's mean time holds 4 x 0.5 / 100 = 0.02 s of the
    others' prefills. Steps: 0.020 s alone, 0.050 - 0.020 = 0.030 s for 5 streams, half way between for 3; a prompt of 250
    tokens beside 3 streams takes 0.025 s and 0.25 s more."""
    levels = [speed.MeasuredLevel(5, 0.050), speed.MeasuredLevel(1, 0.020)]
    found = speed.from_levels(levels, prefill_s=0.5, prompt_tokens=500, output_tokens=100, most_prompt_tokens=1000)
    assert found.decode_s(np.array([1, 3, 5])) == pytest.approx([0.020, 0.025, 0.030])
    columns = (np.array([n]) for n in (250, 0, 3, 0))
    assert found.step_s(*columns)[0] == pytest.approx(0.275)
    assert found.times(2).decode_s(np.array([3]))[0] == pytest.approx(0.050)
    assert len(found.streams_s) == 6  # nothing is known beyond 5 streams


def test_levels_without_figures_are_refused():
    with pytest.raises(UsageError, match="time per token"):
        speed.from_levels([], prefill_s=0.5, prompt_tokens=500, output_tokens=100, most_prompt_tokens=10)
