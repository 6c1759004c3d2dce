"""Draw docs/deciding.svg (`python -m tests.intervals.draw_hours`): simulated GPU-hours against pairs decided."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from loadtest.analysis.judgement import judge_pairs
from loadtest.decision import starts, verdicts
from tests.intervals import worlds
from tests.intervals.test_rates_of_decisions import CERTAIN, pairs_after
from tests.intervals.worlds import PUBLISHED, World

STUDIES = 60
GRID_H = 14.9 / 3  # one repeat of the published study, by `run --dry-run`
WORLDS = {"equal": World(), "5 % slower": World(slower=1.05), "10 % slower": World(slower=1.1)}
COLOURS = ("#4a5568", "#b7791f", "#2b6cb0")


def grid(world, repeats):
    """Share of pairs that the whole grid decides, judged once after so many repeats."""
    words = []
    for seed in range(STUDIES):
        rng = np.random.default_rng(seed)
        pairs = [worlds.natural(world, one, rng, repeats=repeats)[0] for one in PUBLISHED]
        level = verdicts.nominal_level(len(pairs))
        words += [verdicts.verdict_on(one, level).decided for one in starts.effects_of_starts(pairs)]
    return float(np.mean(words))


def decision(world):
    """Hours, and the share of pairs decided by then, at each look of `qwq-32b-ada-decision`."""
    hours, shares = [], []
    for study in worlds.studies(world, STUDIES):
        n, done, spent = [0] * len(study), [False] * len(study), []
        for look in verdicts.LOOKS:
            n = [used if is_done else look for used, is_done in zip(n, done, strict=True)]
            judged = judge_pairs(pairs_after(study, n), sequential=True).decisions
            done = [d or one.verdict in CERTAIN for d, one in zip(done, judged, strict=True)]
            spent.append((worlds.hours(study, n), float(np.mean(done))))
        hours.append([h for h, _ in spent])
        shares.append([s for _, s in spent])
    return np.mean(hours, axis=0).tolist(), np.mean(shares, axis=0).tolist()


def draw(path):
    mpl.rcParams.update({"svg.hashsalt": "deciding", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
    for (name, world), colour in zip(WORLDS.items(), COLOURS, strict=True):
        hours, shares = decision(world)
        axes.plot([0, *hours], [0, *shares], color=colour, marker="o", markersize=3.5, label=f"{name}, by bursts")
        repeats = (2, 3, 4)
        axes.plot([GRID_H * n for n in repeats], [grid(world, n) for n in repeats], color=colour, marker="s", markersize=3.5,
                  linestyle="--", label=f"{name}, whole grid")  # fmt: skip
    axes.set(
        xlabel="GPU-hours of five pairs (simulated; starts vary by 1 %)",
        ylabel="pairs decided",
        ylim=(0, 1.03),
        xlim=(0, None),
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(Path(__file__).parents[2] / "docs" / "deciding.svg")
