"""Programs among the answers of a finished run, run in the sandbox and judged: only when asked for, after measuring."""

from __future__ import annotations

import re
from collections.abc import Callable

from loadtest.errors import UsageError
from loadtest.grading import answers, sandbox
from loadtest.records.read import Run, program_key
from loadtest.records.schema import ANSWER_LIMIT_BYTES
from loadtest.workload import replay

_FENCED = re.compile(r"^```[ \t]*([^`\s]*)[^`\n]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)  # its language, its text
_PYTHON = ("python", "python3", "py")
_TELL_EVERY = 20  # programs
_CUT_BYTES = ANSWER_LIMIT_BYTES - 4  # an answer this long may have lost its end


def extract(answer: str) -> str | None:
    """The last fenced block that is said to be Python, else the last that is not said to be anything; None without one.

    >>> extract("Try this:\\n```python\\nprint(4)\\n```\\n")
    'print(4)\\n'
    """
    blocks = _FENCED.findall(answer)
    called = [text for language, text in blocks if language.lower() in _PYTHON]
    return next(reversed(called or [text for language, text in blocks if not language]), None)


def judge(answer: str, expected: str, run: Callable[[str], str | None] = sandbox.run) -> bool | None:
    """Does the program in this answer print what was expected, and only that? No program: wrong. Null: its end is lost.

    >>> judge("```python\\nprint(2 + 2)\\n```", "4", lambda program: "4\\n")
    True
    """
    program = extract(answer)
    if program is None:
        return None if len(answer.encode()) >= _CUT_BYTES else False
    printed = run(program)
    return printed is not None and answers.equal(expected, printed.strip())


def verdicts(run: Run, say: Callable[[str], None]) -> dict[str, bool | None]:
    """`programs.json` of a run: whether each program that was answered, by `program_key`, prints what it should.

    Population: measured requests that ended `ok`, of prompts that ask for a program. Raises `UsageError` where the answers
    are a simulator's, nothing asks for a program, or this machine cannot limit one.
    """
    if run.manifest.simulated:
        raise UsageError(f"{run.path}: --run-programs: expected answers of a model, got a simulator's; leave it out")
    prompts = {p.id: p for p in replay.of_run(run).prompts if p.answer_format == "program" and p.answer is not None}
    ended = (r for cell in run.cells for level in cell.levels for r in level.requests if r.outcome == "ok")
    found = {program_key(r): r for r in ended if r.prompt_id in prompts and r.phase == "measure"}
    if not found:
        raise UsageError(f"{run.path}: --run-programs: expected answers to prompts that ask for a program, got none")
    say(f"running {len(found)} programs, each within {sandbox.TIME_LIMIT_S} s, without files or network")
    judged: dict[str, bool | None] = {}
    for name, record in sorted(found.items()):
        try:
            judged[name] = judge(record.answer or "", prompts[record.prompt_id].answer or "")
        except OSError as error:
            raise UsageError(f"--run-programs: {error}; nothing is judged") from None
        if len(judged) % _TELL_EVERY == 0:
            say(f"{len(judged)} of {len(found)} programs")
    return judged
