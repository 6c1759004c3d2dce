"""The client over real sockets, against a server that misbehaves by script."""

import contextlib
import gzip
import socket
import threading
import time

import gevent
import pytest

from loadtest.client.exchange import Exchange, Limits, overdue
from loadtest.client.transport import SocketTransport
from loadtest.errors import LoadtestError, UsageError
from loadtest.servers import route
from tests.support.proxy import make_certificate, proxying, server_context

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


def chunked(*payloads):
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in payloads)


class Scripted:
    """Answers every request with the same steps: bytes to send, or a function of the connection to call."""

    def __init__(self, *steps, tls=None, file=None):
        self.steps = steps
        self.tls = tls
        self.requests: list[bytes] = []
        self.connections = 0
        self.release = threading.Event()
        if file is None:
            self.listener = socket.create_server(("127.0.0.1", 0))
            where = f"{'https' if tls else 'http'}://127.0.0.1:{self.listener.getsockname()[1]}"
        else:
            self.listener = socket.create_server(str(file), family=socket.AF_UNIX)
            where = f"unix://{file}:"
        self.url = f"{where}/v1/chat/completions"
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self.serve, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def serve(self, connection):
        if self.tls:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection:
            while request := self.read(connection):
                self.requests.append(request)
                for step in self.steps:
                    if callable(step):
                        step(connection)
                    else:
                        connection.sendall(step)
                if self.steps and self.steps[-1] is close:
                    return

    def read(self, connection):
        data = b""
        while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < 2:
            try:
                piece = connection.recv(65536)
            except OSError:
                return b""
            if not piece:
                return b""
            data += piece
        return data

    def stop(self):
        self.release.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)


def close(connection):
    connection.shutdown(socket.SHUT_RDWR)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


@pytest.fixture
def scripted():
    servers = []

    def make(*steps, **where):
        servers.append(Scripted(*steps, **where))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def send():
    transports = []

    def one(server, *, limits=None, n=1, api_key=None):
        transport = SocketTransport(server.url, api_key=api_key, limits=limits)
        transports.append(transport)
        exchanges = [Exchange(body=b"{}") for _ in range(n)]
        for exchange in exchanges:
            transport.perform(exchange)
        return exchanges[0] if n == 1 else exchanges

    yield one
    for transport in transports:
        transport.close()


def test_a_stream_is_stamped_read_by_read(scripted, send):
    def wait(connection):
        time.sleep(0.02)

    server = scripted(HEAD + chunked(EVENT), wait, chunked(EVENT), b"0\r\n\r\n")
    x = send(server)
    assert (x.status, x.content_type, x.outcome, x.error) == (200, "text/event-stream", None, None)
    assert b"".join(x.pieces) == EVENT * 2
    assert len(x.reads) == len(x.pieces)
    assert x.began <= x.sent <= x.headers_at <= x.reads[0] <= x.reads[-1] <= x.ended
    assert x.reads[-1] - x.reads[0] > 0.01  # two reads, 20 ms apart


def test_what_is_sent(scripted, send):
    server = scripted(HEAD + b"0\r\n\r\n")
    send(server, api_key="secret")
    head = server.requests[0].split(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"post /v1/chat/completions http/1.1")
    assert b"authorization: bearer secret" in head
    assert b"accept-encoding: identity" in head
    assert b"expect" not in head


def test_a_connection_is_used_again(scripted, send):
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n")
    first, second = send(server, n=2)
    assert server.connections == 1
    assert first.connect_wall_s > 0
    assert second.connect_wall_s == 0


def test_connections_opened_ahead_are_taken(scripted):
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n")
    transport = SocketTransport(server.url)
    assert transport.open(3) > 0
    exchanges = [Exchange(body=b"{}") for _ in range(3)]
    gevent.joinall([gevent.spawn(transport.perform, x) for x in exchanges], raise_error=True)
    assert [x.outcome for x in exchanges] == [None] * 3
    assert server.connections == 3
    transport.close()


@pytest.mark.parametrize(
    ("steps", "outcome", "kind"),
    [
        ([close], "connection_error", "closed"),
        ([HEAD + chunked(EVENT), close], "connection_error", "closed"),
        ([HEAD + chunked(EVENT), reset], "connection_error", "reset"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n", close], "protocol_error", "not_http"),
        ([HEAD + b"zz\r\nhello\r\n", close], "protocol_error", "not_http"),
    ],
)
@pytest.mark.fault("servers", "The connection breaks: `connection_error`, tokens kept")
def test_broken_connections(scripted, send, steps, outcome, kind):
    x = send(scripted(*steps))
    assert (x.outcome, x.error.kind) == (outcome, kind)
    assert "127.0.0.1" in x.error.message


def test_nobody_listens(scripted, send):
    server = scripted()
    server.stop()
    server.stop = lambda: None
    x = send(server)
    assert (x.outcome, x.error.kind, x.sent) == ("connection_error", "refused", None)


def test_a_refusal_is_read_to_its_end(scripted, send):
    body = b'{"error":"Unauthorized"}'
    x = send(scripted(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)))
    assert (x.status, b"".join(x.pieces), x.outcome) == (401, body, None)


def test_a_redirect_is_not_followed(scripted, send):
    server = scripted(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")
    assert send(server).status == 302


@pytest.mark.fault("servers", "Redirects: not followed")
def test_the_key_goes_nowhere_else(scripted, send):
    elsewhere = scripted(HEAD + b"0\r\n\r\n")
    server = scripted(b"HTTP/1.1 307 Away\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % elsewhere.url.encode())
    assert send(server, api_key="secret").status == 307
    assert b"secret" in server.requests[0]
    assert elsewhere.connections == 0


def test_the_request_is_named(scripted):
    server = scripted(HEAD + b"0\r\n\r\n")
    transport = SocketTransport(server.url, api_key="secret")
    for name in ("run.cell.c01-r1.measure-0", "run.cell.c01-r1.measure-1"):
        transport.perform(Exchange(body=b"{}", request_id=name))
    transport.close()
    names = [line for request in server.requests for line in request.lower().split(b"\r\n") if b"x-request-id" in line]
    assert names == [b"x-request-id: run.cell.c01-r1.measure-0", b"x-request-id: run.cell.c01-r1.measure-1"]
    assert all(b"Bearer secret" in request for request in server.requests)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificate):
    return server_context(certificate)


def test_a_stream_over_tls(scripted, certificate, tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    server = scripted(HEAD + chunked(EVENT, EVENT), chunked(EVENT), b"0\r\n\r\n", tls=tls)
    transport = SocketTransport(server.url)
    transport.open(2)
    exchanges = [Exchange(body=b"{}") for _ in range(2)]
    gevent.joinall([gevent.spawn(transport.perform, x) for x in exchanges], raise_error=True)
    again = Exchange(body=b"{}")
    transport.perform(again)
    transport.close()
    for x in (*exchanges, again):
        assert (x.status, x.outcome, x.error) == (200, None, None)
        assert b"".join(x.pieces) == EVENT * 3
        assert x.sent <= x.reads[0] <= x.ended
    assert (server.connections, again.connect_wall_s) == (2, 0)
    assert exchanges[0].connect_wall_s == 0  # opened ahead, handshake and all


@pytest.mark.fault("servers", "An untrusted certificate: `tls`, nothing was sent")
def test_a_server_that_nobody_vouches_for_gets_nothing(scripted, send, tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server = scripted(HEAD + b"0\r\n\r\n", tls=tls)
    x = send(server, api_key="secret")
    assert (x.outcome, x.error.kind, x.sent) == ("connection_error", "tls", None)
    assert "certificate" in x.error.message
    assert server.requests == []


@pytest.fixture
def proxy(monkeypatch):
    @contextlib.contextmanager
    def serving(refusal=b""):
        with proxying(refusal) as server:
            monkeypatch.setenv("https_proxy", server.url.replace("://", "://who:pass@"))
            monkeypatch.setenv("no_proxy", "")
            yield server

    return serving


def test_a_proxy_sees_where_to_but_neither_key_nor_text(scripted, send, certificate, tls, proxy, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n", close, tls=tls)
    with proxy() as between:
        x = send(server, api_key="secret")
    assert (x.status, x.outcome, x.pieces) == (200, None, [EVENT])
    where = server.url.split("/")[2].encode()
    assert between.seen.startswith(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (where, where))
    assert b"Proxy-Authorization: Basic d2hvOnBhc3M=" in between.seen
    assert b"secret" not in between.seen
    assert b"content" not in between.seen


def test_a_proxy_that_refuses_is_named(scripted, send, tls, proxy):
    server = scripted(HEAD, tls=tls)
    with proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"):
        x = send(server)
    assert (x.outcome, x.error.kind, x.sent) == ("connection_error", "proxy", None)
    assert "407" in x.error.message
    assert "pass" not in x.error.message
    assert server.connections == 0


@pytest.mark.parametrize("login", [None, "who:pass:word"])
def test_a_proxy_that_is_asked_for_gets_whole_urls_and_a_login_of_the_environment(scripted, send, login, monkeypatch):
    """On this machine too, where the environment's proxy does not matter."""
    monkeypatch.setenv("no_proxy", "*")
    if login:
        monkeypatch.setenv("LOADTEST_PROXY_AUTH", login)
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n", close)
    with proxying() as between, route.taken(route.Route(proxy=between.url)):
        x = send(server)
    assert (x.status, x.outcome, x.pieces) == (200, None, [EVENT])
    [head] = between.heads
    assert head.startswith(b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (server.url.encode(), server.url.split("/")[2].encode()))
    assert (b"Proxy-Authorization: Basic d2hvOnBhc3M6d29yZA==\r\n" in head) is bool(login)
    assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1")


def test_a_proxy_that_is_asked_for_makes_way_to_tls(scripted, send, certificate, tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    monkeypatch.setenv("LOADTEST_PROXY_AUTH", "who:pass")
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n", close, tls=tls)
    with proxying() as between, route.taken(route.Route(proxy=between.url)):
        x = send(server)
    assert x.pieces == [EVENT]
    assert between.heads[0].startswith(b"CONNECT ")
    assert b"Proxy-Authorization: Basic d2hvOnBhc3M=" in between.heads[0]
    assert b"Proxy-Authorization" not in server.requests[0]


def test_a_proxy_that_is_not_there_is_named(scripted, send):
    server = scripted(HEAD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with route.taken(route.Route(proxy=nobody)):
        x = send(server)
    assert (x.outcome, x.error.kind, server.connections) == ("connection_error", "refused", 0)
    assert f"through {nobody}" in x.error.message


def test_a_certificate_is_taken_unverified_only_where_that_is_asked_for(scripted, send, tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n", close, tls=tls)
    assert send(server).error.kind == "tls"
    with route.taken(route.Route(insecure=True)):
        x = send(server)
    assert (x.outcome, x.pieces) == (None, [EVENT])
    assert send(server).error.kind == "tls"


def test_a_stream_over_a_unix_socket_is_stamped_by_this_process(scripted, send, tmp_path):
    server = scripted(HEAD + chunked(EVENT, EVENT), chunked(EVENT), b"0\r\n\r\n", file=tmp_path / "s")
    first, second = send(server, n=2)
    for x in (first, second):
        assert (x.status, x.outcome, x.error, b"".join(x.pieces)) == (200, None, None, EVENT * 3)
        assert x.unstamped > 0
        assert x.sent <= x.headers_at <= x.ended
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")


def test_a_unix_socket_that_nobody_serves_is_named(tmp_path):
    transport = SocketTransport(f"unix://{tmp_path}/none:/v1/chat/completions")
    x = Exchange(body=b"{}")
    transport.perform(x)
    transport.close()
    assert (x.outcome, x.error.kind) == ("connection_error", "connection")
    assert f"({tmp_path}/none)" in x.error.message


@pytest.mark.parametrize(
    ("limits", "steps", "outcome", "kind"),
    [
        (Limits(first_token_s=0.1), [HEAD + chunked(b": ping\n\n")], "timeout", "first_token"),
        (Limits(silence_s=0.1), [HEAD + chunked(EVENT)], "stalled", "silence"),
        (Limits(total_s=0.1, first_token_s=9), [HEAD], "timeout", "total"),
    ],
)
@pytest.mark.fault("servers", "Silence: `timeout`, `stalled`")
def test_limits(scripted, send, limits, steps, outcome, kind):
    server = scripted(*steps, lambda connection: server.release.wait(10), close)
    x = send(server, limits=limits)
    assert (x.outcome, x.error.kind) == (outcome, kind)


@pytest.mark.fault("servers", "A stream without end: `protocol_error`, `too_large`")
def test_a_server_that_never_stops(scripted, send):
    server = scripted(HEAD + chunked(EVENT * 1000), close)
    x = send(server, limits=Limits(size_bytes=10_000))
    assert (x.outcome, x.error.kind) == ("protocol_error", "too_large")


def test_a_server_that_trickles_is_held_to_what_its_reads_take(scripted, send):
    """One byte a read: their times and objects take a hundred times the memory of the bytes."""

    def trickle(connection):
        with contextlib.suppress(OSError):  # until the client goes
            while True:
                connection.sendall(b"1\r\nx\r\n")
                time.sleep(0.0005)

    server = scripted(HEAD, trickle)
    x = send(server, limits=Limits(size_bytes=2000))
    assert (x.outcome, x.error.kind) == ("protocol_error", "too_large")
    assert len(x.pieces) < 20


@pytest.mark.parametrize(
    ("head", "more"),
    [(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), (HEAD + b"0\r\n", b"A: b\r\n"), (HEAD, b"1;" + b"e" * 60 + b"\r\nx\r\n")],
    ids=["interim responses", "trailers", "chunk extensions"],
)  # fmt: skip
@pytest.mark.fault("servers", "Endless trailers, chunk extensions: `protocol_error`, `too_large`")
def test_framing_without_end_counts_as_well(scripted, send, head, more):
    def never_stops(connection):
        with contextlib.suppress(OSError):  # until the client goes
            while True:
                connection.sendall(more * 100)

    x = send(scripted(head, never_stops), limits=Limits(size_bytes=200_000))
    assert (x.outcome, x.error.kind) == ("protocol_error", "too_large")
    assert sum(map(len, x.pieces)) < 20_000


@pytest.mark.fault("servers", "A compression bomb: `compressed`, not unpacked")
def test_a_bomb_is_not_unpacked(scripted, send):
    bomb = gzip.compress(bytes(10_000_000))
    encoded = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    server = scripted(encoded + chunked(bomb), lambda connection: server.release.wait(10), close)
    x = send(server)
    assert (x.outcome, x.error.kind) == ("protocol_error", "compressed")
    assert "gzip" in x.error.message
    assert x.pieces == []


def test_a_refusal_is_heard_while_the_request_is_still_being_written(scripted):
    server = scripted(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\n{}", close)
    transport = SocketTransport(server.url)
    x = Exchange(body=b"x" * 2**24)
    transport.perform(x)
    transport.close()
    assert (x.status, b"".join(x.pieces), x.outcome) == (413, b"{}", None)


@pytest.mark.fault("servers", "One stalled stream holds up no other")
def test_a_stalled_stream_holds_up_no_other(scripted):
    stalled = scripted(HEAD + chunked(EVENT), lambda connection: stalled.release.wait(10), close)
    healthy = scripted(HEAD + chunked(EVENT), *[chunked(EVENT)] * 50, b"0\r\n\r\n")
    hung, well = Exchange(body=b"{}"), [Exchange(body=b"{}") for _ in range(8)]
    waiting, going = SocketTransport(stalled.url, limits=Limits(silence_s=0.5)), SocketTransport(healthy.url)
    job = gevent.spawn(waiting.perform, hung)
    gevent.joinall([gevent.spawn(going.perform, x) for x in well], raise_error=True)
    assert hung.outcome is None  # still waiting when all the others had ended
    assert [(x.outcome, b"".join(x.pieces)) for x in well] == [(None, EVENT * 51)] * 8
    job.join()
    assert (hung.outcome, hung.error.kind, hung.pieces) == ("stalled", "silence", [EVENT])
    waiting.close()
    going.close()


def test_a_connection_that_the_server_closed_while_idle_is_opened_anew_once(scripted, send):
    server = scripted(HEAD + chunked(EVENT) + b"0\r\n\r\n", close)
    first, second = send(server, n=2)
    assert (first.outcome, second.outcome, second.pieces) == (None, None, [EVENT])
    assert (server.connections, first.resends) == (2, 0)


@pytest.mark.fault("servers", "A kept connection dropped late: `connection_error`, never resent")
def test_a_request_that_a_server_takes_and_drops_later_is_a_failure_of_full_length(scripted, send):
    """On a kept connection too: what a server has had for 0.4 s it may have read, and the user waited that long."""

    def drop_the_second(connection):
        if len(server.requests) == 2:
            time.sleep(0.4)
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.sendall(HEAD + chunked(EVENT) + b"0\r\n\r\n")

    server = scripted(drop_the_second)
    first, second = send(server, n=2)
    assert (first.outcome, first.resends) == (None, 0)
    assert (second.outcome, second.error.kind, second.resends) == ("connection_error", "closed", 0)
    assert second.wall_s >= 0.4
    assert len(server.requests) == 2


@pytest.mark.fault("servers", "A body that nobody reads: `timeout`")
def test_a_server_that_reads_no_more_does_not_hold_a_user_past_the_limits():
    """A body of 8 MB that nobody reads: the limit on the first token ends the wait."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    transport = SocketTransport(url, limits=Limits(first_token_s=0.3))
    x = Exchange(body=b"x" * 8_000_000)
    with gevent.Timeout(10):
        transport.perform(x)
    transport.close()
    listener.close()
    assert (x.outcome, x.error.kind) == ("timeout", "first_token")
    assert x.wall_s < 5


def test_a_handshake_that_never_ends_is_given_up(scripted, send):
    server = scripted()
    server.url = server.url.replace("http:", "https:")  # it waits for a request that never comes
    x = send(server, limits=Limits(connect_s=0.1), api_key="secret")
    assert (x.outcome, x.error.kind, x.sent) == ("connection_error", "connect_timeout", None)


def test_a_killed_wait_is_cut_off_and_keeps_what_came(scripted):
    server = scripted(HEAD + chunked(EVENT), lambda connection: server.release.wait(10), close)
    transport = SocketTransport(server.url)
    x = Exchange(body=b"{}")
    job = gevent.spawn(transport.perform, x)
    while not x.reads:
        gevent.sleep(0.001)
    job.kill()
    assert (x.outcome, x.pieces, transport.in_flight) == ("cut_off", [EVENT], 0)
    assert x.ended >= x.reads[-1]
    transport.close()


def test_silence_is_between_texts_not_between_comments():
    x = Exchange(body=b"", sent=0.0, reads=[1.0, 50.0], pieces=[EVENT, b": ping\n\n"])
    assert overdue(x, 300.9, Limits()) is None
    assert overdue(x, 301.1, Limits())[:2] == ("stalled", "silence")
    x.reads.append(301.2)
    x.pieces.append(EVENT)
    assert overdue(x, 301.3, Limits()) is None


def test_a_role_only_chunk_is_not_the_first_token():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    x = Exchange(body=b"", sent=0.0, reads=[1.0], pieces=[role])
    assert overdue(x, 601.0, Limits())[:2] == ("timeout", "first_token")


def test_limits_are_seconds_of_the_run():
    x = Exchange(body=b"", sent=0.0)
    assert overdue(x, 31.0, Limits(), speed=20.0)[:2] == ("timeout", "first_token")
    assert overdue(x, 29.0, Limits(), speed=20.0) is None


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://"])
def test_urls_that_are_none(url):
    with pytest.raises(UsageError, match="URL"):
        SocketTransport(url)


def test_a_host_that_nobody_knows():
    with pytest.raises(LoadtestError, match="no-such-host"):
        SocketTransport("http://no-such-host.invalid/")


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(UsageError, match="silence_s"):
        Limits(silence_s=0)
