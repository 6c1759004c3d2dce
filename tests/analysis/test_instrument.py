"""The instrument's error: our times less those of a server that knows when it sent."""

from dataclasses import replace

import pytest

from loadtest.analysis.instrument import instrument_error
from loadtest.errors import LoadtestError
from loadtest.records.instrument import Sent
from tests.support.builders import request


def record(sent_s, *chunks, body="a", **changes):
    made = {"request_sha256": body, "sent_s": sent_s, "chunk_s": chunks, "chunk_tokens": None, "first_answer_chunk": 0}
    return replace(request(0.0), **made, **changes)


def sent(arrived, *before, body="a"):
    return Sent(sha256=body, arrived=arrived, before=list(before))


def test_errors_by_hand():
    """Offsets of two clocks differ by 1000 s. Of the first request the first token is 2 ms late, of the second 4 ms early;
    the last tokens are 1 ms late and right."""
    ours = [record(0.0, 0.202, 0.301), record(1.0, 1.196, 1.3)]
    truth = [sent(1000.0, 1000.2, 1000.3), sent(1001.0, 1001.2, 1001.3)]
    found = instrument_error(ours, truth, concurrency=1, tokens_per_s=10)
    assert (found.n_requests, found.n_lost, found.concurrency) == (2, 0, 1)
    assert found.ttft_mean_s == pytest.approx(0.003)
    assert found.ttft_p99_s == pytest.approx(0.004, rel=0.02)
    assert found.gap_p99_s == pytest.approx(0.004, rel=0.05)  # 1 ms short, 4 ms long
    assert found.final_answer_mean_s == pytest.approx(0.0005)


def test_requests_are_matched_by_their_body_in_order():
    ours = [record(5.0, 5.1, 5.2, body="b"), record(0.0, 0.3, 0.4), record(1.0, 1.1, 1.2)]
    truth = [sent(1, 1.1, 1.2), sent(0, 0.3, 0.4), sent(5, 5.1, 5.2, body="b"), sent(7, 7.1, 7.2, body="c")]
    found = instrument_error(ours, truth, concurrency=2, tokens_per_s=10)
    assert found.ttft_p99_s == pytest.approx(0.0, abs=1e-9)
    assert found.n_lost == 1  # of "c" there is no record


@pytest.mark.parametrize("lost", [record(0.0, 0.3, 0.4, outcome="cut_off"), record(0.0, 0.3), record(None, 0.3, 0.4)])
def test_what_did_not_come_whole_is_lost(lost):
    whole = record(1.0, 1.1, 1.2, body="b")
    found = instrument_error([lost, whole], [sent(0, 0.3, 0.4), sent(1, 1.1, 1.2, body="b")], 1, 10)
    assert (found.n_requests, found.n_lost) == (1, 1)
    with pytest.raises(LoadtestError, match="no request came whole"):
        instrument_error([lost], [sent(0, 0.3, 0.4)], 1, 10)
