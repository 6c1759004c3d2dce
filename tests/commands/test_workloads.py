"""`loadtest workload`: list, show, validate, from-run, as a person types them."""

import json

import pytest

from loadtest import cli
from loadtest.workload import workload
from loadtest.workload.generators import GENERATORS
from tests.support import builders


def said(capsys, *argv):
    assert cli.main(["workload", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_list_names_every_generator(capsys):
    assert all(f"  {name} " in said(capsys, "list") for name in GENERATORS)
    assert json.loads(said(capsys, "list", "--json")) == GENERATORS


def test_show(capsys):
    text = said(capsys, "show", "math:n=5,seed=7")
    assert text.startswith("math: 5 prompts, 5 with an answer that can be checked\n  identity ")
    assert text.count("(answer: ") == 3


def test_what_show_prints_as_json_is_the_same_workload(capsys, tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(said(capsys, "show", "mixed:n=5,seed=7", "--json"))
    assert workload.load(str(path)).identity == workload.load("mixed:n=5,seed=7").identity


def test_validate(capsys, tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text('{"prompt": "What is 2 + 2?", "answer": 4}\n')
    assert json.loads(said(capsys, "validate", path, "--json"))["n_prompts"] == 1
    assert "w: 1 prompts" in said(capsys, "validate", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"promt": 3}\n', "w.jsonl:2: expected one of the keys"),
        ('{"prompt": "a"}\n\n{"prompt": 3}\n', "w.jsonl:3: prompt: expected"),
        ("", "expected at least one prompt, got none"),
        ("{", "w.jsonl:1: expected JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(content, message, capsys, tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(content)
    assert cli.main(["workload", "validate", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_from_run_writes_what_can_be_replayed(capsys, tmp_path):
    prompts = workload.load("math:n=12")
    described = {"source": prompts.source, "name": "math", "identity": prompts.identity, "n_prompts": 12}
    named = [builders.request(2.0 * i, prompt_id=prompt.id, seq=i) for i, prompt in enumerate(prompts.prompts[:3])]
    run = builders.run([builders.cell([builders.level(named)])], workload=described)
    out = tmp_path / "replay.jsonl"
    text = said(capsys, "from-run", builders.write(run, tmp_path / "run"), "-o", out)
    assert "3 with recorded lengths, 30 tokens in all" in text
    replay = workload.load(str(out))
    assert [(p.thinking_tokens, p.answer_tokens) for p in replay.prompts] == [(6, 4)] * 3
    assert replay.prompts[0].arrival_s == 0

    assert cli.main(["workload", "from-run", str(tmp_path / "run"), "-o", str(out)]) == 2, "nothing is written over"
    assert "expected a new file" in capsys.readouterr().err
