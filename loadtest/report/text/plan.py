"""A plan as plain text: the answer in one line, a table for each model, and what makes it firmer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loadtest.analysis.decisions import (
    CapacityOption,
    CapacityPlan,
    FleetLoss,
    FleetOption,
    FleetPlan,
    PeakFigure,
    UserFigures,
)  # fmt: skip
from loadtest.metrics.schema import Binding
from loadtest.report.cells import FAMILIES
from loadtest.report.decision import slo_words
from loadtest.report.formatting import DASH, count, listed, number

PREDICTION = "performance model"
Option = TypeVar("Option", CapacityOption, FleetOption)


def source_word(found: CapacityPlan | FleetPlan) -> str:
    """Where the speed of a replica comes from."""
    return "PREDICTED" if found.source == PREDICTION else "SIMULATED" if found.simulated else "measured"


@dataclass(frozen=True, slots=True)
class Gpus:
    """How many GPUs: the likely number and the careful one; None where it is not known."""

    likely: float | None
    careful: float | None
    at_most: bool
    estimated: bool

    @property
    def short(self) -> str:
        """For a table: `2 (3)`."""
        if self.likely is None:
            return DASH
        if self.careful is None:
            return f"{self._before}{count(self.likely)}{'' if self.estimated else ' (no bound)'}"
        return f"{self._before}{count(self.likely)} ({count(max(self.careful, self.likely))})"

    @property
    def words(self) -> str:
        """For a sentence.

        >>> Gpus(2, 3, False, False).words, Gpus(1, None, True, False).words
        ('2 GPUs (3 to be safe)', 'at most 1 GPU')
        """
        if self.likely is None:
            return "no number of GPUs"
        text = f"{self._before}{count(self.likely)} GPU{'' if self.likely == 1 else 's'}"
        if self.careful is None:
            return text
        return f"{text} ({count(max(self.careful, self.likely))} to be safe)"

    @property
    def _before(self) -> str:
        return "at most " if self.at_most else "about " if self.estimated else ""


def _gpus(one: CapacityOption | FleetOption) -> Gpus:
    if isinstance(one, FleetOption):
        return Gpus(one.cards.likely, one.cards.careful, one.at_most, one.estimated)
    return Gpus(one.cards.value, one.cards.high, one.at_most, one.estimated)


# Requests in flight --------------------------------------------------------------------------------------------------


_LIMITS: dict[Binding | None, str] = {"slo": "", "kv_cache": "KV cache: ", "not_reached": "none reached", None: ""}


def capacity_text(found: CapacityPlan) -> str:
    """The answer for a terminal: one line, then a table for each model."""
    requests = f"{found.users:,} request{'' if found.users == 1 else 's'} in flight" if found.users else ""
    asked = requests or f"{found.answers_per_hour or 0:,g} answers an hour"
    text = [
        f"{asked} within {', '.join(found.slo)}; {found.headroom:.0%} of each replica kept free; by {found.source}"
        f" ({source_word(found)})",
        f"GPUs: likely (to be safe: {_safe(found)}, and requests spread at random)",
    ]
    head = ("", "cell", "GPUs", "users each", *_SEEN_HEAD, f"{found.currency or 'price'}/h", "per 1,000", "limit")
    text += _by_model([one.model for one in found.options], [head, *(_capacity_row(one, found) for one in found.options)])
    for one in found.options:
        if one.reason:
            text.append(f"{one.cell}: {one.reason}")
        if one.at_most:
            text.append(f"{one.cell}: {_gpus(one).words}, as no SLO broke at the highest level; {one.next_measurement}")
    if any(one.estimated for one in found.options):
        text.append("about: by the closed form; another cell of the model needs fewer GPUs and was simulated")
    answer = _answer(
        asked, found, found.options, lambda one: _money(one.cost_per_hour.value, one.cost_per_hour.high, found, "an hour")
    )
    return _text(answer, found, [*text, *_marks(found.options)])


def _safe(found: CapacityPlan) -> str:
    return "at the slow end of the prediction" if found.source == PREDICTION else "the low ends of the intervals"


def _capacity_row(one: CapacityOption, found: CapacityPlan) -> tuple[str, ...]:
    limit = _LIMITS[one.limit] + (one.binds or "")
    costs = (one.cost_per_hour.value, one.cost_per_1000_answers.value)
    each = one.streams_per_replica.value if one.cards.value is not None else None
    return source_word(found), one.cell, _gpus(one).short, count(each), *_seen(one.seen), *map(number, costs), limit


# A fleet -------------------------------------------------------------------------------------------------------------


def fleet_text(found: FleetPlan) -> str:
    """The answer for a terminal: one line, then a table for each model; SIMULATED or PREDICTED where nothing is measured."""
    text = [
        f"{_demand(found)}; within {', '.join(found.slo)}; by {found.source} ({source_word(found)})",
        "GPUs: likely (to be safe: at the slow end of the speed and the long end of the answers, in each of three peaks)",
    ]
    head = ("", "cell", "router", "GPUs", "replicas", *_SEEN_HEAD, f"{found.currency or 'price'}/day", "per 1,000", "limit")
    text += _by_model([one.model for one in found.options], [head, *(_fleet_row(one, found) for one in found.options)])
    for one in found.options:
        text += _notes(one)
    if any(one.estimated for one in found.options):
        text.append("about: by the closed form, scaled by the simulation of the best cell of the model")
    asked = (
        f"{found.users:,.0f} users who think {found.think_time_s:g} s between requests" if found.users else _arrivals(found)
    )
    answer = _answer(
        asked, found, found.options, lambda one: _money(one.cost_per_day.likely, one.cost_per_day.careful, found, "a day")
    )
    return _text(answer, found, [*text, *_marks(found.options)])


def _arrivals(found: FleetPlan) -> str:
    return f"{found.requests_per_day:,.0f} requests a day ({found.peak_requests_per_hour:,.0f} in the peak hour)"


def _demand(found: FleetPlan) -> str:
    if found.users is not None:
        return (
            f"{found.users:,.0f} users at work at once, {found.think_time_s:g} s of thought between requests: about"
            f" {found.peak_requests_per_hour:,.0f} requests an hour"
        )
    line = (
        f"{found.requests_per_day:,.0f} requests a day, {found.peak_requests_per_hour:,.0f} in the peak hour"
        f" ({found.peak_factor:g} x the mean)"
    )
    if found.think_time_s is not None:
        line += f"; {found.requests_per_session:g} a session, {found.think_time_s:g} s of thought between them"
    return line


def _fleet_row(one: FleetOption, found: FleetPlan) -> tuple[str, ...]:
    costs = (one.cost_per_day.likely, one.cost_per_1000_answers.likely)
    return (
        source_word(found), one.cell, one.router, _gpus(one).short, count(one.replicas.likely), *_seen(one.seen),
        *map(number, costs), one.binds or "",
    )  # fmt: skip


def _notes(one: FleetOption) -> list[str]:
    where = f"{one.cell}, {one.router}"
    text = [f"{where}: {one.reason}"] if one.reason else []
    if one.at_most:
        text.append(
            f"{where}: {_gpus(one).words}, as no replica is given more than the {one.known_streams} users that were"
            f" measured; {one.next_measurement}"
        )
    if one.losses:
        text.append(f"{where}: at the peak {figures_text(one.peak)}")
    return text + [_loss_line(where, loss) for loss in one.losses]


def _loss_line(where: str, loss: FleetLoss) -> str:
    what = "one replica" if loss.lost == 1 else f"a zone of {loss.lost} replicas"
    return f"{where}: {what} lost at the peak, next quarter of an hour: {figures_text(loss.peak)}"


def figures_text(figures: Sequence[PeakFigure]) -> str:
    """`ttft_s:p90<2 is 1.2, time_to_final_answer_s:p90<120 is 130 (not met)`."""
    told = ((one, "over a quarter of an hour" if one.value is None else number(one.value)) for one in figures)
    words = (f"{one.slo} is {value}{'' if one.met else ' (not met)'}" for one, value in told)
    return ", ".join(words)


# Both ----------------------------------------------------------------------------------------------------------------


_SEEN_HEAD = ("TTFT p90 s", "answer p50 s", "p90 s", "tokens/s each", "in all")


def _seen(seen: UserFigures | None) -> tuple[str, ...]:
    if seen is None:
        return (DASH,) * len(_SEEN_HEAD)
    return tuple(
        map(number, (seen.ttft_p90_s, seen.answer_p50_s, seen.answer_p90_s, seen.tokens_per_s_per_user,
                     seen.output_tokens_per_s))
    )  # fmt: skip


def _by_model(models: Sequence[str | None], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table for each model, all of the same widths, and without columns that are empty. The first row is the head."""
    kept = [i for i, _ in enumerate(rows[0]) if any(line[i] not in ("", DASH) for line in rows[1:])]
    widths = {i: max(len(line[i]) for line in rows) for i in kept}
    lines = ["  ".join(line[i].ljust(widths[i]) for i in kept).rstrip() for line in rows]
    different = list(dict.fromkeys(models))
    text = [f"{len(different)} models: choose one with --model"] if len(different) > 1 else []
    for model in different:
        text += ["", *([str(model)] if len(different) > 1 else []), lines[0]]
        text += [line for line, of_model in zip(lines[1:], models, strict=True) if of_model == model]
    return [*text, ""]


def _marks(options: Sequence[CapacityOption] | Sequence[FleetOption]) -> list[str]:
    """What a table's rows leave open."""
    text = []
    if any(not one.estimated and _gpus(one).likely is not None and _gpus(one).careful is None for one in options):
        text.append("no bound: too few requests, prompts or starts for an interval, or its careful end breaks the SLOs")
    composed = [one.cell for one in options if one.composed]
    if composed:
        text.append(f"composed: the speeds of {listed(composed)} are of bursts and their lengths of the natural runs")
    return text


def _text(answer: str, found: CapacityPlan | FleetPlan, evidence: Sequence[str]) -> str:
    doubts = [f"DOUBTFUL: {one}" for one in found.doubts]
    no_price = ["no costs: give the price of a GPU with --gpu-hour-price"] if found.gpu_hour_price is None else []
    return "\n".join([answer, *doubts, "", *evidence, *no_price]).rstrip()


def _money(cost: float | None, careful: float | None, found: CapacityPlan | FleetPlan, per: str) -> str:
    """`34.0 USD an hour (40.0 to be safe)`; empty without a price."""
    if cost is None:
        return ""
    safe = "" if careful is None else f" ({number(max(cost, careful))} to be safe)"
    return f"{' '.join(filter(None, (number(cost), found.currency, per)))}{safe}"


def _answer(asked: str, found: CapacityPlan | FleetPlan, options: Sequence[Option], money: Callable[[Option], str]) -> str:
    """One sentence: the best option of each model; or that none is known, and why the first is not."""
    best = [next(one for one in options if one.model == model) for model in dict.fromkeys(one.model for one in options)]
    held = [one for one in best if _gpus(one).likely is not None]
    slos = listed([slo_words(text) for text in found.slo])
    if not held:
        why = next((f": {one.cell}: {one.reason}" for one in best if one.reason), "")
        return f"No configuration here is known to serve {asked} within {slos}{why}."
    parts = "; ".join(_part(one, options, money(one)) for one in held)
    how = {"PREDICTED": "predicted, not measured", "SIMULATED": "simulated, not measured", "measured": "measured speed"}
    need = "needs" if asked.startswith("1 ") else "need"
    return f"{asked} {need} {parts} ({how[source_word(found)]}; within {slos})."


def _part(one: Option, options: Sequence[Option], money: str) -> str:
    of_gpu = f" {one.gpu.upper()}" if one.gpu else ""
    equal = [
        FAMILIES.get(other.engine.removesuffix("-sim"), other.engine) for other in options if _kind(other) == _kind(one)
    ]
    words = _gpus(one).words.replace(" GPU", f"{of_gpu} GPU", 1)
    fewer = f"{one.next_measurement}, as fewer may do" if one.next_measurement else ""
    told = "; ".join(filter(None, (_waits(one), money, fewer)))
    return f"{words} with {' or '.join(sorted(set(equal)))}, {one.model}{_router(one)}{': ' * bool(told)}{told}"


def _kind(one: CapacityOption | FleetOption) -> tuple[object, ...]:
    """What only engines may differ in, to share a sentence."""
    return one.model, one.tp, one.gpu, _gpus(one).short, _router(one)


def _router(one: CapacityOption | FleetOption) -> str:
    return f", {one.router} router" if isinstance(one, FleetOption) else ""


def _waits(one: CapacityOption | FleetOption) -> str:
    seen = one.seen
    if seen is None or seen.ttft_p90_s is None or seen.answer_p90_s is None:
        return ""
    when = "at the peak " if isinstance(one, FleetOption) else ""
    return (
        f"{when}9 of 10 see the first token in {number(seen.ttft_p90_s)} s and the answer in {number(seen.answer_p90_s)} s"
    )
