"""Studies: what a TOML file may say, each error with its line and key, and the cells it stands for."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.servers.route import Route
from loadtest.study import locust_pass, parse, plan, schema
from loadtest.study import run as study_run
from loadtest.study.bursts.asked import natural_passes
from loadtest.study.schema import AskedPass

GOOD = """\
name = "two runtimes"
workload = "math:n=8"
levels = [1, 4]

[[cells]]
engine = ["sglang", "vllm"]
model = "qwq-32b-awq"
tp = [1, 2]
gpu = "l20"
"""


def test_lists_multiply_with_the_engines_side_by_side():
    assert [cell.id for cell in parse.parse_study(GOOD).cells] == [
        "sglang_qwq-32b-awq_tp1",
        "vllm_qwq-32b-awq_tp1",
        "sglang_qwq-32b-awq_tp2",
        "vllm_qwq-32b-awq_tp2",
    ]


def test_a_study_pairs_both_modes_on_every_cell():
    one = parse.parse_study(GOOD.replace("levels", 'mode = ["natural", "equal-work"]\nlevels'))
    assert one.mode == "natural"
    assert [cell.id for cell in one.cells[3:5]] == ["vllm_qwq-32b-awq_tp2", "sglang_qwq-32b-awq_tp1_equal-work"]
    target = locust_pass.Target("http://127.0.0.1:1", "m")
    asked = AskedPass(concurrency=1, requests=8)
    commands = [locust_pass.command(one, cell, target, asked, 1, Path("RUN"), "id") for cell in (one.cells[0], one.cells[4])]
    assert [argv[argv.index("--mode") + 1] for argv in commands] == ["natural", "equal-work"]
    assert parse.parse_study(GOOD.replace("levels", 'mode = "equal-work"\nlevels')).cells[0].id == "sglang_qwq-32b-awq_tp1"


def test_what_matters_and_what_starts_are_known_to_differ_by_are_shares():
    assert (parse.parse_study(GOOD).matters, parse.parse_study(GOOD).start_sd) == (0.05, None)
    said = parse.parse_study(GOOD.replace("levels", "matters = 0.02\nstart_sd = 0.01\nlevels"))
    assert (said.matters, said.start_sd) == (0.02, 0.01)
    for line, key in (("matters = 5.0", "matters"), ("start_sd = 1.5", "start_sd")):
        with pytest.raises(UsageError, match=f"study:3: {key}: expected a share .*, got"):
            parse.parse_study(GOOD.replace("levels", f"{line}\nlevels"))


def test_every_second_repeat_runs_the_cells_in_reverse_order():
    assert [study_run.in_order((1, 2, 3), repeat) for repeat in (1, 2, 3)] == [(1, 2, 3), (3, 2, 1), (1, 2, 3)]


def command_of(study):
    (asked, *_) = natural_passes(study)
    return locust_pass.command(
        study, study.cells[0], locust_pass.Target("http://127.0.0.1:1", "m"), asked, 1, Path("RUN"), "id"
    )


def test_options_of_a_scenario_go_to_its_command_line():
    text = GOOD.replace(
        "levels",
        'scenario = "open_loop"\nscenario_options = {rate = 0.5, arrivals = "constant", x_y = true, z = false}\nlevels',
    )
    one = parse.parse_study(text)
    argv = command_of(one)
    start = argv.index("--rate")
    assert argv[start : start + 5] == ["--rate", "0.5", "--arrivals", "constant", "--x-y"]
    assert "--z" not in argv


@pytest.mark.parametrize("duration_s", [0.5, 2.5, 1e6])
@pytest.mark.fault("processes", "`duration_s` of 0.5, 1e6: kept")
def test_a_duration_may_be_any_number_of_seconds(duration_s):
    one = replace(parse.parse_study(GOOD), duration_s=duration_s)
    argv = command_of(one)
    assert float(argv[argv.index("--duration") + 1]) == duration_s


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 1e8, float("inf"), float("nan")])
def test_a_duration_that_is_none_is_refused(duration_s):
    with pytest.raises(UsageError, match="duration_s: expected seconds above 0, and below 1e8"):
        replace(parse.parse_study(GOOD), duration_s=duration_s)


def test_processes_of_one_run_meet_on_a_port_of_their_own():
    one = replace(parse.parse_study(GOOD), workers=2)
    argv = command_of(one)
    assert argv[argv.index("--master-bind-port") + 1] == argv[argv.index("--master-port") + 1] != "5557"
    assert argv[argv.index("--master-bind-host") + 1] == "127.0.0.1"


def test_requests_grow_with_the_level_from_a_minimum():
    one = parse.parse_study(GOOD)
    assert [one.requests(c) for c in (1, 4, 8)] == [8, 8, 16]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("levels = [1, 4]", 'levels = "1"', "s.toml:3: levels: expected array, got str"),
        ("levels = [1, 4]", "levels = [0]", "s.toml:3: levels: expected concurrencies from 1 up"),
        ("levels = [1, 4]", "levels = [2, 2]", "s.toml:3: levels: expected each concurrency once"),
        ("levels = [1, 4]", "level = [1]", "s.toml:3: level: unknown key; did you mean levels?"),
        ("tp = [1, 2]", "tp = 0", "s.toml:8: tp: expected a number of GPUs from 1 up, got 0"),
        ("gpu =", "gpux =", "s.toml:9: gpux: unknown key; did you mean gpu?"),
        ('engine = ["sglang", "vllm"]', 'engine = "tgi"', "s.toml:6: engine: invalid enum value 'tgi'"),
        ('engine = ["sglang", "vllm"]', 'engine = "other"', "base_url: expected the URL of a cell"),
        ('name = "two runtimes"', "", "s.toml:1: name: object missing required field name; add it"),
        ('name = "two runtimes"', "name = ", "s.toml: expected TOML"),
        (
            "levels = [1, 4]",
            "mode = []",
            "s.toml:3: mode: expected natural, equal-work, a list of both, or decision, got []",
        ),
        (
            "levels = [1, 4]",
            'mode = ["natural", "natural"]',
            "s.toml:3: mode: expected natural, equal-work, a list of both, or decision",
        ),
        (
            "levels = [1, 4]",
            "scenario_options = {seed = 3}",
            "s.toml:3: scenario_options: expected options of the scenario's own",
        ),
        ("levels = [1, 4]", "scenario_options = {rate = [3]}", "s.toml:3: scenario_options: expected bool | int"),
        ("levels = [1, 4]", "cooldown_s = -1", "s.toml:3: cooldown_s: expected seconds from 0 up, got -1"),
        ("tp = [1, 2]", "clock_speed = 5", "clock_speed: expected a number above 0, and only for a simulated engine"),
    ],
)
def test_a_bad_study_is_one_line_with_file_line_and_key(old, new, message):
    with pytest.raises(UsageError) as caught:
        parse.parse_study(GOOD.replace(old, new), "s.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).split("expected TOML")[0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("tp = 0", "s.toml:14: tp: expected a number of GPUs from 1 up, got 0"),
        ('tp = "2"', "s.toml:14: tp: expected int | array, got str"),
        ("gpux = 1", "s.toml:14: gpux: unknown key; did you mean gpu?"),
    ],
)
def test_a_wrong_key_of_a_later_cell_is_found_in_its_own_table(second, message):
    with pytest.raises(UsageError) as caught:
        parse.parse_study(f'{GOOD}\n[[cells]]\nengine = "vllm"\nmodel = "a/b"\n{second}\n', "s.toml")
    assert message in str(caught.value)


def test_what_only_others_know_is_refused_with_its_line_too(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(GOOD + "\n[contract]\nmax_token = 5\n")
    with pytest.raises(UsageError, match=r"s\.toml:12: contract: max_token: .* did you mean 'max_tokens'"):
        parse.load_study(path, plan.asked)
    path.write_text(GOOD.replace("math:n=8", "maths:n=8"))
    with pytest.raises(UsageError, match=r"s\.toml:2: workload 'maths:n=8'"):
        parse.load_study(path, plan.asked)


def test_a_study_is_never_read_in_part(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(GOOD + "#" * 2**20 + '\n[[cells]]\nengine = "vllm"\nmodel = "a/b"\n')
    with pytest.raises(UsageError, match="expected a study of at most 1,048,576 characters, got more"):
        parse.load_study(path)


@pytest.mark.fault("input", "A cell twice: `each engine x model x tp once`")
def test_the_same_cell_twice_is_refused_by_name():
    twice = GOOD + '\n[[cells]]\nengine = "vllm"\nmodel = "qwq-32b-awq"\n'
    with pytest.raises(UsageError, match="each engine x model x tp once, or a name for each, got vllm_qwq-32b-awq_tp1"):
        parse.parse_study(twice)


def test_only_selects_cells_and_levels():
    one = schema.select(parse.parse_study(GOOD), ["engine=vllm", "tp=2", "concurrency=4"])
    assert [cell.id for cell in one.cells] == ["vllm_qwq-32b-awq_tp2"]
    assert one.levels == (4,)


def test_only_selects_a_mode():
    both = parse.parse_study(GOOD.replace("levels", 'mode = ["natural", "equal-work"]\nlevels'))
    natural, equal = (schema.select(both, [f"mode={mode}"]).cells for mode in ("natural", "equal-work"))
    assert (*natural, *equal) == both.cells
    assert {cell.mode for cell in natural} == {None}
    assert {cell.mode for cell in equal} == {"equal-work"}


@pytest.mark.parametrize("only", ["vllm", "colour=red", "engine=tgi", "concurrency=3"])
def test_only_that_selects_nothing_or_is_no_condition_is_refused(only):
    with pytest.raises(UsageError, match="--only"):
        schema.select(parse.parse_study(GOOD), [only])


@pytest.mark.parametrize("text", ["", "0", "4-1", "a", "1..8", "-3", "1,,2"])
def test_levels_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="--concurrency"):
        schema.parse_levels(text)


@given(st.text(max_size=200))
def test_no_text_makes_a_traceback(text):
    with pytest.raises(UsageError, match=r"^study:"):
        parse.parse_study(text)


def test_a_cell_of_no_known_engine_is_refused_also_where_no_study_names_it():
    """Its engine is part of a folder's name, and `attach` may have it from a server."""
    with pytest.raises(UsageError, match="engine: expected one of sglang, vllm"):
        schema.Cell(engine="../../x", model="m", base_url="http://127.0.0.1:1")


SMALL = 'name = "x"\nworkload = "math"\n[[cells]]\nengine = "vllm"\nmodel = "qwq-32b"\n'


def test_a_cell_says_its_endpoint_and_its_headers():
    text = SMALL.replace(
        "[[cells]]", '[[cells]]\nbase_url = "http://h:1"\napi = "responses"\nheaders = { X-Team = "TEAM_KEY" }'
    )
    (cell,) = parse.parse_study(text).cells
    assert (cell.api, cell.headers) == ("responses", {"X-Team": "TEAM_KEY"})
    for wrong, said in (
        ('api = "chats"', "api"),
        ('headers = { Host = "TEAM_KEY" }', "headers"),
        ('headers = { A = "b c" }', "headers"),
    ):
        with pytest.raises(UsageError, match=said):
            parse.parse_study(SMALL.replace("[[cells]]", f'[[cells]]\nbase_url = "http://h:1"\n{wrong}'))
    with pytest.raises(UsageError, match="headers: expected none of a cell without base_url"):
        parse.parse_study(SMALL.replace("[[cells]]", '[[cells]]\nheaders = { X-Team = "TEAM_KEY" }'))


def test_a_list_of_urls_is_one_cell_of_several_servers():
    def cells(urls, more=""):
        return parse.parse_study(SMALL.replace("[[cells]]", f"{more}\n[[cells]]\nbase_url = {urls}")).cells

    [one] = cells('["http://a:1", "http://b:1"]')
    assert (one.base_url, one.urls, one.id) == ("http://a:1", ("http://a:1", "http://b:1"), "vllm_qwq-32b_tp1")
    assert cells('["http://a:1"]')[0].base_urls == ()
    for urls, more, said in (
        ("[]", "", "base_url: expected a URL, or a list of them, got none"),
        ('["http://a:1", "http://a:1/v1"]', "", "base_url: expected each server once, got http://a:1, http://a:1"),
        ('["http://a:1", "b:1"]', "", "base_url: b:1: expected a URL"),
        ('["http://a:1", "http://b:1"]', 'mode = "decision"', "base_url: expected one server with mode decision"),
    ):
        with pytest.raises(UsageError, match=said):
            cells(urls, more)


def test_a_cell_says_the_way_to_its_server():
    def study(lines):
        return parse.parse_study(SMALL.replace("[[cells]]", f"[[cells]]\n{lines}"))

    [cell] = study('base_url = "https://h:1"\nproxy = "http://p:3128"\ninsecure = true').cells
    assert cell.route == Route(proxy="http://p:3128", insecure=True)
    for lines, said in (
        ('base_url = "http://h:1"\ninsecure = true', r"^study:5: insecure: expected with https"),
        ('base_url = "https://h:1"\nproxy = "http://who:pass@p:3128"', "proxy: expected http://HOST:PORT without a user"),
        ('base_url = "unix:///s"\nproxy = "http://p:3128"', "proxy: expected none with unix://"),
        ('base_url = "unix://s"', "base_url: unix://s: expected the file of a socket"),
        ("insecure = true", "base_url: expected a server that runs with proxy and insecure, got none"),
    ):
        with pytest.raises(UsageError, match=said):
            study(lines)
