"""What a run says of itself: read back as it was written, keys of others too."""

import json

import msgspec
import pytest

from loadtest.errors import RecordError
from loadtest.perfmodel import memory
from loadtest.records import manifest as manifests
from loadtest.records.engine_facts import EngineFacts, MemoryFit
from loadtest.records.read import read_engine, read_manifest, read_run
from loadtest.records.write import write_json, write_manifest
from loadtest.workload.workload import load

TABLE = {
    "schema_version": 1,
    "run_id": "r",
    "workload": {"source": "math", "name": "math", "identity": "ab", "n_prompts": 3},
    "cells": [{"id": "vllm_m_tp1", "engine": "vllm", "model": "m", "tp": 1, "args": ["--x"], "yarn": False}],
    "note": {"of": "somebody else"},
}


def test_keys_that_are_not_ours_outlive_a_rewrite(tmp_path):
    write_json(tmp_path / "manifest.json", TABLE)
    found = read_manifest(tmp_path / "manifest.json")
    assert (found.others, found.cells[0].others) == ({"note": TABLE["note"]}, {"args": ["--x"], "yarn": False})
    write_manifest(tmp_path, msgspec.structs.replace(found, complete=True))
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["complete"] is True
    assert "others" not in written
    assert {key: written[key] for key in TABLE if key != "cells"} == {key: TABLE[key] for key in TABLE if key != "cells"}
    assert TABLE["cells"][0].items() <= written["cells"][0].items()
    assert read_manifest(tmp_path / "manifest.json") == msgspec.structs.replace(found, complete=True)


def test_a_run_begins_incomplete_and_ends_with_its_problems():
    begun = manifests.begun(run_id="r", workload=load("math:n=3").facts, contract={"mode": "natural"}, name="x")
    assert (begun.complete, begun.incomplete_reason, begun.mode, begun.name) == (False, manifests.UNFINISHED, "natural", "x")
    assert begun.environment is not None
    ended = manifests.ended(begun, ["a", "b"], ["c/c01-r1"], interrupted=True)
    assert (ended.complete, ended.incomplete_reason, ended.interrupted) == (False, "a; b", True)
    assert manifests.ended(begun, [], [], interrupted=False).complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ["4"]}, r"manifest\.json: levels\[0\]: expected int, got str; bring the file back"),
        ({"run_id": None}, r"manifest\.json: run_id: expected str, got null"),
        ({"workload": {"source": "math"}}, r"manifest\.json: workload\.name: expected a value, got none"),
        ({"cells": [{"engine": "vllm"}]}, r"manifest\.json: cells\[0\]\.id: expected a value, got none"),
        ({"cells": 3}, r"manifest\.json: cells: expected array, got int"),
        ({"cells": [3]}, r"manifest\.json: cells\[0\]: expected object, got int"),
        ({"clock_speed": 0}, r"manifest\.json: clock_speed: expected float > 0"),
        ({"schema_version": 2}, r"manifest\.json: schema_version: expected 1, got 2"),
    ],
)
def test_a_damaged_manifest_is_one_line_with_file_and_key(change, message, tmp_path):
    write_json(tmp_path / "manifest.json", TABLE | change)
    with pytest.raises(RecordError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "fine"}, r"engine\.json: status: expected a value of its list, got 'fine'"),
        ({"fit": {"fits": True}}, r"engine\.json: fit\.reason: expected a value, got none"),
        ({"tp": "2"}, r"engine\.json: tp: expected int \| null, got str"),
    ],
)
def test_a_damaged_engine_file_is_one_line_with_file_and_key(change, message, tmp_path):
    write_json(tmp_path / "engine.json", {"id": "c"} | change)
    with pytest.raises(RecordError, match=message):
        read_engine(tmp_path / "engine.json")


def test_a_cell_that_was_never_started_is_as_the_manifest_asks_for_it(tmp_path):
    write_json(tmp_path / "manifest.json", TABLE | {"simulated": True})
    for name in ("vllm_m_tp1", "unheard-of"):
        (tmp_path / "cells" / name).mkdir(parents=True)
    unknown, asked = (cell.engine for cell in read_run(tmp_path).cells)
    assert unknown == EngineFacts(id="unheard-of", simulated=True)
    assert asked == EngineFacts(id="vllm_m_tp1", engine="vllm", model="m", tp=1, simulated=True)


def test_the_arithmetic_of_memory_has_the_fields_of_the_file():
    assert set(MemoryFit.__struct_fields__) == set(memory.Fit.__dataclass_fields__)
