"""The report's page in a real browser: what is shown, loaded, announced, reached by keys, and how fast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.chromium import NARROW, WIDE, Tab, find_chromium, opened_tab, running_chromium

from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.cli.report import report_results

if (CHROMIUM := find_chromium()) is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

Open = Callable[..., AbstractAsyncContextManager[Tab]]
HOSTILE = (
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    '\u202egnp.exe\u2028\' onmouseover="window.harmed = 1"',
    "{{7*7}} ${window.harmed = 1} @@DATA@@",
)
TAB, ENTER = 9, 13


@pytest.fixture(scope="session")
def browser() -> Iterator[str]:
    with running_chromium(str(CHROMIUM)) as address:
        yield address


@pytest.fixture
def open_page(browser: str) -> Open:
    return partial(opened_tab, browser)


async def report(folder: Path, *lines: dict[str, Any]) -> Path:
    """Write a results file with these lines and return its page."""
    results = folder / "results.jsonl"
    results.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    await report_results(results, title="night.csv", began=1_764_370_000.0)
    return folder / "report.html"


def done(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "ref": f"r{number}",
        "line": number + 2,
        "model": "kling/ai-avatar-standard",
        "outcome": "done",
        "task_id": f"task{number:026d}",
        "credits": 16.0,
        "duration_s": 120.0 + number % 60,
        "told_by": "callback" if number % 9 else "poll",
        "ended_at": f"2025-11-28T23:{number // 60 % 60:02d}:{number % 60:02d}Z",
        "prompt": "a warm smile",
        "files": [f"r{number}.mp4"],
        **fields,
    }


def failed(number: int, **fields: Any) -> dict[str, Any]:
    words = {"outcome": "failed", "files": [], "error": f"task task{number:026d} failed: no face"}
    return done(number) | words | fields


def write_films(folder: Path, count: int) -> None:
    """Write a portrait, and films of nothing but sound: browsers go by the content."""
    (folder / "face.png").write_bytes(read_portrait())
    voice = read_voice()
    for number in range(count):
        (folder / f"r{number}.mp4").write_bytes(voice)


async def text_of(tab: Tab, selector: str) -> str:
    text = await tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    assert isinstance(text, str)
    return text


async def test_hostile_refs_prompts_and_reasons_stay_text(open_page: Open, tmp_path: Path) -> None:
    lines = [
        failed(number, ref=text, prompt=text, model=text, error=text, image=text, task_id=text)
        for number, text in enumerate(HOSTILE)
    ]
    page = await report(tmp_path, *lines)
    async with open_page(page) as tab:
        await tab.evaluate("document.querySelectorAll('.reason').forEach((box) => { box.open = true; })")
        assert await tab.evaluate("[...document.querySelectorAll('.card h3')].map((e) => e.textContent)") == [
            *HOSTILE
        ]
        assert await tab.evaluate("window.harmed === undefined && document.scripts.length") == 2
        assert tab.problems == []


async def test_the_page_needs_no_network_and_its_policy_refuses_any(open_page: Open, tmp_path: Path) -> None:
    write_films(tmp_path, 1)
    page = await report(tmp_path, done(0, image="face.png", urls=["https://example.org/a.mp4"]))
    async with open_page(page) as tab:
        await tab.until("document.querySelector('video')")
        loaded = await tab.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
        assert {name.partition(":")[0] for name in loaded} <= {"file", "data"}
        assert (
            await tab.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')")
            == "refused"
        )
        assert any("Content Security Policy" in problem for problem in tab.problems)


async def test_videos_are_loaded_when_they_are_seen_and_let_go_when_they_are_far(
    open_page: Open, tmp_path: Path
) -> None:
    write_films(tmp_path, 200)
    page = await report(tmp_path, *(done(number, image="face.png") for number in range(200)))
    async with open_page(page, size=NARROW) as tab:
        await tab.evaluate("document.querySelector('#jobs').scrollIntoView({ behavior: 'instant' })")
        await tab.until("document.querySelector('video')")
        assert 1 <= await tab.evaluate("document.querySelectorAll('video').length") < 20
        await tab.evaluate(
            "document.querySelector('.card:last-child').scrollIntoView({ behavior: 'instant' })"
        )
        await tab.until("!document.querySelector('.media').childElementCount")
        assert await tab.evaluate("document.querySelectorAll('.card').length") > 48


async def test_a_video_has_the_portrait_as_poster_and_plays_when_asked_to(
    open_page: Open, tmp_path: Path
) -> None:
    write_films(tmp_path, 1)
    page = await report(tmp_path, done(0, image="face.png"))
    async with open_page(page) as tab:
        await tab.until("document.querySelector('video')")
        assert await tab.evaluate("document.querySelector('video').getAttribute('poster')") == "face.png"
        await tab.evaluate("document.querySelector('.play').focus()")
        await tab.press("Enter", ENTER)
        await tab.until("document.querySelector('video').currentTime > 0")
        assert await tab.evaluate("document.activeElement.tagName") == "VIDEO"
        assert tab.problems == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_missing_video_says_so(when: str, open_page: Open, tmp_path: Path) -> None:
    write_films(tmp_path, 1)
    if when == "before":
        (tmp_path / "r0.mp4").unlink()
    page = await report(tmp_path, done(0))
    (tmp_path / "r0.mp4").unlink(missing_ok=True)
    async with open_page(page) as tab:
        await tab.until("document.querySelector('.missing')")
        assert "The video is missing" in await text_of(tab, ".media")
        assert "r0.mp4" in await text_of(tab, ".media")


async def test_search_and_states_choose_the_jobs_and_the_count_is_announced(
    open_page: Open, tmp_path: Path
) -> None:
    lines = [done(0, prompt="Élan vital"), done(1), failed(2), failed(3)]
    page = await report(tmp_path, *lines)
    async with open_page(page) as tab:
        assert await text_of(tab, "#count[role=status][aria-live=polite]") == "4 jobs"
        await tab.evaluate("document.querySelector('#states [data-state=failed]').click()")
        assert await text_of(tab, "#count") == "2 of 4 jobs"
        await tab.evaluate("document.querySelector('#reset').click()")
        await tab.send("Input.insertText", text="elan")
        await tab.until("document.querySelector('#count').innerText === '1 of 4 jobs'")
        assert await text_of(tab, ".card h3") == "r0"


async def test_failures_stand_by_reason_with_their_refs_and_lead_to_their_jobs(
    open_page: Open, tmp_path: Path
) -> None:
    page = await report(tmp_path, done(0), failed(1), failed(2), failed(3, error="other words"))
    async with open_page(page) as tab:
        await tab.evaluate("document.querySelector('.reason summary').focus()")
        await tab.press("Enter", ENTER)
        await tab.until("document.querySelector('.refs')")
        assert await text_of(tab, ".refs") == "r1\nr2"
        assert "no face" in await text_of(tab, ".reason summary")
        await tab.evaluate("document.querySelector('.inside button').click()")
        await tab.until("document.querySelector('#copied').innerText === 'Copied 2 refs'")
        await tab.evaluate("document.querySelector('.inside button:last-child').click()")
        assert await text_of(tab, "#count") == "2 of 4 jobs, with the reason: no face"


async def test_keys_reach_everything_and_what_has_the_focus_is_seen(open_page: Open, tmp_path: Path) -> None:
    write_films(tmp_path, 1)
    page = await report(tmp_path, done(0), failed(1, prompt="long " * 100))
    focus = "document.activeElement"
    reached: list[str] = []
    async with open_page(page) as tab:
        await tab.until("document.querySelector('.play')")
        while True:
            await tab.press("Tab", TAB)
            if await tab.evaluate(f"{focus} === document.body"):
                break
            reached.append(await tab.evaluate(f"{focus}.id || {focus}.className || {focus}.tagName"))
            assert await tab.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid", reached
        await tab.press("/", 191)
        assert await tab.evaluate(f"{focus}.id") == "query"
    tools = ["query", "order", "layout", "BUTTON", "BUTTON"]
    assert reached == ["skip", "SUMMARY", *tools, "play", "A", "link"]


async def test_a_screen_reader_finds_landmarks_and_a_name_for_every_control(
    open_page: Open, tmp_path: Path
) -> None:
    write_films(tmp_path, 1)
    page = await report(tmp_path, done(0), failed(1))
    async with open_page(page) as tab:
        await tab.send("Accessibility.enable")
        nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    assert {"banner", "main", "contentinfo", "search", "status"} <= {role for role, _ in found}
    controls = {"button", "searchbox", "combobox", "link", "DisclosureTriangle", "image", "Video"}
    assert [role for role, name in found if role in controls and not name.strip()] == []
    assert ("heading", "r0") in found


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light")])
async def test_nothing_is_wider_than_the_window_and_text_stands_out(
    size: tuple[int, int], scheme: str, open_page: Open, tmp_path: Path
) -> None:
    long = "anna" * 60
    page = await report(
        tmp_path, done(0, ref=long, prompt=long), failed(1, error=long), failed(2, model=long)
    )
    async with open_page(page, size=size, scheme=scheme) as tab:
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = await tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        ink = await tab.evaluate("getComputedStyle(document.body).color.match(/\\d+/)[0]")
    assert (int(ground) > int(ink)) == (scheme == "light")


async def test_what_ended_over_time_is_a_drawing_with_words(open_page: Open, tmp_path: Path) -> None:
    page = await report(tmp_path, done(0), done(70), failed(130, credits=0.0))
    async with open_page(page) as tab:
        label = await tab.evaluate(
            "document.querySelector('#chart svg[role=img]').getAttribute('aria-label')"
        )
    assert label.endswith("2 done, 1 not done, 32 credits in all.")


async def test_5000_rows_are_usable_within_two_seconds(open_page: Open, tmp_path: Path) -> None:
    page = await report(tmp_path, *(failed(n) if n % 17 == 0 else done(n) for n in range(5000)))
    async with open_page(page) as tab:
        assert await text_of(tab, "#count") == "5,000 jobs"
        assert int(await tab.evaluate("document.documentElement.dataset.ready")) < 2000
        assert await tab.evaluate("document.querySelectorAll('*').length") < 10_000
        await tab.evaluate("const from = performance.now(); document.querySelector('#query').focus()")
        await tab.send("Input.insertText", text="r4321")
        await tab.until("document.querySelector('#count').innerText === '1 of 5,000 jobs'")
        assert await tab.evaluate("performance.now() - from") < 1000
