"""`predict` and `calibrate` from the command line: a machine's topology, and its own runs, change what is predicted."""

import json

import pytest

from loadtest import cli
from loadtest.perfmodel import machine_fit
from loadtest.servers import preflight
from loadtest.study import parse, plan
from loadtest.workload.contract import Contract

PAIR = ("--model", "qwq-32b", "--gpu", "l20", "--tp", "2", "--prompt-tokens", "500", "--output-tokens", "2000")
HIDDEN = 'overhead = 1.6\nweights = 1.15\nkv = 1.3\nsource = "hidden"\n'
STUDY = """
name = "hidden"
workload = "math:n=8"
levels = [1, 4, 16]
[[cells]]
engine = "vllm-sim"
model = ["qwq-32b-awq"]
gpu = "l20"
"""


def predicted(capsys, *options):
    assert cli.main(["predict", *PAIR, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_interconnect_decides_how_fast_a_pair_is_and_how_sure(capsys):
    unknown = predicted(capsys)["tpot_s"]
    peer, host = (predicted(capsys, "--interconnect", name)["tpot_s"] for name in ("pcie-p2p", "pcie-host"))
    assert peer["value"] < unknown["value"] < host["value"]
    assert host["high"] / host["value"] < unknown["high"] / unknown["value"]


def test_the_interconnect_is_read_here(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "topology", lambda: "pcie-host")
    assert predicted(capsys, "--interconnect", "here") == predicted(capsys, "--interconnect", "pcie-host")
    monkeypatch.setattr(preflight, "topology", lambda: None)
    assert cli.main(["predict", *PAIR, "--interconnect", "here"]) == 2
    assert "interconnect here: expected nvidia-smi and two GPUs or more" in capsys.readouterr().err


def test_a_cell_takes_the_interconnect_of_this_machine(monkeypatch):
    monkeypatch.setattr(preflight, "topology", lambda: "pcie-p2p")
    study = parse.parse_study(STUDY + 'interconnect = "here"\n')
    spec = plan.launch_spec(study.cells[0], Contract(), 8000)
    assert spec.extra_args == ("--interconnect", "pcie-p2p")


def test_an_older_engine_takes_longer(capsys):
    old, new = (
        predicted(capsys, "--engine", "vllm", *version)["tpot_s"]["value"] for version in (("--engine-version", "0.5"), ())
    )
    assert old > new
    assert cli.main(["predict", *PAIR, "--engine", "vllm", "--engine-version", "latest"]) == 2
    assert "engine version 'latest': expected numbers as in 0.19.0" in capsys.readouterr().err


def test_more_memory_lets_more_streams_run(capsys):
    few, many = (predicted(capsys, "--concurrency", "64", "--memory-fraction", share) for share in ("0.85", "0.95"))
    assert few["running_streams"] < many["running_streams"]


def test_drafts_are_told_in_one_option(capsys):
    assert predicted(capsys, "--speculation", "3.2,16,4")["tpot_s"]["value"] < predicted(capsys)["tpot_s"]["value"]
    assert cli.main(["predict", *PAIR, "--expert-parallel"]) == 2
    assert "expert parallel: expected a mixture of experts" in capsys.readouterr().err
    assert cli.main(["predict", *PAIR, "--speculation", "eagle"]) == 2
    assert "--speculation eagle: expected tokens accepted a step" in capsys.readouterr().err


def test_hidden_constants_of_a_simulated_machine_are_found_by_its_runs(tmp_path, capsys):
    hidden, study = tmp_path / "hidden.toml", tmp_path / "study.toml"
    hidden.write_text(HIDDEN)
    study.write_text(STUDY + f'calibration = "{hidden}"\n')
    assert cli.main(["predict", "--study", str(study), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert cli.main(["calibrate", str(tmp_path / "run"), "--out", str(tmp_path / "machine.toml")]) == 0
    said = capsys.readouterr().out
    assert said.count(": measured ") == 3
    assert "not measured:" in said
    assert "QwQ-32B-AWQ on 1 x NVIDIA L20, 8 streams: predicted" in said
    found, true = machine_fit.read_machine(tmp_path / "machine.toml"), machine_fit.read_machine(hidden)
    cell = parse.load_study(study).cells[0]
    assert cell.calibration == str(hidden)
    for streams in (2, 8, 24):
        level = machine_fit.RunLevel(deployment(), streams, 60, 2000, 1.0)
        assert machine_fit.tpot_s(level, found) == pytest.approx(machine_fit.tpot_s(level, true), rel=0.05)
    assert cli.main(["calibrate", str(tmp_path / "run"), "--out", str(tmp_path / "machine.toml")]) == 2
    assert "expected a new file, got one that exists" in capsys.readouterr().err


def test_a_small_and_a_large_model_tell_overhead_from_weights(tmp_path, capsys):
    """Of hidden factors those that short contexts show are recovered; what they do not show stays near 1."""
    hidden, study = tmp_path / "hidden.toml", tmp_path / "study.toml"
    hidden.write_text('overhead = 1.6\nstreams = 1.4\nweights = 1.15\nkv = 1.3\nprefill = 1.2\nsource = "hidden"\n')
    cells = STUDY.replace("[1, 4, 16]", "[1, 8, 32]").replace(
        '"qwq-32b-awq"', '"qwen2.5-1.5b-instruct", "qwen2.5-7b-instruct"'
    )
    study.write_text(cells + f'calibration = "{hidden}"\n')
    assert cli.main(["predict", "--study", str(study), "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["calibrate", str(tmp_path / "run"), "--out", str(tmp_path / "machine.toml")]) == 0
    capsys.readouterr()
    found = machine_fit.read_machine(tmp_path / "machine.toml")
    assert (found.overhead, found.weights) == pytest.approx((1.6, 1.15), rel=0.02)
    assert found.streams == pytest.approx(1.4, rel=0.2)
    assert (found.all_reduce, found.prefill) == pytest.approx((1, 1), abs=0.05)


def deployment():
    from loadtest.perfmodel import gpus, models
    from loadtest.perfmodel.memory import Deployment

    return Deployment(models.model("qwq-32b-awq"), gpus.gpu("l20"), 1, "vllm")


def test_a_machines_own_file_is_what_predict_goes_by(tmp_path, capsys):
    path = tmp_path / "machine.toml"
    path.write_text(HIDDEN + "range = 0.1\n")
    own, usual = predicted(capsys, "--calibration", str(path))["tpot_s"], predicted(capsys)["tpot_s"]
    assert own["value"] > usual["value"]
    assert own["high"] / own["value"] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ('interconnect = "infiniband"', "interconnect 'infiniband' is not known: expected one of nvlink"),
        ('calibration = "none.toml"', "none.toml: cannot be read"),
    ],
)
def test_a_wrong_key_of_a_cell_is_one_line(tmp_path, capsys, key, message):
    study = tmp_path / "study.toml"
    study.write_text(STUDY + key + "\n")
    assert cli.main(["predict", "--study", str(study), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_levels_that_the_load_generator_distorted_are_not_fitted(tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    assert cli.main(["predict", "--study", str(study), "--out", str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text())
    for level in metrics["cells"][0]["levels"]:
        level["client_health"]["status"] = "fail"
    path.write_text(json.dumps(metrics))
    assert cli.main(["calibrate", str(tmp_path / "run"), "--out", str(tmp_path / "machine.toml")]) == 2
    assert "nothing to calibrate on" in capsys.readouterr().err
