"""The sandbox as a process of its own: options, command line, graceful stop."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import cast

import attrs

from .durations import Durations, Fixed, parse_durations
from .faults import Faults
from .server import Sandbox


@attrs.frozen(kw_only=True)
class ServeOptions:
    """What can be chosen when the sandbox runs by itself."""

    host: str = "127.0.0.1"
    port: int = 8800
    api_key: str | None = attrs.field(default="sandbox-key", repr=False)
    """An empty text or None accepts any key."""
    durations: Durations = attrs.field(factory=lambda: Fixed(2.0))
    hmac_key: str | None = attrs.field(default=None, repr=False)
    limits: bool = True
    render: bool = False
    seed: int = 0
    credits: float = 100_000.0
    drop_callbacks: float = 0.0
    lose_answer: float = 0.0
    fail_rate: float = 0.0

    def sandbox(self) -> Sandbox:
        """Return the sandbox these options describe, not yet started.

        Raises:
            ValueError: A share is not between 0 and 1.
        """
        faults = Faults(
            drop_callbacks=self.drop_callbacks, lose_answer=self.lose_answer, fail_rate=self.fail_rate
        )
        return Sandbox(
            host=self.host,
            port=self.port,
            api_key=self.api_key or None,
            durations=self.durations,
            seed=self.seed,
            credits=self.credits,
            create_limit=(20, 10.0) if self.limits else None,
            query_limit=(10, 1.0) if self.limits else None,
            hmac_key=self.hmac_key,
            render=self.render,
            faults=faults,
        )


async def serve(options: ServeOptions, *, announce: Callable[[str], None] | None = None) -> None:
    """Run a sandbox until SIGINT or SIGTERM; *announce* is given its URL once it listens.

    Raises:
        RuntimeError: Rendering is wanted and PyAV is not installed.
        OSError: The port is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with options.sandbox() as sandbox:
            (announce or _print_line)(sandbox.url)
            await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parse_options(arguments: Sequence[str] | None = None) -> ServeOptions:
    """Read the command line; a wrong one prints its usage and exits with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m kie_async.sandbox", description="A local stand-in for the Kie.ai service."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8800, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--api-key", default="sandbox-key", help="an empty text accepts any key")
    parser.add_argument(
        "--durations",
        type=_durations,
        default=Fixed(2.0),
        help="fixed:0.5, uniform:60:240, lognormal:120:0.42 or never (default: fixed:2)",
    )
    parser.add_argument("--hmac-key", help="sign callbacks with this key")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="no rate limits")
    parser.add_argument("--render", action="store_true", help="results are playable films (needs PyAV)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--credits", type=float, default=100_000.0)
    for fault in ("--drop-callbacks", "--lose-answer", "--fail-rate"):
        parser.add_argument(fault, type=_share, default=0.0, metavar="SHARE", help="0 to 1")
    return ServeOptions(**vars(parser.parse_args(arguments)))


def _durations(text: str) -> Durations:
    try:
        return parse_durations(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes loops of uvloop if that is installed (extra ``speed``), else None: asyncio's own."""
    try:
        return cast(Callable[[], asyncio.AbstractEventLoop], importlib.import_module("uvloop").new_event_loop)
    except ImportError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_options(arguments)
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(serve(options))
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
