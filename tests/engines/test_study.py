"""A study over both real runtimes, from the command line to the finished page."""

import json
import subprocess
import sys

import pytest

from tests.engines.conftest import CHECKOUT


@pytest.mark.timeout(900)
def test_a_study_of_both_runtimes_ends_in_a_page(tmp_path):
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "loadtest", "run", "tests/engines/study.toml", "--out", str(out)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["complete"], manifest["simulated"]) == (True, False)
    numbers = json.loads((out / "metrics.json").read_text())
    assert {cell["engine"] for cell in numbers["cells"]} == {"vllm", "sglang"}
    for cell in numbers["cells"]:
        assert [level["concurrency"] for level in cell["levels"]] == [1, 2, 4, 8]
        for level in cell["levels"]:
            assert set(level["outcomes"]) <= {"ok", "truncated"}, "thinking is followed by an answer, or passes the limit"
            assert level["outcomes"]["ok"] > level["n_requests"] / 2
            told = level["reconciliation"]
            beside_time = [reason for reason in told["reasons"] if "mean TTFT" not in reason]
            assert beside_time == [], "the load generator shares two cores with the runtime: times may differ, counts not"
            assert told["client_output_tokens"] == told["server_output_tokens"]
    assert (out / "report.html").stat().st_size > 10_000
