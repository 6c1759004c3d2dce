"""Every scenario under plain headless Locust with two users, and the shapes of load that they use."""

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from loadtest.servers import preflight
from loadtest.study import locust_pass

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "scenarios").glob("*.py"))
OPTIONS = {
    "concurrency_ramp": ["--steps", "1,2", "--step-time", "3"],
    "open_loop": ["--rate", "2", "--requests", "12"],
    "multi_turn": ["--requests", "9"],
    "agent_loop": ["--requests", "8"],
    "long_context": ["--requests", "5", "--workload", "retrieval:tokens=9000,n=3"],
    "bursts": ["--contexts", "50,200", "--burst-tokens", "20"],
    "router": ["--requests", "12", "--easy-model", "known", "--easy-host", "{host}"],
}


@pytest.fixture(scope="module")
def port():
    """The simulator, with outputs of some twenty tokens."""
    argv = [sys.executable, "-m", "loadtest.simulator", "--engine", "vllm-sim", "--model", "qwq-32b-awq", "--gpu", "l20"]
    argv += ["--served-model-name", "known", "--port", "0", "--clock-speed", "20", "--length-scale", "0.01"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
    process.kill()
    process.communicate()


def run(scenario, port, out, *extra):
    argv = [sys.executable, "-m", "locust", "-f", str(scenario), "--headless", "-u", "2", "-r", "100", "--only-summary"]
    argv += ["--host", f"http://127.0.0.1:{port}", "--model", "known", "--out", str(out)]
    argv += [word.format(host=f"http://127.0.0.1:{port}") for word in OPTIONS.get(scenario.stem, ["--requests", "5"])]
    argv += extra
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def recorded(out):
    lines = [line for path in out.glob("cells/*/*c02-r1/requests-*.jsonl") for line in path.read_bytes().splitlines()]
    return [json.loads(line) for line in lines]


def measured(records):
    return [r for r in records if r["phase"] == "measure"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(scenario, port, tmp_path):
    done = run(scenario, port, tmp_path)
    assert done.returncode == 0, done.stderr
    records = recorded(tmp_path)
    assert len(records) >= 5
    assert {r["outcome"] for r in records} <= {"ok", "cut_off"}
    assert all(r["scheduled_s"] <= r["sent_s"] for r in records)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert (manifest["complete"], manifest["scenario"]) == (True, scenario.stem)


def test_the_streams_of_a_burst_begin_together_and_the_next_when_all_have_ended(port, tmp_path):
    done = run(ROOT / "scenarios/bursts.py", port, tmp_path, "--contexts", "50,400", "--burst-tokens", "40", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("cells/*/*c02*")] == ["bursts-c02-r1"]
    bursts = {}
    for record in measured(recorded(tmp_path)):
        bursts.setdefault(record["burst"], []).append(record)
    assert [(number, len(bursts[number])) for number in (None, 0, 1)] == [(None, 4), (0, 2), (1, 2)]
    for number, tokens in ((0, 50), (1, 400)):
        assert {r["completion_tokens"] for r in bursts[number]} == {40}
        assert all(abs(r["prompt_tokens"] - tokens) < 20 for r in bursts[number])
        begun = [r["sent_s"] for r in bursts[number]]
        assert max(begun) - min(begun) < 0.5  # of the simulator's time: 25 ms of the wall
    assert max(r["ended_s"] for r in bursts[0]) <= min(r["sent_s"] for r in bursts[1])


def test_bursts_of_several_processes_are_refused(port, tmp_path):
    done = run(ROOT / "scenarios/bursts.py", port, tmp_path, *locust_pass.shared(2))
    assert done.returncode != 0
    assert "expected all 2 users in one process" in done.stderr


@pytest.mark.parametrize(("name", "turns"), [("multi_turn", 3), ("agent_loop", 4)])
def test_the_requests_of_a_task_follow_each_other(name, turns, port, tmp_path):
    """Also over two processes: every task whole, each of its requests after the answer to the one before, none twice."""
    done = run(ROOT / f"scenarios/{name}.py", port, tmp_path, *locust_pass.shared(2))
    assert done.returncode == 0, done.stderr
    tasks = {}
    for record in measured(recorded(tmp_path)):
        tasks.setdefault(record["task"], {})[record["turn"]] = record
    assert sorted(tasks) == list(range(-(-int(OPTIONS[name][1]) // turns)))
    for number, task in tasks.items():
        assert sorted(task) == list(range(turns))
        assert [task[turn]["seq"] for turn in range(turns)] == [number * turns + turn for turn in range(turns)]
        ends = [(task[turn]["clock_anchor_unix_s"] + task[turn]["ended_s"]) for turn in range(turns)]
        starts = [(task[turn]["clock_anchor_unix_s"] + task[turn]["sent_s"]) for turn in range(turns)]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        sizes = [task[turn]["prompt_chars"] for turn in range(turns)]
        assert sizes == sorted(set(sizes)), "each request carries what was answered before"


def test_the_steps_of_an_agent_are_calls_of_tools_and_the_last_turn_is_its_answer(port, tmp_path):
    extra = ["--workload", "tool_calls:n=3,calls=2", "--requests", "6", "--warmup-requests", "0"]
    done = run(ROOT / "scenarios" / "agent_loop.py", port, tmp_path, *extra)
    assert done.returncode == 0, done.stderr
    asked = sorted(recorded(tmp_path), key=lambda record: (record["task"], record["turn"]))
    assert [(r["task"], r["turn"], r["task_turns"], r["outcome"]) for r in asked] == [
        (task, turn, 3, "ok") for task in (0, 1) for turn in (0, 1, 2)
    ]
    assert [(r["output_form"], r["form_valid"], len(r["tool_calls"])) for r in asked[:3]] == [
        ("call", True, 1), ("call", True, 1), (None, None, 0),
    ]  # fmt: skip
    assert asked[2]["answer"].startswith("[simulated")
    assert asked[0]["prompt_tokens"] < asked[1]["prompt_tokens"] < asked[2]["prompt_tokens"]


def test_all_turns_of_recorded_conversations_are_asked(port, tmp_path):
    turns = [{"from": "human", "value": text} for text in ("Hi", "Why?", "And?")]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"id": f"c{n}", "conversations": turns[:n]} for n in (1, 2, 3)]))
    extra = ["--workload", f"{path}:turns=all", "--requests", "12", *locust_pass.shared(2)]
    done = run(ROOT / "scenarios/long_reasoning.py", port, tmp_path / "out", *extra)
    assert done.returncode == 0, done.stderr
    asked = measured(recorded(tmp_path / "out"))
    assert len({r["seq"] for r in asked}) == len(asked) == 12  # two rounds of 1 + 2 + 3 turns
    tasks = {}
    for record in (one for one in asked if one["task"] is not None):
        tasks.setdefault(record["task"], []).append((record["turn"], record["prompt_chars"], record["task_turns"]))
    sizes = sorted(len(task) for task in tasks.values())
    assert sizes == [2, 2, 3, 3]
    assert [(r["turn"], r["task"]) for r in asked if r["prompt_id"] == "c1"] == [(None, None)] * 2
    for task in map(sorted, tasks.values()):
        assert [(turn, most) for turn, _, most in task] == [(n, len(task)) for n in range(len(task))]
        assert [chars for _, chars, _ in task] == sorted({chars for _, chars, _ in task})


REPLAY = [
    {"prompt": "Why?", "id": "a", "thinking_tokens": 11, "answer_tokens": 4, "arrival_s": 0.0},
    {"prompt": "How?", "id": "b", "thinking_tokens": 0, "answer_tokens": 3, "arrival_s": 0.25},
    {"prompt": "When?", "id": "c", "thinking_tokens": 6, "answer_tokens": 2, "arrival_s": 2.0},
]


def test_a_replay_asks_at_the_recorded_times_and_forces_the_recorded_lengths(port, tmp_path):
    path = tmp_path / "replay.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in REPLAY))
    extra = ["--arrivals", "recorded", "--requests", "5", "--mode", "equal-work", "--workload", str(path)]
    done = run(ROOT / "scenarios/open_loop.py", port, tmp_path / "out", *extra)
    assert done.returncode == 0, done.stderr
    asked = sorted(measured(recorded(tmp_path / "out")), key=lambda r: r["seq"])
    assert [r["prompt_id"] for r in asked] == ["a", "b", "c", "a", "b"]
    offsets = [r["scheduled_s"] - asked[0]["scheduled_s"] for r in asked]
    assert offsets == pytest.approx([0, 0.25, 2, 3, 3.25], abs=1e-5)
    assert [(r["reasoning_tokens"], r["completion_tokens"]) for r in asked] == [(11, 15), (0, 3), (6, 8), (11, 15), (0, 3)]
    options = json.loads((tmp_path / "out/manifest.json").read_bytes())["scenario_options"]
    assert options["arrivals"] == "recorded"


def test_a_replay_without_recorded_times_says_so_before_anything_is_sent(port, tmp_path):
    done = run(ROOT / "scenarios/open_loop.py", port, tmp_path, "--arrivals", "recorded", *locust_pass.shared(2))
    assert done.returncode == 2, "also where a worker finds it"
    assert "--arrivals recorded: expected a workload whose prompts all have arrival_s" in done.stderr
    assert recorded(tmp_path) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "1,x"], "--steps: expected numbers of users such as 1,2,4,8, got '1,x'"),
        (["--step-time", "0"], "--step-time: expected seconds above 0, got 0"),
    ],
)
def test_wrong_stairs_are_refused_before_anything_is_sent(extra, message, port, tmp_path):
    done = run(ROOT / "scenarios/concurrency_ramp.py", port, tmp_path, *extra)
    assert (done.returncode, message in done.stderr, recorded(tmp_path)) == (2, True, [])


def test_a_level_has_arrivals_of_its_own():
    """Also where it takes the place in memory of one that has gone, as the second test of Locust's page may."""
    code = """
from types import SimpleNamespace as Some
from loadtest.scenario.open_loop import OpenLoopUser
class Level:
    def __init__(self, start_s):
        self.clock, self.script, self.options = Some(now_s=lambda: start_s, speed=1e9), Some(arrivals_s=()), Some(seed=1)
user = Some(environment=Some(parsed_options=Some(rate=1.0, arrivals="constant")))
for start_s in (0.0, 50.0, 100.0):
    assert OpenLoopUser.due_s(user, Level(start_s), Some(index=0)) == start_s
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_router_sends_easy_prompts_elsewhere(port, tmp_path):
    run(ROOT / "scenarios/router.py", port, tmp_path)
    records = measured(recorded(tmp_path))
    assert {r["endpoint"] for r in records} == {None, "easy"}
    assert all((r["endpoint"] == "easy") == r["prompt_id"].startswith("easy-") for r in records)


@pytest.mark.parametrize(
    ("scenario", "more", "said"),
    [
        ("router", (), "--easy-host: expected the URL of the small model's server"),
        ("bursts", ("--replica", "http://127.0.0.1:9"), "--replica http://127.0.0.1:9: expected none with bursts"),
    ],
)
def test_a_scenario_with_too_few_or_too_many_servers_says_so(scenario, more, said, port, tmp_path):
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / f"scenarios/{scenario}.py"), "--headless", "-u", "1", *more]
    argv += ["--host", f"http://127.0.0.1:{port}"]
    argv += ["--engine", "other", "--model", "m", "--clock-speed", "1", "--out", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


def test_locust_s_web_page_shows_our_rows(port, tmp_path):
    web = preflight.free_port()
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / "scenarios/long_reasoning.py"), "-u", "2", "-r", "100"]
    argv += ["--autostart", "--autoquit", "0", "--run-time", "20s", "--web-host", "127.0.0.1", "--web-port", str(web)]
    argv += ["--host", f"http://127.0.0.1:{port}", "--model", "known", "--out", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            rows: set[str] = set()
            while not rows >= {"TTFT", "first answer", "final answer", "output tokens (RPS = tokens/s)"}:
                assert process.poll() is None, "Locust ended before its page showed the rows"
                with contextlib.suppress(httpx.HTTPError):
                    told = httpx.get(f"http://127.0.0.1:{web}/stats/requests", trust_env=False).json()
                    rows = {row["name"] for row in told["stats"]}
                time.sleep(0.2)
            counted = {row["name"]: row["num_requests"] for row in told["stats"]}
            assert counted["Aggregated"] == counted["final answer"]
            assert counted["output tokens (RPS = tokens/s)"] > 10 * counted["final answer"]
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("scenario", "own"), [("long_reasoning", "--workload"), ("open_loop", "--rate"), ("router", "--easy-host")]
)
def test_help_lists_the_options_of_a_scenario(scenario, own):
    """Locust prints its help before it loads a locustfile; `locust_plugins` loads ours first."""
    locust = Path(sys.executable).with_name("locust")
    text = subprocess.run(
        [locust, "-f", ROOT / f"scenarios/{scenario}.py", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "loadtest: what to ask, of whom, and where the records go:" in text
    for option in ("--requests", "--duration", "--max-tokens", "--warmup-requests", own):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{option} "))
        place = text.index(line)
        assert re.search(r"[a-z]{3}", text[place + len(option) : place + 200].split("--")[0]), f"{option} has no help"


def test_the_help_of_a_locustfile_that_is_not_ours_is_locusts_own(tmp_path):
    (tmp_path / "locustfile.py").write_text("raise SystemExit('loaded')")
    locust = Path(sys.executable).with_name("locust")
    done = subprocess.run([locust, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, "--workload" in done.stdout) == (0, False)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_is_short(scenario):
    assert len(scenario.read_text().splitlines()) < 80


def test_arrivals():
    code = """
from loadtest.scenario.open_loop import Arrivals
times = [Arrivals(5.0, "poisson", 1).at_s(i) for i in range(2000)]
again = Arrivals(5.0, "poisson", 1)
assert times == sorted(times) and again.at_s(1999) == times[1999] and again.at_s(7) == times[7]
assert 370 < times[-1] < 430, times[-1]
assert Arrivals(5.0, "poisson", 2).at_s(9) != times[9]
assert [Arrivals(4.0, "constant", 1).at_s(i) for i in range(3)] == [0.0, 0.25, 0.5]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_examples_in_what_imports_locust():
    """Importing locust patches the whole process: the doctests of the folder run in one of their own."""
    code = (
        "import doctest;"
        "from loadtest.scenario import dialogue, open_loop, options, ramp, router, run_folder, session, user;"
        "modules = (dialogue, open_loop, options, ramp, router, run_folder, session, user);"
        "found = [doctest.testmod(module) for module in modules];"
        "print(sum(one.failed for one in found), sum(one.attempted for one in found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "0", done.stdout
    assert int(done.stdout.split()[1]) >= 2
