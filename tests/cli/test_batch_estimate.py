"""What a batch costs and how long it takes is said before anything is sent; a terminal is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from support.command_line import KEY, Command

from kie_async.sandbox import Sandbox

AVATAR = "kling/v1-avatar-standard"
FACE = "https://example.org/face.png"

pytestmark = pytest.mark.timeout(120)


def write_voice(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as voice:
        voice.setparams((1, 2, 8000, 0, "NONE", ""))
        voice.writeframes(bytes(int(16000 * seconds)))


def write_avatars(folder: Path, count: int) -> None:
    write_voice(folder / "voice.wav", 11.5)
    rows = [f"r{number},{AVATAR},{FACE},voice.wav,smile {number}\n" for number in range(count)]
    (folder / "jobs.csv").write_text("".join(["ref,model,image_url,audio_url,prompt\n", *rows]))


async def test_a_dry_run_says_what_it_would_cost_and_sends_nothing(
    run_command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_avatars(tmp_path, 50)
    status, out, err = await run_command("batch", "jobs.csv", "--dry-run", "--max-in-flight", "10")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "50 jobs to send",
        "audio 10 min in local files",
        "cost 4800 credits (24.00 USD)",  # 12 seconds that have begun, at 8 credits
    ]
    assert lines[3].startswith("balance ")
    # Five rounds of 300 s by ten at once, which is more than the limit of creates takes.
    assert lines[4] == "time about 25 min, 10 at once"
    assert lines[-1] == "dry run: nothing was sent"
    assert not service.tasks
    assert sorted(os.listdir(tmp_path)) == ["jobs.csv", "voice.wav"]


async def test_a_dry_run_leaves_out_what_was_sent_and_has_learned_its_price(
    run_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "jobs.csv").write_text(
        "ref,model,prompt\n" + "".join(f"r{n},sandbox/echo,{n}\n" for n in range(6))
    )
    status, out, _ = await run_command("batch", "jobs.csv", "--dry-run")
    assert "cost 0 credits (0.00 USD), without 6 jobs of unknown price" in out.splitlines()

    status, _, _ = await run_command("batch", "jobs.csv", "--limit", "4")
    assert status == 0
    status, out, _ = await run_command("batch", "jobs.csv", "--dry-run")
    lines = out.splitlines()
    assert lines[0] == "2 jobs to send; 4 jobs of former runs"
    assert lines[1].startswith("cost ")
    assert "unknown" not in lines[1]
    assert any(line.startswith("time about") for line in lines)


async def test_where_there_is_no_terminal_the_estimate_is_printed_and_it_goes_on(
    run_command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_avatars(tmp_path, 2)
    status, _, err = await run_command("batch", "jobs.csv", "--ask-above", "100")
    assert status == 0
    assert "cost 192 credits (0.96 USD)" in err.splitlines()
    assert len(service.tasks) == 2


@pytest.mark.parametrize(
    "options", [["--yes", "--ask-above", "0"], ["--ask-above", "192"], ["-q", "--ask-above", "0"]]
)
async def test_it_is_not_printed_where_it_is_not_asked_for(
    run_command: Command, tmp_path: Path, options: list[str]
) -> None:
    write_avatars(tmp_path, 2)
    status, _, err = await run_command("batch", "jobs.csv", *options)
    assert status == 0
    assert "cost" not in err


@pytest.mark.parametrize(("answer", "status", "count"), [("y\n", 0, 2), ("n\n", 2, 0), ("\n", 2, 0)])
async def test_a_terminal_is_asked_once(
    service: Sandbox, tmp_path: Path, answer: str, status: int, count: int
) -> None:
    write_avatars(tmp_path, 2)

    def run() -> tuple[int, str]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "kie_async", "batch", "jobs.csv", "--ask-above", "100"],
            cwd=tmp_path,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={**os.environ, "KIE_API_KEY": KEY, "KIE_BASE_URL": service.url, "TERM": "xterm"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while block := os.read(ours, 4096):
                shown += block
                if shown.count(b"[y/N] ") == 1 and answer:
                    os.write(ours, answer.encode())
                    shown += b"(answered)"
                    shown = shown.replace(b"[y/N] ", b"[y/N]")
        os.close(ours)
        return process.wait(60), shown.decode()

    left, shown = await asyncio.to_thread(run)
    assert "cost 192 credits (0.96 USD)" in shown
    assert shown.count("Send them?") == 1
    assert (left, len(service.tasks)) == (status, count), shown
