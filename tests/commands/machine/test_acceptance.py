"""`accept` rehearsed with simulated engines in virtual time: the table, its files, its exit code; what ends it early."""

import json
import shutil

import pytest

from loadtest import cli
from loadtest.commands.machine import acceptance
from loadtest.records import read
from loadtest.study import fast_forward
from tests.support import builders

REHEARSED = ["accept", "--engine", "vllm-sim", "--engine", "sglang-sim", "--gpu", "l20"]
STAGES = list(acceptance._TITLES.values())
SHORT = ["--engine", "vllm-sim", "--gpu", "l20"]


@pytest.fixture
def in_virtual_time(monkeypatch):
    def execute(study, out, *, force, limits, say, audience):
        return fast_forward.simulate_study(study, out, say=say)

    monkeypatch.setattr(acceptance, "execute", execute)


def rows_of(out):
    return json.loads((out / "acceptance.json").read_text())["rows"]


def test_a_rehearsal_leaves_a_table_and_its_evidence(in_virtual_time, tmp_path, capsys):
    out = tmp_path / "accepted"
    assert cli.main([*REHEARSED, "--out", str(out)]) == 0
    said = capsys.readouterr()
    rows = rows_of(out)
    assert said.out.startswith(f"{len(rows)} checks: ")
    assert max(map(len, said.out.partition("evidence: ")[0].splitlines())) <= 80
    assert "SIMULATED" in said.out
    assert "NOT RUN  power by NVML" in said.out
    assert "PASS     refusal" in said.out
    assert "stage 3 of 3: two GPUs, one start of each engine" in said.err
    assert " left) " in said.err
    assert {row["result"] for row in rows} == {"pass", "not run"}
    assert {row["check"] for row in rows} == {
        "GPUs", "start and stop", "settings", "thinking", "token counts", "KV cache", "power by NVML",
        "time per token, one user", "joules against nvidia-smi", "memory against nvidia-smi", "memory given back",
        "speculative decoding", "refusal", "out of memory",
    }  # fmt: skip
    table = (out / "acceptance.md").read_text()
    assert table.startswith("### loadtest ")
    assert table.count("\n| ") == len(rows) + 1
    for name in ("measured", "extremes", "parallel"):
        packed, elsewhere = out / f"{name}.loadtest", tmp_path / "elsewhere" / f"{name}.loadtest"
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.copy(packed, elsewhere)
        assert (out / name / "report.html").is_file()
        assert cli.main(["report", str(elsewhere), "-o", str(elsewhere.with_suffix(".html"))]) == 0
    assert cli.main(["check", str(tmp_path / "elsewhere/measured.loadtest"), "--require", "ttft_s:p50<3600"]) == 0
    assert read.read_json(out / "measured" / "acceptance.json") == read.read_json(out / "acceptance.json")


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture
def at_once(monkeypatch):
    """Stages whose first cell has its records at once; what is set under a stage's name is done before."""
    stages = {}

    def execute(study, out, **how):
        stages.get(out.name, lambda: None)()
        levels = [builders.level(builders.closed_loop(1, 4), repeat=1)]
        builders.write(builders.run([builders.cell(levels, cell.engine) for cell in study.cells[:1]]), out)

    monkeypatch.setattr(acceptance, "execute", execute)
    monkeypatch.setattr(acceptance, "write_page", lambda *_: None)
    return stages


def test_ctrl_c_leaves_what_is_known(at_once, tmp_path, capsys):
    at_once["extremes"] = interrupt
    assert cli.main(["accept", *SHORT, "--out", str(tmp_path / "x")]) == 130
    assert "NOT RUN  two GPUs, one start of each engine" in capsys.readouterr().out
    assert {row["got"] for row in rows_of(tmp_path / "x") if row["check"] in STAGES} == {"interrupted"}
    assert (tmp_path / "x" / "measured.loadtest").is_file()


def test_ctrl_c_before_anything_is_known_leaves_no_table(at_once, tmp_path):
    at_once["measured"] = interrupt
    assert cli.main(["accept", *SHORT, "--out", str(tmp_path / "x")]) == 130
    assert not (tmp_path / "x").exists()


def test_no_stage_begins_after_the_last_minute(at_once, tmp_path, monkeypatch):
    at_once["measured"] = lambda: monkeypatch.setattr(acceptance.TimeLimits, "is_over", lambda self: True)
    cli.main(["accept", *SHORT, "--out", str(tmp_path / "x")])
    late = [row["check"] for row in rows_of(tmp_path / "x") if row["got"] == "no time left"]
    assert late == [STAGES[1], STAGES[2]]


def test_an_engine_that_does_not_start_is_not_tried_again(at_once, tmp_path):
    cli.main([*REHEARSED, "--out", str(tmp_path / "x")])
    (row,) = [row for row in rows_of(tmp_path / "x") if row["check"] == "everything else"]
    assert (row["of"], row["got"], row["result"]) == ("sglang-sim", "it did not start on one GPU", "not run")


def test_where_no_engine_starts_nothing_else_is_tried(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(acceptance, "_ready", lambda *_: ())
    cli.main(["accept", *SHORT, "--out", str(tmp_path / "x")])
    told = {row["check"]: row["got"] for row in rows_of(tmp_path / "x")}
    assert told["everything else"] == "it did not start on one GPU"
    assert not told.keys() & set(STAGES)


def test_without_a_gpu_real_engines_are_not_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(acceptance.preflight, "gpu_count", lambda: 0)
    assert cli.main(["accept", "--gpu", "l20", "--out", str(tmp_path / "x")]) == 2
    assert "to rehearse: --engine vllm-sim" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_plan_names_each_command_and_starts_nothing(tmp_path, capsys):
    model = tmp_path / "Small"
    model.mkdir()
    shape = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
             "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 40960,
             "model_type": "qwen3", "tie_word_embeddings": True}  # fmt: skip
    (model / "config.json").write_text(json.dumps(shape))
    out = tmp_path / "x"
    assert cli.main(["accept", "--dry-run", "--gpu", "h100", "--model", str(model), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("vllm serve ") == said.count("-m sglang.launch_server ") == 4
    assert f"serve {out}/too-large " in said
    assert f"--tokenizer-path {model} --load-format dummy" in said
    assert "_too-large: must fail: " in said
    assert not out.exists()


def test_a_model_that_cannot_be_fetched_stops_it_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(acceptance.preflight, "gpu_count", lambda: 1)
    monkeypatch.setattr(acceptance.preflight, "gpu_names", lambda: ("NVIDIA L20",))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["accept", "--out", str(tmp_path / "x")]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
