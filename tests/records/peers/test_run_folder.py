"""Results of another tool as a run folder: its levels, repeats, and what is said of it."""

import json

import pytest

from loadtest.errors import UsageError
from loadtest.records import read
from loadtest.records.peers.catalogue import read_result
from loadtest.records.peers.run_folder import Said, write_imported_run
from tests.support.peer_files import vllm_table, write_vllm


def imported(tmp_path, tables, **said):
    files = []
    for number, table in enumerate(tables):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(table))
    write_imported_run(tmp_path / "run", [read_result(one) for one in files], Said(**said), "loadtest import")
    return read.read_run(tmp_path / "run")


def test_a_level_for_each_concurrency_and_a_repeat_for_each_further_file(tmp_path):
    run = imported(tmp_path, [vllm_table(users=4), vllm_table(users=2), vllm_table(users=4)], engine="vllm")
    (cell,) = run.cells
    assert cell.id == "vllm_qwq-32b-awq"
    assert [(level.concurrency, level.repeat, len(level.requests)) for level in cell.levels] == [
        (2, 1, 24), (4, 1, 24), (4, 2, 24),
    ]  # fmt: skip
    assert (run.altered, run.missing, [level.damaged for level in cell.levels]) == ((), (), [()] * 3)
    assert (cell.engine.tp, cell.engine.imported, cell.engine.started_by_run) == (None, True, False)
    assert (run.manifest.tool, run.manifest.complete, run.manifest.started_unix_s) == ("vLLM bench", True, None)


def test_what_the_user_says_stands_before_what_the_files_tell(tmp_path):
    run = imported(tmp_path, [vllm_table()], model="other/Name", tp=2, gpu="l20")
    (cell,) = run.cells
    assert (cell.id, cell.engine.model, cell.engine.tp, cell.engine.gpu) == ("other_name_tp2", "other/Name", 2, "l20")


def test_several_results_of_one_file_are_repeats(tmp_path):
    path = tmp_path / "all.json"
    path.write_text("\n".join(json.dumps(vllm_table(n=8)) for _ in range(3)))
    write_imported_run(tmp_path / "run", [read_result(path)], Said(), "loadtest import")
    assert [level.repeat for level in read.read_run(tmp_path / "run").cells[0].levels] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_id": "another"}, "1.json: model: expected 'qwq-32b-awq'"),
        ({"request_rate": 2.0}, "1.json: arrivals: expected None"),
        ({"max_concurrency": 10**9}, "1.json: concurrency: expected 1 to"),
        ({"ttfts": [0.1]}, "expected an entry of each list for each request"),
        ({"ttfts": "fast"}, "1.json: ttfts: expected array | null, got str; import the file as the tool wrote it"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match="^[^\n]+$") as caught:
        imported(tmp_path, [vllm_table(), vllm_table(**changes)])
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_file_of_no_known_tool_says_what_was_looked_for(tmp_path):
    (tmp_path / "x.json").write_text('{"hello": 1}')
    with pytest.raises(UsageError, match=r"looked for vLLM bench \(vllm bench serve --save-result --save-detailed\)"):
        read_result(tmp_path / "x.json")


def test_a_run_is_never_written_over(tmp_path):
    told = [read_result(write_vllm(tmp_path / "x.json"))]
    write_imported_run(tmp_path / "run", told, Said(), "loadtest import")
    with pytest.raises(UsageError, match="expected a new folder"):
        write_imported_run(tmp_path / "run", told, Said(), "loadtest import")


def test_an_open_loop_keeps_its_rate_and_the_most_in_flight(tmp_path):
    table = vllm_table(request_rate=2.0, max_concurrency=None, max_concurrent_requests=7.0)
    run = imported(tmp_path, [table])
    assert run.manifest.scenario_options == {"arrivals": "poisson", "rate": 2.0}
    assert (run.manifest.open_loop, run.cells[0].levels[0].concurrency) == (True, 7)
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="say it with --concurrency C"):
        imported(tmp_path / "b", [table | {"max_concurrent_requests": None}])
    assert imported(tmp_path / "b", [table | {"max_concurrent_requests": None}], concurrency=9).manifest.levels == (9,)
