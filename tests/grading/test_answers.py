"""Answers: the hand-labelled strings (labels say what is mathematically the same answer), hostile texts, troubles."""

from __future__ import annotations

import ast
import json
import string
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadtest.grading.answers import check, equal
from loadtest.grading.notation import parse
from loadtest.grading.troubles import answer_troubles, repeats
from loadtest.workload.answer_format import ANSWER_LIMIT_CHARS, extract_boxed, extract_json
from loadtest.workload.prompts import Prompt

LABELLED = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "answers.jsonl").read_text().splitlines()]
OPTIONS = "What is it?\nA. 71\nB. 65\nC. 63\nD. 58\nReason step by step."


def ask(answer, answer_format="boxed", text=OPTIONS):
    return Prompt(id="q", messages=({"role": "user", "content": text},), answer=answer, answer_format=answer_format)


def test_there_are_enough_labels_of_both_kinds():
    assert len(LABELLED) >= 200
    assert min(sum(row["correct"] for row in LABELLED), sum(not row["correct"] for row in LABELLED)) >= 150


@pytest.mark.parametrize("row", LABELLED, ids=lambda row: f"{row['expected']}|{row['text'][:40]}")
def test_label(row):
    assert check(row["text"], ask(row["expected"], row["format"])) is row["correct"]


@pytest.mark.parametrize("answer_format", ["program", "none"])
def test_what_cannot_be_checked_is_null(answer_format):
    assert check(r"\boxed{4}", ask("4", answer_format)) is None
    assert check(r"\boxed{4}", ask(None)) is None


def test_option_text_after_the_letter_must_be_that_option():
    assert check('{"answer": "B. 65"}', ask("B", "json"))
    assert not check('{"answer": "B. 63"}', ask("B", "json"))
    assert not check('{"answer": "B. 65"}', ask("B", "json", "Another question"))


def test_boxes():
    assert extract_boxed(r"\boxed{a_{1}\{}") == r"a_{1}\{"
    assert extract_boxed(r"\boxed{1} \boxed{2") is None
    assert extract_boxed(r"\boxed") is None
    assert extract_boxed(r"\boxedfoo{1}") is None
    assert extract_boxed(r"\boxed{" + "1" * (ANSWER_LIMIT_CHARS + 1) + "}") is None


def test_json_fields():
    assert extract_json('{"answer": 1.5}') == "1.5"
    assert extract_json('no "answer" field: "C"') is None


@given(st.fractions(max_denominator=10**6))
def test_every_notation_of_a_fraction_is_the_fraction(value):
    n, d = value.numerator, value.denominator
    sign, size = ("-" if n < 0 else ""), abs(n)
    for text in (f"{n}/{d}", rf"\frac{{{n}}}{{{d}}}", rf"{sign}\dfrac{{{size}}}{{{d}}}", rf"x = {n * 3}/{d * 3}"):
        assert parse(text).number == value
        assert equal(f"{n}/{d}", text)


@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15))
def test_integers_are_equal_only_to_themselves(a, b):
    for text in (str(b), f"{b:,}", f"{b:,}".replace(",", "{,}"), f"{b}.0", rf"{b}\text{{ cm}}"):
        assert equal(str(a), text) is (a == b)


def evaluate(node, source):
    """Python's own reading of an expression, exact."""
    if isinstance(node, ast.Constant):
        return Fraction(str(ast.get_source_segment(source, node)))
    if isinstance(node, ast.UnaryOp):
        value = evaluate(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    assert isinstance(node, ast.BinOp)
    a, b = evaluate(node.left, source), evaluate(node.right, source)
    if isinstance(node.op, ast.Pow):
        return Fraction(a ** int(b))
    return {ast.Add: a.__add__, ast.Sub: a.__sub__, ast.Mult: a.__mul__, ast.Div: a.__truediv__}[type(node.op)](b)


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.decimals(0, 9, places=2).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-({})".format)
        | st.tuples(inner.map("({})".format), st.integers(0, 5)).map(lambda pair: f"{pair[0]}^{pair[1]}")
    ),
    max_leaves=6,
)


@given(EXPRESSIONS | st.text(alphabet="0123456789+-*/(). ", min_size=1, max_size=12))
def test_arithmetic_reads_as_python_reads_it(text):
    number = parse(text).number
    source = text.strip().replace("^", "**")
    try:
        tree = ast.parse(source, mode="eval").body
        expected = evaluate(tree, source)
    except (SyntaxError, ZeroDivisionError, AssertionError, ValueError):
        return
    assert number in (expected, None)


NOTATION = st.text(alphabet=r"0123456789.,+-*/^_{}()[]\$% =xabfrctedo°½²", max_size=40)


@settings(deadline=None)
@given(NOTATION, NOTATION)
@example("{" * 900 + "}" * 900, "(" * 900 + ")" * 900)
@example("1/0", "0^{-1}")
@example("9^{400}^{400}", "(((2)))")
def test_comparing_is_symmetric_and_never_fails(a, b):
    assert equal(a, b) is equal(b, a)


@given(st.text(alphabet=string.ascii_letters + string.digits + r"\{}", max_size=40).filter(lambda t: t.strip()))
def test_a_value_equals_itself(text):
    value = parse(text)
    if value.text:
        assert equal(text, text)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_the_checker(text):
    for answer_format in ("boxed", "json"):
        assert check(text, ask("204", answer_format)) in (True, False)
        assert check(r"\boxed{" + text + '} {"answer": ' + text, ask("204", answer_format)) in (True, False)


HOSTILE = [
    r"\boxed{" * 40_000,
    r"\boxed{}" * 40_000,
    r"\boxed" * 40_000,
    "{" * 300_000,
    r"\boxed{" + "{" * 1900,
    r"\boxed{" + "(1," * 600 + "1" + ")" * 600 + "}",
    r"\boxed{" + r"\frac{" * 300 + "}" * 300 + "}",
    r"\boxed{" + "9^" * 900 + "9}",
    r"\boxed{" + "(9^{400})*" * 180 + "9}",
    r"\boxed{" + "1," * 990 + "}",
    r"\boxed{" + " a" * 990 + "}",
    '"answer": ' * 40_000,
    '{"answer": ' * 40_000,
    '{"answer": ' + "[" * 100_000,
    '{"answer": "' + "A" * 300_000,
    '"answer"' + " " * 300_000,
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_end_soon_and_are_wrong(text):
    assert check(text, ask("204")) is False
    assert check(text, ask("B", "json")) is False


@pytest.mark.timeout(120)
@pytest.mark.parametrize("text", ["a" * 300_000, "ab" * 150_000, " " * 300_000, "\n" * 300_000])
def test_troubles_end_soon(text):
    assert answer_troubles(text) == (("repetition",) if text.strip() else ("empty_answer",))


PROSE = (
    "We count the paths that pass the point. There are six ways to reach it and ten ways to leave it, and since every way"
    " in joins every way out, the product of both is the number that we want. Check: the total without the point is larger."
)


def test_repetition():
    assert not repeats(PROSE)
    assert not repeats(PROSE + "=" * 80)
    assert not repeats("0" * 399)
    assert repeats(PROSE + "Wait, let me check that again. " * 20)
    assert repeats(PROSE + " ".join(f"Step {i}: we add one more to the sum and go on." for i in range(60)))
    assert not repeats(
        " ".join(f"w{i}x{i * 7 % 13}".translate(str.maketrans("0123456789", "abcdefghij")) for i in range(900))
    )
    assert not repeats(PROSE + PROSE)
    assert repeats(3 * (PROSE * 2 + "Then I think of it once more. "))


def test_language_is_judged_beside_the_prompt():
    assert answer_troubles("答案是 4", ask("4", text="2+2 是多少?")) == ()
    assert answer_troubles("答案是 4", ask("4")) == ("wrong_language",)
    assert answer_troubles("Größe π ≤ ∞ – naïve “quotes”") == ()
    assert answer_troubles("") == answer_troubles(" \n ") == ("empty_answer",)
    assert answer_troubles("好" * 500, ask("4")) == ("repetition", "wrong_language")


def test_language_is_judged_by_the_rest_of_the_answer_where_the_prompt_is_not_known():
    assert answer_troubles("So 答案 is 4.") == ("wrong_language",)
    assert answer_troubles(r"答案是 \boxed{4}") == answer_troubles('答案: {"answer": "C"}') == ()
    assert answer_troubles("好" * 500) == ("repetition",)


NESTED = {
    "braces": lambda n: "{" * (n // 2) + "}" * (n // 2),
    "fractions": lambda n: r"\frac{1}{" * (n // 10) + "1" + "}" * (n // 10),
    "parentheses": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "texts": lambda n: r"\text{" * (n // 7) + "a" + "}" * (n // 7),
    "digits": lambda n: "9" * n,
    "power": lambda n: "10^{" + "9" * n + "}",
    "list": lambda n: "1," * (n // 2) + "1",
    "set": lambda n: r"\{" + "1," * (n // 2) + r"1\}",
    "products": lambda n: r"1\times" * (n // 7) + "1",
    "percents": lambda n: r"1\%" * (n // 3),
    "units": lambda n: "1" + " cm" * (n // 3),
    "dollars": lambda n: "$" * n,
    "boxes": lambda n: r"\boxed{" * (n // 7),
}


def operations(work):
    """Instructions of Python that it takes: the same on any machine."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", NESTED)
def test_a_check_takes_time_linear_in_the_text(shape):
    """Twice the text takes little more than twice the work, and the longest text that is read is checked in bounds."""
    ask = Prompt(id="a", messages=({"role": "user", "content": "2+2?"},), answer="4", answer_format="boxed")
    half, whole = (operations(lambda n=n: check(rf"So it is $\boxed{{{NESTED[shape](n)}}}$.", ask)) for n in (950, 1900))
    assert whole < 2.5 * half
    assert whole < 10**7
