"""Which passes a decision asks for, and what virtual time makes of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from loadtest import resources
from loadtest.analysis.bursts.objectives import is_told, judge_composed
from loadtest.analysis.claims import parse_claims
from loadtest.analysis.compare import compare_runs
from loadtest.analysis.run import analyze
from loadtest.errors import UsageError
from loadtest.metrics.catalogue import METRICS, OBJECTIVES, statistics_of
from loadtest.metrics.figures import Bounded
from loadtest.metrics.slo import parse_slo
from loadtest.records import read
from loadtest.study import fast_forward, locust_pass, parse, plan
from loadtest.study.bursts import asked
from loadtest.study.schema import Cell, Study, by_default, in_mode
from loadtest.workload.contract import Contract

FINDINGS = resources.path("reports/findings/qwq-32b-ada.toml")
CELLS = tuple(
    Cell(engine=engine, model="qwq-32b-awq", tp=tp, gpu="l20", args=("--length-scale", "0.1"))
    for engine in ("sglang-sim", "vllm-sim")
    for tp in (1, 2)
)
STUDY = Study(name="s", workload="math:n=32,seed=7", cells=CELLS, levels=(1, 2, 4), mode="decision", natural_users=6,
              natural_prompts=32, repeats=6, until_decided=True, min_requests=2, requests_per_stream=1)  # fmt: skip


def names(wanted, cell, study=STUDY):
    return [one.name(1) for one in wanted.passes(study, Contract(), cell)]


def test_a_decision_has_bursts_at_both_ends_and_one_natural_run_for_each_engine_and_model():
    wanted = asked.first_wanted(STUDY, Contract())
    assert names(wanted, CELLS[0]) == ["bursts-c01-r1", "bursts-c04-r1"]
    assert names(wanted, CELLS[1]) == ["bursts-c01-r1", "bursts-c04-r1", "bursts-c06-r1", "c06-r1"]
    blocked = asked.first_wanted(STUDY, Contract(), {CELLS[1].id})
    assert names(blocked, CELLS[0]) == ["bursts-c01-r1", "bursts-c04-r1", "bursts-c06-r1", "c06-r1"]


def test_natural_passes_are_of_the_levels_that_bursts_stand_for():
    wanted = asked.Wanted(levels=frozenset({CELLS[0].id}))
    assert names(wanted, CELLS[0]) == ["c01-r1", "c04-r1"]
    assert names(wanted, CELLS[0], in_mode(STUDY, "natural")) == ["c01-r1", "c02-r1", "c04-r1"]


def test_a_natural_run_at_a_level_of_bursts_is_held_against_these():
    study = replace(STUDY, natural_users=4)
    assert names(asked.first_wanted(study, Contract()), CELLS[1], study) == ["bursts-c01-r1", "bursts-c04-r1", "c04-r1"]


def test_slos_and_claims_have_bursts_at_every_level():
    for study in (replace(STUDY, slo=("ttft_s:p90<2",)), replace(STUDY, findings="qwq-32b-ada")):
        assert names(asked.first_wanted(study, Contract()), CELLS[0], study) == [f"bursts-c0{n}-r1" for n in (1, 2, 4)]
        assert names(asked.Wanted(levels=frozenset({CELLS[0].id})), CELLS[0], study) == ["c01-r1", "c02-r1", "c04-r1"]


def test_bursts_of_one_deployment_have_the_same_contexts_as_the_smallest_of_its_engines_holds():
    cells = (CELLS[0], replace(CELLS[2], context_tokens=2000))
    found = [asked.burst_pass(replace(STUDY, cells=cells), Contract(), cell, 4) for cell in cells]
    assert found[0].contexts_tokens == found[1].contexts_tokens == (65, 485, 1616)
    with pytest.raises(UsageError, match=r"levels: .*expected room for prompts"):
        asked.check_room(replace(STUDY, cells=(replace(CELLS[0], context_tokens=400),)), Contract(max_tokens=100))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("duration_s = 60.0", "mode: expected natural with another scenario or with duration_s"),
        ('scenario = "open_loop"', "mode: expected natural with another scenario"),
        ("natural_users = 0", "natural_users: expected a number from 1 up"),
    ],
)
def test_what_a_decision_cannot_do_is_refused(line, said):
    text = f'name="s"\nworkload="math"\nmode="decision"\n{line}\n[[cells]]\nengine=["sglang","vllm"]\nmodel="qwq-32b"\n'
    with pytest.raises(UsageError, match=said):
        parse.parse_study(text)


def test_a_decision_repeats_up_to_six_times_unless_it_says_otherwise():
    text = 'name="s"\nworkload="math"\nmode="decision"\n{}\n[[cells]]\nengine="vllm"\nmodel="qwq-32b"\n'
    found = [parse.parse_study(text.format(line)) for line in ("", "repeats=3")]
    assert [(one.repeats, one.until_decided) for one in found] == [(6, True), (3, True)]
    fixed = parse.parse_study(text.format("repeats=3\nuntil_decided=false"))
    assert (fixed.repeats, fixed.until_decided, fixed.lengths) == (3, False, "natural")


def test_every_level_asks_the_same_prompts_and_no_cache_knows_them(tmp_path):
    """Rounds of four prompts of some 200 tokens, which a cache without salts would know from the second round on."""
    grid = replace(in_mode(STUDY, "natural"), cells=(CELLS[0], CELLS[2]), levels=(1, 3), prompts=4, min_requests=6,
                   requests_per_stream=3, workload="ledger:n=20,seed=1,difficulty=5")  # fmt: skip
    assert [grid.requests(level) for level in grid.levels] == [8, 12]
    fast_forward.simulate_study(grid, tmp_path / "run", say=lambda _: None)
    run = read.read_run(tmp_path / "run")
    assert (run.manifest.prompts, run.manifest.unsalted) == (4, ())
    for cell in run.cells:
        asked_for = [Counter(r.prompt_id for r in one.requests if r.phase == "measure") for one in cell.levels]
        assert [set(one.values()) for one in asked_for] == [{2}, {3}]
        assert asked_for[0].keys() == asked_for[1].keys()
        requests = [r for one in cell.levels for r in one.requests]
        assert min(r.prompt_tokens for r in requests) > 60
        assert max(r.cached_tokens or 0 for r in requests) < 20  # the words that all these prompts begin with
    assert analyze(run).cells[1].levels[0].server.prefix_cache_hit_share == 0


def test_an_engine_without_salts_asks_on_through_the_workload():
    cell = Cell(engine="other", model="m", base_url="http://127.0.0.1:1")
    study = Study(name="s", workload="math", cells=(cell,), prompts=4)
    (first, *_) = asked.natural_passes(study)
    assert asked.rounds_of(study, cell, first, 1) is None
    argv = locust_pass.command(study, cell, locust_pass.Target("http://127.0.0.1:1", "m"), first, 1, Path("RUN"), "id")
    assert "--prompts" not in argv
    vllm = Cell(engine="vllm", model="m")
    argv = locust_pass.command(study, vllm, locust_pass.Target("http://127.0.0.1:1", "m"), first, 1, Path("RUN"), "id")
    assert argv[argv.index("--prompts") + 1] == "4"
    refusing = locust_pass.Target("http://127.0.0.1:1", "m", salted=False)
    assert "--prompts" not in locust_pass.command(study, vllm, refusing, first, 1, Path("RUN"), "id")


def test_studies_that_compare_decide_unless_they_say_otherwise():
    text = 'name="s"\nworkload="math"\n{}\n[[cells]]\nengine={}\nmodel="qwq-32b"\n{}\n'

    def found(line="", engine='["sglang","vllm"]', place=""):
        study = by_default(parse.parse_study(text.format(line, engine, place)))
        return study.mode, study.repeats, study.until_decided

    assert found() == ("decision", 6, True)
    assert found("repeats=3") == ("decision", 3, True)
    assert found("repeats=1") == ("decision", 1, False)
    assert found("until_decided=false") == ("decision", 6, False)
    for line in ('mode="natural"', "duration_s=60.0", 'scenario="open_loop"', "prompts=4"):
        assert found(line) == ("natural", 1, False)
    assert found(engine='"vllm"') == ("natural", 1, False)
    for workload in ("tool_calls", "structured:items=2"):
        study = parse.parse_study(text.replace('"math"', f'"{workload}"').format("", '["sglang","vllm"]', ""))
        assert by_default(study).mode == "natural"
    assert found(place='base_url="http://127.0.0.1:1"') == ("natural", 1, False)


# In virtual time -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("decision") / "run"
    assert fast_forward.simulate_study(STUDY, out, say=lambda _: None) == ()
    return read.read_run(out)


@pytest.fixture(scope="module")
def metrics(run):
    return analyze(run)


def test_the_folders_of_bursts_are_their_own_and_no_level_counts_them(run, metrics):
    assert (run.manifest.mode, run.manifest.natural_users, run.manifest.complete) == ("decision", 6, True)
    by_id = {cell.id: cell for cell in run.cells}
    small, large = by_id["vllm-sim_qwq-32b-awq_tp1"], by_id["vllm-sim_qwq-32b-awq_tp2"]
    assert [one.concurrency for one in small.bursts] == [1, 4]
    assert [one.concurrency for one in large.bursts] == [1, 4, 6]
    assert ([one.concurrency for one in small.levels], [one.concurrency for one in large.levels]) == ([], [6])
    assert "vllm-sim_qwq-32b-awq_tp1/bursts-c04-r1" in run.manifest.passes
    assert {cell.id: [level.n_requests for level in cell.levels] for cell in metrics.cells}[large.id] == [32]


def test_both_engines_are_decided_by_composed_times(metrics):
    assert [(one.evidence, one.verdict, one.broken, one.concurrency) for one in metrics.decisions] == [
        ("composed", "equal", (), (1, 4)),
    ] * 2  # fmt: skip
    for cell in metrics.cells:
        assert {one.status for one in cell.conditions} == {"met"}, cell.conditions
        assert len(cell.conditions) == 7


def test_composed_times_are_those_of_a_natural_run(tmp_path, metrics):
    """400 answers at concurrency 4 of the same engine, against what bursts and 32 lengths say."""
    cell = replace(CELLS[0], args=("--length-scale", "0.1"))
    grid = replace(in_mode(STUDY, "natural"), cells=(cell,), levels=(4,), min_requests=400, workload="math:n=400,seed=9")
    fast_forward.simulate_study(grid, tmp_path / "run", say=lambda _: None)
    (natural,) = analyze(read.read_run(tmp_path / "run")).cells[0].levels
    (found,) = [one for one in metrics.cells if one.id == "sglang-sim_qwq-32b-awq_tp1"]
    level = found.composed[1]
    assert (level.concurrency, level.evidence, level.n_answers, level.lengths_of) == (4, "composed", 64, "both engines")
    assert level.tokens_per_s_per_user.value == pytest.approx(natural.tokens_per_s_per_user.mean, rel=0.02)
    for reached in ("p50", "p10", "p5"):
        true = natural.estimate("tokens_per_s_per_user", reached).value
        assert level.estimate("tokens_per_s_per_user", reached).value == pytest.approx(true, rel=0.02)
    assert level.first_token_s.value <= natural.ttft_s.p50 <= natural.ttft_s.p99 <= level.longest_first_token_s
    assert level.output_tokens_per_s.value == pytest.approx(natural.output_tokens_per_s.value, rel=0.03)
    assert level.time_to_final_answer_s.p50.value == pytest.approx(
        natural.time_to_final_answer_s.p50, rel=0.15
    )  # 32 prompts


def test_slos_are_judged_by_composed_levels(run):
    slo = ("time_to_final_answer_s:p90<600", "tokens_per_s_per_user:p10>1", "ttft_s:p90<60", "itl_s:p99<9")
    told = analyze(with_slos(run, *slo[:3]))
    for cell in told.cells:
        assert [one.evidence for level in cell.composed for one in level.slo] == ["composed"] * 3 * len(cell.composed)
        assert (cell.maximum_concurrency.by_slo, cell.maximum_concurrency.limit) == (
            cell.composed[-1].concurrency,
            "not_reached",
        )
    first, last = told.cells[0].composed[0], told.cells[0].composed[1]
    between = (first.tokens_per_s_per_user.value + last.tokens_per_s_per_user.value) / 2
    strict = analyze(with_slos(run, f"tokens_per_s_per_user:mean>{between}")).cells[0].maximum_concurrency
    assert (strict.by_slo, strict.limit, strict.tried) == (1, "slo", 4)
    assert "bursts do not tell" in analyze(with_slos(run, *slo)).cells[0].maximum_concurrency.reason


def with_slos(run, *slo):
    return replace(run, manifest=msgspec.structs.replace(run.manifest, slo=slo))


def test_what_bursts_are_said_to_tell_they_tell(metrics):
    (level, *_) = metrics.cells[0].composed
    for metric in OBJECTIVES:
        for statistic in statistics_of(metric):
            limit = f"{metric}:{statistic}" if statistic != "value" else metric
            slo = parse_slo(f"{limit}{'<' if METRICS[metric].better == 'less' else '>'}1")
            told = metric == "ttft_s" or level.estimate(metric, statistic) is not None
            assert is_told(slo) == told, slo.text


def test_a_first_token_is_bounded_by_lone_requests_and_by_whole_bursts(metrics):
    level = metrics.cells[0].composed[1]
    level = msgspec.structs.replace(level, first_token_s=Bounded(0.1, (0.09, 0.11)))
    assert level.longest_first_token_s > 0.11
    for limit, met in ((0.05, False), (level.longest_first_token_s * 0.9, None), (level.longest_first_token_s * 1.1, True)):
        found = judge_composed(parse_slo(f"ttft_s:p90<{limit}"), level)
        assert (found.met, found.likely, found.value) == (met, met, None)


def test_claims_are_judged_by_composed_levels(run):
    rows = {one.id: one for one in analyze(run, parse_claims(FINDINGS.read_bytes(), "findings")).findings}
    assert "composed" in rows["awq-tp1-speed"].reason or rows["awq-tp1-speed"].ci95 is None
    assert rows["sglang-ahead"].reason.endswith("2 pairs by composed time_to_final_answer_s")


def test_two_decisions_of_the_same_engines_are_compared_by_their_bursts(run):
    found = compare_runs(run, run)
    assert [(one.a, one.evidence, one.verdict, one.ratio.value) for one in found.decisions] == [
        (cell.id, "composed", "equal", 1.0) for cell in run.cells
    ]
    assert (found.regressions, found.slower) == ((), ())


def test_a_candidate_that_is_slower_by_bursts_is_a_regression(run):
    """The simulator's clock stretched by 10 %, in bursts and natural runs of the candidate alike."""
    cells = [
        replace(cell, bursts=tuple(map(stretched, cell.bursts)), levels=tuple(map(stretched, cell.levels)))
        for cell in run.cells
    ]
    slower = replace(run, cells=tuple(cells))
    found = compare_runs(run, slower, tolerance=0.05)
    assert {one.a for one in found.slower} == {cell.id for cell in run.cells}
    assert compare_runs(run, slower, tolerance=0.15).slower == ()


def stretched(passed):
    return replace(passed, requests=tuple(later(one) for one in passed.requests))


def later(one):
    times = ("scheduled_s", "sent_s", "headers_s", "ended_s")
    return replace(one, chunk_s=tuple(1.1 * t for t in one.chunk_s), **{name: 1.1 * getattr(one, name) for name in times})


def test_a_cell_that_preempts_falls_back_to_natural_passes_in_the_same_run(tmp_path):
    """A KV cache of some 14,000 tokens, which twelve natural answers outgrow; bursts stay within 80 % of it."""
    cells = tuple(replace(one, memory_fraction=0.5, context_tokens=6000, args=()) for one in CELLS if one.tp == 1)
    study = replace(STUDY, cells=cells, natural_users=12)
    said = []
    assert fast_forward.simulate_study(study, tmp_path / "run", say=said.append) == ()
    run = read.read_run(tmp_path / "run")
    metrics = analyze(run)
    (pair,) = metrics.decisions
    assert [one.concurrency for one in run.cells[0].levels] == [1, 4, 12]
    assert pair.evidence == "measured"
    assert any("no preemption" in one for one in pair.broken)
    assert any("natural passes instead of bursts, as" in line for line in said)
    assert plan.fit_of(cells[0], Contract()).kv_capacity_tokens < 15_000


def test_an_engine_that_runs_fewer_streams_than_a_burst_has_gets_natural_passes(tmp_path):
    """Two at once, of bursts of four: no stretch in which all decode."""
    few, many = (replace(CELLS[2], name=f"n{n}", args=(*CELLS[2].args, "--max-running", n)) for n in ("2", "16"))
    assert fast_forward.simulate_study(replace(STUDY, cells=(few, many)), tmp_path / "run", say=lambda _: None) == ()
    metrics = analyze(read.read_run(tmp_path / "run"))
    (pair,) = metrics.decisions
    broken = {cell.name: [one.name for one in cell.conditions if one.status == "broken"] for cell in metrics.cells}
    assert ("streams together" in broken["n2"], broken["n16"]) == (True, [])
    assert (pair.a, pair.evidence, pair.verdict) == (many.id, "measured", "faster")


def test_a_fallback_at_the_concurrency_of_the_natural_run_is_a_repeat_of_its_own(tmp_path):
    cells = tuple(one for one in CELLS if one.tp == 1)
    study = replace(STUDY, cells=cells, levels=(1, 6), contract={"max_tokens": 128})  # every answer is cut off
    assert fast_forward.simulate_study(study, tmp_path / "run", say=lambda _: None) == ()
    run = read.read_run(tmp_path / "run")
    assert [(one.concurrency, one.repeat) for one in run.cells[0].levels] == [(1, 2), (6, 1), (6, 2)]
    assert not any(one.damaged for one in run.cells[0].passes)
    assert {len(list(one.path.glob("requests*"))) for one in run.cells[0].passes} == {1}
