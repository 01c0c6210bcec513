"""The demo: real processes over real sockets, its films decoded, and its words at the edges."""

from __future__ import annotations

import asyncio
import io
import re
import wave
from pathlib import Path

import attrs
import pytest
from rich.console import Console
from support.processes import nothing_left_running, start  # noqa: F401  (a fixture)

from kie_async.cli.demo import DemoOptions, run_demo
from kie_async.cli.demo_display import make_progress, show_report
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.cli.demo_report import Job, Report
from kie_async.errors import InvalidRequest
from kie_async.sandbox import Faults, Fixed

av = pytest.importorskip("av")

pytestmark = pytest.mark.usefixtures("nothing_left_running")

SHORT = "239"
"""A seed whose first three tasks are over within three seconds."""
SUMMARY = re.compile(
    r"(?P<saved>\d+) of (?P<jobs>\d+) videos in (?P<s>[\d.]+) s: (?P<callback>\d+) told by callback, "
    r"(?P<poll>\d+) by poll; (?P<credits>[\d.]+) credits; (?P<refusals>\d+) answers 429; "
    r"files in (?P<folder>.+)"
)


def summary_of(out: str) -> dict[str, str]:
    *_, summary, page = out.splitlines()
    found = SUMMARY.fullmatch(summary)
    assert found, out
    assert page == f"{found['folder']}/report.html"
    return found.groupdict()


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def films_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"))


def probe(film: Path) -> tuple[tuple[int, int], float, int]:
    """Return size, seconds of sound, and how many frames could be decoded."""
    with av.open(str(film)) as source:
        (picture,), (sound,) = source.streams.video, source.streams.audio
        size, length_s = (picture.width, picture.height), float(sound.duration * sound.time_base)
        return size, length_s, sum(1 for _ in source.decode(video=0))


def longer_voice() -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2 * 8000 * 3))
    return target.getvalue()


async def test_the_demo_makes_playable_videos_with_and_without_callbacks(tmp_path: Path) -> None:
    given = tmp_path / "mine.png", tmp_path / "mine.wav"
    given[0].write_bytes(read_portrait())
    given[1].write_bytes(longer_voice())
    own = ("--image", str(given[0]), "--audio", str(given[1]))
    variants: dict[str, tuple[str, ...]] = {
        "plain": ("--jobs", "3"),
        "polled": ("--jobs", "2", "--no-callbacks", *own),
        "dropped": ("--jobs", "2", "--drop-callbacks", "1"),
    }
    processes = [
        await start("demo", *flags, "--seed", SHORT, "--out", str(tmp_path / name), FORCE_COLOR="1")
        for name, flags in variants.items()
    ]
    ended = dict(zip(variants, await asyncio.gather(*(each.end() for each in processes)), strict=True))

    for name, (code, out, err) in ended.items():
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        shown = summary_of(out)
        films = films_in(tmp_path / name)
        moods = ("01-a-warm-smile", "02-calm-with-a-slow-nod", "03-surprised-and-delighted")
        assert [film.stem for film in films] == [*moods][: len(films)]
        assert shown["saved"] == shown["jobs"] == str(len(films))
        assert shown["refusals"] == "0"
        assert shown["folder"] == str(tmp_path / name)
        for film in films:
            assert re.search(
                rf"^ +\d+  done +[\d.]+ s  (callback|poll) +\d+  {film.name} *$", out, re.MULTILINE
            )

    plain = summary_of(ended["plain"][1])
    assert plain["credits"] == "48"
    assert int(plain["callback"]) >= 1
    assert probe(films_in(tmp_path / "plain")[0]) == ((320, 320), pytest.approx(2.0, abs=0.1), 30)
    for name in ("polled", "dropped"):
        shown = summary_of(ended[name][1])
        assert (shown["callback"], shown["poll"]) == ("0", "2")
    assert probe(films_in(tmp_path / "polled")[0]) == ((320, 320), pytest.approx(3.0, abs=0.1), 45)
    assert not (tmp_path / "polled" / "portrait.png").exists()


async def test_an_interrupted_demo_ends_at_once_and_cleanly(tmp_path: Path) -> None:
    running = await start("demo", "--jobs", "40", "--out", str(tmp_path))
    while not (await running.line()).startswith("uploaded"):
        pass
    await asyncio.sleep(0.5)
    running.interrupt()
    code, out, err = await running.end()
    assert code == 130
    assert err == f"interrupted: 0 videos are in {tmp_path}\n"
    assert "Traceback" not in out
    assert names_in(tmp_path) == ["portrait.png", "voice.wav"]


# --- in here, where tasks can be made short ---------------------------------------------------------


def quick(
    folder: Path, *, jobs: int = 4, faults: Faults | None = None, callbacks: bool = True
) -> DemoOptions:
    return DemoOptions(
        jobs=jobs,
        image=None,
        audio=None,
        out=folder,
        callbacks=callbacks,
        max_in_flight=3,
        seed=0,
        faults=faults or Faults(),
        durations=Fixed(0.02),
    )


def console(*, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, markup=False)


def shown_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_failed_tasks_are_shown_and_the_demo_exits_with_1(tmp_path: Path) -> None:
    screen = console()
    assert await run_demo(quick(tmp_path, faults=Faults(fail_rate=1.0)), screen) == 1
    shown = shown_on(screen)
    assert "0 of 4 videos" in shown
    assert "1 of 4: job " in shown
    assert len(re.findall(r"^ +\d  failed +\d", shown, re.MULTILINE)) == 4
    assert "failed: Internal Error" in shown


async def test_a_create_that_is_refused_is_shown(tmp_path: Path) -> None:
    refusal = (200, b'{"code": 422, "msg": "not [today]", "data": null}')
    screen = console()
    faults = Faults(create_answers_next=[refusal])
    assert await run_demo(quick(tmp_path, jobs=2, faults=faults), screen) == 1
    assert re.search(r"^ +\d  refused .*code 422: not \[today\] *$", shown_on(screen), re.MULTILINE)


async def test_a_voice_that_is_text_ends_the_demo_before_any_create(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    screen = console()
    with pytest.raises(InvalidRequest, match=r"text\.wav"):
        await run_demo(attrs.evolve(quick(tmp_path), audio=tmp_path / "text.wav"), screen)
    assert "job" not in shown_on(screen)


async def test_a_terminal_shows_bars(tmp_path: Path) -> None:
    screen = console(is_terminal=True)
    assert await run_demo(quick(tmp_path), screen) == 0
    for name in ("created", "settled", "saved", "4/4", "4 by callback"):
        assert name in shown_on(screen)
    assert len(films_in(tmp_path)) == 4


def test_the_report_counts(tmp_path: Path) -> None:
    jobs = [
        Job(
            number=1,
            state="success",
            created_at=1.0,
            settled_at=3.5,
            source="poll",
            credits=1e6,
            file=tmp_path,
        ),
        Job(number=2, state="created", created_at=1.0, error="task x was not seen to end in time"),
    ]
    report = Report(jobs=jobs, elapsed_s=12.34, refusals=0, folder=tmp_path)
    assert not report.is_complete
    assert report.summary() == (
        "1 of 2 videos in 12.3 s: 0 told by callback, 1 by poll; "
        f"1000000 credits; 0 answers 429; files in {tmp_path}"
    )
    screen = console()
    show_report(screen, report)
    assert "2.5 s  poll" in shown_on(screen)


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    jobs = [Job(number=1, state="success", file=Path("a.mp4"), source="callback")]
    with make_progress(dumb, jobs) as progress:
        progress.show(jobs[0])
    assert shown_on(dumb) == "  1 of 1: job 1 done, told by callback\n"


def test_the_portrait_and_the_voice_of_the_package_are_real_media() -> None:
    with av.open(io.BytesIO(read_portrait())) as source:
        face = next(source.decode(video=0))
        assert (face.width, face.height) == (320, 320)
    with wave.open(io.BytesIO(read_voice())) as sound:
        assert sound.getnframes() / sound.getframerate() == 2.0
        samples = memoryview(sound.readframes(sound.getnframes())).cast("h")
    assert 10_000 < max(samples) < 32_767
