"""Steers a headless Chromium by its DevTools protocol: evaluates, presses keys, takes pictures."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--disable-extensions", "--remote-debugging-port=0"),
)
PATIENCE_S = 15.0
WIDE, NARROW = (1440, 1000), (390, 844)


def find_chromium() -> str | None:
    """Return the program, None if there is none here."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running_chromium(program: str) -> Iterator[str]:
    """Yield the address at which a browser of our own is steered."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield _address(Path(profile, "DevToolsActivePort"))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


def _address(file: Path) -> str:
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)
    raise TimeoutError("the browser does not answer")


class Tab:
    """One page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.problems: list[str] = []
        """What the page's console complained of: errors, and what its policy refused."""

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params, **self._session})
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self._socket.receive_json()).get("id") != number:
                self._note(message)
        assert "error" not in message, message["error"]
        result: dict[str, Any] = message["result"]
        return result

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["exception"]["description"])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    async def begin(self, size: tuple[int, int], scheme: str) -> None:
        """Open an empty page of that size."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        width, height = size
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        # A page that is not in front draws nothing and has no focus.
        await self.send("Page.bringToFront")
        await self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is drawn."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState == 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of the page, awaited if it is a promise."""
        answer = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression of the page holds."""
        # Without a screen a frame is drawn only where somebody asks for one, and observers wait for frames.
        after_a_frame = f"new Promise((end) => requestAnimationFrame(() => end(Boolean({expression}))))"
        async with asyncio.timeout(PATIENCE_S):
            while not await self.evaluate(after_a_frame):
                pass

    async def press(self, key: str, code: int) -> None:
        """Press a key: its name, and its number on Windows."""
        key_of = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        await self.send("Input.dispatchKeyEvent", type="keyDown", **key_of, text=text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **key_of)
        await self.until("true")

    async def picture(self) -> bytes:
        """Return what is seen as a PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])


def _url_of(page: Path) -> str:
    return page.absolute().as_uri()


@asynccontextmanager
async def opened_tab(
    address: str, page: Path, *, size: tuple[int, int] = WIDE, scheme: str = "light"
) -> AsyncIterator[Tab]:
    """Yield a page on the disk, opened."""
    async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
        tab = Tab(socket)
        await tab.begin(size, scheme)
        await tab.open(_url_of(page))
        try:
            yield tab
        finally:
            await tab.send("Page.close")
