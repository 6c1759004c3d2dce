"""The help of each command, and what a shell completes."""

import argparse
import os
import re
import shlex
import subprocess
import sys

import pytest

from loadtest import cli
from loadtest.commands import help as guide
from loadtest.metrics.catalogue import OBJECTIVES, QUANTILES


def commands(parser, name=""):
    """Each command with its parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, one in action.choices.items():
            yield from commands(one, f"{name} {word}".strip())


COMMANDS = dict(commands(cli._parser()))


def options(parser):
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_examples_that_it_takes_and_its_exit_codes(name):
    text = COMMANDS[name].format_help()
    assert "\nexit codes: 0 done, 1 could not be " in text.replace("could not measure", "could not be measured")
    assert "\nexamples:\n" in text
    for line in guide.EXAMPLES[name]:
        assert f"  {line}\n" in text
        assert shlex.split(line)[: 1 + len(name.split())] == ["loadtest", *name.split()]
        if "--resume runs/" not in line:  # which reads the run
            cli._parse(shlex.split(line)[1:])


@pytest.mark.parametrize(
    "name", [name for name, one in COMMANDS.items() if {"--slo", "--require"} & set(one._option_string_actions)]
)
def test_where_an_slo_is_asked_for_every_metric_and_quantile_is_listed(name):
    if name in ("run", "predict"):
        pytest.skip("the SLOs are the study's")
    text = COMMANDS[name].format_help()
    assert [one for one in OBJECTIVES if not re.search(rf"\b{one}[<>]", text)] == []
    assert all(re.search(rf"\b{one}\b", text) for one in QUANTILES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_with_its_default(name):
    asked = [action for action in options(COMMANDS[name]) if not action.required]
    assert [action.option_strings for action in options(COMMANDS[name]) if not action.help] == []
    with_value = [action for action in asked if action.nargs != 0]
    untold = [a.option_strings[-1] for a in with_value if not re.search("default|repeatable|required|instead", a.help)]
    assert set(untold) <= WITHOUT_DEFAULT.get(name, set())


WITHOUT_DEFAULT = {
    "duel": {"--resume"},
    "attach": {"--base-url", "--resume"},
    "search": {"--base-url", "--resume"},
    "predict": {"--model", "--gpu"},
    "plan": {"--users", "--arrivals-per-hour", "--sessions-per-day", "--out"},
}


@pytest.mark.parametrize("name", ["attach", "run", "predict", "plan"])
def test_many_options_stand_in_groups(name):
    left = [a.option_strings[-1] for a in COMMANDS[name]._optionals._group_actions if a.dest != "help"]
    assert len(left) <= 5, left
    assert len(COMMANDS[name]._action_groups) >= 4


def test_a_help_fits_eighty_columns_but_for_its_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for parser in COMMANDS.values():
        before, _, _ = parser.format_help().partition("\nexamples:\n")
        assert max(map(len, before.splitlines())) <= 80


def test_the_help_of_loadtest_says_where_to_start():
    text = cli._parser().format_help()
    assert "\nstart with:\n  loadtest demo\n" in text
    assert text.rstrip().endswith('eval "$(register-python-argcomplete loadtest)"')


# Completion ----------------------------------------------------------------------------------------------------------


def completed(line):
    """What bash is told after this line."""
    command = f"{shlex.quote(sys.executable)} -m loadtest 8>&1 9>/dev/null >/dev/null"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n", "_ARGCOMPLETE_SHELL": "bash",
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
    }  # fmt: skip
    ended = subprocess.run(["bash", "-c", command], env=os.environ | asked, capture_output=True, text=True, timeout=60)
    return [word.strip() for word in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("loadtest att", {"attach"}),
        ("loadtest attach --conc", {"--concurrency"}),
        ("loadtest attach --gpu rtx-40", {"rtx-4090"}),
        ("loadtest fit --model qwq", {"qwq-32b"}),
        ("loadtest attach --workload led", {"ledger"}),
        ("loadtest workload show led", {"ledger"}),
        ("loadtest attach --arrivals ", {"poisson", "constant", "recorded"}),
    ],
)
def test_a_shell_completes_commands_options_and_names(line, some):
    assert some <= set(completed(line))
