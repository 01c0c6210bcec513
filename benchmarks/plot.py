"""Draws how late an end is noticed against the polls of a task, for each kind of schedule, into a PNG."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs

from kie_async import PollSchedule

from .schedule_sim import AVATAR, Plan, polls, wait_s
from .simulated import bound, run

TO = Path(__file__).parent / "schedules.png"
WAITS_S = (0.75, 1.5, 3.0, 6.0, 12.0)
LOST = (0.0, 0.05)
SEEDS = 3

Line = list[tuple[float, float]]


@attrs.frozen
class Lines:
    """Pairs of polls a task and mean wait in seconds, for each kind of schedule."""

    fixed: Line
    learning: Line
    bound: Line
    documented: Line
    with_callbacks: dict[float, Line]


def simulated(tasks: int, seeds: int) -> Lines:
    """Simulate all kinds on avatar tasks."""
    with ProcessPoolExecutor() as pool:
        plan = Plan(pool, tasks, seeds)
        fixed = [plan(run, PollSchedule.fixed(2 * wait), AVATAR) for wait in WAITS_S]
        learning = [plan(run, PollSchedule(wait_s=wait, wait_share=0), AVATAR) for wait in WAITS_S]
        documented = plan(run, PollSchedule.documented(), AVATAR)
        called_back = {lost: plan(run, PollSchedule(), AVATAR, lost=lost) for lost in LOST}
        mean_s = AVATAR.median_s * math.exp(AVATAR.sigma**2 / 2)
        return Lines(
            fixed=[(polls(runs), wait_s(runs)) for runs in fixed],
            learning=[(polls(runs), wait_s(runs)) for runs in learning],
            bound=[(mean_s / (2 * wait * bound(AVATAR)), wait) for wait in WAITS_S],
            documented=[(polls(documented), wait_s(documented))],
            with_callbacks={lost: [(polls(runs), wait_s(runs))] for lost, runs in called_back.items()},
        )


def draw(lines: Lines, to: Path) -> None:
    """Draw them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), dpi=140)
    axes.loglog(*zip(*lines.fixed, strict=True), "o-", color="#888888", label="fixed interval")
    axes.loglog(*zip(*lines.learning, strict=True), "o-", color="#1668b8", label="learning (the default)")
    axes.loglog(*zip(*lines.bound, strict=True), ":", color="#1668b8", label="the best there can be")
    axes.loglog(*zip(*lines.documented, strict=True), "s", color="#b8501b", label="documented cadence")
    for lost, line in lines.with_callbacks.items():
        what = f"learning, {lost:.0%} of callbacks lost" if lost else "learning, with callbacks"
        axes.loglog(*zip(*line, strict=True), "^" if lost else "D", color="#2a8f4e", label=what)
    axes.set_xlabel("polls of a task")
    axes.set_ylabel("seconds until an end is noticed, on average")
    axes.set_title("1,000 avatar tasks (median 120 s), 100 in flight, nothing known before", fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(to, metadata={"Software": None})


def main(argv: Sequence[str]) -> int:
    """Simulate and draw."""
    options = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__)
    options.add_argument("--to", type=Path, default=TO)
    options.add_argument("--tasks", type=int, default=1000)
    options.add_argument("--seeds", type=int, default=SEEDS)
    asked = options.parse_args(argv)
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError:
        print("the plot needs matplotlib: pip install '.[bench]'", file=sys.stderr)
        return 2
    draw(simulated(asked.tasks, asked.seeds), asked.to)
    print(asked.to)
    return 0
