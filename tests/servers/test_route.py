"""The way to a server: what may be asked for, and what of it is shown."""

import pytest

from loadtest import credentials
from loadtest.errors import UsageError
from loadtest.servers import route
from loadtest.servers.probe import is_loopback, normalise_url
from loadtest.servers.route import Route


@pytest.mark.parametrize(
    "proxy",
    ["10.0.0.1:3128", "https://proxy:3128", "socks5://proxy:1080", "http://proxy", "http://proxy:99999", "http://proxy:1/x"],
)
@pytest.mark.fault("input", "`--proxy` that is no plain HTTP proxy: `proxy: expected http://HOST:PORT`")
def test_only_a_plain_http_proxy_is_taken(proxy):
    with pytest.raises(UsageError, match=r"^proxy: expected http://HOST:PORT"):
        Route(proxy=proxy)


@pytest.mark.fault("secrets", "A password in `--proxy`: refused, not repeated")
def test_a_password_on_the_command_line_is_refused_and_not_repeated():
    with pytest.raises(UsageError) as caught:
        Route(proxy="http://who:hunter2secret@proxy:3128")
    assert str(caught.value) == "proxy: expected http://HOST:PORT without a user; put USER:PASSWORD into LOADTEST_PROXY_AUTH"


def test_the_login_of_a_proxy_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("LOADTEST_PROXY_AUTH", "who:hunter2secret")
    with route.taken(Route(proxy="http://10.0.0.1:3128")):
        proxy = route.proxy_to("http://127.0.0.1:8000")
    assert (proxy.login, proxy.url) == ("who:hunter2secret", "http://10.0.0.1:3128")
    assert "hunter2" not in repr(proxy)
    assert credentials.redacted("407: hunter2secret is wrong") == "407: [API key] is wrong"
    assert "LOADTEST_PROXY_AUTH" in credentials.WITHHELD


@pytest.mark.parametrize("login", ["who", ":pass", "who:pa\nss"])
def test_a_login_of_another_shape_is_refused_and_not_repeated(login, monkeypatch):
    monkeypatch.setenv("LOADTEST_PROXY_AUTH", login)
    with pytest.raises(UsageError) as caught:
        credentials.proxy_login()
    assert str(caught.value) == "LOADTEST_PROXY_AUTH: expected USER:PASSWORD, got something else; set it anew"


def test_the_environments_proxy_is_for_https_alone(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://who:pass@10.0.0.2:3128")
    monkeypatch.setenv("http_proxy", "http://10.0.0.3:3128")
    monkeypatch.setenv("no_proxy", "")
    assert route.proxy_to("http://server.invalid") is None
    assert route.proxy_to("https://server.invalid") == route.Proxy("10.0.0.2", 3128, "who:pass")


@pytest.mark.parametrize(
    ("asked", "urls", "said"),
    [
        (Route(insecure=True), ("http://h:1", "unix:///s:"), "insecure: expected with https://"),
        (Route(proxy="http://p:1"), ("unix:///s:",), "proxy: expected none with unix://"),
    ],
)
def test_a_way_that_makes_no_sense_is_refused(asked, urls, said):
    with pytest.raises(UsageError, match=said):
        route.check_route(asked, urls)


@pytest.mark.parametrize("end", ["", "/", "/v1", ":"])
def test_a_unix_socket_is_on_this_machine(end):
    url = normalise_url(f"unix:///run/vllm.sock{end}")
    assert url == "unix:///run/vllm.sock:"
    assert is_loopback(url)
    assert (route.socket_file(url), route.place(url), route.host(url)) == ("/run/vllm.sock",) * 3
    assert route.http_url(f"{url}/metrics") == "http://localhost/metrics"


@pytest.mark.parametrize("rest", ["//run/vllm.sock", "", "///a:/b", "///a?key=b", f"///{'a' * 107}", "///a b"])
@pytest.mark.fault("input", "`unix://` without a file that a socket can have: one line")
def test_what_is_no_socket_is_refused(rest):
    with pytest.raises(UsageError, match="expected"):
        normalise_url(f"unix:{rest}")
