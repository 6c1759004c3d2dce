"""The pages, one HTML file each that a mail attachment can carry: of one run, of several side by side, of a folder of runs.

Everything that came from a model, a server or a file is escaped by the templates and cleaned of invisible characters;
a page's own policy (CSP) lets it neither fetch nor run anything but the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from loadtest import resources
from loadtest.errors import RecordError
from loadtest.report import cells as views
from loadtest.report import checklist, comparison, decision, formatting, index, tables
from loadtest.report.comparison import Side
from loadtest.report.formatting import Json
from loadtest.report.plots import catalogue
from loadtest.report.plots.figure import VARIABLES, Drawing, Key, draw

GROUPS = (
    (
        "speed",
        "How fast",
        ("tokens-per-s-total", "tokens-per-s-per-user", "ttft", "time-to-first-answer", "time-to-final-answer"),
    ),
    ("comparison", "One runtime against the other", ("ratios", "why", "pareto", "roofline")),
    ("time", "Where the time goes", ("where-the-time-goes", "survival", "token-gaps")),
    ("inside", "What happened inside", ("server", "timeline")),
)


def build(metrics: Json, manifest: Json, engines: Mapping[str, Json]) -> str:
    """The page of one run as one string of HTML. Pure: same input, same page."""
    return _run_page(metrics, manifest, engines, catalogue.draw_all(metrics))


def write(metrics: Json, manifest: Json, engines: Mapping[str, Json], out_html: Path, plots_dir: Path) -> None:
    """Write the page of one run, and its figures as SVG and PNG into `plots_dir`. Raises `RecordError` if it cannot."""
    drawings = catalogue.draw_all(metrics)
    _save(_run_page(metrics, manifest, engines, drawings), drawings, out_html, plots_dir)


def build_comparison(sides: tuple[Side, ...]) -> str:
    """The page of two or more runs, the baseline first."""
    return _comparison_page(sides, _drawn(sides))


def write_comparison(sides: tuple[Side, ...], out_html: Path, plots_dir: Path) -> None:
    """Write the comparison page and its figures. Raises `RecordError` where the disk refuses."""
    drawings = _drawn(sides)
    _save(_comparison_page(sides, drawings), drawings, out_html, plots_dir)


def build_index(folder: str, entries: list[index.Entry]) -> str:
    """The index page of a folder of runs."""
    rows = index.rows(entries)
    return _render("index.html.j2", title=f"Runs in {formatting.clean(folder)}", simulated=False, rows=rows)


def write_index(folder: str, entries: list[index.Entry], out_html: Path) -> None:
    """Write the index page. Raises `RecordError` where the disk refuses."""
    _save(build_index(folder, entries), (), out_html, None)


def _save(page: str, drawings: Iterable[Drawing], out_html: Path, plots_dir: Path | None) -> None:
    try:
        out_html.parent.mkdir(parents=True, exist_ok=True)
        if plots_dir is not None:
            plots_dir.mkdir(parents=True, exist_ok=True)
            for drawing in drawings:
                (plots_dir / f"{drawing.figure.name}.svg").write_bytes(drawing.svg)
                (plots_dir / f"{drawing.figure.name}.png").write_bytes(drawing.png())
        out_html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{error.filename or out_html}: cannot write the report: {error.strerror}") from error


def _render(template: str, **values: Any) -> str:
    folder = resources.path("reports/templates/page.html.j2").parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["swatch"] = swatch
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        **values,
    )


# One run -------------------------------------------------------------------------------------------------------------


def _run_page(metrics: Json, manifest: Json, engines: Mapping[str, Json], drawings: tuple[Drawing, ...]) -> str:
    cells = views.cells(metrics)
    return _render(
        "page.html.j2",
        **_first_screen(metrics, manifest, engines),
        groups=_grouped({drawing.figure.name: drawing for drawing in drawings}),
        findings=tables.findings(metrics),
        summary=tables.summary(cells, metrics, manifest),
        levels=tables.levels(cells),
        troubles=tables.troubles(cells),
        doubts=checklist.health_reasons(metrics, "windows"),
        cells=tables.cells(cells, engines),
        chosen=[cell.name for cell in cells] if len(cells) > 1 else [],
        fits=tables.fits(cells),
        contract=tables.contract(manifest, cells, engines),
        environment=tables.environment(manifest),
        commands=tables.commands(manifest, engines),
        definitions=tables.DEFINITIONS,
    )


def _first_screen(metrics: Json, manifest: Json, engines: Mapping[str, Json]) -> dict[str, Any]:
    simulated = decision.simulated(metrics)
    question = decision.question(metrics, manifest)
    return {
        "simulated": simulated,
        "title": f"{'Simulated: ' if simulated else ''}{question}",
        "question": question,
        "facts": _facts(metrics, manifest),
        "lines": decision.lines(metrics, manifest),
        "not_measured": checklist.not_measured(metrics, manifest),
        "clock_speed": formatting.finite(formatting.section(metrics, "run").get("clock_speed")) or 1.0,
        "clock_error": checklist.clock_error(metrics),
        "health": _health(metrics, manifest, engines),
    }


def _health(metrics: Json, manifest: Json, engines: Mapping[str, Json]) -> dict[str, Any]:
    """The gates of one run, and which of three headings they give it."""
    checks = checklist.checks(metrics, manifest, engines)
    states = {check.state for check in checks}
    state = "failed" if "fail" in states else "sound" if states <= {"pass", "none"} else "open"
    return {"checks": checks, "state": state, "reasons": checklist.health_reasons(metrics)}


def _facts(metrics: Json, manifest: Json) -> tuple[str, ...]:
    run = formatting.section(metrics, "run")
    workload = run.get("workload") or manifest.get("workload") or ""
    name = workload.get("source") or workload.get("name") if isinstance(workload, Mapping) else workload
    mode = run.get("mode") or manifest.get("mode")
    facts = (
        formatting.clean(run.get("name") or manifest.get("name") or ""),
        f"run {formatting.clean(metrics.get('run_id') or run.get('id') or '?')}",
        index.when(manifest.get("started_unix_s")),
        f"workload {formatting.clean(name)}" if name else "",
        f"{formatting.clean(mode)} mode" if mode else "",
    )
    return tuple(fact for fact in facts if fact)


def _grouped(drawings: dict[str, Drawing]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    groups = [(anchor, title, [_shown(drawings[n]) for n in names if n in drawings]) for anchor, title, names in GROUPS]
    return [
        (anchor, title if anchor != "comparison" or "ratios" in drawings else "Trade-offs", shown)
        for anchor, title, shown in groups
        if shown
    ]


# Several runs --------------------------------------------------------------------------------------------------------


def _drawn(sides: tuple[Side, ...]) -> tuple[Drawing, ...]:
    return tuple(draw(figure) for figure in comparison.figures(sides))


def _comparison_page(sides: tuple[Side, ...], drawings: tuple[Drawing, ...]) -> str:
    simulated = any(decision.simulated(side.metrics) for side in sides)
    names = comparison.labels(sides)
    compared = [(name, side, comparison.rows(sides[0], side)) for name, side in zip(names[1:], sides[1:], strict=True)]
    shown = [formatting.clean(side.name) for side in sides]
    runs: list[dict[str, Any]] = [
        {
            "label": label,
            "name": name,
            "facts": _facts(side.metrics, side.manifest),
            "health": _health(side.metrics, side.manifest, {}),
        }
        for label, name, side in zip(names, shown, sides, strict=True)
    ]
    question = f"What changed from {shown[0]} to {' and '.join(shown[1:])}?"
    return _render(
        "comparison.html.j2",
        simulated=simulated,
        title=f"{'Simulated: ' if simulated else ''}{question}",
        question=question,
        runs=runs,
        failed=[run for run in runs if run["health"]["state"] == "failed"],
        decisions=[(name, formatting.clean(side.name), comparison.lines(side, rows)) for name, side, rows in compared],
        different=comparison.differences(sides),
        left=[formatting.clean(one) for side in sides[1:] for one in side.comparison.get("not_compared") or ()],
        groups=_by_side(drawings),
        commands=[
            tables.Command(f"{name}: {one.title}", one.text)
            for name, side in zip(names, sides, strict=True)
            for one in tables.commands(side.manifest, {})
        ],
        definitions=tables.DEFINITIONS,
    )  # fmt: skip


def _by_side(drawings: tuple[Drawing, ...]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """The figures of differences, then those that put all runs on one scale."""
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for drawing in drawings:
        found[drawing.figure.name.startswith(("ratios", "why"))].append(_shown(drawing))
    titles = ((True, "ratios", "Candidate against baseline"), (False, "scale", "All runs on one scale"))
    return [(anchor, title, found[of]) for of, anchor, title in titles if found[of]]


# Figures in a page ---------------------------------------------------------------------------------------------------


def _shown(drawing: Drawing) -> dict[str, Any]:
    """What the template needs of a figure; the drawing is ours, so it alone goes in unescaped."""
    return {
        "figure": drawing.figure,
        "inner": Markup(drawing.inner),
        "boxes": drawing.boxes,
        "kind": _kind(drawing),
    }


def _kind(drawing: Drawing) -> str:
    """How the panels are laid out: one, two or three columns where the screen is wide enough."""
    columns = min(drawing.figure.columns, len(drawing.boxes))
    return {1: "one", 2: "two"}.get(columns, "three")


def swatch(key: Key) -> Markup:
    """The sample before a legend's words, as a small SVG."""
    colour = f"var({VARIABLES[key.look.colour]})"
    if key.kind == "box":
        body = Markup('<rect x="3" y="2" width="22" height="10" rx="1" fill="{}" fill-opacity="{}"/>').format(
            colour, key.look.share
        )
        return _SWATCH.format(body)
    dashes = {"-": "", "--": "5 3", ":": "2 2"}.get(key.look.dash)
    line = Markup("")
    if dashes is not None:
        line = Markup('<path d="M1 7H27" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(colour, dashes)
    fill = "var(--card)" if key.hollow else colour
    mark = Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="1.4"/>').format(
        _SHAPES.get(key.look.marker, ""), fill, colour
    )
    return _SWATCH.format(line + mark)


_SWATCH = Markup('<svg class="swatch" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true">{}</svg>')
_SHAPES = {
    "o": "M14 3.4a3.6 3.6 0 1 0 .01 0z",
    "s": "M10.6 3.6h6.8v6.8h-6.8z",
    "^": "M14 3l4 7.4h-8z",
    "D": "M14 2.4l4.4 4.6-4.4 4.6-4.4-4.6z",
    "v": "M14 11l4-7.4h-8z",
    "P": "M12.6 3h2.8v2.6h2.6v2.8h-2.6V11h-2.8V8.4H10V5.6h2.6z",
    "X": "M11 3l3 2.6L17 3l1.4 1.6L15.8 7l2.6 2.4L17 11l-3-2.6L11 11 9.6 9.4 12.2 7 9.6 4.6z",
    "*": "M14 2.4l1.3 3 3.3.3-2.5 2.1.8 3.2L14 9.3 11.1 11l.8-3.2-2.5-2.1 3.3-.3z",
}
