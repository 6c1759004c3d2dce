"""Studies over both real runtimes, from the command line to the finished page."""

import json
import subprocess
import sys

import pytest

from tests.engines.conftest import CHECKOUT

STUDY = (CHECKOUT / "tests/engines/study.toml").read_text()
AIME = CHECKOUT.parent / "shared" / "data"
LEVELS = [1, 2, 4, 8]


def carried_out(study, out):
    """The numbers of a study that ran whole: its page is there, and every count is the server's own."""
    path = out.parent / "study.toml"
    path.write_text(study)
    argv = [sys.executable, "-m", "loadtest", "run", str(path), "--out", str(out)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["complete"], manifest["simulated"]) == (True, False)
    assert (out / "report.html").stat().st_size > 10_000
    numbers = json.loads((out / "metrics.json").read_text())
    assert [cell["engine"] for cell in numbers["cells"]] == ["sglang", "vllm"]
    for cell in numbers["cells"]:
        for told in (one for level in cell["levels"] for one in level["reconciliation"]["passes"]):
            for count in ("prompt_tokens", "output_tokens", "requests"):
                assert told[f"client_{count}"] == told[f"server_{count}"]
            ttft = told["ttft"]  # the load generator shares two cores with the runtime: times may differ here, counts not
            assert ttft["status"] in ("pass", "fail")
            assert ttft["n_client"] == ttft["n_server"]
            assert ttft["client_mean_s"] > 0 < ttft["server_mean_s"]
    return numbers


@pytest.mark.timeout(1800)
def test_equal_work_is_equal_to_the_token(tmp_path):
    numbers = carried_out(STUDY, tmp_path / "run")
    sglang, vllm = ({level["concurrency"]: level for level in cell["levels"]} for cell in numbers["cells"])
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime_through_both(name, tmp_path):
    """A model that speaks nonsense answers nothing rightly; what counts is that every problem is asked, ended and judged."""
    if not AIME.is_dir():
        pytest.skip("the AIME files are not beside this checkout (../shared/data)")
    study = STUDY.replace('"math:n=16,seed=7"', f'"{AIME / name}.jsonl"').replace("levels = [1, 2, 4, 8]", "levels = [8]")
    study = study.replace("min_requests = 8", "min_requests = 30").replace('mode = "equal-work"', 'mode = "natural"')
    numbers = carried_out(study.replace("max_tokens = 600", "max_tokens = 2048"), tmp_path / "run")
    for cell in numbers["cells"]:
        (level,) = cell["levels"]
        assert level["n_requests"] == 30
        assert set(level["outcomes"]) <= {"ok", "truncated"}
        assert level["accuracy"]["n"] == level["outcomes"]["ok"] > 15
