"""Did two cells run alike: a violation of each key, caught by its name."""

from dataclasses import asdict, fields, replace

import msgspec
import pytest

from loadtest.analysis import comparability, compare, run
from loadtest.errors import UsageError
from loadtest.workload.contract import Contract
from tests.support import builders

DEFAULT = asdict(Contract())
OTHERS = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "presence_penalty": 1.0, "repetition_penalty": 1.1,
    "max_tokens": 1024, "seed": 1, "mode": "equal-work", "extra_body": {"n": 1}, "omit": ["top_k"],
    "thinking_prelude": "none", "history": "everything", "output_format": "free", "context_tokens": 65536, "yarn": True,
    "reasoning_parser": "deepseek_r1", "prefix_caching": False, "quantisation_kernel": "awq", "kv_dtype": "fp8",
    "memory_fraction": 0.8, "max_running_requests": 8, "grammar": False,
}  # fmt: skip
OF_SERVERS = ("thinking_prelude", "context_tokens", "yarn", "reasoning_parser", "prefix_caching", "quantisation_kernel",
              "kv_dtype", "memory_fraction")  # fmt: skip


def made(effective=None, prompt_tokens=50, engine="vllm", **manifest):
    rows = [replace(one, prompt_tokens=prompt_tokens) for one in builders.closed_loop(1, 6)]
    told = {} if effective is None else {"contract": {"effective": effective, "violations": []}}
    return builders.run([builders.cell([builders.level(rows)], engine, **told)], **manifest)


def test_every_key_is_tried():
    assert set(OTHERS) == {one.name for one in fields(Contract)}


@pytest.mark.parametrize("key", OTHERS)
def test_runs_asked_for_something_else_are_refused_by_the_key(key):
    old, new = made(contract=DEFAULT), made(contract={**DEFAULT, key: OTHERS[key]})
    with pytest.raises(UsageError, match=rf"not comparable: the runs differ in {key} \(.*--allow {key}$"):
        compare.compare_runs(old, new)
    if key != "mode":  # of which the manifest has a key of its own
        assert compare.compare_runs(old, new, allow=[key]).allowed == (key,)


@pytest.mark.parametrize("key", OF_SERVERS)
def test_runtimes_that_ran_otherwise_are_refused_by_the_key(key):
    was = {"kv_dtype": "bfloat16", "quantisation_kernel": "awq_marlin", "context_tokens": 32768}.get(key, DEFAULT[key])
    old, new = made({key: was}), made({key: OTHERS[key]}, engine="sglang")
    with pytest.raises(UsageError, match=rf"the runs differ in {key} \({was} against {OTHERS[key]}\).*--allow {key}$"):
        compare.compare_runs(old, new)
    assert compare.compare_runs(old, new, allow=[key]).comparisons
    assert comparability.apart(made({key: was}).cells[0], made({}).cells[0]) == {}, "what is not told is no difference"


def test_what_a_runtime_chooses_itself_is_no_difference():
    assert comparability.apart(made({"kv_dtype": "auto"}).cells[0], made({"kv_dtype": "fp8"}).cells[0]) == {}


def test_a_template_that_adds_something_shows_in_the_tokens_of_the_same_prompt():
    old, new = made(), made(prompt_tokens=52)
    with pytest.raises(UsageError, match=r"the runs differ in template \(50 tokens of p0 against 52\).*--allow template$"):
        compare.compare_runs(old, new)
    assert compare.compare_runs(old, new, allow=["template"]).allowed == ("template",)


@pytest.mark.parametrize("key", ["workload", "scenario"])
def test_tokens_of_other_prompts_say_nothing_of_the_template(key):
    """Prompts of one name in another workload are other prompts."""
    old, new = made(), made(prompt_tokens=52, **{key: {"identity": "cd" * 32} if key == "workload" else "chat"})
    assert compare.compare_runs(old, new, allow=[key]).allowed == (key,)


def test_cells_of_one_run_whose_templates_differ_are_no_comparison():
    a, b = made().cells[0], made(prompt_tokens=52, engine="sglang").cells[0]
    found = run.analyze(builders.run([a, b]))
    assert [one for one in found.health.reasons if "template" in one] == [
        "vllm_qwq-32b-awq_tp1 and sglang_qwq-32b-awq_tp1: template: 50 tokens of p0 against 52: not the same prompts, so not"
        " a comparison of engines"
    ]
    rows = found.comparisons
    assert {(row.verdict, row.reason) for row in rows} == {("not comparable", "different template")}
    assert {row.why for row in rows} == {None}
    assert comparability.templates([a, replace(b, engine=msgspec.structs.replace(b.engine, model="another"))]) == {}


def test_later_turns_and_second_endpoints_are_not_compared():
    old = made().cells[0]
    for change in ({"task": 0, "turn": 1, "task_turns": 2}, {"endpoint": "easy"}):
        level = old.levels[0]
        longer = replace(level, requests=tuple(replace(r, prompt_tokens=99, **change) for r in level.requests))
        assert comparability.apart(old, replace(old, levels=(longer,))) == {}
