"""Writes the parts of the documents that are made from the code: `python -m tests.docs.generate`."""

import argparse
import ast
import dataclasses
import functools
import json
import re

from loadtest import cli
from loadtest.metrics.catalogue import METRICS
from loadtest.workload.contract import RULES, Contract
from loadtest.workload.generators import GENERATORS
from tests.docs import peers
from tests.support.documents import ROOT

DOCUMENTS = tuple(ROOT / "docs" / f"{name}.md" for name in ("faults", "metrics", "peers", "reference", "workloads"))
BLOCK = re.compile(r"<!-- generated: (\w+) -->\n\n(.*?)\n<!-- /generated -->", re.DOTALL)


def metrics_table():
    """One row per metric of a level, in the order of the page."""
    rows = [f"| `{key}` | {metric.definition} |\n" for key, metric in METRICS.items()]
    return "".join(["| key | definition |\n|---|---|\n", *rows])


def commands_table():
    """One row per command, in the order of its help."""
    rows = [f"| `{name}` | {about} | {options} |\n" for name, about, options in commands(cli._parser())]
    return "".join(["| command | does | options |\n|---|---|---|\n", *rows])


def generators_table():
    """One row per built-in workload."""
    rows = [f"| `{name}` | {about} |\n" for name, about in GENERATORS.items()]
    return "".join(["| name | prompts |\n|---|---|\n", *rows])


def contract_table():
    """One row per key of a contract, with its default as TOML has it; none where the engine or the model decides."""
    keys = {row.name: row for row in dataclasses.fields(Contract)}
    rows = [f"| `{name}` | {default(keys[name])} | {rule.expected} |\n" for name, rule in RULES.items()]
    return "".join(["| key | default | allowed |\n|---|---|---|\n", *rows])


def default(row):
    """What a key is where a study leaves it out."""
    value = row.default if row.default is not dataclasses.MISSING else row.default_factory()
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def commands(parser, name=""):
    """Each command below a parser: its name with its arguments, what it does, its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            abouts = {one.dest: one.help for one in action._choices_actions}
            for word, below in action.choices.items():
                inner = list(commands(below, f"{name}{word} "))
                yield from inner or [(f"{name}{word}{arguments(below)}", abouts[word], options(below))]


def arguments(parser):
    """What a command takes by place, such as ` STUDY.toml`."""
    places = [one for one in parser._actions if not one.option_strings]
    return "".join(f" {one.metavar or one.dest}{'...' if one.nargs in ('+', '*') else ''}" for one in places)


def options(parser):
    """The options of a command by their longest names, in code."""
    named = [max(one.option_strings, key=len) for one in parser._actions if one.option_strings]
    return " ".join(f"`{one}`" for one in named if one != "--help")


def faults(part):
    """What each test marked `fault(part, said)` says, and where it is, in the order of the files."""
    return [(said, test) for of, said, test in _marks() if of == part]


@functools.cache
def _marks():
    """Part, text and test of every mark."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        for test in ast.walk(ast.parse(source)) if ".mark.fault(" in source else ():
            for mark in getattr(test, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    of, said = (ast.literal_eval(one) for one in mark.args)
                    found.append((of, said, f"{path.relative_to(ROOT / 'tests')}::{test.name}"))
    return found


def faults_list(part):
    """A line per fault of a part; its test stands on a line of its own."""
    return "".join(f"- {said}\n  `{test}`\n" for said, test in faults(part))


TABLES = {
    "metrics": metrics_table,
    "commands": commands_table,
    "generators": generators_table,
    "contract": contract_table,
    "peers": peers.table,
    **{part: functools.partial(faults_list, part) for part in ("processes", "input", "servers", "secrets")},
}


def generated(text):
    """A document with its generated blocks made anew."""
    return BLOCK.sub(lambda found: found[0].replace(found[2], TABLES[found[1]]()), text)


def handwritten(text):
    """A document without its generated blocks."""
    return BLOCK.sub("", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(generated(document.read_text(encoding="utf-8")), encoding="utf-8")
