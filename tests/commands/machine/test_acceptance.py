"""`accept` rehearsed with simulated engines in virtual time: the table, its files, its exit code."""

import json

import pytest

from loadtest import cli
from loadtest.commands.machine import acceptance
from loadtest.study import fast_forward


@pytest.fixture
def in_virtual_time(monkeypatch):
    def execute(study, out, *, force, say, audience):
        return fast_forward.simulate_study(study, out, say=say)

    monkeypatch.setattr(acceptance, "execute", execute)


REHEARSED = ["accept", "--engine", "vllm-sim", "--engine", "sglang-sim", "--gpu", "l20"]


def test_a_rehearsal_leaves_a_table_and_its_evidence(in_virtual_time, tmp_path, capsys):
    out = tmp_path / "accepted"
    assert cli.main([*REHEARSED, "--out", str(out)]) == 3  # no GPU, so no power
    said = capsys.readouterr()
    assert said.out.startswith("accepted: ")
    assert "SIMULATED" in said.out
    assert "FAIL     power by NVML" in said.out
    assert "PASS     refusal" in said.out
    assert "checks failed: " in said.err
    for name in ("measured", "extremes"):
        assert (out / f"{name}.loadtest").is_file()
        assert (out / name / "report.html").is_file()
        assert cli.main(["report", str(out / f"{name}.loadtest")]) == 0
    rows = json.loads((out / "acceptance.json").read_text())
    assert {row["result"] for row in rows} <= {"pass", "fail", "not run"}
    assert {row["check"] for row in rows} == {
        "start and stop", "settings", "token counts", "KV cache", "power by NVML", "time per token, one user",
        "joules against nvidia-smi", "decision", "start-to-start variation", "speculative decoding", "refusal",
        "out of memory",
    }  # fmt: skip


def test_without_a_gpu_real_engines_are_not_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(acceptance.preflight, "gpu_count", lambda: 0)
    assert cli.main(["accept", "--gpu", "l20", "--out", str(tmp_path / "x")]) == 2
    assert "to rehearse: --engine vllm-sim" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
