"""A server reached by its URL: which engine answers, what it serves, and how to empty its prefix cache."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast
from urllib.parse import urlsplit

import msgspec

from loadtest import credentials
from loadtest.errors import EngineError, UsageError
from loadtest.servers import route
from loadtest.servers.exposition import parse_series
from loadtest.servers.settings import told_keys

_TIMEOUT_S = 10.0
_LIMIT_BYTES = 8_000_000  # of a reply; vLLM's /metrics takes 40 kB
_TRUTH_LIMIT_BYTES = 80_000_000  # the simulator remembers 100,000 requests, each in less than 400 bytes
_TRUTH_TIMEOUT_S = 60.0
_NAME_CHARS = 256
_MOST_MODELS = 100
_SETTING_CHARS = 1000
_MOST_GPUS = 4096
_KV_TOKENS = (1, 10**12)  # what a KV cache can hold
_DIGITS = re.compile("[0-9]{1,12}")
_CONTEXT_TOKENS = (16, 10**9)  # what a context can be
_CLOCK_SPEEDS = (1e-3, 1e5)
_NO_URL = re.compile(r"[^\x21-\x7e]|\\")  # must be written with % or as xn--, and RFC 3986 has no backslash
_VLLM_CACHE = "vllm:cache_config_info"
_SWITCHES = {"True": True, "False": False}
_SIMULATED = ("sglang-sim", "vllm-sim")
_GPU_NAME = re.compile("[a-z0-9-]{1,64}")  # one of the registry, never a path of ours
if TYPE_CHECKING:
    import httpx

_KEY = credentials.KEY_VARIABLES[0]
_PREFIX_RESET = {
    "sglang": "/flush_cache",
    "sglang-sim": "/flush_cache",
    "vllm": "/reset_prefix_cache",
    "vllm-sim": "/reset_prefix_cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself; None where it does not tell. `clock_speed` is 1 except for a simulator.

    `engine` is sglang, vllm, sglang-sim, vllm-sim or other; `max_model_len` counts tokens, prompt and output together;
    `kv_cache_tokens`: what the KV cache holds over all GPUs.
    """

    engine: str
    version: str | None = None
    model: str | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    simulated: bool = False
    clock_speed: float = 1.0
    tp: int | None = None
    gpu: str | None = None
    models: tuple[str, ...] = ()  # all that it serves, at most 100
    settings: dict[str, Any] = field(default_factory=dict)  # those in the table of settings, under the engine's own keys


class TrueTimes(TypedDict):
    """What our simulator knows of one request: virtual seconds since it started, and tokens."""

    request_id: str
    arrival_s: float
    first_token_s: float
    finished_s: float
    completion_tokens: int


def normalise_url(base_url: str) -> str:
    """The address that paths are added to: no trailing slash, no `/v1`. Raises `UsageError`, which repeats no secret, where
    it is no URL, or has a user, a password or a query: addresses are written into files, so they must hold no key.

    >>> normalise_url("http://127.0.0.1:8000/v1/"), normalise_url("unix:///run/vllm.sock")
    ('http://127.0.0.1:8000', 'unix:///run/vllm.sock:')
    """
    url = base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    shown = base_url.rpartition("@")[2].partition("?")[0]
    if url.startswith(f"{route.UNIX}:") and not _NO_URL.search(url):
        return route.normalise_socket(url)
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        wrong = wrong or _NO_URL.search(url) is not None
    except ValueError as error:
        raise UsageError(f"{shown}: expected a URL such as http://127.0.0.1:8000: {error}") from None
    if wrong:
        raise UsageError(f"{shown}: expected a URL such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise UsageError(f"{parts.hostname}: expected a URL without user or password; put the key into {_KEY}")
    if parts.query or parts.fragment:
        raise UsageError(f"{parts.hostname}: expected a URL that ends with its path, got a query; put a key into {_KEY}")
    return url


def is_loopback(base_url: str) -> bool:
    """Is this server on this machine? Then it is reached directly, past any proxy of the environment."""
    host = urlsplit(base_url).hostname or ""
    return route.socket_file(base_url) is not None or host in ("localhost", "::1") or host.startswith("127.")


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of our requests: with the key given (empty: none), else the environment's, else none; and those asked for."""
    key = credentials.api_key() if api_key is None else api_key
    return ({"Authorization": f"Bearer {key}"} if key else {}) | credentials.extra_headers()


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole reply: its status, its body, and the two headers that say what it is."""

    status: int
    content: bytes
    content_type: str
    location: str | None


def fetch(
    asking: httpx.Client,
    url: str,
    method: str = "GET",
    *,
    body: Mapping[str, Any] | None = None,
    limit_bytes: int = _LIMIT_BYTES,
) -> HttpReply:
    """One short reply: at most `limit_bytes`, uncompressed, complete within the client's timeout.

    Raises `httpx.HTTPError` where it is longer, compressed, late, or does not come.
    """
    import httpx

    try:
        return _fetched(asking, url, method, body, limit_bytes)
    except (httpx.InvalidURL, UnicodeError) as error:  # a label that is empty, longer than 63 characters, or a bare `xn--`
        raise httpx.UnsupportedProtocol(f"not the name of a host: {error}") from None


def _fetched(asking: httpx.Client, url: str, method: str, body: Mapping[str, Any] | None, limit_bytes: int) -> HttpReply:
    import httpx

    timeout_s = asking.timeout.read or _TIMEOUT_S
    deadline = time.monotonic() + timeout_s
    content = bytearray()
    with asking.stream(method, route.http_url(url), json=body) as response:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise httpx.DecodingError(f"compressed ({encoding[:20]}), though not asked for")
        for part in response.iter_raw():
            content += part
            if len(content) > limit_bytes:
                raise httpx.ReadError(f"more than {limit_bytes / 1e6:g} MB")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"not complete after {timeout_s:g} s")
        said = response.headers
    return HttpReply(response.status_code, bytes(content), said.get("content-type", "no content type"), said.get("location"))


def _decoded(content: bytes) -> object:
    """Strict JSON: no NaN, no broken character. Raises `ValueError` for anything else, such as a thousand brackets."""
    try:
        return msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def client(base_url: str, *, api_key: str | None = None, timeout_s: float = _TIMEOUT_S) -> httpx.Client:
    """A client for requests that are not measured: with the key, without redirects (so that the key goes to no other host).
    Like measured requests it takes the environment's proxy only for `https://` to another machine. Raises `UsageError` where
    that proxy is unusable."""
    import httpx

    by_environment = urlsplit(base_url).scheme == "https" and not is_loopback(base_url)
    file, asked = route.socket_file(base_url), route.current().proxy and route.proxy_to(base_url)
    try:
        sent = {"accept-encoding": "identity", **headers(api_key)}
        return httpx.Client(
            timeout=timeout_s,
            headers=sent,
            trust_env=by_environment and not asked,
            verify=_verification(),
            proxy=_httpx_proxy(asked) if asked else None,
            transport=httpx.HTTPTransport(uds=file) if file else None,
        )
    except OSError as error:
        raise UsageError(f"SSL_CERT_FILE, SSL_CERT_DIR, SSLKEYLOGFILE: expected files of this machine: {error}") from None
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UsageError(f"HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: expected http:// addresses: {error}") from None


def _httpx_proxy(proxy: route.Proxy) -> httpx.Proxy:
    import httpx

    user, colon, password = (proxy.login or "").partition(":")
    return httpx.Proxy(proxy.url, auth=(user, password) if colon else None)


def _verification() -> ssl.SSLContext | bool:
    """Against the certificates in `SSL_CERT_FILE`, on this machine too, as measured requests are; else httpx's own."""
    if route.current().insecure:
        return False
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def probe(
    base_url: str, api_key: str | None = None, timeout_s: float = _TIMEOUT_S, *, model: str | None = None
) -> ServerInfo:
    """Find out which engine answers at `base_url`, which model it serves, and whether it is a simulation.

    Of several models it describes the one called `model`, else the first.

    Raises `EngineError`: nobody answers, the key is missing or wrong, the answer is not that of an OpenAI-compatible server.
    """
    base_url = normalise_url(base_url)
    with client(base_url, api_key=api_key, timeout_s=timeout_s) as asking:
        listed = _models(_required(asking, base_url, "/v1/models"), base_url)
        first = next((one for one in listed if model is not None and one.get("id") == model), listed[0] if listed else {})
        names = (_text(one.get("id")) for one in [*listed[:_MOST_MODELS], first])  # the one asked for, however long the list
        return replace(_found(asking, base_url, first), models=tuple(dict.fromkeys(filter(None, names))))


def _found(asking: Any, base_url: str, first: Mapping[str, Any]) -> ServerInfo:
    version = _optional(asking, base_url, "/version")
    if version.get("simulated") is True:
        return _simulated(first, version, base_url)
    owner = first.get("owned_by")
    if owner == "sglang":
        details = _optional(asking, base_url, "/server_info") or _optional(asking, base_url, "/get_server_info")
        info = _info("sglang", first, details.get("version"), details.get("tp_size"))
        info = replace(info, kv_cache_tokens=_whole(details.get("max_total_num_tokens"), *_KV_TOKENS))
        return replace(info, settings={key: details[key] for key in told_keys("sglang") if _is_short(details.get(key))})
    if owner == "vllm":
        labels = _vllm_labels(asking, base_url)
        info = _info("vllm", first, version.get("version"), None)
        return replace(info, settings=_vllm_settings(labels), kv_cache_tokens=_vllm_kv_tokens(labels))
    return _info("other", first, version.get("version"), None)


def _vllm_labels(asking: Any, base_url: str) -> Mapping[str, str]:
    """What vLLM tells of its KV cache, as labels of one of its metrics; empty where its /metrics are not served here."""
    import httpx

    try:
        reply = fetch(asking, f"{base_url}/metrics")
    except httpx.HTTPError:
        return {}
    rows = parse_series(reply.content.decode("utf-8", "replace"), {_VLLM_CACHE}).get(_VLLM_CACHE, [])
    return rows[0][0] if rows else {}


def _vllm_settings(labels: Mapping[str, str]) -> dict[str, Any]:
    told = {key: labels[key] for key in told_keys("vllm") if labels.get(key) not in (None, "None")}
    return {key: _SWITCHES.get(label, label) for key, label in told.items() if _is_short(label)}


def _vllm_kv_tokens(labels: Mapping[str, str]) -> int | None:
    blocks, size = (labels.get(key, "") for key in ("num_gpu_blocks", "block_size"))
    return _whole(int(blocks) * int(size), *_KV_TOKENS) if _DIGITS.fullmatch(blocks) and _DIGITS.fullmatch(size) else None


def _info(engine: str, first: Mapping[str, Any], version: object, tp: object) -> ServerInfo:
    return ServerInfo(
        engine=engine,
        version=_text(version),
        model=_text(first.get("id")),
        max_model_len=_whole(first.get("max_model_len"), *_CONTEXT_TOKENS),
        tp=_whole(tp, 1, _MOST_GPUS),
    )


def _simulated(first: Mapping[str, Any], version: Mapping[str, Any], base_url: str) -> ServerInfo:
    """What our simulator says of itself. Raises `EngineError` for what it never says, because the engine names a folder, and
    every time is multiplied by the clock's speed."""
    engine, speed, gpu = version.get("engine"), version.get("clock_speed", 1.0), version.get("gpu")
    low, high = _CLOCK_SPEEDS
    if engine not in _SIMULATED or not isinstance(speed, int | float) or not low <= speed <= high:
        got = f"{str(engine)[:40]!r} at {str(speed)[:20]}"
        expected = f"{' or '.join(_SIMULATED)} with a clock_speed from {low:g} to {high:g}"
        raise EngineError(f"{base_url}/version: it calls itself a simulator: expected {expected}, got {got}")
    info = _info(engine, first, version.get("version"), version.get("tp"))
    return replace(
        info,
        model=info.model or _text(version.get("model")),
        simulated=True,
        clock_speed=float(speed),
        gpu=gpu if isinstance(gpu, str) and _GPU_NAME.fullmatch(gpu) else None,
    )


def _is_short(value: object) -> bool:
    """Is it a number, a switch or a short text, as settings are?"""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _SETTING_CHARS)


def _text(value: object) -> str | None:
    """A name, cut where it is long; None for anything else, such as text with control or invisible characters."""
    return value[:_NAME_CHARS] if isinstance(value, str) and value and value.isprintable() else None


def _whole(value: object, low: int, high: int) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return cast("int", value) if known else None


def _required(client: Any, base_url: str, path: str) -> object:
    """The JSON at `path`; each way to fail is one line that says what to do."""
    import httpx

    where = base_url + path
    try:
        reply = fetch(client, where)
    except httpx.TimeoutException:
        raise EngineError(f"{where}: no answer within {client.timeout.read:g} s; is the server still loading?") from None
    except httpx.HTTPError as error:
        raise EngineError(f"{where}: cannot connect ({error}); is the server started, and the URL right?") from None
    if reply.status in (401, 403):
        raise EngineError(
            f"{where}: HTTP {reply.status}: the server needs a key; set {' or '.join(credentials.KEY_VARIABLES)}"
        )
    if reply.location is not None and 300 <= reply.status < 400:
        raise EngineError(f"{where}: redirected to {reply.location}; give that server's own URL")
    if reply.status != 200:
        raise EngineError(f"{where}: expected an OpenAI-compatible server, got HTTP {reply.status}; is the URL right?")
    try:
        return _decoded(reply.content)
    except ValueError as error:
        got = f"{reply.content_type[:80]} that is no JSON: {error}"
        raise EngineError(f"{where}: expected JSON of an OpenAI-compatible server, got {got}; is the URL right?") from None


def _models(value: object, base_url: str) -> list[dict[str, Any]]:
    models = value.get("data") if isinstance(value, dict) else None
    if not isinstance(models, list):
        raise EngineError(f'{base_url}/v1/models: expected {{"data": [...]}} of an OpenAI-compatible server, got other JSON')
    return [model for model in models if isinstance(model, dict)]


def _optional(client: Any, base_url: str, path: str) -> dict[str, Any]:
    """The JSON object at `path`, or an empty one: not every server has it."""
    import httpx

    try:
        reply = fetch(client, base_url + path)
        value = _decoded(reply.content) if reply.status == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def flush_cache(base_url: str, engine: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Empty the prefix cache, where the engine has a way to (SGLang always; vLLM in the mode in which we start it).

    Returns whether the cache is empty now; raises `EngineError` where nobody answers.
    """
    import httpx

    base_url = normalise_url(base_url)
    path = _PREFIX_RESET.get(engine)
    if path is None:
        return False
    try:
        with client(base_url, timeout_s=timeout_s) as asking:
            reply = fetch(asking, base_url + path, "POST")
    except httpx.HTTPError as error:
        raise EngineError(f"{base_url}{path}: cannot flush the prefix cache: {type(error).__name__}: {error}") from None
    return reply.status == 200


def truth(base_url: str, api_key: str | None = None) -> list[TrueTimes]:
    """When tokens really left our simulator, for its last 100,000 requests. Raises `EngineError` where it does not say."""
    import httpx

    where = f"{base_url}/loadtest/truth"
    try:
        with client(base_url, api_key=api_key, timeout_s=_TRUTH_TIMEOUT_S) as asking:
            content = fetch(asking, where, limit_bytes=_TRUTH_LIMIT_BYTES).content
        return msgspec.json.decode(content, type=list[TrueTimes])
    except (httpx.HTTPError, msgspec.DecodeError, ValueError) as error:
        raise EngineError(f"{where}: {type(error).__name__}: {error}") from None
