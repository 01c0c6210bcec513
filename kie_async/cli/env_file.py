"""Reads variables from a .env file into the environment, when the command line is asked to."""

from __future__ import annotations

import os
import re
from pathlib import Path

import typer

_LINE = re.compile(
    r"""(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^"'#\s][^#]*)?)\s*(?:#.*)?"""
)
"""NAME=value, with or without quotes; a # begins a remark."""


def load_env_file(path: Path) -> None:
    """Set the variables of a file that are not set in the environment.

    Raises:
        BadParameter: It cannot be read, or a line is not NAME=value. Its text is not shown: it may be a key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8"
        raise typer.BadParameter(f"cannot read {path}: {reason}", param_hint="--env-file") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (found := _LINE.fullmatch(line.strip())) is None:
            raise typer.BadParameter(f"{path}, line {number} is not NAME=value", param_hint="--env-file")
        name, *values = found.groups()
        os.environ.setdefault(name, next((value for value in values if value is not None), "").strip())
