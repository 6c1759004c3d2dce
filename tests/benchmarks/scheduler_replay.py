"""The simulated vLLM's scheduler against a real one: `python -m tests.benchmarks.scheduler_replay [--chart FILE.svg]`.

Replays 300 recorded requests (vLLM 0.19, one RTX 4090) in virtual time, and prints quantiles of what each saw beside the
recorded ones, the distance of the two distributions (Kolmogorov-Smirnov), and the running batch. Nothing was fitted to the
recording. `--chart` draws them: docs/scheduler-replay.svg. Needs the trace beside the checkout (`../shared/data/batched`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.simulator import real_trace

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
SEEN = {
    "queue_s": ("time in the queue (s)", 1),
    "ttft_s": ("time to first token (s)", 1),
    "tpot_s": ("time per token (ms)", 1e3),
}
COLOURS = {"recorded": "#4a5568", "simulated": "#2b6cb0"}


def main(arguments):
    if not real_trace.TRACE.is_file():
        print(f"skipped: {real_trace.TRACE.name} is not beside this checkout")
        return 0
    rows = real_trace.recorded()
    both = {"recorded": real_trace.real(rows), "simulated": real_trace.replayed(rows)}
    print(f"{'':10}{'':11}" + "".join(f"{f'p{q * 100:.0f}':>10}" for q in QUANTILES) + f"{'mean':>10}")
    for key in SEEN:
        values = {title: values_of(served, key) for title, served in both.items()}
        for title, found in values.items():
            print(f"{key:10}{title:11}" + "".join(f"{v:10.4g}" for v in (*np.quantile(found, QUANTILES), found.mean())))
        print(f"{'':10}distance   {stats.ks_2samp(*values.values()).statistic:10.2f}")
    seconds = np.arange(0, max(end_s(rows, served) for served in both.values()))
    real, simulated = (running(rows, served, seconds) for served in both.values())
    print(f"running   recorded {real.mean():.1f}, simulated {simulated.mean():.1f} requests on average; in a second they")
    print(f"          differ by {np.abs(simulated - real).mean():.1f} on average")
    ends = [end_s(rows, served) for served in both.values()]
    print(f"all done after {ends[0]:.1f} s, simulated {ends[1]:.1f} s ({ends[1] / ends[0] - 1:+.1%})")
    if arguments[:1] == ["--chart"]:
        draw(rows, both, Path(arguments[1]))
    return 0


def values_of(served, key):
    return np.array([getattr(one, key) for one in served])


def end_s(rows, served):
    """When the last request was done (s)."""
    return max(end for _, end in spans(rows, served))


def spans(rows, served):
    """From when to when each request ran (s)."""
    return [
        (row["arrival_s"] + one.queue_s, row["arrival_s"] + one.ttft_s + one.tpot_s * (row["output_tokens"] - 1))
        for row, one in zip(rows, served, strict=True)
    ]


def running(rows, served, seconds):
    """Requests that run at each of these seconds."""
    starts, ends = np.array(spans(rows, served)).T
    return np.array([np.sum((starts <= now) & (now < ends)) for now in seconds])


def draw(rows, both, path):
    mpl.rcParams.update({"svg.hashsalt": "replay", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(2, 2, figsize=(6.4, 4.4), layout="constrained")
    for axis, (key, (title, scale)) in zip(axes.flat, SEEN.items(), strict=False):
        for name, served in both.items():
            axis.ecdf(values_of(served, key) * scale, color=COLOURS[name])
        axis.set(xlabel=title, ylabel="requests up to that")
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes[1, 0].set_xlim(20, 60)
    seconds = np.arange(0, max(end_s(rows, served) for served in both.values()))
    for name, served in both.items():
        axes[1, 1].plot(seconds, running(rows, served, seconds), color=COLOURS[name], label=name, linewidth=1)
    axes[1, 1].set(xlabel="seconds since the start", ylabel="requests running", ylim=(0, None))
    axes[1, 1].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
