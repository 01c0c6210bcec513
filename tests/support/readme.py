"""Reads commands and snippets out of the README: ``python tests/support/readme.py test`` prints one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [body for name, body in _FENCE.findall(text) if name == language]


def command(name: str) -> str:
    """Return the first command (``demo``) or the second (``test``) of the README."""
    return fences("sh")[{"demo": 0, "test": 1}[name]].strip()


if __name__ == "__main__":
    print(command(sys.argv[1]))
