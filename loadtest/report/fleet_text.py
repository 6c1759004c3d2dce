"""A plan of fleets as plain text: the sizes as a table, then the peak, the losses and what would make it firmer."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.analysis.decisions import FleetEnds, FleetLoss, FleetOption, FleetPlan, PeakFigure
from loadtest.report.formatting import DASH, count, number


def fleet_text(found: FleetPlan) -> str:
    """The answer for a terminal; SIMULATED or PREDICTED where speeds are no measurements."""
    text = [*_asked(found), "", *_columns([_HEAD, *(_row(one, found) for one in found.options)]), ""]
    for one in found.options:
        text += _notes(one)
    text += [f"DOUBTFUL: {one}" for one in found.doubts]
    return "\n".join(text).rstrip()


_HEAD = ("", "cell", "router", "replicas", "GPUs", "cost of a day", "1,000 answers", "limit")


def source_word(found: FleetPlan) -> str:
    """Where the speed of a replica comes from."""
    return "PREDICTED" if found.source == "performance model" else "SIMULATED" if found.simulated else "measured"


def _asked(found: FleetPlan) -> list[str]:
    line = (
        f"{found.requests_per_day:,.0f} requests a day, {found.peak_requests_per_hour:,.0f} in the peak hour"
        f" ({found.peak_factor:g} x the mean)"
    )
    if found.think_time_s is not None:
        line += f"; {found.requests_per_session:g} a session, {found.think_time_s:g} s of thought between them"
    return [
        f"{line}; within {', '.join(found.slo)}; by {found.source} ({source_word(found)})",
        "replicas: at the likely speed [at the careful end of its interval]; the fleet is simulated",
    ]


def _row(one: FleetOption, found: FleetPlan) -> tuple[str, ...]:
    most = "at most " if one.at_most else ""
    figures = [most * (ends.likely is not None) + _counts(ends) for ends in (one.replicas, one.cards)]
    return (
        source_word(found),
        one.cell,
        one.router,
        *figures,
        _with_careful(one.cost_per_day),
        _with_careful(one.cost_per_1000_answers),
        one.binds or "",
    )


def _counts(ends: FleetEnds) -> str:
    if ends.likely is None:
        return DASH
    return f"{count(ends.likely)} [{'?' if ends.careful is None else count(ends.careful)}]"


def _with_careful(ends: FleetEnds) -> str:
    if ends.likely is None:
        return DASH
    return f"{number(ends.likely)} [{'?' if ends.careful is None else number(ends.careful)}]"


def _notes(one: FleetOption) -> list[str]:
    where = f"{one.cell}, {one.router}"
    text = [f"{where}: {one.reason}"] if one.reason else []
    if one.at_most and one.cards.likely is not None:
        text.append(
            f"{where}: at most {count(one.cards.likely)} GPUs, as no replica is given more than the {one.known_streams}"
            f" users that were measured; {one.next_measurement}"
        )
    if one.losses:
        text.append(f"{where}: at the peak {figures_text(one.peak)}")
    return text + [_loss_line(where, loss) for loss in one.losses]


def _loss_line(where: str, loss: FleetLoss) -> str:
    what = "one replica" if loss.lost == 1 else f"a zone of {loss.lost} replicas"
    return f"{where}: {what} lost at the peak, next quarter of an hour: {figures_text(loss.peak)}"


def figures_text(figures: Sequence[PeakFigure]) -> str:
    """`ttft_s:p90<2 is 1.2, time_to_final_answer_s:p90<120 is 130 (not met)`."""
    words = (
        f"{one.slo} is {'over an hour' if one.value is None else number(one.value)}{'' if one.met else ' (not met)'}"
        for one in figures
    )
    return ", ".join(words)


def _columns(body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in body]
