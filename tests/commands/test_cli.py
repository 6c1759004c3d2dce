"""The command line as a person meets it: help, errors in one line, exit codes, and what a terminal is shown."""

import os
import subprocess
import sys

import pytest

from loadtest import __version__, cli
from loadtest.commands import analyze
from loadtest.errors import GateError, Interrupted, RecordError


def test_help_names_every_command_and_imports_nothing_heavy():
    heavy = "[m for m in ('numpy', 'httpx', 'locust') if m in sys.modules]"
    code = f"import sys; from loadtest import cli; cli._parser(); print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"loadtest {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["run"],
        ["attach"],
        ["serve", "tgi", "--model", "m"],
        ["fit", "--model", "qwq-32b"],
        ["run", "--outt"],
    ],
)
def test_a_wrong_command_line_is_usage(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "absent.toml"], "absent.toml: cannot read this study"),
        (["fit", "--model", "gpt-9", "--gpu", "l20"], "gpt-9"),
        (["fit", "--model", "qwq-32b", "--gpu", "z80"], "z80"),
        (["fit", "--model", "qwq-32b", "--gpu", "l20", "--tp", "0"], "tp"),
        (["run", "absent.toml", "--resume"], "absent.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("loadtest: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"), [(GateError("g"), 3), (RecordError("r"), 1), (Interrupted("i"), 130), (KeyboardInterrupt(), 130)]
)
def test_each_kind_of_end_has_its_exit_code(error, code, monkeypatch, capsys):
    def fail(arguments, say):
        raise error

    monkeypatch.setattr(analyze, "analyze", fail)
    assert cli.main(["analyze", "somewhere"]) == code
    assert capsys.readouterr().err.startswith("loadtest: ")


def test_what_a_server_says_cannot_drive_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(analyze, "analyze", lambda arguments, say: "model \x1b]0;owned\x07")
    assert cli.main(["analyze", "somewhere"]) == 0
    assert capsys.readouterr().out == "model \\x1b]0;owned\\x07\n"


def test_a_bug_is_a_traceback(monkeypatch):
    def fail(arguments, say):
        raise ZeroDivisionError

    monkeypatch.setattr(analyze, "analyze", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["analyze", "somewhere"])


def test_what_follows_two_dashes_goes_to_the_runtime(capsys):
    assert cli.main(["serve", "vllm", "--model", "qwq-32b-awq", "--tp", "2", "--print", "--", "--enforce-eager"]) == 0
    said = capsys.readouterr().out
    assert "vllm serve Qwen/QwQ-32B-AWQ --host 127.0.0.1 --port 8000" in said
    assert said.endswith(" --enforce-eager\n")


def test_only_serve_hands_arguments_on(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["analyze", "somewhere", "--", "--enforce-eager"])
    assert ended.value.code == 2
    assert "after --: --enforce-eager" in capsys.readouterr().err


@pytest.mark.fault("secrets", "Escape sequences: shown as `\\x1b`, `\\u202e`")
def test_text_from_a_server_cannot_steer_the_terminal():
    hostile = "a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202edesrever\u2028b\x7f\x00"
    shown = cli.printable(hostile)
    assert shown.isprintable()
    assert shown == r"a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202edesrever\u2028b\x7f\x00"


FIT = [sys.executable, "-m", "loadtest", "fit", "--model", "qwq-32b", "--gpu", "l20"]


@pytest.mark.parametrize("place", ["a pipe without a reader", "/dev/full"])
@pytest.mark.fault("processes", "Lost output: `standard output: closed or full`, exit 1")
def test_a_result_that_nobody_takes_is_exit_code_1(place):
    reader, pipe = os.pipe()
    os.close(reader)
    with open("/dev/full" if place == "/dev/full" else pipe, "w") as output:
        done = subprocess.run(FIT, stdout=output, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "loadtest: standard output: closed or full before everything was written\n"


@pytest.mark.parametrize("number", [1, 2])
def test_a_standard_stream_may_be_closed(number):
    done = subprocess.run(FIT, capture_output=True, text=True, preexec_fn=lambda: os.close(number))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("limit_kib", [60_000, 150_000, 250_000, 900_000])
@pytest.mark.parametrize("argv", [("fit", "--model", "qwq-32b", "--gpu", "l20"), ("analyze", "runs/none"), ("--help",)])
@pytest.mark.fault("processes", "Little memory: `ulimit -v: expected`")
def test_with_little_memory_a_command_works_or_ends_with_one_line(argv, limit_kib):
    limited = ["bash", "-c", f'ulimit -v {limit_kib}; exec "$@"', "-", sys.executable, "-m", "loadtest", *argv]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done
    assert len(done.stderr.splitlines()) == done.returncode, done.stderr
    assert limit_kib > 600_000 or argv[0] == "--help" or "ulimit -v: expected" in done.stderr
