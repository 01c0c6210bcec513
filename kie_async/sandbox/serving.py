"""Runs the sandbox as a process of its own: its options, its command line, a graceful stop."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs

from .durations import Durations, parse_durations
from .faults import Faults
from .inspection import TOKEN_HEADER
from .server import Sandbox

TOKEN_VARIABLE = "KIE_SANDBOX_TOKEN"  # noqa: S105  (its name)

_DEFAULT_DURATIONS = "fixed:2"
_QUERIES = (10, 1.0)


def _durations(text: str) -> Durations:
    try:
        return parse_durations(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(kind: Callable[[str], float], *, low: float, high: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return number

    return parse


def _option(default: Any, help: str, *, is_secret: bool = False, **argument: Any) -> Any:
    """Return a field of `ServeOptions`; the rest are arguments of argparse's ``add_argument``."""
    metadata = {"argument": {"default": default, "help": help, **argument}}
    return attrs.field(default=default, repr=not is_secret, metadata=metadata)


def _share(help: str) -> Any:
    return _option(0.0, f"{help}, 0 to 1", type=_number(float, low=0, high=1), metavar="SHARE")


@attrs.frozen(kw_only=True)
class ServeOptions:
    """What can be chosen when the sandbox runs by itself; its command lines are made from these fields."""

    host: str = _option("127.0.0.1", "address to listen on (default: %(default)s)")
    port: int = _option(
        8800, "0 picks a free one (default: %(default)s)", type=_number(int, low=0, high=65535), metavar="N"
    )
    api_key: str | None = _option(
        "sandbox-key",
        "the key to accept; an empty text accepts any (default: %(default)s)",
        is_secret=True,
        metavar="KEY",
    )
    """An empty text or None accepts any key."""
    durations: Durations = _option(  # noqa: RUF009  (the default is frozen)
        parse_durations(_DEFAULT_DURATIONS),
        f"fixed:0.5, uniform:60:240, lognormal:120:0.42 or never (default: {_DEFAULT_DURATIONS})",
        type=_durations,
    )
    hmac_key: str | None = _option(None, "sign callbacks with this key", is_secret=True, metavar="KEY")
    # Both ways can be said, so that a script may be explicit.
    limits: bool = _option(
        True, "keep the service's rate limits, or none", action=argparse.BooleanOptionalAction
    )
    query_limit: str = _option(
        "key",
        "what 10 queries a second are counted by, as the service's texts differ: key, task, both or none "
        "(default: %(default)s)",
        choices=("key", "task", "both", "none"),
    )
    render: bool = _option(False, "results are playable videos (needs PyAV)", action="store_true")
    seed: int = _option(
        0, "another seed, other durations and faults (default: %(default)s)", type=int, metavar="N"
    )
    credits: float = _option(
        100_000.0,
        "the balance to begin with (default: %(default)s)",
        type=_number(float, low=0),
        metavar="C",
    )
    drop_callbacks: float = _share("callbacks that never arrive")
    lose_answer: float = _share("creates whose answer is lost")
    fail_rate: float = _share("tasks that fail")
    control_token: str | None = _option(
        None,
        f"what /sandbox/ endpoints want in the header {TOKEN_HEADER}; {TOKEN_VARIABLE} if not given, made up "
        "and printed if there is neither and others can reach --host",
        is_secret=True,
        metavar="TOKEN",
    )

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
            query_limit=_QUERIES if self.limits and self.query_limit in ("key", "both") else None,
            task_query_limit=_QUERIES if self.limits and self.query_limit in ("task", "both") else None,
            hmac_key=self.hmac_key,
            render=self.render,
            faults=faults,
            control_token=self.control_token,
        )


async def serve(options: ServeOptions, *, announce: Callable[[str], None] | None = None) -> None:
    """Run a sandbox until SIGINT or SIGTERM; *announce* is given its URL once it listens.

    A control token that nobody has chosen is printed after that.

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
            if sandbox.control_token not in {None, options.control_token}:
                _print_line(
                    f"{sandbox.url}/sandbox/ wants the header {TOKEN_HEADER}: {sandbox.control_token}"
                )
            await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parse_options(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> ServeOptions:
    """Read a command line; a wrong one prints its usage and exits with status 2."""
    parser = argparse.ArgumentParser(
        prog=prog or "python -m kie_async.sandbox",
        description="Serve a local stand-in for the service until Ctrl-C; point KIE_BASE_URL at it.",
    )
    for field in attrs.fields(ServeOptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", **field.metadata["argument"])
    given = vars(parser.parse_args(arguments))
    given["control_token"] = given["control_token"] or os.environ.get(TOKEN_VARIABLE, "").strip() or None
    return ServeOptions(**given)


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory if it is installed (extra ``speed``), else None: asyncio's own."""
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
    except (OSError, RuntimeError, UnicodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
