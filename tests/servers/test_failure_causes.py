"""Causes told from what the engines print. The lines are theirs; the comment says how each was come by."""

import pytest

from loadtest.servers import failure_causes

# kind, line. "seen": printed by the real engine on a CPU; "source": from the engine's code, needs a GPU to be seen.
LINES = [
    ("arguments", "vllm: error: unrecognized arguments: --no-such-flag"),  # seen
    ("arguments", "sglang serve: error: unrecognized arguments: --no-such-flag"),  # seen
    (  # seen
        "kv-cache",
        "ValueError: To serve at least one request with the model's max seq len (8192), (0.0 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (0.0 GiB).",
    ),
    ("kv-cache", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),  # source
    ("kv-cache", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),  # source
    (  # source
        "gpu-memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 540.00 MiB. GPU 0 has a total capacity of 44.40 GiB",
    ),
    (  # source
        "gpu-memory",
        "ValueError: Free memory on device cuda:0 (3.1/44.4 GiB) on startup is less than desired GPU memory utilization",
    ),
    (  # seen
        "kv-cache",
        "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.0001.",
    ),
    ("gpus", "AssertionError: Not enough allowed NUMA nodes to bind threads of 4 local CPUWorkers."),  # seen
    ("engine-died", "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."),  # seen
    ("missing-model", "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),  # seen
    ("killed", "Subprocess scheduler_0 (pid=18046) crashed with exit code -9. Triggering SIGQUIT for cleanup..."),  # seen
    ("missing-kernel", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),  # source
    ("port", "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use"),
]


@pytest.mark.parametrize(("kind", "line"), LINES)
def test_the_engines_own_messages_are_known(kind, line):
    log = f"INFO 11-22 22:21:11 starting\n{line}\nTraceback:\nRuntimeError: Engine core initialization failed."
    found = failure_causes.find_cause(log)
    assert found is not None
    assert found[0].kind == kind
    assert found[1] in line


def test_every_kind_is_told_apart():
    kinds = [cause.kind for cause in failure_causes.CAUSES]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    "line",
    [
        "/site-packages/fla/utils.py:223: UserWarning: Triton is not supported on current platform, roll back to CPU.",
        "[2026-11-22] server_args=ServerArgs(host='127.0.0.1', note='address already in use')",
        '  File "/x/torch/cuda/memory.py", line 1, in CUDA out of memory',
        "INFO 11-22 22:21:11 [x.py:1] CUDA out of memory is handled by recomputation",
        "    raise LocalEntryNotFoundError(",
        "[2026-11-22] Ignore import error when loading x: 'sgl_kernel' object has no attribute 'fused_sigmoid_mul_cpu'",
    ],
)
def test_what_only_quotes_or_warns_is_no_cause(line):
    assert failure_causes.find_cause(line) is None


def test_an_explanation_is_one_line_with_the_next_step():
    text = failure_causes.explain("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1)
    assert text.startswith("exited with code 1: CUDA out of memory (torch.OutOfMemoryError: ")
    assert "loadtest fit" in text
    assert "\n" not in text


def test_an_unknown_death_quotes_the_last_error_line():
    log = "FooError: the first\nINFO going on\nBarError: the last\n  at exit"
    assert failure_causes.explain(log, -11) == "killed by SIGSEGV: BarError: the last"
    assert failure_causes.explain("", 0) == "exited with code 0, with nothing in its log"


def test_a_dead_engine_is_explained_by_the_first_exception():
    root = "(EngineCore pid=1) ERROR 11-22 22:25:35 [core.py:1] OddError: the root"
    log = f"{root}\nRuntimeError: Engine core initialization failed."
    assert "the engine's own process died (OddError: the root)" in failure_causes.explain(log, 1)


def test_colours_prefixes_and_excess_are_cut():
    line = "\x1b[0;36m(EngineCore pid=9357)\x1b[0;0m ERROR 11-22 22:21:11 [core.py:12] ValueError: " + "x" * 900
    assert failure_causes.shorten(line).startswith("ValueError: xxx")
    assert len(failure_causes.shorten(line)) == 300


def test_a_process_that_was_killed_leaves_no_cause_and_the_message_says_so():
    log = "(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace."
    assert failure_causes.explain(log, None).endswith(
        "its log names no cause; the kernel may have killed it for lack of memory, see dmesg"
    )
    told = failure_causes.explain("ZeroDivisionError: division by zero\n" + log, None)
    assert "(ZeroDivisionError: division by zero); read the log" in told


def test_the_kernel_is_suspected_only_where_the_log_names_no_cause():
    kernel = "the kernel may have killed it for lack of memory, see dmesg"
    assert failure_causes.explain("loading", -9) == f"killed by SIGKILL: loading; {kernel}"
    assert "dmesg" not in failure_causes.explain("ValueError: Loaded weights leave no GPU memory for the KV cache", -9)
