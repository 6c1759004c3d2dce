"""Replicas of a fleet from measured levels: what is taken from them, and what is refused."""

from dataclasses import replace

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
    return run.analyze(records).cells[0], replica_model.measured_lengths(
        [one for level in records.cells[0].levels for one in level.requests]
    )


def test_steps_are_those_of_the_levels_less_the_prefills_of_others():
    found, lengths = cell((1, 0.03), (4, 0.05))
    made = replica_model.from_cell(found, lengths, 0)
    alone, four = (found.level(users).tpot_s.mean for users in (1, 4))
    stall_s = 3 * found.level(1).ttft_s.p50 / lengths.mix.mean_output_tokens
    likely, careful = (one.speed.decode_s(np.array([1, 4])) for one in (made.likely, made.careful))
    assert likely == pytest.approx([alone, max(four - stall_s, alone)])
    assert made.known_streams == 4
    assert (careful >= likely).all()


def test_the_mix_is_what_finished_requests_used():
    mix = cell((1, 0.03))[1].mix
    assert (mix.prompt_tokens > 0).all()
    assert len(mix.output_tokens) == 24
    with pytest.raises(UsageError, match="measure some"):
        replica_model.measured_lengths([])


def requests(*outputs):
    """One finished request of each prompt and number of output tokens."""
    return [
        replace(builders.request(i, prompt_id=name), completion_tokens=tokens) for i, (name, tokens) in enumerate(outputs)
    ]


def test_lengths_of_few_prompts_may_be_longer_by_hand():
    """Means of 100, 200 and 300 tokens of three prompts, each asked twice: 200 +- 4.303 x 100 / sqrt(3) = 448."""
    asked = [(name, tokens) for name, tokens in (("a", 100), ("b", 200), ("c", 300)) for _ in range(2)]
    lengths = replica_model.measured_lengths(requests(*asked))
    assert lengths.longer == pytest.approx(448.4 / 200, rel=1e-3)
    longer = lengths.careful(10_000)
    assert longer.output_tokens.tolist() == [225, 225, 449, 449, 673, 673]
    room = 400 + int(longer.prompt_tokens.max())
    assert lengths.careful(room).output_tokens.max() == 400


def test_one_prompt_tells_no_careful_length():
    lengths = replica_model.measured_lengths(requests(("a", 100), ("a", 120)))
    assert lengths.careful(10_000) is None


def test_the_careful_replica_has_longer_answers():
    found, lengths = cell((1, 0.03), (4, 0.05))
    made = replica_model.from_cell(found, lengths, 0)
    assert made.careful.workload.mean_output_tokens == pytest.approx(
        lengths.longer * lengths.mix.mean_output_tokens, rel=0.02
    )
    alone = replica_model.from_cell(found, replace(lengths, longer=None), 0)
    assert alone.careful is None


def test_a_cache_too_small_for_the_longest_request_is_refused():
    found, lengths = cell((1, 0.03))
    fit = builders.fit(kv_capacity_tokens=50)
    small = msgspec.structs.replace(found, fit=msgspec.convert(fit, MemoryFit))
    with pytest.raises(UsageError, match="KV cache of 50 tokens does not hold the longest request"):
        replica_model.from_cell(small, lengths, 0)


def test_a_cell_without_levels_names_the_next_measurement():
    found, lengths = cell((1, 0.03))
    with pytest.raises(UsageError, match="measure 1 user next"):
        replica_model.from_cell(msgspec.structs.replace(found, levels=()), lengths, 0)


def test_a_short_level_is_said_to_be_too_good():
    assert replica_model.unsettled(cell((1, 0.03))[0]) is None
    assert "24 requests are fewer than 8 a user" in replica_model.unsettled(cell((4, 0.03))[0])
