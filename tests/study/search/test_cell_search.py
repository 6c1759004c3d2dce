"""Searches in virtual time: the levels tried, what ends them, and what stands in metrics.json."""

import contextlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from loadtest.analysis.run import analyze
from loadtest.client.pass_options import PassOptions
from loadtest.errors import UsageError
from loadtest.metrics.slo import parse_slo
from loadtest.records.read import read_run
from loadtest.report.cells import cells_of
from loadtest.report.decision import question_of
from loadtest.report.overview import overview_of
from loadtest.report.plots.catalogue import run_figures
from loadtest.report.search import search_answer, search_basis
from loadtest.report.tables import levels_table
from loadtest.report.terminal import decision_text
from loadtest.study import fast_forward, locust_pass
from loadtest.study.schema import AskedPass, Cell, SearchLimits, Study
from loadtest.study.search.cell_search import CellSearch
from loadtest.study.search.live import LocustDriver, levels_on_disk
from loadtest.workload.contract import Contract

CELL = Cell(engine="vllm-sim", model="qwq-32b-awq", gpu="l20", args=("--length-scale", "0.02"))
STUDY = Study(
    name="searched",
    workload="math:n=64,seed=1",
    cells=(CELL,),
    slo=("tokens_per_s_per_user:p50>30",),
    search=SearchLimits(),
)


def found(tmp_path, study=STUDY, say=lambda line: None):
    assert fast_forward.simulate_study(study, tmp_path / "run", say=say) == ()
    metrics = analyze(read_run(tmp_path / "run"))
    [search] = metrics.searches
    return metrics, search


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    said: list[str] = []
    return (*found(tmp_path_factory.mktemp("search"), say=said.append), said)


def words(search):
    return {one.concurrency: one.verdict for one in search.levels}


def test_a_search_brackets_the_frontier_and_says_what_bound_it(predicted):
    metrics, search, said = predicted
    assert search.limit == "slo"
    assert words(search)[search.within] == "within"
    assert words(search)[search.broken] == "broken"
    assert search.broken - search.within <= max(1, search.within // 8)
    assert search.binds == "tokens_per_s_per_user:p50>30"
    assert search_answer(search) == f"at most {search.within} users; {search.broken} breaks {search.binds}"
    for level in search.levels:
        speed = metrics.cells[0].estimate(level.concurrency, "tokens_per_s_per_user", "p50").value
        assert (speed > 30) == (level.verdict == "within")
    assert search.n_requests == sum(level.n_requests for level in search.levels)
    assert search.gpu_minutes == pytest.approx(sum(level.load_s for level in search.levels) / 60)
    assert "simulated GPU-minutes" in search_basis(search)
    assert f"{search.within} users are within the SLOs" in " ".join(said)


def test_it_begins_where_the_model_predicts_or_where_it_is_told(predicted, tmp_path):
    _, search, _ = predicted
    assert search.start_source == "predicted by the model"
    assert search.levels[0].concurrency == search.start
    assert len(search.levels) <= 6
    _, told = found(tmp_path, replace(STUDY, search=SearchLimits(start=2)))
    assert [one.concurrency for one in told.levels[:3]] == [2, 4, 8]
    assert (told.start_source, told.within) == ("as asked", pytest.approx(search.within, rel=0.2))


def test_a_level_ends_as_soon_as_it_is_certain(tmp_path):
    _, search = found(tmp_path, replace(STUDY, search=SearchLimits(start=4, max_concurrency=4)))
    assert (search.within, search.broken, search.limit) == (4, None, "max_concurrency")
    assert search.levels[0].n_requests < 25  # of 128
    assert search_answer(search) == "at least 4 users"


def test_a_level_with_too_few_requests_stays_undecided(tmp_path):
    limits = SearchLimits(start=4, max_concurrency=4, requests=6)
    _, search = found(tmp_path, replace(STUDY, search=limits))
    assert (words(search), search.limit) == (dict.fromkeys((4, 2, 1, 3), "undecided"), "undecided")
    assert {one.n_requests for one in search.levels} == {6}
    assert search_answer(search) == "not known: no level was decided"


def test_where_not_even_one_user_is_within(tmp_path):
    _, search = found(tmp_path, replace(STUDY, slo=("tokens_per_s_per_user:p50>500",)))
    assert (search.within, search.broken) == (0, 1)
    assert search_answer(search) == "none shown: 1 user breaks tokens_per_s_per_user:p50>500"


def test_an_slo_on_a_figure_of_the_level_can_be_searched(tmp_path):
    _, search = found(tmp_path, replace(STUDY, slo=("tpot_s:mean<0.033",)))
    assert search.limit in ("slo", "undecided")
    assert 0 < search.within < search.broken
    assert not search.levels[0].objectives[0].of_requests


def test_no_level_above_what_the_kv_cache_holds(tmp_path):
    study = replace(STUDY, cells=(replace(CELL, memory_fraction=0.48, context_tokens=4096),), slo=("ttft_s:p50<600",))
    _, search = found(tmp_path, replace(study, search=SearchLimits(start=32)))
    assert (search.limit, search.within) == ("kv_cache", search.most)
    assert 32 <= search.most < 256


def test_a_search_needs_an_slo_and_the_closed_loop():
    with pytest.raises(UsageError, match="--slo: expected at least one with a search"):
        replace(STUDY, slo=())
    with pytest.raises(UsageError, match="scenario: expected long_reasoning with a search"):
        replace(STUDY, scenario="open_loop")
    with pytest.raises(UsageError, match="--max-concurrency: expected a number from 1 up, got 0"):
        SearchLimits(max_concurrency=0)


RATES = replace(
    STUDY,
    slo=("time_to_final_answer_s:p50<6",),
    scenario="open_loop",
    scenario_options={"arrivals": "poisson"},
    warmup_requests=0,
    search=SearchLimits(of="requests/h"),
)


def test_a_search_for_a_rate_brackets_it(tmp_path):
    said = []
    metrics, search = found(tmp_path, RATES, say=said.append)
    assert (search.of, search.limit) == ("requests/h", "slo")
    assert words(search)[search.within] == "within"
    assert words(search)[search.broken] == "broken"
    assert search_answer(search) == (
        f"{search.within / 3600:.4g} requests/s; {search.broken / 3600:.4g} break time_to_final_answer_s:p50<6"
    )
    assert f"{search.within / 3600:.4g} requests/s are within the SLOs" in said[-2]
    manifest = read_run(tmp_path / "run").manifest
    text = decision_text(metrics, manifest)
    assert "Maximum rate: " in text
    assert re.search(r"^requests/s +n ", text, re.MULTILINE)
    tried = [f"{one.concurrency / 3600:.4g}" for one in search.levels]
    cells = cells_of(metrics)
    table = levels_table(cells)
    assert (table.head[1], sorted(row[1] for row in table.rows)) == ("requests/s", sorted(tried))
    overview = overview_of(metrics, manifest)
    assert (overview.groups[0][0], overview.rows[0].figures[:2]) == ("requests/s", (f"{search.within / 3600:.4g}",) * 2)
    assert question_of(metrics, manifest).endswith("up to what rate of requests?")
    for figure in run_figures(metrics):
        assert "concurrency" not in " ".join((figure.title, figure.caption, *figure.table.head)), figure.name


class OnDisk(LocustDriver):
    """A search that is resumed: what is on disk counts, what would be measured now is noted, and then it is interrupted."""

    def measure(self, level, requests, test):
        del requests
        self.asked = (level, test.n)
        raise KeyboardInterrupt


def resumed(out):
    """What a search goes on with, by the folder of its run."""
    said = []
    execution = SimpleNamespace(out=out, study=RATES, say=said.append, is_out_of_time=lambda: False)
    driver = OnDisk(execution, None, CELL, None, lambda: None)
    [cell] = read_run(out).cells
    slos = [parse_slo(text) for text in RATES.slo]
    again = CellSearch(cell.id, slos, cell.engine.search, None, driver, said.append, print)
    with contextlib.suppress(KeyboardInterrupt):
        again.carry_out()
    return again.words, getattr(driver, "asked", None), said


def test_a_search_for_a_rate_is_resumed_where_it_stood(tmp_path):
    _, search = found(tmp_path, RATES)
    out = tmp_path / "run"
    known, asked, said = resumed(out)
    assert (known, asked) == (words(search), None)
    assert said[-1].endswith(f"{search.broken / 3600:.4g} requests/s are not")
    last = search.levels[-1].concurrency
    [folder] = (out / "cells" / search.cell).glob(f"c{last}-r1")
    facts = json.loads((folder / "pass.json").read_text())
    (folder / "pass.json").write_text(json.dumps(facts | {"complete": False}))
    known, asked, said = resumed(out)
    assert known == {level: word for level, word in words(search).items() if level != last}
    assert asked == (last, 0)
    assert any("an incomplete c" in line for line in said)


def test_an_overload_is_broken_although_nothing_ends_while_requests_still_come(tmp_path):
    limits = SearchLimits(of="requests/h", start=99_999)
    _, search = found(tmp_path, replace(RATES, search=limits))
    assert words(search)[99_999] == "broken"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers": 2}, "workers: expected 1 with a search for a rate"),
        ({"search": SearchLimits()}, "scenario: expected long_reasoning with a search"),
    ],
)
def test_what_a_search_for_a_rate_needs(change, said):
    with pytest.raises(UsageError, match=said):
        replace(RATES, **change)


def test_a_level_of_a_rate_has_its_own_number_and_all_users(tmp_path):
    """On disk a level is its requests per hour; Locust has as many users as may be in flight."""
    asked = AskedPass(concurrency=1800, requests=40, most_in_flight=16)
    study = replace(RATES, scenario_options={"arrivals": "poisson", "rate": 0.5})
    argv = locust_pass.command(study, CELL, locust_pass.Target("http://127.0.0.1:1", "m"), asked, 1, tmp_path, "id")
    given = dict(pairwise(argv))
    assert (given["--users"], given["--level"], given["--rate"]) == ("16", "1800", "0.5")
    one = PassOptions(
        out=str(tmp_path), run_id="id", cell="c", engine="vllm", model="m", tp=1, url="http://127.0.0.1:1", concurrency=16,
        level=1800, repeat=2, requests=40, warmup_requests=0, seed=0, clock_speed=1.0, workload="math",
        workload_identity="", contract=Contract(),
    )  # fmt: skip
    assert one.folder == tmp_path / "cells" / "c" / "c1800-r2"
    assert levels_on_disk(tmp_path, "c") == []
    one.folder.mkdir(parents=True)
    (one.folder.parent / "c1800-r1.broken-1").mkdir()
    assert levels_on_disk(tmp_path, "c") == [1800]
