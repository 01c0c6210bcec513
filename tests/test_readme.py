"""Every snippet of the README runs as it stands, against the sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import wave
import zlib
from pathlib import Path

import pytest
from readme import ROOT, command, fences

from kie_async import Sandbox
from kie_async.sandbox import Fixed

SNIPPETS = fences("python")


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_snippet_runs(number: int, tmp_path: Path) -> None:
    _write_face(tmp_path / "face.png")
    _write_voice(tmp_path / "voice.wav")
    port = _free_port()
    snippet = SNIPPETS[number].replace("https://bot.example.org", f"http://127.0.0.1:{port}")
    script = tmp_path / "snippet.py"
    script.write_text(snippet.replace("8080", str(port)))
    key = "the key from kie.ai/settings"
    async with Sandbox(durations=Fixed(0.2), hmac_key=key) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", str(script)),
            cwd=tmp_path,
            env={**os.environ, "KIE_API_KEY": "sandbox-key", "KIE_BASE_URL": sandbox.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    assert out


def test_the_first_two_commands_are_one_line_each_and_install_what_they_need() -> None:
    for name in ("demo", "test"):
        line = command(name)
        assert "\n" not in line
        assert "pip install" in line
    assert command("demo").endswith("kie-async demo")


def test_the_picture_of_the_modules_names_every_module() -> None:
    picture = fences("text")[-1]
    modules = {path.stem for path in (ROOT / "kie_async").glob("*.py")} - {"__main__"}
    assert not {name for name in modules if name not in picture.replace("/", " ").split()}
