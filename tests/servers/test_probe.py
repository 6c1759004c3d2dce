"""Who answers at a URL: told from canned answers shaped as the engines' own."""

import contextlib
import socket
import threading

import pytest

from loadtest.errors import EngineError, UsageError
from loadtest.servers import probe, route
from tests.support.fake_server import serving
from tests.support.proxy import make_certificate, proxying, server_context


def models(owner, **more):
    return {"object": "list", "data": [{"id": "qwq-32b", "object": "model", "owned_by": owner, **more}]}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("LOADTEST_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "asked"), [("http://server.invalid", False), ("https://127.0.0.1:9", False), ("https://server.invalid", True)]
)
def test_questions_take_the_way_of_the_requests(url, asked):
    """Those go through a proxy for https:// alone."""
    with probe.client(url) as client:
        assert client.trust_env is asked


def test_vllm_is_known_by_its_owner_and_version():
    with serving({"/v1/models": models("vllm", max_model_len=8192), "/version": {"version": "0.32.0"}}) as server:
        info = probe.probe(server.url + "/v1/")
    assert info == probe.ServerInfo(
        engine="vllm", version="0.32.0", model="qwq-32b", max_model_len=8192, models=("qwq-32b",)
    )


# Labels of a real vLLM 0.32.
CACHE = (
    'vllm:cache_config_info{_block_size_resolved="True",block_size="128",cache_dtype="auto",enable_prefix_caching="False",'
    'engine="0",gpu_memory_utilization="0.92",num_gpu_blocks="16384",sliding_window="None"} 1.0'
)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (CACHE, {"gpu_memory_utilization": "0.92", "cache_dtype": "auto", "enable_prefix_caching": False}),
        ('vllm:cache_config_info{cache_dtype="None"} 1', {}),
        ("vllm:num_requests_running 0", {}),
        ((404, "not here", {}), {}),
    ],
)
def test_vllm_tells_settings_in_its_metrics(metrics, told):
    with serving({"/v1/models": models("vllm"), "/metrics": metrics}) as server:
        assert probe.probe(server.url).settings == told


@pytest.mark.parametrize(
    ("metrics", "tokens"),
    [(CACHE, 16384 * 128), (CACHE.replace("16384", "None"), None), (CACHE.replace("16384", "9" * 20), None), ("", None)],
)
def test_vllm_tells_what_its_kv_cache_holds(metrics, tokens):
    with serving({"/v1/models": models("vllm"), "/metrics": metrics}) as server:
        assert probe.probe(server.url).kv_cache_tokens == tokens


@pytest.mark.parametrize(("told", "tokens"), [(87970, 87970), ("many", None), (-1, None), (None, None)])
def test_sglang_tells_what_its_kv_cache_holds(told, tokens):
    with serving({"/v1/models": models("sglang"), "/server_info": {"max_total_num_tokens": told}}) as server:
        assert probe.probe(server.url).kv_cache_tokens == tokens


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_sglang_tells_version_and_tp_under_either_name(path):
    answers = {
        "/v1/models": models("sglang", max_model_len=4096),
        path: {"version": "0.5.15", "tp_size": 2, "api_key": "s3cret"},
    }
    with serving(answers) as server:
        info = probe.probe(server.url)
    assert (info.engine, info.version, info.tp, info.max_model_len, info.simulated) == ("sglang", "0.5.15", 2, 4096, False)
    assert "s3cret" not in repr(info)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "loadtest"])
def test_a_simulator_is_never_taken_for_the_real_thing(owner):
    version = {"version": "0.32.0", "simulated": True, "engine": "vllm-sim", "clock_speed": 20, "tp": 2, "gpu": "l20"}
    with serving({"/v1/models": models(owner), "/version": version}) as server:
        info = probe.probe(server.url)
    assert (info.engine, info.simulated, info.clock_speed, info.tp, info.gpu) == ("vllm-sim", True, 20.0, 2, "l20")


def test_any_other_openai_compatible_server_is_other():
    with serving({"/v1/models": models("someone")}) as server:
        assert probe.probe(server.url) == probe.ServerInfo(engine="other", model="qwq-32b", models=("qwq-32b",))


def test_a_server_that_names_no_model_has_none():
    with serving({"/v1/models": {"data": []}}) as server:
        assert probe.probe(server.url).model is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((401, {"error": "Unauthorized"}, {}), "set LOADTEST_API_KEY"),
        ((404, "nothing here", {}), "got HTTP 404"),
        ((200, "<html>", {"content-type": "text/html"}), "got text/html"),
        ((200, ["no"], {}), "got other JSON"),
        ((307, "", {"location": "http://elsewhere.invalid/v1/models"}), "redirected to http://elsewhere.invalid"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_address(answer, expected):
    with serving({"/v1/models": answer}) as server, pytest.raises(EngineError) as caught:
        probe.probe(server.url)
    assert str(caught.value).startswith(f"{server.url}/v1/models: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match="cannot connect"):
        probe.probe(url)


def test_silence_is_told_after_the_timeout():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            probe.probe(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        ({}, None, None),
        ({"OPENAI_API_KEY": "two"}, None, "Bearer two"),
        ({"OPENAI_API_KEY": "two", "LOADTEST_API_KEY": "one"}, None, "Bearer one"),
        ({"LOADTEST_API_KEY": "one"}, "three", "Bearer three"),
    ],
)
def test_the_key_comes_from_the_environment(monkeypatch, variables, given, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with serving({"/v1/models": models("vllm")}) as server:
        probe.probe(server.url, given)
    assert {headers.get("authorization") for _, headers in server.asked} == {expected}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match="expected a URL"):
        probe.probe(url)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@host", "https://host/v1?key=hunter2", "https://host/#hunter2", "me:hunter2@host"]
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(UsageError) as caught:
        probe.probe(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("engine", "path"), [("sglang", "/flush_cache"), ("vllm", "/reset_prefix_cache")])
def test_flushing_uses_the_engines_own_path(engine, path):
    with serving({path: {}}) as server:
        assert probe.flush_cache(server.url, engine) is True
    with serving({}) as server:
        assert probe.flush_cache(server.url, engine) is False
        assert probe.flush_cache(server.url, "other") is False
    assert [asked for asked, _ in server.asked] == [path]


def test_of_several_models_the_one_that_was_named_is_told_of():
    models = {"data": [{"id": "a", "max_model_len": 16}, {"id": "b", "max_model_len": 32}]}
    with serving({"/v1/models": models}) as server:
        first, named = probe.probe(server.url), probe.probe(server.url, model="b")
    assert (first.model, first.max_model_len, first.models) == ("a", 16, ("a", "b"))
    assert (named.model, named.max_model_len) == ("b", 32)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "[" * 100_000, {}), "expected JSON of an OpenAI-compatible server"),
        ((200, " " * 9_000_000, {}), "more than 8 MB"),
        ((200, "{}", {"content-encoding": "gzip"}), "compressed"),
        ((200, {"data": [{"id": "x" * 1_000_000}] * 5}, {}), None),
    ],
)
@pytest.mark.fault("servers", "`/v1/models` silent, slow, huge or compressed: one line, exit 1")
def test_a_hostile_answer_is_one_line_and_little_memory(answer, message):
    with serving({"/v1/models": answer}) as server:
        if message is None:
            assert len(probe.probe(server.url).model) == 256
        else:
            with pytest.raises(EngineError, match=message) as caught:
                probe.probe(server.url)
            assert "\n" not in str(caught.value)


@pytest.mark.timeout(120)
def test_a_trickle_is_given_up_when_the_time_is_over():
    """One byte now and then, each well within the time that a read may take."""

    def trickle():
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while not stop.wait(0.05):
                connection.sendall(b" ")

    stop = threading.Event()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(EngineError, match="no answer within 0.3 s"):
                probe.probe(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.3)
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "lie",
    [
        {"engine": "../../../../escape-sim"},
        {"engine": ["vllm-sim"]},
        {"engine": "vllm"},
        {"engine": "vllm-sim", "clock_speed": 1e308},
        {"engine": "vllm-sim", "clock_speed": 10**30},
        {"engine": "vllm-sim", "clock_speed": 1e-300},
        {"engine": "vllm-sim", "clock_speed": 0},
        {"engine": "vllm-sim", "clock_speed": "fast"},
    ],
    ids=str,
)
@pytest.mark.fault("servers", "A false simulator: `it calls itself a simulator: expected`")
def test_what_no_simulator_of_ours_says_of_itself_is_refused(lie):
    """Its engine names a folder of the run, and its clock multiplies every time."""
    answers = {"/v1/models": models("vllm"), "/version": {"simulated": True, **lie}}
    with serving(answers) as server, pytest.raises(EngineError, match="/version: it calls itself a simulator") as caught:
        probe.probe(server.url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "listed", "more"),
    [
        ("vllm", {"id": "a\x00b\x1b[31m\x9b\u202e", "max_model_len": -7}, {}),
        ("vllm", {"id": ["m"], "max_model_len": 10**30}, {}),
        ("sglang", {"id": "", "max_model_len": True}, {"tp_size": 10**30, "context_length": 10**30, "version": 7}),
        (
            "vllm",
            {"id": None, "max_model_len": 0},
            {"simulated": True, "engine": "vllm-sim", "tp": -5, "gpu": "../../x.toml"},
        ),
    ],
    ids=["names", "types", "sglang", "simulator"],
)
@pytest.mark.fault("servers", "Control characters in names, impossible context lengths: unknown")
def test_what_no_server_can_mean_is_not_believed(owner, listed, more):
    entry = {"data": [{"owned_by": owner, **listed}]}
    with serving({"/v1/models": entry, "/version": more, "/server_info": more}) as server:
        info = probe.probe(server.url)
    assert (info.model, info.models, info.max_model_len, info.tp, info.gpu) == (None, (), None, None, None)


@pytest.mark.parametrize("body", ['{"data": [{"id": "\\ud800"}]}', '{"data": [{"x": NaN}]}', '{"data": ' + "9" * 5000 + "}"])
def test_json_is_taken_strictly(body):
    """What Python's own parser lets through could not be written into a file afterwards."""
    with serving({"/v1/models": (200, body, {})}) as server, pytest.raises(EngineError, match="that is no JSON"):
        probe.probe(server.url)


@pytest.mark.parametrize("body", ["{}", '[{"request_id": 1}]', "[" * 100_000, "[NaN]"])
def test_a_truth_that_is_none_is_an_error_of_the_engine(body):
    with serving({"/loadtest/truth": (200, body, {})}) as server, pytest.raises(EngineError, match="/loadtest/truth: "):
        probe.truth(server.url)


def test_a_model_beyond_the_first_hundred_can_be_named():
    models = {"data": [{"id": f"m{n}"} for n in range(300)]}
    with serving({"/v1/models": models}) as server:
        assert "m250" in probe.probe(server.url, model="m250").models


def test_a_certificate_file_is_used_on_this_machine_too_or_none_where_that_is_asked_for(tmp_path, monkeypatch):
    context = server_context(make_certificate(tmp_path))
    with serving({"/v1/models": {"data": [{"id": "m"}]}}) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(EngineError, match="CERTIFICATE_VERIFY_FAILED"):
            probe.probe(url)
        with route.taken(route.Route(insecure=True)):
            assert probe.probe(url).model == "m"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        assert probe.probe(url).model == "m"


def test_questions_go_through_a_proxy_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("LOADTEST_PROXY_AUTH", "who:pass")
    answers = {"/v1/models": {"data": [{"id": "m"}]}}
    with serving(answers) as server, proxying() as between, route.taken(route.Route(proxy=between.url)):
        assert probe.probe(server.url).model == "m"
    assert between.heads[0].startswith(b"GET %b/v1/models HTTP/1.1" % server.url.encode())
    assert b"Proxy-Authorization: Basic d2hvOnBhc3M=" in between.heads[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_questions_go_to_the_file_of_a_socket(tmp_path):
    with serving({"/v1/models": {"data": [{"id": "m"}]}}, file=tmp_path / "s") as server:
        assert probe.probe(f"unix://{tmp_path}/s/v1").model == "m"
        assert server.asked[0][1]["host"] == "localhost"
    with pytest.raises(EngineError, match=f"unix://{tmp_path}/none:/v1/models: cannot connect"):
        probe.probe(f"unix://{tmp_path}/none")
