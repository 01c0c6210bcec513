"""The report's rows, sums, table and data, and when ``batch`` and ``kie-async report`` write it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.tables import together
from test_cli_batch import Command, command, with_callbacks, write_jobs  # noqa: F401

from kie_async.cli.report import report_results
from kie_async.cli.report_csv import protect
from kie_async.cli.report_data import Row, rows_of_results
from kie_async.cli.report_journal import rows_of_journal
from kie_async.cli.report_page import About, KeptRows, encode_data, encode_page
from kie_async.cli.report_sums import Sums, Tally, plain_reason
from kie_async.files.saved_files import SavedFiles
from kie_async.journal.intents import Intent, IntentState, Totals
from kie_async.journal.sqlite import SqliteJournal
from kie_async.models import JobState
from kie_async.sandbox import Faults, Fixed, Sandbox

NIGHT = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)
RECORD = {"taskId": "t1", "state": "success", "resultJson": '{"resultUrls": ["https://example.org/a.mp4"]}'}


def intent(state: IntentState, **fields: Any) -> Intent:
    return Intent(intent_id="i1", model="m", ref="anna", state=state, **fields)


def write_results(folder: Path, *lines: Mapping[str, Any]) -> Path:
    results = folder / "results.jsonl"
    results.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return results


def data_in(page: Path) -> dict[str, Any]:
    """Return the data that a page draws itself from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"))
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def sum_up(rows: Iterable[Row], *, began: float | None = None, totals: Totals | None = None) -> Sums:
    tally = Tally(began)
    for row in rows:
        tally.add(row)
    return tally.sums(totals)


def page_of(*rows: Row, folder: Path) -> dict[str, Any]:
    page, kept = folder / "report.html", KeptRows()
    for row in rows:
        kept.add(row)
    page.write_bytes(encode_page(kept.rows(), sum_up(rows), About(title="night", made_at=0.0), folder))
    return data_in(page)


# --- rows ------------------------------------------------------------------------------------------


@together(
    ("outcome", "proof", "state"),
    [
        ("done", None, "done"),
        ("done", intent(IntentState.SUCCEEDED), "done"),
        ("failed", intent(IntentState.SUCCEEDED), "done, not saved"),
        ("running", intent(IntentState.SUCCEEDED), "done, not saved"),
        ("failed", intent(IntentState.FAILED), "failed"),
        ("failed", intent(IntentState.REJECTED), "refused"),
        ("failed", intent(IntentState.NOT_CREATED), "not sent"),
        ("pending", intent(IntentState.CREATED), "running"),
        ("pending", intent(IntentState.UNKNOWN), "perhaps paid"),
        ("running", intent(IntentState.WRITTEN_OFF), "perhaps paid"),
        ("pending", None, "not sent"),
        ("unknown", None, "perhaps paid"),
        ("queued", None, "queued"),
        ("what is this", None, "not sent"),
    ],
)
def test_a_row_has_the_state_that_results_and_journal_prove_together(
    outcome: str, proof: Intent | None, state: str, tmp_path: Path
) -> None:
    results = write_results(tmp_path, {"ref": "anna", "outcome": outcome})
    (row,) = rows_of_results(results, [proof] if proof else [])
    assert row.state == state
    assert isinstance(row.state, JobState)


@together(
    ("line", "state"),
    [
        ({"task_id": "t1", "urls": ["https://example.org/a.mp4"]}, "done, not saved"),
        ({"task_id": "t1"}, "failed"),
        ({"error": "code 422: no"}, "refused"),
        ({"error": "the upload service did not take face.png"}, "not sent"),
    ],
)
def test_without_a_journal_a_failed_row_is_told_apart_by_what_it_holds(
    line: dict[str, Any], state: str, tmp_path: Path
) -> None:
    (row,) = rows_of_results(write_results(tmp_path, {"ref": "anna", "outcome": "failed", **line}))
    assert row.state == state


def test_lines_and_fields_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_bytes(
        b'{"ref": 7, "outcome": [], "credits": NaN, "duration_s": 1e400, "files": {}, "ended_at": "never"}\n'
        b"half a li\xff\n[1]\n" + b"[" * 100_000 + b"\n"
    )
    assert list(rows_of_results(results)) == [Row(ref="")]


def test_files_are_found_beside_the_results_wherever_those_were_moved(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"film")
    (row,) = rows_of_results(
        write_results(tmp_path, {"ref": "anna", "files": ["/elsewhere/jobs-results/a.mp4"]})
    )
    assert row.files == (tmp_path / "a.mp4",)


def test_a_journal_alone_yields_rows_with_the_files_named_after_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "t1-1.mp4").write_bytes(b"film")
    body = json.dumps({"model": "m", "input": {"prompt": "a smile"}})
    done = intent(IntentState.SUCCEEDED, task_id="t1", record=json.dumps(RECORD), body=body, credits=16.0)
    lost = attrs.evolve(done, ref=None, task_id="t2", intent_id="i2")
    first, second = rows_of_journal([done, lost], tmp_path)
    assert (first.state, first.prompt, first.credits) == ("done", "a smile", 16.0)
    assert first.files == (tmp_path / "t1-1.mp4",)
    assert (second.ref, second.state) == ("i2", "done, not saved")


def test_a_journal_alone_finds_files_by_the_list_beside_them(tmp_path: Path) -> None:
    for at, name in enumerate(["anna.mp4", "anna-1a2b3c4d.png"], start=1):
        (tmp_path / SavedFiles(tmp_path).claim([name], "t1", at)).write_bytes(b"film")
    (tmp_path / "anna.jpg").write_bytes(b"of the user's own")
    (row,) = rows_of_journal(
        [intent(IntentState.SUCCEEDED, task_id="t1", record=json.dumps(RECORD))], tmp_path
    )
    assert row.files == (tmp_path / "anna.mp4", tmp_path / "anna-1a2b3c4d.png")


def test_an_attempt_whose_ref_passed_on_is_a_row_only_if_it_is_more_than_a_failure(tmp_path: Path) -> None:
    former: dict[str, Any] = {"ref": None, "former_ref": "anna"}
    attempts = [
        attrs.evolve(intent(IntentState.FAILED, task_id="t1"), **former),
        attrs.evolve(intent(IntentState.WRITTEN_OFF), intent_id="i2", **former),
        attrs.evolve(intent(IntentState.CREATED, task_id="t3"), intent_id="i3", ref="anna"),
    ]
    found = [(row.ref, row.state) for row in rows_of_journal(attempts, tmp_path)]
    assert found == [("anna (2)", JobState.PERHAPS_PAID), ("anna", JobState.RUNNING)]


# --- sums ------------------------------------------------------------------------------------------


def rows_of_a_night() -> list[Row]:
    began = NIGHT.timestamp()
    return [
        Row(ref="before", state=JobState.DONE, credits=8.0, task_id="t0", ended_at=began - 3600, took_s=1.0),
        Row(ref="a", state=JobState.DONE, credits=16.0, task_id="t1", ended_at=began + 60, source="callback"),
        Row(ref="b", state=JobState.FAILED, credits=0.0, task_id="t2", ended_at=began + 90, source="poll"),
        Row(ref="c", state=JobState.PERHAPS_PAID),
        Row(ref="d", state=JobState.NOT_SENT),
    ]


def test_the_sums_add_up() -> None:
    rows = rows_of_a_night()
    sums = sum_up(rows, began=NIGHT.timestamp(), totals=Totals(tasks=4, credits=30.0))
    assert sums.states == {"done": 2, "failed": 1, "perhaps paid": 1, "not sent": 1}
    assert sum(sums.states.values()) == sums.total == len(rows)
    assert (sums.run_ended, sums.run_credits) == (2, 16.0)
    assert (sums.all_tasks, sums.all_credits) == (4, 30.0)
    assert sums.sources == {"callback": 1, "poll": 1}
    assert sum(reason.count for reason in sums.reasons) == 3


def test_a_run_that_spends_nothing_says_0() -> None:
    sums = sum_up(rows_of_a_night(), began=NIGHT.timestamp() + 7200)
    assert (sums.run_ended, sums.run_credits) == (0, 0.0)
    assert sums.all_credits == 24.0


def test_ends_and_credits_over_time_add_up_to_all_of_them() -> None:
    series = sum_up(rows_of_a_night()).series
    assert series is not None
    assert (sum(series.done), sum(series.failed), series.credits[-1]) == (2, 1, 24.0)
    assert len(series.done) <= 61
    assert list(series.credits) == sorted(series.credits)


@together("rows", [[], [Row(ref="a")]])
def test_where_nothing_ended_there_is_no_series(rows: list[Row]) -> None:
    assert sum_up(rows).series is None


@together(
    ("reason", "plain"),
    [
        ("task 0a1b2c3d4e5f60718293a4b5 failed: no face (422)", "no face (422)"),
        ("0a1b2c3d4e5f60718293a4b5-1.mp4: gone (HTTP 404)", "gone (HTTP 404)"),
        ("the portrait of 'anna' is dark", "the portrait of the row is dark"),
        ("row 'anna' was made before", "the row was made before"),
        ("no answer (reset); intent 49cba61cebf831ba02cdd81dc2afc66b", "no answer (reset)"),
        ("see https://example.org/x?y=1 at 1764370000", "see … at …"),
        ("code 500: try\n again", "code 500: try again"),
    ],
)
def test_a_reason_is_the_same_for_all_jobs_of_a_kind(reason: str, plain: str) -> None:
    row = Row(ref="anna", state=JobState.FAILED, task_id="0a1b2c3d4e5f60718293a4b5", reason=reason)
    assert plain_reason(row) == plain


def test_failures_are_grouped_by_reason_with_their_refs() -> None:
    rows = [
        Row(
            ref=f"r{number}",
            state=JobState.FAILED,
            task_id=f"t{number}x",
            reason=f"task t{number}x failed: no face",
        )
        for number in range(3)
    ]
    (reason,) = sum_up(rows).reasons
    assert (reason.text, reason.count, reason.refs) == ("no face", 3, ["r0", "r1", "r2"])


# --- the table -------------------------------------------------------------------------------------


@together("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n@x", "＝1", " =1"])
def test_no_text_of_the_table_is_a_formula(text: str) -> None:
    assert protect(text).startswith("'")


@together("text", ["anna", "1-2", "a=b", "", "'quoted'", "Тёплая улыбка"])
def test_other_text_stands_in_the_table_as_it_is(text: str) -> None:
    assert protect(text) == text


async def test_the_table_has_one_row_for_each_job_and_the_mark_spreadsheets_need(tmp_path: Path) -> None:
    lines = [
        {"ref": "анна", "outcome": "done", "prompt": 'two\nlines, "quoted"; =1', "credits": 16.5, "line": 2},
        {"ref": "=cmd", "outcome": "failed", "error": "no face", "task_id": "t2"},
    ]
    await report_results(write_results(tmp_path, *lines), title="night", began=0.0)
    content = (tmp_path / "results.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    assert content.count(b"\r\n") == 3
    first, second = csv.DictReader(content.decode("utf-8-sig").splitlines())
    assert (first["ref"], first["prompt"]) == ("анна", 'two lines, "quoted"; =1')
    assert (first["credits"], first["usd"]) == ("16.5", "0.083")
    assert (second["ref"], second["state"], second["reason"]) == ("'=cmd", "failed", "no face")


# --- the data of the page --------------------------------------------------------------------------


def test_no_text_ends_the_script_that_holds_it() -> None:
    text = "</script><!-- <script> \u2028\u2029 &"
    encoded = encode_data([text])
    assert not set("<>&\u2028\u2029") & set(encoded)
    assert json.loads(encoded) == [text]


@together("url", ["javascript:alert(1)", "http://example.org/a.mp4", "data:text/html,x", "//example.org/a"])
def test_only_https_addresses_come_into_the_page(url: str, tmp_path: Path) -> None:
    data = page_of(Row(ref="a", urls=(url, "https://example.org/a.mp4"), image=url), folder=tmp_path)
    assert data["rows"][0]["urls"] == ["https://example.org/a.mp4"]
    assert "poster" not in data["rows"][0]


@together("name", ["javascript:x.mp4", "a b#?.mp4", "%2e.mp4", "пример.mp4"])
def test_a_file_is_named_by_its_path_from_the_page_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"film")
    data = page_of(Row(ref="a", state=JobState.DONE, files=(tmp_path / name,)), folder=tmp_path / "out")
    (file,) = data["rows"][0]["files"]
    assert file["name"] == name
    assert re.fullmatch(r"\.\./[\w.%-]+", file["src"])


def test_a_portrait_is_the_poster_where_it_is_local(tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(b"png")
    rows = [Row(ref="a", image=image) for image in (str(tmp_path / "face.png"), str(tmp_path / "gone.png"))]
    first, second = page_of(*rows, folder=tmp_path)["rows"]
    assert first["poster"] == "face.png"
    assert "poster" not in second


async def test_the_key_is_in_neither_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "kie-key-0123456789")
    line = {"ref": "anna", "outcome": "failed", "error": "the key kie-key-0123456789 was refused"}
    await report_results(write_results(tmp_path, line), title="kie-key-0123456789", began=0.0)
    for name in ("report.html", "results.csv"):
        content = (tmp_path / name).read_text("utf-8")
        assert "kie-key-0123456789" not in content
        assert "the key *** was refused" in content


def test_of_very_many_rows_the_page_keeps_those_that_are_not_done(tmp_path: Path) -> None:
    rows = [Row(ref="a", state=JobState.DONE)] * 20_000 + [Row(ref="b", state=JobState.FAILED)]
    data = page_of(*rows, folder=tmp_path)
    assert len(data["rows"]) == 20_000
    assert data["rows"][-1]["ref"] == "b"
    assert data["sums"]["total"] == 20_001


# --- who writes it ---------------------------------------------------------------------------------


async def test_a_table_that_is_not_ours_is_not_replaced_and_the_page_is_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.csv").write_text("ref,model\nanna,m\n")
    await report_results(write_results(tmp_path, {"ref": "a"}), title="night", began=0.0)
    assert (tmp_path / "results.csv").read_text() == "ref,model\nanna,m\n"
    assert data_in(tmp_path / "report.html")["sums"]["total"] == 1
    assert "results.csv is another's file" in capsys.readouterr().err


async def test_a_page_that_is_not_ours_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("mine")
    await report_results(write_results(tmp_path, {"ref": "a"}), title="night", began=0.0)
    assert (tmp_path / "report.html").read_text() == "mine"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"no report: {tmp_path}/report.html is another's file; move it away\n"


async def test_batch_and_report_agree_and_a_second_run_keeps_what_the_first_saw(
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    refusal = (200, b'{"code": 422, "msg": "not today", "data": null}')
    write_jobs(tmp_path, 3)
    page = tmp_path / "jobs-results" / "report.html"
    async with Sandbox(
        api_key="kie-key-0123456789", durations=Fixed(0.05), faults=Faults(create_answers_next=[refusal])
    ) as sandbox:
        code, out, _ = await command(sandbox, "batch", "jobs.csv", *with_callbacks())
        assert (code, out.splitlines()[-1]) == (1, "jobs-results/report.html")
        first = data_in(page)
        assert first["sums"]["states"] == {"done": 2, "refused": 1}
        assert first["sums"]["sources"] == {"callback": 2}
        assert first["sums"]["run_credits"] == first["sums"]["all_credits"] == 2
        assert {row.get("prompt") for row in first["rows"]} == {"0", "1", "2"}
        assert [len(row["files"]) for row in first["rows"] if row["state"] == "done"] == [1, 1]

        await command(sandbox, "batch", "jobs.csv", *with_callbacks())
    second = data_in(page)["sums"]
    assert second["sources"] == {"callback": 3}
    assert (second["run_credits"], second["all_credits"]) == (1, 3)

    for where in ("jobs-results", "jobs.csv.db"):
        assert await command(None, "report", where) == (0, "jobs-results/report.html\n", "")
        again = data_in(page)["sums"]
        assert again["states"] == {"done": 3}
        assert again["sources"] == {"callback": 3}


@together(
    ("arguments", "words"),
    [
        (("report", "nowhere"), "there is no nowhere"),
        (("report", "."), "give the folder with a batch's results, or its journal"),
        (("report", "jobs.csv"), "no journal at all (file is not a database)"),
        (("report", ".", "--journal", "no.db"), "there is no journal no.db"),
    ],
)
async def test_what_holds_no_results_is_refused_with_what_to_give(
    arguments: tuple[str, ...],
    words: str,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_jobs(tmp_path, 1)
    code, out, err = await command(None, *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split()).replace("│ ", "")
    assert not (tmp_path / "report.html").exists()


async def test_a_journal_is_reported_while_it_is_in_use(
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_results(tmp_path, {"ref": "anna", "outcome": "pending"}, {"ref": "otto", "outcome": "pending"})
    journal = SqliteJournal(tmp_path / "run.db")
    await journal.open()
    try:
        await journal.mark_sending(Intent(intent_id="i1", model="m", ref="anna"))
        await journal.mark_created("i1", "t1")
        assert await command(None, "report", ".", "--journal", "run.db") == (0, "report.html\n", "")
    finally:
        await journal.aclose()
    first, second = data_in(tmp_path / "report.html")["rows"]
    assert (first["state"], first["task_id"]) == ("running", "t1")
    assert second["state"] == "not sent"


async def test_a_journal_that_cannot_be_read_leaves_a_report_of_the_results_that_says_so(
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_results(tmp_path, {"ref": "anna", "outcome": "running"})
    (tmp_path / "run.db").write_text("no journal")
    assert await command(None, "report", ".", "--journal", "run.db") == (0, "report.html\n", "")
    assert "run.db" in data_in(tmp_path / "report.html")["notice"]
