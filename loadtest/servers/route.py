"""The way to a server: over TCP or by the file of a Unix socket, through a proxy or not, its certificate verified or not.

Whatever a cell asks of a server goes the same way, measured requests and the questions before them.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from loadtest import credentials
from loadtest.errors import UsageError

UNIX = "unix"
_LONGEST_FILE_BYTES = 107  # of a Unix socket: what the system's address of one holds
_EXPECTED = "http://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `login`: `USER:PASSWORD`, never shown nor written."""

    host: str
    port: int
    login: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How the servers of a cell are reached. `proxy`: for all requests (None: for `https://` that of the environment, if it
    names one). `insecure`: certificates are not verified.

    Raises `UsageError`, which repeats no secret, where `proxy` is no plain `http://HOST:PORT`.
    """

    proxy: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.proxy is not None:
            _address(self.proxy)


def _address(url: str) -> tuple[str, int]:
    """Host and port of a proxy that was asked for."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"proxy: expected {_EXPECTED}: {error}") from None
    if "@" in parts.netloc:
        raise UsageError(f"proxy: expected {_EXPECTED} without a user; put USER:PASSWORD into {credentials.PROXY_VARIABLE}")
    if parts.scheme != "http" or not host or not port or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"proxy: expected {_EXPECTED}, got {url[:80]}")
    return host, port


_current = Route()


def current() -> Route:
    """The way that requests of this process take now."""
    return _current


def take(route: Route) -> None:
    """Reach servers by this way from now on."""
    global _current
    _current = route


@contextlib.contextmanager
def taken(route: Route) -> Iterator[None]:
    """Reach servers by this way while inside."""
    before = current()
    take(route)
    try:
        yield
    finally:
        take(before)


def proxy_to(url: str) -> Proxy | None:
    """The proxy between us and a URL: the one that was asked for; else, for `https://` alone, that of the environment.

    >>> with taken(Route(proxy="http://10.0.0.1:3128")):
    ...     proxy_to("http://127.0.0.1:8000").url
    'http://10.0.0.1:3128'
    """
    asked = current().proxy
    if asked is not None:
        return Proxy(*_address(asked), credentials.proxy_login())
    parts = urlsplit(url)
    return _of_environment(parts.hostname or "") if parts.scheme == "https" else None


def _of_environment(host: str) -> Proxy | None:
    named = urllib.request.getproxies().get("https")
    if not named or urllib.request.proxy_bypass(host):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise UsageError(f"https_proxy: expected {_EXPECTED}, got one of {proxy.scheme}://")
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else None
    return Proxy(proxy.hostname, proxy.port or 8080, login)


def check_route(route: Route, urls: tuple[str, ...]) -> None:
    """Raise `UsageError` where these servers cannot be reached so."""
    if route.insecure and not any(url.startswith("https://") for url in urls):
        raise UsageError("insecure: expected with https://, as nothing else has a certificate to verify; leave it out")
    if route.proxy is not None and any(map(socket_file, urls)):
        raise UsageError("proxy: expected none with unix://, as the socket is on this machine; leave it out")


# Unix sockets --------------------------------------------------------------------------------------------------------


def socket_file(url: str) -> str | None:
    """The file of a Unix socket; None of any other URL. What is asked of it follows a colon.

    >>> socket_file("unix:///run/vllm.sock:/v1/models"), socket_file("http://127.0.0.1:8000")
    ('/run/vllm.sock', None)
    """
    parts = urlsplit(url)
    return unquote(parts.path.partition(":")[0]) if parts.scheme == UNIX else None


def http_url(url: str) -> str:
    """The URL as it stands in a request: a Unix socket is a way to `localhost`.

    >>> http_url("unix:///run/vllm.sock:/v1/models")
    'http://localhost/v1/models'
    """
    return url if socket_file(url) is None else f"http://localhost{urlsplit(url).path.partition(':')[2]}"


def place(url: str) -> str:
    """Where a server is: its host and port, or the file of its socket.

    >>> place("http://10.0.0.1:8000/v1"), place("unix:///run/vllm.sock:")
    ('10.0.0.1:8000', '/run/vllm.sock')
    """
    return socket_file(url) or urlsplit(url).netloc


def host(url: str | None) -> str | None:
    """The host of a server, or the file of its socket; None where there is no URL."""
    return None if url is None else socket_file(url) or urlsplit(url).hostname


def normalise_socket(url: str) -> str:
    """The address that paths are added to. Raises `UsageError` where no socket can be there.

    >>> normalise_socket("unix:///run/vllm.sock")
    'unix:///run/vllm.sock:'
    """
    expected = "expected the file of a socket such as unix:///run/vllm.sock"
    parts = urlsplit(url)
    name, _, rest = parts.path.partition(":")
    if parts.netloc or not name.startswith("/") or rest or parts.query or parts.fragment:
        raise UsageError(f"{url[:200]}: {expected}")
    if len(unquote(name).encode()) > _LONGEST_FILE_BYTES:
        raise UsageError(f"{url[:200]}: {expected}, of at most {_LONGEST_FILE_BYTES} bytes; link it to a shorter one")
    return f"{UNIX}://{name}:"
