"""The metrics of a level: what each is called, what it means, its unit and which way is better. One row each.

This table and the field descriptions of `figures`, `level_schema` and `schema` are the only definitions: the page, the
docs and the exported JSON Schema are made from them. The population of every metric is the measured requests (phase
`measure`) of all passes at one concurrency, unless its definition says otherwise. Reasons: docs/numbers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Statistic = Literal["value", "mean", "p1", "p5", "p10", "p50", "p90", "p95", "p99", "min", "max"]
Shape = Literal["censored", "plain", "gaps", "estimate"]

QUANTILES: Mapping[Statistic, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
DISTRIBUTION_STATISTICS: tuple[Statistic, ...] = ("mean", *QUANTILES, "min", "max")

# What 90, 95, 99 % of the requests reach or exceed, of a metric of which more is better; by the quantile of its inverse.
REACHED_QUANTILES: Mapping[Statistic, Statistic] = {"p10": "p90", "p5": "p95", "p1": "p99"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a level.

    `shape`: `censored`, a distribution whose requests may be cut short; `plain`, one exact value per request; `gaps`, of
    token gaps; `estimate`, a single figure. `better`: which way is better, None where neither is. `typical`: the statistic
    that stands for it. `objective`: an SLO may limit it. `short`: the head of a table's column.
    """

    title: str
    unit: str
    definition: str
    shape: Shape
    better: Literal["less", "more"] | None = None
    typical: Statistic = "p50"
    objective: bool = False
    short: str = ""
    abbreviation: str = ""

    @property
    def name(self) -> str:
        """Its name inside a sentence.

        >>> METRICS["ttft_s"].name
        'time to first token'
        """
        return self.title[:1].lower() + self.title[1:]

    @property
    def full_title(self) -> str:
        """
        >>> METRICS["ttft_s"].full_title
        'Time to first token (TTFT)'
        """
        return f"{self.title} ({self.abbreviation})" if self.abbreviation else self.title

    @property
    def description(self) -> str:
        """Definition and unit, for the schema and the docs."""
        return f"{self.full_title}, {self.unit}. {self.definition}"


# In the order of the page: the panels of a forest plot follow it.
METRICS: Mapping[str, Metric] = {
    "output_tokens_per_s": Metric(
        "Total output tokens/s", "tokens/s",
        "Tokens that arrive inside the steady window / its length, of all requests, finished or not; if it is short, by "
        "renewal reward. Interval: over passes; of one or two, over ten parts.",
        "estimate", "more", "value", objective=True, short="tokens/s, all",
    ),
    "run_tokens_per_s": Metric(
        "Output tokens/s of the whole run", "tokens/s",
        "Tokens of the measured requests / time from the first one sent to the last token, as most other tools count. "
        "Interval: over passes.",
        "estimate", "more", "value", short="tokens/s, whole run",
    ),
    "tokens_per_s_per_user": Metric(
        "Tokens/s per user", "tokens/s",
        "1 / time per output token: what one request receives while it decodes. One value per request. If tokens came in "
        "bursts (`arrivals.bursty`): tokens / time from sending to the last chunk.",
        "plain", "more", objective=True, short="tokens/s per user",
    ),
    "ttft_s": Metric(
        "Time to first token", "seconds",
        "From sending the request to the first chunk with text, thinking included. A chunk without text does not count.",
        "censored", "less", objective=True, short="TTFT, s", abbreviation="TTFT",
    ),
    "time_to_first_answer_s": Metric(
        "Time to first answer text", "seconds",
        "From sending the request to the first text of the answer, after the thinking.",
        "censored", "less", objective=True, short="first answer, s",
    ),
    "time_to_final_answer_s": Metric(
        "Time to final answer", "seconds",
        "From sending the request to the last chunk of an answer that ended by itself. A request that was cut off, "
        "truncated, timed out or stalled is censored at its last chunk, never dropped.",
        "censored", "less", objective=True, short="final answer, s",
    ),
    "tool_call_start_s": Metric(
        "Time to start of tool call", "seconds",
        "From sending the request to the first piece of its first tool call.",
        "censored", "less", objective=True, short="call starts, s",
    ),
    "tool_call_s": Metric(
        "Time to complete tool call", "seconds",
        "From sending the request to the last piece of its last tool call, of requests that ended by themselves with one. "
        "Censored as the final answer is, where it had to call a tool or had begun to.",
        "censored", "less", objective=True, short="call complete, s",
    ),
    "thinking_s": Metric(
        "Thinking time", "seconds",
        "From the first text of the thinking to the first text of the answer; of requests that thought.",
        "censored", "less", objective=True, short="thinking, s",
    ),
    "tpot_s": Metric(
        "Time per output token", "seconds",
        "(Last chunk - first chunk) / tokens after the first chunk. One value per request. If tokens came in bursts: time "
        "from sending to the last chunk / tokens.",
        "plain", "less", objective=True, short="TPOT, s", abbreviation="TPOT",
    ),
    "itl_s": Metric(
        "Gap between tokens", "seconds",
        "Time between two consecutive tokens of a request. A chunk of k tokens that comes g after the one before it counts "
        "as k gaps of g / k.",
        "gaps", "less", objective=True, short="gap, s", abbreviation="ITL",
    ),
    "chunk_gap_s": Metric(
        "Gap between chunks", "seconds",
        "Time between two consecutive chunks of a request.",
        "gaps", "less", objective=True, short="chunk gap, s",
    ),
    "reasoning_tokens": Metric(
        "Tokens thought", "tokens",
        "Tokens of the thinking: the server's count, else those of the chunks before the answer.",
        "censored", None, "mean", short="tokens thought",
    ),
    "answer_tokens": Metric(
        "Tokens answered", "tokens",
        "Output tokens less those of the thinking.",
        "censored", None, "mean", short="tokens answered",
    ),
    "answers_per_hour": Metric(
        "Answers per hour", "answers/h",
        "Finished answers per hour: tokens/s of the steady window x answers per token of the measured requests (see "
        "docs/metrics.md for why they are not counted one by one).",
        "estimate", "more", "value", objective=True, short="answers/h",
    ),
    "goodput_answers_per_hour": Metric(
        "Answers per hour within the SLOs", "answers/h",
        "Answers per hour, of answers that met every SLO on a single request; a limit on gaps is held against the "
        "request's time per output token. Unknown without an SLO.",
        "estimate", "more", "value", objective=True, short="goodput, answers/h",
    ),
    "accuracy": Metric(
        "Share of right answers", "share",
        "Right answers / answers that can be checked. Unknown where there are none, or the engine is simulated. "
        "Interval: Wilson's.",
        "estimate", "more", "value", objective=True, short="right answers",
    ),
    "valid_call_share": Metric(
        "Share of valid tool calls", "share",
        "Requests whose calls are all JSON, valid by the parameters of a tool that was offered / finished requests that "
        "made a call or had to. Forced lengths are not judged. Interval: Wilson's.",
        "estimate", "more", "value", objective=True, short="valid calls",
    ),
    "valid_json_share": Metric(
        "Share of valid JSON", "share",
        "Answers that are JSON as a whole, valid by the schema that was asked for / finished requests that asked for one. "
        "Forced lengths are not judged. Interval: Wilson's.",
        "estimate", "more", "value", objective=True, short="valid JSON",
    ),
    "failed_share": Metric(
        "Share of failed requests", "share",
        "Requests that the server, or the network to it, failed (http_error, timeout, stalled, connection_error, "
        "protocol_error, server_error) / requests. Interval: Wilson's.",
        "estimate", "less", "value", objective=True, short="failed",
    ),
    "queued_s": Metric(
        "Wait in the load generator", "seconds",
        "Sent - scheduled - time spent connecting: how long a request waited here before it was sent. In no "
        "latency.",
        "plain", "less", "mean", objective=True, short="queued, s",
    ),
    "joules_per_answer": Metric(
        "Energy per answer", "joules",
        "Power of all GPUs, integrated over the steady window by trapezoids, / answers of the window. Unknown where the "
        "power was not read throughout it. Interval: over passes.",
        "estimate", "less", "value", short="J/answer",
    ),
    "joules_per_output_token": Metric(
        "Energy per output token", "joules",
        "Power of all GPUs, integrated over the steady window by trapezoids, / tokens of the window. Unknown where the "
        "power was not read throughout it. Interval: over passes.",
        "estimate", "less", "value", short="J/token",
    ),
    "context_tokens": Metric(
        "Context at its longest", "tokens",
        "Mean of prompt + output tokens of finished requests: what a request holds in the KV cache when it ends.",
        "estimate", None, "value", short="context",
    ),
}  # fmt: skip

# Other words that the page explains beside the metrics.
TERMS: Mapping[str, str] = {
    "Confidence interval (CI)": "At 95 %. A quantile whose interval cannot be bounded from n requests is left out (—), "
    "with the n it needs.",
    "Faster, slower, equal": "Read off an interval over starts of the server, for all pairs at once: it excludes 1, or lies "
    "where no difference matters. One start each decides nothing.",
    "Simulated": "An engine that this suite imitates from a performance model. Its figures predict; they measure no engine "
    "and no GPU.",
}

CENSORED_METRICS = tuple(name for name, metric in METRICS.items() if metric.shape == "censored")
OBJECTIVES = tuple(name for name, metric in METRICS.items() if metric.objective)

# In the order in which `comparisons` lists them.
COMPARED = (
    "time_to_final_answer_s", "time_to_first_answer_s", "ttft_s", "tokens_per_s_per_user", "output_tokens_per_s",
)  # fmt: skip


def statistics_of(name: str) -> tuple[Statistic, ...]:
    """The statistics that an objective may limit.

    >>> statistics_of("failed_share"), statistics_of("tokens_per_s_per_user")[:3]
    (('value',), ('p10', 'p5', 'p1'))
    """
    metric = METRICS[name]
    if metric.shape == "estimate":
        return ("value",)
    return (*REACHED_QUANTILES, *DISTRIBUTION_STATISTICS) if metric.better == "more" else DISTRIBUTION_STATISTICS


def is_wait(name: str) -> bool:
    """Is it a time that a failed request never reached, so that failures count against its quantiles?

    >>> is_wait("ttft_s"), is_wait("tokens_per_s_per_user"), is_wait("queued_s")
    (True, False, False)
    """
    return METRICS[name].objective and METRICS[name].unit == "seconds" and name != "queued_s"
