"""The decision as plain text, for the end of a run: compact, aligned, no wider than the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from loadtest.analysis.decisions import CapacityOption, CapacityPlan, GateReport, RunComparison
from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import Binding, Comparison, Metrics, PairDecision
from loadtest.records.manifest import Manifest
from loadtest.report.cells import cells_of
from loadtest.report.checklist import clock_error_words, failure_lines, gate_checks, not_measured
from loadtest.report.decision import decision_lines
from loadtest.report.formatting import DASH, count, number
from loadtest.report.tables import TableColumn, level_columns
from loadtest.report.verdicts import Named, evidence

SIMULATED = "SIMULATED: these figures are predictions"
UNKNOWN_TERMINAL, WIDEST = (100, 24), 120


# One run -------------------------------------------------------------------------------------------------------------


def decision_text(metrics: Metrics, manifest: Manifest, columns: int | None = None) -> str:
    """A line for each level, then the verdict and what is missing; `columns` wide (default: the terminal, at most 120)."""
    columns = min(columns or shutil.get_terminal_size(UNKNOWN_TERMINAL).columns, WIDEST)
    text = [*_warnings(metrics, manifest), *_aligned(_level_rows(metrics), columns), ""]
    text += [f"{line.asks}: {line.answer}. {line.because}" for line in decision_lines(metrics, manifest)]
    text += [f"Not measured: {one}" for one in not_measured(metrics, manifest)]
    return "\n".join(_wrapped(line, columns) for line in text)


def _level_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    cells = cells_of(metrics)
    chosen = level_columns(cells)[:4]
    short = ("tokens/s", "per user", "TTFT s", "answer s")
    rows = [("cell", "concurrency", "n", *map(_head, short, chosen))]
    for cell in cells:
        for level in cell.levels:
            figures = [number(level.estimate(one.metric, one.statistic).value) for one in chosen]
            rows.append((cell.id, count(level.concurrency), count(level.n_requests), *figures))
        if not cell.levels:
            rows.append((cell.id, DASH, "0", cell.figures.status or "not measured", "", "", ""))
    return rows


def _head(title: str, column: TableColumn) -> str:
    return f"{title} mean" if column.statistic == "mean" else title


def _warnings(metrics: Metrics, manifest: Manifest) -> list[str]:
    checks = gate_checks(metrics, manifest)
    text = [SIMULATED] if metrics.simulated else []
    if error := clock_error_words(metrics):
        source = "Simulator speed-up error" if metrics.run.clock_speed != 1 else "Simulator timing error"
        text.append(f"{source}: {error}")
    text += [f"DO NOT RELY ON THIS RUN. {check.name} FAIL: {check.words}" for check in checks if check.state == "fail"]
    text += [f"{check.name}: {check.words}" for check in checks if check.name == "Token counts"]
    text += failure_lines(metrics)
    return [*text, ""] if text else []


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
        name, str(row.concurrency), row.metric, number_text(row.ratio.value), _interval(row.ratio, 3), verdict,
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
    share = f"{number_text(tokens.ratio.value, 3)} of the baseline's ({_interval(tokens.ratio, 3)})"
    return f"; outputs have {tokens.verdict} tokens: {share}"


def ratio_text(row: Comparison) -> str:
    return f"{number_text(row.ratio.value, 3)} (95 % CI {_interval(row.ratio, 3)})"


# A gate, a plan ------------------------------------------------------------------------------------------------------


def gate_text(found: GateReport) -> str:
    text = [SIMULATED, ""] if found.simulated else []
    rows = [("cell", "concurrency", "required", "measured", "95 % CI", "result")]
    for row in found.rows:
        needs = f" (needs {row.n_needed} requests)" if row.n_needed else ""
        interval = _interval(Bounded(row.value, row.ci95), 4)
        rows.append((row.cell, str(row.concurrency), row.slo, number_text(row.value), interval, f"{row.result}{needs}"))
    text += _left_aligned(rows) if found.rows else []
    text += [f"not measured: {one}" for one in found.unmeasured]
    text += [f"DOUBTFUL: {one}" for one in found.unhealthy]
    return "\n".join(text)


_LIMITS: dict[Binding | None, str] = {"slo": "SLO", "kv_cache": "KV cache", "not_reached": "none reached", None: "-"}


def options_text(found: CapacityPlan) -> str:
    predicted = found.source == "performance model"
    source = "PREDICTED" if predicted else "SIMULATED" if found.simulated else "measured"
    text = [f"{_demand(found)} within {', '.join(found.slo)}, {found.headroom:.0%} of each replica kept free; source: "
            f"{found.source} ({source})"]  # fmt: skip
    if predicted:
        text.append("intervals: variation between requests, without the error of the model (docs/performance-model.md)")
    head = ("", "cell", "concurrency", "replicas", "GPUs", "1,000 answers", "1M tokens", "J/answer", "limit")
    text += ["", *_left_aligned([head, *(_option_row(row, predicted=predicted) for row in found.options)]), ""]
    text += [f"{row.cell}: {row.reason}" for row in found.options if row.reason]
    text += [f"DOUBTFUL: {one}" for one in found.doubts]
    return "\n".join(text).rstrip()


def _demand(found: CapacityPlan) -> str:
    return f"{found.users} users" if found.users else f"{found.answers_per_hour or 0:g} answers an hour"


def _option_row(row: CapacityOption, *, predicted: bool) -> tuple[str, ...]:
    source = "PREDICTED" if predicted else "SIMULATED" if row.simulated else "measured"
    figures = (
        row.streams_per_replica, row.replicas, row.cards, row.cost_per_1000_answers, row.cost_per_million_output_tokens,
    )  # fmt: skip
    limit = _LIMITS[row.limit] + (f" {row.binds}" if row.binds else "")
    return source, row.cell, *map(_with_ends, figures), number_text(row.joules_per_answer.value), limit


def _with_ends(figure: Bounded) -> str:
    """A figure with its interval; an end that nothing bounds is a question mark."""
    if figure.value is None:
        return "-"
    known = figure.low is not None or figure.high is not None
    ends = f" [{_end(figure.low)}, {_end(figure.high)}]" if known else ""
    return f"{number_text(figure.value)}{ends}"


def _end(value: float | None) -> str:
    return "?" if value is None else number_text(value)


def number_text(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _interval(of: Bounded, digits: int) -> str:
    return "-" if of.low is None or of.high is None else f"{of.low:.{digits}g} to {of.high:.{digits}g}"


# Layout --------------------------------------------------------------------------------------------------------------


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, columns, subsequent_indent="  ") if len(line) > columns else line


def _left_aligned(body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in body]


def _aligned(body: Sequence[tuple[str, ...]], columns: int) -> list[str]:
    """The rows with their columns aligned; a first column that is too wide is cut in its middle."""
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    widths[0] = max(8, min(widths[0], columns - sum(width + 2 for width in widths[1:])))
    lines = []
    for first, *rest in body:
        cells = [_cut(first, widths[0]).ljust(widths[0]), *(t.rjust(w) for t, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    """
    >>> _cut("sglang_qwq-32b-awq_tp1", 12)
    'sglan…wq_tp1'
    """
    if len(text) <= width:
        return text
    return f"{text[: (width - 1) // 2]}…{text[len(text) - width // 2 :]}"
