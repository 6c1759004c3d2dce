"""One level of one cell in metrics.json: its metrics, and what says whether they can be trusted."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from loadtest.metrics.catalogue import METRICS, REACHED_QUANTILES, Statistic
from loadtest.metrics.figures import (
    NOTHING_TIMED,
    Bounded,
    CensoredDistribution,
    Distribution,
    Estimate,
    GapDistribution,
    Interval,
    unknown,
)
from loadtest.records.schema import Outcome, Phase, Priority, StampSource, TokenCountSource, about

NO_CALL = "no finished request that called a tool, or had to"
NO_SCHEMA = "no finished request that asked for JSON by a schema"

GateStatus = Literal["pass", "fail", "not_checked", "not_applicable"]
HealthCheckName = Literal[
    "loop_lag_mean",
    "loop_lag_worst",
    "first_token_bound",
    "gap_bound",
    "simulated_clock",
    "cpu",
    "gc",
    "late_starts",
]


def _metric(name: str) -> msgspec.Meta:
    return about(METRICS[name].description)


# The steady window ---------------------------------------------------------------------------------------------------


class WindowSpan(msgspec.Struct, frozen=True):
    """Start and end of a steady window; what happens in (start, end] counts."""

    start_s: Annotated[float, about("First instant at which as many measured requests as the concurrency are in flight.")]
    end_s: Annotated[float, about("Last such instant.")]

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


class SteadyWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The steady windows of all passes, in which as many measured requests as the concurrency were in flight."""

    start_s: Annotated[
        float | None, about("Start of the first, in seconds since the run's earliest clock. None: no window.")
    ]
    end_s: Annotated[float | None, about("End of the last.")]
    length_s: Annotated[float | None, about("Their lengths, summed: without the time between passes.")]
    n_passes: Annotated[int, about("Passes that have a window.")]
    n_passes_without: Annotated[int, about("Passes that never had that many requests in flight.")]


class WindowCheck(msgspec.Struct, frozen=True):
    """One check of the steady windows."""

    status: Annotated[Literal["pass", "fail", "not_checked"], about("`not_checked`: too few requests, or no window.")]
    value: Annotated[float | None, about("What was held against the limit.")]
    reason: Annotated[str, about("The value and the limit in words.")]


class WindowChecks(msgspec.Struct, frozen=True, kw_only=True):
    """May the steady windows be trusted? A failure is listed in `health.windows`; it does not fail the run."""

    long_enough: Annotated[WindowCheck, about("Shortest window / median request; at least 2.")]
    steady: Annotated[WindowCheck, about("Relative change of tokens/s over a window; fails above 10 % at p < 0.01.")]
    warm: Annotated[WindowCheck, about("Seconds per token, first requests / later ones - 1; fails from 10 %.")]


class PassFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the level, by itself."""

    repeat: Annotated[int, about("Number of the pass, from 1.")]
    n_requests: Annotated[int, about("Measured requests.")]
    outcomes: Annotated[dict[Outcome, int], about("How many measured requests ended in each way.")]
    window: Annotated[WindowSpan | None, about("Its steady window, in seconds since the run's earliest clock.")]
    output_tokens: Annotated[float, about("Tokens of its measured requests.")]
    output_tokens_per_s: Annotated[float | None, about("Tokens/s inside its window; None without one.")]
    answers_per_hour: Annotated[float | None, about("Answers per hour inside its window; None without one.")]


# Requests ------------------------------------------------------------------------------------------------------------


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Measured requests by how their tokens are known chunk by chunk, and by what their text says of the server's count."""

    told_by_chunk: Annotated[int, about("The server said how many tokens each chunk carried.")]
    spread_over_chunks: Annotated[int, about("Only a total is known, or none; it was spread evenly over the chunks.")]
    n_too_few: Annotated[int, about("The server counted fewer tokens than their text can be.")] = 0
    n_too_many: Annotated[int, about("The server counted more tokens than their text can be.")] = 0
    reasons: Annotated[tuple[str, ...], about("These in words, with the first of them.")] = ()


class TokenArrivals(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens came at once, of measured requests. A chunk came with the one before it if it followed within 1 ms of
    wall time and a tenth of the request's mean time per token, from sending to the last chunk."""

    n: Annotated[int, about("TokenArrivals: chunks that came together count as one.")]
    with_others_share: Annotated[float | None, about("Tokens of chunks that came with other chunks / tokens.")]
    p99_tokens: Annotated[float | None, about("99th percentile of the tokens of an arrival.")]
    bursty: Annotated[
        bool,
        about("That share is above 10 % in a pass: `tpot_s` and `tokens_per_s_per_user` are then over the whole answer."),
    ]
    whole_answer_tokens_per_s: Annotated[Distribution, about("Tokens / time from sending to the last chunk, per request.")]
    between_arrivals_tokens_per_s: Annotated[
        Distribution, about("Tokens after the first chunk / time from the first to the last chunk, per request.")
    ]


class EqualWork(msgspec.Struct, frozen=True, kw_only=True):
    """Did every forced output come out as long as it was forced, and had every prompt the length that was asked for? Of
    requests that the server ended and counted."""

    status: Annotated[Literal["pass", "fail", "not_applicable"], about("`not_applicable`: no such request.")]
    reasons: Annotated[tuple[str, ...], about("What differs; empty unless it fails.")]
    n_forced: Annotated[int, about("Requests that were checked.")]
    n_prompts: Annotated[int, about("Requests whose prompt was made to have an exact length, and was checked.")] = 0


class TroubleCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many measured requests show each known trouble of a reasoning model."""

    no_closing_think: Annotated[int, about("The output ended inside the thinking.")]
    truncated: Annotated[int, about("The output reached the token limit.")]
    no_answer: Annotated[int, about("The output ended by itself without an answer.")]
    empty_answer: Annotated[int, about("The model stopped after the thinking; the answer is empty.")]
    repetition: Annotated[int, about("The text repeats itself without end. Not looked for in simulated text.")]
    wrong_language: Annotated[int, about("The answer is in another language. Not looked for in simulated text.")]


Evidence = Literal["measured", "composed"]
Population = Literal["these prompts", "prompts of this kind"]


class SloResult(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO at one level."""

    slo: Annotated[str, about("The SLO as it was given, such as `ttft_s:p90<2`.")]
    value: Annotated[float | None, about("The figure that it limits; None where it cannot be given.")]
    ci95: Annotated[Interval | None, about("95 % interval of the figure.")]
    met: Annotated[bool | None, about("What the whole interval says; None where it holds the limit or is missing.")]
    likely: Annotated[bool | None, about("What the figure alone says; None without one.")]
    n_needed: Annotated[int | None, about("Requests that a missing figure would need.")]
    evidence: Annotated[Evidence, about("`composed`: of bursts, no answer was waited for.")] = "measured"


# Can the figures be believed -----------------------------------------------------------------------------------------


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One check of the load generator; lags are wall time x clock speed."""

    name: Annotated[
        HealthCheckName,
        about("The bounds replace lags, `cpu`, `gc` where the kernel stamped; `simulated_clock` replaces them if known."),
    ]
    status: Annotated[Literal["pass", "fail"], about("`pass` up to the limit.")]
    value: Annotated[float, about("A share: of the median token gap, of a mean time, of seconds, tokens or requests.")]
    limit: Annotated[float, about("Fails above it.")]
    reason: Annotated[str, about("The value and the limit in words.")]


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Did the load generator distort the figures? Over the seconds in which measured requests ran."""

    status: Annotated[GateStatus, about("`not_applicable`: simulated in virtual time; `not_checked`: imported.")]
    reasons: Annotated[tuple[str, ...], about("What failed, with the remedy; or why it does not apply.")]
    checks: Annotated[tuple[HealthCheck, ...], about("Empty without samples.")]
    n_samples: Annotated[int, about("Samples of the load generator, one a second and process.")]
    stamped_by: Annotated[StampSource | None, about("Who timed arrivals: the kernel, or the process when it read.")] = None
    longest_unread_s: Annotated[float | None, about("Longest time that bytes waited for the process.")] = None
    priority: Annotated[Priority | None, about("Lowest priority with which a process read.")] = None


class TtftAgreement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Times to the first token of one pass: the client's own against the server's histogram. Figures are left out unless
    both saw the same number of first tokens."""

    status: Annotated[Literal["pass", "fail", "not_checked"], about("`not_checked`: nothing to hold against the client.")]
    reason: Annotated[str | None, about("Why it fails or was not checked.")]
    n_client: Annotated[int, about("First tokens that the client saw.")]
    n_server: Annotated[float | None, about("First tokens that the server counted; None: it does not tell.")]
    client_mean_s: Annotated[float | None, about("Mean TTFT of the client.")] = None
    server_mean_s: Annotated[float | None, about("Mean TTFT of the server, its queue included.")] = None
    difference_s: Annotated[float | None, about("Client - server.")] = None
    tolerance_s: Annotated[float | None, about("0.1 s of wall time + two token gaps + 5 % of the server's mean.")] = None
    client_p50_s: Annotated[float | None, about("Lower median of the client.")] = None
    server_p50_s: Annotated[
        tuple[float, float | None] | None, about("The server's histogram bucket that holds its median; no end: the last.")
    ] = None


class PassReconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """Client against server for one pass, warm-up included. A server's None: it does not tell."""

    repeat: Annotated[int, about("Number of the pass, from 1.")]
    status: Annotated[Literal["pass", "fail", "not_checked"], about("`not_checked`: nothing to hold against the client.")]
    reason: Annotated[str | None, about("Why it fails or was not checked.")]
    ttft: Annotated[TtftAgreement | None, about("None where the readings of /metrics do not bracket every request.")]
    client_requests: Annotated[float, about("Requests that the server ended, by the records.")]
    server_requests: Annotated[float | None, about("Growth of the server's own counter, first to last reading.")]
    client_prompt_tokens: Annotated[float, about("Prompt tokens of those requests.")]
    server_prompt_tokens: Annotated[float | None, about("As `server_requests`.")]
    client_output_tokens: Annotated[float, about("Output tokens of those requests.")]
    server_output_tokens: Annotated[float | None, about("As `server_requests`.")]


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """Do client and server agree on tokens, requests and times to first token? Exact up to one token a request or 0.1 %."""

    status: Annotated[Literal["pass", "fail", "not_checked"], about("The worst of the passes.")]
    reasons: Annotated[tuple[str, ...], about("What each repeat found, with its number.")]
    client_output_tokens: Annotated[float | None, about("Sum over the passes.")]
    server_output_tokens: Annotated[float | None, about("Sum over the passes; None where any does not tell.")]
    passes: tuple[PassReconciliation, ...]


class DraftFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Speculative decoding by the server's own counters: whole passes, warm-up included. Intervals are over passes."""

    n_drafts: Annotated[float, about("Rows of drafts: one a stream and step. SGLang: of requests that ended.")]
    accepted_share: Annotated[Bounded, about("Draft tokens accepted / proposed.")]
    accepted_length: Annotated[Bounded, about("Mean tokens of a stream a step: the sure one and the drafts accepted.")]
    accepted_share_by_position: Annotated[
        tuple[float, ...], about("Rows whose draft at each position was accepted / rows. Empty: not told (SGLang).")
    ]
    thinking_tokens_per_chunk: Annotated[float | None, about("Mean tokens of a chunk of thinking; None: none told.")]
    answer_tokens_per_chunk: Annotated[float | None, about("The same of the answer.")]


class ReplicaRequests(msgspec.Struct, frozen=True, kw_only=True):
    """What the client saw of one of several servers that took turns; measured requests, defined as those of a level."""

    n_requests: Annotated[int, about("Measured requests sent to it.")]
    failed_share: Annotated[Estimate, about("Share of them that the server, or the way to it, failed.")]
    error_kinds: Annotated[dict[str, int], about("How many failed in each way.")]
    ttft_s: Annotated[CensoredDistribution, about("Seconds from sending a request to its first text.")]
    run_tokens_per_s: Annotated[Estimate, about("Tokens / seconds from its first request sent to its last token.")]


class ReplicaFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One of several servers of a cell: by its own counters over all passes, warm-up included (None: it does not tell), and
    by the client where that sent its requests itself."""

    source: Annotated[str, about("Host and port, or the file of its socket.")]
    n_requests: Annotated[float | None, about("Requests that it finished.")]
    request_share: Annotated[float | None, about("Of those of all replicas; without a bias of the router 1 / replicas.")]
    output_tokens: Annotated[float | None, about("Tokens that it generated.")]
    output_token_share: Annotated[float | None, about("Of those of all replicas.")]
    prefix_cache_hit_share: Annotated[float | None, about("Prompt tokens found in its prefix cache / its prompt tokens.")]
    peak_kv_usage_share: Annotated[float | None, about("Largest share of its KV cache in use.")]
    peak_waiting_at_once: Annotated[float | None, about("Most requests waiting in it.")]
    asked: Annotated[ReplicaRequests | None, about("None behind a router, which does not say whom it asked.")] = None


class ServerCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What the server's own counters say of all passes, warm-up included. None: it does not tell."""

    n_preemptions: Annotated[float | None, about("Requests put back when the KV cache was full (SGLang: retractions).")]
    prefix_cache_hit_share: Annotated[float | None, about("Prompt tokens found in the prefix cache / prompt tokens.")]
    peak_kv_usage_share: Annotated[float | None, about("Largest share of the KV cache in use, of readings a second apart.")]
    peak_waiting_at_once: Annotated[float | None, about("Most requests waiting in the server, likewise.")]
    replicas: Annotated[tuple[ReplicaFigures, ...], about("Of several servers or `/metrics`; empty with one.")] = ()
    speculation: Annotated[DraftFigures | None, about("None where no draft was counted.")] = None


# Curves --------------------------------------------------------------------------------------------------------------


class SurvivalPoint(msgspec.Struct, frozen=True, array_like=True):
    """One step of Kaplan-Meier's curve of time to final answer, written as `[time, share, low, high]`."""

    time_s: Annotated[float, about("Seconds since the request was sent.")]
    share: Annotated[float, about("Share of requests still without their final answer from then on.")]
    low: Annotated[float, about("Low end of its pointwise 95 % interval.")]
    high: Annotated[float, about("High end.")]


class GapHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of tokens by the gap before them; both empty for fewer than two gaps."""

    edges_s: Annotated[tuple[float, ...], about("Edges of 60 bins of equal width on the log scale.")]
    shares: Annotated[tuple[float, ...], about("Share of the tokens in each bin; the end bins hold what lies outside.")]


class TimelineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the drawn pass; times are seconds since its first request was sent."""

    user: Annotated[int, about("Number of the user within its process.")]
    seq: Annotated[int, about("Its place in the sequence of the level.")]
    phase: Annotated[Phase, about("`warmup` or `measure`.")]
    worker: Annotated[str, about("Which process of the load generator.")]
    outcome: Annotated[Outcome, about("How it ended.")]
    sent_s: Annotated[float | None, about("None: never sent.")]
    first_s: Annotated[float | None, about("First chunk with text; None: none came.")]
    answer_s: Annotated[float | None, about("First text of the answer; None: none came.")]
    ended_s: Annotated[float, about("Its end, whatever the outcome.")]


class ServerSeries(msgspec.Struct, frozen=True, kw_only=True):
    """At most 300 readings of the server's /metrics in the drawn pass. None: it does not tell."""

    t_s: Annotated[tuple[float, ...], about("Seconds since the first request was sent.")]
    running: Annotated[tuple[float | None, ...], about("Requests running.")]
    waiting: Annotated[tuple[float | None, ...], about("Requests waiting.")]
    kv_usage: Annotated[tuple[float | None, ...], about("Share of the KV cache in use.")]


class ThroughputSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens/s of the drawn pass in at most 200 equal bins of at least half a second."""

    t_s: Annotated[tuple[float, ...], about("Middle of each bin, seconds since the first request was sent.")]
    tokens_per_s: Annotated[tuple[float, ...], about("Tokens that arrived in the bin / its width.")]


class LevelCurves(msgspec.Struct, frozen=True, kw_only=True):
    """What the page draws, thinned. Survival and gaps are of all passes, the rest of the first pass that has requests."""

    time_to_final_answer_survival: Annotated[tuple[SurvivalPoint, ...], about("At most 200 points; empty without requests.")]
    itl_histogram: GapHistogram
    timeline: Annotated[tuple[TimelineRequest, ...], about("The first 200 requests by the time they were sent.")]
    server: ServerSeries
    throughput: ThroughputSeries
    window: Annotated[WindowSpan | None, about("Its steady window, in seconds since its first request.")]
    repeat: Annotated[int, about("The pass that is drawn.")]


# The level -----------------------------------------------------------------------------------------------------------


class LevelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One level: the measured requests of all its passes, pooled."""

    concurrency: Annotated[int, about("Requests in flight at once.")]
    n_requests: Annotated[int, about("Measured requests.")]
    n_prompts: Annotated[int, about("Different prompts among them.")]
    population: Annotated[
        Population,
        about("What the intervals hold for: these prompts where some were asked again, else others like them too."),
    ] = "these prompts"
    n_warmup: Annotated[int, about("Warm-up requests; in no distribution.")]
    torn_lines: Annotated[int, about("Records that a crash cut off; they are missing.")]
    damaged_files: Annotated[
        tuple[str, ...], about("Record files that are not as they were written: expected and found.")
    ] = ()
    outcomes: Annotated[dict[Outcome, int], about("How many measured requests ended in each way.")]
    error_kinds: Annotated[dict[str, int], about("Why requests failed, by the kind of error.")]
    n_resends: Annotated[int, about("Times that one was sent again: its kept connection had been closed.")] = 0
    window: SteadyWindow
    checks: WindowChecks
    passes: tuple[PassFigures, ...]
    token_counts: TokenCounts
    token_count_sources: Annotated[
        dict[TokenCountSource, int], about("Who counted the tokens of how many finished requests; `chunks`: nobody.")
    ]
    ttft_s: Annotated[CensoredDistribution, _metric("ttft_s")]
    time_to_first_answer_s: Annotated[CensoredDistribution, _metric("time_to_first_answer_s")]
    time_to_final_answer_s: Annotated[CensoredDistribution, _metric("time_to_final_answer_s")]
    thinking_s: Annotated[CensoredDistribution, _metric("thinking_s")]
    reasoning_tokens: Annotated[CensoredDistribution, _metric("reasoning_tokens")]
    answer_tokens: Annotated[CensoredDistribution, _metric("answer_tokens")]
    tool_call_start_s: Annotated[CensoredDistribution, _metric("tool_call_start_s")] = NOTHING_TIMED
    tool_call_s: Annotated[CensoredDistribution, _metric("tool_call_s")] = NOTHING_TIMED
    queued_s: Annotated[Distribution, _metric("queued_s")]
    itl_s: Annotated[GapDistribution, _metric("itl_s")]
    chunk_gap_s: Annotated[GapDistribution, _metric("chunk_gap_s")]
    tpot_s: Annotated[Distribution, _metric("tpot_s")]
    tokens_per_s_per_user: Annotated[Distribution, _metric("tokens_per_s_per_user")]
    output_tokens_per_s: Annotated[Estimate, _metric("output_tokens_per_s")]
    throughput_method: Annotated[
        Literal["steady window", "renewal"], about("How `output_tokens_per_s` was found: a window too short is no window.")
    ]
    run_tokens_per_s: Annotated[Estimate, _metric("run_tokens_per_s")]
    answers_per_hour: Annotated[Estimate, _metric("answers_per_hour")]
    goodput_answers_per_hour: Annotated[Estimate, _metric("goodput_answers_per_hour")]
    accuracy: Annotated[Estimate, _metric("accuracy")]
    valid_call_share: Annotated[Estimate, _metric("valid_call_share")] = unknown(NO_CALL)
    valid_json_share: Annotated[Estimate, _metric("valid_json_share")] = unknown(NO_SCHEMA)
    failed_share: Annotated[Estimate, _metric("failed_share")]
    arrivals: Annotated[TokenArrivals | None, about("How many tokens came at once. None: an older version wrote it.")] = None
    joules_per_answer: Annotated[Estimate, _metric("joules_per_answer")]
    joules_per_output_token: Annotated[Estimate, _metric("joules_per_output_token")]
    context_tokens: Annotated[Estimate, _metric("context_tokens")]
    equal_work: EqualWork
    troubles: TroubleCounts
    curves: LevelCurves
    client_health: ClientHealth
    reconciliation: Reconciliation
    server: ServerCounters
    slo: Annotated[tuple[SloResult, ...], about("Each SLO of the study, in its order.")]

    @property
    def bursty(self) -> bool:
        return self.arrivals is not None and self.arrivals.bursty

    def figure(self, metric: str) -> Distribution | Estimate:
        """A metric by its name; KeyError where it is none."""
        if metric not in METRICS:
            raise KeyError(metric)
        found: Distribution | Estimate = getattr(self, metric)
        return found

    def estimate(self, metric: str, statistic: Statistic = "value") -> Estimate:
        """One statistic of a metric: `mean` or a quantile of a distribution, `value` of a single figure. Gaps of a bursty
        stream are unknown: most are of tokens that came together.

        p10, p5 and p1 of `tokens_per_s_per_user`: what 90, 95, 99 % of the requests reach, 1 / p90, p95, p99 of `tpot_s`.
        """
        if self.bursty and METRICS[metric].shape == "gaps":
            return unknown("tokens came in bursts")
        if metric == "tokens_per_s_per_user" and statistic in REACHED_QUANTILES:
            return self.tpot_s.at(REACHED_QUANTILES[statistic]).inverse()
        return self.figure(metric).at(statistic)


# Composed of bursts (`mode = "decision"`) -----------------------------------------------------------------------------

ConditionName = Literal[
    "straight line",
    "streams together",
    "no preemption",
    "no truncation",
    "no speculation",
    "lengths independent of load",
    "own times",
]


class ComposedTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Time to the final answer (s), composed; intervals: for prompts of this kind, over starts and lengths."""

    mean: Bounded
    p50: Bounded
    p90: Bounded
    p95: Bounded = Bounded(None, None)
    p99: Bounded = Bounded(None, None)


class ComposedPaces(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens/s of one user that half, 90, 95 and 99 % of the requests reach, composed; intervals as of the times."""

    p50: Bounded
    p10: Bounded
    p5: Bounded
    p1: Bounded


class ComposedLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency: what bursts measured, and what follows from it for answers of the natural run's lengths."""

    concurrency: Annotated[int, about("Requests in flight at once.")]
    evidence: Annotated[Evidence, about("`composed`: no answer was waited for at this concurrency.")]
    n_starts: Annotated[int, about("Starts of the server with bursts.")]
    n_requests: Annotated[int, about("Requests of its bursts.")]
    step_s: Annotated[Bounded, about("a of the line a + b K: seconds of a step without context, over starts.")]
    step_s_per_context_token: Annotated[Bounded, about("b of the line: seconds that each token of context adds.")]
    first_token_s: Annotated[Bounded, about("Mean wait of a lone request for its first token.")]
    longest_first_token_s: Annotated[
        float | None,
        about("Longest where all begin at once with prompts as long as 95 %, and two steps; None: no such burst."),
    ] = None
    bend_share: Annotated[float | None, about("How far the middle contexts lie off the line, over starts.")]
    time_to_final_answer_s: Annotated[ComposedTimes | None, about("None without lengths.")]
    tokens_per_s_per_user: Annotated[Bounded, about("Mean tokens/s of one user after the first token.")]
    paces: Annotated[ComposedPaces | None, about("Quantiles of it. None without lengths.")] = None
    output_tokens_per_s: Annotated[Bounded, about("Of all users: concurrency x mean tokens / mean time.")]
    n_answers: Annotated[int, about("Answers that the lengths are of.")]
    lengths_of: Annotated[
        Literal["both engines", "this engine"] | None,
        about("`this engine`: the engines' lengths differ by prompt. None without lengths."),
    ]
    client_health: ClientHealth
    reconciliation: Reconciliation
    damaged_files: Annotated[tuple[str, ...], about("As of a level, torn lines too.")]
    slo: Annotated[tuple[SloResult, ...], about("Each SLO of the study, in its order.")] = ()
    reason: Annotated[str | None, about("Why times are missing.")]

    def estimate(self, metric: str, statistic: Statistic = "value") -> Bounded | None:
        """One statistic of a metric; None where bursts do not tell it (a first token is only bounded: `judge_composed`)."""
        times = self.time_to_final_answer_s
        if metric == "time_to_final_answer_s" and times is not None:
            found: Bounded | None = getattr(times, statistic, None)
            return found
        if metric == "tokens_per_s_per_user" and self.paces is not None:
            return self.tokens_per_s_per_user if statistic == "mean" else getattr(self.paces, statistic, None)
        if metric == "answers_per_hour" and times is not None and times.mean.value:
            return _hourly(times.mean, self.concurrency)
        return self.output_tokens_per_s if metric == "output_tokens_per_s" and times is not None else None


def _hourly(mean_s: Bounded, concurrency: int) -> Bounded:
    """Concurrency / mean time, the ends of its interval turned over."""
    low, high = (None if end is None else 3600 * concurrency / end for end in (mean_s.high, mean_s.low))
    return Bounded(None if mean_s.value is None else 3600 * concurrency / mean_s.value, (low, high))


class ConditionCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold for composed figures; where it does not, the pair falls back to natural passes."""

    name: Annotated[ConditionName, about("What must hold.")]
    status: Annotated[
        Literal["met", "broken", "undecided", "not checked"],
        about("`undecided`: one more natural run will tell; `not checked`: nothing tells, or not yet."),
    ]
    value: Annotated[float | None, about("By how much: a share, a number of requests, or a p-value.")]
    limit: Annotated[float | None, about("What it is held against.")]
    reason: Annotated[str, about("In words.")]
