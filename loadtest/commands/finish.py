"""How every command that measures or predicts ends: the records analysed, the page written, the decision as text."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadtest import resources
from loadtest.errors import Interrupted, LoadtestError, UsageError
from loadtest.records import read, write
from loadtest.records.folder import PASS_NAME, check_run_folder

if TYPE_CHECKING:
    from loadtest.analysis.claims import Claim
    from loadtest.metrics.schema import Metrics
    from loadtest.records.engine_facts import EngineFacts
    from loadtest.report.templates import Templates
    from loadtest.study.execution import Say


def carry_out(execute: Callable[[], tuple[str, ...]], out: Path, say: Say, json: bool, again: str = "") -> str:
    """Carry a study out, analyse it, write its page; the same for an interrupted one, which then exits 130.

    `again`: the command that continues an incomplete run.
    """
    page = out / "report.html"
    step = f"; continue with: {again}" if again else ""
    interrupted = False
    problems: tuple[str, ...] = ()
    try:
        problems = execute()
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: analysing what was measured so far")
    metrics = _conclude(out, say)
    said = as_json(metrics) if json else decision_table(out, metrics)
    if interrupted:
        text = f"interrupted; what was measured is in {out} and reported as incomplete in {page}{step}"
        raise Interrupted(text, said if _tells(metrics) else "")
    if problems:
        text = f"{len(problems)} problem(s) left the run incomplete ({problems[0]}); the rest is in {page}{step}"
        raise LoadtestError(text, said if _tells(metrics) else "")
    if kinds := _only_failures(metrics):
        raise LoadtestError(
            f"nothing could be measured: every request failed ({kinds}); read the server's log, and {out / 'report.html'}"
        )
    return said if json else f"{said}\n{page}"


def _tells(metrics: Metrics) -> bool:
    """Has an incomplete run a decision, or the frontier of a search?"""
    return bool(metrics.decisions or metrics.searches)


def _conclude(out: Path, say: Say) -> Metrics:
    """Analyse, and write the page."""
    say("analysing")
    metrics = analyze_run(out)
    say("drawing the page")
    write_page(out, metrics, out / "report.html")
    return metrics


def _only_failures(metrics: Metrics) -> str:
    """The kinds of failure, with their counts, of a run in which the server, or the way to it, failed every request."""
    levels = [level for cell in metrics.cells for level in cell.levels]
    if not levels or any(level.failed_share.value != 1 for level in levels):
        return ""
    kinds = sum((Counter(level.error_kinds) for level in levels), Counter[str]())
    return ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())


def decision_table(folder: Path, metrics: Metrics) -> str:
    """The decision, as a compact table for a terminal."""
    from loadtest.report.terminal import decision_text

    return decision_text(metrics, read.read_manifest(folder / "manifest.json"), engines=_engines(folder))


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json. Raises RecordError, one line: the file is missing or damaged, or another release wrote it."""
    from loadtest.metrics import schema

    return schema.decode(read.read_bytes(path), str(path))


def analyze_run(folder: Path) -> Metrics:
    """Records to metrics.json and metrics.csv, in the folder of the run."""
    from loadtest.analysis import export
    from loadtest.analysis.run import analyze

    run = read.read_run(folder)
    metrics = analyze(run, claims=_claims(run.manifest.findings))
    write.write_json(folder / "metrics.json", metrics)
    write.write_csv(folder / "metrics.csv", export.to_rows(metrics))
    return metrics


def _claims(name: str | None) -> tuple[Claim, ...]:
    """The claims that a study names: a file, or one of `reports/findings/`; without a name, none."""
    from loadtest.analysis import claims

    if name is None:
        return ()
    own = Path(name)
    path = own if own.suffix == ".toml" else resources.path(f"reports/findings/{own}.toml")
    try:
        return claims.parse_claims(resources.small_file(path), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the findings: {error.strerror}") from error


def write_page(folder: Path, metrics: Metrics, page: Path, templates: Templates | None = None) -> None:
    """The page of one run, with each plot beside it in `plots/`."""
    from loadtest.report.page import Source, write_run_page

    check_run_folder(folder)
    manifest = read.read_manifest(folder / "manifest.json")
    engines = _engines(folder)
    loads = {cell: load for cell in engines if (load := _load_command(folder / "cells" / cell))}
    write_run_page(Source(metrics, manifest, engines, loads), page, page.parent / "plots", templates)


def _engines(folder: Path) -> dict[str, EngineFacts]:
    """What is known of each cell's engine."""
    return {path.parent.name: read.read_engine(path) for path in sorted(folder.glob("cells/*/engine.json"))}


def _load_command(cell: Path) -> tuple[str, ...]:
    """The command that drove the last pass of a cell; empty where Locust did not."""
    passes = [path for path in sorted(cell.glob("*/pass.json")) if PASS_NAME.fullmatch(path.parent.name)]
    return tuple(read.read_json(passes[-1]).get("command") or ()) if passes else ()


def as_json(value: object) -> str:
    """For `--json`: indented by two."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def new_folder(name: str) -> Path:
    """Where a run goes that was given no `--out`: `runs/NAME-TIME`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
