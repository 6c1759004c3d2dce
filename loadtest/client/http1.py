"""HTTP/1.1 responses, taken apart as they are read (RFC 9112): what of a read is body, and where the response ends.

Strict, and short, for it runs once for each token: no compression, no pipelining, no folded header lines. What is not
HTTP raises `NotHttp` and is never guessed at. `tests/test_http1.py` holds it against h11, read by read.
"""

from __future__ import annotations

import re

HEAD_LIMIT_BYTES = 65536
_SIZE_LINE_LIMIT_BYTES = 64  # a chunk's size in hex digits, and an extension after it
_SIZE_DIGITS = 15
_STATUS_LINE = b"HTTP/1."
_END = b"\r\n"
_HEX = frozenset(b"0123456789abcdefABCDEF")
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class NotHttp(Exception):  # noqa: N818 - what the bytes are, like StopIteration
    """The bytes are no HTTP/1.1 response; the text says what was expected and what came."""


class Response:
    """One response, fed read by read.

    `status` is None and `head_done` false until the head has come whole (interim 1xx responses are passed over).
    `done` says that the body has come to its end, `reusable` that the connection may carry another request then.
    """

    __slots__ = (
        "_at", "_between_chunks", "_chunked", "_held", "_left", "_step", "content_type", "done", "encoding", "head_done",
        "reusable", "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.encoding = ""
        self.head_done = False
        self.done = False
        self.reusable = False
        self._held = b""  # bytes read; those from `_at` on are not parsed yet
        self._at = 0
        self._left: int | None = None  # bytes of this chunk, or of the body; None: the body ends with the connection
        self._chunked = False
        self._between_chunks = False  # the next byte is the first of a chunk's size, and nothing is held
        self._step = self._head

    def whole_chunk(self, data: bytes) -> bytes | None:
        """The body of a read that is exactly one chunk, as almost every read of a stream is; None for any other read,
        which `feed` has to take."""  # fmt: skip
        if self._between_chunks:
            line = data.find(_END, 0, _SIZE_DIGITS + 2)
            if line > 0 and data[0] in _HEX:
                try:
                    size = int(data[:line], 16)
                except ValueError:
                    return None
                if size and line + size + 4 == len(data) and data.endswith(_END):
                    return data[line + 2 : -2]
        return None

    def feed(self, data: bytes) -> bytes:
        """What of a read is body. Raises `NotHttp`; bytes after the end of the response are one such error."""
        self._held = self._held[self._at :] + data
        self._at = 0
        body: list[bytes] = []
        while self._at < len(self._held) and not self.done and self._step(body):
            pass
        if self.done and self._at < len(self._held):
            raise NotHttp(f"bytes after the end of the response: {self._excerpt()}")
        self._between_chunks = self._step == self._chunk_size and self._at == len(self._held) and not self.done
        return b"".join(body)

    def end_of_connection(self) -> bool:
        """The server closed: whether that is how this response ends."""
        if self.head_done and not self._chunked and self._left is None:
            self.done = True
        return self.done

    # Each step takes what it can of what is held; false means that it needs more.

    def _head(self, body: list[bytes]) -> bool:
        if not _STATUS_LINE.startswith(self._held[self._at : self._at + len(_STATUS_LINE)]):
            raise NotHttp(f"expected a status line such as HTTP/1.1 200 OK: {self._excerpt()}")
        head = self._up_to(b"\r\n\r\n", HEAD_LIMIT_BYTES)
        if head is None:
            return False
        status_line, *lines = head.split(_END)
        version, status = _status(status_line)
        if status < 200:
            return True
        fields = _fields(lines)
        self.status = status
        self.content_type = fields.get("content-type", "").lower()
        self.encoding = fields.get("content-encoding", "").lower()
        self.head_done = True
        self._frame(fields, version)
        return True

    def _frame(self, fields: dict[str, str], version: bytes) -> None:
        """How long the body is (RFC 9112, 6.3), and whether the connection stays."""
        coding = fields.get("transfer-encoding", "").lower()
        length = fields.get("content-length")
        stays = "close" not in fields.get("connection", "").lower() and version == b"HTTP/1.1"
        if self.status in (204, 304):
            self._left, self.done = 0, True
        elif coding:
            if coding != "chunked":
                raise NotHttp(f"expected transfer-encoding chunked, got {coding[:40]!r}")
            self._chunked, self._step = True, self._chunk_size
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) <= _SIZE_DIGITS):
                raise NotHttp(f"expected a content-length in digits, got {length[:40]!r}")
            self._left, self._step, self.done = int(length), self._sized, int(length) == 0
        else:
            stays, self._step = False, self._until_close
        self.reusable = stays

    def _sized(self, body: list[bytes]) -> bool:
        self._take(body)
        self.done = self._left == 0
        return True

    def _until_close(self, body: list[bytes]) -> bool:
        body.append(self._held[self._at :])
        self._at = len(self._held)
        return True

    def _chunk_size(self, body: list[bytes]) -> bool:
        line = self._up_to(_END, _SIZE_LINE_LIMIT_BYTES)
        if line is None:
            return False
        digits = line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > _SIZE_DIGITS or not _HEX.issuperset(digits) or _CONTROL.search(line):
            raise NotHttp(f"expected the size of a chunk in hex digits: {line[:40]!r}")
        self._left = int(digits, 16)
        self._step = self._chunk if self._left else self._trailer
        return True

    def _chunk(self, body: list[bytes]) -> bool:
        if self._left:
            self._take(body)
            return True
        end = self._held[self._at : self._at + 2]
        if not _END.startswith(end):
            raise NotHttp(f"expected the end of a chunk: {self._excerpt()}")
        if len(end) < 2:
            return False
        self._at += 2
        self._step = self._chunk_size
        return True

    def _trailer(self, body: list[bytes]) -> bool:
        """Fields after the last chunk are passed over, up to the empty line."""
        line = self._up_to(_END, HEAD_LIMIT_BYTES)
        if line:
            _fields([line])
        self.done = line == b""
        return line is not None

    def _take(self, body: list[bytes]) -> None:
        """As much of the body as is held, and not more than is left of it."""
        assert self._left is not None
        piece = self._held[self._at : self._at + self._left]
        body.append(piece)
        self._left -= len(piece)
        self._at += len(piece)

    def _up_to(self, mark: bytes, limit: int) -> bytes | None:
        """What stands before `mark`, which is taken too; None while `mark` is still to come."""
        end = self._held.find(mark, self._at, self._at + limit + len(mark))
        if end < 0:
            if len(self._held) - self._at >= limit + len(mark):
                raise NotHttp(f"expected {mark!r} within {limit} bytes: {self._excerpt()}")
            return None
        found = self._held[self._at : end]
        self._at = end + len(mark)
        return found

    def _excerpt(self) -> str:
        return repr(self._held[self._at : self._at + 40])


def _status(line: bytes) -> tuple[bytes, int]:
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    known = version in (b"HTTP/1.1", b"HTTP/1.0") and not _CONTROL.search(rest)
    if not (known and len(code) == 3 and code.isdigit() and code >= b"100" and rest[3:4] in (b"", b" ")):
        raise NotHttp(f"expected a status line such as HTTP/1.1 200 OK: {line[:40]!r}")
    return version, int(code)


def _fields(lines: list[bytes]) -> dict[str, str]:
    """Header fields by lower-case name; of one that comes twice, the values joined, as RFC 9110 has it."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name) or _CONTROL.search(value):
            raise NotHttp(f"expected a header field such as Name: value: {line[:40]!r}")
        key, text = name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")
        fields[key] = f"{fields[key]}, {text}" if key in fields else text
    return fields
