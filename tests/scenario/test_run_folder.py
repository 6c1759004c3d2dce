"""From options to a settled pass, and the manifest under plain Locust."""

import argparse
from types import SimpleNamespace

import pytest

from loadtest.client.pass_options import PassOptions
from loadtest.errors import RecordError, UsageError
from loadtest.records.pass_facts import Failure, LevelSummary
from loadtest.records.read import read_failure, read_json
from loadtest.records.write import write_json
from loadtest.scenario import options as scenario_options
from loadtest.scenario import run_folder
from loadtest.servers import route
from loadtest.study import parse, plan, run
from loadtest.study.schema import Cell, Study
from loadtest.workload import workload

HOST = "http://127.0.0.1:8000"


def options(out, **given):
    values = {
        "model": "Qwen/QwQ-32B", "engine": "other", "tp": None, "cell": None, "repeat": None, "run_id": None,
        "workload": "math:n=3",
        "prompt_key": None, "answer_key": None, "speed_up": None, "header": None, "api": "chat",
        "proxy": None, "insecure": False, "replica": None,
        "requests": 4, "warmup_requests": 1, "max_tokens": None, "mode": None, "grammar": None,
        "seed": 0, "clock_speed": 1.0, "tokenizer": None, "prompts": None, "level": None, "out": str(out),
        "locustfile": "scenarios/long_reasoning.py",
    }  # fmt: skip
    return SimpleNamespace(**(values | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            (f"--{name}=0", "expected a whole number from 1 up, got '0'")
            for name in ("tp", "repeat", "requests", "max-tokens")
        ),
        ("--warmup-requests=-1", "expected a whole number from 0 up, got '-1'"),
        ("--requests=many", "expected a whole number from 1 up, got 'many'"),
        ("--cell=../elsewhere", "expected letters, digits and . , = + - _, got '../elsewhere'"),
        ("--engine=../elsewhere", "invalid choice"),
    ],
)
def test_a_wrong_option_is_refused_with_the_command_line(given, message, capsys):
    parser = argparse.ArgumentParser()
    scenario_options.add_options(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([given])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_name_of_a_varied_cell_is_taken():
    parser = argparse.ArgumentParser()
    scenario_options.add_options(parser)
    cells = 'name="s"\nworkload="math"\n[[cells]]\nengine="vllm"\nmodel="m"\nvary={"--a"=[1, 2], B=["x+y", "-"]}\n'
    for cell in parse.parse_study(cells).cells:
        assert parser.parse_args(["--cell", cell.id]).cell == cell.id


def test_a_pass_under_plain_locust(tmp_path):
    given = options(tmp_path / "run")
    opening = run_folder.open_run(given, HOST + "/v1", 8)
    settings = opening.asked
    assert settings.request_urls == (HOST + "/v1/chat/completions",)
    assert PassOptions.from_table(settings.to_table()) == settings
    assert (settings.cell, settings.concurrency, settings.repeat, settings.run_id) == ("other_qwq-32b_tp1", 8, 1, "run")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["complete"], manifest["scenario"], manifest["levels"]) == (False, "long_reasoning", [8])
    assert manifest["workload"]["identity"] == workload.load("math:n=3").identity
    engine = read_json(tmp_path / "run" / "cells" / settings.cell / "engine.json")
    assert (engine["base_url"], engine["status"], engine["simulated"]) == (HOST, "ok", False)
    opening.close(None, interrupted=False)
    assert read_json(tmp_path / "run" / "manifest.json")["complete"] is True


def test_a_second_pass_joins_the_run(tmp_path):
    run_folder.open_run(options(tmp_path), HOST, 8).close(None, interrupted=False)
    (tmp_path / "cells" / "other_qwq-32b_tp1" / "c08-r1").mkdir(exist_ok=True)
    again = run_folder.open_run(options(tmp_path), HOST, 8)
    again.close(None, interrupted=False)
    assert again.asked.repeat == 2
    run_folder.open_run(options(tmp_path), HOST, 2).close(None, interrupted=False)
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["levels"], manifest["repeats"], len(manifest["cells"]), manifest["complete"]) == ([2, 8], 2, 1, True)


def test_one_incomplete_pass_makes_the_run_incomplete(tmp_path):
    lost = Failure(kind="workers", message="worker x was lost")
    run_folder.open_run(options(tmp_path), HOST, 1).close(lost, interrupted=False)
    run_folder.open_run(options(tmp_path), HOST, 2).close(None, interrupted=False)
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["complete"], manifest["incomplete_reason"]) == (False, "worker x was lost")


def test_an_interrupted_pass(tmp_path):
    run_folder.open_run(options(tmp_path), HOST, 1).close(None, interrupted=True)
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["complete"], manifest["interrupted"]) == (False, True)


def test_a_run_that_somebody_else_keeps_is_left_alone(tmp_path):
    before = {"schema_version": 1, "run_id": "theirs", "contract": {"temperature": 0.7, "seed": 5}}
    write_json(tmp_path / "manifest.json", before)
    given = options(tmp_path, run_id="theirs", cell="vllm_x_tp2", repeat=3)
    opening = run_folder.open_run(given, HOST, 4)
    opening.close(Failure(kind="server", message="failed"), interrupted=True)
    assert read_json(tmp_path / "manifest.json") == before
    settings = opening.asked
    assert (settings.contract.temperature, settings.contract.seed) == (0.7, 5)
    assert settings.folder == tmp_path / "cells" / "vllm_x_tp2" / "c04-r3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 500}, r"max_tokens: expected the run's own \(32768\), got 500; name another --out"),
        ({"mode": "equal-work"}, r"mode: expected the run's own \(natural\), got equal-work"),
        ({"rate": 2.0}, r"--rate: expected the run's own \(1\.0\), got 2\.0"),
        ({"locustfile": "scenarios/chat.py"}, r"scenario: expected the run's own \(long_reasoning\), got chat"),
    ],
)
def test_a_pass_that_asks_for_something_else_does_not_join(given, message, tmp_path):
    run_folder.open_run(options(tmp_path, rate=1.0), HOST, 1).close(None, interrupted=False)
    before = read_json(tmp_path / "manifest.json")
    with pytest.raises(UsageError, match=message):
        run_folder.open_run(options(tmp_path, **({"rate": 1.0} | given)), HOST, 1)
    assert read_json(tmp_path / "manifest.json") == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"proxy": "http://10.0.0.1:3128"},
            r"proxy: expected the run's own \(None\), got http://10.0.0.1:3128; name",
        ),
        ({"replica": ["http://127.0.0.1:9"]}, r"base_urls: expected the run's own \(\(\)\), got \('"),
    ],
)
def test_a_pass_by_another_way_does_not_join(given, said, tmp_path):
    run_folder.open_run(options(tmp_path), HOST, 1).close(None, interrupted=False)
    with route.taken(route.Route()), pytest.raises(UsageError, match=said):
        run_folder.open_run(options(tmp_path, **given), HOST, 1)


def test_another_workload_does_not_join(tmp_path):
    run_folder.open_run(options(tmp_path), HOST, 1)
    with pytest.raises(UsageError, match="workload"):
        run_folder.open_run(options(tmp_path, workload="math:n=4"), HOST, 1)


def test_a_missing_record_is_noticed(tmp_path):
    opening = run_folder.open_run(options(tmp_path), HOST, 1)
    folder = opening.asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests-a.jsonl").write_bytes(b"{}\n{}\n")
    opening.count_lines([summary("requests-a.jsonl", 2)])
    with pytest.raises(RecordError, match="expected 3 records"):
        opening.count_lines([summary("requests-a.jsonl", 3)])
    with pytest.raises(RecordError, match=r"requests-elsewhere.jsonl: cannot read"):
        opening.count_lines([summary("requests-elsewhere.jsonl", 9)])


def summary(file, written):
    return LevelSummary(
        worker="w", host="h", file=file, users=1, connections_opened=1, connections_wall_s=0.0, started=written,
        written=written, failure=None,
    )  # fmt: skip


def test_why_a_pass_failed_is_left_for_whoever_started_it(tmp_path):
    opening = run_folder.open_run(options(tmp_path, run_id="theirs"), HOST, 1)
    assert read_failure(opening.asked.folder) is None
    failure = Failure(kind="records", message="the disk took 3 of 9 bytes")
    opening.keep(failure)
    assert read_failure(opening.asked.folder) == failure


def test_no_host():
    with pytest.raises(UsageError, match="--host"):
        run_folder.base_url(None)


def test_both_who_open_a_run_say_the_same_of_it(tmp_path):
    study = Study(name="x", workload="math:n=3", cells=(Cell(engine="vllm", model="qwq-32b", gpu="l20"),))
    run.begin_run(study, *plan.asked(study), tmp_path / "a")
    run_folder.open_run(options(tmp_path / "b"), HOST, 1)
    ours, theirs = (read_json(tmp_path / name / "manifest.json") for name in "ab")
    assert ours.keys() == theirs.keys()
    assert (ours["complete"], ours["incomplete_reason"]) == (theirs["complete"], theirs["incomplete_reason"])
    assert ours["workload"] == theirs["workload"]
