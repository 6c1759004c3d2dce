"""What CI systems and pull requests read of `check` and `compare`: every result once, strangers' text as text."""

from xml.etree import ElementTree

from loadtest.report.text.gates import Case, junit, summary

CASES = [
    Case("ttft_s:p90<2", "vllm at concurrency 4", "met: 1.2", "passed"),
    Case("ttft_s:p50<1", "vllm at concurrency 4", "not met: 1.1", "failure"),
    Case("ttft_s:p99<9", "vllm at concurrency 4", "not shown: -; needs 368 requests", "error"),
    Case("tpot_s", "vllm at concurrency 4", "not comparable", "skipped"),
]


def test_junit_counts_each_case_once():
    (suite,) = ElementTree.fromstring(junit(CASES, "loadtest check", simulated=True))
    assert suite.attrib == {
        "name": "loadtest check (simulated)", "tests": "4", "failures": "1", "errors": "1", "skipped": "1"
    }  # fmt: skip
    assert [one[0].tag for one in suite] == ["system-out", "failure", "error", "skipped"]
    assert suite[1].attrib == {"classname": "vllm at concurrency 4", "name": "ttft_s:p50<1"}
    assert suite[1][0].attrib == {"message": "not met: 1.1"}


def test_a_summary_answers_first_and_folds_the_rest():
    text = summary(CASES, "2 requirements not met", met=False, simulated=False)
    first, _, rest = text.partition("<details>")
    assert first.startswith("### ❌ 2 requirements not met\n")
    assert "p50" in first
    assert "p90" not in first
    assert all(case.said.partition(":")[0] in rest for case in CASES)
    assert "SIMULATED" not in text
    assert summary([], "All", met=True, simulated=True).startswith("### ✅ All\n\n**SIMULATED")


def test_strangers_text_is_text():
    hostile = [Case("a\x00\ud800]]>", "<img src=x> [x](http://y) @all |\n# x", "`$(x)`", "failure")]
    (suite,) = ElementTree.fromstring(junit(hostile, "x", simulated=False))
    assert suite[0].attrib["name"] == "a\ufffd\ufffd]]>"
    text = summary(hostile, "x", met=False, simulated=False)
    assert r"\<img src=x\> \[x\](http://y) \@all \| \# x" in text
    assert r"\`\$(x)\`" in text
    text.encode()
