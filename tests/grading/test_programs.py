"""Programs among the answers: taken out, run in the sandbox, judged, and seen by whatever reads the run."""

import json
from dataclasses import replace

import pytest

from loadtest import cli
from loadtest.analysis.run import analyze
from loadtest.errors import UsageError
from loadtest.grading import programs
from loadtest.records import read
from loadtest.workload import workload
from tests.support import builders


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("First:\n```python\nprint(1)\n```\nBetter:\n```py\nprint(2)\n```\nDone.", "print(2)\n"),
        ("```\nprint(3)\n```", "print(3)\n"),
        ("```python\nprint(4)\n```\nIt prints:\n```text\n4\n```", "print(4)\n"),
        ("```python\nprint(4)\n```\nIt prints:\n```\n4\n```", "print(4)\n"),
        ("```json\n{}\n```\nSo:\n```python title=a.py\nprint(4)\n```", "print(4)\n"),
        ("print(5)", None),
        ("```python\nprint(6)", None),
        ("```c\nint main() {}\n```", None),
    ],
)
def test_the_last_python_block_is_the_answer(answer, program):
    assert programs.extract(answer) == program


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("42\n", True),
        ("42.0", True),
        ("41", False),
        ("42 43", False),
        ("", False),
        ("The answer is 42", False),
        (None, False),
    ],
)
def test_all_that_is_printed_must_be_the_answer(printed, verdict):
    assert programs.judge("```python\npass\n```", "42", lambda program: printed) is verdict


def test_no_program_is_wrong_and_a_lost_end_is_unknown():
    assert programs.judge("It is 42.", "42") is False
    assert programs.judge("```python\n" + "x" * 4090, "42") is None


def made(tmp_path, answers, **facts):
    asked = workload.load("code:n=4,seed=1")
    described = {"source": asked.source, "name": "code", "identity": asked.identity, "n_prompts": 4}
    rows = [
        replace(builders.request(2.0 * i, prompt_id=prompt.id, seq=i, answer_correct=None), answer=answers(prompt))
        for i, prompt in enumerate(asked.prompts)
    ]
    return builders.write(
        builders.run([builders.cell([builders.level(rows)])], workload=described, **facts), tmp_path / "run"
    )


def test_programs_are_judged_when_asked_for_and_only_then(tmp_path, capsys):
    right = workload.load("code:n=4,seed=1").prompts[0].id
    run = made(tmp_path, lambda p: f"```python\nprint({p.answer if p.id == right else 0})\n```")
    assert cli.main(["analyze", str(run), "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["levels"][0]["accuracy"]["value"] is None
    assert cli.main(["analyze", str(run), "--run-programs", "--json"]) == 0
    told = capsys.readouterr()
    (cell,) = json.loads(told.out)["cells"]
    assert cell["levels"][0]["accuracy"]["value"] == 0.25
    assert "running 4 programs" in told.err
    again = analyze(read.read_run(run)).cells[0].levels[0].accuracy
    assert again.value == 0.25, "the verdicts stay with the run"


def test_a_long_judging_tells_how_far_it_is(tmp_path, monkeypatch):
    run = made(tmp_path, lambda p: "no program")
    monkeypatch.setattr(programs, "_TELL_EVERY", 2)
    said = []
    programs.verdicts(read.read_run(run), said.append)
    assert said[1:] == ["2 of 4 programs", "4 of 4 programs"]


def test_a_simulators_answers_are_no_programs(tmp_path):
    run = made(tmp_path, lambda p: "filler", simulated=True)
    with pytest.raises(UsageError, match="expected answers of a model, got a simulator's"):
        programs.verdicts(read.read_run(run), print)


def test_nothing_to_run_says_so(tmp_path):
    run = made(tmp_path, lambda p: "filler")
    path = next(run.glob("cells/*/*/requests-*.jsonl"))
    path.write_text(path.read_text().replace('"outcome":"ok"', '"outcome":"truncated"'))
    with pytest.raises(UsageError, match="expected answers to prompts that ask for a program, got none"):
        programs.verdicts(read.read_run(run), print)


def test_a_machine_that_cannot_limit_runs_nothing(tmp_path, monkeypatch):
    def refuse(program):
        raise OSError("this machine cannot limit a program")

    run = made(tmp_path, lambda p: "```python\nprint(1)\n```")
    monkeypatch.setattr(programs.sandbox, "run", refuse)
    monkeypatch.setattr(programs.judge, "__defaults__", (refuse,))
    with pytest.raises(UsageError, match="--run-programs: this machine cannot limit a program; nothing is judged"):
        programs.verdicts(read.read_run(run), print)
