"""The decision as plain text, for the end of a run: compact, aligned, no wider than the terminal."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from loadtest.analysis.decisions import GateReport, RunComparison
from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.schema import Comparison, Metrics, PairDecision
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.manifest import Manifest
from loadtest.report.cells import ShownCell, by_level, cells_of, load_title, typical_statistic
from loadtest.report.checklist import NO_ENGINES, THIS_RUN, clock_error_words, failure_lines, gate_checks
from loadtest.report.composed import composed_lines
from loadtest.report.decision import SERVER, decision_lines, rate_of
from loadtest.report.formatting import clean, count, needs, number
from loadtest.report.imported import imported_words
from loadtest.report.search import search_text
from loadtest.report.tables import level_notes
from loadtest.report.verdicts import Named, evidence

SIMULATED = "SIMULATED: these figures are predictions"
UNKNOWN_TERMINAL, WIDEST = (100, 24), 120


# One run -------------------------------------------------------------------------------------------------------------


def decision_text(
    metrics: Metrics,
    manifest: Manifest,
    columns: int | None = None,
    engines: Mapping[str, EngineFacts] = NO_ENGINES,
) -> str:
    """A row for each level, then the verdict and what is missing; `columns` wide (default: the terminal, at most 120)."""
    columns = min(columns or shutil.get_terminal_size(UNKNOWN_TERMINAL).columns, WIDEST)
    levels = _levels(metrics, columns, "run_tokens_per_s" if manifest.open_loop else _TOTAL)
    text = [*_duel(metrics, manifest), *_warnings(metrics, manifest, engines), *_open_loop(metrics, manifest), *levels]
    text += [*composed_lines(cells_of(metrics)), "", *search_text(metrics.searches)]
    body = [_wrapped(line, columns) for line in text]
    return "\n".join([*body, *_verdict(metrics, manifest, columns), *_missing(metrics, manifest, columns)])


def _open_loop(metrics: Metrics, manifest: Manifest) -> list[str]:
    if not manifest.open_loop:
        return []
    if metrics.searches:
        return ["Open loop: Poisson arrivals", ""]
    return [f"Open loop: {rate_of(manifest)}; concurrency is the most in flight, total tokens/s those of the whole run", ""]


def _duel(metrics: Metrics, manifest: Manifest) -> list[str]:
    """The verdict of a duel, which stands first; nothing of other runs."""
    return [f"{line.answer}." for line in decision_lines(metrics, manifest) if line.asks == SERVER]


def _levels(metrics: Metrics, columns: int, total: str) -> list[str]:
    """The levels under the name of their cell, and a line for each kind of figure that is not there."""
    cells = cells_of(metrics)
    speed = typical_statistic(cells, _SPEED)
    quantiles = _shown_quantiles(cells)
    rows = {cell.id: [_level_row(cell, level, quantiles, speed, total) for level in cell.levels] for cell in cells}
    head = (load_title(cells), "n", *quantiles, *quantiles, "per user", "total", "failed")
    widths = [max(map(len, column)) for column in zip(head, *(row for of in rows.values() for row in of), strict=True)]
    if len(quantiles) == 1:
        widths[2:4] = [max(len(title), width) for title, width in zip(_WAIT_TITLES, widths[2:4], strict=True)]
    table = [*_group_heads(widths, len(quantiles)), _row(head, widths, len(quantiles))]
    for cell in cells:
        table.append(_cut(cell.id if cell.levels else f"{cell.id}: {cell.status}", columns))
        table += [_row(row, widths, len(quantiles)) for row in rows[cell.id]]
    return [*table, *_notes(cells, rows, quantiles, speed), *_totals_missing(cells, total)] if cells else []


_SPEED, _TOTAL = "tokens_per_s_per_user", "output_tokens_per_s"
_WAITS, _WAIT_TITLES = ("ttft_s", "time_to_final_answer_s"), ("TTFT, s", "final answer, s")
_QUANTILES: tuple[Statistic, ...] = ("p50", "p90", "p99")


def _shown_quantiles(cells: Sequence[ShownCell]) -> tuple[Statistic, ...]:
    """The median, and what any level has requests enough for."""
    levels = [level for cell in cells for level in cell.levels]
    return tuple(q for q in _QUANTILES if q == "p50" or any(one.estimate(w, q).known for one in levels for w in _WAITS))


def _level_row(
    cell: ShownCell, level: LevelFigures, quantiles: tuple[Statistic, ...], speed: Statistic, total: str
) -> tuple[str, ...]:
    times = [level.estimate(metric, one) for metric in _WAITS for one in quantiles]
    figures = [*times, level.estimate(_SPEED, speed), level.estimate(total)]
    failed = None if level.failed_share.value is None else round(level.failed_share.value * level.n_requests)
    return (cell.load(level.concurrency), count(level.n_requests), *map(_figure, figures), count(failed))


def _figure(found: Estimate) -> str:
    """A figure, the n that it needs, or a dash."""
    return number(found.value) if found.known or not needs(found) else f"n≥{found.n_needed}"


def _group_heads(widths: list[int], n_quantiles: int) -> list[str]:
    """What the columns of a group have in common, over their middle."""
    line, first = "", 2
    for title, n in (*((title, n_quantiles) for title in _WAIT_TITLES), ("tokens/s", 2)):
        left, right = (len(_row(("",) * end, widths[:end], n_quantiles, keep=True)) for end in (first, first + n))
        line, first = f"{line.ljust(left)}{title.center(right - left)}", first + n
    return [line.rstrip()]


def _row(texts: Sequence[str], widths: list[int], n_quantiles: int, *, keep: bool = False) -> str:
    """Texts under each other; quantiles of one metric close together."""
    starts = (2, 2 + n_quantiles, 2 + 2 * n_quantiles)
    gaps = ["" if i == 0 else " " if starts[0] < i < starts[2] and i not in starts else "  " for i in range(len(texts))]
    line = "".join(f"{gap}{text:>{width}}" for gap, text, width in zip(gaps, texts, widths, strict=True))
    return line if keep else line.rstrip()


def _notes(
    cells: Sequence[ShownCell],
    rows: Mapping[str, list[tuple[str, ...]]],
    quantiles: tuple[Statistic, ...],
    speed: Statistic,
) -> list[str]:
    texts = {text for of in rows.values() for row in of for text in row}
    notes = ["tokens/s per user: mean of the requests"] if speed == "mean" and texts else []
    notes += ["n≥N: the figure needs N requests at its level"] if any(text.startswith("n≥") for text in texts) else []
    return [*notes, *_quantiles_missing(cells, quantiles), *level_notes(cells)]


def _quantiles_missing(cells: Sequence[ShownCell], shown: tuple[Statistic, ...]) -> list[str]:
    """How many requests the quantiles need that no level has."""
    levels = [level for cell in cells for level in cell.levels]
    least = {q: [one.estimate(w, q).n_needed or 0 for one in levels for w in _WAITS] for q in _QUANTILES if q not in shown}
    needed = [f"{quantile} needs {min(n)}" for quantile, n in least.items() if n]
    return [f"{', '.join(needed)} requests of a level"] if needed else []


def _totals_missing(cells: Sequence[ShownCell], total: str) -> list[str]:
    """Each reason why levels have no total tokens/s, with these levels."""
    gone: dict[str, dict[str, list[str]]] = {}
    for cell, level in by_level(cells):
        found = level.estimate(total)
        if not found.known and found.reason:
            gone.setdefault(clean(found.reason), {}).setdefault(cell.id, []).append(cell.load(level.concurrency))
    places = {why: "; ".join(f"{cell} at {', '.join(at)}" for cell, at in of.items()) for why, of in gone.items()}
    return [f"no total tokens/s: {why} ({where})" for why, where in places.items()]


def _warnings(metrics: Metrics, manifest: Manifest, engines: Mapping[str, EngineFacts]) -> list[str]:
    checks = gate_checks(metrics, manifest, engines)
    text = [SIMULATED] if metrics.simulated else []
    if metrics.run.imported is not None:
        text.append(f"IMPORTED: {imported_words(metrics.run.imported)}")
    if error := clock_error_words(metrics):
        source = "Simulator speed-up error" if metrics.run.clock_speed != 1 else "Simulator timing error"
        text.append(f"{source}: {error}")
    for check in checks:
        if check.state == "fail":
            where = "THIS RUN" if check.where == THIS_RUN else check.where
            text.append(f"DO NOT RELY ON {where}. {check.name} FAIL: {check.words}")
        elif check.name == "Token counts":
            text.append(f"{check.name}: {check.words}")
    text += failure_lines(metrics)
    return [*text, ""] if text else []


VERDICT_LINES = 12


def _verdict(metrics: Metrics, manifest: Manifest, columns: int) -> list[str]:
    """The decision, most important first; where it would take more than twelve lines, the longest reasons are shortened."""
    said = [[f"{line.asks}: {line.answer}.", *_sentences(line.because)] for line in decision_lines(metrics, manifest)]
    wrapped = [_wrapped(" ".join(one), columns).splitlines() for one in said]
    while sum(map(len, wrapped)) > VERDICT_LINES and any(len(one) > 1 for one in said):
        longest = max(range(len(said)), key=lambda i: (min(len(said[i]), 3), len(wrapped[i])))
        said[longest].pop()
        wrapped[longest] = _wrapped(" ".join(said[longest]), columns).splitlines()
    return [line for lines in wrapped for line in lines]


def _sentences(text: str) -> list[str]:
    """
    >>> _sentences("Lowest (95 % CI 0.4 to 0.8): vLLM, 1.5 USD. No SLO was set.")
    ['Lowest (95 % CI 0.4 to 0.8): vLLM, 1.5 USD.', 'No SLO was set.']
    """
    return re.split(r"(?<=\.) (?=[A-Z])", text) if text else []


def _missing(metrics: Metrics, manifest: Manifest, columns: int) -> list[str]:
    """What was not measured, in one line; the page has the reasons."""
    cells = cells_of(metrics)
    empty = [cell for cell in cells if not (cell.levels or cell.figures.composed)]
    asked, n_levels = len(manifest.levels), sum(len(cell.levels) for cell in cells)
    levels = 0 if metrics.run.mode == "decision" else max(0, asked * (len(cells) - len(empty)) - n_levels)
    claims = [row for row in metrics.findings if row.verdict == "not_measured"]
    pairs = [row for row in metrics.comparisons if row.verdict in ("too few samples", "not comparable")]
    states = "/".join(dict.fromkeys(clean(cell.figures.status or "no data") for cell in empty))
    found = [f"{len(empty)} of {len(cells)} cells ({states})"] if empty else []
    found += [f"{levels} level{'' if levels == 1 else 's'}"] if levels else []
    found += [f"{len(pairs)} comparisons (samples)"] if pairs else []
    found += [f"{len(claims)} of {len(metrics.findings)} published claims"] if claims else []
    found += ["real GPUs"] if metrics.simulated else []
    line = f"Not measured: {', '.join(found)}"
    return [_cut(f"{line}; reasons: report.html" if len(line) < columns - 22 else line, columns)] if found else []


# One run against another ---------------------------------------------------------------------------------------------


def comparison_text(found: RunComparison) -> str:
    """The verdicts as a table, and why each time to final answer differs."""
    text = [f"candidate {found.candidate} / baseline {found.baseline}", *([SIMULATED] if found.simulated else [])]
    if found.allowed:
        text.append(f"compared although they differ in {', '.join(found.allowed)}")
    if decisions := [_named(one) for one in found.decisions if one.ratio.known]:
        text += ["", *evidence(decisions)]
    head = ("cell", "concurrency", "metric", "ratio", "95 % CI", "verdict", "detectable")
    text += ["", *_left_aligned([head, *map(_comparison_row, found.comparisons)]), ""]
    text += [line for row in found.comparisons if (line := _why(row))]
    text += [f"not compared: {one}" for one in found.not_compared]
    return "\n".join(text).rstrip()


def _named(one: PairDecision) -> Named:
    return Named(one, "the candidate", "the baseline", one.a if one.a == one.b else f"{one.a} / {one.b}")


def _comparison_row(row: Comparison) -> tuple[str, ...]:
    name = row.a if row.a == row.b else f"{row.a} / {row.b}"
    verdict = row.verdict if row.p_value is not None else f"{row.verdict} ({row.reason})"
    least = row.smallest_detectable_ratio
    return (
        name, str(row.concurrency), row.metric, number_text(row.ratio.value), interval_text(row.ratio, 3), verdict,
        "-" if least is None else f"{least - 1:+.1%}",
    )  # fmt: skip


def _why(row: Comparison) -> str:
    why = row.why
    if why is None or why.difference_s is None:
        return ""
    parts = (
        (why.tokens_thought_s, "tokens thought"), (why.tokens_answered_s, "tokens answered"),
        (why.seconds_per_token_s, "time per token"), (why.waiting_s, "wait for the first token"),
    )  # fmt: skip
    sums = ", ".join(f"{words} {_signed_s(seconds or 0.0)}" for seconds, words in parts)
    lost = f"; {why.reason}" if why.reason else ""
    return (
        f"why, {row.a} at concurrency {row.concurrency}: time to final answer {_signed_s(why.difference_s)} = {sums}{lost}"
        f"{_output_lengths(row)}"
    )


def _signed_s(seconds: float) -> str:
    """With its sign; what only rounding left of nothing is +0."""
    return f"{round(seconds, 9) + 0.0:+.3g} s"


def _output_lengths(row: Comparison) -> str:
    """Said where one side's outputs are shorter: then the engine alone is not what is slower or faster."""
    tokens = row.output_tokens
    if tokens is None or tokens.verdict not in ("fewer", "more"):
        return ""
    share = f"{number_text(tokens.ratio.value, 3)} of the baseline's ({interval_text(tokens.ratio, 3)})"
    return f"; outputs have {tokens.verdict} tokens: {share}"


def ratio_text(row: Comparison) -> str:
    return f"{number_text(row.ratio.value, 3)} (95 % CI {interval_text(row.ratio, 3)})"


# A gate --------------------------------------------------------------------------------------------------------------


def gate_text(found: GateReport) -> str:
    text = [SIMULATED, ""] if found.simulated else []
    rows = [("cell", "concurrency", "required", "measured", "95 % CI", "result")]
    for row in found.rows:
        needs = f" (needs {row.n_needed} requests)" if row.n_needed else ""
        interval = interval_text(Bounded(row.value, row.ci95), 4)
        rows.append((row.cell, str(row.concurrency), row.slo, number_text(row.value), interval, f"{row.result}{needs}"))
    text += _left_aligned(rows) if found.rows else []
    text += [f"not measured: {one}" for one in found.unmeasured]
    text += [f"DOUBTFUL: {one}" for one in found.unhealthy]
    return "\n".join(text)


def number_text(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def interval_text(of: Bounded, digits: int) -> str:
    return "-" if of.low is None or of.high is None else f"{of.low:.{digits}g} to {of.high:.{digits}g}"


# Layout --------------------------------------------------------------------------------------------------------------


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, columns, subsequent_indent="  ") if len(line) > columns else line


def _left_aligned(body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in body]


def _cut(text: str, width: int) -> str:
    """
    >>> _cut("sglang_qwq-32b-awq_tp1", 12)
    'sglang_qwq-…'
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"
