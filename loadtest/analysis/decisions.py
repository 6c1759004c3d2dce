"""What `compare`, `check` and `plan` print with `--json`: judgements made from metrics, never written into a run."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.level_schema import SloResult
from loadtest.metrics.schema import Binding, Comparison, PairDecision
from loadtest.records.schema import about


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate run (a) against a baseline (b)."""

    baseline: Annotated[str | None, about("Its run id.")]
    candidate: Annotated[str | None, about("Its run id.")]
    simulated: Annotated[bool, about("Either run is simulated.")]
    tolerance: Annotated[float, about("A share: 0.05 lets a metric be 5 % worse.")]
    allowed: Annotated[tuple[str, ...], about("Keys in which they differ or may differ.")]
    decisions: Annotated[tuple[PairDecision, ...], about("Which side of each pair is faster, over its levels.")]
    comparisons: tuple[Comparison, ...]
    regressions: Annotated[tuple[Comparison, ...], about("Slower, with the whole interval worse than the tolerance.")]
    slower: Annotated[tuple[PairDecision, ...], about("Composed decisions: slower, likewise beyond the tolerance.")] = ()
    not_compared: Annotated[tuple[str, ...], about("Cells and levels without a partner, and doubts about either run.")]


class GateRow(SloResult, frozen=True, kw_only=True):
    """One requirement of `check` at one level of one cell."""

    cell: Annotated[str, about("Its id.")]
    concurrency: Annotated[int, about("Requests in flight at once.")]
    simulated: Annotated[bool, about("The figure is a prediction.")]
    result: Annotated[
        Literal["met", "not met", "not shown"], about("`not shown`: the interval holds the limit, or is missing.")
    ]


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Does a run meet what is required?"""

    met: Annotated[bool, about("Every row is met, nothing is unmeasured, and no doubt that was not allowed.")]
    rows: tuple[GateRow, ...]
    unhealthy: Annotated[tuple[str, ...], about("What makes the figures doubtful.")]
    unmeasured: Annotated[tuple[str, ...], about("Cells that should have had a level.")]
    run_id: Annotated[str | None, about("The run.")]
    simulated: Annotated[bool, about("Some figure is a prediction.")]


class Cost(Bounded, frozen=True, omit_defaults=True):
    """A cost in the currency of the price, from the hopeful to the careful end; an end that nothing bounds is None."""

    reason: Annotated[str | None, about("Why it is not known. Left out where it is.")] = None


class UserFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What users see of an option with the likely number of replicas; None: no level and no arithmetic tells."""

    ttft_p90_s: Annotated[float | None, about("p90 of the time to first token.")]
    answer_p50_s: Annotated[float | None, about("Median time to final answer.")]
    answer_p90_s: Annotated[float | None, about("p90 of it.")]
    tokens_per_s_per_user: Annotated[float | None, about("Median.")]
    output_tokens_per_s: Annotated[float | None, about("Of all replicas together.")]
    by: Annotated[
        Literal["levels", "levels and closed form", "closed form", "composed", "simulated peak"],
        about("Where they come from; `composed`: the closed form at speeds that bursts showed."),
    ]


class CapacityOption(msgspec.Struct, frozen=True, kw_only=True):
    """One cell as a way to meet a demand. Figures: by the level that `maximum_concurrency` names, and by both its ends."""

    engine: Annotated[str, about("As of the cell.")]
    model: Annotated[str | None, about("As of the cell.")]
    tp: Annotated[int | None, about("GPUs of one replica.")]
    gpu: Annotated[str | None, about("As of the cell.")]
    simulated: Annotated[bool, about("Its figures are predictions.")]
    cell: Annotated[str, about("Its id.")]
    streams_per_replica: Annotated[Bounded, about("Requests at once that one replica holds: `by_slo` and its ends.")]
    limit: Annotated[Binding | None, about("As of `maximum_concurrency`.")]
    binds: Annotated[str | None, about("The SLO that breaks first.")]
    streams_by_kv_cache: Annotated[Bounded, about("`by_kv_workload` of the cell.")]
    replicas: Annotated[Bounded, about("ceil(demand / (what one holds x (1 - headroom))).")]
    cards: Annotated[Bounded, about("GPUs: replicas x `tp`.")]
    cost_per_hour: Annotated[Cost, about("GPUs x price.")]
    cost_per_1000_answers: Annotated[Cost, about("Of the answers that were asked for.")]
    cost_per_million_output_tokens: Annotated[Cost, about("Likewise.")]
    joules_per_answer: Annotated[Estimate, about("Of the level, as it was measured.")]
    seen: Annotated[UserFigures | None, about("At the requests in flight that each replica gets; None: it holds nothing.")]
    estimated: Annotated[bool, about("By the closed form alone: another cell of the model needs fewer GPUs.")]
    at_most: Annotated[bool, about("No higher concurrency was tried: the replicas are an upper bound.")]
    next_measurement: Annotated[str | None, about("What to measure for a firmer answer.")]
    reason: Annotated[str | None, about("Why it holds nothing.")]
    composed: Annotated[bool, about("Its speeds are composed of bursts: few or no answers were waited for.")] = False


class CapacityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Every option: model by model, and of each model the cheapest first."""

    source: Annotated[str, about("`performance model`, or the run.")]
    simulated: Annotated[bool, about("Its figures are predictions.")]
    slo: Annotated[tuple[str, ...], about("What every replica must hold.")]
    users: Annotated[int | None, about("Requests in flight at any time; None: `answers_per_hour` was asked for.")]
    answers_per_hour: Annotated[float | None, about("Answers per hour; None: `users` were asked for.")]
    headroom: Annotated[float, about("Share of each replica that is kept free.")]
    gpu_hour_price: Annotated[float | None, about("Price of one GPU for an hour; None: not given.")]
    currency: Annotated[str | None, about("Of the study's price; None where another was given.")]
    options: tuple[CapacityOption, ...]
    doubts: Annotated[tuple[str, ...], about("As `health.reasons` of the run.")]


class FleetEnds(msgspec.Struct, frozen=True):
    """A figure of a fleet as measured, and at the careful ends of its intervals in each of three simulated peaks."""

    likely: Annotated[float | None, about("None where no number of replicas holds the SLOs, or no price was given.")]
    careful: Annotated[float | None, about("None also where the speed or the mean output has no interval.")]


class PeakFigure(msgspec.Struct, frozen=True):
    """What the requests of the peak hour see of one SLO."""

    slo: Annotated[str, about("The SLO as it was given.")]
    value: Annotated[float | None, about("The figure that it limits; None: longer than the simulation waited.")]
    met: Annotated[bool, about("What the figure says.")]


class FleetSize(msgspec.Struct, frozen=True, kw_only=True):
    """A number of replicas that was simulated over the peak hour, at the likely speed."""

    replicas: int
    peak: Annotated[tuple[PeakFigure, ...], about("One for each SLO.")]


class FleetLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas lost at the daily peak. What they had in flight is sent again; nothing is added for them."""

    lost: Annotated[int, about("Replicas; of the largest of three zones otherwise.")]
    peak: Annotated[tuple[PeakFigure, ...], about("Of the requests of the next quarter of an hour.")]


class FleetOption(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of one cell behind one router."""

    engine: Annotated[str, about("As of the cell.")]
    model: Annotated[str | None, about("As of the cell.")]
    tp: Annotated[int | None, about("GPUs of one replica.")]
    gpu: Annotated[str | None, about("As of the cell.")]
    simulated: Annotated[bool, about("Its speed is a prediction.")]
    cell: Annotated[str, about("Its id.")]
    router: Annotated[str, about("`random`, `round-robin` or `least-loaded`.")]
    replicas: Annotated[FleetEnds, about("Fewest that meet every SLO at the daily peak, the headroom added.")]
    cards: Annotated[FleetEnds, about("GPUs: replicas x `tp`.")]
    cost_per_day: Annotated[FleetEnds, about("GPUs x 24 x price.")]
    cost_per_1000_answers: Annotated[FleetEnds, about("Cost of a day over the requests of a day.")]
    peak: Annotated[tuple[PeakFigure, ...], about("What is seen with the likely number, before headroom.")]
    seen: Annotated[UserFigures | None, about("At the peak, with the likely number, before headroom.")]
    estimated: Annotated[
        bool, about("By the closed form, scaled by what the simulation made of it for the best cell of the model.")
    ]
    losses: Annotated[
        tuple[FleetLoss, ...], about("One replica, then a zone, of `replicas`; of the cheapest cell of the first model.")
    ]
    tried: Annotated[tuple[FleetSize, ...], about("Every size simulated at the likely speed.")]
    binds: Annotated[str | None, about("The SLO that the next smaller size breaks.")]
    known_streams: Annotated[int | None, about("Highest concurrency measured: no replica is given more. None: no limit.")]
    at_most: Annotated[bool, about("That limit may cost replicas: they are an upper bound.")]
    next_measurement: Annotated[str | None, about("What to measure for a firmer answer.")]
    reason: Annotated[str | None, about("Why it holds nothing.")]
    composed: Annotated[bool, about("As of a plan of requests in flight.")] = False


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Every cell behind every router asked for: model by model, and of each model the fewest GPUs first."""

    source: Annotated[str, about("`performance model`, or the run.")]
    simulated: Annotated[bool, about("Its speeds are predictions. The fleet is simulated in any case.")]
    slo: Annotated[tuple[str, ...], about("What the requests of the peak hour must see.")]
    users: Annotated[float | None, about("Users at work at once, who think between requests; None: requests arrive.")] = None
    requests_per_day: Annotated[
        float, about("Of a mean day; of users at work: if they were so all day, by the first option.")
    ]
    peak_requests_per_hour: float
    peak_factor: Annotated[float, about("Highest rate of the day over its mean.")]
    requests_per_session: float
    think_time_s: Annotated[float | None, about("Mean, between an answer and the next request; None: single requests.")]
    headroom: Annotated[float, about("Share of the replicas that is added on top.")]
    gpu_hour_price: Annotated[float | None, about("Price of one GPU for an hour; None: not given.")]
    currency: Annotated[str | None, about("Of the study's price; None where another was given.")]
    options: tuple[FleetOption, ...]
    doubts: Annotated[tuple[str, ...], about("`health.reasons` of the run, and levels too short for saturation.")]
