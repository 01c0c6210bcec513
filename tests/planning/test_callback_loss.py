"""Which share of the callbacks never comes: counted from those that came and those that were missed."""

from __future__ import annotations

import pytest

from kie_async.planning.callback_loss import CallbackLoss


@pytest.fixture
def lost() -> CallbackLoss:
    return CallbackLoss(grace_s=10.0)


def miss(lost: CallbackLoss, count: int = 1) -> None:
    for number in range(count):
        lost.note_polled_end(f"missed {number}", 0.0, late_s=60.0)


def arrive(lost: CallbackLoss, count: int = 1) -> None:
    for number in range(count):
        lost.note_callback(f"arrived {number}", is_news=True)


def test_before_anything_was_seen_it_is_thought_small_and_known_to_be_unproven(lost: CallbackLoss) -> None:
    assert lost.share == pytest.approx(0.05, abs=0.005)
    assert not lost.is_proven


def test_the_first_miss_makes_every_second_one_suspect(lost: CallbackLoss) -> None:
    miss(lost)
    assert lost.share > 0.5
    assert lost.is_proven


def test_a_wrong_address_is_noticed_after_a_few(lost: CallbackLoss) -> None:
    miss(lost, 10)
    assert lost.share > 0.9


def test_callbacks_that_come_make_it_small(lost: CallbackLoss) -> None:
    arrive(lost, 100)
    assert 0 < lost.share < 0.001
    assert lost.is_proven


def test_it_finds_the_share(lost: CallbackLoss) -> None:
    for _ in range(20):
        arrive(lost, 19)
        miss(lost)
    assert lost.share == pytest.approx(0.05, abs=0.02)


def test_it_relaxes_when_callbacks_come_again(lost: CallbackLoss) -> None:
    miss(lost, 50)
    arrive(lost, 300)
    assert lost.share < 0.05


def test_it_tightens_when_they_stop(lost: CallbackLoss) -> None:
    arrive(lost, 1000)
    miss(lost, 5)
    assert lost.share > 0.04


def test_a_callback_within_the_grace_was_only_slower_than_the_poll(lost: CallbackLoss) -> None:
    lost.note_polled_end("a", 100.0, late_s=2.0)
    lost.note_callback("a", is_news=False)
    lost.expire(1000.0)
    assert lost.share < 0.05


def test_a_callback_that_does_not_come_within_the_grace_was_lost(lost: CallbackLoss) -> None:
    lost.note_polled_end("a", 100.0, late_s=2.0)
    lost.expire(107.9)
    assert not lost.is_proven
    lost.expire(108.1)
    assert lost.share > 0.5


def test_one_that_comes_twice_counts_once(lost: CallbackLoss) -> None:
    arrive(lost)
    once = lost.share
    lost.note_callback("arrived 0", is_news=False)
    assert lost.share == once


def test_what_is_waited_for_is_bounded(lost: CallbackLoss) -> None:
    for number in range(20_000):
        lost.note_polled_end(str(number), 0.0, late_s=0.0)
    lost.expire(1e9)
    assert len(lost._awaited) == 0
    assert lost.share > 0.9
