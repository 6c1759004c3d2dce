"""Each check of a run's health, made to pass, to fail for one level and for all: its words, and what the terminal says."""

import pytest

from loadtest.metrics.figures import Estimate, unknown
from loadtest.metrics.level_schema import EqualWork, HealthCheck, ReplicaFigures, ReplicaRequests
from loadtest.records.engine_facts import ContractFacts, EngineFacts
from loadtest.report.cells import cells_of, sound_cells
from loadtest.report.checklist import gate_checks
from loadtest.report.decision import CONFIGURATION, LEFT_OUT, RESULT, decision_lines
from loadtest.report.overview import answer_of, overview_of
from loadtest.report.tables import capacity_table, levels_table, replicas_table
from loadtest.report.terminal import decision_text
from tests.support import builders, runs
from tests.support.runs import change

LATE = "1.6% of the requests were sent more than 10 ms late; leave this machine to the load test alone"
FAR = "mean TTFT: client 3 s, server 0.1 s: the network, a proxy or a queue before the server"


def late(level):
    return change(level, client_health=change(level.client_health, status="fail", reasons=(LATE,)))


def far(level):
    return change(level, reconciliation=change(level.reconciliation, status="fail", reasons=(FAR,)))


def unequal(level):
    return change(level, equal_work=EqualWork(status="fail", reasons=("3 of 8 output lengths differ",), n_forced=8))


def doubted(level):
    counts = change(level.token_counts, n_too_few=3, reasons=("in 3 of 8 requests the server counts fewer tokens",))
    return change(level, token_counts=counts)


def torn(level):
    return change(level, torn_lines=1)


def failed(edit, only=None, **health):
    """The small run with these levels changed, and its health."""
    made = runs.with_levels(runs.small(), lambda level: edit(level) if only in (None, level.concurrency) else level)
    return runs.with_metrics(made, health=change(made.metrics.health, **health))


def said(source, engines=None):
    """Lines of the terminal, each unwrapped."""
    return decision_text(source.metrics, source.manifest, 400, engines or {}).replace("\n  ", " ")


def answers(source):
    return {line.asks: line for line in decision_lines(source.metrics, source.manifest)}


CASES = {
    "Load generator": (late, {"client": "fail"}, LATE),
    "Client against server": (far, {"reconciliation": "fail"}, FAR),
    "Equal work": (unequal, {}, "3 of 8 output lengths differ; has the engine ignored min_tokens or ignore_eos?"),
    "Token counts": (doubted, {}, "the text contradicts the server's count; give --tokenizer, or mend the server"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_check_that_fails_says_where_why_and_what_to_do(name):
    edit, health, words = CASES[name]
    one, both = failed(edit, 2, **health), failed(edit, **health)
    first, second = (cell.id for cell in one.metrics.cells)
    line = next(text for text in said(one).splitlines() if text.startswith("DO NOT RELY"))
    assert line.startswith(f"DO NOT RELY ON {first} at concurrency 2; {second} at concurrency 2. {name} FAIL: ")
    assert words in line
    assert f"DO NOT RELY ON THIS RUN. {name} FAIL: " in said(both)


@pytest.mark.parametrize("edit", [late, far, unequal, doubted, torn])
def test_no_line_of_the_verdict_rests_on_a_level_that_failed(edit):
    """Concurrency 2 has the highest total; where it failed, 1 is named, and 2 is said to be left out."""
    sound, one, both = answers(runs.small()), answers(failed(edit, 2)), answers(failed(edit))
    assert "concurrency 2" in sound[CONFIGURATION].because
    assert LEFT_OUT not in sound
    assert "concurrency 2" not in one[CONFIGURATION].because
    assert "highest total output tokens/s of the levels that passed: " in one[CONFIGURATION].because
    assert "highest total output tokens/s of all levels: " in sound[CONFIGURATION].because
    assert one[LEFT_OUT].answer.count("at concurrency 2") == 2
    assert list(both) == [RESULT]
    assert both[RESULT].answer == "No verdict"


def test_one_user_alone_is_concurrency_1():
    """Each level of one user is slow here; two users at once are no answer to what one user gets."""
    fast = unknown("not asked")
    source = runs.with_levels(
        runs.small(), lambda level: change(level, output_tokens_per_s=fast) if level.concurrency == 1 else level
    )
    because = answers(source)[CONFIGURATION].because
    alone, total = because.split("; highest total")
    assert alone.startswith("Tokens/s of one user alone: ")
    assert alone.endswith("concurrency 1")
    first, second = (cell.id for cell in source.metrics.cells)
    assert f"(not known for {first} at concurrency 1; {second} at concurrency 1: not asked)" in total
    without = runs.with_cells(source, lambda cell: change(cell, levels=cell.levels[1:]))
    assert "one user alone" not in answers(without)[CONFIGURATION].because


def test_sound_cells_keep_the_levels_that_passed():
    source = failed(late, 2)
    assert [[level.concurrency for level in cell.levels] for cell in sound_cells(cells_of(source.metrics))] == [[1], [1]]


# The words of checks that pass ---------------------------------------------------------------------------------------


def check(source, name, engines=None):
    return next(one for one in gate_checks(source.metrics, source.manifest, engines or {}) if one.name == name)


def test_what_passed_says_what_was_compared():
    source = runs.small()
    assert check(source, "Load generator").words == (
        "lag, CPU, garbage collection and late starts are within the limits at every level"
    )
    bounds = [
        HealthCheck(name=name, status="pass", value=0.0, limit=0.05, reason="")
        for name in ("first_token_bound", "gap_bound")
    ]
    stamped = runs.with_levels(
        source, lambda level: change(level, client_health=change(level.client_health, checks=tuple(bounds)))
    )
    assert check(stamped, "Load generator").words == (
        "times to the first token and arrivals by the kernel's clock are within the limits at every level"
    )
    assert check(source, "Client against server").words == (
        "requests, prompt tokens and output tokens agree; TTFT was not compared"
    )
    untold = runs.with_levels(
        source,
        lambda level: change(
            level,
            reconciliation=change(
                level.reconciliation,
                passes=tuple(change(one, server_prompt_tokens=None) for one in level.reconciliation.passes),
            ),
        ),
    )
    assert check(untold, "Client against server").words.startswith("requests and output tokens agree; ")


def test_what_was_not_checked_says_why():
    source = runs.with_levels(
        runs.small(),
        lambda level: change(
            level,
            reconciliation=change(level.reconciliation, status="not_checked", reasons=("the server reports no totals",)),
        ),
    )
    source = runs.with_metrics(source, health=change(source.metrics.health, reconciliation="not_checked"))
    found = check(source, "Client against server")
    assert (found.state, found.words) == ("unknown", "not checked: the server reports no totals")
    assert "DO NOT RELY" not in said(source)


def test_a_cell_that_was_not_measured_is_said():
    source = runs.small()
    source = runs.with_metrics(source, cells=(source.metrics.cells[0], change(source.metrics.cells[1], levels=())))
    assert check(source, "Completeness").words == "each level that began has ended; 1 of 2 cells were not measured"


@pytest.mark.parametrize(
    ("effective", "state", "words"),
    [
        ({"kv_dtype": "auto"}, "pass", "nothing contradicts it; 1 of 2 settings visible"),
        ({}, "unknown", "nothing contradicts it; 0 of 2 settings visible"),
        ({"kv_dtype": "auto", "yarn": False}, "pass", "every engine runs with the requested settings, all of them visible"),
    ],
)
def test_a_contract_is_kept_as_far_as_it_can_be_seen(effective, state, words):
    asked = {"kv_dtype": "auto", "yarn": False, "max_running_requests": None, "in_its_words": {"kv_dtype": "x"}}
    engines = {"a": EngineFacts(id="a", contract=ContractFacts(requested=asked, effective=effective))}
    found = check(runs.small(), "Contract", engines)
    assert (found.state, found.words) == (state, words)


def test_a_contract_that_is_broken_is_said_in_the_terminal():
    told = ContractFacts(effective={"kv_dtype": "fp8"}, violations=("kv_dtype: expected auto, got fp8",))
    text = said(runs.small(), {"a": EngineFacts(id="a", contract=told)})
    assert "DO NOT RELY ON THIS RUN. Contract FAIL: not the requested settings: a kv_dtype; start it as asked" in text


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"server": 6, "chunks": 2}, "the server gave none for 4 of 16 requests: there each chunk of text counts as one"),
        ({"server": 6, "tokenizer": 2}, "4 of 16 requests by a local tokenizer: the server gave none"),
    ],
)
def test_who_counted_the_tokens_of_how_many_requests(sources, words):
    source = runs.with_levels(runs.small(), lambda level: change(level, token_count_sources=sources))
    source = runs.with_cells(source, lambda cell: change(cell, levels=cell.levels[:1]))
    assert check(source, "Token counts").words.startswith(words)
    assert "Token counts: " in said(source)


def test_a_run_in_which_every_level_failed_has_no_verdict():
    lines = said(runs.hostile()).splitlines()
    assert any(line.startswith("Result: No verdict. A check failed at every level: ") for line in lines)
    assert not any(line.startswith(("Which configuration", "Cost of")) for line in lines)


def test_chunks_of_several_tokens_are_said_and_single_ones_are_not():
    """Ten chunks of 4 tokens, 0.4 s apart: 36 tokens come after the first chunk, in 9 gaps."""
    made = [
        builders.request(
            10.0 * i, seq=i, gap_s=0.4, chunk_tokens=(4,) * 10, completion_tokens=40, reasoning_tokens=24, answer=4
        )
        for i in range(12)
    ]
    chunky = runs.analysed(builders.run([builders.cell([builders.level(made)])]))
    words = (
        "Text comes in chunks (median gap between two): vLLM QwQ-32B-AWQ, 1 GPU at concurrency 1: 4.0 tokens every 0.400 s"
    )
    assert words in said(chunky)
    assert words in " ".join(levels_table(cells_of(chunky.metrics)).notes)
    assert "Text comes in chunks" not in said(runs.small())


def test_the_first_table_of_the_page_shows_levels_that_passed():
    def shown(source):
        return [(row.figures[:1], row.status) for row in overview_of(source.metrics, source.manifest).rows]

    assert shown(runs.small()) == [(("2",), "")] * 2
    assert shown(failed(late, 2)) == [(("1",), "")] * 2
    assert shown(failed(late)) == [((), "a check failed at every level")] * 2


def test_a_name_without_a_capital_keeps_none_at_the_head_of_a_sentence():
    source = runs.with_metrics(runs.small(), cells=runs.small().metrics.cells[1:], decisions=())
    assert answer_of(source.metrics, source.manifest).startswith("vLLM with QwQ-32B-AWQ on 1 GPU gives ")


@pytest.mark.parametrize(("levels", "cure"), [((1, 2), "--resume measures what is missing"), ((), "measure again")])
def test_a_run_that_ended_early_says_how_to_complete_it(levels, cure):
    source = runs.with_metrics(runs.small(), complete=False)
    manifest = change(source.manifest, complete=False, incomplete_reason="interrupted", levels=levels)
    text = decision_text(source.metrics, manifest, 400)
    assert text.startswith(f"DO NOT RELY ON THIS RUN. Completeness FAIL: incomplete: interrupted; {cure}\n")
    assert "\nWhich configuration: " in text  # of the levels that ended


def test_the_lowest_price_is_of_levels_that_passed():
    """Concurrency 2 gives more answers an hour, so it is the cheaper; where it failed, 1 is the cheapest that is known."""
    for source, cheapest in ((runs.small(), "2"), (failed(late, 2), "1"), (failed(late), "—")):
        manifest = change(source.manifest, prices=change(source.manifest.prices, gpu_hour=1.0, currency="USD"))
        table = capacity_table(cells_of(source.metrics), source.metrics, manifest)
        assert [row[-1] for row in table.rows] == [cheapest] * 2


def test_a_proxy_and_an_unverified_server_are_marked():
    """Where neither is so, nothing is said."""
    source = runs.small()
    first, second = source.metrics.cells
    assert "Way to the server" not in {check.name for check in gate_checks(source.metrics, source.manifest)}
    cells = (change(first, proxy="http://10.0.0.1:3128"), change(second, insecure=True))
    checks = gate_checks(change(source.metrics, cells=cells), source.manifest)
    [found] = [check for check in checks if check.name == "Way to the server"]
    assert found.state == "unknown"
    assert found.words == (
        f"{first.id}: through the proxy http://10.0.0.1:3128: its time is in every figure; "
        f"{second.id}: its certificate was not verified (--insecure)"
    )


def test_a_server_of_several_that_is_dead_is_named_with_its_figures():
    def replicas(error_kinds):
        bad = {"n_requests": 4, "failed_share": Estimate(float(bool(error_kinds)), None, 4), "error_kinds": error_kinds}
        told = {"request_share": None, "output_tokens": None, "output_token_share": None, "prefix_cache_hit_share": None,
                "peak_kv_usage_share": None, "peak_waiting_at_once": None, "n_requests": None}  # fmt: skip
        level = runs.small().metrics.cells[0].levels[0]
        asked = ReplicaRequests(ttft_s=level.ttft_s, run_tokens_per_s=Estimate(12.5, None, 1), **bad)
        return (ReplicaFigures(source="b:1", asked=asked, **told),)

    def made(error_kinds):
        def edit(level):
            server = change(level.server, replicas=replicas(error_kinds))
            return change(level, server=server) if level.concurrency == 2 else level

        return runs.with_levels(runs.small(), edit)

    sound, dead = made({}), made({"refused": 4})
    checks = [{check.name: check for check in gate_checks(one.metrics, one.manifest)} for one in (sound, dead)]
    assert checks[0]["Replicas"].state == "pass"
    assert checks[1]["Replicas"].state == "fail"
    assert checks[1]["Replicas"].words == "b:1 answered none of its 4 requests (refused); start it, or leave it out"
    assert checks[1]["Replicas"].where.endswith("at concurrency 2")
    table = replicas_table(cells_of(dead.metrics))
    assert table.head[2:7] == ("replica", "asked", "failed", "TTFT p50, s", "tokens/s")
    assert table.rows[0][2:4] == ("b:1", "4")
    assert table.rows[0][4].endswith("(refused)")
    assert table.rows[0][6] == "12.5"
