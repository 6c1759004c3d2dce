"""Pages of the runs of `support.runs`, each drawn once, and two runs of synthetic records held against each other."""

from __future__ import annotations

import functools
from dataclasses import replace

from loadtest.analysis import comparability, compare
from loadtest.report.comparison import Side
from loadtest.report.page import comparison_page, run_page
from tests.support import builders
from tests.support.runs import analysed, change, damaged, hostile, simulated

RUNS = {"simulated": simulated, "damaged": damaged, "hostile": hostile}


@functools.cache
def page(name):
    """The page of one of `RUNS`, or of the comparison; drawing one takes seconds, and several files look at the same."""
    return comparison_page(comparison()) if name == "comparison" else run_page(RUNS[name]())


# One run against another ---------------------------------------------------------------------------------------------


def _run(gap_s, top_k, levels):
    """Two engines on one GPU and on two, three passes each; a token every `gap_s`."""
    cells = []
    for engine in ("sglang", "vllm"):
        for tp in (1, 2):
            passes = [
                builders.level(
                    builders.closed_loop(
                        concurrency, 12, seed=int(1e5 * gap_s) + tp + 10 * repeat, gap_s=gap_s / tp, start_s=1000.0 * repeat
                    ),
                    concurrency=concurrency,
                    repeat=repeat,
                )
                for concurrency in levels
                for repeat in (1, 2, 3)
            ]
            cells.append(builders.cell(passes, engine, tp=tp))
    return builders.run(cells, contract={"top_k": top_k})


@functools.cache
def comparison():
    """A baseline, and a candidate whose every token takes a quarter longer; asked for another top_k and two levels."""
    old, new = _run(0.03, 40, (1, 4, 8)), _run(0.0375, 20, (1, 4))
    apart = comparability.manifest_differences(old.manifest, new.manifest)
    judged = compare.compare_runs(old, new, allow=tuple(apart))
    first, second = analysed(old), analysed(new)
    return (
        Side("old", first.metrics, first.manifest, None, {}),
        Side("new", second.metrics, second.manifest, judged, apart),
    )


def with_rows(side, edit):
    """The candidate with other verdicts."""
    assert side.comparison is not None
    return replace(side, comparison=change(side.comparison, comparisons=tuple(map(edit, side.comparisons))))
