"""Collects the commands of ``kie-async`` into one Typer app; each is written in a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from .batch import batch
from .decisions import resolve, resubmit, write_off
from .demo import demo
from .journal import journal
from .listen import listen
from .runtime import configure_log
from .sandbox import PASS_OPTIONS_ON, sandbox
from .tasks import balance, run, status

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # panels leave too little room for words at 80 columns
    # A traceback with local variables could show the key.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kie_async {__version__}\n")
        raise typer.Exit


@app.callback()
def begin(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on standard error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Make videos, images and sound with the Kie.ai jobs API, without paying twice.

    Start with: kie-async demo
    """
    configure_log(verbose=verbose)


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "run": run,
    "batch": batch,
    "status": status,
    "credits": balance,
    "listen": listen,
}

for name, command in _COMMANDS.items():
    app.command(name)(command)
app.command("sandbox", context_settings=PASS_OPTIONS_ON, add_help_option=False)(sandbox)
for command in (resolve, write_off, resubmit):
    journal.command()(command)
app.add_typer(journal, name="journal")
