"""Collects the commands of ``kie-async`` into one Typer app; each is written in a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .batch import batch
from .decisions import accept, resolve, resubmit, write_off
from .demo import demo
from .env_file import load_env_file
from .journal import journal
from .listen import listen
from .report import report
from .run import run
from .runtime import configure_log
from .sandbox import PASS_OPTIONS_ON, sandbox
from .tasks import balance, status
from .top import top

app = typer.Typer(
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


def _read_env_file(path: Path | None) -> None:
    # Eagerly, before the command's own options are read: some of them have a variable.
    if path is not None:
        load_env_file(path)


@app.callback()
def begin(
    *,
    _env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            is_eager=True,
            callback=_read_env_file,
            help="Read variables such as KIE_API_KEY from this file; those that are set count more.",
        ),
    ] = None,
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
    "report": report,
    "status": status,
    "credits": balance,
    "listen": listen,
    "top": top,
}

for name, command in _COMMANDS.items():
    app.command(name)(command)
app.command("sandbox", context_settings=PASS_OPTIONS_ON, add_help_option=False)(sandbox)
for command in (resolve, write_off, resubmit, accept):
    journal.command()(command)
app.add_typer(journal, name="journal")
