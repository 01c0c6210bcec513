"""``python -m tests.campaign NAME [arguments]``: the long runs, one module each."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # campaigns stand on what the tests stand on


def names() -> list[str]:
    """Return the campaigns there are."""
    return sorted(found.name for found in pkgutil.iter_modules([str(HERE)]) if found.name[0] != "_")


def main(argv: list[str]) -> int:
    """Run one campaign with the rest of the arguments."""
    if not argv or argv[0] not in names():
        print(f"usage: python -m tests.campaign NAME [arguments], NAME one of: {', '.join(names())}")
        return 2
    return importlib.import_module(f"tests.campaign.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
