"""Renames a file to a name that must be free: no other file is ever replaced, with hard links or without."""

from __future__ import annotations

import os
from pathlib import Path


def rename_exclusively(source: Path, target: Path) -> None:
    """Rename *source* to *target*, at once and as a whole.

    Raises:
        FileExistsError: The name is taken.
        OSError: It cannot be done here.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError):
        # No hard links here: FAT, SMB, Android, some network folders. An empty file takes the name, so that
        # of two processes only one goes on. A crash may leave it: as a journal it is refused at open.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.replace(source, target)
        except BaseException:
            os.unlink(target)
            raise
    else:
        os.unlink(source)
