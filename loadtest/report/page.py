"""The pages, one HTML file each that a mail attachment can carry: of one run, of several side by side, of a folder of runs.

Everything that came from a model, a server or a file is escaped by the templates and cleaned of invisible characters;
a page's own policy (CSP) lets it neither fetch nor run anything but the one script whose hash it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from loadtest.metrics.schema import Metrics
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.records.write import make_folder, write_file
from loadtest.report.cells import cells_of
from loadtest.report.checklist import (
    NO_ENGINES,
    Check,
    clock_error_words,
    gate_checks,
    health_reasons,
    not_measured,
    window_reasons,
)
from loadtest.report.comparison import (
    Side,
    compared_rows,
    comparison_figures,
    comparison_lines,
    differences,
    labels,
)
from loadtest.report.composed import composed_table
from loadtest.report.decision import decision_lines, question_of
from loadtest.report.formatting import clean, listed, when
from loadtest.report.index import Entry, index_rows
from loadtest.report.plots.catalogue import draw_run
from loadtest.report.plots.figure import Drawing, Figure, draw
from loadtest.report.search import search_table
from loadtest.report.tables import (
    Command,
    capacity_table,
    cells_table,
    command_lines,
    contract_table,
    definitions,
    environment_rows,
    failures_table,
    findings,
    fit_texts,
    levels_table,
)
from loadtest.report.templates import Templates

GROUPS = (
    (
        "speed",
        "Speed",
        ("tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-first-answer", "time-to-final-answer"),
    ),
    ("comparison", "One engine against the other", ("ratios", "why", "pareto", "roofline")),
    ("time", "Where the time goes", ("where-the-time-goes", "survival", "token-gaps")),
    ("inside", "Over time", ("server", "timeline")),
)


@dataclass(frozen=True, slots=True)
class Source:
    """What the page of one run is made from. By the id of a cell: what is known of its engine, and the command that drove
    its last pass."""

    metrics: Metrics
    manifest: Manifest
    engines: Mapping[str, EngineFacts]
    loads: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Health:
    """The gates of one run, and which of three headings they give it."""

    state: Literal["failed", "sound", "open"]
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure as the template needs it; the drawing is ours, so it alone goes in unescaped."""

    figure: Figure
    inner: Markup
    boxes: tuple[str, ...]
    kind: Literal["one", "two", "three"]  # columns of panels where the screen is wide enough


@dataclass(frozen=True, slots=True)
class Group:
    """Figures under one heading."""

    anchor: str
    title: str
    figures: tuple[Shown, ...]


# Writing -------------------------------------------------------------------------------------------------------------


def run_page(source: Source, templates: Templates | None = None) -> str:
    """The page of one run as one string of HTML. Pure: same input, same page."""
    return _run_page(source, draw_run(source.metrics), templates or Templates())


def write_run_page(source: Source, out_html: Path, plots_dir: Path, templates: Templates | None = None) -> None:
    """Write the page of one run, and its figures as SVG and PNG into `plots_dir`. Raises `RecordError` if it cannot."""
    drawings = draw_run(source.metrics)
    _save(_run_page(source, drawings, templates or Templates()), drawings, out_html, plots_dir)


def comparison_page(sides: Sequence[Side], templates: Templates | None = None) -> str:
    """The page of two or more runs, the baseline first."""
    return _comparison_page(sides, _drawn(sides), templates or Templates())


def write_comparison_page(
    sides: Sequence[Side], out_html: Path, plots_dir: Path, templates: Templates | None = None
) -> None:
    """Write the comparison page and its figures. Raises `RecordError` where the disk refuses."""
    drawings = _drawn(sides)
    _save(_comparison_page(sides, drawings, templates or Templates()), drawings, out_html, plots_dir)


def index_page(folder: str, entries: list[Entry], templates: Templates | None = None) -> str:
    """The index page of a folder of runs."""
    title = f"Runs in {clean(folder)}"
    return (templates or Templates()).render("index.html.j2", title=title, simulated=False, rows=index_rows(entries))


def write_index_page(folder: str, entries: list[Entry], out_html: Path, templates: Templates | None = None) -> None:
    """Write the index page. Raises `RecordError` where the disk refuses."""
    _save(index_page(folder, entries, templates), (), out_html, None)


def write_figure(figure: Figure, path: Path) -> None:
    """Draw one figure into a file, PNG or SVG by its name. Raises `RecordError` where the disk refuses."""
    drawing = draw(figure)
    make_folder(path.parent)
    write_file(path, drawing.png() if path.suffix == ".png" else drawing.svg)


def _save(page: str, drawings: Iterable[Drawing], out_html: Path, plots_dir: Path | None) -> None:
    """The figures first: where one cannot be written, the page before stays."""
    if plots_dir is not None:
        make_folder(plots_dir)
        for drawing in drawings:
            write_file(plots_dir / f"{drawing.figure.name}.svg", drawing.svg)
            write_file(plots_dir / f"{drawing.figure.name}.png", drawing.png())
    write_file(out_html, page.encode(errors="backslashreplace"))


# One run -------------------------------------------------------------------------------------------------------------


def _run_page(source: Source, drawings: Iterable[Drawing], templates: Templates) -> str:
    metrics, manifest, engines = source.metrics, source.manifest, source.engines
    cells, question = cells_of(metrics), question_of(metrics, manifest)
    return templates.render(
        "page.html.j2",
        simulated=metrics.simulated,
        title=_titled(question, simulated=metrics.simulated),
        question=question,
        facts=_facts(metrics),
        lines=decision_lines(metrics, manifest),
        not_measured=not_measured(metrics, manifest),
        clock_speed=metrics.run.clock_speed,
        clock_error=clock_error_words(metrics),
        health=_health(metrics, manifest, engines),
        groups=_grouped(drawings),
        findings=findings(metrics),
        capacity=capacity_table(cells, metrics, manifest),
        searched=search_table(metrics),
        composed=composed_table(cells),
        levels=levels_table(cells),
        failures=failures_table(cells),
        doubts=window_reasons(metrics),
        cells=cells_table(cells, engines),
        chosen=[cell.name for cell in cells] if len(cells) > 1 else [],
        fits=fit_texts(cells),
        contract=contract_table(manifest, cells, engines),
        environment=environment_rows(metrics, manifest),
        commands=command_lines(manifest, engines, source.loads),
        definitions=definitions(),
    )


def _titled(question: str, *, simulated: bool) -> str:
    return f"Simulated: {question}" if simulated else question


def _health(metrics: Metrics, manifest: Manifest, engines: Mapping[str, EngineFacts] = NO_ENGINES) -> Health:
    checks = gate_checks(metrics, manifest, engines)
    states = {check.state for check in checks}
    state: Literal["failed", "sound", "open"]
    state = "failed" if "fail" in states else "sound" if states <= {"pass", "none"} else "open"
    return Health(state, checks, health_reasons(metrics))


def _facts(metrics: Metrics) -> tuple[str, ...]:
    run = metrics.run
    facts = (
        clean(run.name or ""),
        f"run {clean(metrics.run_id or 'without an id')}",
        _date(run.started),
        f"workload {clean(run.workload.source)}" if run.workload else "",
        f"{run.mode} mode" if run.mode else "",
    )
    return tuple(fact for fact in facts if fact)


def _date(started: str | None) -> str:
    try:
        return when(datetime.fromisoformat(started).timestamp()) if started else ""
    except ValueError:
        return clean(started or "")


def _grouped(drawings: Iterable[Drawing]) -> list[Group]:
    drawn = {drawing.figure.name: _shown(drawing) for drawing in drawings}
    groups = []
    for anchor, title, names in GROUPS:
        shown = tuple(drawn[name] for name in names if name in drawn)
        title = "Trade-offs" if anchor == "comparison" and "ratios" not in drawn else title
        groups += [Group(anchor, title, shown)] if shown else []
    return groups


# Several runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison as the template needs it."""

    label: str
    name: str
    facts: tuple[str, ...]
    health: Health


def _drawn(sides: Sequence[Side]) -> tuple[Drawing, ...]:
    return tuple(draw(figure) for figure in comparison_figures(sides))


def _comparison_page(sides: Sequence[Side], drawings: Iterable[Drawing], templates: Templates) -> str:
    simulated = any(side.metrics.simulated for side in sides)
    runs = [
        ComparedRun(label, clean(side.name), _facts(side.metrics), _health(side.metrics, side.manifest))
        for label, side in zip(labels(sides), sides, strict=True)
    ]
    question = f"What changed from {runs[0].name} to {listed([run.name for run in runs[1:]])}?"
    return templates.render(
        "comparison.html.j2",
        simulated=simulated,
        title=_titled(question, simulated=simulated),
        question=question,
        runs=runs,
        failed=[run for run in runs if run.health.state == "failed"],
        decisions=[
            (run.label, run.name, comparison_lines(side, compared_rows(sides[0], side)))
            for run, side in zip(runs[1:], sides[1:], strict=True)
        ],
        different=differences(sides),
        left=[clean(one) for side in sides[1:] for one in side.not_compared],
        groups=_by_side(drawings),
        commands=[
            Command(f"{run.label}: {one.title}", one.text)
            for run, side in zip(runs, sides, strict=True)
            for one in command_lines(side.manifest, {}, {})
        ],
        definitions=definitions(),
    )


def _by_side(drawings: Iterable[Drawing]) -> list[Group]:
    """The figures of differences, then those that put all runs on one scale."""
    shown = [_shown(drawing) for drawing in drawings]
    apart = tuple(one for one in shown if one.figure.name.startswith(("ratios", "why")))
    groups = [
        Group("ratios", "Candidate against baseline", apart),
        Group("scale", "All runs on one scale", tuple(one for one in shown if one not in apart)),
    ]
    return [group for group in groups if group.figures]


def _shown(drawing: Drawing) -> Shown:
    columns = min(drawing.figure.columns, len(drawing.boxes))
    kind: Literal["one", "two", "three"] = "one" if columns == 1 else "two" if columns == 2 else "three"
    return Shown(drawing.figure, Markup(drawing.inner), drawing.boxes, kind)
