"""What the command line prints: no mark that steers a terminal, whoever sent it, and no traceback."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from cli.test_batch_progress import BOARD
from support.journals import intent

from kie_async import SqliteJournal, TaskRecord, TaskState, cli
from kie_async.cli import jobs_file, runtime
from kie_async.cli import journal as journal_command
from kie_async.cli.batch_progress import open_progress
from kie_async.cli.journal_place import JournalPlace
from kie_async.cli.output import LogFormatter, escape_marks, print_err, print_out, show_task
from kie_async.cli.results_file import ResultsFile
from kie_async.engine.recovery import shorten_list
from kie_async.journal.intents import IntentState

MARKS = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]
"""Every control character of Unicode, every end of a line, every mark of the bidirectional algorithm."""
FORGED = "ok\x1b[2K\x9b1A\x9d0;title\x07\u202edrowssap\u2069\r\nstate    success"
GOOD = "\u00e9\u6f22\u0436 \U0001f600 \u05d0\u0628 e\u0301 a\u200db\u00ad"
"""Letters, also of those who write from right to left, emoji and their joiners: shown as they are."""


def shows_marks(text: str) -> bool:
    return any(mark in text for mark in MARKS)


def test_the_marks_are_all_there_are() -> None:
    every = map(chr, range(sys.maxunicode + 1))
    controls = {char for char in every if unicodedata.category(char) in {"Cc", "Zl", "Zp"}}
    assert controls <= set(MARKS)
    assert "".join(sorted(MARKS)) == "".join(sorted(set(MARKS)))


@pytest.mark.parametrize("mark", MARKS, ids=ascii)
def test_a_mark_is_shown_as_an_escape_that_json_reads_back(mark: str) -> None:
    assert escape_marks(f"a{mark}b") == f"a\\u{ord(mark):04x}b"
    text = escape_marks(json.dumps({"a": f"a{mark}b"}, ensure_ascii=False))
    assert not shows_marks(text)
    assert json.loads(text) == {"a": f"a{mark}b"}


def test_what_people_write_stays() -> None:
    assert escape_marks(GOOD) == GOOD


def everything(words: str) -> TaskRecord:
    """Return a record with *words* wherever the service could put them."""
    return TaskRecord(
        task_id="t1",
        state=TaskState.FAIL,
        model=f"m/{words}",
        fail_code=words,
        fail_message=words,
        urls=(f"https://e.org/{words}",),
        result_object={words: [words, {"deep": words}]},
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_a_task_is_shown_without_marks(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    show_task(everything(FORGED + GOOD), [Path(f"out/{FORGED}.mp4")], as_json=as_json)
    shown = capsys.readouterr().out
    assert not shows_marks(shown.replace("\n", ""))
    assert GOOD in shown
    if as_json:
        assert json.loads(shown)["fail_message"] == FORGED + GOOD
        assert shown.count("\n") == 1
    else:  # no row of the service's own making
        assert [line for line in shown.splitlines() if line.startswith("state")] == ["state    failed"]


@pytest.mark.parametrize("show", [print_out, print_err])
def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str], show: Callable[[str], None]) -> None:
    show(FORGED)
    shown = "".join(capsys.readouterr())
    assert shown.endswith("\n")
    assert not shows_marks(shown[:-1])


def test_progress_and_the_log_show_no_marks(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress() as progress:
        progress.show(attrs.evolve(BOARD, waits_for=FORGED))
        progress.print_line(FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        record = logging.LogRecord("kie_async", 40, "", 1, "said %s", (FORGED,), sys.exc_info())
    shown = LogFormatter("%(name)s: %(message)s").format(record)
    assert shown.startswith("kie_async: said ok\\u001b[2K\\u009b1A\\u009d0;title\\u0007\\u202edrowssap")
    assert "ValueError" in shown
    assert not shows_marks((shown + capsys.readouterr().err).replace("\n", ""))


async def test_the_results_file_shows_none_either(tmp_path: Path) -> None:
    await ResultsFile(tmp_path / "results.jsonl", [{"error": FORGED}]).write()
    text = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert not shows_marks(text[:-1])
    assert json.loads(text) == {"error": FORGED}


# --- journal show --------------------------------------------------------------------------------------


async def fill(path: Path, count: int, **fields: str) -> None:
    journal = SqliteJournal(path)
    await journal.open()
    for number in range(count):
        await journal.mark_sending(intent(number, **fields))
        await journal.mark_ended(f"i{number}", IntentState.UNKNOWN, reason=FORGED)
    await journal.aclose()


@pytest.mark.parametrize("chunk", [1, 2, 7, 500])
async def test_intents_are_iterated_in_order_whatever_the_chunk(tmp_path: Path, chunk: int) -> None:
    await fill(tmp_path / "run.db", 7)
    journal = SqliteJournal(tmp_path / "run.db")
    await journal.open()
    found = [found.intent_id async for found in journal.iterate_intents(chunk=chunk)]
    assert found == [listed.intent_id for listed in await journal.list_intents()]
    assert len(found) == 7
    await journal.aclose()


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_journal_is_shown_in_the_memory_of_a_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    peaks, lines = [], itertools.count()
    monkeypatch.setattr(journal_command, "print_out", lambda _: next(lines))  # what is captured is kept
    for count in (1_000, 8_000):
        path = tmp_path / f"{count}.db"
        await fill_with_records(path, count)
        tracemalloc.start()
        await cli_show(path, as_json=as_json)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert next(lines) == 9_000 + 4 * (not as_json)
    few, many = peaks
    assert many < few + 300_000


async def fill_with_records(path: Path, count: int) -> None:
    await fill(path, 0)
    record = json.dumps({"taskId": "t", "resultJson": "x" * 4_000})
    rows = ((f"i{n}", f"r{n}", f"t{n}", n, record) for n in range(count))
    columns = "intent_id, ref, model, fingerprint, state, task_id, sends, planned_ms, record"
    with sqlite3.connect(path) as db:
        db.executemany(
            f"INSERT INTO intent({columns}) VALUES (?, ?, 'm', x'66', 'SUCCEEDED', ?, 1, ?, ?)",  # noqa: S608
            rows,
        )
    db.close()


async def cli_show(path: Path, *, as_json: bool) -> None:
    assert await journal_command._show(JournalPlace(str(path)), as_json=as_json) == 0


async def test_a_journal_is_shown_without_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await fill(tmp_path / "run.db", 1, ref="r\u202eab\x9b")
    for as_json in (False, True):
        await cli_show(tmp_path / "run.db", as_json=as_json)
        shown = capsys.readouterr().out
        assert not shows_marks(shown.replace("\n", ""))
        assert "r\\u202eab\\u009b" in shown


@pytest.mark.parametrize(
    ("count", "journal", "words"),
    [
        (1, None, "i0"),
        (10, Path("a.db"), ", ".join(f"i{n}" for n in range(10))),
        (11, Path("a.db"), r"i9 ... and 1 more; kie-async journal show a.db"),
        (50_000, Path("/x/a.db"), r"i9 ... and 49990 more; kie-async journal show /x/a.db"),
        (12, None, "i9 ... and 2 more"),
    ],
)
def test_a_list_in_the_log_is_bounded(count: int, journal: Path | None, words: str) -> None:
    shown = shorten_list([f"i{number}" for number in range(count)], journal)
    assert shown.endswith(words)
    assert len(re.findall(r"\bi\d+", shown)) == min(count, 10)


async def test_a_session_names_ten_unknown_creates_and_where_the_rest_stands(
    tmp_path: Path, open_session: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path / "run.db", 25)
    await open_session(journal=tmp_path / "run.db")  # type: ignore[misc]
    (said,) = [r.getMessage() for r in caplog.records if "perhaps paid" in r.getMessage()]
    assert said.startswith("25 creates in the journal are perhaps paid: i0, i1, ")
    assert f"i9 ... and 15 more; kie-async journal show {tmp_path / 'run.db'}; " in said
    assert f"kie-async journal resolve {tmp_path / 'run.db'} INTENT TASK_ID" in said


# --- no traceback --------------------------------------------------------------------------------------

LONG = "x" * 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KIE_API_KEY", "kie-key-0123456789")
    monkeypatch.setenv("KIE_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "j.csv").write_text("ref,model,prompt\na,sandbox/echo,x\n")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return left.value.code, capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("batch", "."), ". is a folder, not a .csv or .jsonl file"),
        (("batch", ".."), ".. is a folder"),
        (("batch", "/"), "/ is a folder"),
        (("batch", ""), "is a folder"),
        (("batch", f"{LONG}.csv"), "cannot read"),
        (("batch", "loop"), "a jobs file ends in"),
        (("batch", "j.csv/k.csv"), "cannot read j.csv/k.csv"),
        (("batch", "j.csv", "--out", LONG), "cannot make the folder"),
        (("batch", "j.csv", "--out", "loop"), "cannot make the folder loop"),
        (("batch", "j.csv", "--journal", LONG), "File name too long"),
        (("batch", "j.csv", "--journal", "loop"), "Too many levels of symbolic links"),
        (("batch", "j.csv", "--results", "."), "is a folder"),
        (("batch", "j.csv", "--results", "j.csv"), "are three files"),
        (("journal", "show", LONG), "there is no journal"),
        (("journal", "show", "loop"), "there is no journal loop"),
        (("sandbox", "--host", "a..b"), "a..b is no name of a host"),
        (("demo", "--out", LONG), "cannot make the folder"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_path_that_cannot_be_is_an_error_in_words(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, err = call(capsys, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("folder")
def test_without_a_folder_for_temporary_files_a_batch_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    code, err = call(capsys, "batch", "j.csv")
    assert code == 2
    assert "set TMPDIR to a folder that can: No usable temporary directory found" in err


class FullDisk:
    """A temporary file on a disk that fills up, at a write or when its buffer is written out."""

    def __init__(self, at: str) -> None:
        self._at = at

    def _do(self, what: str) -> None:
        if what == self._at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def seek(self, _: int) -> None:
        self._do("seek")

    def write(self, _: bytes) -> None:
        self._do("write")

    def flush(self) -> None:
        self._do("flush")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("at", ["seek", "write", "flush"])
def test_a_full_disk_is_not_taken_for_a_jobs_file_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: FullDisk(at))
    with pytest.raises(
        runtime.CannotRun, match=r"^the jobs need a temporary file.*: No space left on device$"
    ):
        jobs_file.read_jobs(folder / "j.csv", report=print)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_is_tried_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    runtime.require_folder(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(runtime.CannotRun, match=f"cannot write to the folder .*: {os.strerror(code)}"):
        runtime.require_folder(tmp_path)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
async def test_closed_or_full_streams_are_no_traceback(tmp_path: Path, closed: str) -> None:
    await fill(tmp_path / "run.db", 3)
    command = f'"$1" -m kie_async journal show "$2" {closed}'
    run = subprocess.run(  # noqa: ASYNC221  (the loop has nothing else to do)
        ["sh", "-c", command, "sh", sys.executable, str(tmp_path / "run.db")],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "Traceback" not in run.stderr
    assert run.returncode == (1 if "full" in closed else 0)
    if "full" in closed:
        assert run.stderr.splitlines()[0] == "error: [Errno 28] No space left on device"
