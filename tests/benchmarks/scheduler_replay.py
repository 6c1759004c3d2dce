"""The simulated vLLM's scheduler against a real one: `python -m tests.benchmarks.scheduler_replay`.

Replays 300 recorded requests (vLLM 0.19, one RTX 4090) in virtual time, and prints quantiles of what each saw beside the
recorded ones. Nothing was fitted to the recording. Needs the trace beside the checkout (`../shared/data/batched`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.simulator import real_trace

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def main():
    if not real_trace.TRACE.is_file():
        print(f"skipped: {real_trace.TRACE.name} is not beside this checkout")
        return 0
    rows = real_trace.recorded()
    real, simulated = real_trace.real(rows), real_trace.replayed(rows)
    print(f"{'':10}{'':11}" + "".join(f"{f'p{q * 100:.0f}':>10}" for q in QUANTILES) + f"{'mean':>10}")
    for key in ("queue_s", "ttft_s", "tpot_s"):
        for title, served in (("real", real), ("simulated", simulated)):
            values = np.array([getattr(one, key) for one in served])
            print(f"{key:10}{title:11}" + "".join(f"{v:10.4g}" for v in (*np.quantile(values, QUANTILES), values.mean())))
    ends = [end_s(rows, served) for served in (real, simulated)]
    print(f"all done after {ends[0]:.1f} s, simulated {ends[1]:.1f} s ({ends[1] / ends[0] - 1:+.1%})")
    return 0


def end_s(rows, served):
    """When the last request was done (s)."""
    pairs = zip(rows, served, strict=True)
    return max(row["arrival_s"] + one.ttft_s + one.tpot_s * (row["output_tokens"] - 1) for row, one in pairs)


if __name__ == "__main__":
    sys.exit(main())
