"""A study over both real engines, from the command line to the finished page."""

import subprocess
import sys

import pytest

from tests.engines.conftest import CHECKOUT, assert_counts_agree

LEVELS = [1, 2, 4, 8]


@pytest.mark.timeout(1800)
def test_equal_work_is_equal_to_the_token(tmp_path):
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "loadtest", "run", "tests/engines/study.toml", "--out", str(out)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = assert_counts_agree(out)
    assert [cell["engine"] for cell in cells] == ["sglang", "vllm"]
    sglang, vllm = ({level["concurrency"]: level for level in cell["levels"]} for cell in cells)
    assert sorted(sglang) == sorted(vllm) == LEVELS
    for concurrency in LEVELS:
        for level in (sglang[concurrency], vllm[concurrency]):
            assert level["outcomes"] == {"ok": level["n_requests"]}
        ours = sglang[concurrency]["reconciliation"]["client_output_tokens"]
        assert ours == vllm[concurrency]["reconciliation"]["client_output_tokens"]
        assert ours % 600 == 0
    for levels in (sglang, vllm):
        answered = sum(level["time_to_first_answer_s"]["n"] for level in levels.values())
        assert answered > sum(level["n_requests"] for level in levels.values()) / 2, "thinking is followed by answers"
