"""Renders result videos in threads, once per pair of portrait and voice."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor

import attrs

from .files import FileStore
from .tasks import SandboxTask

_AT_ONCE = 2
_KEPT = 256
"""Finished films in memory; the oldest is forgotten first and would be rendered again."""


def require_renderer() -> None:
    """Check that PyAV is there.

    Raises:
        RuntimeError: It is not.
    """
    if importlib.util.find_spec("av") is None:
        raise RuntimeError("render=True needs PyAV: pip install 'kie_async[sandbox]'")


@attrs.define(eq=False)
class Films:
    """The films of one sandbox; owns the renders under way."""

    files: FileStore
    rendered: int = 0
    """Renders begun since the sandbox was made."""
    _renders: dict[bytes, asyncio.Task[bytes]] = attrs.field(factory=dict)
    _pool: ThreadPoolExecutor | None = None
    _stop: threading.Event = attrs.field(factory=threading.Event)

    async def of(self, task: SandboxTask) -> bytes:
        """Return the MP4 of *task*, rendered now unless its pair was rendered before."""
        portrait = self._content(task.input.get("image_url"))
        voice = self._content(task.input.get("audio_url"))
        pair = hashlib.sha256(portrait or b"").digest() + hashlib.sha256(voice or b"").digest()
        if pair not in self._renders:
            self._forget_oldest()
            self._renders[pair] = asyncio.get_running_loop().create_task(self._render(portrait, voice))
        # A client that hangs up must not take the film from the others.
        return await asyncio.shield(self._renders[pair])

    def _content(self, url: object) -> bytes | None:
        file = self.files.find(url) if isinstance(url, str) else None
        return None if file is None else file.content

    def _forget_oldest(self) -> None:
        done = [pair for pair, render in self._renders.items() if render.done()]
        for pair in done[: max(0, len(self._renders) - _KEPT + 1)]:
            del self._renders[pair]

    async def _render(self, portrait: bytes | None, voice: bytes | None) -> bytes:
        from .render import render

        self.rendered += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE, "kie-sandbox-render")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, render, portrait, voice, self._stop)

    async def aclose(self) -> None:
        """End the renders under way and their threads; finished films stay."""
        self._stop.set()
        pending = {pair: render for pair, render in self._renders.items() if not render.done()}
        for pair, render in pending.items():
            render.cancel()
            del self._renders[pair]
        await asyncio.gather(*pending.values(), return_exceptions=True)
        if self._pool is not None:
            await asyncio.to_thread(self._pool.shutdown)
        self._pool, self._stop = None, threading.Event()
