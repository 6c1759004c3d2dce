"""What a study varies: which cells it stands for, what each adds to its engine, and what is refused."""

from pathlib import Path

import msgspec
import pytest

from loadtest.analysis.run import analyze
from loadtest.errors import UsageError
from loadtest.records.environment import describe
from loadtest.records.write import write_json
from loadtest.servers import flags
from loadtest.study import locust_pass, parse, plan, schema
from loadtest.workload.contract import Contract
from tests.support import builders

BASE = """\
name = "settings"
workload = "math:n=8"

[[cells]]
engine = "vllm"
model = "qwq-32b-awq"
gpu = "l20"
"""
TWO_FLAGS = BASE + 'vary = {"--max-num-seqs" = [8, 64], "--enable-chunked-prefill" = [true, false]}\n'


def cells(text):
    return parse.parse_study(text).cells


def test_every_combination_of_levels_is_a_cell_of_its_own():
    made = cells(TWO_FLAGS)
    assert [cell.name for cell in made] == [
        "max-num-seqs=8,enable-chunked-prefill=true",
        "max-num-seqs=8,enable-chunked-prefill=false",
        "max-num-seqs=64,enable-chunked-prefill=true",
        "max-num-seqs=64,enable-chunked-prefill=false",
    ]
    assert made[0].id == "vllm_qwq-32b-awq_tp1_max-num-seqs=8,enable-chunked-prefill=true"
    assert made[3].args == ("--max-num-seqs", "64", "--no-enable-chunked-prefill")
    assert made[3].factors == {"--max-num-seqs": "64", "--enable-chunked-prefill": "false"}


def test_a_name_stands_before_what_is_varied():
    (first, *_) = cells(TWO_FLAGS.replace("vary", 'name = "old"\nargs = ["--enforce-eager"]\nvary'))
    assert first.name == "old,max-num-seqs=8,enable-chunked-prefill=true"
    assert first.args == ("--enforce-eager", "--max-num-seqs", "8", "--enable-chunked-prefill")


@pytest.mark.parametrize(
    ("engine", "flag", "value", "words"),
    [
        ("vllm", "--enable-prefix-caching", "false", ("--no-enable-prefix-caching",)),
        ("vllm", "--disable-log-stats", "false", ()),
        ("sglang", "--disable-radix-cache", "false", ()),
        ("sglang", "--disable-radix-cache", "true", ("--disable-radix-cache",)),
        ("sglang", "--chunked-prefill-size", "2048", ("--chunked-prefill-size", "2048")),
        ("vllm", "--max-num-seqs", '"unset"', ()),
    ],
)
def test_a_level_is_a_flag_as_the_engine_takes_it(engine, flag, value, words):
    text = BASE.replace('"vllm"', f'"{engine}"') + f'vary = {{"{flag}" = [{value}, "other"]}}\n'
    assert cells(text)[0].args == words


def test_variables_executables_and_named_levels_are_factors_too():
    made = cells(
        BASE
        + """
[cells.vary]
VLLM_ATTENTION_BACKEND = ["unset", "FLASHINFER"]
executable = ["builds/a/bin/vllm", "builds/b/bin/vllm"]
speculation = {off = {}, ngram = {args = ["--speculative-config", '{"method": "ngram"}'], env = {A = "1"}}}
"""
    )
    assert len(made) == 8
    assert made[0].name == "VLLM_ATTENTION_BACKEND=unset,executable=builds-a-bin-vllm,speculation=off"
    assert (made[0].env, made[0].executable, made[0].args) == ({}, "builds/a/bin/vllm", ())
    last = made[-1]
    assert last.env == {"VLLM_ATTENTION_BACKEND": "FLASHINFER", "A": "1"}
    argv, environment = flags.launch_command(plan.launch_spec(last, Contract(), port=8000))
    assert argv[:2] == ["builds/b/bin/vllm", "serve"]
    assert argv[-2:] == ["--speculative-config", '{"method": "ngram"}']
    assert environment["VLLM_ATTENTION_BACKEND"] == "FLASHINFER"


def test_a_grammar_is_a_factor_of_requests_not_of_engines():
    without, held = cells(BASE + "vary = {grammar = [false, true]}\n")
    assert (without.name, without.grammar, held.grammar) == ("grammar=false", False, True)
    assert without.args == held.args == ()
    study = parse.parse_study(BASE + "grammar = false\n")
    asked, target = schema.AskedPass(concurrency=1, requests=1), locust_pass.Target("http://h:1", "m")
    argv = locust_pass.command(study, study.cells[0], target, asked, 1, Path("run"), "id")
    assert argv[argv.index("--grammar") + 1] == "off"


def test_a_simulator_prices_no_grammar():
    with pytest.raises(UsageError, match="grammar: expected an engine, as no simulator knows what it costs"):
        cells(BASE.replace('"vllm"', '"vllm-sim"') + "grammar = true\n")


def test_a_level_that_could_not_name_a_folder_has_its_number():
    made = cells(BASE + 'vary = {HF_TOKEN = ["hf_0123456789", "hf_9876543210"], "--x" = ["a/b", "a,b"]}\n')
    assert [cell.name for cell in made][:2] == ["HF_TOKEN=1,x=1", "HF_TOKEN=1,x=2"]


def test_two_named_cells_of_one_engine_are_one_study():
    text = BASE.replace('gpu = "l20"', 'name = "old"\nexecutable = "builds/a/bin/vllm"')
    both = text + '\n[[cells]]\nengine = "vllm"\nmodel = "qwq-32b-awq"\nname = "new"\nexecutable = "builds/b/bin/vllm"\n'
    study = parse.parse_study('baseline = "new"\n' + both)
    assert [cell.id for cell in study.cells] == ["vllm_qwq-32b-awq_tp1_old", "vllm_qwq-32b-awq_tp1_new"]
    assert study.baseline == "new"
    with pytest.raises(UsageError, match="study:1: baseline: expected the name or the id of a cell, one of new, old, vllm_"):
        parse.parse_study('baseline = "newer"\n' + both)


def test_cells_are_chosen_by_name_and_by_what_is_varied():
    study = parse.parse_study(TWO_FLAGS)
    chosen = schema.select(study, ["--max-num-seqs=64", "--enable-chunked-prefill=true"])
    assert [cell.name for cell in chosen.cells] == ["max-num-seqs=64,enable-chunked-prefill=true"]
    assert schema.select(study, [f"name={chosen.cells[0].name}"]).cells == chosen.cells
    with pytest.raises(UsageError, match=r"a key of engine, .*, concurrency, --max-num-seqs, --enable-chunked-prefill$"):
        schema.select(study, ["--seed=1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vary = {x = [1, 2]}", "study:8: vary: expected a flag such as --max-num-seqs, a variable in capitals"),
        ('vary = {"--a" = [1]}', "study:8: vary: expected two levels or more of --a, got 1"),
        ('vary = {"--a" = [1, 2], base_url = 1}', "study:8: vary: expected"),
        (f'vary = {{"--a" = {list(range(9))}, "--b" = {list(range(9))}}}', "vary: expected at most 64 combinations"),
        ('vary = {executable = ["a", "b"], k = {x = {executable = "c"}, y = {}}}', "vary: expected an executable by one"),
        ('vary = {s = {a = {args = ["--api-key=1"]}, b = {}}}', "args: expected no key on a command line"),
        ("vary = {s = {a = {arg = []}, b = {}}}", "arg: unknown key; did you mean args?"),
        ("vary = {grammar = [1, 2]}", "vary: expected true or false as levels of grammar"),
        ('vary = {"--a" = [1, 2]}\nbase_url = "http://h:1"', "vary: expected a cell that the run starts"),
        ('executable = "vllm"\nbase_url = "http://h:1"', "base_url: expected none in a cell with executable"),
        ("gpus = {l20 = 2}", "study:4: metrics_urls: expected a base_url with it"),
        ('base_url = "http://h:1"\ngpus = {l20 = 0}', "study:9: gpus: expected a number of l20 from 1 up, got 0"),
        ('base_url = "http://h:1"\nmetrics_urls = ["h"]', "study:9: metrics_urls: h: expected a URL"),
        ('name = "a/b"', "study:8: name: expected letters, digits"),
        ('env = {VLLM_API_KEY = "1"}', "study:8: env: expected no key of a server"),
        ('env = {"A B" = "1"}', "study:8: env: expected names of variables"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(line, message):
    with pytest.raises(UsageError) as caught:
        parse.parse_study(f"{BASE}{line}\n")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# How much starts vary, by an earlier run ------------------------------------------------------------------------------


def earlier(folder, starts=3, **manifest):
    """A run of both engines whose starts vary by 1 %, on the machine of these tests unless it says another."""
    cells = [
        builders.cell(
            [
                builders.level(builders.closed_loop(1, 10, gap_s=0.03 * pace, seed=r + n, noise=0.001), repeat=r + 1)
                for r, pace in enumerate((0.99, 1.0, 1.01)[:starts])
            ],
            engine,
            gpu="l20",
        )
        for n, engine in ((0, "sglang"), (7, "vllm"))
    ]
    made = builders.run(cells, **{"environment": describe_table()} | manifest)
    write_json(builders.write(made, folder) / "metrics.json", analyze(made))
    return folder


def describe_table(**changes):
    return msgspec.to_builtins(describe()) | changes


def test_an_earlier_run_tells_how_much_starts_vary(tmp_path):
    text = f'start_sd = "{earlier(tmp_path / "run")}"\n{BASE}'
    assert 1.5 * 0.01 < parse.parse_study(text).start_sd < 2.5 * 0.01  # made larger, as two starts tell little
    assert parse.start_sd_of("1%", (), None) == 0.01


@pytest.mark.parametrize(
    ("run", "gpu", "said"),
    [
        ({}, "h20", "start_sd: expected a run on h20 in "),
        ({"environment": describe_table(cpu="another")}, "l20", "start_sd: expected a run of the same machine ("),
        ({"starts": 1}, "l20", "start_sd: expected a run with two starts of a pair in "),
    ],
)
def test_a_run_that_cannot_tell_it_is_refused(run, gpu, said, tmp_path):
    text = f'start_sd = "{earlier(tmp_path / "run", **run)}"\n{BASE.replace("l20", gpu)}'
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        parse.parse_study(text)
