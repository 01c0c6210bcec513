"""The tables of a journal on PostgreSQL: made, brought up to date, and refused where they would not hold."""

from __future__ import annotations

import re

from ..errors import InvalidRequest, JournalError
from .intents import IntentState
from .postgres_connections import Connection

VERSION = 1

OLDEST_SERVER = 14

NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The database's clock, the only one that counts: those of the workers differ."""

_STATES = ", ".join(f"'{state}'" for state in IntentState)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

_TABLES = f"""
CREATE TABLE meta(
  version integer NOT NULL,
  distrust text NOT NULL DEFAULT '',
  accepted_at timestamptz
);
INSERT INTO meta(version) VALUES ({VERSION});
CREATE TABLE worker(
  id text PRIMARY KEY,
  host text NOT NULL,
  pid integer NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE intent(
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  intent_id text UNIQUE NOT NULL,
  worker text NOT NULL,
  ref text UNIQUE,
  former_ref text,
  model text NOT NULL,
  fingerprint bytea NOT NULL,
  body text,
  state text NOT NULL CHECK (state IN ({_STATES})),
  task_id text UNIQUE,
  sends integer NOT NULL DEFAULT 0 CHECK (sends <= 1),
  expects_callback boolean NOT NULL DEFAULT false,
  replaces text NOT NULL DEFAULT '',
  planned_ms bigint NOT NULL,
  sending_ms bigint,
  created_ms bigint,
  terminal_ms bigint,
  code integer,
  reason text NOT NULL DEFAULT '',
  adopted_by text NOT NULL DEFAULT '',
  record text NOT NULL DEFAULT '',
  credits double precision,
  saved_by text NOT NULL DEFAULT '',
  audio_s double precision,
  expected_credits double precision,
  held_credits double precision
);
CREATE INDEX intent_open ON intent(worker) WHERE state IN ('PLANNED', 'SENDING', 'CREATED', 'UNKNOWN');
CREATE INDEX intent_by_end ON intent(terminal_ms, seq) WHERE terminal_ms IS NOT NULL;
CREATE TABLE claim(
  intent_id text NOT NULL,
  task_id text NOT NULL,
  source text NOT NULL CHECK (source IN ('signed', 'unsigned', 'answer')),
  number bigint GENERATED ALWAYS AS IDENTITY,
  PRIMARY KEY (intent_id, task_id)
);
CREATE TABLE delivery(
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  intent_id text NOT NULL,
  task_id text NOT NULL,
  is_signed boolean NOT NULL,
  record text NOT NULL,
  UNIQUE (intent_id, task_id, is_signed)
);
CREATE TABLE learned(model text PRIMARY KEY, durations text NOT NULL);
CREATE TABLE note(
  key text PRIMARY KEY,
  note text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at timestamptz NOT NULL
);
CREATE INDEX note_by_time ON note(noted_at);
CREATE INDEX note_by_end ON note(expires_at);
CREATE TABLE account(url text NOT NULL, kind text NOT NULL, salt bytea NOT NULL, digest bytea NOT NULL);
CREATE TABLE permit(
  kind text NOT NULL,
  slot integer NOT NULL,
  worker text NOT NULL DEFAULT '',
  back_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (kind, slot)
);
CREATE INDEX permit_by_return ON permit(kind, back_at);
CREATE TABLE pause(kind text PRIMARY KEY, until timestamptz NOT NULL);
CREATE TABLE turn(key text PRIMARY KEY, worker text NOT NULL, until timestamptz NOT NULL);
"""  # noqa: S608  (made of constants)


def check_name(name: object) -> str:
    """Return the schema of a journal of this name.

    Raises:
        InvalidRequest: It is no plain word.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"name must be a word of a-z, 0-9 and _ that begins with a letter, got {name!r}")
    return f"kie_async_{name}"


async def prepare(db: Connection, schema: str, label: str) -> None:
    """Make the tables unless they are there; to be called in one transaction.

    Raises:
        JournalError: The server or the role would not keep the promise; the message says why.
    """
    await _check_server(db, label)
    # Workers start together, and only one may make the tables.
    await db.execute("SELECT pg_advisory_xact_lock(hashtext('kie_async'), hashtext($1))", schema)
    if not await _exists(db, schema):
        # IF NOT EXISTS asks for the right to make one even where one was made for the role.
        if await db.fetchval("SELECT to_regnamespace($1) IS NULL", schema):
            await db.execute(f'CREATE SCHEMA "{schema}"')
        await db.execute(_TABLES)
    version = await db.fetchval("SELECT version FROM meta")
    if version != VERSION:
        raise JournalError(f"{label} is of version {version}, this library knows {VERSION}; update kie_async")


async def check_readable(db: Connection, schema: str, label: str) -> None:
    """Refuse to read a journal that is not there.

    Raises:
        JournalError: It is not.
    """
    if not await _exists(db, schema):
        raise JournalError(f"there is no {label.removeprefix('the ')}: nothing was noted in it yet")


async def _exists(db: Connection, schema: str) -> bool:
    return bool(await db.fetchval("SELECT to_regclass($1) IS NOT NULL", f'"{schema}".meta'))


async def _check_server(db: Connection, label: str) -> None:
    if (version := db.get_server_version()).major < OLDEST_SERVER:
        raise JournalError(f"{label} needs PostgreSQL {OLDEST_SERVER} or newer, this is {version.major}")
    settings = await db.fetchrow(
        "SELECT current_setting('fsync') AS fsync, current_setting('server_encoding') AS encoding,"
        " pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS is_read_only"
    )
    if settings is None or settings["fsync"] != "on":
        raise JournalError(f"{label} is on a server with fsync=off, which forgets what it committed")
    if settings["is_read_only"]:
        raise JournalError(f"{label} cannot be written: the server, or this role's sessions, are read-only")
    if settings["encoding"] != "UTF8":
        raise JournalError(f"{label} needs a database of encoding UTF8, this one has {settings['encoding']}")
