"""A terminal of a real size around a command: what it shows, and what the command sent."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field

import pyte


@dataclass
class Terminal:
    """A command in a pseudo-terminal of this size. `raw`: all that it wrote, `lines`: what a person sees now."""

    argv: list[str]
    columns: int = 100
    rows: int = 40
    environment: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""

    def __enter__(self):
        self._master, slave = pty.openpty()
        self.screen = pyte.Screen(self.columns, self.rows)
        self._stream = pyte.ByteStream(self.screen)
        self.resize(self.columns)
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            self.argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is one
            env=kept | {"TERM": "xterm-256color"} | self.environment,
        )
        os.close(slave)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def lines(self):
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def resize(self, columns):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, columns, 0, 0))
        self.screen.resize(self.rows, columns)

    def press(self, keys):
        os.write(self._master, keys)

    def until(self, seen, timeout_s=60.0):
        """Read until `seen(self)` holds, or the command has ended; whether it held."""
        end_s = time.monotonic() + timeout_s
        while not (held := seen(self)) and time.monotonic() < end_s:
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # the other end is closed
                    return seen(self)
                self.raw += data
                self._stream.feed(data)
        return held

    def end(self):
        """Read to the end; the exit code."""
        self.until(lambda _: False)
        return self.process.wait(10)


def python(code, **how):
    return Terminal([sys.executable, "-c", code], **how)
