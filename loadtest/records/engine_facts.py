"""`engine.json`: what is known of the engine of one cell, from its start to its end."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from loadtest.records.schema import ClockSpeed, Mode, UnixSeconds, about

Side = Literal["a", "b"]
Salting = Literal["kept", "refused", "ignored", "unknown"]  # what a server does with a `cache_salt`
CellStatus = Literal["ok", "refused", "skipped", "failed", "died", "interrupted", "starting"]


class ClockError(msgspec.Struct, frozen=True, kw_only=True):
    """How far the client's times are off the simulator's own, over the same requests: as a share of the simulator's mean
    (sum / sum - 1), and in seconds (`..._off_s`, mean - mean). A fast clock multiplies each wall delay."""

    n: Annotated[int, about("Measured requests that ended by themselves and that both sides know.")]
    ttft_s: Annotated[float | None, about("Relative error of the mean TTFT (0.01 is 1 %); None: nothing to compare.")]
    tpot_s: Annotated[float | None, about("Of the mean time per output token.")]
    time_to_final_answer_s: Annotated[float | None, about("Of the mean time to final answer.")]
    ttft_off_s: Annotated[float | None, about("Client's mean TTFT - simulator's, in seconds of the run.")] = None
    tpot_off_s: Annotated[float | None, about("Of the time per output token, likewise.")] = None
    time_to_final_answer_off_s: Annotated[float | None, about("Of the time to final answer, likewise.")] = None


class MemoryFit(msgspec.Struct, frozen=True, kw_only=True):
    """Does the model fit the GPUs: the arithmetic of memory before a start (`perfmodel.fit`)."""

    fits: Annotated[bool, about("Weights and one request of `context_tokens` fit.")]
    reason: Annotated[str, about("Why not; empty where it fits.")]
    context_tokens: Annotated[int, about("Context of each request that is planned for.")]
    concurrency: Annotated[int, about("Requests of that context at once that were asked about.")]
    fits_concurrency: Annotated[bool, about("So many fit at once.")]
    max_streams: Annotated[int, about("Requests of that context that the KV cache holds.")]
    memory_bytes_per_card: Annotated[float, about("Memory of one GPU.")]
    usable_bytes_per_card: Annotated[float, about("What the engine may use of it.")]
    weight_bytes_per_card: Annotated[float, about("Weights on one GPU.")]
    overhead_bytes_per_card: Annotated[float, about("Activations and the engine itself, on one GPU.")]
    kv_bytes_per_card: Annotated[float, about("What remains for the KV cache on one GPU.")]
    kv_bytes_per_token: Annotated[float, about("KV cache of one token over all GPUs.")]
    kv_capacity_tokens: Annotated[int, about("Tokens that the KV cache holds over all GPUs; 0: the weights do not fit.")]
    bound_tokens_per_s: Annotated[float, about("Bound on one request: bandwidth of all GPUs / bytes of the weights.")]
    bound_without_embedding_tokens_per_s: Annotated[float, about("The same without the input embedding.")]
    lines: Annotated[tuple[str, ...], about("The arithmetic in words.")]


class ContractFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of an engine: what the contract asks for, and what the engine says that it runs with."""

    requested: dict[str, Any] = {}  # by key of the contract
    effective: dict[str, Any] = {}  # likewise; keys that the engine does not tell are left out
    violations: tuple[str, ...] = ()  # in words, one for each key that differs


SearchedKind = Literal["users", "requests/h"]


class PromptLengths(msgspec.Struct, frozen=True, kw_only=True):
    """How prompts of exact lengths were fitted to a server, before anything was measured."""

    workload: str  # the spec that makes these prompts anywhere
    identity: str  # SHA-256 of them
    template_tokens: int  # of a prompt without any word, by the server's count
    words: int  # different words, each one token by the server's count
    requests: int  # that were sent to find out, each of one output token; none of them is measured


class SearchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A search for the largest level within the SLOs: where it began, how far it may go, and how it ended."""

    start: int
    start_source: str  # in words
    most: int  # highest level allowed
    most_source: Literal["max_concurrency", "kv_cache"]
    stopped: str | None = None  # why it ended before it was done
    of: SearchedKind = "users"  # what a level is: requests in flight, or requests that arrive in an hour


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: the engine, how it was started or reached, and what became of it. None: not known, or not yet.

    Made when the cell starts; what is learned later is added by `msgspec.structs.replace`.
    """

    id: str
    engine: str = "other"  # sglang, vllm, sglang-sim, vllm-sim or other
    engine_version: str | None = None  # as the server says it
    model: str | None = None
    tp: int | None = None
    gpu: str | None = None
    gpus: dict[str, int] = {}  # of several pools behind one URL: how many of each kind
    mode: Mode | None = None  # None: the run's
    name: str | None = None  # of the configuration, where an engine has several
    factors: dict[str, str] = {}  # what the study varies, and the level that this cell has of each
    args: tuple[str, ...] = ()  # the cell's own arguments of the engine
    simulated: bool = False
    clock_speed: ClockSpeed | None = None
    base_url: str | None = None  # None: the run started the engine, and its port is gone
    base_urls: tuple[str, ...] = ()  # of several servers that took turns, `base_url` the first; empty: one
    proxy: str | None = None  # between us and the server, without a user; None: none
    insecure: bool = False  # its certificate was not verified
    side: Side | None = None  # of a duel
    command: tuple[str, ...] | None = None  # None: not started by the run
    env: dict[str, str] | None = None
    status: CellStatus | None = None
    reason: str | None = None  # why the status is not ok
    started_unix_s: UnixSeconds | None = None
    ready_unix_s: UnixSeconds | None = None
    stopped_unix_s: UnixSeconds | None = None
    exit_code: int | None = None
    fit: MemoryFit | None = None
    server_info: dict[str, Any] | None = None  # what the server says of itself, as it says it
    contract: ContractFacts | None = None
    cache_salt: Salting | None = None  # are rounds of prompts told apart by it? None: not asked
    clock_error: ClockError | None = None
    clock_error_by_level: dict[int, ClockError] = {}  # the same of each concurrency; empty: not measured
    search: SearchFacts | None = None  # None: the levels were given
    prompt_lengths: PromptLengths | None = None  # None: the workload asks for no exact lengths
    imported: bool = False  # another tool measured it, and does not say who started it

    @property
    def started_by_run(self) -> bool:
        """Did the run start it, anew for each repeat?"""
        return self.base_url is None and not self.imported

    @property
    def n_servers(self) -> int:
        """Servers that took turns; 1 where there was one, or a router."""
        return max(1, len(self.base_urls))

    @property
    def configuration(self) -> tuple[str, str | None]:
        """The engine, and which of its configurations."""
        return self.engine, self.name

    @property
    def predicts(self) -> bool:
        """Whether what is measured of it is a prediction: a simulator answers."""
        return self.simulated or self.engine.endswith("-sim")
