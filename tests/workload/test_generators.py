"""Generators: same seed same problems, answers solved again from the text by other means."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from itertools import product
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.grading.answers import check
from loadtest.workload import generators
from loadtest.workload.forms.generator import TITLES
from loadtest.workload.generators import GENERATORS, options
from loadtest.workload.prompts import BOXED_INSTRUCTION, JSON_INSTRUCTION
from loadtest.workload.workload import load

SPECS = st.tuples(
    st.sampled_from(["arithmetic", "modular", "linear", "number-theory", "ledger"]), st.integers(1, 5), st.integers(0, 999)
)


def text_of(prompt):
    return prompt.messages[0]["content"].removesuffix(f"\n{BOXED_INSTRUCTION}")


def solve_arithmetic(text):
    value = int(re.match(r"Start with (\d+)\.", text)[1])
    for verb, amount in re.findall(r"(Add|Subtract|Multiply the result by) (\d+)\.", text):
        value = {"Add": value + int(amount), "Subtract": value - int(amount)}.get(verb, value * int(amount))
    return value


def solve_modular(text):
    terms = re.findall(r"(\d+)\^\{(\d+)\}", text)
    return sum(int(base) ** int(power) for base, power in terms) % int(re.search(r"divided by \$(\d+)", text)[1])


def row_of(text, names):
    found = {name: Fraction(int(f"{sign}{size or 1}")) for sign, size, name in re.findall(r"([+-]?)(\d*)([u-z])", text)}
    return [found.get(name, Fraction(0)) for name in names]


def solve_linear(text):
    left, asked = text.split("find the value of")
    equations = re.findall(r"\$([^=$]+) = (-?\d+)\$", left)
    names = sorted(set(re.findall("[u-z]", "".join(e for e, _ in equations))))
    rows = [[*row_of(e, names), Fraction(int(right))] for e, right in equations]
    for i in range(len(names)):  # Gauss-Jordan; a singular system finds no pivot and fails here
        pivot = next(r for r in range(i, len(rows)) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return int(sum(w * row[-1] for w, row in zip(row_of(asked, names), rows, strict=True)))


def solve_number_theory(text):
    numbers = [int(n) for n in re.findall(r"\$(\d+)\$", text)]
    if "divisors does" in text:
        n = numbers[0]
        return sum(2 - (d * d == n) for d in range(1, int(n**0.5) + 1) if n % d == 0) if n < 10**9 else divisor_count(n)
    if "greatest common divisor" in text:
        return gcd(*numbers) + numbers[0] * numbers[1] // gcd(*numbers)
    r, p, s, q = numbers
    return next(n for n in range(p * q) if n % p == r and n % q == s)


def divisor_count(n):
    count = 1
    for p in (2, 3, 5, 7, 11, 13):
        power = 0
        while n % p == 0:
            n, power = n // p, power + 1
        count *= power + 1
    assert n == 1
    return count


def solve_ledger(text):
    first, *days, lettered, asked = text.split("\n")
    stock = {good: int(count) for count, good in re.findall(r"(\d+) ([a-z]+)", first.split("holds")[1])}
    for line in days:
        event = line.partition(": ")[2]
        if m := re.search(r"unloads (\d+) crates, each with (\d+) ([a-z]+)", event):
            stock[m[3]] += int(m[1]) * int(m[2])
        elif m := re.search(r"delivery of (\d+) ([a-z]+)", event):
            stock[m[2]] += int(m[1])
        elif m := re.search(r"sells (\d+) ([a-z]+)", event):
            stock[m[2]] -= int(m[1])
        elif m := re.search(r"trades away (\d+) ([a-z]+) and gets two ([a-z]+)", event):
            stock[m[2]] -= int(m[1])
            stock[m[3]] += 2 * int(m[1])
        else:
            good = re.search(r"half of the ([a-z]+)", event)[1]
            stock[good] -= stock[good] // 2
        assert min(stock.values()) >= 0
    a, b = re.findall(r"number of ([a-z]+)", lettered)
    assert asked == "What is $3A + 2B$?"
    return 3 * stock[a] + 2 * stock[b]


SOLVERS = {
    "arithmetic": solve_arithmetic,
    "modular": solve_modular,
    "linear": solve_linear,
    "number-theory": solve_number_theory,
    "ledger": solve_ledger,
}


@settings(max_examples=150, deadline=None)
@given(SPECS)
def test_answers_are_right(spec):
    kind, difficulty, seed = spec
    for prompt in load(f"{kind}:n=3,difficulty={difficulty},seed={seed}").prompts:
        assert prompt.answer == str(SOLVERS[kind](text_of(prompt))), prompt.messages


def paths(a, b):
    return sum(sum(steps) == a for steps in product((0, 1), repeat=a + b))


def test_counts_are_right_where_they_can_be_enumerated():
    seen = set()
    for prompt in load("counting:n=120,difficulty=1,seed=3").prompts:
        text, numbers = text_of(prompt), [int(n) for n in re.findall(r"\d+", text_of(prompt))]
        if "robot" in text and sum(numbers[2:4]) <= 16:
            _, _, x, y, a, b = numbers
            assert prompt.answer == str(paths(a, b) * paths(x - a, y - b))
            seen.add("paths")
        elif "committee" in text and numbers[1] + numbers[2] <= 16:
            size, women, men, least = numbers
            chosen = (set_ for set_ in range(1 << (women + men)) if set_.bit_count() == size)
            assert prompt.answer == str(sum((set_ & ((1 << women) - 1)).bit_count() >= least for set_ in chosen))
            seen.add("committee")
        elif "solutions" in text and numbers[-1] <= 20 and len(numbers) == 4:
            low = 1 if " positive" in text else 0
            total = numbers[-1]
            triples = product(range(low, total + 1), repeat=2)
            assert prompt.answer == str(sum(total - x - y >= low for x, y in triples))
            seen.add("solutions")
    assert seen == {"paths", "committee", "solutions"}


def test_choices_hold_the_answer_once():
    for prompt in load("choice:n=60,seed=2").prompts:
        text = prompt.messages[0]["content"]
        assert text.endswith(JSON_INSTRUCTION)
        offered = dict(re.findall(r"^([A-D])\. (-?\d+)$", text, re.MULTILINE))
        assert len(set(offered.values())) == len(offered) == 4
        question = text[: text.index("\nA. ")]
        for name in ("arithmetic", "modular", "linear"):
            if question.startswith({"arithmetic": "Start", "modular": "Find the remainder", "linear": "Given"}[name]):
                assert offered[prompt.answer] == str(SOLVERS[name](question))
    assert {p.answer for p in load("choice:n=60,seed=2").prompts} == set("ABCD")


@pytest.mark.parametrize("difficulty", [1, 5])
def test_retrieval_has_the_size_asked_for_and_its_sum(difficulty):
    for prompt in load(f"retrieval:n=3,tokens=2000,difficulty={difficulty}").prompts:
        *lines, asked = text_of(prompt).split("\n")
        assert 8000 <= sum(len(line) + 1 for line in lines) < 8200
        held = dict(re.findall(r"that the (\w+ \w+ \d+) in .* holds (\d+) coins", "\n".join(lines)))
        names = re.findall(r"the (\w+ \w+ \d+)", asked)
        assert len(names) == difficulty
        assert prompt.answer == str(sum(int(held[name]) for name in names))


def test_programs_are_known_but_not_judged():
    prompts = load("code:n=40,seed=1").prompts
    for prompt in prompts:
        if match := re.search(r"digits of (\d+) to the power of (\d+)", text_of(prompt)):
            assert prompt.answer == str(sum(int(d) for d in str(int(match[1]) ** int(match[2]))))
        assert check(f"```python\nprint({prompt.answer})\n```", prompt) is None
    assert {p.answer_format for p in prompts} == {"program"}


@pytest.mark.parametrize(("difficulty", "least", "most"), [(1, 30, 45), (3, 30, 45), (4, 60, 75), (5, 120, 135)])
def test_ledgers_are_long(difficulty, least, most):
    for prompt in load(f"ledger:n=100,difficulty={difficulty}").prompts:
        assert least <= prompt.messages[0]["content"].count("\n") + 1 <= most
        assert 15 <= prompt.chars / 4 / least <= 30  # tokens a line


@pytest.mark.parametrize("name", sorted(set(GENERATORS) - {"synthetic", *TITLES}))
def test_a_workload_is_fixed_by_its_seed(name):
    spec = f"{name}:tokens=300,seed=5"
    short, long = load(f"{spec},n=8"), load(f"{spec},n=24")
    assert long.prompts[:8] == short.prompts
    assert load(f"{spec},n=8").identity == short.identity
    assert load(f"{name}:tokens=300,seed=6,n=8").identity != short.identity
    assert load(f"{spec},n=8,difficulty=5").identity != short.identity
    assert len({p.messages[-1]["content"] for p in long.prompts}) == 24


@pytest.mark.parametrize("name", sorted(set(GENERATORS) - {"code", "synthetic", *TITLES}))
def test_right_answers_pass_and_wrong_ones_do_not(name):
    for prompt in load(f"{name}:n=20,tokens=300").prompts:
        right = f'{{"answer": "{prompt.answer}"}}' if prompt.answer_format == "json" else rf"So \boxed{{{prompt.answer}}}."
        assert check(right, prompt) is True
        assert check(right.replace(str(prompt.answer), f"{prompt.answer}1"), prompt) is False


def test_the_problems_of_a_version_stay_the_same():
    """A golden: whoever changes a generator changes every workload made with it, and must say so in the changelog."""
    content = load("math:n=10,seed=7").identity + load("ledger:n=10,seed=7").identity
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "c1c708ef3a3bd3ff"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("math:m=5", "m: expected one of n, seed, difficulty, tokens, easy, got 'm'"),
        ("math:sed=5", "did you mean 'seed'?"),
        ("math:n=0", "n: expected a whole number from 1 to 100000, got '0'"),
        ("math:n=x", "n: expected a whole number from 1 to 100000, got 'x'"),
        ("math:n", "n: expected a whole number from 1 to 100000, got ''"),
        ("math:difficulty=6", "difficulty: expected a whole number from 1 to 5, got '6'"),
    ],
)
def test_wrong_options_are_named(spec, said):
    with pytest.raises(UsageError) as caught:
        load(spec)
    assert said in str(caught.value)


def test_more_problems_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(generators, "_ATTEMPTS", 1)
    with pytest.raises(UsageError, match=r"expected at most \d+ different problems, got n=5000; lower n"):
        load("number-theory:n=5000,difficulty=1")


def test_defaults():
    assert options("math") == options("math:n=64,seed=0,difficulty=3,tokens=4000")


def test_all_prompts_of_a_shared_workload_begin_alike():
    found = generators.prompts("shared:n=5,tokens=500,seed=3")
    systems = {prompt.messages[0]["content"] for prompt in found}
    assert len(systems) == 1
    assert 4 * 500 <= len(systems.pop()) <= 4 * 500 + 300
    assert [prompt.messages[1] for prompt in found] == [
        prompt.messages[0] for prompt in generators.prompts("math:n=5,seed=3,tokens=500")
    ]
    assert generators.prompts("shared:n=5,tokens=500,seed=4")[0].messages[0] != found[0].messages[0]


@pytest.mark.parametrize(("easy", "low", "high"), [(0, 0, 0), (30, 50, 70), (100, 200, 200)])
def test_a_mixed_workload_has_the_share_of_easy_prompts_that_was_asked_for(easy, low, high):
    found = generators.prompts(f"mixed:n=200,easy={easy}")
    marked = [prompt for prompt in found if prompt.difficulty == "easy"]
    assert low <= len(marked) <= high
    assert all(prompt.id.startswith(f"{prompt.difficulty}-") for prompt in found)
    assert {prompt.difficulty for prompt in found} <= {"easy", "hard"}
