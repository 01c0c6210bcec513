"""Every snippet of the README runs as it stands, against the sandbox.

Those that serve are visited by a user and then interrupted; the others end by themselves.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
import wave
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from support.crowd import Crowd, until
from support.delivering import aiohttp_on
from support.job_queue import make_tables
from support.ports import free_port
from support.readme import ROOT, command, fences
from support.telegram import telegram, update

from kie_async import Sandbox
from kie_async.sandbox import Fixed, ServeOptions

SNIPPETS = fences("python")

DATABASE = "postgresql://kie@db/app"
"""What snippets call the database; it is one of the test's own here."""


def _write_face(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" + bytes(6) + b"\x00" + bytes(6))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _write_voice(path: Path) -> None:
    with wave.open(str(path), "wb") as voice:
        voice.setnchannels(1)
        voice.setsampwidth(2)
        voice.setframerate(8000)
        voice.writeframes(bytes(16000))


async def _open(port: int) -> aiohttp.ClientSession:
    """Return a way to the snippet's server, once it listens."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return aiohttp.ClientSession(f"http://127.0.0.1:{port}")


async def _write_to_the_bot(port: int, crowd: Crowd) -> None:
    async with await _open(port) as http, http.post("/telegram", json=update(7)) as taken:
        assert taken.status == 200
    await until(lambda: len(crowd.answers) > 1)
    (_, place), (user, url) = crowd.answers
    assert (place, user, url[:7]) == ("you are next, about 5 min left", 7, "http://")
    assert crowd.edits[-1:] == [(7, "here it is:")]


async def _order_of_two_workers(port: int, _: Crowd) -> None:
    async with await _open(port) as http:

        async def order(number: int) -> tuple[str, ...]:
            # Each on a connection of its own: they come to both workers.
            async with http.post(f"/orders/{number}", params={"text": "hello"}) as answer:
                assert answer.ok, await answer.text()
                return tuple(await answer.json())

        answers = await asyncio.gather(*(order(number % 4) for number in range(16)))
    assert len(set(answers)) == 4


async def _ask_the_app(port: int, _: Crowd) -> None:
    async with await _open(port) as http, http.post("/talk", params={"text": "hello"}) as answer:
        assert answer.ok, await answer.text()
        assert len(await answer.json()) == 1


async def _follow_the_page(port: int, _: Crowd) -> None:
    async with await _open(port) as http:
        async with http.get("/") as page:
            assert "<progress" in await page.text()
        async with http.post("/videos/one", params={"text": "hello"}) as taken:
            assert taken.ok, await taken.text()
        shown: list[dict[str, object]] = []
        while not shown or "url" not in shown[-1]:
            async with http.get("/videos/one") as answer:
                shown.append(await answer.json())
            await asyncio.sleep(0.01)
    progress = [float(str(each["progress"])) for each in shown]
    assert progress == sorted(progress)
    assert "s left" in str(shown[0]["says"])


VISITS: dict[str, Callable[[int, Crowd], Awaitable[None]]] = {
    "<progress": _follow_the_page,
    "web.run_app(": _write_to_the_bot,
    "workers=2": _order_of_two_workers,
    "uvicorn.run(": _ask_the_app,
    "uvicorn.Server(": _ask_the_app,
    "app.run(port": _ask_the_app,
}
STARTED_BY = {
    "workers=2": ("-W", "ignore::ResourceWarning", "app.py"),  # uvicorn's supervisor leaves its socket open
    "procrastinate": ("-c", "import app"),  # it wants its application in a module that is imported
}
FRAMEWORKS = ("litestar", "django", "flask", "procrastinate")
"""Those of the extra ``test`` whose snippets nothing else in the suite needs."""
BOT_API = """from aiogram.client import telegram
object.__setattr__(telegram.PRODUCTION, "base", "http://127.0.0.1:{port}/bot{{token}}/{{method}}")
"""
"""What makes an aiogram bot talk to the stand-in."""


@pytest.mark.parametrize("number", [n for n, text in enumerate(SNIPPETS) if DATABASE not in text])
async def test_snippet_runs(number: int, tmp_path: Path) -> None:
    await _run(number, tmp_path)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [n for n, text in enumerate(SNIPPETS) if DATABASE in text])
async def test_snippet_runs_on_postgres(number: int, tmp_path: Path, postgres_dsn: str) -> None:
    if "procrastinate" in SNIPPETS[number]:
        await make_tables(postgres_dsn)
    await _run(number, tmp_path, postgres_dsn)


async def _run(number: int, tmp_path: Path, dsn: str = "") -> None:
    _write_face(tmp_path / "face.png")
    _write_voice(tmp_path / "voice.wav")
    for framework in FRAMEWORKS:
        if f"from {framework}" in SNIPPETS[number]:
            pytest.importorskip(framework)
    port, crowd = free_port(), Crowd()
    snippet = SNIPPETS[number].replace("https://bot.example.org", f"http://127.0.0.1:{port}")
    snippet = snippet.replace(DATABASE, dsn)
    visit = next((visit for word, visit in VISITS.items() if word in snippet), None)
    way = next((word for word in STARTED_BY if word in snippet), "")
    script = tmp_path / "app.py"
    key = "the key from kie.ai/settings"
    env = {"KIE_API_KEY": "sandbox-key", "BOT_TOKEN": "42:TOKEN"}
    async with (
        aiohttp_on(telegram(crowd)) as api_port,
        Sandbox(durations=Fixed(0.2), hmac_key=key) as sandbox,
    ):
        prelude = BOT_API.format(port=api_port) if "aiogram" in snippet else ""
        script.write_text(prelude + snippet.replace("8080", str(port)))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", *STARTED_BY.get(way, ("app.py",))),
            cwd=tmp_path,
            env={**os.environ, **env, "KIE_BASE_URL": sandbox.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ending = asyncio.create_task(process.communicate())
        if visit is not None:
            visiting = asyncio.create_task(visit(port, crowd))
            await asyncio.wait([visiting, ending], return_when=asyncio.FIRST_COMPLETED)
            if not visiting.done():
                visiting.cancel()
            elif process.returncode is None:
                process.send_signal(signal.SIGINT)
        out, err = await ending
        if visit is not None:
            assert {delivery.status for delivery in sandbox.deliveries} == {200}
    assert (process.returncode, err.decode()) == (0, "")
    assert visiting.result() is None if visit else out


async def test_the_dry_run_says_what_the_page_shows(tmp_path: Path) -> None:
    (fence,) = [fence for fence in fences("text") if "--dry-run\n" in fence]
    line, *shown = fence.splitlines()
    _write_face(tmp_path / "face.png")
    _write_voice(tmp_path / "voice.wav")
    rows = [f"r{number},kling/v1-avatar-standard,face.png,voice.wav,hello" for number in range(500)]
    (tmp_path / "jobs.csv").write_text("\n".join(["ref,model,image_url,audio_url,prompt", *rows]))
    async with Sandbox() as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *line.replace("kie-async", "kie_async", 1).split()),
            cwd=tmp_path,
            env={**os.environ, "KIE_API_KEY": "sandbox-key", "KIE_BASE_URL": sandbox.url},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert not sandbox.tasks
    assert process.returncode == 0
    said = out.decode().splitlines()
    assert [line.partition(" ")[0] for line in said] == [line.partition(" ")[0] for line in shown]
    assert [line for line in said if "balance" not in line] == [
        line for line in shown if "balance" not in line
    ]


def test_the_snippets_are_typed_as_a_user_checks_them(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    for number, snippet in enumerate(SNIPPETS):
        (tmp_path / f"snippet_{number}.py").write_text(snippet)
    # Frameworks may be missing, or have no types.
    out, err, status = api.run(
        ["--config-file=", "--check-untyped-defs", "--ignore-missing-imports", str(tmp_path)]
    )
    assert (out.splitlines()[-1:], err, status) == (
        [f"Success: no issues found in {len(SNIPPETS)} source files"],
        "",
        0,
    ), out


def test_two_exports_lead_to_the_sandbox_as_it_is_served_by_default() -> None:
    (exports,) = [fence for fence in fences("text") if "KIE_BASE_URL" in fence]
    served = ServeOptions()
    assert exports.splitlines() == [
        f"export KIE_BASE_URL=http://{served.host}:{served.port}",
        f"export KIE_API_KEY={served.api_key}",
    ]


def test_the_first_two_commands_are_one_line_each_and_install_what_they_need() -> None:
    for name in ("demo", "test"):
        line = command(name)
        assert "\n" not in line
        assert "pip install" in line
    assert command("demo").endswith("kie-async demo")


def test_the_picture_of_the_modules_names_every_module() -> None:
    picture = fences("text")[-1]
    top = ROOT / "kie_async"
    modules = {path.stem for path in top.glob("*.py")} - {"__main__"}
    wings = {path.parent.name for path in top.glob("*/__init__.py")}
    assert not {name for name in modules | wings if name not in picture.replace("/", " ").split()}
