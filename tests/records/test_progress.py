"""How far a level is, from files that still grow."""

import msgspec
import pytest

from loadtest.records.progress import LATEST_SAMPLES, LevelProgress, ProgressReader
from tests.support import builders


def append(path, *values):
    with path.open("ab") as stream:
        stream.writelines(msgspec.json.encode(value) + b"\n" for value in values)


def sample(worker="w", speed=1.0, **facts):
    return builders.health_sample(1.0, worker=worker, clock_speed=speed, **{"in_flight": 1} | facts)


def test_an_empty_folder_and_none_at_all_are_the_start(tmp_path):
    assert ProgressReader(tmp_path).read() == LevelProgress()
    assert ProgressReader(tmp_path / "absent").read() == LevelProgress()


def test_requests_are_counted_by_phase_and_failures_of_measured_ones_alone(tmp_path):
    file, reader = tmp_path / "requests-a.jsonl", ProgressReader(tmp_path)
    append(
        file, *(builders.request(seq=seq, phase="warmup", outcome="timeout") for seq in range(2)), builders.request(seq=0)
    )
    found = reader.read()
    assert (found.warmups, found.requests, found.failed, found.ended) == (2, 1, 0, 3)
    append(file, builders.request(seq=1, outcome="http_error"), builders.request(seq=2, outcome="cut_off"))
    append(tmp_path / "requests-b.jsonl", builders.request(seq=3))
    found = reader.read()
    assert (found.requests, found.failed) == (4, 1)


def test_half_a_line_counts_when_the_rest_has_come_and_a_damaged_one_never(tmp_path):
    file, reader = tmp_path / "requests-a.jsonl", ProgressReader(tmp_path)
    line = msgspec.json.encode(builders.request(seq=0)) + b"\n"
    with file.open("ab", buffering=0) as stream:
        stream.write(line[:50])
        assert reader.read().requests == 0
        stream.write(line[50:] + b"{not json}\n")
        assert reader.read().requests == 1
        assert reader.read().requests == 1


def test_speed_is_reads_times_the_tokens_of_a_chunk_over_the_last_seconds_of_the_runs_clock(tmp_path):
    reader = ProgressReader(tmp_path)
    append(
        tmp_path / "client_health-a.jsonl",
        *[sample("a", reads=900)] * 3,
        *[sample("a", reads=40, speed=4.0)] * LATEST_SAMPLES,
    )
    append(tmp_path / "client_health-b.jsonl", sample("b", reads=30, in_flight=2, speed=4.0))
    found = reader.read()
    assert found.tokens_per_s == pytest.approx((40 + 30) / 4)
    assert found.in_flight == 3
    record = builders.request(completion_tokens=30)  # in ten chunks
    append(tmp_path / "requests-a.jsonl", record)
    assert reader.read().tokens_per_s == pytest.approx((40 + 30) / 4 * 3)


def test_ttft_is_of_the_last_seconds_else_the_last_known(tmp_path):
    file, reader = tmp_path / "client_health-a.jsonl", ProgressReader(tmp_path)
    append(file, sample(ttft_s=9.0), *[sample()] * 2, sample(ttft_s=1.0), sample(ttft_s=3.0), sample())
    assert reader.read().ttft_s == pytest.approx(2.0)
    append(file, *[sample()] * LATEST_SAMPLES)
    assert reader.read().ttft_s == pytest.approx(2.0)
