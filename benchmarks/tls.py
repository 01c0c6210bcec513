"""Lets a benchmark speak TLS, as the service does: with a local authority that its processes trust.

What a client trusts is settled when it is imported. So a benchmark starts itself again in an environment
that names the authority, and hands it on to the processes it starts.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import ssl
import sys
import tempfile
from pathlib import Path

_FOLDER = "KIE_BENCHMARKS_TLS"


def add_option(options: argparse.ArgumentParser) -> None:
    """Let a benchmark be run without TLS."""
    options.add_argument("--plain", action="store_true", help="over plain HTTP; by default over TLS")


def begin(*, plain: bool) -> None:
    """Start this benchmark again with a certificate, unless it has one or shall speak plain HTTP."""
    folder = os.environ.pop(_FOLDER, None) if plain else os.environ.get(_FOLDER)
    if folder is not None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    elif not plain:
        os.environ |= _certified(Path(tempfile.mkdtemp(prefix="kie-benchmarks-")))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])


def _certified(folder: Path) -> dict[str, str]:
    import trustme  # comes with the extras bench and test

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return {_FOLDER: str(folder), "SSL_CERT_FILE": str(folder / "authority.pem")}


def is_on() -> bool:
    """Tell whether this process and those it starts speak TLS."""
    return _FOLDER in os.environ


def scheme() -> str:
    """Return what a URL begins with."""
    return "https" if is_on() else "http"


def of_a_server() -> ssl.SSLContext | None:
    """Return what a server needs, None if it is to speak plain HTTP."""
    if not is_on():
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(os.environ[_FOLDER]) / "server.pem")
    return context


def of_a_client() -> ssl.SSLContext | None:
    """Return what a client needs that is no HTTP library, None if it is to speak plain HTTP."""
    return ssl.create_default_context() if is_on() else None
