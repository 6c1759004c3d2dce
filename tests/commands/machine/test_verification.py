"""The instrument held against known times, through Locust."""

import httpx
import pytest

from loadtest import cli
from loadtest.commands.machine import verification
from loadtest.errors import EngineError
from loadtest.records import read


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(verification, "TOKENS", 8)
    monkeypatch.setattr(verification, "REQUESTS", 4)


def test_a_verification_knows_every_request(short):
    said = []
    found = verification.verify(2, said.append)
    assert (found.concurrency, found.n_requests, found.n_lost) == (2, 6, 0)  # with the warm-up of each user
    assert 0 <= found.ttft_mean_s <= found.ttft_p99_s < 0.1
    assert found.gap_p99_s < 0.1
    assert said[0].startswith("the instrument against known times: concurrency 2")


def test_a_server_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setattr(verification, "python", lambda module: ["sh", "-c", "echo no; exit 3; :"])
    with pytest.raises(EngineError, match="did not start: no"):
        verification.verify(1, lambda _: None)


@pytest.mark.fault("servers", "`verify`: its own server is gone, or says something else: one line")
@pytest.mark.parametrize("answer", [None, b"", b"[]", b"{}", b'{"requests":[1]}', b"\xff", b"[" * 100_000])
def test_a_log_that_is_none_is_one_line(answer, monkeypatch):
    def get(url, **options):
        if answer is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, content=answer)

    monkeypatch.setattr(verification.httpx, "get", get)
    with pytest.raises(EngineError, match="the server of known times does not tell what it sent: "):
        verification._log(9)


def test_run_verify_is_in_the_manifest_and_on_the_page(short, tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "x"\nworkload = "math:n=4"\nlevels = [1]\nmin_requests = 2\n'
        '[[cells]]\nengine = "vllm-sim"\nmodel = "qwq-32b-awq"\ntp = 1\ngpu = "l20"\nclock_speed = 50.0\n'
        'args = ["--length-scale", "0.02"]\n'
    )
    assert cli.main(["run", str(study), "--verify", "--out", str(tmp_path / "run")]) == 0
    found = read.read_manifest(tmp_path / "run/manifest.json").instrument
    assert found.n_requests == 5
    assert "verified before this run: times to the first token within" in (tmp_path / "run/report.html").read_text()
