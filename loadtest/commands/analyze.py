"""`analyze` and `report`: from the records of runs to their numbers and their pages."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.commands.finish import analyze_run, as_json, decision_table, read_metrics, write_page
from loadtest.errors import RecordError, UsageError
from loadtest.records import read, write
from loadtest.records.bundle import unpacked
from loadtest.records.folder import check_run_folder

if TYPE_CHECKING:
    from loadtest.metrics.schema import Metrics
    from loadtest.report.index import Entry
    from loadtest.report.templates import Templates
    from loadtest.study.execution import Say

MOST_RUNS = 6


def analyze(arguments: argparse.Namespace, say: Say) -> str:
    """Records to metrics.json and metrics.csv; with --run-programs, what the answered programs print is judged first."""
    if arguments.run_programs:
        from loadtest.grading import programs

        found = programs.verdicts(read.read_run(arguments.run), say)
        write.write_json(arguments.run / "programs.json", found)
    metrics = analyze_run(arguments.run)
    return (
        as_json(metrics) if arguments.json else f"{decision_table(arguments.run, metrics)}\n{arguments.run / 'metrics.json'}"
    )


def report(arguments: argparse.Namespace, say: Say) -> str:
    """The page of a run; one comparison page of several (the first is the baseline); the index of a folder of runs."""
    from loadtest.report.templates import Templates

    given: list[Path] = arguments.runs
    templates = Templates(arguments.templates)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(unpacked(one)) for one in given]
        if len(runs) > 1:
            return str(_compare(runs, arguments.output or given[0].parent / "comparison.html", templates))
        (run,) = runs
        beside = given[0].with_suffix(".html") if run != given[0] else run / "report.html"
        return _of_one(run, arguments.output, beside, templates)


def _of_one(run: Path, output: Path | None, beside: Path, templates: Templates) -> str:
    if not (run / "manifest.json").exists() and (folders := _runs_in(run)):
        return str(_index(run, folders, output or run / "index.html", templates))
    page = output or beside
    write_page(run, _metrics(run), page, templates)
    return str(page)


def _metrics(run: Path) -> Metrics:
    """The figures of a run: metrics.json, made first where it is missing or older than any record."""
    check_run_folder(run)
    made = run / "metrics.json"
    newest_s = max((path.stat().st_mtime for path in run.glob("cells/*/*/*.jsonl")), default=0.0)
    return read_metrics(made) if made.exists() and made.stat().st_mtime >= newest_s else analyze_run(run)


def _compare(runs: list[Path], page: Path, templates: Templates) -> Path:
    from loadtest.analysis import comparability, compare
    from loadtest.analysis.validity import unsound_places
    from loadtest.report.comparison import Side
    from loadtest.report.page import write_comparison_page

    if len(runs) > MOST_RUNS:
        raise UsageError(f"report: expected at most {MOST_RUNS} runs on one page, got {len(runs)}; leave some out")
    metrics = [_metrics(run) for run in runs]
    baseline, *candidates = [read.read_run(run) for run in runs]
    sides = [Side(runs[0].resolve().name, metrics[0], baseline.manifest, None, {})]
    for candidate, own in zip(candidates, metrics[1:], strict=True):
        # The page shows every difference, so none forbids the comparison.
        apart = comparability.manifest_differences(baseline.manifest, candidate.manifest)
        unsound = (unsound_places(metrics[0].cells), unsound_places(own.cells))
        judged = compare.compare_runs(baseline, candidate, allow=tuple(apart), unsound=unsound)
        sides.append(Side(candidate.path.resolve().name, own, candidate.manifest, judged, apart))
    write_comparison_page(sides, page, page.parent / f"{page.stem}-plots", templates)
    return page


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


def _index(folder: Path, runs: list[Path], page: Path, templates: Templates) -> Path:
    from loadtest.report.page import write_index_page

    write_index_page(folder.resolve().name, [_entry(run) for run in runs], page, templates)
    return page


def _entry(run: Path) -> Entry:
    """One run of the index; one that cannot be read is a row that says so."""
    from loadtest.report.index import Entry

    try:
        check_run_folder(run)
        manifest = read.read_manifest(run / "manifest.json")
        made = run / "metrics.json"
        metrics = read_metrics(made) if made.exists() else None
    except RecordError as error:
        return Entry(run.name, None, None, paged=False, problem=str(error).replace(f"{run.parent}/", ""))
    return Entry(run.name, metrics, manifest, paged=(run / "report.html").exists())
