"""Simulates how many polls find the end of a task how late, by fixed, documented and learning schedules.

The learner sees what a session would, begins with nothing, and has a hundred tasks in flight within the
service's limits. A gain says how many times as many polls a fixed interval takes for the same mean wait;
the bound is what the best schedule could gain if it knew the distribution (`kie_async.planning.poll_curve`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from kie_async import PollSchedule, Rate

from .measuring import Figure, parser, report
from .simulated import Found, Known, Lognormal, Mixture, Uniform, bound, run, run_shifted

TASKS, SEEDS, MORE, KNOWN = 1000, 8, 4, 30
AVATAR = Lognormal(120, 0.42)
KINDS: dict[str, Known] = {
    "log-normal 120 s, 0.42": AVATAR,
    "uniform 60-240 s": Uniform(60, 240),
    "log-normal 20 s, 0.30": Lognormal(20, 0.30),
    "log-normal 90 s, 0.15": Lognormal(90, 0.15),
    "log-normal 60 s, 0.80": Lognormal(60, 0.80),
    "two kinds, 60 and 240 s": Mixture(2 / 3, Lognormal(60, 0.21), Lognormal(240, 0.21)),
}
SHIFTS = {
    "three times as fast": (AVATAR, Lognormal(40, 0.42)),
    "three times as slow": (Lognormal(40, 0.42), AVATAR),
}
LEARNING, FIXED, DOCUMENTED = PollSchedule(), PollSchedule.fixed(3), PollSchedule.documented()
OF_BOUND_COLD, OF_BOUND, NOT_WORSE, NOT_WORSE_SHIFTED = 0.85, 0.9, 0.97, 0.95
QUERIES_PER_S = (10, 5)

Runs = list["Future[Found]"]


class Plan:
    """Runs on all cores, asked for at once and read later."""

    def __init__(self, pool: ProcessPoolExecutor, tasks: int, seeds: int) -> None:
        self._pool, self._tasks, self._seeds = pool, tasks, seeds

    def __call__(self, work: Callable[..., Found], *given: Any, times: int = 1, **options: Any) -> Runs:
        """Ask for a run with each seed, of so many times as many seeds."""
        return [
            self._pool.submit(work, *given, tasks=self._tasks, seed=seed, **options)
            for seed in range(self._seeds * times)
        ]


def polls(runs: Runs) -> float:
    """Return the polls of a task, on average."""
    return statistics.mean(one.result().polls for one in runs)


def wait_s(runs: Runs) -> float:
    """Return the mean wait."""
    return statistics.mean(one.result().wait_s for one in runs)


def gain(runs: Runs) -> float:
    """Return the gain over a fixed interval."""
    return statistics.mean(one.result().gain for one in runs)


def of_kinds(plan: Plan) -> Callable[[], list[Figure]]:
    """Compare the three on every distribution."""
    asked = {
        name: (plan(run, LEARNING, kind), plan(run, LEARNING, kind, known=KNOWN), plan(run, DOCUMENTED, kind))
        for name, kind in KINDS.items()
    }
    alike = {
        name: plan(run, PollSchedule(wait_s=round(wait_s(asked[name][2]), 1)), kind)
        for name, kind in KINDS.items()
    }

    def figures() -> list[Figure]:
        found = []
        for name, (cold, warm, documented) in asked.items():
            best = bound(KINDS[name])
            slower = alike[name]
            beside = polls(documented) * wait_s(documented) / (polls(slower) * wait_s(slower))
            shares = ((f"the first {KNOWN} known", warm, OF_BOUND), ("cold start in", cold, OF_BOUND_COLD))
            found.append(Figure(name=f"{name}: learning", values=[polls(cold)], unit="polls"))
            found.append(Figure(name="    mean wait", values=[wait_s(cold)], unit="s"))
            for what, runs, least in shares:
                found.append(_figure(f"    gain, of the bound {best:.2f}, {what}", gain(runs) / best, least))
            found.append(_figure("    polls of a fixed interval for that wait", gain(cold), NOT_WORSE))
            found.append(_figure("    polls of the documented cadence for its wait", beside, NOT_WORSE))
        return found

    return figures


def of_shifts(plan: Plan) -> Callable[[], list[Figure]]:
    """Change the service's speed halfway."""
    asked = {name: plan(run_shifted, LEARNING, *kinds) for name, kinds in SHIFTS.items()}

    def figures() -> list[Figure]:
        return [
            _figure(f"halfway {name}: polls of a fixed interval", gain(runs), NOT_WORSE_SHIFTED)
            for name, runs in asked.items()
        ]

    return figures


def of_callbacks(plan: Plan) -> Callable[[], list[Figure]]:
    """Lose callbacks, from none to all."""
    asked = {  # few polls vary much from run to run, and cost little
        lost: plan(run, LEARNING, AVATAR, lost=lost, times=1 if lost == 1 else MORE)
        for lost in (0.0, 0.01, 0.05, 0.2, 1.0)
    }
    fixed = plan(run, FIXED, AVATAR)
    bars = {
        0.0: (0.3, None),
        0.05: (1.6, 2.0),
        1.0: (0.8 * polls(fixed), 1.25 * wait_s(fixed)),
    }

    def figures() -> list[Figure]:
        found = []
        for lost, runs in asked.items():
            most_polls, longest_s = bars.get(lost, (None, None))
            found.append(_at_most(f"callbacks, {lost:.0%} lost", polls(runs), "polls", most_polls))
            found.append(_at_most("    mean wait", wait_s(runs), "s", longest_s))
        return found

    return figures


def of_limits(plan: Plan) -> Callable[[], list[Figure]]:
    """Allow fewer queries than the schedule would like."""
    asked = {
        limit: (
            plan(run, LEARNING, AVATAR, queries=Rate(limit, per_s=1.0)),
            plan(run, FIXED, AVATAR, queries=Rate(limit, per_s=1.0)),
        )
        for limit in QUERIES_PER_S
    }

    def figures() -> list[Figure]:
        found = []
        for limit, (learning, fixed) in asked.items():
            what = f"{limit} queries a second for 100 tasks: mean wait"
            found.append(Figure(name=f"{what}, learning", values=[wait_s(learning)], unit="s"))
            found.append(Figure(name=f"{what}, fixed", values=[wait_s(fixed)], unit="s"))
        return found

    return figures


def _figure(name: str, value: float, least: float) -> Figure:
    return Figure(name=name, values=[value], unit="x", at_least=least, goal="P8")


def _at_most(name: str, value: float, unit: str, most: float | None) -> Figure:
    return Figure(name=name, values=[value], unit=unit, at_most=most, goal="P10" if most else "")


def measured(tasks: int, seeds: int) -> list[Figure]:
    """Run all of it."""
    with ProcessPoolExecutor() as pool:
        plan = Plan(pool, tasks, seeds)
        parts = [part(plan) for part in (of_callbacks, of_shifts, of_limits, of_kinds)]
        return [figure for part in reversed(parts) for figure in part()]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; with ``--check`` the exit status says whether the bars were met."""
    options = parser("schedule_sim", __doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--seeds", type=int, default=SEEDS)
    asked = options.parse_args(argv)
    return report(measured(asked.tasks, asked.seeds), check=asked.check, to=asked.json)
