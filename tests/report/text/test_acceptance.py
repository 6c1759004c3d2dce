"""The table of `accept`: what failed is seen first where it is read, and nothing in it breaks the table."""

from loadtest.analysis.acceptance import AcceptanceReport, AcceptanceRow
from loadtest.report.text.acceptance import acceptance_markdown, acceptance_text

FAILED = f"failed: CUDA error | see #1 {'x ' * 60}"
ROWS = (
    AcceptanceRow("start and stop", "vllm_m_tp1", "ready, measured and stopped", FAILED, "fail"),
    AcceptanceRow("decision", "both engines", "a verdict", "one engine was measured", "not run"),
    AcceptanceRow("token counts", "sglang_m_tp1", "the same", "512 tokens on both sides", "pass"),
)  # fmt: skip


def test_on_a_terminal_the_failures_stand_last_in_80_columns():
    text = acceptance_text(ROWS, simulated=False, files=["runs/a/acceptance.md"])
    lines = text.splitlines()
    assert lines[:4] == [
        "3 checks: 1 fail, 1 not run, 1 pass",
        "",
        "PASS     token counts, sglang_m_tp1",
        "         512 tokens on both sides",
    ]
    assert lines[6:8] == [
        "FAIL     start and stop, vllm_m_tp1",
        "         expected ready, measured and stopped; got failed: CUDA error | see #1 x",
    ]
    assert lines[-1] == "evidence: runs/a/acceptance.md"
    assert max(map(len, lines)) <= 80
    assert "SIMULATED" in acceptance_text(ROWS, simulated=True, files=[])


def test_as_markdown_the_failures_stand_first_in_one_table():
    report = AcceptanceReport(loadtest="1.2", gpus=("NVIDIA L20", "NVIDIA L20"), rows=ROWS, nvidia_smi=())
    text = acceptance_markdown(report, simulated=True)
    assert text.startswith("### loadtest 1.2 on 2 x NVIDIA L20: 3 checks: 1 fail, 1 not run, 1 pass\n\n**SIMULATED")
    assert (
        "| fail | start and stop | vllm\\_m\\_tp1 | ready, measured and stopped | failed: CUDA error \\| see \\#1 x" in text
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in rows[2:]] == ["| fail", "| not run", "| pass"]
