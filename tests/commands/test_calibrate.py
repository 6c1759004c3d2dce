"""`calibrate` of run folders from elsewhere, and what it does not write to."""

import json
import os
import shutil

import pytest

from loadtest import cli
from loadtest.perfmodel import machine_fit
from loadtest.study import fast_forward
from loadtest.study import parse as studies

STUDY = """
name = "calibrated"
workload = "ledger:n=8,seed=7,difficulty=2"
levels = [1, 4]
min_requests = 16
[[cells]]
engine = "vllm-sim"
model = "qwq-32b-awq"
gpu = "l20"
args = ["--length-scale", "0.02"]
"""
LEVEL = ("cells", 0, "levels", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrate") / "run"
    fast_forward.simulate_study(studies.parse_study(STUDY), out, say=lambda _: None)
    assert cli.main(["analyze", str(out)]) == 0
    return out


@pytest.fixture
def calibrated(tmp_path, capsys):
    """Calibrate; the exit code, and what was said of errors."""

    def calibrate(run, out=tmp_path / "machine.toml"):
        capsys.readouterr()
        code = cli.main(["calibrate", str(run), "--out", str(out)])
        return code, capsys.readouterr().err

    return calibrate


def altered(whole, folder, place, value):
    """A copy of the run whose figures were altered at one place."""
    run = folder / "run"
    run.mkdir()
    figures = json.loads((whole / "metrics.json").read_text())
    part = figures
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (run / "metrics.json").write_text(json.dumps(figures))
    return run


@pytest.mark.fault("input", "`calibrate` of absurd figures: the file, the cell, what was expected")
@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((*LEVEL, "tpot_s", "mean"), 0, "time per token: expected 0.001 ms to 1,000 s, got 0 s"),
        ((*LEVEL, "tpot_s", "mean"), -1, "time per token: expected 0.001 ms to 1,000 s, got -1 s"),
        ((*LEVEL, "tpot_s", "mean"), 1e308, "time per token: expected 0.001 ms to 1,000 s, got 1e+308 s"),
        ((*LEVEL, "concurrency"), -5, "concurrency: expected 0 to 1,000,000,000, got -5"),
        ((*LEVEL, "concurrency"), 2**53, "concurrency: expected 0 to 1,000,000,000, got 9.0072e+15"),
        ((*LEVEL, "concurrency"), 10**9, "no machine explains these runs: QwQ-32B-AWQ on 1 x NVIDIA L20, 1000000000"),
        ((*LEVEL, "context_tokens", "value"), 1e300, "context: expected 0 to 1,000,000,000, got 1e+300"),
        ((*LEVEL, "reasoning_tokens", "mean"), -3, "reasoning tokens: expected 0 to 1,000,000,000, got -3"),
        ((*LEVEL, "answer_tokens", "mean"), 1e300, "answer tokens: expected 0 to 1,000,000,000, got 1e+300"),
        (("cells", 0, "tp"), 3, "metrics.json: vllm-sim_qwq-32b-awq_tp1: tp 3: expected a divisor of the 40"),
        (("cells", 0, "gpu"), "l20\x1b[31m", "GPU 'l20\\x1b[31m' is not known"),
        (("cells", 0, "gpu"), "../gone.toml", "gone.toml: cannot be read: No such file"),
        (("cells", 0, "engine"), "", "engine '' is not known"),
        (("cells", 0, "model"), "x" * 10_000, "nothing to calibrate on"),
        (("cells", 0, "model"), "a\0b", "nothing to calibrate on"),
    ],
)  # fmt: skip
def test_absurd_figures_are_one_line_and_leave_no_file(whole, tmp_path, calibrated, place, value, said):
    code, error = calibrated(altered(whole, tmp_path, place, value))
    assert code == 2
    assert error.startswith("loadtest: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "machine.toml").exists()


def test_a_version_of_thousands_of_digits_is_one_line(whole, tmp_path, calibrated):
    run = altered(whole, tmp_path, ("cells", 0, "simulated"), False)
    figures = json.loads((run / "metrics.json").read_text())
    figures["cells"][0] |= {"engine": "vllm", "engine_version": f"{'1' * 5000}.0"}
    (run / "metrics.json").write_text(json.dumps(figures))
    code, error = calibrated(run)
    assert (code, error.count("\n")) == (2, 1)
    assert "expected numbers as in 0.19.0" in error


@pytest.mark.fault("input", "A run that names a pipe or a device as its GPU or model: not read")
@pytest.mark.parametrize(("key", "named"), [("gpu", "gpu.toml"), ("model", "config.json")])
def test_a_run_that_names_a_pipe_or_a_device_is_one_line(whole, tmp_path, calibrated, key, named):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        place = tmp_path / make.__name__
        place.mkdir()
        make(place / named)
        run = altered(whole, place, ("cells", 0, key), str(place / named if key == "gpu" else place))
        code, error = calibrated(run)
        assert (code, error.count("\n")) == (2, 1)
        assert ("not a file" if key == "gpu" else "nothing to calibrate on") in error


@pytest.mark.fault("input", "A link, a pipe or a folder where `calibrate` would write: refused")
@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda out: out.symlink_to(out.with_name("mine")), 2, "expected a new file, got one that exists"),
        (lambda out: out.symlink_to(out.with_name("nothing")), 2, "expected a new file, got one that exists"),
        (os.mkfifo, 2, "expected a new file, got one that exists"),
        (os.mkdir, 2, "expected a new file, got one that exists"),
        (lambda out: None, 0, ""),
    ],
    ids=["link", "link to nothing", "pipe", "folder", "new"],
)
def test_nothing_is_written_over_or_through(whole, tmp_path, calibrated, make, code, said):
    mine, out = tmp_path / "mine", tmp_path / "out.toml"
    mine.write_text("mine")
    make(out)
    found, error = calibrated(whole, out)
    assert found == code
    assert said in error
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("place", ["missing/out.toml", "file/out.toml"])
def test_where_nothing_can_be_written_is_one_line(whole, tmp_path, calibrated, place):
    (tmp_path / "file").write_text("")
    code, error = calibrated(whole, tmp_path / place)
    assert (code, error.count("\n")) == (1, 1)
    assert "cannot write" in error


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "a\x1bb", "\udcff", "a\x7fb", "'''# x"])
def test_the_file_can_be_read_again_whatever_the_run_is_called(whole, tmp_path, calibrated, name):
    run = tmp_path / name
    shutil.copytree(whole, run)
    out = tmp_path / "machine.toml"
    assert calibrated(run, out) == (0, "")
    assert machine_fit.read_machine(out).source.startswith("2 levels of ")
