"""`loadtest init` and `loadtest doctor`."""

import json
import resource
import sys

import pytest

from loadtest import cli, resources
from loadtest.commands.machine import doctor
from loadtest.study import parse


def test_init_copies_what_can_be_edited_and_writes_nothing_over(tmp_path, capsys):
    place = tmp_path / "mine"
    assert cli.main(["init", str(place)]) == 0
    assert f"next: loadtest run {place / 'scenarios/studies/demo.toml'}" in capsys.readouterr().out
    assert sorted(folder.name for folder in place.iterdir()) == sorted(resources.FOLDERS)
    assert parse.load_study(place / "scenarios/studies/demo.toml") == parse.load_study(
        resources.path("scenarios/studies/demo.toml")
    )
    assert not list(place.rglob("__pycache__"))

    mine = place / "scenarios/long_reasoning.py"
    mine.write_text("# mine\n")
    assert cli.main(["init", str(place)]) == 2
    assert "nothing is written over" in capsys.readouterr().err
    assert mine.read_text() == "# mine\n"


def test_init_where_nothing_may_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["init", str(tmp_path / "file")]) == 1
    assert "cannot copy" in capsys.readouterr().err


def by_name():
    return {finding.name: finding for finding in doctor.examine()}


def test_doctor_names_a_cure_for_whatever_is_missing(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["state"] for one in found} <= {"ok", "missing"}
    assert all(one["cure"] for one in found if one["state"] == "missing")
    assert {"locust", "cores", "open files", "GPUs", "vllm", "sglang"} <= {one["name"] for one in found}


def test_a_cure_goes_into_the_environment_that_lacks_it(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: None)
    assert by_name()["tokenizers"].cure == f"{sys.executable} -m pip install tokenizers"


def test_doctor_shows_no_key(monkeypatch, capsys):
    monkeypatch.setenv("LOADTEST_API_KEY", "sk-hunter2")
    monkeypatch.setenv("HF_TOKEN", "hf-hunter2")
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "hunter2" not in said
    assert said.count("set (the key") == 2


def test_too_few_descriptors_are_missing(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    found = by_name()["open files"]
    assert (found.state, found.found, found.cure) == ("missing", "64", "ulimit -n 4000")


def test_a_package_that_is_not_there_breaks_the_load_generator(monkeypatch, capsys):
    def version(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    assert "locust, gevent, numpy, matplotlib: no load can be generated here" in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "variable"), [("vllm", "LOADTEST_VLLM"), ("sglang", "LOADTEST_SGLANG")])
def test_a_runtime_is_found_where_its_variable_says(engine, variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    assert by_name()[engine].state == "missing"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv(variable, str(program))
    assert by_name()[engine].state == "ok"
