"""The text format of Prometheus, as far as we read it."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence

Series = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

_LONGEST_LINE = 4096  # characters; a label may hold anything
_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


def parse_series(text: str, names: Container[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Those series of the Prometheus text format that have one of `names`: name to (labels, value) pairs. Lines of more
    than 4096 characters, and what is not a finite number, are left out.

    >>> parse_series('vllm:num_requests_running{engine="0"} 3.0', {"vllm:num_requests_running"})
    {'vllm:num_requests_running': [({'engine': '0'}, 3.0)]}
    """
    series: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        name = re.split(r"[{ \t]", line[:_LONGEST_LINE], maxsplit=1)[0]
        match = _LINE.fullmatch(line) if name in names and len(line) <= _LONGEST_LINE else None
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            series.setdefault(match[1], []).append((dict(_LABEL.findall(match[2] or "")), value))
    return series
