"""Lanes take turns: one of each, then the next one of each; within a lane who came first goes first."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from kie_async.limits.lanes import Lanes


@attrs.define(eq=False)
class Item:
    lane: str
    number: int
    is_begun: bool = True
    is_ready: bool = True

    @property
    def name(self) -> str:
        return f"{self.lane}{self.number}"


def filled(**counts: int) -> Lanes[Item]:
    lanes: Lanes[Item] = Lanes()
    for lane, count in counts.items():
        for number in range(count):
            lanes.add(Item(lane, number))
    return lanes


def taken(lanes: Lanes[Item]) -> list[str]:
    names = []
    while (item := lanes.take()) is not None:
        names.append(item.name)
    return names


def test_each_lane_has_one_turn_then_each_the_next() -> None:
    assert taken(filled(a=3, b=1, c=2)) == ["a0", "b0", "c0", "a1", "c1", "a2"]


def test_one_lane_is_first_come_first_served() -> None:
    assert taken(filled(a=4)) == ["a0", "a1", "a2", "a3"]


def test_a_new_lane_passes_the_one_that_has_just_had_its_turn_and_no_other() -> None:
    lanes = filled(a=500, b=2)
    assert lanes.take() is not None
    lanes.add(Item("c", 0))
    assert taken(lanes)[:4] == ["b0", "c0", "a1", "b1"]


def test_new_lanes_pass_it_once_and_cannot_starve_it() -> None:
    lanes, order = filled(a=500), []
    for number in range(20):
        lanes.add(Item(f"new{number}-", 0))
        lanes.add(Item(f"newer{number}-", 0))
        order += [item.lane[0] for item in (lanes.take(), lanes.take()) if item is not None]
    assert order.count("a") >= 2  # as many turns as any lane that waits as long


def test_a_place_is_how_many_go_before() -> None:
    lanes = filled(a=3, b=1, c=2)
    assert [lanes.place_of(item) for item in lanes] == [0, 1, 2, 3, 4, 5]
    last = list(lanes)[-1]
    lanes.take()
    assert lanes.place_of(last) == 4


def test_who_is_still_made_ready_is_overtaken_and_keeps_the_next_turn() -> None:
    lanes: Lanes[Item] = Lanes()
    slow, fast, other = Item("a", 0, is_ready=False), Item("a", 1), Item("b", 0)
    for item in (slow, fast, other):
        lanes.add(item)
    assert lanes.take() is fast
    slow.is_ready = True
    assert taken(lanes) == ["b0", "a0"]


def test_nobody_passes_one_whose_turn_to_be_made_ready_has_not_come() -> None:
    lanes: Lanes[Item] = Lanes()
    idle, ready = Item("a", 0, is_begun=False, is_ready=False), Item("a", 1)
    lanes.add(idle)
    lanes.add(ready)
    assert lanes.take() is None
    assert lanes.next_to_begin(5) is idle


def test_a_lane_where_nobody_is_ready_keeps_its_turn() -> None:
    lanes: Lanes[Item] = Lanes()
    slow, first, second = Item("a", 0, is_ready=False), Item("b", 0), Item("b", 1)
    for item in (slow, first, second):
        lanes.add(item)
    assert lanes.take() is first
    slow.is_ready = True
    assert taken(lanes) == ["a0", "b1"]


@given(st.lists(st.sampled_from(["a", "b", "c", "take", "remove"]), max_size=60))
def test_the_order_that_is_shown_is_the_order_in_which_they_go(steps: list[str]) -> None:
    lanes: Lanes[Item] = Lanes()
    for number, step in enumerate(steps):
        if step == "take":
            lanes.take()
        elif step == "remove" and len(lanes):
            lanes.remove(list(lanes)[number % len(lanes)])
        elif step in "abc":
            lanes.add(Item(step, number))
    shown = [item.name for item in lanes]
    assert len(shown) == len(lanes)
    assert taken(lanes) == shown
    assert len(lanes) == 0


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1))
def test_no_lane_is_ever_two_turns_ahead_of_one_that_waits(counts: dict[str, int]) -> None:
    lanes, turns = filled(**counts), dict.fromkeys(counts, 0)
    while (item := lanes.take()) is not None:
        turns[item.lane] += 1
        waiting = [turn for lane, turn in turns.items() if turn < counts[lane]]
        assert not waiting or max(turns.values()) - min(waiting) <= 1
