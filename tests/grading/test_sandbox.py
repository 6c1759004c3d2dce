"""The sandbox: what a program may compute, and everything that it may not do, tried for real."""

import os
import platform
import struct

import pytest

from loadtest.grading import sandbox

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in sandbox._CALLS,
    reason="limited by Linux's seccomp",
)


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("print(sum(n for n in range(100) if n % 7 == 0))", "735\n"),
        ("import math, fractions, itertools, re, random, decimal\nprint(math.comb(10, 3))", "120\n"),
        ("if __name__ == '__main__':\n    print('é')", "é\n"),
        ("import sys\nprint(sys.stdin.read() == '')", "True\n"),
        ("import os\nprint(sorted(os.environ.keys() - {'LC_CTYPE'}))", "[]\n"),
    ],
)
def test_what_computes_is_run(program, printed):
    assert sandbox.run(program) == printed


@pytest.mark.parametrize(
    "program",
    [
        "open('{canary}').read()",
        "open('{canary}', 'a').write('x')",
        "import os; os.unlink('{canary}')",
        "import os; os.rename('{canary}', '{canary}2')",
        "import os; os.listdir('/')",
        "import socket",
        "import _socket; _socket.socket()",
        "import os; os.fork()",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "import os; os.posix_spawn('/bin/sh', ['sh'], {{}})",
        "import os; os.kill({pid}, 9)",
        "import threading; threading.Thread(target=print).start()",
        "bytearray(2**31)",
        "print('x' * 2**20)",
        *(f"raise SystemExit({code})" for code in (1, 3, 77)),
        "print(",
        "\0",
    ],
)
@pytest.mark.fault("secrets", "A program in an answer: sandboxed")
def test_what_does_more_is_stopped(program, tmp_path):
    """Each program must come to its end to print: none does, and nothing outside it has changed."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    assert sandbox.run(program.format(canary=canary, pid=os.getpid()) + "\nprint('done')") is None
    assert canary.read_text() == "alive"


def test_the_system_calls_themselves_are_refused_whatever_python_thinks_of_it():
    calls = {"socket": "41, 2, 1, 0", "openat": "257, -100, b'/etc/passwd', 0", "kill": f"62, {os.getpid()}, 9"}
    if platform.machine() == "aarch64":
        calls = {"socket": "198, 2, 1, 0", "openat": "56, -100, b'/etc/passwd', 0", "kill": f"129, {os.getpid()}, 9"}
    text = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    for name, arguments in calls.items():
        printed = sandbox.run(text + f"print(libc.syscall({arguments}), ctypes.get_errno())")
        assert printed == "-1 1\n", f"{name}: expected EPERM"


def test_what_prints_the_most_is_whole_and_a_byte_more_is_stopped():
    most = sandbox.OUTPUT_LIMIT_BYTES
    assert sandbox.run(f"print('x' * {most - 1})") == "x" * (most - 1) + "\n"
    assert sandbox.run(f"print('x' * {most})") is None


def test_time_runs_out():
    assert sandbox.run("while True: pass", time_limit_s=1) is None
    assert sandbox.run("import time; time.sleep(60)", time_limit_s=1) is None


def test_other_architectures_are_killed_and_unknown_calls_refused():
    """The filter, interpreted by hand: (architecture, number) to what the kernel is told."""
    steps = list(struct.iter_unpack("HBBI", sandbox.filter_of("x86_64")))

    def told(architecture, number):
        at = accumulator = 0
        while True:
            code, yes, no, value = steps[at]
            if code == sandbox._RETURN:
                return value
            if code == sandbox._LOAD:
                accumulator, at = {4: architecture, 0: number}[value], at + 1
            else:
                at += 1 + (yes if accumulator == value else no)

    native, calls = sandbox._CALLS["x86_64"]
    assert {told(native, number) for number in calls} == {sandbox._ALLOW}
    assert {told(native, number) for number in set(range(500)) - set(calls)} == {sandbox._REFUSE}
    assert {told(native, number | 0x40000000) for number in range(500)} == {sandbox._REFUSE}, "the x32 interface"
    assert told(0x40000003, 1) == sandbox._KILL, "32-bit calls"


def test_where_nothing_can_be_limited_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="cannot limit a program"):
        sandbox.run("print(1)")
