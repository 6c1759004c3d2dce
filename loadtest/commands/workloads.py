"""`workload`: list, show, validate, and turn a finished run into one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadtest.commands.finish import as_json
from loadtest.errors import UsageError
from loadtest.records import read, write
from loadtest.workload import generators, replay, workload
from loadtest.workload.prompts import Prompt
from loadtest.workload.source import keyed
from loadtest.workload.workload import Workload

if TYPE_CHECKING:
    from loadtest.study.execution import Say

_SHOWN = 3


def list_all(arguments: argparse.Namespace, say: Say) -> str:
    """The built-in workloads, and what a file may be."""
    if arguments.json:
        return as_json(generators.GENERATORS)
    width = max(map(len, generators.GENERATORS))
    rows = [f"  {name:{width}}  {about}" for name, about in generators.GENERATORS.items()]
    return "\n".join(
        [
            "built in (NAME or NAME:n=64,seed=7,difficulty=3):",
            *rows,
            "files: JSON Lines, CSV or Parquet with prompt and answer (or --prompt-key, --answer-key), problem and solution"
            " (MATH), OpenAI batch, ShareGPT, or our own form; text: a prompt a line; hf:ID: a Hugging Face data set",
        ]
    )


def show(arguments: argparse.Namespace, say: Say) -> str:
    """What a workload is, and its first prompts; with --json all of it, as `validate` and `run` read it."""
    asked = workload.load(keyed(arguments.workload, arguments.prompt_key, arguments.answer_key))
    if arguments.json:
        return workload.dump(asked).decode().rstrip("\n")
    return "\n".join([*_described(asked), *(line for prompt in asked.prompts[:_SHOWN] for line in _shown(prompt))])


def validate(arguments: argparse.Namespace, say: Say) -> str:
    """Is a file a workload; the first thing that is wrong is named with its line."""
    if not arguments.file.is_file():
        raise UsageError(f"{arguments.file}: expected a file of prompts, found none")
    asked = workload.load(keyed(str(arguments.file), arguments.prompt_key, arguments.answer_key))
    return as_json(_facts(asked)) if arguments.json else "\n".join(_described(asked))


def from_run(arguments: argparse.Namespace, say: Say) -> str:
    """A finished run as a workload to replay: prompts, arrival times, and the lengths that came out."""
    made = replay.from_run(read.read_run(arguments.run), cell=arguments.cell, concurrency=arguments.concurrency)
    write.write_new(arguments.output, workload.dump(made))
    return "\n".join([*_described(made), f'written to {arguments.output}; replay it with mode = "equal-work"'])


def _facts(asked: Workload) -> dict[str, object]:
    lengths = [p.forced_tokens for p in asked.prompts if p.forced_tokens is not None]
    return {
        "name": asked.name,
        "identity": asked.identity,
        "n_prompts": len(asked.prompts),
        "n_checkable": asked.checkable,
        "n_programs": sum(p.answer_format == "program" for p in asked.prompts),
        "n_with_lengths": len(lengths),
        "recorded_output_tokens": sum(lengths) if lengths else None,
        "n_with_arrivals": sum(p.arrival_s is not None for p in asked.prompts),
        "longest_prompt_chars": max(p.chars for p in asked.prompts),
    }


def _described(asked: Workload) -> Sequence[str]:
    facts = _facts(asked)
    lines = [
        f"{asked.name}: {facts['n_prompts']} prompts, {facts['n_checkable']} with an answer that can be checked",
        f"  identity {asked.identity}",
        f"  longest prompt {facts['longest_prompt_chars']:,} characters",
    ]
    if facts["n_programs"]:
        lines.append(f"  {facts['n_programs']} ask for a program: judged afterwards, by analyze RUN --run-programs")
    if facts["n_with_arrivals"]:
        lines.append(f"  {facts['n_with_arrivals']} with recorded arrival times")
    if facts["n_with_lengths"]:
        lines.append(f"  {facts['n_with_lengths']} with recorded lengths, {facts['recorded_output_tokens']:,} tokens in all")
    return lines


def _shown(prompt: Prompt) -> Sequence[str]:
    answer = "" if prompt.answer is None else f"  (answer: {prompt.answer})"
    texts = [f"  {m['role']}: {_first_line(m['content'])}" for m in prompt.messages]
    return ["", f"{prompt.id}{answer}", *texts]


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}..."
