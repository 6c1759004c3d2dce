"""A program that a model wrote, run for its output and for nothing else. Linux on x86-64 or ARM64 only.

`run` starts `python -I -S` on this very file, which imports the modules a short program may need, and then gives up, for
good, every system call but those of plain computing (seccomp, an allow-list): from there on no file can be opened, no socket
made, no process started or signalled. Only then is the program read from standard input and executed. Time, memory and
output are limited by the kernel (`setrlimit`).

It protects the files, the network and the processes of this machine from careless and from spiteful programs. It does not
protect against a hole in the kernel's own seccomp, memory or scheduler code, nor against a program that only prints what
it was to compute.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

TIME_LIMIT_S = 5  # of processor time; of wall time, twice as much
MEMORY_LIMIT_BYTES = 512 * 2**20
OUTPUT_LIMIT_BYTES = 65536
_LIMITED = b"\n"  # written first, when the limits hold: no exit code would do, as a program may end with any

_MODULES = (
    "abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools heapq"
    " itertools json math numbers operator random re statistics string textwrap time typing"
)
# The system calls of computing alone, in this order: read write close fstat lseek mmap mprotect munmap brk rt_sigaction
# rt_sigprocmask rt_sigreturn mremap madvise getpid exit gettimeofday times sigaltstack gettid futex clock_gettime
# clock_nanosleep exit_group getrandom.
_CALLS = {  # the kernel's number of the architecture, and those of read, write, close, ...
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 39, 60, 96, 100, 131, 186, 202, 228, 230, 231, 318),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216,
         233, 172, 93, 169, 153, 132, 178, 98, 113, 115, 94, 278),
    ),
}  # fmt: skip
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM


def run(program: str, time_limit_s: int = TIME_LIMIT_S) -> str | None:
    """What a Python program prints, at most 64 KiB of it; None where it fails, or meets a limit.

    Raises `OSError` where this machine cannot limit it; nothing is run then.

    >>> run("print(sum(range(10)))")
    '45\\n'
    """
    import subprocess
    import tempfile

    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-B", __file__, str(time_limit_s)],
                input=program.encode("utf-8", "replace"),
                stdout=output,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                timeout=2 * time_limit_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return None
        output.seek(0)
        if not output.read(len(_LIMITED)):
            raise OSError("this machine cannot limit a program: Linux with seccomp on x86-64 or ARM64 is needed")
        return output.read().decode("utf-8", "replace") if done.returncode == 0 else None


def _limit(time_limit_s: int) -> None:
    """Time, memory, output; no core dump."""
    import resource

    for what, most in (
        (resource.RLIMIT_CPU, time_limit_s),
        (resource.RLIMIT_AS, MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_FSIZE, len(_LIMITED) + OUTPUT_LIMIT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def filter_of(machine: str) -> bytes:
    """The seccomp filter (classic BPF) for a machine: the kernel's `struct sock_filter`, one for each instruction.

    Another architecture is killed (so 32-bit calls cannot slip through), a call not on the list gets EPERM. A number of the
    x32 interface has bit 30 set, and so is on no list.
    """
    architecture, calls = _CALLS[machine]
    steps = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_EQUAL, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _lock() -> None:
    """Give up all system calls but those on the list. Raises `OSError` where the kernel refuses, `KeyError` elsewhere."""
    steps = filter_of(platform.machine())
    kept = ctypes.create_string_buffer(steps, len(steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps) // 8, ctypes.addressof(kept)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0),
    ):
        if libc.prctl(*map(ctypes.c_ulong, arguments)) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _main() -> None:
    source = sys.stdin.buffer.read()
    for name in _MODULES.split():
        __import__(name)
    try:
        _limit(int(sys.argv[1]))
        _lock()
    except (OSError, KeyError, AttributeError):
        os._exit(1)
    os.write(1, _LIMITED)
    exec(compile(source, "answer", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _main()
