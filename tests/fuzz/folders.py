"""Damages a finished run folder at random, and asks the commands that read one for one line or a right result.

    python -m tests.fuzz.folders                          # 1,000 folders
    python -m tests.fuzz.folders --folders 10000 --seed 7

No traceback, no hang; and where records were damaged, no figure that differs from the undamaged run without a reason.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from loadtest import cli
from loadtest.study import fast_forward
from loadtest.study import parse as studies
from loadtest.study.schema import SearchLimits, in_mode

LONGEST_S = 20  # of processor time; of waiting, thirty times as long, for a busy machine
STUDY = """
name = "small"
workload = "ledger:n=8,seed=7,difficulty=2"
levels = [1, 2]
min_requests = 6
slo = ["ttft_s:p50<2"]
[prices]
gpu_hour = 1.0
[contract]
max_tokens = 128
[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b-awq"
tp = [1]
gpu = "l20"
"""
Damage = Callable[[Path, random.Random], None]


def bases():
    """A small study of each kind: levels, a decision by bursts, a search."""
    levels = studies.parse_study(STUDY)
    short = tuple(replace(cell, args=("--length-scale", "0.02")) for cell in levels.cells)
    decision = replace(in_mode(levels, "decision"), cells=short, contract={}, natural_users=2, natural_prompts=8)
    search = replace(levels, search=SearchLimits(max_concurrency=4, requests=6))
    return {"levels": levels, "decision": decision, "search": search}


def finished(folder, study):
    """A small run in virtual time, with its figures."""
    fast_forward.simulate_study(study, folder, say=lambda _: None)
    assert asked("analyze", str(folder)) == (0, "")
    page = folder.with_name("page")
    shutil.copytree(folder, page)
    assert asked("report", str(page)) == (0, "")  # libraries that are slow to load are loaded
    shutil.rmtree(page)
    return folder


# Damage --------------------------------------------------------------------------------------------------------------


def flip(path, dice):
    content = bytearray(path.read_bytes())
    for _ in range(dice.randrange(1, 4) if content else 0):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(content)


def digit(path, dice):
    """Another digit in the place of one: what is left is as valid as before."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    for place in dice.sample(places, min(len(places), 3)):
        content[place] = dice.choice(b"0123456789")
    path.write_bytes(content)


def cut(path, dice):
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) + 1)])


def lines(path, dice):
    """Lines gone, twice, or in another order."""
    kept = path.read_bytes().splitlines(keepends=True)
    kept = dice.choices(kept, k=dice.randrange(len(kept) + 2)) if kept else kept
    path.write_bytes(b"".join(kept))


def value(path, dice):
    """A wrong value, or none, for a key of a JSON object."""
    kept = path.read_bytes().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_bytes()]
    number = dice.randrange(len(kept)) if kept else 0
    try:
        table = json.loads(kept[number])
        key = dice.choice(sorted(table))
    except (ValueError, IndexError, TypeError):
        return
    table[key] = dice.choice((None, 0, -1, 1e308, "x" * dice.choice((1, 20_000)), [], {}, True, 10**30, "\ud800"))
    if dice.random() < 0.2:
        del table[key]
    kept[number] = json.dumps(table).encode() + b"\n"
    path.write_bytes(b"".join(kept))


def empty(path, dice):
    path.write_bytes(b"")


def grow(path, dice):
    with path.open("ab") as stream:
        stream.write(
            dice.choice((b"\0" * 5000, b"[" * 100_000 + b"\n", b"{}\n", b"null", dice.randbytes(300), b"\xff\xfe\n"))
        )


def sparse(path, dice):
    with path.open("r+b") as stream:
        stream.truncate(2**40)


def remove(path, dice):
    path.unlink()


def copy(path, dice):
    shutil.copy(path, path.with_name(f"{path.stem}-{dice.randrange(9)}{path.suffix}"))


def swap(path, dice):
    """The file of another pass in the place of this one."""
    others = sorted(one for one in path.parents[3].glob(f"cells/*/*/{path.name}") if one != path and one.is_file())
    if others:
        shutil.copy(dice.choice(others), path)


def link(path, dice):
    path.unlink()
    path.symlink_to(dice.choice(("/dev/zero", "/etc/passwd", path, "/nowhere", path.parent)))


def pipe(path, dice):
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path, dice):
    path.unlink()
    path.mkdir()


def move_its_folder(path, dice):
    name = dice.choice(("c0-r0", "c03-r1", "c01-r1.broken-1", "x" * 200, "c" + "9" * 99 + "-r1", "é\n"))
    with contextlib.suppress(OSError):
        path.parent.rename(path.parent.with_name(name))


def remove_its_folder(path, dice):
    shutil.rmtree(path.parent)


DAMAGES: tuple[Damage, ...] = (flip, flip, digit, digit, cut, lines, lines, value, value, empty, grow, sparse, remove, copy,
                               swap, link, pipe, become_a_folder, move_its_folder, remove_its_folder)  # fmt: skip


def damage(run, dice):
    """Damage a run in one place or two; what was done."""
    done = []
    for _ in range(dice.choice((1, 1, 2))):
        files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        path, one = dice.choice(files), dice.choice(DAMAGES)
        if one in (swap, move_its_folder, remove_its_folder) and len(path.relative_to(run).parts) < 3:
            continue
        if one is sparse and dice.random() < 0.9:  # 256 MiB are read before it is refused
            continue
        one(path, dice)
        done.append(f"{one.__name__} {path.relative_to(run)}")
        if one is sparse:  # no more of ours is to read it
            break
    return done


# What is asked -------------------------------------------------------------------------------------------------------


def commands(run, whole, dice):
    """`analyze`, one other command, and now and then the page, which takes a second to draw."""
    yield ("analyze", str(run))
    yield dice.choice(
        (
            ("compare", str(whole), str(run)),
            ("check", str(run), "--require", "ttft_s:p50<2"),
            ("plan", "--from", str(run), "--users", "4", "--slo", "ttft_s:p50<2"),
            ("calibrate", str(run), "--out", str(run.with_name("machine.toml"))),
            ("workload", "from-run", str(run), "--output", str(run.with_name("workload.json"))),
        )
    )
    if dice.random() < 0.02:
        yield dice.choice((("report", str(run)), ("report", str(whole), str(run), "--output", str(run) + ".html")))


class Late(BaseException):
    """Nothing catches it, as the command line would catch a `TimeoutError`: it is an error of the system."""


def asked(*arguments):
    """Exit code of a command and what it said of errors. Raises what it raises, and `Late`."""

    def late(*_):
        raise Late(f"{arguments[0]} took more than {LONGEST_S} s")

    said = io.TextIOWrapper(io.BytesIO())
    out = io.TextIOWrapper(io.BytesIO())
    before = [(number, signal.signal(number, late)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(30 * LONGEST_S)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = cli.main(list(arguments))
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before:
            signal.signal(number, handler)
    said.flush()
    return code, said.buffer.getvalue().decode()


def judged(run, whole, dice):
    """How the commands took it, in a word. Raises `AssertionError` where a promise is broken."""
    outcome = ""
    for arguments in commands(run, whole, dice):
        code, said = asked(*arguments)
        assert code in (0, 1, 2, 3), (arguments, code)
        errors = [line for line in said.splitlines() if line.startswith("loadtest: ")]
        assert len(errors) == (1 if code else 0), (arguments, code, said)
        if arguments[0] == "analyze":
            outcome = "refused" if code else _compared(run, whole)
    return outcome


def _compared(run, whole):
    expected, found = (msgspec.json.decode((one / "metrics.json").read_bytes()) for one in (whole, run))
    if _figures(expected) == _figures(found):
        return "same figures"
    reasons = set(found["health"]["reasons"]) - set(expected["health"]["reasons"])
    assert reasons, "other figures without a reason"
    return "other figures with a reason"


def _figures(metrics):
    """The levels of a run without what only says how sure they are."""
    judgements = ("damaged_files", "torn_lines", "client_health", "reconciliation")
    return {
        cell["id"]: [{key: level[key] for key in level if key not in judgements} for level in cell["levels"]]
        for cell in metrics["cells"]
    } | {"composed": [cell["composed"] for cell in metrics["cells"]], "searches": metrics["searches"]}


def fuzz(n_folders, seed):
    """Damage so many copies of finished runs; how often each outcome came, and each promise that was broken."""
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="loadtest-fuzz-") as place:
        wholes = [finished(Path(place) / name, study) for name, study in bases().items()]
        for number in range(n_folders):
            whole = wholes[number % len(wholes)]
            dice = random.Random(f"{seed}-{number}")
            run = Path(place) / "run"
            shutil.copytree(whole, run)
            done = damage(run, dice)
            try:
                outcomes[judged(run, whole, dice)] += 1
            except BaseException as error:  # a traceback, or SystemExit, is what must not be
                if isinstance(error, KeyboardInterrupt):
                    raise
                broken.append(f"folder {number} of seed {seed}, {', '.join(done)}: {error!r}")
            for path in Path(place).iterdir():
                if path not in wholes:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcomes, broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    outcomes, broken = fuzz(args.folders, args.seed)
    for outcome, n in outcomes.most_common():
        print(f"{n:>6} {outcome}")
    print(f"{len(broken):>6} broken promises", *broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
