"""``kie-async sandbox``: runs the local stand-in for the service, with the sandbox's own options."""

from __future__ import annotations

import os

import typer

from ..sandbox import ServeOptions, serve
from ..sandbox.serving import parse_options
from .runtime import DONE, CannotRun, require_renderer, run_command

# Everything after the command's name, --help too, goes to the sandbox's own parser. It needs no extra to
# be installed, so it cannot be this command line's; two parsers would be two lists of the same options.
PASS_OPTIONS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

_DEFAULT_KEY = ServeOptions().api_key


def sandbox(context: typer.Context) -> None:
    """Serve a local stand-in for the service until Ctrl-C; point KIE_BASE_URL at it."""
    run_command(_serve(parse_options(context.args, prog=context.command_path)))


async def _serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM, which are the ordinary end.

    Raises:
        CannotRun: PyAV is wanted and missing, the port is taken, or the host is none.
    """
    if options.render:
        require_renderer()

    def announce(url: str) -> None:
        key = _DEFAULT_KEY if options.api_key == _DEFAULT_KEY else "..."
        # Not through `print_out`, which would hide this key: it is nobody's.
        typer.echo(f"sandbox at {url}; use it with: KIE_BASE_URL={url} KIE_API_KEY={key}")

    try:
        await serve(options, announce=announce)
    except OSError as exc:
        # asyncio gives some of these errors a text of its own, with the address in it once more.
        reason = os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else str(exc)
        raise CannotRun(f"cannot listen on {options.host}:{options.port}: {reason}") from None
    except UnicodeError:  # asyncio's, of a host with an empty label or one of more than 63 letters
        raise CannotRun(f"{options.host} is no name of a host") from None
    return DONE
