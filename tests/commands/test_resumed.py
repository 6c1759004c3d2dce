"""`attach --resume`: what began the run, and what may not differ from it; and `attach --rate`."""

import pytest

from loadtest import cli
from loadtest.commands import duel, measure, resumed
from loadtest.errors import RecordError, UsageError
from loadtest.records import write
from loadtest.records.manifest import Manifest

URL = "http://127.0.0.1:9"
BEGAN = f"loadtest attach --base-url {URL} --concurrency 1,2 --requests 4 --slo 'ttft_s:p50<2' --out elsewhere"


@pytest.fixture
def run(tmp_path):
    write.write_manifest(tmp_path, Manifest(run_id="r", commands=(BEGAN,)))
    return tmp_path


def test_the_options_are_those_that_began_the_run_and_the_folder_is_its_own(run):
    asked = cli._parse(["attach", "--resume", str(run), "--workers", "3"])
    assert (asked.base_url, asked.concurrency, asked.requests, asked.slo) == ([URL], "1,2", 4, ["ttft_s:p50<2"])
    assert (asked.workers, asked.out, asked.resume) == (3, run, run)


def test_servers_that_took_turns_are_named_together(run):
    began = f"loadtest attach --base-url {A} --base-url {B} --header X-Team=TEAM"
    write.write_manifest(run, Manifest(run_id="r", commands=(began,)))
    again = ["--base-url", A, "--base-url", B]
    with pytest.raises(UsageError, match=f"repeat with {' '.join(again)}$"):
        cli._parse(["attach", "--resume", str(run)])
    assert cli._parse(["attach", "--resume", str(run), *again, "--header", "X-Team=TEAM"]).base_url == [A, B]
    with pytest.raises(UsageError, match=f"--base-url: expected the run's own .{A} {B}., got {A}; start anew"):
        cli._parse(["attach", "--resume", str(run), "--base-url", A])


def test_the_same_options_again_are_fine_and_other_slos_replace_the_first(run):
    again = ["attach", "--resume", str(run), "--base-url", URL, "--requests", "4", "--slo", "ttft_s:p50<9"]
    assert cli._parse(again).slo == ["ttft_s:p50<9"]


@pytest.mark.parametrize(
    ("option", "value", "own"),
    [
        ("--base-url", "http://127.0.0.1:10", URL),
        ("--model", "other", "none"),
        ("--requests", "5", "4"),
        ("--concurrency", "1,2,4", "1,2"),
        ("--rate", "2", "none"),
        ("--workload", "ledger", "math"),
        ("--max-tokens", "9", "none"),
        ("--seed", "9", "0"),
    ],
)
def test_whatever_would_measure_something_else_is_refused_by_name(option, value, own, run):
    with pytest.raises(UsageError) as caught:
        cli._parse(["attach", "--resume", str(run), option, value])
    got = float(value) if option == "--rate" else value
    assert str(caught.value) == f"{run}: --resume: {option}: expected the run's own ({own}), got {got}; start anew"


@pytest.mark.parametrize("command", ["search", "attach --find-max"])
def test_a_search_is_extended_by_more_requests_and_higher_levels(command, run):
    began = f"loadtest {command} --base-url {URL} --slo 'ttft_s:p50<2' --requests 64 --rates"
    write.write_manifest(run, Manifest(run_id="r", commands=(began,)))
    resume = [command.split()[0], "--resume", str(run)]
    asked = cli._parse([*resume, "--requests", "512", "--max-concurrency", "900", "--budget", "90min"])
    assert (asked.requests, asked.max_concurrency, asked.budget, asked.rates) == (512, 900, 1.5, True)
    with pytest.raises(UsageError, match="--resume: --workload: expected the run's own"):
        cli._parse([*resume, "--workload", "ledger"])


A, B = "https://a.example", "https://b.example"


@pytest.mark.fault("secrets", "`--resume` of a stranger's run: a server beyond this machine must be named again")
@pytest.mark.parametrize(
    ("began", "again"),
    [
        (f"loadtest attach --base-url {A}", ["--base-url", A]),
        (f"loadtest search --base-url {A} --slo 'ttft_s:p50<2'", ["--base-url", A]),
        (f"loadtest duel {A} {B}", [A, B]),
        (f"loadtest duel {URL} {B}", [URL, B]),
    ],
)
def test_no_key_goes_to_a_server_that_only_the_run_names(began, again, run):
    write.write_manifest(run, Manifest(run_id="r", commands=(began,)))
    resume = [began.split()[1], "--resume", str(run)]
    with pytest.raises(UsageError) as caught:
        cli._parse(resume)
    assert str(caught.value).endswith(f"with your key, to {' '.join(again).removeprefix('--base-url ')}; if it is yours, "
                                      f"repeat with {' '.join(again)}")  # fmt: skip
    assert cli._parse([*resume, *again]).out == run


@pytest.mark.fault("secrets", "`--resume` of a stranger's run: a proxy and an unverified server must be named again")
@pytest.mark.parametrize(
    ("options", "again"),
    [
        ("--proxy http://proxy.example:3128", ["--proxy", "http://proxy.example:3128"]),
        ("--insecure", ["--insecure"]),
    ],
)
def test_no_key_goes_by_a_way_that_only_the_run_names(options, again, run):
    write.write_manifest(run, Manifest(run_id="r", commands=(f"loadtest attach --base-url https://127.0.0.1:9 {options}",)))
    resume = ["attach", "--resume", str(run)]
    with pytest.raises(UsageError) as caught:
        cli._parse(resume)
    assert str(caught.value).endswith(f"where others can read them; if it is yours, repeat with {' '.join(again)}")
    asked = cli._parse([*resume, *again])
    assert (asked.out, resumed.named_again("attach", asked.base_url, asked.proxy, asked.insecure)) == (
        run,
        f" {' '.join(again)}",
    )


def test_a_proxy_on_this_machine_needs_no_second_word(run):
    write.write_manifest(run, Manifest(run_id="r", commands=(f"{BEGAN} --proxy http://127.0.0.1:3128",)))
    assert cli._parse(["attach", "--resume", str(run)]).proxy == "http://127.0.0.1:3128"


def test_a_duel_is_resumed_with_its_own_servers(run):
    write.write_manifest(run, Manifest(run_id="r", commands=(f"loadtest duel {A} {B}",)))
    with pytest.raises(UsageError, match="expected the run's own https://a.example https://b.example, got"):
        cli._parse(["duel", "--resume", str(run), B, A])


def test_the_command_that_continues_names_servers_beyond_this_machine():
    assert resumed.named_again("attach", [URL]) == ""
    assert resumed.named_again("attach", [A]) == f" --base-url {A}"
    assert resumed.named_again("duel", [URL, B]) == f" {URL} {B}"


def test_every_option_of_attach_is_compared_or_changes_no_figure():
    limits = {"budget", "start", "max_concurrency", "calibration"}  # of a search: how far it goes
    free = limits | {"handler", "slo", "workers", "out", "resume", "json", "plain", "quiet", "verbose", "engine_args"}
    assert set(vars(cli._parse(["attach", "--base-url", URL]))) == free | set(resumed._MEASURED)


def test_a_run_of_another_command_and_none_at_all_are_named(run, tmp_path, capsys):
    write.write_manifest(run, Manifest(run_id="r", commands=("loadtest run demo.toml",)))
    with pytest.raises(UsageError, match="expected a run of loadtest attach, got one of loadtest run"):
        cli._parse(["attach", "--resume", str(run)])
    write.write_manifest(run, Manifest(run_id="r"))
    with pytest.raises(UsageError, match="got one of another program"):
        cli._parse(["attach", "--resume", str(run)])
    with pytest.raises(RecordError, match="cannot read"):
        cli._parse(["attach", "--resume", str(tmp_path / "absent")])
    assert cli.main(["attach", "--resume", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_server_and_a_run_it_is_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        cli._parse(["attach", "--concurrency", "1"])
    assert ended.value.code == 2
    assert "expected --base-url URL, or --resume RUN" in capsys.readouterr().err


# The rate ------------------------------------------------------------------------------------------------------------


def asked(*options):
    return measure._attached(cli._parse(["attach", "--base-url", URL, *options]))


def test_a_rate_is_an_open_loop_of_forty_requests_without_a_warm_up():
    study = asked("--rate", "0.5")
    assert (study.scenario, study.scenario_options) == ("open_loop", {"arrivals": "poisson", "rate": 0.5})
    assert (study.levels, study.requests(128), study.warmup_requests) == ((128,), 40, 0)


def test_its_options_are_the_scenario_s_own():
    study = asked(
        "--rate", "2", "--arrivals", "constant", "--concurrency", "16", "--requests", "5", "--warmup-requests", "1"
    )
    assert (study.scenario_options, study.levels, study.requests(16), study.warmup_requests) == (
        {"arrivals": "constant", "rate": 2.0}, (16,), 5, 1,
    )  # fmt: skip
    assert asked("--arrivals", "recorded").scenario_options == {"arrivals": "recorded"}


def test_without_a_rate_it_is_a_closed_loop():
    study = asked()
    assert (study.scenario, study.levels, study.warmup_requests) == ("long_reasoning", (1, 2, 4, 8), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "0"), "--rate: expected requests per second, above 0, got 0"),
        (("--rate", "nan"), "--rate: expected requests per second, above 0, got nan"),
        (("--arrivals", "constant"), "--arrivals constant: expected --rate with it"),
        (("--rate", "1", "--concurrency", "1,2"), "expected one number with --rate"),
    ],
)
def test_a_wrong_rate_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        asked(*options)


@pytest.mark.fault("input", "`--resume` of a run whose manifest names no command, or half of one: one line")
@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("attach", "loadtest attach --base-url 'x", "expected the command that began it, got one of another shape"),
        ("attach", "loadtest attach", "expected the command that began it to name its server"),
        ("attach", f"loadtest attach --base-url {URL} --resume other", "expected the command that began it to name its"),
        ("search", "loadtest search --slo ttft_s:p50<2", "expected the command that began it to name its server"),
        ("duel", f"loadtest duel {URL}", "expected the command that began it to name its server"),
        ("duel", "\x1b[31m", "got one of another program"),
    ],
)
def test_a_manifest_with_another_command_is_one_line(name, command, said, run, capsys):
    write.write_manifest(run, Manifest(run_id="r", commands=(command,)))
    assert cli.main([name, "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_the_number_of_a_round_has_no_thousand_digits(run):
    passes = (f"a/bursts-c01-r{'9' * 5000}", "a/bursts-c01-r7")
    write.write_manifest(run, Manifest(run_id="r", repeats=3, passes=passes))
    assert duel._rounds_on(run) == 7 + duel.MOST_ROUNDS
