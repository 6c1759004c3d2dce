"""`run --dry-run` and `serve --print`: the exact commands, and nothing started."""

import shlex

import pytest

from loadtest import cli, resources
from loadtest.servers import preflight

GPU_STUDY = str(resources.path("scenarios/studies/qwq-32b-ada.toml"))


@pytest.fixture(scope="module")
def plan():
    """What a dry run of the published report's study prints."""
    arguments = cli._parse(["run", GPU_STUDY, "--dry-run"])
    return cli._handler(arguments.handler)(arguments, cli.Progress())


@pytest.mark.parametrize("model", ["QwQ-32B", "QwQ-32B-AWQ", "Qwen2.5-7B-Instruct"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_dry_run_shows_the_command_of_each_runtime(plan, model, tp):
    lines = plan.splitlines()
    parser = "" if "Instruct" in model else " --reasoning-parser qwen3"
    assert (
        f"VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/{model} --host 127.0.0.1 --port 8000"
        f" --served-model-name {model} --tensor-parallel-size {tp} --gpu-memory-utilization 0.9{parser} --seed 7"
        " --enable-prefix-caching --enable-prompt-tokens-details"
    ) in lines
    assert (
        f"python3 -m sglang.launch_server --model-path Qwen/{model} --host 127.0.0.1 --port 8000 --served-model-name {model}"
        f" --tp-size {tp} --mem-fraction-static 0.85{parser} --random-seed 7 --enable-cache-report --enable-metrics"
    ) in lines


def test_a_dry_run_shows_fit_refusal_times_and_every_pass(plan):
    assert "12 cells, levels [1, 2, 3, 4, 5, 6, 8], 3 repeat(s); nothing is started" in plan
    assert "QwQ-32B on 1 x NVIDIA L20: does not fit" in plan
    assert "needs 66.3 GB a GPU for weights and activations, and 43.2 GB of 48 GB may be used" in plan
    assert "87,970 / 32,768 tokens = 2 at once (8 asked for)" in plan
    assert "above 2 such requests at once it preempts" in plan
    assert plan.count(" -m loadtest.scenario --locustfile ") == 12 * 7
    assert "concurrency 1, 12 requests, about" in plan
    assert "a difference of 5.1 % is found with about 80 % power, if starts vary by 1 %" in plan
    total = plan.splitlines()[-1]
    assert total.startswith("in all: about ")
    assert "2 cell(s) are not included: refused" in total


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", ["--gpu-memory-utilization", "0.8", "--no-enable-prefix-caching", "--max-model-len", "131072"]),
        ("sglang", ["--mem-fraction-static", "0.7556", "--disable-radix-cache", "--context-length", "131072"]),
    ],
)
def test_what_serve_is_told_reaches_either_runtime_in_its_own_words(engine, expected, capsys):
    asked = "--model qwq-32b-awq --tp 4 --yarn --memory-fraction 0.8 --no-prefix-caching --served-name q --seed 3"
    assert cli.main(["serve", engine, *asked.split(), "--reasoning-parser", "deepseek_r1", "--print"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert set(expected) <= set(words)
    for flag, value in (("--served-model-name", "q"), ("--reasoning-parser", "deepseek_r1")):
        assert words[words.index(flag) + 1] == value
    assert any('"rope_type": "yarn"' in word for word in words)


def test_what_does_not_fit_is_refused_unless_forced(monkeypatch, capfd):
    monkeypatch.setenv("LOADTEST_VLLM", "false")
    command = ["serve", "vllm", "--model", "qwq-32b", "--gpu", "l20", "--port", str(preflight.free_port())]
    assert cli.main(command) == 1
    assert "does not fit: QwQ-32B on 1 x NVIDIA L20 needs 66.3 GB" in capfd.readouterr().err
    assert cli.main([*command, "--force"]) == 1
    assert "vllm: exited with code 1; see its messages above" in capfd.readouterr().err


COMPARING = """
name = "which"
workload = "math:n=16"
levels = [1, 4]
slo = ["ttft_s:p90<2", "itl_s:p99<0.2"]
[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b-awq"
gpu = "l20"
"""


def planned(path, *options):
    arguments = cli._parse(["run", str(path), "--dry-run", *options])
    return cli._handler(arguments.handler)(arguments, cli.Progress())


def test_a_dry_run_says_that_a_study_that_compares_decides_and_what_that_leaves_open(tmp_path):
    (tmp_path / "study.toml").write_text(COMPARING)
    told = planned(tmp_path / "study.toml")
    assert 'decision mode, the default for studies that compare; mode = "natural" measures each level whole' in told
    assert 'bursts do not tell itl_s:p99<0.2: mode = "natural" does' in told
    assert "decision (mode decision): about" in told
    for options in (("--mode", "natural"), ("--only", "mode=natural"), ("--only", "engine=vllm-sim"), ("--find-max",)):
        assert "the default for studies" not in planned(tmp_path / "study.toml", *options)


@pytest.mark.parametrize(
    ("options", "sought", "first", "of_locust"),
    [
        ((), "concurrency", "  38 users: 304 requests, about", "--users 38 "),
        (("--rates",), "rate of arrivals", "  0.2642 requests/s: 512 requests, about", "--level 951 --arrivals poisson"),
    ],
)  # fmt: skip
def test_a_dry_run_of_a_search_says_where_it_begins_and_which_levels_it_tries(tmp_path, options, sought, first, of_locust):
    text = COMPARING.replace("itl_s:p99<0.2", "tokens_per_s_per_user:p10>15").replace('"sglang-sim", ', "")
    (tmp_path / "study.toml").write_text(text)
    told = planned(tmp_path / "study.toml", "--find-max", *options)
    assert f"the largest {sought} within ttft_s:p90<2" in told
    assert "(predicted by the model) it doubles" in told
    assert first in told
    assert told.count(" requests, about ") == 5  # up, and three times the middle
    assert of_locust in told
    assert told.splitlines()[-1].startswith("in all, if the predictions hold, at most: about ")
    told = planned(tmp_path / "study.toml", "--find-max", *options, "--start", "2")
    assert told.count(" requests, about ") == 1
    assert told.splitlines()[-1] == "in all: not known, as no prediction says where the search ends"


def test_bursts_without_room_leave_a_study_natural(tmp_path):
    (tmp_path / "study.toml").write_text(f"{COMPARING}context_tokens = 400\n[contract]\nmax_tokens = 200\n")
    assert "1 repeat(s); nothing is started" in planned(tmp_path / "study.toml")
