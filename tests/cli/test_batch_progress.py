"""The board of a batch: what it says at any width, with and without colour, and without a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import attrs
import pytest
from rich.console import Console
from support.tables import together

from kie_async import Weather
from kie_async.cli.batch_progress import Board, LineProgress, lay_out, open_progress, show_weather

NOW = datetime(2026, 11, 29, 2, 14, tzinfo=UTC)

BOARD = Board(
    total=500,
    done=200,
    failed=50,
    perhaps_paid=3,
    running=20,
    waiting=18,
    waits_for="the limit",
    credits=7424.0,
    left_s=4000.0,
    weather=(Weather(kind="no answer", message="...", since=NOW - timedelta(seconds=40)),),
)


def test_it_says_what_is_over_what_it_waits_for_what_it_cost_and_how_long_it_takes() -> None:
    assert BOARD.parts(NOW) == [
        "200 done, 50 failed, 3 perhaps paid of 500",
        "20 running, 18 waiting for the limit, no answer for 40 s",
        "7424 credits (37.12 USD)",
    ]


def test_how_long_it_may_take_is_said_while_it_gets_on() -> None:
    assert attrs.evolve(BOARD, weather=()).parts(NOW)[-1] == "67 min left"


def test_nothing_waits_once_nothing_more_is_sent() -> None:
    stopped = attrs.evolve(BOARD, waits_for="", weather=())
    assert stopped.parts(NOW)[1] == "20 running, 18 not sent"


def test_creates_and_polls_without_an_answer_are_one_thing() -> None:
    polls = Weather(kind="unanswered", message="...", since=NOW - timedelta(seconds=35))
    assert (
        attrs.evolve(BOARD, weather=(polls, *BOARD.weather))
        .parts(NOW)[1]
        .endswith("limit, no answer for 40 s")
    )


def test_what_there_is_none_of_is_not_said() -> None:
    board = Board(
        total=1, done=0, failed=0, perhaps_paid=0, running=0, waiting=1, waits_for="a slot", credits=0.0
    )
    assert board.parts(NOW) == ["0 done of 1", "1 waiting for a slot", "0 credits (0.00 USD)"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_and_says_all_of_it_at_any_width(width: int) -> None:
    lines = lay_out(BOARD, width, NOW).plain.split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split("]")[1].split() == " ".join(BOARD.parts(NOW)).split()
    assert len(lines) == {40: 6, 80: 3, 200: 1}[width]


@together(
    ("done", "failed", "bar"),
    [
        (0, 0, "[..........]"),
        (5, 0, "[#####.....]"),
        (5, 5, "[#####xxxxx]"),
        (9, 1, "[#########x]"),
        (10, 0, "[##########]"),
    ],
)
def test_the_bar_tells_done_from_failed_without_colour(done: int, failed: int, bar: str) -> None:
    assert attrs.evolve(BOARD, total=10, done=done, failed=failed).bar(10).plain == bar


def test_one_failure_among_thousands_is_seen() -> None:
    assert "x" in attrs.evolve(BOARD, total=5000, done=4000, failed=1).bar(20).plain


def test_without_colour_there_are_no_escapes() -> None:
    written = io.StringIO()
    Console(file=written, no_color=True, width=80).print(lay_out(BOARD, 80, NOW))
    assert "\x1b" not in written.getvalue()


@together(
    ("weather", "words"),
    [
        (
            Weather(kind="unreachable", message="", since=NOW - timedelta(seconds=61)),
            "no connection for 61 s",
        ),
        (Weather(kind="disk", message="", since=NOW - timedelta(hours=2)), "the disk is full for 2.0 h"),
        (Weather(kind="held back", message="", since=NOW), "held back by the service for 0 s"),
        (
            Weather(kind="halted", message="", since=NOW, until=NOW.astimezone() + timedelta(minutes=1)),
            f"creates halted, next try at {(NOW.astimezone() + timedelta(minutes=1)):%H:%M}",
        ),
    ],
)
def test_the_weather_is_a_few_words(weather: Weather, words: str) -> None:
    assert show_weather(weather, NOW) == words


def test_without_a_terminal_each_line_has_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress(now=lambda: NOW)
    progress.show(BOARD)
    progress.print_line("interrupted: nothing more is sent")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("02:14:00 200 done, 50 failed, 3 perhaps paid of 500; 20 running, 18 waiting")
    assert second == "02:14:00 interrupted: nothing more is sent"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(is_quiet=True) as progress:
        progress.show(BOARD)
        progress.print_line("interrupted")
    assert capsys.readouterr().err == ""
