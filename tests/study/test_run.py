"""Studies carried out for real, against the embedded simulator with a fast clock."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest import credentials
from loadtest.analysis.run import analyze
from loadtest.analysis.validity import unsound_reasons
from loadtest.errors import EngineError, RecordError, UsageError
from loadtest.records import read
from loadtest.servers import preflight, process
from loadtest.servers.server import Server
from loadtest.servers.supervisor import descendants
from loadtest.study import cell_server, execution, locust_pass, plan
from loadtest.study import run as study_run
from loadtest.study.schema import Cell, Study, of_servers
from loadtest.workload.contract import Contract
from tests.support import fake_server

SIMULATED = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20", clock_speed=200.0, args=("--length-scale", "0.02"))
STUDY = Study(
    name="small", workload="math:n=8,seed=1", cells=(SIMULATED,), levels=(1, 2), min_requests=3, seed=1, cooldown_s=0.05
)


def silent(line):
    pass


def engine_json(run, cell):
    return read.read_json(run / "cells" / cell.id / "engine.json")


def wait_until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def has_records(run):
    return any(path.stat().st_size for path in run.rglob("requests-*.jsonl"))


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    assert study_run.execute(STUDY, out, say=silent) == ()
    return out


def test_a_study_leaves_every_file_of_the_contract(finished):
    run = read.read_run(finished)
    assert run.manifest.complete is True
    assert run.manifest.simulated is True
    [cell] = run.cells
    assert cell.engine.status == "ok"
    assert cell.engine.exit_code == 0
    assert cell.engine.fit.fits is True
    assert (finished / "cells" / cell.id / "engine.log").stat().st_size > 0
    assert [(level.concurrency, level.repeat) for level in cell.levels] == [(1, 1), (2, 1)]
    for level in cell.levels:
        assert [r.outcome for r in level.requests if r.phase == "measure"] == ["ok"] * STUDY.requests(level.concurrency)
        assert level.torn == ()
        assert level.health
        assert level.server[-1].requests_finished_total - level.server[0].requests_finished_total == len(level.requests)


def test_the_cost_of_the_fast_clock_is_measured(finished):
    error = engine_json(finished, SIMULATED)["clock_error"]
    assert error["n"] == 7
    times = {"ttft", "tpot", "time_to_final_answer"}
    assert set(error) == {"n", *(f"{one}_s" for one in times), *(f"{one}_off_s" for one in times)}
    by_level = engine_json(finished, SIMULATED)["clock_error_by_level"]
    assert sum(one["n"] for one in by_level.values()) == 7
    assert all(isinstance(error[key], float) for key in error if key != "n")


def test_a_folder_with_a_run_is_not_overwritten(finished):
    with pytest.raises(RecordError, match="expected a folder without a run"):
        study_run.execute(STUDY, finished, say=silent)


def test_resume_repeats_nothing_that_is_finished(finished):
    before = {path: path.read_bytes() for path in finished.rglob("requests-*.jsonl")}
    assert study_run.execute(STUDY, finished, resume=True, say=silent) == ()
    assert {path: path.read_bytes() for path in finished.rglob("requests-*.jsonl")} == before


@pytest.mark.fault("input", "Damaged records: `--resume` measures them again")
def test_resume_measures_passes_again_whose_records_are_not_whole(finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    first, second = sorted(out.glob("cells/*/c0?-r1"))
    next(first.glob("requests-*.jsonl")).write_bytes(b"")
    next(second.glob("client_health*.jsonl")).unlink()
    said: list[str] = []
    assert study_run.execute(STUDY, out, resume=True, say=said.append) == ()
    kept = [line for line in said if "is kept as" in line]
    assert [("found 0" in line, "found no file" in line) for line in kept] == [(True, False), (False, True)]
    assert all(level.damaged == () for level in read.read_run(out).cells[0].levels)
    assert read.read_manifest(out / "manifest.json").complete


@pytest.mark.fault("input", "The run folder is renamed: exit 1")
def test_a_run_whose_folder_is_renamed_does_not_end_complete(tmp_path):
    out, moved = tmp_path / "run", tmp_path / "moved"

    def rename(line):
        if " requests in " in line and out.exists():
            out.rename(moved)

    with pytest.raises(RecordError, match="found it renamed or removed"):
        study_run.execute(STUDY, out, say=rename)
    assert not (out / "manifest.json").exists()
    assert read.read_manifest(moved / "manifest.json").complete is False
    assert len(read.read_run(moved).cells[0].levels[0].requests) > 0


def test_resume_of_another_workload_is_refused(finished):
    with pytest.raises(RecordError, match="--resume: workload"):
        study_run.execute(replace(STUDY, workload="math:n=8,seed=2"), finished, resume=True, say=silent)


def test_resume_under_another_contract_is_refused(finished):
    with pytest.raises(RecordError, match="--resume: contract: top_k: expected the run's own 40, got 20"):
        study_run.execute(replace(STUDY, contract={"top_k": 20}), finished, resume=True, say=silent)


ANOTHER = {
    "cells": replace(STUDY, cells=(replace(SIMULATED, tp=2),)),
    f"{SIMULATED.id}: gpu": replace(STUDY, cells=(replace(SIMULATED, gpu="l40s"),)),
    f"{SIMULATED.id}: args": replace(STUDY, cells=(replace(SIMULATED, args=("--length-scale", "0.03")),)),
    f"{SIMULATED.id}: clock_speed": replace(STUDY, cells=(replace(SIMULATED, clock_speed=100.0),)),
    "scenario": replace(STUDY, scenario="multi_turn"),
    "scenario_options": replace(STUDY, scenario_options={"tokenizer": "t"}),
    "levels": replace(STUDY, levels=(1,)),
    "duration_s": replace(STUDY, duration_s=5.0),
    "contract: seed": replace(STUDY, seed=2),
    "min_requests": replace(STUDY, min_requests=4),
    "requests_per_stream": replace(STUDY, requests_per_stream=9),
    "warmup_requests": replace(STUDY, warmup_requests=2),
    "cooldown_s": replace(STUDY, cooldown_s=1.0),
    "workers": replace(STUDY, workers=2),
}


@pytest.mark.parametrize("key", ANOTHER)
@pytest.mark.fault("input", "`--resume` of another study; repeats may grow")
def test_resume_of_another_study_is_refused_by_what_differs(key, finished, monkeypatch):
    monkeypatch.setattr(plan, "token_counter", lambda path: None)
    before = (finished / "manifest.json").read_bytes()
    with pytest.raises(RecordError, match=f"--resume: {key}: expected the run's own .*, got .*; start anew"):
        study_run.execute(ANOTHER[key], finished, resume=True, say=silent)
    assert (finished / "manifest.json").read_bytes() == before


def test_resume_of_a_run_whose_manifest_was_altered_is_refused(finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    path = out / "manifest.json"
    path.write_text(path.read_text().replace('"min_requests": 3', '"min_requests": 4'))
    with pytest.raises(RecordError, match="manifest.json: expected the content that was written"):
        study_run.execute(replace(STUDY, min_requests=4), out, resume=True, say=silent)


def test_resume_may_ask_for_more_repeats_and_other_objectives(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    more = replace(STUDY, repeats=2, slo=("ttft_s:p90<9",))
    assert study_run.execute(more, out, resume=True, say=silent) == ()
    run = read.read_run(out)
    assert (run.manifest.complete, run.manifest.repeats, run.manifest.slo) == (True, 2, more.slo)
    assert [(level.concurrency, level.repeat) for level in run.cells[0].levels] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    with pytest.raises(RecordError, match="repeats: expected the run's own 2 or more, got 1"):
        study_run.execute(STUDY, out, resume=True, say=silent)


REAL = Cell(engine="vllm", model="qwq-32b-awq", gpu="l20", tp=2)


@pytest.fixture
def no_gpus(monkeypatch):
    """A machine with vLLM, and without GPUs."""
    monkeypatch.setenv("LOADTEST_VLLM", "true")
    monkeypatch.setattr(preflight, "gpu_count", lambda: 0)


def test_a_study_that_this_machine_cannot_start_at_all_is_refused_before_anything(no_gpus, tmp_path):
    with pytest.raises(EngineError, match=r"tp2: needs 2 GPUs, this machine has 0; .*--force tries it") as caught:
        study_run.execute(replace(STUDY, cells=(REAL,)), tmp_path / "run", say=silent)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_forced_it_is_started_all_the_same(no_gpus, tmp_path):
    problems = study_run.execute(replace(STUDY, cells=(REAL,)), tmp_path / "run", force=True, say=silent)
    assert "did not start: exited with code 0" in problems[0]
    assert engine_json(tmp_path / "run", REAL)["status"] == "failed"


def test_a_cell_that_this_machine_cannot_start_is_skipped_and_the_others_are_measured(no_gpus, tmp_path):
    study = replace(STUDY, cells=(REAL, SIMULATED), levels=(1,), repeats=2)
    problems = study_run.execute(study, tmp_path / "run", say=silent)
    assert problems == (f"{REAL.id}: needs 2 GPUs, this machine has 0; see nvidia-smi",)
    facts = engine_json(tmp_path / "run", REAL)
    assert (facts["status"], facts["reason"]) == ("skipped", "needs 2 GPUs, this machine has 0; see nvidia-smi")
    assert engine_json(tmp_path / "run", SIMULATED)["status"] == "ok"


def test_a_model_that_does_not_fit_is_refused_and_the_run_is_complete(tmp_path):
    big = replace(SIMULATED, model="qwq-32b")
    assert study_run.execute(replace(STUDY, cells=(big,)), tmp_path / "run", say=silent) == ()
    facts = engine_json(tmp_path / "run", big)
    assert facts["status"] == "refused"
    assert facts["fit"]["fits"] is False
    assert "does not fit: QwQ-32B on 1 x NVIDIA L20 needs" in facts["reason"]
    assert read.read_json(tmp_path / "run" / "manifest.json")["complete"] is True


def test_forced_it_fails_for_real_and_says_how(tmp_path):
    big = replace(SIMULATED, model="qwq-32b")
    problems = study_run.execute(replace(STUDY, cells=(big,)), tmp_path / "run", force=True, say=silent)
    assert len(problems) == 1
    facts = engine_json(tmp_path / "run", big)
    assert facts["status"] == "failed"
    assert "memory" in facts["reason"]


@pytest.fixture
def hosted(tmp_path_factory):
    """A server that wants a key, as hosted ones do, and serves two models; what it was told is in `asked`."""
    models = {"data": [{"id": "llama"}, {"id": "m"}]}
    with fake_server.serving({"/v1/models": models}) as server:
        yield server


KEY = "gsk-0123456789abcdef"


def test_each_hosted_cell_has_its_own_key_and_no_file_has_any(hosted, tmp_path, monkeypatch):
    for name in credentials.WITHHELD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    cell = Cell(engine="other", model="m", base_url=hosted.url, api_key_env="GROQ_API_KEY")
    study = replace(STUDY, cells=(cell, SIMULATED), levels=(1,), min_requests=1, warmup_requests=0)
    study_run.execute(study, tmp_path / "run", say=silent)
    told = {headers.get("authorization") for path, headers in hosted.asked if path.startswith("/v1")}
    assert told == {f"Bearer {KEY}"}
    assert ("/v1/chat/completions", True) in {(path, KEY in headers["authorization"]) for path, headers in hosted.asked}
    assert os.environ["GROQ_API_KEY"] == KEY
    assert engine_json(tmp_path / "run", cell)["server_info"]["model"] == "m", "not the first one it lists"
    assert engine_json(tmp_path / "run", SIMULATED)["status"] == "ok"
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_a_key_that_is_not_set_is_named_before_anything_starts(hosted, tmp_path, monkeypatch):
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    cell = Cell(engine="other", model="m", base_url=hosted.url, api_key_env="GROQ_API_KEY")
    with pytest.raises(UsageError, match="GROQ_API_KEY: expected the key for a server in this variable, found it empty"):
        study_run.execute(replace(STUDY, cells=(cell,)), tmp_path / "run", say=silent)
    assert not (tmp_path / "run").exists()
    assert hosted.asked == []


def test_a_model_that_the_server_does_not_name_is_refused(hosted, tmp_path):
    cell = Cell(engine="other", model="qwq", base_url=hosted.url)
    [problem] = study_run.execute(replace(STUDY, cells=(cell,)), tmp_path / "run", say=silent)
    assert "model: expected one of llama, m, got qwq; name it as the server does" in problem


def test_a_server_of_another_kind_is_refused(tmp_path):
    with fake_server.serving({"/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]}}) as server:
        cell = Cell(engine="vllm", model="m", base_url=server.url)
        [problem] = study_run.execute(replace(STUDY, cells=(cell,)), tmp_path / "run", say=silent)
    assert "engine: expected vllm, got sglang; say --engine sglang" in problem


@contextlib.contextmanager
def simulators(*files, last=()):
    """Simulated servers on Unix socket files, as a cell of as many; `last`: further options of the last."""
    argv = [*process.python("loadtest.simulator"), "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--clock-speed", "200"]
    argv += ["--length-scale", "0.02", "--uds"]
    own = [(str(file), *(last if file == files[-1] else ())) for file in files]
    started = [subprocess.Popen([*argv, *one], stderr=subprocess.DEVNULL) for one in own]
    try:
        assert all(wait_until(file.exists) for file in files)
        servers = of_servers([f"unix://{file}" for file in files])
        yield Cell(engine="vllm-sim", model="qwq-32b-awq", clock_speed=200.0, **servers)
    finally:
        for one in started:
            one.terminate()
            one.wait()


def test_servers_on_unix_sockets_take_turns_and_their_counters_are_read(tmp_path):
    files, out = (tmp_path / "a", tmp_path / "b"), tmp_path / "run"
    with simulators(*files) as cell:
        assert study_run.execute(replace(STUDY, cells=(cell,), levels=(2,), min_requests=4), out, say=silent) == ()
    run = read.read_run(out)
    [level] = run.cells[0].levels
    assert {(one.outcome, one.stamped_by) for one in level.requests} == {("ok", "process")}
    assert {one.seq: one.replica for one in level.requests if one.phase == "measure"} == {
        seq: str(files[seq % 2]) for seq in range(4)
    }
    assert level.server[-1].requests_finished_total == len(level.requests)
    [figures] = analyze(run).cells
    assert (figures.endpoint, figures.servers) == (str(files[0]), tuple(map(str, files)))
    told = figures.levels[0].server.replicas
    assert [(one.source, one.n_requests, one.asked.n_requests) for one in told] == [(str(file), 3.0, 2) for file in files]
    assert figures.levels[0].client_health.stamped_by == "process"


@pytest.mark.fault("servers", "One of several servers dies: its requests fail, it is named, no verdict rests on the level")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_a_server_of_several_that_dies_is_named(tmp_path):
    files, out = (tmp_path / "a", tmp_path / "b"), tmp_path / "run"
    with simulators(*files, last=("--fault", "die:1")) as cell:
        study_run.execute(replace(STUDY, cells=(cell,), levels=(2,), min_requests=4), out, say=silent)
    [figures] = analyze(read.read_run(out)).cells
    level = figures.levels[0]
    assert level.outcomes == {"connection_error": 2, "ok": 2}
    assert [one.asked.failed_share.value for one in level.server.replicas] == [0.0, 1.0]
    assert [why for why in unsound_reasons(level) if why.startswith(f"{files[1]} answered none of its 2 requests (")]


def test_servers_of_two_kinds_are_no_cell(tmp_path):
    answers = [{"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": n}]}} for n in (4096, 8192)]
    with fake_server.serving(answers[0]) as a, fake_server.serving(answers[1]) as b:
        cell = Cell(engine="vllm", model="m", **of_servers([a.url, b.url]))
        [problem] = study_run.execute(replace(STUDY, cells=(cell,)), tmp_path / "run", say=silent)
    assert f"{b.url}: max_model_len: expected 4096, as at {a.url}, got 8192; give it a cell of its own" in problem


def test_keys_of_other_cells_reach_no_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    hidden = execution.key_variables(
        replace(
            STUDY,
            cells=(Cell(engine="other", model="m", base_url="http://127.0.0.1:9", api_key_env="GROQ_API_KEY"), SIMULATED),
        )
    )
    assert hidden == {"GROQ_API_KEY"}
    spec = plan.launch_spec(SIMULATED, Contract(), port=preflight.free_port())
    with Server(spec, tmp_path / "log", hidden) as server:
        server.wait_ready(60)
        [simulator] = descendants(server.pid)
        environment = Path(f"/proc/{simulator}/environ").read_bytes()
    assert b"PATH=" in environment
    assert KEY.encode() not in environment


@pytest.mark.parametrize("name", ["sk-0123", "groq key", ""])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(name):
    with pytest.raises(UsageError, match="api_key_env: expected the name of an environment variable") as caught:
        Cell(engine="other", model="m", base_url="http://127.0.0.1:9", api_key_env=name)
    assert not name or name not in str(caught.value)


def test_a_server_that_dies_is_explained_and_the_next_cell_is_measured(tmp_path):
    dying = replace(SIMULATED, args=("--length-scale", "0.5", "--fault", "die:40"))
    healthy = replace(SIMULATED, engine="sglang-sim")
    study = replace(STUDY, cells=(dying, healthy), levels=(1,))
    problems = study_run.execute(study, tmp_path / "run", say=silent)
    assert len(problems) == 1
    assert dying.id in problems[0]
    assert engine_json(tmp_path / "run", dying)["status"] == "died"
    assert engine_json(tmp_path / "run", healthy)["status"] == "ok"
    run = read.read_run(tmp_path / "run")
    assert run.manifest.complete is False
    assert dying.id in run.manifest.incomplete_reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.fault("processes", "Ctrl-C, SIGTERM, SIGHUP: exit 130, a page")
def test_interrupted_it_keeps_what_it_has_and_leaves_no_process(number, tmp_path):
    out = tmp_path / "run"
    study = tmp_path / "long.toml"
    study.write_text(
        'name = "long"\nworkload = "math:n=8"\nlevels = [2]\nmin_requests = 500\n'
        '[[cells]]\nengine = "vllm-sim"\nmodel = "qwq-32b-awq"\ngpu = "l20"\n'
        'clock_speed = 100\nargs = ["--length-scale", "0.1"]\n'
    )
    command = [sys.executable, "-m", "loadtest", "run", str(study), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: has_records(out))
    started = descendants(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    run = read.read_run(out)
    assert run.manifest.complete is False
    assert run.manifest.interrupted is True
    outcomes = [r.outcome for r in run.cells[0].levels[0].requests]
    assert outcomes.count("cut_off") == 2
    assert "ok" in outcomes
    assert json.loads((out / "metrics.json").read_bytes())["complete"] is False
    assert "incomplete" in (out / "report.html").read_text().lower()
    assert alive(started) == []


def test_a_killed_orchestrator_leaves_no_orphan(tmp_path):
    out = tmp_path / "run"
    code = (
        "from pathlib import Path; from tests.study.test_run import *;"
        f"study_run.execute(replace(STUDY, min_requests=200, levels=(1,)), Path({str(out)!r}), say=silent)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert wait_until(lambda: has_records(out))
    started = descendants(process.pid)
    assert len(started) >= 4  # guard and simulator, guard and Locust
    process.kill()
    process.wait()
    assert wait_until(lambda: not alive(started))


def test_a_cool_down_ends_when_the_server_dies():
    deaths = iter([None, None, "exited with code 1"])
    locust_pass.cool_down(600.0, lambda: next(deaths))
    assert next(deaths, "asked no more") == "asked no more"


def test_the_cool_down_of_each_pass_is_recorded(finished):
    markers = [read.read_json(path) for path in finished.rglob("pass.json")]
    assert [one["cooldown_s"] for one in markers] == [0.05, 0.05]


def test_a_pass_without_a_single_request_is_none(tmp_path):
    """As of a locustfile with users of its own only, of which no record is kept."""
    argv = [sys.executable, "-c", "print('done')"]
    end = locust_pass.drive(argv, tmp_path, os.environ, died=lambda: None, tell=lambda n_requests: None)
    assert end == locust_pass.PassEnd(0, "Locust ended without a single request: done", 0)


AMBIENT = {
    **{f"{name}.py": "open('executed', 'a').write(__file__)" for name in sys.stdlib_module_names},
    "locust.conf": "tags = nothing",
    "pyproject.toml": '[tool.locust]\nrun-time = "1s"\ntags = ["nothing"]',
    ".locust.conf": "tags = nothing",
}


@pytest.mark.fault("processes", "Modules, `locust.conf`, `LOCUST_*` around a study: ignored")
def test_nothing_in_the_current_folder_or_the_environment_changes_a_run(tmp_path):
    for name, text in AMBIENT.items():
        (tmp_path / name).write_text(text)
    settings = {"HOME": str(tmp_path), "LOCUST_TAGS": "nothing", "LOCUST_RUN_TIME": "1s", "LOCUST_MODE_WORKER": "true"}
    code = (
        "import sys; from tests.study.test_run import *; ONE = replace(STUDY, levels=(1,));"
        "sys.exit('; '.join(study_run.execute(ONE, Path('run'), say=silent)) or 0)"
    )
    told = os.environ | settings | {"PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-P", "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()


def test_a_checkout_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), "/usr/lib"])
    with pytest.raises(UsageError, match="loadtest: expected it installed, found it in .* alone; python -m pip install -e"):
        process.python("loadtest.simulator")


def test_both_simulated_engines_are_decided_by_bursts_under_locust(tmp_path):
    """Two starts each, at a clock of 20; whether a condition holds on this machine or not.

    Which verdict is right is tested in virtual time: here other work on the machine can slow one engine.
    """
    cells = tuple(replace(SIMULATED, engine=engine, clock_speed=20.0) for engine in ("sglang-sim", "vllm-sim"))
    study = replace(STUDY, cells=cells, mode="decision", natural_users=2, natural_prompts=6, repeats=2, until_decided=True)
    assert study_run.execute(study, tmp_path / "run", say=silent) == ()
    run = read.read_run(tmp_path / "run")
    for cell in run.cells:
        assert {(one.concurrency, one.repeat) for one in cell.bursts} >= {(1, 1), (2, 1)}
        assert [(one.concurrency, one.repeat) for one in cell.levels][-1][0] == 2
        for one in cell.bursts:
            bursts = [r for r in one.requests if r.burst is not None]
            assert len(bursts) == 3 * one.concurrency
            assert {(r.outcome, r.completion_tokens) for r in bursts} == {("ok", 256)}
            assert not one.torn
    (pair,) = analyze(run).decisions
    assert pair.verdict not in ("not comparable", "one start each")
    assert (pair.evidence == "composed") == (not pair.broken)


def test_configurations_of_one_engine_are_measured_in_one_study_and_no_secret_is_kept(tmp_path, monkeypatch):
    """Each has its own program, variables and arguments; the value of a secret variable reaches the engine alone."""
    monkeypatch.setattr(credentials, "_hidden", set())
    program = f"env SEEN=1 {sys.executable} -P -m loadtest.simulator"
    old = replace(SIMULATED, name="old", env={"HF_TOKEN": "hf_very-secret-1", "HF_HOME": "/models"}, executable=program)
    new = replace(SIMULATED, name="new", args=(*SIMULATED.args, "--max-running", "1"))
    study = replace(STUDY, cells=(old, new), levels=(2,), baseline="old")
    out = tmp_path / "run"
    assert study_run.execute(study, out, say=silent) == ()
    assert study_run.execute(study, out, resume=True, say=silent) == ()
    started = engine_json(out, old)
    assert started["command"][:2] == ["env", "SEEN=1"]
    assert started["env"] == {"HF_TOKEN": "[API key]", "HF_HOME": "/models"}
    assert not [path for path in out.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
    found = analyze(read.read_run(out))
    assert [(one.a, one.b) for one in found.decisions] == [(new.id, old.id)]
    assert found.cells[0].level(2).n_requests == found.cells[1].level(2).n_requests == 4


def test_what_no_time_is_left_for_is_skipped(tmp_path):
    late = execution.TimeLimits(until_s=time.monotonic())
    problems = study_run.execute(STUDY, tmp_path / "run", limits=late, say=silent)
    assert problems == (f"{SIMULATED.id}: repeat 1 was not started: no time left",)
    facts = engine_json(tmp_path / "run", SIMULATED)
    assert (facts["status"], facts["reason"], facts.get("command")) == ("skipped", "no time left", None)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (execution.TimeLimits(pass_s=0.0), "concurrency 1, repeat 1: ended at the limit of 0 s"),
        (execution.TimeLimits(start_s=0.0), "not healthy after 0 s"),
    ],
)
def test_a_start_and_a_pass_end_at_their_limits(limits, said, tmp_path):
    [problem] = study_run.execute(STUDY, tmp_path / "run", limits=limits, say=silent)
    assert said in problem
    assert engine_json(tmp_path / "run", SIMULATED)["status"] == "failed"


def test_behind_a_router_a_server_says_what_it_is_and_gets_no_key(monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", "sk-0123456789")
    router = {"/v1/models": {"data": [{"id": "unknown", "owned_by": "local"}]}}
    replica = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}}
    with fake_server.serving(router) as front, fake_server.serving(replica) as behind:
        cell = Cell(engine="vllm", model="m", base_url=front.url, metrics_urls=(behind.url,))
        info = cell_server.probed(front.url, cell)
        assert (info.engine, info.models, info.max_model_len) == ("vllm", ("m",), 4096)
        assert all("authorization" not in headers for _, headers in behind.asked)
        assert any("authorization" in headers for _, headers in front.asked)
    with fake_server.serving(router) as front:
        silent_one = replace(cell, base_url=front.url)
        info = cell_server.probed(front.url, silent_one)
    assert cell_server._served(front.url, silent_one, info) == "m", "not unknown, as the router has it"
