"""A damaged run folder: one line that names the file, never a traceback, and all that can still be read is."""

import copy
import json
import random
import shutil

import pytest

from loadtest import cli
from tests.support import builders

RUN = builders.study(engines=("vllm",), levels=(1,), n=3)
WRONG = (None, "x", -1, 1e308, True, [], {}, ["a"], {"a": 1}, 10**30)


@pytest.fixture
def folder(tmp_path):
    return builders.write(RUN, tmp_path / "run")


def named(folder, name):
    return next(path for path in sorted(folder.rglob("*.json*")) if path.name.startswith(name))


def analysed(folder, capsys):
    """Exit code of `analyze`, after one line at most and no number that JSON lacks."""
    code = cli.main(["analyze", str(folder)])
    said = capsys.readouterr().err
    assert code in (0, 1, 2), said
    assert said.count("\n") == (1 if code else 0), said
    if code:
        assert said.startswith(f"loadtest: {folder}" if code == 1 else "loadtest: SLO "), said
    else:
        json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    return code


def places(value, way=()):
    """The way to every value inside a JSON value; of a list, to the first two."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*way, key)
        yield from places(one, (*way, key))


def with_wrong(value, way, wrong):
    changed = copy.deepcopy(value)
    at = changed
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = wrong
    return changed


@pytest.mark.parametrize("name", ["manifest", "engine"])
@pytest.mark.fault("input", "A value of `manifest.json` or `engine.json` altered")
def test_every_value_of_a_description_may_be_wrong(name, folder, capsys):
    path = named(folder, name)
    right = json.loads(path.read_text())
    codes = set()
    for number, way in enumerate(places(right)):
        path.write_text(json.dumps(with_wrong(right, way, WRONG[number % len(WRONG)])))
        codes.add(analysed(folder, capsys))
    assert codes >= {0, 1}


@pytest.mark.parametrize("name", ["requests", "server_metrics", "client_health"])
@pytest.mark.fault("input", "Any value of a record altered")
def test_every_value_of_a_record_may_be_wrong(name, folder, capsys):
    path = named(folder, name)
    first, *rest = path.read_text().splitlines()
    right = json.loads(first)
    codes = set()
    for number, way in enumerate(places(right)):
        path.write_text("\n".join([json.dumps(with_wrong(right, way, WRONG[number % len(WRONG)])), *rest, ""]))
        codes.add(analysed(folder, capsys))
    assert codes == {0, 1}


@pytest.mark.parametrize("name", ["manifest", "engine", "requests", "server_metrics", "client_health"])
@pytest.mark.parametrize("seed", range(4))
def test_bytes_may_be_wrong_anywhere(name, seed, folder, capsys):
    path, dice = named(folder, name), random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(bytes(content))
    analysed(folder, capsys)


@pytest.mark.parametrize("name", ["manifest", "engine", "requests", "server_metrics", "client_health"])
@pytest.mark.fault("input", "A file missing, empty, cut off, a folder")
def test_a_file_may_be_missing_empty_cut_off_or_a_folder(name, folder, capsys):
    path = named(folder, name)
    content = path.read_bytes()
    path.write_bytes(b"")
    analysed(folder, capsys)
    path.write_bytes(content[: len(content) * 2 // 3])
    code = analysed(folder, capsys)
    assert code == (1 if name in ("manifest", "engine") else 0)  # a torn last line of records is reported, never fatal
    path.unlink()
    path.symlink_to("/dev/zero")
    assert analysed(folder, capsys) == 1
    path.unlink()
    path.mkdir()
    assert analysed(folder, capsys) == 1
    shutil.rmtree(path)
    assert analysed(folder, capsys) == (1 if name == "manifest" else 0)


@pytest.mark.parametrize("name", ["manifest", "engine", "requests", "server_metrics", "client_health"])
@pytest.mark.fault("input", "A hundred thousand brackets")
def test_nesting_without_end_is_one_line(name, folder, capsys):
    named(folder, name).write_text("[" * 100_000 + "\n")
    assert analysed(folder, capsys) == 1


@pytest.mark.fault("processes", "A torn last line: counted")
def test_a_torn_last_line_is_counted_and_said(folder, capsys):
    path = named(folder, "requests")
    path.write_bytes(path.read_bytes()[:-20])
    assert analysed(folder, capsys) == 0
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["cells"][0]["levels"][0]["n_requests"] == len(RUN.cells[0].levels[0].requests) - 1
    assert "torn" in json.dumps(numbers["health"])


@pytest.mark.fault("input", "A newer schema: `schema_version: expected 1, got 9`")
def test_a_newer_schema_is_refused_by_its_number(folder, capsys):
    path = named(folder, "requests")
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":9'))
    assert cli.main(["analyze", str(folder)]) == 1
    assert "schema_version: expected 1, got 9" in capsys.readouterr().err
