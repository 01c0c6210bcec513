"""``kie-async sandbox``: the local stand-in as a server of its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..sandbox import Durations, ServeOptions, parse_durations, serve
from .runtime import DONE, CannotRun, conduct, require_renderer


def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8800,
    api_key: Annotated[
        str, typer.Option(help="The key to accept; an empty text accepts any.")
    ] = "sandbox-key",
    durations: Annotated[
        str, typer.Option(help="fixed:0.5, uniform:60:240, lognormal:120:0.42 or never.")
    ] = "fixed:2",
    hmac_key: Annotated[str | None, typer.Option(help="Sign callbacks with this key.")] = None,
    limits: Annotated[
        bool, typer.Option("--limits/--no-limits", help="Keep the service's rate limits, or none.")
    ] = True,
    render: Annotated[
        bool, typer.Option("--render", help="Results are playable videos (needs PyAV).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed, other durations and faults.")] = 0,
    credits: Annotated[float, typer.Option(min=0.0, help="The balance to begin with.")] = 100_000.0,
    drop_callbacks: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Callbacks that never arrive, 0 to 1.")
    ] = 0.0,
    lose_answer: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Creates whose answer is lost, 0 to 1.")
    ] = 0.0,
    fail_rate: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Tasks that fail, 0 to 1.")
    ] = 0.0,
) -> None:
    """Serve a local stand-in for the service until Ctrl-C; point KIE_BASE_URL at it."""
    options = ServeOptions(
        host=host,
        port=port,
        api_key=api_key,
        durations=_durations(durations),
        hmac_key=hmac_key,
        limits=limits,
        render=render,
        seed=seed,
        credits=credits,
        drop_callbacks=drop_callbacks,
        lose_answer=lose_answer,
        fail_rate=fail_rate,
    )
    conduct(_serve(options))


def _durations(text: str) -> Durations:
    try:
        return parse_durations(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--durations") from None


async def _serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM, which are the ordinary end.

    Raises:
        CannotRun: PyAV is wanted and missing, or the port is taken.
    """
    if options.render:
        require_renderer()

    def announce(url: str) -> None:
        key = "sandbox-key" if options.api_key == "sandbox-key" else "..."
        # Not through `put`, which would hide this key: it is nobody's.
        typer.echo(f"sandbox at {url}; use it with: KIE_BASE_URL={url} KIE_API_KEY={key}")

    try:
        await serve(options, announce=announce)
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else str(exc)
        raise CannotRun(f"cannot listen on {options.host}:{options.port}: {reason}") from None
    return DONE
