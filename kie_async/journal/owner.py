"""Says which process has a journal open: its pid and host, in a small file beside the journal.

It is a courtesy to people and no lock: a crash leaves it, so what it names need not run any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from pathlib import Path

import attrs

_LINE = re.compile(r"([1-9][0-9]{0,9}) ([!-~]{1,64})\n")

_NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)


@attrs.frozen
class Owner:
    """A process that had the journal open, and perhaps still has."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, if it still runs"

    @classmethod
    def of_this_process(cls) -> Owner:
        """Return this process."""
        return cls(os.getpid(), re.sub(r"[^!-~]", "?", socket.gethostname())[:64] or "?")

    @property
    def is_gone(self) -> bool:
        """Tell whether it surely runs no more; of another host nobody knows."""
        # On Windows there is no signal 0: asking would end the process.
        if sys.platform == "win32" or self.host != Owner.of_this_process().host:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False


def owner_path(journal: Path) -> Path:
    """Return the file that names the owner of a journal."""
    return journal.with_name(f"{journal.name}.pid")


def write_owner(journal: Path) -> None:
    """Name this process, if it can be done."""
    owner = Owner.of_this_process()
    with contextlib.suppress(OSError):
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | _NO_FOLLOWING
        descriptor = os.open(owner_path(journal), flags, 0o644)
        try:
            os.write(descriptor, f"{owner.pid} {owner.host}\n".encode())
        finally:
            os.close(descriptor)


def remove_owner(journal: Path) -> None:
    """Name nobody any more."""
    with contextlib.suppress(OSError):
        owner_path(journal).unlink()


def read_owner(journal: Path) -> Owner | None:
    """Return who was named last, None if that is nobody or cannot be read."""
    try:
        with owner_path(journal).open("rb") as file:
            found = _LINE.fullmatch(file.read(100).decode("ascii"))
    except (OSError, ValueError):
        return None
    return Owner(int(found[1]), found[2]) if found else None
