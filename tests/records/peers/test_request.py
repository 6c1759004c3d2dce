"""A request of another tool as a record: what is told is kept, what is not is None or named."""

import pytest

from loadtest.errors import UsageError
from loadtest.records.peers.request import Place, record_of
from loadtest.records.peers.result import PeerRequest

PLACE = Place(run_id="r", cell="vllm_m", concurrency=2, repeat=1, worker="tool", file="f.json", zero_s=100.0)


def made(**told):
    return record_of(PeerRequest(prompt_id="place-1", **told), 0, PLACE)


def test_every_chunk_is_kept_where_its_gap_is_told():
    found = made(start_s=101.0, first_s=0.5, gaps_s=(0.25, 0.25), end_s=1.0, prompt_tokens=7, output_tokens=3)
    assert (found.sent_s, found.chunk_s, found.ended_s) == (1.0, (1.5, 1.75, 2.0), 2.0)
    assert (found.prompt_tokens, found.completion_tokens, found.token_count_source) == (7, 3, "tool")
    assert (found.outcome, found.chunk_tokens, found.first_answer_chunk) == ("ended", None, None)
    assert found.lacks == ("schedule", "tokens")


def test_without_gaps_the_first_and_the_last_token_are_known():
    found = made(first_s=0.5, end_s=2.5, output_tokens=11)
    assert (found.chunk_s, found.chunk_tokens) == ((0.5, 2.5), (1, 10))
    assert found.lacks == ("start", "schedule", "chunks", "tokens")
    assert made(first_s=0.5, end_s=2.5).chunk_tokens == (0, 0)  # how many is not told: no rate is made of it
    assert made(first_s=0.5, end_s=0.5, output_tokens=1).chunk_s == (0.5,)


def test_a_failure_is_kept_with_its_cause_and_without_folders():
    found = made(start_s=100.0, error='Traceback\n  File "/home/ada/x.py"\nOSError: /home/ada/socket refused\n')
    assert (found.outcome, found.chunk_s, found.completion_tokens) == ("failed", (), None)
    assert (found.error.kind, found.error.message) == ("told", "OSError: socket refused")


@pytest.mark.fault("input", "`import` of times and counts that nobody can have measured")
@pytest.mark.parametrize(
    "told",
    [
        {"first_s": -0.1},
        {"first_s": float("nan")},
        {"end_s": 1e9},
        {"first_s": 0.1, "gaps_s": (0.1, -0.1)},
        {"start_s": float("inf")},
        {"output_tokens": -1},
        {"prompt_tokens": 10**12},
    ],
)
def test_what_cannot_have_been_measured_is_refused(told):
    with pytest.raises(UsageError, match=r"f.json: request 1: \w+: expected"):
        made(**told)
