"""Runs the command line: ``python -m kie_async``."""

from .cli import main

if __name__ == "__main__":
    main()
