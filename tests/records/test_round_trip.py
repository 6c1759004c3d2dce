"""What is written can be read: every kind of line and document, with whatever values its type allows."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.records import read, schema, write
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.environment import Environment
from loadtest.records.manifest import Manifest, ManifestCell, Prices, RunWorkload
from loadtest.records.pass_facts import Failure, LevelSummary
from loadtest.records.schema import GpuSample, HealthSample, RequestRecord, ServerSample

TEXT = st.text(st.characters(codec=None), max_size=20)  # also halves of surrogate pairs, as a path or a server may have
COUNT = st.integers(0, 2**63 - 1)
OFFSET_S = st.floats(-1e9, 1e9)
READING = st.floats()  # NaN and infinity too: what a server counts is not ours
JSON = st.recursive(
    st.none() | st.booleans() | COUNT | READING | TEXT, lambda one: st.lists(one) | st.dictionaries(TEXT, one)
)
TABLE = st.dictionaries(TEXT, JSON, max_size=3)
CLOCK: dict[str, Any] = {"clock_anchor_unix_s": st.floats(0, 1e11), "clock_speed": st.floats(1e-3, 1e6)}


def maybe(values):
    return st.none() | values


@st.composite
def requests(draw):
    chunk_s = tuple(draw(st.lists(OFFSET_S, max_size=5)))
    tokens = draw(maybe(st.tuples(*(COUNT for _ in chunk_s))))
    first = draw(maybe(st.integers(0, len(chunk_s) - 1))) if chunk_s else None
    drawn = st.builds(
        RequestRecord,
        **dict.fromkeys(("run_id", "cell", "worker", "prompt_id", "request_sha256"), TEXT),
        **dict.fromkeys(("concurrency", "repeat", "user", "seq"), COUNT),
        **{
            name: maybe(COUNT)
            for name in (
                "prompt_tokens",
                "completion_tokens",
                "reasoning_tokens",
                "cached_tokens",
                "task",
                "text_bytes",
                "text_tokens",
            )
        },
        **{name: maybe(OFFSET_S) for name in ("sent_s", "headers_s", "connect_s")},
        **{name: maybe(TEXT) for name in ("answer", "finish_reason", "thinking_field", "output_end", "endpoint")},
        **CLOCK,
        scheduled_s=OFFSET_S,
        ended_s=OFFSET_S,
        chunk_s=st.just(chunk_s),
        chunk_tokens=st.just(tokens),
        first_answer_chunk=st.just(first),
        outcome=st.sampled_from(schema.OUTCOMES),
        error=maybe(st.builds(schema.RequestError, kind=TEXT, message=TEXT, http_status=maybe(COUNT))),
        schema_version=st.just(schema.SCHEMA_VERSION),
    )
    return draw(drawn)


BUCKETS = st.lists(st.tuples(OFFSET_S, OFFSET_S), max_size=3).map(tuple)
READINGS = {name: maybe(READING) for name in ("running", "waiting", "kv_usage", "generation_tokens_total", "ttft_sum_s")}
OWN = ("t_s", "loop_lag_mean_s", "loop_lag_max_s", "gc_pause_s", "interval_s", "cpu_share")  # our clocks are finite
LINES = {
    "requests": requests(),
    "server": st.builds(ServerSample, t_s=OFFSET_S, error=maybe(TEXT), ttft_buckets=maybe(BUCKETS), **CLOCK, **READINGS),
    "health": st.builds(HealthSample, worker=TEXT, **dict.fromkeys(OWN, OFFSET_S), **CLOCK),
    "gpu": st.builds(GpuSample, t_s=OFFSET_S, power_w=maybe(READING), error=maybe(TEXT), **CLOCK),
}
DOCUMENTS = {
    "engine": st.builds(
        EngineFacts, id=TEXT, server_info=maybe(TABLE), reason=maybe(TEXT), env=maybe(st.dictionaries(TEXT, TEXT))
    ),
    "failure": st.builds(Failure, message=TEXT),
    "level": st.builds(LevelSummary, worker=TEXT, host=TEXT, file=TEXT, connections_wall_s=OFFSET_S),
}
MANIFESTS = st.builds(
    Manifest,
    run_id=TEXT,
    schema_version=st.just(schema.SCHEMA_VERSION),
    name=TEXT,
    question=TEXT,
    scenario_options=maybe(TABLE),
    contract=TABLE,
    workload=maybe(st.builds(RunWorkload, source=TEXT)),
    prices=st.builds(Prices),
    environment=maybe(st.builds(Environment)),
    commands=st.lists(TEXT, max_size=2).map(tuple),
    cells=st.lists(st.builds(ManifestCell, id=TEXT, others=st.just({})), max_size=2).map(tuple),
    others=st.just({}),
)  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_written_can_be_read(kind):
    @settings(max_examples=25, deadline=None)
    @given(st.lists(LINES[kind], min_size=1, max_size=3))
    def holds(values):
        with tempfile.TemporaryDirectory() as place:
            writer = write.JsonlWriter(Path(place), "lines")
            for value in values:
                writer.write(value)
            writer.close()
            lines = read._Lines(Path(place))
            found = list(lines.of("lines.jsonl", type(values[0])))
            assert (len(found), lines.torn) == (len(values), [])
            if kind == "requests":
                assert [one.chunk_s for one in found] == [one.chunk_s for one in values]

    holds()


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_that_is_written_can_be_read(kind):
    @settings(max_examples=25, deadline=None)
    @given(DOCUMENTS[kind])
    def holds(value):
        with tempfile.TemporaryDirectory() as place:
            write.write_json(Path(place) / "one.json", value)
            read.read_as(Path(place) / "one.json", type(value))

    holds()


@settings(max_examples=25, deadline=None)
@given(MANIFESTS)
def test_a_manifest_that_is_written_can_be_read(manifest):
    with tempfile.TemporaryDirectory() as place:
        write.write_manifest(Path(place), manifest)
        found = read.read_manifest(Path(place) / "manifest.json")
        assert (found.levels, found.repeats) == (manifest.levels, manifest.repeats)
