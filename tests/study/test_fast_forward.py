"""Studies in virtual time: the files of a real run, figures that recover what the simulator knows, sockets that agree."""

import json
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import cli
from loadtest.analysis import run as analysis_run
from loadtest.client import level
from loadtest.errors import RecordError, UsageError
from loadtest.records import read, schema
from loadtest.servers.prometheus import normalise
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.chat import Served
from loadtest.simulator.core.engine import Engine, EngineConfig
from loadtest.simulator.http import exposition
from loadtest.study import fast_forward, virtual_level
from loadtest.study.run import execute
from loadtest.study.schema import Cell, Study
from loadtest.workload import workload
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script

REAL = tuple(Cell(engine=engine, model="qwq-32b-awq", gpu="l20") for engine in ("sglang", "vllm"))
STUDY = Study(name="small", workload="math:n=8,seed=1", cells=REAL, levels=(1, 3), min_requests=4, repeats=2, seed=1)
SHORT = ("--length-scale", "0.1")
VLLM = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20", args=SHORT)
SGLANG = replace(VLLM, engine="sglang-sim")


def silent(line):
    pass


def carried_out(study, out):
    assert fast_forward.simulate_study(study, out, say=silent) == ()
    return read.read_run(out)


def measured(passed):
    return [r for r in passed.requests if r.phase == "measure"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return carried_out(STUDY, tmp_path_factory.mktemp("study") / "run")


# -- the files of a run ------------------------------------------------------------------------------------------------


def test_real_runtimes_are_predicted_and_every_file_says_so(run):
    assert (run.manifest.simulated, run.manifest.complete, run.manifest.driven) == (True, True, "virtual time")
    assert run.manifest.clock_speed == 1
    assert [cell.engine for cell in run.manifest.cells] == ["sglang-sim", "vllm-sim"]
    for cell in run.cells:
        assert cell.engine.engine.endswith("-sim")
        assert cell.engine.simulated is True
        assert cell.engine.server_info["simulated"] is True
        assert cell.engine.status == "ok"
        assert cell.engine.fit.fits is True
        assert [(one.concurrency, one.repeat) for one in cell.levels] == [(1, 1), (3, 1)]


def test_records_round_trip_and_none_is_missing(run):
    for passed in (one for cell in run.cells for one in cell.levels):
        assert passed.torn == ()
        [path] = passed.path.glob("requests-*.jsonl")
        assert path.read_bytes() == b"".join(msgspec.json.encode(r) + b"\n" for r in passed.requests)
        assert len(measured(passed)) == STUDY.requests(passed.concurrency)
        assert {r.outcome for r in measured(passed)} == {"ok"}
        warmups = [r for r in passed.requests if r.phase == "warmup"]
        assert sorted(r.seq for r in warmups) == sorted(r.user for r in warmups) == list(range(passed.concurrency))


def test_the_order_is_the_script_s_for_every_cell_level_and_pass(run):
    script = Script(workload.load(STUDY.workload), Contract(), model="m", engine="vllm-sim", seed=STUDY.seed)
    for passed in (one for cell in run.cells for one in cell.levels):
        by_seq = sorted(measured(passed), key=lambda r: r.seq)
        assert [r.prompt_id for r in by_seq] == [script.measured(i).prepared.prompt.id for i in range(len(by_seq))]
        assert [r.seq for r in sorted(by_seq, key=lambda r: r.sent_s)] == list(range(len(by_seq)))


def test_all_gates_pass_and_there_was_no_load_generator(run):
    numbers = analysis_run.analyze(run)
    assert (numbers.health.client, numbers.health.reconciliation) == ("not_applicable", "pass")
    assert (numbers.health.complete, numbers.health.counted_by, numbers.health.reasons) == (True, "server", ())
    assert {cell.levels[1].throughput_method for cell in numbers.cells} == {"renewal"}, (
        "too few requests for a window at three"
    )
    assert numbers.health.windows == (), "so nothing rests on a window that is too short"
    health = numbers.cells[0].levels[0].client_health
    assert health.status == "not_applicable"
    assert "no load generator ran" in health.reasons[0]


def test_samples_come_once_a_second_from_before_the_first_request_to_the_last_end(run):
    for passed in (one for cell in run.cells for one in cell.levels):
        times = [sample.t_s for sample in passed.server]
        assert times[:-1] == [float(k) for k in range(len(times) - 1)]
        assert times[-1] == max(r.ended_s for r in passed.requests)
        assert all(sample.running <= passed.concurrency for sample in passed.server)
        assert max(sample.running for sample in passed.server) == passed.concurrency


def facts(passed):
    left_out = {"run_id", "repeat", "clock_anchor_unix_s"}
    return [{k: v for k, v in msgspec.to_builtins(r).items() if k not in left_out} for r in passed.requests]


def test_the_seed_decides_everything(run, tmp_path):
    again = carried_out(STUDY, tmp_path / "again")
    assert [facts(one) for cell in again.cells for one in cell.levels] == [
        facts(one) for cell in run.cells for one in cell.levels
    ]
    other = carried_out(replace(STUDY, seed=2), tmp_path / "other")
    assert facts(other.cells[0].levels[0]) != facts(run.cells[0].levels[0])


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path):
    big = replace(REAL[0], model="qwq-32b")
    [cell] = carried_out(replace(STUDY, cells=(big,)), tmp_path / "run").cells
    assert cell.engine.status == "refused"
    assert cell.engine.fit.fits is False
    assert "does not fit: QwQ-32B on 1 x NVIDIA L20 needs" in cell.engine.reason
    assert cell.levels == ()


def test_an_interrupted_prediction_keeps_what_it_has(tmp_path):
    def interrupt(line):
        if " requests in " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast_forward.simulate_study(STUDY, tmp_path / "run", say=interrupt)
    found = read.read_run(tmp_path / "run")
    assert (found.manifest.interrupted, found.manifest.complete) == (True, False)
    assert len(found.cells[0].levels[0].requests) == 5


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_url": "http://127.0.0.1:1"}, "base_url: expected none"),
        ({"gpu": None}, "gpu: expected the GPU to predict for"),
        ({"gpu": "z80"}, "z80"),
        ({"model": "gpt-9"}, "gpt-9"),
        ({"engine": "vllm-sim", "args": ("--fault", "stall:3")}, "--fault and --stream-interval need a server"),
        ({"engine": "vllm-sim", "args": ("--nonsense",)}, "unrecognized arguments: --nonsense"),
        ({"engine": "vllm-sim", "args": ("--length-scale", "0")}, "--length-scale"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line_before_anything_is_written(change, said, tmp_path):
    with pytest.raises(UsageError, match=said) as refused:
        fast_forward.simulate_study(replace(STUDY, cells=(replace(REAL[1], **change),)), tmp_path / "run", say=silent)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_another_scenario_is_refused():
    with pytest.raises(UsageError, match="scenario: expected long_reasoning"):
        fast_forward.predicted(replace(STUDY, scenario="open_loop"))


def test_the_runtime_s_own_arguments_are_left_out_aloud(tmp_path):
    said: list[str] = []
    study = replace(STUDY, cells=(replace(REAL[1], args=("--enforce-eager",)),), levels=(1,), repeats=1)
    fast_forward.simulate_study(study, tmp_path / "run", say=said.append)
    assert "--enforce-eager; they are left out" in said[0]


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_over_sockets(run):
    with pytest.raises(RecordError, match="expected a folder without a run"):
        fast_forward.simulate_study(STUDY, run.path, say=silent)
    with pytest.raises(RecordError, match="--resume: driven: expected the run's own virtual time, got locust"):
        execute(STUDY, run.path, resume=True, say=silent)


# -- truth -------------------------------------------------------------------------------------------------------------


class Watched(Engine):
    """An engine that remembers each request's arrival, first token and last token (s), and its tokens."""

    truth: ClassVar[list[tuple[str, float, float, float, int]]] = []

    def _emit(self, sequence, n_tokens, now_s):
        event = super()._emit(sequence, n_tokens, now_s)
        if event.kind == "finished":
            row = (event.request_id, sequence.arrival_s, sequence.first_token_s, now_s, sequence.generated)
            self.truth.append(row)
        return event


@pytest.mark.parametrize("cell", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_the_numbers_recover_what_the_simulator_knows(cell, tmp_path, monkeypatch):
    """Equal work, so that the last token has text: then every time of the engine is one that a client sees."""
    lines = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": "x" * 90 * (i + 1)}]}
        | {"thinking_tokens": 60 + 17 * i, "answer_tokens": 20 + 3 * i}
        for i in range(6)
    ]
    path = tmp_path / "work.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(fast_forward.virtual, "Engine", Watched)
    monkeypatch.setattr(Watched, "truth", [])
    study = replace(
        STUDY, cells=(cell,), workload=str(path), mode="equal-work", levels=(4,), min_requests=12, repeats=1, seed=5
    )
    numbers = analysis_run.analyze(carried_out(study, tmp_path / "run"))
    [found] = numbers.cells[0].levels
    true = [row[1:] for row in Watched.truth if row[0].startswith("measure")]
    n = len(true)
    assert found.n_requests == n == 12
    mean = {
        "ttft_s": sum(first - arrived for arrived, first, _, _ in true) / n,
        "tpot_s": sum((last - first) / (tokens - 1) for _, first, last, tokens in true) / n,
        "time_to_final_answer_s": sum(last - arrived for arrived, _, last, _ in true) / n,
    }
    assert {key: found.estimate(key, "mean").value for key in mean} == pytest.approx(mean, rel=1e-6)
    tokens = (found.reasoning_tokens.mean + found.answer_tokens.mean) * n
    assert tokens == pytest.approx(sum(row[3] for row in true))
    assert tokens == sum(80 + 20 * i for i in range(6)) * 2
    assert found.reasoning_tokens.mean * n == pytest.approx(sum(60 + 17 * i for i in range(6)) * 2)
    assert numbers.health.reconciliation == "pass"


def test_one_stream_by_hand(tmp_path):
    """Steps of 0.5 s: n tokens of which the closing tag and the end of text are silent."""
    cell = replace(VLLM, args=(*SHORT, "--step-time", "0.5"))
    [found] = carried_out(replace(STUDY, cells=(cell,), levels=(1,), repeats=1), tmp_path / "run").cells
    for r in found.levels[0].requests:
        n = r.completion_tokens
        assert r.sent_s == pytest.approx(r.scheduled_s)
        assert len(r.chunk_s) == n - 2
        assert (r.chunk_s[0] - r.sent_s, r.chunk_s[-1] - r.sent_s) == pytest.approx((0.5, 0.5 * (n - 1)))
        assert r.ended_s - r.sent_s == pytest.approx(0.5 * n)
        assert r.first_answer_chunk == r.reasoning_tokens - 1
        assert sum(r.chunk_tokens) == n
        assert Counter(r.chunk_tokens) == {1: n - 4, 2: 2}


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["vllm-sim", "sglang-sim"]),
    streams=st.integers(1, 6),
    requests=st.integers(1, 20),
    warmups=st.integers(0, 2),
    kv_tokens=st.integers(600, 4000),
)
def test_each_user_has_one_request_in_flight_and_none_is_lost(kind, streams, requests, warmups, kv_tokens):
    served = Served(
        behaviour=behaviour(kind), model="m", context_tokens=kv_tokens - 20, kv_tokens=kv_tokens, length_scale=0.05
    )
    engine = Engine(
        EngineConfig(behaviour=served.behaviour, kv_tokens=kv_tokens), lambda work: 0.01 + 1e-6 * work.kv_read_tokens
    )
    script = Script(workload.load("math:n=5"), Contract(max_tokens=300), model="m", engine=kind, seed=3)
    plan = virtual_level.Plan(
        run_id="r", cell="c", concurrency=streams, repeat=1, requests=requests, duration_s=None, warmup_requests=warmups,
        opened=True, judges=True, anchor_unix_s=0.0,
    )  # fmt: skip
    one = virtual_level.VirtualLevel(plan, script, virtual_level.VirtualServer(engine, served))
    found = [fact for fact in one.run() if isinstance(fact, schema.RequestRecord)]
    assert sorted(r.seq for r in found if r.phase == "measure") == list(range(requests))
    assert {r.outcome for r in found if r.phase == "measure"} <= {"ok", "truncated"}
    assert one.now_s - one.start_s == pytest.approx(max(r.ended_s for r in found if r.phase == "measure"))
    for user in range(streams):
        mine = sorted((r for r in found if r.user == user), key=lambda r: r.sent_s)
        assert [r.phase for r in mine] == sorted((r.phase for r in mine), reverse=True)
        assert [r.sent_s for r in mine[1:]] == pytest.approx([r.ended_s for r in mine[:-1]])
    assert not engine.running
    assert not engine.waiting
    assert engine.cache.available_tokens() == engine.cache.capacity_tokens


# -- limits, refusals, samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_a_limit_on_time_cuts_what_still_runs(cell, tmp_path):
    study = replace(STUDY, cells=(cell,), levels=(3,), repeats=1, duration_s=40.25)
    run = carried_out(study, tmp_path / "run")
    [passed] = run.cells[0].levels
    outcomes = Counter(r.outcome for r in passed.requests)
    assert outcomes["cut_off"] == 3
    assert set(outcomes) == {"ok", "cut_off"}
    assert {r.ended_s for r in passed.requests if r.outcome == "cut_off"} == {40.25}
    assert all(t <= 40.25 for r in passed.requests for t in r.chunk_s)
    assert passed.server[-1].requests_aborted_total == 3
    [level_] = analysis_run.analyze(run).cells[0].levels
    assert level_.reconciliation.status == "pass"
    assert level_.outcomes["cut_off"] == 3


def test_refused_requests_are_data_and_their_users_wait_a_little(tmp_path):
    study = replace(STUDY, cells=(VLLM,), levels=(1,), repeats=1, warmup_requests=0)
    study = replace(study, contract={"extra_body": {"temperature": -1.0}})
    [cell] = carried_out(study, tmp_path / "run").cells
    sent = [(r.outcome, r.error.kind, r.error.http_status, r.sent_s) for r in cell.levels[0].requests]
    assert sent == [("http_error", "http_400", 400, pytest.approx(t)) for t in (0, 0.1, 0.3, 0.7)]


def test_a_full_queue_refuses_and_the_totals_still_agree(tmp_path):
    cell = replace(VLLM, args=(*SHORT, "--max-running", "1", "--max-queued", "1"))
    run = carried_out(replace(STUDY, cells=(cell,), levels=(4,), repeats=1, min_requests=40), tmp_path / "run")
    outcomes = Counter(r.outcome for r in run.cells[0].levels[0].requests)
    assert outcomes["server_error"] >= 2
    assert outcomes["ok"] >= 1
    assert analysis_run.analyze(run).health.reconciliation == "pass"


DRAFTS = ("--speculation", "2.5,4,2")


@pytest.mark.parametrize(
    "cell",
    [VLLM, SGLANG, *(replace(one, args=(*SHORT, *DRAFTS)) for one in (VLLM, SGLANG))],
    ids=["vllm", "sglang", "vllm-drafts", "sglang-drafts"],
)
def test_a_sample_is_what_a_scrape_of_metrics_would_tell(cell):
    made = fast_forward.simulate_cell(cell, Contract())
    server = virtual_level.VirtualServer(Engine(made.config, made.step_time_s), made.served)
    script = Script(workload.load(STUDY.workload), Contract(), model="qwq-32b-awq", engine=cell.engine, seed=1)
    plan = virtual_level.Plan(
        run_id="r", cell="c", concurrency=3, repeat=1, requests=6, duration_s=None, warmup_requests=0, opened=True,
        judges=True, anchor_unix_s=0.0,
    )  # fmt: skip
    compared = 0
    for fact in virtual_level.VirtualLevel(plan, script, server).run():
        if isinstance(fact, schema.ServerSample):
            scraped = normalise(exposition.render(server.engine, server.seen, "qwq-32b-awq"))
            for rows in ("ttft_buckets", "accepted_by_position_total"):
                assert getattr(fact, rows) == scraped.pop(rows, None)
            assert {name: getattr(fact, name) for name in scraped} == pytest.approx(scraped)
            compared += 1
    assert compared > 5


def test_users_start_as_they_do_under_locust():
    assert (virtual_level.START_SPREAD_S, virtual_level.START_GAP_S) == (level.START_SPREAD_S, level.START_GAP_S)


# -- the same study through sockets ------------------------------------------------------------------------------------

SAME = (
    "prompt_id", "chunk_tokens", "first_answer_chunk", "prompt_tokens", "completion_tokens", "reasoning_tokens",
    "cached_tokens", "token_count_source", "finish_reason", "outcome", "error", "answer", "answer_correct",
    "request_sha256", "thinking_field", "think_closed", "forced_tokens", "prompt_chars", "output_form", "form_valid",
)  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same study, driven by Locust over HTTP at clock speed 5 and fast-forwarded."""
    args = ("--length-scale", "0.05")
    cells = (
        replace(VLLM, clock_speed=5.0, args=args),
        replace(SGLANG, clock_speed=5.0, args=(*args, "--reasoning-parser", "none")),
        replace(SGLANG, clock_speed=5.0, args=(*args, "--speculation", "2.5,4,4"), tp=2),
    )
    home = tmp_path_factory.mktemp("both")
    mixed = [workload.dump(workload.load(spec)) for spec in ("math:n=4,seed=1", "tool_calls:n=2", "structured:n=2")]
    (home / "mixed.jsonl").write_bytes(b"".join(mixed))
    study = replace(STUDY, workload=str(home / "mixed.jsonl"), cells=cells, levels=(3,), repeats=1, min_requests=8)
    assert execute(study, home / "sockets", say=silent) == ()
    return read.read_run(home / "sockets"), carried_out(study, home / "virtual")


def test_every_record_tells_the_same_as_over_sockets(both):
    sockets, virtual = (
        {
            (cell.id, one.concurrency, r.phase, r.seq): [
                *({name: getattr(r, name) for name in SAME}.items()),
                *((call.name, call.arguments, call.first_chunk, call.last_chunk) for call in r.tool_calls),
            ]
            for cell in run.cells
            for one in cell.levels
            for r in one.requests
        }
        for run in both
    )
    assert virtual == sockets


def test_the_figures_agree_with_those_over_sockets(both):
    sockets, virtual = ([one for cell in analysis_run.analyze(run).cells for one in cell.levels] for run in both)
    for a, b in zip(sockets, virtual, strict=True):
        for name in ("tpot_s", "time_to_first_answer_s", "time_to_final_answer_s"):
            assert b.estimate(name, "mean").value == pytest.approx(a.estimate(name, "mean").value, rel=0.03)
        assert b.output_tokens_per_s.value == pytest.approx(a.output_tokens_per_s.value, rel=0.03)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "what if"\nworkload = "math:n=4"\nlevels = [1, 2]\nmin_requests = 4\nslo = ["ttft_s:p50<2"]\n'
        '[[cells]]\nengine = ["sglang", "vllm"]\nmodel = "qwq-32b-awq"\ngpu = "h20"\n'
    )
    return path


def test_a_study_is_predicted_to_its_page(study_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # a narrow terminal shortens the names of cells
    assert cli.main(["predict", "--study", str(study_file), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SIMULATED")
    assert "DO NOT RELY" not in said
    assert "vllm-sim_qwq-32b-awq_tp1" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "simulated in virtual time" in page
    assert "The run is sound" in page
    assert {"metrics.json", "metrics.csv", "plots", "manifest.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.fault("processes", "Every request fails: exit 1")
def test_a_run_in_which_every_request_failed_has_measured_nothing(study_file, tmp_path, capsys):
    study_file.write_text(study_file.read_text() + "[contract]\nextra_body = { temperature = -1.0 }\n")
    assert cli.main(["predict", "--study", str(study_file), "--out", str(tmp_path / "run")]) == 1
    assert "loadtest: nothing could be measured: every request failed (http_400 16); read" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--study", "absent.toml", "--model", "qwq-32b"], "--model: expected --study alone"),
        (["--study", "absent.toml", "--tp", "2"], "--tp: expected --study alone"),
        (["--study", "absent.toml"], "absent.toml: cannot read this study"),
        ([], "--model: expected --model --gpu --prompt-tokens --output-tokens"),
        (["--model", "qwq-32b", "--gpu", "l20", "--prompt-tokens", "9"], "--output-tokens: expected"),
    ],
)
def test_a_wrong_prediction_is_usage(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_one_deployment_is_predicted_as_before(capsys):
    argv = ["predict", "--model", "qwq-32b-awq", "--gpu", "l20", "--prompt-tokens", "500", "--output-tokens", "100"]
    assert cli.main([*argv, "--json"]) == 0
    assert "ttft_s" in json.loads(capsys.readouterr().out)
    assert cli.main([*argv, "--out", "somewhere"]) == 2


def test_a_study_may_pair_both_modes(tmp_path):
    """Each runtime is judged against the other in the same mode, and the second forces the recorded lengths."""
    rows = [
        {"prompt": f"Question {i}", "id": f"q{i}", "thinking_tokens": 40 + i, "answer_tokens": 5, "arrival_s": i}
        for i in range(6)
    ]
    path = tmp_path / "replay.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = (SGLANG, VLLM)
    study = Study(name="both", workload=str(path), cells=cells + tuple(replace(c, mode="equal-work") for c in cells),
                  levels=(2,), min_requests=6, warmup_requests=0)  # fmt: skip
    run = carried_out(study, tmp_path / "run")
    forced = {cell.id: {r.forced_tokens for r in measured(cell.levels[0])} for cell in run.cells}
    assert set(forced["vllm-sim_qwq-32b-awq_tp1"]) == {None}
    assert forced["vllm-sim_qwq-32b-awq_tp1_equal-work"] == {45 + i for i in range(6)}
    numbers = analysis_run.analyze(run)
    assert {(row.a, row.b) for row in numbers.comparisons} == {
        (f"sglang-sim_qwq-32b-awq_tp1{mode}", f"vllm-sim_qwq-32b-awq_tp1{mode}") for mode in ("", "_equal-work")
    }
    assert {cell.id: cell.mode for cell in numbers.cells}["sglang-sim_qwq-32b-awq_tp1_equal-work"] == "equal-work"


def test_configurations_that_differ_only_in_what_is_not_modelled_are_refused():
    """Else the prediction would call the two equal."""
    both = tuple(replace(REAL[1], name=name, args=("--max-num-seqs", name)) for name in ("8", "64"))
    with pytest.raises(UsageError, match=r"vllm-sim_qwq-32b-awq_tp1_64: not modelled: the simulator does not know"):
        fast_forward.predicted(replace(STUDY, cells=both))
    ours = tuple(replace(VLLM, name=name, args=("--max-running", name)) for name in ("8", "64"))
    assert len(fast_forward.predicted(replace(STUDY, cells=ours)).cells) == 2


@pytest.mark.parametrize("cell", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_what_became_of_drafts_is_recovered_at_each_level(cell, tmp_path):
    """2.5 tokens a step of 4 drafted; SGLang's count lacks what an end cuts short."""
    drafting = replace(cell, args=(*SHORT, *DRAFTS))
    study = replace(STUDY, cells=(drafting,), levels=(1, 2), min_requests=8, repeats=1)
    for one in analysis_run.analyze(carried_out(study, tmp_path / "run")).cells[0].levels:
        found = one.server.speculation
        assert found.accepted_length.value == pytest.approx(2.5, rel=0.05)
        assert found.accepted_share.value == pytest.approx(1.5 / 4, rel=0.08)
        assert found.thinking_tokens_per_chunk == pytest.approx(2.5, rel=0.05)
        if cell is VLLM:
            by_position = found.accepted_share_by_position
            assert list(by_position) == sorted(by_position, reverse=True)
            assert sum(by_position) == pytest.approx(found.accepted_length.value - 1)


def test_synthetic_prompts_and_outputs_have_the_lengths_asked_for_by_the_simulator_s_count(tmp_path):
    study = replace(STUDY, workload="synthetic:isl=300,osl=20,n=8,spread=0.2", mode="equal-work", levels=(1,))
    run = carried_out(study, tmp_path / "run")
    requests = [r for cell in run.cells for level in cell.levels for r in level.requests]
    assert {r.asked_prompt_tokens == r.prompt_tokens for r in requests} == {True}
    assert {r.forced_tokens == r.completion_tokens for r in requests} == {True}
    levels = [level for cell in analysis_run.analyze(run).cells for level in cell.levels]
    assert all(level.equal_work.n_prompts == level.n_requests for level in levels)


@pytest.mark.parametrize(
    ("spec", "share"), [("tool_calls:n=30", "valid_call_share"), ("structured:n=30", "valid_json_share")]
)
def test_the_share_of_invalid_outputs_that_was_asked_for_is_found(spec, share, tmp_path):
    args = (*SHORT, "--invalid-share", "0.3")
    cells = (replace(VLLM, args=args), replace(SGLANG, args=args))
    run = carried_out(replace(STUDY, workload=spec, cells=cells, levels=(4,), repeats=1, min_requests=30), tmp_path / "run")
    levels = [cell.levels[0] for cell in analysis_run.analyze(run).cells]
    assert levels[0].figure(share) == levels[1].figure(share)  # the same prompts
    found = levels[0].figure(share)
    assert found.low < 0.7 < found.high
    assert 0 < found.value < 1
    for one in levels:
        if "call" in spec:
            assert one.tool_call_start_s.p50 < one.tool_call_s.p50 <= one.time_to_final_answer_s.p50
        else:
            assert one.tool_call_s.n == 0
