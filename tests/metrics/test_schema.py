"""The types of metrics.json: whole, described, exported as a JSON Schema, and strict about what they read."""

import dataclasses
import json
import typing
from pathlib import Path

import jsonschema
import pytest

from loadtest.analysis.run import analyze
from loadtest.errors import RecordError
from loadtest.metrics import schema
from loadtest.metrics.catalogue import METRICS
from loadtest.metrics.figures import CensoredDistribution, Distribution, Estimate, GapDistribution
from loadtest.metrics.level_schema import LevelFigures
from loadtest.perfmodel.memory import Fit
from loadtest.records.engine_facts import MemoryFit
from loadtest.records.write import write_json
from tests.support import builders

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.schema.json"
SHAPES = {"censored": CensoredDistribution, "plain": Distribution, "gaps": GapDistribution, "estimate": Estimate}


@pytest.fixture(scope="module")
def metrics():
    return analyze(builders.study(levels=(1, 2), n=8, slo=["ttft_s:p50<2"]))


@pytest.fixture
def document(metrics):
    return json.loads(schema.encode(metrics))


def test_what_is_written_is_read_back(metrics, tmp_path):
    write_json(tmp_path / "metrics.json", metrics)
    raw = (tmp_path / "metrics.json").read_bytes()
    assert raw == schema.encode(metrics)
    assert schema.decode(raw, "metrics.json") == metrics


def test_the_catalogue_lists_the_metrics_of_a_level():
    kinds = {name: typing.get_args(kind)[:1] or (kind,) for name, kind in typing.get_type_hints(LevelFigures).items()}
    found = {name: kind for name, (kind,) in kinds.items() if kind in SHAPES.values()}
    assert found == {name: SHAPES[metric.shape] for name, metric in METRICS.items()}


def test_the_fit_in_the_file_is_that_of_the_performance_model():
    assert [one.name for one in dataclasses.fields(Fit)] == list(MemoryFit.__struct_fields__)


def test_every_part_and_every_key_is_described():
    parts = schema.json_schema()["$defs"]
    assert [name for name, part in parts.items() if not part.get("description")] == []
    by_their_part = {"StatisticIntervals", "NeededSamples"}  # one sentence says what all of their keys are
    bare = [
        f"{name}.{key}"
        for name, part in parts.items()
        for key, one in part.get("properties", {}).items()
        if not described(one) and name not in by_their_part
    ]
    assert bare == []


def described(one):
    """By itself, or by the part that it holds."""
    return one.get("description") or "$ref" in one or "$ref" in one.get("items", {})


def test_the_exported_schema_is_that_of_the_code():
    found = json.loads(DOCUMENT.read_bytes())
    assert found == json.loads(json.dumps(schema.json_schema())), (
        "run `python -m loadtest.metrics.schema > docs/metrics.schema.json`"
    )


def test_the_exported_schema_describes_the_file(document):
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())
    jsonschema.validate(document, schema.json_schema())
    del document["cells"][0]["levels"][0]["ttft_s"]["mean"]
    with pytest.raises(jsonschema.ValidationError, match="'mean' is a required property"):
        jsonschema.validate(document, schema.json_schema())


def test_a_later_release_may_add_keys(document, metrics):
    document["cells"][0]["levels"][0]["later"] = {"key": 1}
    assert schema.decode(json.dumps(document).encode(), "metrics.json") == metrics


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("schema_version",), 9, "schema_version: expected 1, got 9"),
        (("cells", 0, "tp"), "two", "cells[0].tp: expected int | null, got str"),
        (("cells", 0, "levels", 1, "ttft_s", "p50"), "x", "cells[0].levels[1].ttft_s.p50: expected float | null, got str"),
        (("cells", 0, "levels", 1, "itl_s"), None, "cells[0].levels[1].itl_s: expected object, got null"),
        (("comparisons", 0, "verdict"), "best", "comparisons[0].verdict: expected a value of its list, got 'best'"),
        (("health",), [], "health: expected object, got array"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(document, place, value, said):
    *way, key = place
    part = document
    for step in way:
        part = part[step]
    part[key] = value
    with pytest.raises(RecordError) as caught:
        schema.decode(json.dumps(document).encode(), "runs/mine/metrics.json")
    assert str(caught.value) == f"runs/mine/metrics.json: {said}; make it again with loadtest analyze runs/mine"


def test_a_missing_key_is_named(document):
    del document["health"]["client"]
    with pytest.raises(RecordError, match=r"metrics\.json: health\.client: expected a value, got none; make it again"):
        schema.decode(json.dumps(document).encode(), "metrics.json")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff\xfe{}", b'{"schema_version": 1}'])
def test_what_is_no_metrics_json_is_one_line(raw):
    with pytest.raises(RecordError, match=r"^metrics\.json: .*make it again with loadtest analyze \.$"):
        schema.decode(raw, "metrics.json")


def test_a_figure_is_read_by_metric_and_statistic(metrics):
    (level, _), cell = metrics.cells[0].levels, metrics.cells[0]
    assert level.estimate("ttft_s", "p50").value == level.ttft_s.p50 == cell.estimate(1, "ttft_s", "p50").value
    assert level.estimate("accuracy") is level.accuracy
    assert cell.estimate(99, "ttft_s", "p50") is None
    for metric, statistic in (("ttft_s", "value"), ("accuracy", "mean")):
        with pytest.raises(ValueError, match="value"):
            level.estimate(metric, statistic)
    with pytest.raises(KeyError):
        level.estimate("n_requests")
