"""How long tasks take, as far as was seen: completions and tasks still running, fading, of bounded size."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
from support.tables import together

from kie_async.planning.durations import BINS, EDGES_S, MEMORY, DurationModel, place


def ended(hazards: list[float], age_s: float) -> float:
    """The share of tasks that the hazards let end before an age."""
    number = int(place(age_s))
    share = (age_s - EDGES_S[number]) / (EDGES_S[number + 1] - EDGES_S[number])
    return 1 - math.exp(-sum(hazards[:number]) - share * hazards[number])


def seen(*durations_s: float) -> DurationModel:
    found = DurationModel()
    for duration_s in durations_s:
        found.note_finished(duration_s, seen_s=0.0)
    return found


def drawn(count: int, median_s: float, sigma: float, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [median_s * math.exp(rng.gauss(0, sigma)) for _ in range(count)]


@together("age_s", [0.0, 0.2, 0.5, 1.0, 119.9, 7200.0, 1e9, -1.0])
def test_every_age_has_its_place(age_s: float) -> None:
    at = place(age_s)
    assert 0 <= at < BINS
    if 0 <= age_s < EDGES_S[-1]:
        assert EDGES_S[int(at)] <= age_s * 1.000001
        assert age_s <= EDGES_S[int(at) + 1] * 1.000001


@together("share", [0.1, 0.5, 0.9])
@together("sigma", [0.15, 0.42, 0.8])
def test_its_quantiles_are_those_of_what_it_saw(share: float, sigma: float) -> None:
    durations_s = drawn(400, 120.0, sigma)
    hazards = seen(*durations_s).hazards()
    age_s = sorted(durations_s[-MEMORY * 2 :])[int(share * MEMORY * 2)]
    assert ended(hazards, age_s) == pytest.approx(share, abs=0.1)


def test_tasks_still_running_say_that_the_quick_ones_do_not_speak_for_all() -> None:
    quick = seen(50.0, 55.0, 60.0)
    among_many = seen(50.0, 55.0, 60.0)
    for _ in range(97):
        among_many.note_running(0.0, 65.0)
    assert ended(quick.hazards(), 65.0) > 0.5
    assert ended(among_many.hazards(), 65.0) < 0.1


def test_many_polls_of_one_task_weigh_like_one() -> None:
    once, often = seen(80.0), DurationModel()
    for before_s, after_s in pairwise([0.0, *(float(age_s) for age_s in range(3, 80, 3))]):
        often.note_running(before_s, after_s)
    often.note_finished(80.0, seen_s=78.0)
    assert often.hazards() == pytest.approx(once.hazards(), rel=0.02)


def test_old_ends_fade() -> None:
    found = seen(*drawn(200, 120.0, 0.3))
    for duration_s in drawn(200, 40.0, 0.3, seed=2):
        found.note_finished(duration_s, seen_s=0.0)
    assert ended(found.hazards(), 60.0) > 0.75
    assert found.seen == pytest.approx(MEMORY, rel=0.2)


def test_where_nothing_was_seen_an_end_is_neither_sure_nor_impossible() -> None:
    hazards = seen(*drawn(30, 120.0, 0.2)).hazards()
    assert all(0 < hazard <= 5 for hazard in hazards)
    assert ended(hazards, 40.0) < 0.05


def test_a_hundred_thousand_ends_take_no_more_room_and_stay_in_bounds() -> None:
    found = DurationModel()
    for number in range(100_000):
        found.note_finished(60.0 + number % 60, seen_s=0.0)
    assert len(json.dumps(found.dump())) < 5_000
    assert ended(found.hazards(), 90.0) == pytest.approx(0.5, abs=0.05)


def test_what_was_dumped_is_loaded() -> None:
    found = seen(*drawn(50, 120.0, 0.42))
    loaded = DurationModel.load(json.loads(json.dumps(found.dump())))
    assert loaded is not None
    assert loaded.hazards() == pytest.approx(found.hazards(), rel=1e-3)
    loaded.note_finished(100.0, seen_s=0.0)
    found.note_finished(100.0, seen_s=0.0)
    assert loaded.hazards() == pytest.approx(found.hazards(), rel=1e-3)


def test_what_a_journal_written_before_the_counts_were_renamed_holds_is_loaded() -> None:
    written = sparse_dump(
        seen=2.970395059307911,
        ends={60: 0.9705901479276445, 64: 0.9802960494069209, 69: 0.9900990099009902},
        entries={
            0: 3.9409852072355553,
            60: -0.15175489029364023,
            61: -0.8188352576340043,
            64: -0.5492866479533,
            65: -0.5190487653259899,
            66: -0.9119606361276311,
            69: -0.4871420378466501,
            70: -0.5029569720543401,
        },
    )
    loaded, seen_again = DurationModel.load(written), seen(60.0, 80.0, 120.0)
    seen_again.note_running(0.0, 90.0)
    assert loaded is not None
    assert loaded.hazards() == pytest.approx(seen_again.hazards())
    assert json.loads(json.dumps(loaded.dump())).keys() == {*written, "recent"}


def sparse_dump(*, seen: float, ends: dict[int, float], entries: dict[int, float]) -> dict[str, object]:
    """Return a dump with these counts and zeros, as a journal's JSON holds it."""
    return {
        "bins": [0.08, 0.5, 136],
        "seen": seen,
        "ends": [ends.get(number, 0.0) for number in range(136)],
        "entries": [entries.get(number, 0.0) for number in range(137)],
    }


GOOD = DurationModel().dump()


@together(
    "dumped",
    [
        None,
        [],
        {},
        GOOD | {"bins": [0.1, 0.5, 136]},
        GOOD | {"ends": [0.0] * 3},
        GOOD | {"ends": ["x"] * BINS},
        GOOD | {"entries": [math.nan] * (BINS + 1)},
        GOOD | {"seen": -1},
        GOOD | {"seen": "many"},
    ],
)
def test_what_is_no_dump_is_not_loaded(dumped: object) -> None:
    assert DurationModel.load(dumped) is None
