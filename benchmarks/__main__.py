"""``python -m benchmarks NAME [--check] [--json PATH]``: one module each."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

HELPERS = {"clients", "deliveries", "dialects", "emulated", "emulator", "floor", "load", "measuring"}


def names() -> list[str]:
    """Return the benchmarks there are."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted(name for name in found - HELPERS if name[0] != "_")


def main(argv: list[str]) -> int:
    """Run one benchmark with the rest of the arguments."""
    if not argv or argv[0] not in names():
        print(f"usage: python -m benchmarks NAME [--check] [--json PATH], NAME one of: {', '.join(names())}")
        return 2
    status: int = importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
