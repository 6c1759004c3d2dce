"""Names of machines and people in the files of a run, replaced alike everywhere: `host-1`, `user-1`, `hidden-1`.

Replaced are the host of each process that wrote records, hosts of URLs (also as `HOST:PORT` elsewhere) and IP addresses but
for this machine's (`localhost`, 127.0.0.0/8), names of home folders, and words that are named. Keys of JSON objects stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_WRITER = re.compile(rf"^(?:requests|digests|level|client_health)-({_HOST})-\d+(?:-\d+)?\.jsonl?$")
_URL_HOST = re.compile(rf"(?<=://)(?:[^/@\s\"']*@)?({_HOST}|\[[0-9A-Fa-f:.]+\])")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
_HOME = re.compile(r"(?<=/home/)[^/\s\"']+|(?<=/Users/)[^/\s\"']+")
_OWN = re.compile(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]|0\.0\.0\.0")


class Pseudonyms:
    """The same pseudonym for the same name, in order of appearance.

    >>> names = Pseudonyms(["requests-gpu7-41.jsonl"], hidden=["Acme"])
    >>> names.in_text("gpu7: GET http://10.0.0.9:8000/v1 for Acme in /home/ada/runs")
    'host-1: GET http://host-2:8000/v1 for hidden-1 in /home/user-1/runs'
    >>> names.in_name("requests-gpu7-41.jsonl")
    'requests-host-1-41.jsonl'
    >>> names.in_json({"host": "gpu7", "url": "http://127.0.0.1:8000", "n": 2})
    {'host': 'host-1', 'url': 'http://127.0.0.1:8000', 'n': 2}
    """

    def __init__(self, file_names: Iterable[str], hidden: Iterable[str] = ()) -> None:
        self._given: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        writers = {found[1] for name in sorted(file_names) if (found := _WRITER.match(name))}
        self._hosts = tuple(sorted(writers, key=len, reverse=True))
        for host in self._hosts:
            self._of("host", host)
        self._words = tuple(sorted(filter(None, hidden), key=len, reverse=True))
        self._servers: frozenset[str] = frozenset()

    def learn(self, text: str) -> None:
        """Find the servers that a document names by URLs: elsewhere they stand as `HOST:PORT`.

        >>> names = Pseudonyms([])
        >>> names.learn('{"base_url": "http://gpu8:8000"}')
        >>> names.in_text("connection refused (gpu8:8000)")
        'connection refused (host-1:8000)'
        """
        self._servers |= {host for host in _URL_HOST.findall(text) if not _OWN.fullmatch(host)}

    def _of(self, kind: str, name: str) -> str:
        if name not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[name] = f"{kind}-{self._counts[kind]}"
        return self._given[name]

    def in_name(self, file: str) -> str:
        """The name of a file of records."""
        for host in self._hosts:
            file = re.sub(rf"-{re.escape(host)}(?=-\d)", f"-{self._of('host', host)}", file)
        return self._without_words(file)

    def in_text(self, text: str) -> str:
        """Free text, such as a line of a log."""
        text = _URL_HOST.sub(lambda found: self._unless_own(found[1]), text)
        text = _ADDRESS.sub(lambda found: self._unless_own(found[0]), text)
        for host in sorted(self._servers, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-])({re.escape(host)})(?=:\d)", lambda found: self._of("host", found[1]), text)
        text = _HOME.sub(lambda found: self._of("user", found[0]), text)
        for host in self._hosts:
            word = re.escape(host)
            text = re.sub(rf"(?<![\w.-]){word}(?![\w.-])|(?:(?<![\w.-])|(?<=-)){word}(?=-\d)", self._of("host", host), text)
        return self._without_words(text)

    def in_json(self, value: object, key: str = "") -> object:
        """A value of a JSON document. A bare word that happens to be the name of a host stays, but under the key `host`."""
        if isinstance(value, dict):
            return {name: self.in_json(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [self.in_json(one, key) for one in value]
        if not isinstance(value, str):
            return value
        if value in self._hosts:
            return self._of("host", value) if key == "host" else value
        return self.in_text(value)

    def in_line(self, line: bytes) -> bytes:
        """A line of records; one that is no JSON, as a crash leaves it, as text."""
        try:
            return msgspec.json.encode(self.in_json(msgspec.json.decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self.in_text(line.decode(errors="replace")).encode()

    def _unless_own(self, host: str) -> str:
        return host if _OWN.fullmatch(host) else self._of("host", host)

    def _without_words(self, text: str) -> str:
        for word in self._words:
            text = text.replace(word, self._of("hidden", word))
        return text
