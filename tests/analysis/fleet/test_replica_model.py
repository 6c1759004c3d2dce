"""Replicas of a fleet from measured levels: what is taken from them, and what is refused."""

import msgspec
import numpy as np
import pytest

from loadtest.analysis import run
from loadtest.analysis.fleet import replica_model
from loadtest.errors import UsageError
from loadtest.records.engine_facts import MemoryFit
from tests.support import builders


def cell(*levels, engine="vllm", **facts):
    made = [builders.level(builders.closed_loop(users, 24, gap_s=gap_s), concurrency=users) for users, gap_s in levels]
    records = builders.run([builders.cell(made, engine, **facts)])
    return run.analyze(records).cells[0], replica_model.measured_mix(
        [one for level in records.cells[0].levels for one in level.requests]
    )


def test_steps_are_those_of_the_levels_less_the_prefills_of_others():
    found, mix = cell((1, 0.03), (4, 0.05))
    made = replica_model.from_cell(found, mix, 0)
    alone, four = (found.level(users).tpot_s.mean for users in (1, 4))
    stall_s = 3 * found.level(1).ttft_s.p50 / mix.mean_output_tokens
    assert made.likely.decode_s(np.array([1, 4])) == pytest.approx([alone, max(four - stall_s, alone)])
    assert made.known_streams == 4
    assert made.careful.decode_s(np.array([1]))[0] >= made.likely.decode_s(np.array([1]))[0]


def test_the_mix_is_what_finished_requests_used():
    _, mix = cell((1, 0.03))
    assert (mix.prompt_tokens > 0).all()
    assert len(mix.output_tokens) == 24
    with pytest.raises(UsageError, match="measure some"):
        replica_model.measured_mix([])


def test_a_cache_too_small_for_the_longest_request_is_refused():
    found, mix = cell((1, 0.03))
    fit = builders.fit(kv_capacity_tokens=50)
    small = msgspec.structs.replace(found, fit=msgspec.convert(fit, MemoryFit))
    with pytest.raises(UsageError, match="KV cache of 50 tokens does not hold the longest request"):
        replica_model.from_cell(small, mix, 0)


def test_a_cell_without_levels_names_the_next_measurement():
    found, mix = cell((1, 0.03))
    with pytest.raises(UsageError, match="measure 1 user next"):
        replica_model.from_cell(msgspec.structs.replace(found, levels=()), mix, 0)


def test_a_short_level_is_said_to_be_too_good():
    assert replica_model.unsettled(cell((1, 0.03))[0]) is None
    assert "24 requests are fewer than 8 a user" in replica_model.unsettled(cell((4, 0.03))[0])
