"""`analyze` and `report`: from the records of a run to its numbers and its page."""

from __future__ import annotations

import argparse

from loadtest.commands.conclusion import Say, analyze_run, as_json, table, write_page
from loadtest.errors import UsageError


def analyze(arguments: argparse.Namespace, say: Say) -> str:
    """Records to metrics.json and metrics.csv."""
    numbers = analyze_run(arguments.run)
    return as_json(numbers) if arguments.json else f"{table(arguments.run, numbers)}\n{arguments.run / 'metrics.json'}"


def report(arguments: argparse.Namespace, say: Say) -> str:
    """The page of each run, from its metrics.json (made first where it is missing)."""
    if arguments.output is not None and len(arguments.runs) > 1:
        raise UsageError(
            f"--output: expected one RUN for one page, got {len(arguments.runs)}; leave it out for a page in each"
        )
    pages = []
    for run in arguments.runs:
        if not (run / "metrics.json").exists():
            analyze_run(run)
        pages.append(arguments.output or run / "report.html")
        write_page(run, pages[-1])
    return "\n".join(map(str, pages))
