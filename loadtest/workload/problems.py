"""Problems with one definite answer, one function a kind: `(random, difficulty 1 to 5, context_tokens) -> Problem`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb, gcd, prod
from random import Random

from loadtest.workload.prompts import AnswerFormat


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, without the instruction how to answer, and the answer."""

    text: str
    answer: str
    answer_format: AnswerFormat = "boxed"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem: one line that says what it is, and its maker."""

    title: str
    make: Callable[[Random, int, int], Problem]


def arithmetic(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """A chain of additions, subtractions and multiplications; the length grows with the difficulty."""
    del context_tokens
    value = random.randint(2, 9 * difficulty)
    steps = [f"Start with {value}."]
    for _ in range(3 + 2 * difficulty):
        operation, amount = random.choice("+-*"), random.randint(2, 9 + 10 * difficulty)
        if operation == "*":
            amount = random.randint(2, 4)
        value = {"+": value + amount, "-": value - amount, "*": value * amount}[operation]
        steps.append(
            {"+": f"Add {amount}.", "-": f"Subtract {amount}.", "*": f"Multiply the result by {amount}."}[operation]
        )
    return Problem(f"{' '.join(steps)} What is the final result?", str(value))


def modular(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """The remainder of a sum of powers."""
    del context_tokens
    modulus = random.randint(7, 20 + 80 * difficulty)
    terms = [
        (random.randint(2, 9 + 10 * difficulty), random.randint(5, 40 * difficulty)) for _ in range(1 + difficulty // 2)
    ]
    text = " + ".join(f"{base}^{{{power}}}" for base, power in terms)
    answer = sum(pow(base, power, modulus) for base, power in terms) % modulus
    return Problem(f"Find the remainder when ${text}$ is divided by ${modulus}$.", str(answer))


def linear(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """A system of linear equations with whole solutions; asks for a weighted sum of the unknowns.

    The matrix is a unit triangular one with rows mixed in, so that the solution is the only one.
    """
    del context_tokens
    names = "uvwxyz"[-(2 + (difficulty > 2) + (difficulty > 4)) :]
    solution = [random.randint(-9 * difficulty, 9 * difficulty) for _ in names]
    rows = [[random.randint(-4, 4) if j > i else int(i == j) for j in range(len(names))] for i in range(len(names))]
    for i in range(1, len(rows)):
        factor = random.choice((-3, -2, -1, 1, 2, 3))
        rows[i] = [a + factor * b for a, b in zip(rows[i], rows[i - 1], strict=True)]
    equations = [f"${_terms(row, names)} = {sum(a * b for a, b in zip(row, solution, strict=True))}$" for row in rows]
    weights = [random.randint(1, 5) for _ in names]
    answer = sum(a * b for a, b in zip(weights, solution, strict=True))
    return Problem(f"Given {', '.join(equations)}, find the value of ${_terms(weights, names)}$.", str(answer))


def _terms(factors: list[int], names: str) -> str:
    text = "".join(f"{a:+d}{x}" for a, x in zip(factors, names, strict=True) if a)
    for name in names:
        text = text.replace(f"+1{name}", f"+{name}").replace(f"-1{name}", f"-{name}")
    return text.removeprefix("+")


def counting(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """Lattice paths through a point, committees, or arrangements of a word's letters."""
    del context_tokens
    return random.choice((_paths, _committees, _whole_solutions))(random, difficulty)


def _paths(random: Random, difficulty: int) -> Problem:
    a, b, c, d = (random.randint(2, 6 + difficulty) for _ in range(4))
    text = (
        f"A robot on a grid moves only one unit right or one unit up at a time. How many paths lead from $(0,0)$ to"
        f" $({a + c},{b + d})$ that pass through $({a},{b})$?"
    )
    return Problem(text, str(comb(a + b, a) * comb(c + d, c)))


def _committees(random: Random, difficulty: int) -> Problem:
    women, men = random.randint(4, 12 + 2 * difficulty), random.randint(4, 12 + 2 * difficulty)
    size = random.randint(3, 4)
    least = random.randint(1, 2)
    total = sum(comb(women, k) * comb(men, size - k) for k in range(least, size + 1))
    text = (
        f"A committee of {size} is chosen from {women} women and {men} men, and at least {least} of its members must be"
        " women. In how many ways can that be done?"
    )
    return Problem(text, str(total))


def _whole_solutions(random: Random, difficulty: int) -> Problem:
    unknowns, total, least = random.randint(3, 3 + difficulty), random.randint(8, 25 + 5 * difficulty), random.randint(0, 1)
    names = "+".join(f"x_{i + 1}" for i in range(unknowns))
    kind = "positive" if least else "non-negative"
    text = f"How many solutions in {kind} integers does the equation ${names}={total}$ have?"
    return Problem(text, str(comb(total - least * unknowns + unknowns - 1, unknowns - 1)))


def number_theory(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """Divisors, common divisors, or two congruences."""
    del context_tokens
    return random.choice((_divisors, _common, _congruences))(random, difficulty)


def _divisors(random: Random, difficulty: int) -> Problem:
    primes = random.sample((2, 3, 5, 7, 11, 13), 2 + (difficulty > 2))
    powers = [random.randint(1, 1 + difficulty) for _ in primes]
    number = prod(p**e for p, e in zip(primes, powers, strict=True))
    return Problem(f"How many positive divisors does ${number}$ have?", str(prod(e + 1 for e in powers)))


def _common(random: Random, difficulty: int) -> Problem:
    shared = random.randint(6, 30 * difficulty)
    a, b = shared * random.randint(3, 20 * difficulty), shared * random.randint(3, 20 * difficulty)
    text = f"Let $g$ be the greatest common divisor and $l$ the least common multiple of ${a}$ and ${b}$. Find $g + l$."
    return Problem(text, str(gcd(a, b) + a * b // gcd(a, b)))


def _congruences(random: Random, difficulty: int) -> Problem:
    p, q = random.sample((7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)[: 4 + 2 * (difficulty - 1)], 2)
    answer = random.randrange(p * q)
    text = (
        f"Find the smallest non-negative integer that leaves the remainder ${answer % p}$ when divided by ${p}$"
        f" and the remainder ${answer % q}$ when divided by ${q}$."
    )
    return Problem(text, str(answer))


_GOODS = ("apples", "lamps", "tiles", "bricks", "candles", "bolts", "jars", "books", "ropes", "bells", "kettles", "blankets")
_PLACES = (
    "the harbour depot",
    "the mill yard",
    "the station store",
    "the hill warehouse",
    "the market hall",
    "the old brewery",
)
_PEOPLE = ("Mara", "Tomas", "Ines", "Olek", "Priya", "Samuel", "Greta", "Yusuf", "Nadia", "Henrik")


_LEDGER_DAYS = {4: 60, 5: 120}


def ledger(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """A long word problem that moves goods for days, about 30 lines (700 tokens) up to difficulty 3, 60 at 4, 120 (2,500
    tokens) at 5; asks for one whole number.
    """
    del context_tokens
    goods = random.sample(_GOODS, 3 + (difficulty > 3))
    stock = {good: random.randint(60, 200 * difficulty) for good in goods}
    lines = [f"On the morning of day 1, {random.choice(_PLACES)} holds {_listed(stock)}."]
    for day in range(1, _LEDGER_DAYS.get(difficulty, 30) + random.randint(0, 8)):
        lines.append(f"Day {day}: {_movement(random, stock)}")
    asked = random.sample(goods, 2)
    lines.append(f"Let A be the number of {asked[0]} and B the number of {asked[1]} held at the end of the last day.")
    lines.append("What is $3A + 2B$?")
    return Problem("\n".join(lines), str(3 * stock[asked[0]] + 2 * stock[asked[1]]))


def _listed(stock: dict[str, int]) -> str:
    items = [f"{count} {good}" for good, count in stock.items()]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _movement(random: Random, stock: dict[str, int]) -> str:
    """One line of a ledger; changes the stock, which never falls below zero."""
    good, other = random.sample(list(stock), 2)
    who, amount = random.choice(_PEOPLE), random.randint(3, 40)
    if stock[good] < 60:
        crates = random.randint(4, 12)
        stock[good] += crates * amount
        return f"{who} unloads {crates} crates, each with {amount} {good}, and adds them all to the stock."
    event = random.randrange(4)
    if event == 0:
        stock[good] += amount
        return f"a delivery of {amount} {good} arrives, signed for by {who} before noon."
    if event == 1:
        stock[good] -= amount
        return f"{who} sells {amount} {good} to a passing trader and notes it in the book."
    if event == 2:
        stock[good] -= amount
        stock[other] += 2 * amount
        return f"{who} trades away {amount} {good} and gets two {other} for each of them."
    half = stock[good] // 2
    stock[good] -= half
    return f"{who} sends half of the {good}, rounded down to a whole number, to the fair."


def choice(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """Multiple choice: another kind's question, its answer among four near numbers; the answer is a letter."""
    maker = random.choice((arithmetic, modular, linear, counting, number_theory))
    inner = maker(random, difficulty, context_tokens)
    right = int(inner.answer)
    spread = max(6, abs(right) // 8)
    options = {right}
    while len(options) < 4:
        options.add(right + random.choice((-1, 1)) * random.randint(1, spread))
    ordered = random.sample(sorted(options), 4)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", ordered, strict=True))
    return Problem(f"{inner.text}\n{listed}", "ABCD"[ordered.index(right)], "json")


_COLOURS = ("amber", "blue", "crimson", "green", "grey", "ivory", "orange", "purple", "silver", "violet", "white", "yellow")
_BOXES = ("cabinet", "crate", "drawer", "folder", "locker", "safe", "shelf", "trunk")


def retrieval(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """A register of `context_tokens` tokens (about 4 characters each); asks for the sum of as many entries as difficulty."""
    entries: dict[str, int] = {}
    lines, length = [], 0
    while length < 4 * context_tokens:
        name = f"{random.choice(_COLOURS)} {random.choice(_BOXES)} {random.randint(1, 9999)}"
        if name in entries:
            continue
        entries[name] = random.randint(100, 999)
        lines.append(
            f"{random.choice(_PEOPLE)} recorded that the {name} in {random.choice(_PLACES)} holds {entries[name]} coins."
        )
        length += len(lines[-1]) + 1
    asked = random.sample(sorted(entries), difficulty)
    lines.append(f"How many coins do these hold in total: {', '.join(f'the {name}' for name in asked)}?")
    return Problem("\n".join(lines), str(sum(entries[name] for name in asked)))


def code(random: Random, difficulty: int, context_tokens: int) -> Problem:
    """A short program to write; the answer is what it must print. It is checked by `analyze --run-programs`."""
    del context_tokens
    return random.choice((_sieve_program, _collatz_program, _digits_program))(random, difficulty)


_PROGRAM = "Write a Python 3 program, in one fenced block, that reads no input and prints one integer:"


def _sieve_program(random: Random, difficulty: int) -> Problem:
    low = random.randint(2, 200 * difficulty)
    high = low + random.randint(50, 300 * difficulty)
    answer = sum(n for n in range(low, high + 1) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)))
    return Problem(f"{_PROGRAM} the sum of all primes from {low} to {high}, both included.", str(answer), "program")


def _collatz_program(random: Random, difficulty: int) -> Problem:
    start = random.randint(20, 5000 * difficulty)
    value, steps = start, 0
    while value != 1:
        value, steps = (3 * value + 1 if value % 2 else value // 2), steps + 1
    rule = "an odd n becomes 3n + 1 and an even n becomes n / 2"
    return Problem(f"{_PROGRAM} how many steps lead from {start} to 1, where {rule} in each step.", str(steps), "program")


def _digits_program(random: Random, difficulty: int) -> Problem:
    base, power = random.randint(2, 99), random.randint(50, 100 * difficulty)
    answer = sum(map(int, str(base**power)))
    return Problem(f"{_PROGRAM} the sum of the decimal digits of {base} to the power of {power}.", str(answer), "program")


PROBLEM_KINDS: dict[str, ProblemKind] = {
    "arithmetic": ProblemKind("chains of additions, subtractions and multiplications", arithmetic),
    "modular": ProblemKind("remainders of sums of powers", modular),
    "linear": ProblemKind("systems of linear equations", linear),
    "counting": ProblemKind("paths, committees, solutions in integers", counting),
    "number-theory": ProblemKind("divisors, greatest common divisors, congruences", number_theory),
    "ledger": ProblemKind("long word problems, 600 to 3,000 tokens, that track a stock over days", ledger),
    "choice": ProblemKind("multiple choice, the letter in a JSON field", choice),
    "retrieval": ProblemKind("sums of entries found in a register of tokens=N", retrieval),
    "code": ProblemKind("short programs to write; `analyze --run-programs` judges what they print", code),
}
MATH_KINDS = ("arithmetic", "modular", "linear", "counting", "number-theory")
