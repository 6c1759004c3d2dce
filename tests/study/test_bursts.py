"""Which passes a decision asks for, and what virtual time makes of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.analysis.compare import compare_runs
from loadtest.analysis.run import analyze
from loadtest.errors import UsageError
from loadtest.records import read
from loadtest.study import fast_forward, locust_pass, parse, plan
from loadtest.study.bursts import asked
from loadtest.study.schema import Cell, Study, in_mode
from loadtest.workload.contract import Contract

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
        assert len(cell.conditions) == 6


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
    assert level.output_tokens_per_s.value == pytest.approx(natural.output_tokens_per_s.value, rel=0.03)
    assert level.time_to_final_answer_s.p50.value == pytest.approx(
        natural.time_to_final_answer_s.p50, rel=0.15
    )  # 32 prompts


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
