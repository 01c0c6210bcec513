"""Runs the sandbox as a process: ``python -m kie_async.sandbox``."""

from .serving import main

if __name__ == "__main__":
    raise SystemExit(main())
