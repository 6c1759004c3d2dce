"""Records on disk: written, read back, torn, and refused where they cannot be true."""

import os
import resource
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import RecordError
from loadtest.records import read
from loadtest.records.folder import level_path, set_aside
from loadtest.records.schema import RequestRecord
from loadtest.records.write import JsonlWriter, write_csv, write_json, write_new

RECORD = RequestRecord(
    run_id="r",
    cell="vllm_qwq-32b-awq_tp1",
    concurrency=4,
    repeat=1,
    phase="measure",
    worker="local",
    user=0,
    seq=0,
    prompt_id="p0",
    scheduled_s=0.0,
    sent_s=0.001,
    headers_s=0.05,
    chunk_s=(0.1, 0.2, 0.3),
    chunk_tokens=(1, 2, 1),
    first_answer_chunk=2,
    ended_s=0.31,
    prompt_tokens=20,
    completion_tokens=4,
    reasoning_tokens=3,
    cached_tokens=0,
    token_count_source="server",
    finish_reason="stop",
    outcome="ok",
    error=None,
    answer="42",
    answer_correct=True,
    request_sha256="0" * 64,
)

CONTRACT_FIELDS = {
    "schema_version",
    "run_id",
    "cell",
    "concurrency",
    "repeat",
    "phase",
    "worker",
    "user",
    "seq",
    "prompt_id",
    "scheduled_s",
    "sent_s",
    "headers_s",
    "chunk_s",
    "chunk_tokens",
    "first_answer_chunk",
    "ended_s",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "token_count_source",
    "finish_reason",
    "outcome",
    "error",
    "answer",
    "answer_correct",
    "request_sha256",
}


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "manifest.json", {"schema_version": 1, "run_id": "r"})
    return tmp_path


def level(run):
    return level_path(run, RECORD.cell, 4, 1)


def write(run, *values, stem="requests-a-1"):
    writer = JsonlWriter(level(run), stem)
    for value in values:
        writer.write(value)
    writer.close()
    return writer.path


def test_a_line_holds_every_field_of_the_contract():
    assert set(msgspec.to_builtins(RECORD)) >= CONTRACT_FIELDS


def test_what_is_written_is_what_is_read(run):
    write(run, RECORD, replace(RECORD, seq=1))
    [cell] = read.read_run(run).cells
    [one] = cell.levels
    assert (one.cell, one.concurrency, one.repeat) == (RECORD.cell, 4, 1)
    assert one.requests == (RECORD, replace(RECORD, seq=1))
    assert one.torn == ()


def test_two_writers_never_share_a_file(run):
    assert write(run, RECORD) != write(run, replace(RECORD, seq=1))
    assert len(read.read_level(level(run)).requests) == 2


def test_a_torn_last_line_is_reported_and_the_rest_is_kept(run):
    path = write(run, RECORD, replace(RECORD, seq=1))
    os.truncate(path, path.stat().st_size - 20)
    one = read.read_level(level(run))
    assert [r.seq for r in one.requests] == [0]
    assert len(one.torn) == 1
    assert f"{path}:2: torn line" in one.torn[0]


def test_a_foreign_line_is_an_error_with_file_and_line(run):
    path = write(run, RECORD)
    path.write_bytes(path.read_bytes() + b'{"hello": 1}\n')
    with pytest.raises(RecordError, match=rf"{path}:2: expected a RequestRecord"):
        read.read_run(run)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_run_of_another_schema_is_refused_by_version(run, version):
    write_json(run / "manifest.json", {"schema_version": version})
    with pytest.raises(RecordError, match="schema_version: expected 1, got"):
        read.read_run(run)


def test_a_record_of_a_newer_schema_is_refused_by_version(run):
    path = write(run, RECORD)
    path.write_bytes(path.read_bytes().replace(b'"schema_version":1', b'"schema_version":9'))
    with pytest.raises(RecordError, match="schema_version: expected 1, got 9"):
        read.read_run(run)


def test_a_folder_that_is_no_run_says_what_it_expected(tmp_path):
    with pytest.raises(RecordError, match="expected a run folder with manifest.json"):
        read.read_run(tmp_path)


def test_a_disk_that_takes_nothing_is_an_error(run):
    writer = JsonlWriter(level(run), "requests-full")
    os.close(writer._fd)
    writer._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(RecordError, match="cannot write a record: No space left on device"):
        writer.write(RECORD)


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.fault("secrets", "A formula in CSV: preceded by an apostrophe")
def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path):
    write_csv(tmp_path / "a.csv", [{"engine": "=cmd()", "value": -1.5}])
    assert (tmp_path / "a.csv").read_text() == "engine,value\n'=cmd(),-1.5\n"


@pytest.mark.parametrize("text", ["+1", "-1", "@a", "\t=1", "\n=1", " =1", "＝1", "＋1", "\r"])
def test_nor_text_that_only_looks_like_one(tmp_path, text):
    write_csv(tmp_path / "a.csv", [{"engine": text}])
    assert "'" + text[:1] in (tmp_path / "a.csv").read_bytes().decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "fine"}, "outcome: expected one of ok, no_answer"),
        ({"chunk_tokens": (1,)}, "chunk_tokens: expected 3 entries"),
        ({"first_answer_chunk": 3}, "first_answer_chunk: expected an index into 3 chunks, got 3"),
    ],
)
def test_an_impossible_record_is_refused_at_birth(change, message):
    with pytest.raises(RecordError, match=message):
        replace(RECORD, **change)


@given(st.binary(max_size=300))
def test_no_bytes_in_a_record_file_make_a_traceback(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run") / "cells" / "x" / "c01-r1"
    folder.mkdir(parents=True)
    (folder / "requests-a.jsonl").write_bytes(content)
    try:
        assert read.read_level(folder).requests == ()
    except RecordError as error:
        assert "requests-a.jsonl:" in str(error)


def test_a_broken_pass_is_set_aside_and_kept(tmp_path):
    for number in (1, 2):
        folder = tmp_path / "c01-r1"
        folder.mkdir()
        (folder / "requests-a.jsonl").write_text(str(number))
        assert set_aside(folder).name == f"c01-r1.broken-{number}"
    assert (tmp_path / "c01-r1.broken-1" / "requests-a.jsonl").read_text() == "1"
    assert not (tmp_path / "c01-r1").exists()


def test_half_a_new_file_is_not_left_behind(tmp_path):
    path, (soft, hard) = tmp_path / "new.toml", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as a full disk
    try:
        with pytest.raises(RecordError, match="new.toml: cannot write: File too large"):
            write_new(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
