"""Ends what runs in a folder, and removes it, once whoever started this is gone or closes the pipe to it.

A process of its own: it does its work also when the tests were killed.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE_S = 20.0


def running_in(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in *folder*: they are a server's, whatever its state."""
    found = psutil.process_iter(["cwd"])
    return [each for each in found if each.info["cwd"] and Path(each.info["cwd"]).is_relative_to(folder)]


def end_all(folder: Path) -> None:
    """End them in order, so that no shared memory is left behind, and those that do not end so otherwise."""
    ordered: set[int] = set()
    deadline = time.monotonic() + PATIENCE_S
    while processes := running_in(folder):
        for process in processes:
            is_late = time.monotonic() > deadline
            with suppress(psutil.NoSuchProcess):
                if is_late or process.pid not in ordered:
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGQUIT)
                process.send_signal(signal.SIGCONT)
            ordered.add(process.pid)
        time.sleep(0.02)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    sys.stdin.read()
    end_all(place)
    shutil.rmtree(place, ignore_errors=True)
