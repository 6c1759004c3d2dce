"""`init`, `doctor`, `verify`: files to edit, what this machine lacks, and how true its times are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from loadtest import resources
from loadtest.commands.finish import as_json
from loadtest.commands.machine import doctor as examination
from loadtest.commands.machine.verification import verify as verify_instrument
from loadtest.errors import LoadtestError, UsageError
from loadtest.report.formatting import instrument_words

if TYPE_CHECKING:
    from loadtest.study.execution import Say


def init(arguments: argparse.Namespace, say: Say) -> str:
    """Scenarios, studies, launchers and templates, copied for editing."""
    made = resources.copy_to(arguments.directory)
    study = arguments.directory / "scenarios/studies/demo.toml"
    return "\n".join([*(f"made {folder}" for folder in made), f"next: loadtest run {study}"])


def doctor(arguments: argparse.Namespace, say: Say) -> str:
    """What this machine has, what is missing, and the command that installs it."""
    findings = examination.examine()
    said = as_json(msgspec.to_builtins(findings)) if arguments.json else _listed(findings)
    broken = [finding.name for finding in findings if finding.state == "broken"]
    if broken:
        say(said)
        raise LoadtestError(f"{', '.join(broken)}: no load can be generated here; install what is listed above")
    return said


def verify(arguments: argparse.Namespace, say: Say) -> str:
    """How true this machine's times are, at one concurrency."""
    if not 1 <= arguments.concurrency <= _MOST_STREAMS:
        raise UsageError(f"--concurrency: expected 1 to {_MOST_STREAMS}, got {arguments.concurrency}")
    found = verify_instrument(arguments.concurrency, say)
    return as_json(found) if arguments.json else f"This machine, now: {instrument_words(found)}."


_MOST_STREAMS = 1000


def _listed(findings: tuple[examination.MachineCheck, ...]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8}{finding.name:{width}}  {finding.found}")
        if finding.cure is not None:
            lines.append(f"{'':8}{'':{width}}  -> {finding.cure}")
    return "\n".join(lines)
