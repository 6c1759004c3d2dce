"""The commands and the Python that our documents show, in their order."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    sorted(
        [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
        + [ROOT / f"{folder}/README.md" for folder in ("scenarios", "launchers", "tests/engines")]
    )
)
PROGRAM = re.compile(
    r"(?:[A-Z_]+=(?:\"[^\"]*\"|\$\(\S+\)|\S+) )*(?:\.venv/bin/|env/bin/)?"
    r"(?:cat >|cd|docker|export|git|kubectl|launchers/|loadtest|locust|make|\. |python|sudo|tests/|\.engines/)"
)
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```|((?:^(?: {4}|\t)[^\n]+\n)+)", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"<<'(\w+)'$")


@dataclass(frozen=True)
class Shown:
    """One command (with its here-document, if it has one) or one block of Python, and where it stands."""

    where: str
    text: str


def commands(document):
    """Every command line in code blocks, fenced or indented; a `$ ` in front and comments behind are not part of it."""
    found = []
    for language, block, line in _blocks(document):
        if language in ("", "sh"):
            found += [Shown(f"{document.relative_to(ROOT)}:{line + n}", text) for n, text in _logical_lines(block)]
    return [one for one in found if PROGRAM.match(one.text)]


def python(document):
    """Every block of Python."""
    return [
        Shown(f"{document.relative_to(ROOT)}:{line}", block) for kind, block, line in _blocks(document) if kind == "python"
    ]


def _blocks(document):
    text = document.read_text(encoding="utf-8")
    return [
        (match[1] or "", textwrap.dedent(match[2] or match[3] or ""), text.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(text)
    ]


def _logical_lines(block):
    """Lines of a shell, with what continues them."""
    found: list[tuple[int, str]] = []
    lines = iter(enumerate(block.splitlines()))
    for n, line in lines:
        text = line.removeprefix("$ ")
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        end = HERE_DOCUMENT.search(text)
        if end is None:
            found.append((n, re.sub(r"\s+# .*$", "", text)))
            continue
        for _, inner in lines:
            text += f"\n{inner}"
            if inner == end[1]:
                break
        found.append((n, text))
    return found
