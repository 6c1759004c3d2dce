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
from loadtest.report.cells import ShownCell, cells_of
from loadtest.report.checklist import (
    NO_ENGINES,
    THIS_RUN,
    Check,
    clock_error_words,
    gate_checks,
    health_reasons,
    not_measured,
    window_reasons,
)
from loadtest.report.comparison import (
    Side,
    compared_configurations,
    compared_rows,
    comparison_answer,
    comparison_figures,
    comparison_lines,
    differences,
    labels,
)
from loadtest.report.composed import composed_table
from loadtest.report.decision import decision_lines, question_of
from loadtest.report.formatting import clean, listed, when
from loadtest.report.imported import not_told_table, source_words, told_table
from loadtest.report.index import Entry, index_answer, index_badge, index_charts, index_columns, index_rows
from loadtest.report.overview import Badge, Overview, answer_of, badge_of, overview_of
from loadtest.report.plots.catalogue import ABSENT, draw_run
from loadtest.report.plots.figure import Drawing, Figure, Table, draw
from loadtest.report.plots.overview import SPEED, TIMES
from loadtest.report.search import search_table
from loadtest.report.tables import (
    Command,
    caching_table,
    capacity_table,
    cells_table,
    command_lines,
    contract_table,
    definitions,
    environment_rows,
    failed_levels_table,
    failures_table,
    findings,
    fit_texts,
    levels_table,
    replicas_table,
)
from loadtest.report.templates import Templates

CHARTS = (SPEED, TIMES)
GROUPS = (
    ("comparison", "Comparison", ("ratios", "why")),
    ("time", "Where the time goes", ("where-the-time-goes", "ttft")),
    (
        "inside",
        "More figures: trade-offs, other waits, gaps between tokens, the server and each request over time",
        (
            "pareto",
            "time-to-final-answer",
            "time-to-first-answer",
            "survival",
            "token-gaps",
            "roofline",
            "server",
            "timeline",
        ),
    ),
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

    @property
    def whole(self) -> bool:
        """Does a failed check doubt the whole run, not some of its levels alone?"""
        return any(check.state == "fail" and check.where == THIS_RUN for check in self.checks)


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure as the template needs it; the drawing is ours, so it alone goes in unescaped."""

    figure: Figure
    inner: Markup
    boxes: tuple[str, ...]
    columns: int  # panels side by side where the screen is wide enough


@dataclass(frozen=True, slots=True)
class Group:
    """Figures under one heading; `absent`: title of each that could not be drawn, and why."""

    anchor: str
    title: str
    figures: tuple[Shown, ...]
    absent: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Entrance:
    """The first screen of a page; `table`: None where the page has one of its own."""

    question: str
    answer: str
    badge: Badge
    charts: tuple[Shown, ...]
    table: Overview | None


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
    title, rows = f"Runs in {clean(folder)}", index_rows(entries)
    charts = tuple(_shown(draw(figure)) for figure in index_charts(entries))
    entrance = Entrance(title, index_answer(rows), index_badge(rows), charts, None)
    return (templates or Templates()).render(
        "index.html.j2", title=title, simulated=False, entrance=entrance, rows=rows, columns=index_columns()
    )


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
    health, drawn = _health(metrics, manifest, engines), {drawing.figure.name: _shown(drawing) for drawing in drawings}
    return templates.render(
        "page.html.j2",
        simulated=metrics.simulated,
        title=_titled(question, simulated=metrics.simulated),
        entrance=Entrance(
            question,
            answer_of(metrics, manifest),
            badge_of(metrics, health.checks),
            tuple(drawn[name] for name in CHARTS if name in drawn),
            overview_of(metrics, manifest),
        ),
        facts=_facts(metrics),
        lines=decision_lines(metrics, manifest),
        not_measured=not_measured(metrics, manifest),
        clock_speed=metrics.run.clock_speed,
        clock_error=clock_error_words(metrics),
        health=health,
        groups=_grouped(drawn, paired=_paired(cells)),
        findings=findings(metrics),
        capacity=capacity_table(cells, metrics, manifest),
        searched=search_table(metrics),
        composed=composed_table(cells),
        levels=levels_table(cells),
        not_told=None if metrics.run.imported is None else not_told_table(metrics.run.imported),
        told=None if metrics.run.imported is None else told_table(metrics.run.imported),
        caching=caching_table(cells),
        replicas=replicas_table(cells),
        failures=failures_table(cells),
        failed=failed_levels_table(cells),
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
        source_words(run.imported) if run.imported else "",
    )
    return tuple(fact for fact in facts if fact)


def _date(started: str | None) -> str:
    try:
        return when(datetime.fromisoformat(started).timestamp()) if started else ""
    except ValueError:
        return clean(started or "")


def _paired(cells: Iterable[ShownCell]) -> bool:
    """Were two engines, or two configurations, asked for on one deployment?"""
    asked: dict[str, set[str]] = {}
    for cell in cells:
        asked.setdefault(cell.deployment, set()).add(cell.short)
    return any(len(found) > 1 for found in asked.values())


def _grouped(drawn: Mapping[str, Shown], *, paired: bool) -> list[Group]:
    """The figures by heading; no comparison where no two engines can be compared."""
    groups = []
    for anchor, title, names in GROUPS:
        if anchor == "comparison" and not paired:
            continue
        shown = tuple(drawn[name] for name in names if name in drawn)
        groups.append(Group(anchor, title, shown, tuple(ABSENT[name] for name in names if name not in drawn)))
    return groups


# Several runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison as the template needs it."""

    label: str
    name: str
    facts: tuple[str, ...]
    health: Health
    imported: bool


def _drawn(sides: Sequence[Side]) -> tuple[Drawing, ...]:
    return tuple(draw(figure) for figure in comparison_figures(sides))


def _comparison_page(sides: Sequence[Side], drawings: Iterable[Drawing], templates: Templates) -> str:
    simulated = any(side.metrics.simulated for side in sides)
    runs = [
        ComparedRun(
            label,
            clean(side.name),
            _facts(side.metrics),
            _health(side.metrics, side.manifest),
            side.metrics.run.imported is not None,
        )
        for label, side in zip(labels(sides), sides, strict=True)
    ]
    question = f"What changed from {runs[0].name} to {listed([run.name for run in runs[1:]])}?"
    drawn = {drawing.figure.name: _shown(drawing) for drawing in drawings}
    different = differences(sides)
    return templates.render(
        "comparison.html.j2",
        simulated=simulated,
        title=_titled(question, simulated=simulated),
        entrance=Entrance(
            question,
            comparison_answer(sides),
            _comparison_badge(runs, different, simulated=simulated),
            tuple(drawn[name] for name in CHARTS if name in drawn),
            compared_configurations(sides),
        ),
        runs=runs,
        failed=[run for run in runs if run.health.state == "failed"],
        decisions=[
            (run.label, run.name, comparison_lines(side, compared_rows(sides[0], side)))
            for run, side in zip(runs[1:], sides[1:], strict=True)
        ],
        different=different,
        left=[clean(one) for side in sides[1:] for one in side.not_compared],
        groups=_by_side(drawn.values()),
        commands=[
            Command(f"{run.label}: {one.title}", one.text)
            for run, side in zip(runs, sides, strict=True)
            for one in command_lines(side.manifest, {}, {})
        ],
        definitions=definitions(),
    )


def _comparison_badge(runs: Sequence[ComparedRun], different: Table | None, *, simulated: bool) -> Badge:
    """Doubtful where a run is, or where the runs were asked for different things."""
    labels = ("simulated",) if simulated else ()
    failed = [run.label for run in runs if run.health.state == "failed"]
    if failed:
        return Badge((*labels, "doubtful"), f"Do not rely on the {listed(failed)}: a check failed.")
    if any(run.imported for run in runs):
        return Badge((*labels, "imported"), "Another tool measured: times, prompts and settings are not verified.")
    if different is not None:
        keys = ", ".join(row[0] for row in different.rows)
        return Badge((*labels, "settings differ"), f"Each ratio includes the effect of {keys}.")
    if simulated:
        return Badge(labels, "At least one of these runs was simulated: its figures are predictions, and so is every ratio.")
    return Badge(("sound",), "Every run passed its checks, and all were asked for the same.")


def _by_side(shown: Iterable[Shown]) -> list[Group]:
    """The figures of differences, then those that put all runs on one scale."""
    below = [one for one in shown if one.figure.name not in CHARTS]
    apart = tuple(one for one in below if one.figure.name.startswith(("ratios", "why")))
    groups = [
        Group("ratios", "Candidate against baseline", apart),
        Group("scale", "More figures: all runs on one scale", tuple(one for one in below if one not in apart)),
    ]
    return [group for group in groups if group.figures]


def _shown(drawing: Drawing) -> Shown:
    return Shown(drawing.figure, Markup(drawing.inner), drawing.boxes, min(drawing.figure.columns, len(drawing.boxes)))
