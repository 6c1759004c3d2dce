"""A study whose cells differ by what it varies, in mode decision and virtual time: both simulated engines, two factors."""

import pytest

from loadtest.analysis.run import analyze
from loadtest.records import read
from loadtest.report.decision import decision_lines
from loadtest.report.overview import answer_of
from loadtest.report.terminal import decision_text
from loadtest.study import fast_forward, parse

# A step of 30 ms, or of 33; and a batch that none of the bursts fills.
STUDY = """
name = "varied"
workload = "math:n=32,seed=7"
mode = "decision"
levels = [1, 4]
natural_users = 6
natural_prompts = 32
[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b-awq"
gpu = "l20"
args = ["--length-scale", "0.1"]
vary = {"--step-time" = [0.03, 0.033], "--max-running" = [16, 32]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("varied") / "run"
    assert fast_forward.simulate_study(parse.parse_study(STUDY), out, say=lambda _: None) == ()
    return read.read_run(out)


@pytest.fixture(scope="module")
def metrics(run):
    return analyze(run)


def test_each_change_is_told_from_bursts_once_for_each_engine(metrics):
    found = {(one.engine, one.factor): one for one in metrics.factors}
    assert len(found) == 4
    for engine in ("sglang-sim", "vllm-sim"):
        slowed, batch = found[engine, "--step-time"], found[engine, "--max-running"]
        assert (slowed.level, slowed.baseline, slowed.verdict) == ("0.033", "0.03", "slower")
        assert slowed.ratio.value == pytest.approx(1.1, rel=0.005)
        assert (batch.level, batch.baseline, batch.verdict) == ("32", "16", "equal")
        assert batch.ratio.value == pytest.approx(1.0, rel=0.005)
        for one in (slowed, batch):
            assert (one.metric, one.concurrency, one.n_starts) == ("time_to_final_answer_s", (1, 4), 1)
            assert len(one.pairs) == len(one.pair_ratios) == 2
            assert (one.by_concurrency, one.figures) == ((), ())  # bursts tell none


def test_every_pair_is_decided_by_bursts(metrics):
    for one in metrics.decisions:
        slower = [name.count("step-time=0.033") for name in (one.a, one.b)]
        expected = {0: "equal", 1: "slower", -1: "faster"}[slower[0] - slower[1]]
        assert (one.evidence, one.broken, one.verdict) == ("composed", (), expected), (one.a, one.b)


def test_page_and_terminal_say_what_each_change_does(run, metrics):
    lines = {line.asks: line for line in decision_lines(metrics, run.manifest)}
    assert lines["--step-time 0.033 instead of 0.03"].answer.startswith("Predicted: 10.0 % slower")
    assert lines["--max-running 32 instead of 16"].answer.startswith("Predicted: equal (")
    text = " ".join(decision_text(metrics, run.manifest, 120).split())
    assert "--step-time 0.033 instead of 0.03: Predicted: 10.0 % slower [" in text
    assert "--step-time 0.033 instead of 0.03 is 10.0 % slower" in answer_of(metrics, run.manifest)
