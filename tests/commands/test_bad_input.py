"""What a person can get wrong on the command line or in a study: one line, before anything is started or asked."""

import pytest

from loadtest import cli, resources
from loadtest.errors import UsageError
from loadtest.study import parse

NOBODY = ("attach", "--base-url", "http://127.0.0.1:9")
AWQ = ("--model", "qwq-32b-awq", "--gpu", "l20")
DEMO = str(resources.path("scenarios/studies/demo.toml"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*NOBODY, "--duration", "nan"), "duration_s: expected seconds above 0, and below 1e8, got nan"),
        ((*NOBODY, "--duration", "inf"), "duration_s: expected seconds above 0, and below 1e8, got inf"),
        ((*NOBODY, "--requests", "0"), "min_requests: expected a number from 1 up, got 0"),
        ((*NOBODY, "--warmup-requests", "-1"), "warmup_requests: expected a number from 0 up, got -1"),
        ((*NOBODY, "--max-tokens", "0"), "max_tokens: expected a whole number from 1"),
        ((*NOBODY, "--tp", "0"), "tp: expected a number of GPUs from 1 up, got 0"),
        ((*NOBODY, "--seed", "-1"), "seed: expected a whole number from 0, got -1"),
        ((*NOBODY, "--gpu", "z80"), "gpu: GPU 'z80' is not known: expected one of l20"),
        ((*NOBODY, "--slo", "ttft_s:p200<2"), "slo: SLO 'ttft_s:p200<2': unknown statistic 'p200'"),
        ((*NOBODY, "--slo", "ttft_s:p90<nan"), "slo: SLO 'ttft_s:p90<nan': expected a finite number"),
        ((*NOBODY, "--workload", "absent.jsonl"), "workload 'absent.jsonl': expected a file or one of math"),
        ((*NOBODY, "--workload", "math:n=-1"), "n: expected a whole number from 1 to 100000, got '-1'"),
        ((*NOBODY, "--workload", f"math:seed={'9' * 5000}"), "seed: expected a whole number from 0"),
        ((*NOBODY, "--workers", "1001"), "workers: expected at most 1,000, got 1001"),
        (
            ("search", *NOBODY[1:], "--slo", "ttft_s:p50<2", "--max-concurrency", "9" * 30),
            "expected at most 99,999, got 9999",
        ),
        (("duel", "http://127.0.0.1:9", "http://127.0.0.1:10", "--matters", "nan"), "--matters: expected a percentage"),
        ((*NOBODY, "--extra-body", "[1]"), "--extra-body: expected a JSON object, got '[1]'"),
        ((*NOBODY, "--concurrency", "0-3"), "--concurrency 0-3: expected a range from 1 up"),
        (("attach", "--base-url", "ftp://host"), "base_url: ftp://host: expected a URL such as http://127.0.0.1:8000"),
        (("attach", "--base-url", "127.0.0.1:8000"), "base_url: 127.0.0.1:8000: expected a URL such as http://127.0.0.1"),
        (("attach", "--base-url", "http://127.0.0.1:99999"), "Port out of range 0-65535"),
        (("attach", "--base-url", "http://[::1"), "Invalid IPv6 URL"),
        (("attach", "--base-url", "http://127.0.0.1:9/a b"), "base_url: http://127.0.0.1:9/a b: expected a URL"),
        (("attach", "--base-url", "http://b\u00fccher.example"), "expected a URL such as http://127.0.0.1:8000"),
        (("attach", "--base-url", "http://good\\@evil"), "expected a URL such as http://127.0.0.1:8000"),
        (("serve", "vllm", "--model", "qwq-32b", "--port", "0", "--print"), "port: expected 1 to 65535, got 0"),
        (
            ("serve", "vllm", "--model", "qwq-32b", "--context", "-1", "--print"),
            "context_tokens: expected at least 1, got -1",
        ),
        (("serve", "vllm", "--model", "m", "--print", "--", "--host=0.0.0.0"), "args: expected neither --host nor --port"),
        (("fit", *AWQ, "--context", "0"), "context of 0 tokens at concurrency 1: expected both at least 1"),
        (("fit", *AWQ, "--tp", "3"), "tp 3: expected a divisor of the 40 attention heads"),
        (("predict", *AWQ, "--prompt-tokens", "0", "--output-tokens", "1"), "prompt tokens 0: expected at least 1"),
        (("predict", *AWQ, "--prompt-tokens", "9" * 20, "--output-tokens", "1"), "expected at most 1,000,000,000"),
        ((*NOBODY, "--workload", "a" * 5000), "expected a file or one of math"),
        ((*NOBODY, "--extra-body", '{"a":' * 5000), "--extra-body: expected a JSON object"),
        (("fit", "--model", "a" * 5000, "--gpu", "l20", "--tp", "1"), "is not known: expected one of"),
        (("serve", "vllm", "--print", "--model", "a" * 5000), "model: expected a registry name"),
        (("run", DEMO, "--dry-run", "--budget", "nan"), "--budget: expected hours above 0, got nan"),
        (("run", DEMO, "--dry-run", "--requests", "9"), "--requests: expected with --find-max, got it alone"),
        (
            ("predict", *AWQ, "--prompt-tokens", "1", "--output-tokens", "1", "--requests", "9"),
            "--requests: expected --study",
        ),
        (("run", DEMO, "--dry-run", "--budget", "0min"), "--budget: expected hours above 0, got 0"),
        (("run", DEMO, "--dry-run", "--precision", "100%"), "--precision: expected a percentage above 0 and below 100"),
        (("run", DEMO, "--dry-run", "--find-max", "--start", "0"), "--start: expected 1 to --max-concurrency 256, got 0"),
        (("plan", "--arrivals-per-hour", "-1"), "--arrivals-per-hour: expected from 0.001 to 1e9, got -1"),
        (("run", "/dev/zero"), "/dev/zero: expected a study of at most 1,048,576 characters"),
        (("run", "no\nsuch"), "loadtest: no\\nsuch: cannot read this study"),
    ],
)
@pytest.mark.fault("input", "A wrong number, URL, SLO or workload")
def test_a_wrong_value_is_one_line_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("loadtest: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


STUDY = """\
name = "two runtimes"
workload = "math:n=8"
levels = [1, 4]

[[cells]]
engine = "vllm"
model = "qwq-32b-awq"
gpu = "l20"

[prices]
gpu_hour = 1.5
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "levels = [1, 4]",
            'slo = ["ttft<2"]',
            "s.toml:3: slo: SLO 'ttft<2': unknown metric 'ttft': expected one of ttft_s",
        ),
        ("levels = [1, 4]", "duration_s = inf", "s.toml:3: duration_s: expected seconds above 0, and below 1e8, got inf"),
        ("levels = [1, 4]", "levels = [100_000]", "s.toml:3: levels: expected at most 99,999, got 100000"),
        ("levels = [1, 4]", f"min_requests = {10**30}", "s.toml:3: min_requests: expected at most 1,000,000,000, got 1000"),
        ("levels = [1, 4]", f"repeats = {10**30}", "s.toml:3: repeats: expected at most 1,000,000, got 1000"),
        ('gpu = "l20"', 'gpu = "l200"', "s.toml:8: gpu: GPU 'l200' is not known"),
        ('gpu = "l20"', "context_tokens = 0", "s.toml:8: context_tokens: expected at least 1, got 0"),
        ('gpu = "l20"', 'args = ["--port=1"]', "s.toml:8: args: expected neither --host nor --port"),
        ("gpu_hour = 1.5", "gpu_hour = nan", "s.toml:11: gpu_hour: expected a price from 0 up, got nan"),
        ("gpu_hour = 1.5", "gpu_hour = -1", "s.toml:11: gpu_hour: expected a price from 0 up, got -1"),
    ],
)
@pytest.mark.fault("input", "A wrong value in a study: file, line, key")
def test_a_wrong_value_in_a_study_is_named_with_its_line(old, new, message):
    with pytest.raises(UsageError) as caught:
        parse.parse_study(STUDY.replace(old, new), "s.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "a = " + "{b = " * 3000, 'scenario = "\\u0000"\n' + STUDY, f'scenario = "{"a" * 5000}"\n{STUDY}',
     STUDY.replace("qwq-32b-awq", "a\\u0000b"), STUDY.replace("qwq-32b-awq", "a" * 5000),
     STUDY.replace('"l20"', '"\\u0000.toml"')],
    ids=["lists", "tables", "scenario with NUL", "long scenario", "model with NUL", "long model", "card with NUL"],
)  # fmt: skip
@pytest.mark.fault("input", "An endless study, or NUL in names")
def test_a_hostile_study_is_one_line(text, tmp_path, capsys):
    path = tmp_path / "s.toml"
    path.write_text(text)
    assert cli.main(["run", str(path), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"loadtest: {path}:")
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["xn--a", "a" * 300, "."])
def test_a_host_that_can_have_no_such_name_is_one_line(host, capsys):
    assert cli.main(["attach", "--base-url", f"http://{host}"]) == 1
    error = capsys.readouterr().err
    assert "cannot connect (not the name of a host: " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"], ids=["long", "NUL"])
def test_a_path_that_no_file_can_have_is_refused(path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["analyze", path])
    assert caught.value.code == 2
    assert "expected a path, got '" in capsys.readouterr().err


def test_a_scenario_that_is_not_there_is_named_before_the_run_begins(capsys, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(f'scenario = "nonsense"\n{STUDY}')
    assert cli.main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "scenario: expected one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_log_of_keys_that_cannot_be_written_is_named(capsys, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", "/nonexistent/keys")
    assert cli.main(["attach", "--base-url", "https://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.startswith("loadtest: SSL_CERT_FILE, SSL_CERT_DIR, SSLKEYLOGFILE: expected files")


@pytest.mark.parametrize("proxy", ["foo://proxy", "socks5://proxy"])
@pytest.mark.fault("input", "An invalid proxy: `HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: expected http:// addresses`")
def test_a_proxy_that_is_none_is_named(proxy, capsys, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    assert cli.main(["attach", "--base-url", "https://server.invalid"]) == 2
    assert capsys.readouterr().err.startswith("loadtest: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: expected http:// addresses: ")
