"""``kie-async batch`` and ``journal show`` against a sandbox: processes of their own where signals matter."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import re
import shlex
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import processes
from support.ports import free_port
from support.processes import PATIENCE_S, Process, nothing_left_running  # noqa: F401  (a fixture)

from kie_async import cli
from kie_async.cli import report, results_file  # noqa: F401  (report before one is patched)
from kie_async.cli.batch_options import default_folder, default_journal
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.sandbox import Fixed, Never, Sandbox

KEY = "kie-key-0123456789"
AVATAR = "kling/v1-avatar-standard"
Command = Callable[..., Any]

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nothing_left_running")]


@pytest.fixture
async def service() -> AsyncIterator[Sandbox]:
    async with Sandbox(api_key=KEY, durations=Fixed(0.05)) as service:
        yield service


@pytest.fixture
async def patient() -> AsyncIterator[Sandbox]:
    """Return a sandbox whose tasks end when a test ends them; the client keeps the limits by itself."""
    async with Sandbox(api_key=KEY, durations=Never(), create_limit=None, query_limit=None) as service:
        yield service


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command line in a thread of this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    async def run(service: Sandbox | None, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("KIE_API_KEY", raising=False)
        if service is not None:
            monkeypatch.setenv("KIE_API_KEY", KEY)
            monkeypatch.setenv("KIE_BASE_URL", service.url)
        return await asyncio.to_thread(call, *arguments)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        shown = capfd.readouterr()
        code = left.value.code
        assert isinstance(code, int | None)
        return code or 0, shown.out, shown.err

    return run


FORMER_WORDS = re.compile(
    r"\b(PLANNED|SENDING|CREATED|REJECTED|NOT_CREATED|UNKNOWN|SUCCEEDED|FAILED|WRITTEN_OFF"
    r"|pending|unknown|success|succeeded|fail|queuing|generating|intents)\b"
)
"""Words for the state of a job that are the journal's or the service's, and not people's."""


async def start(service: Sandbox, folder: Path, *arguments: str) -> Process:
    return await processes.start(*arguments, folder=folder, KIE_API_KEY=KEY, KIE_BASE_URL=service.url)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.01)


def write_jobs(folder: Path, count: int, *, name: str = "jobs.csv") -> None:
    lines = [f"r{number},sandbox/echo,{number}\n" for number in range(count)]
    (folder / name).write_text("".join(["ref,model,prompt\n", *lines]))


def write_media(folder: Path) -> None:
    (folder / "face.png").write_bytes(read_portrait())
    (folder / "voice.wav").write_bytes(read_voice())


def results_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outcomes_in(path: Path) -> Counter[str]:
    return Counter(line["outcome"] for line in results_in(path))


def prompts_at(service: Sandbox) -> Counter[str]:
    """Return how many tasks each prompt became: nothing may be paid twice."""
    return Counter(task.input["prompt"] for task in service.tasks.values())


def finish(service: Sandbox, prompts: Iterable[int]) -> None:
    for task_id, task in service.tasks.items():
        if task.input["prompt"] in {str(number) for number in prompts}:
            service.finish(task_id)


async def see_through(service: Sandbox, work: Awaitable[Any]) -> Any:
    """Return what *work* returns, while every task ends at once."""

    async def finish_all() -> None:
        while True:
            for task_id in list(service.tasks):
                service.finish(task_id)
            await asyncio.sleep(0.02)

    finishing = asyncio.create_task(finish_all())
    try:
        return await work
    finally:
        finishing.cancel()


BESIDE_THE_FILES = {"results.jsonl", "results.csv", "report.html", ".kie-async-files.jsonl"}


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def with_callbacks() -> list[str]:
    """Return options that spare a test the two seconds before the first poll."""
    port = free_port()
    return ["--port", str(port), "--callback-url", f"http://127.0.0.1:{port}/kie"]


# --- all good --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_a_batch_uploads_once_downloads_all_and_sends_nothing_when_run_again(
    kind: str, command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_media(tmp_path)
    row = {"model": AVATAR, "image_url": "face.png", "audio_url": "voice.wav"}
    rows = [{"ref": f"r{number}", **row, "prompt": f"smile, {number}"} for number in range(5)]
    if kind == "csv":
        lines = [",".join(rows[0])] + [",".join(f'"{cell}"' for cell in each.values()) for each in rows]
    else:
        lines = [json.dumps(each) for each in rows]
    (tmp_path / f"jobs.{kind}").write_text("\n".join(lines), encoding="utf-8")
    arguments = ("batch", f"jobs.{kind}", "--out", "deep/out", "--journal", "run.db", *with_callbacks())

    code, out, err = await command(service, *arguments)
    assert (code, err) == (0, "")
    assert out == (
        "5 jobs: 5 done\n"
        "this run 80 credits (0.40 USD); all runs 80 credits (0.40 USD)\n"
        "deep/out/report.html\n"
    )
    assert service.counts["upload"] == 2
    assert service.counts["create"] == 5
    assert prompts_at(service) == Counter(f"smile, {number}" for number in range(5))
    found = results_in(tmp_path / "deep/out/results.jsonl")
    assert [line["ref"] for line in found] == [f"r{number}" for number in range(5)]
    for number, line in enumerate(found):
        task = service.tasks[line["task_id"]]
        assert task.input["prompt"] == f"smile, {number}"
        assert line["line"] == number + (2 if kind == "csv" else 1)
        assert (line["outcome"], line["credits"], line["error"]) == ("done", 16, "")
        assert (tmp_path / line["files"][0]).stat().st_size
        assert line["urls"]
    files = {Path(file).name for line in found for file in line["files"]}
    assert files == {f"r{number}.mp4" for number in range(5)}
    assert files_in(tmp_path / "deep/out") == files | BESIDE_THE_FILES

    before, first = service.counts.copy(), (tmp_path / "deep/out/results.jsonl").read_bytes()
    code, out, err = await command(service, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("5 jobs: 5 done\nthis run 0 credits (0.00 USD); all runs 80 credits (0.40 USD)\n")
    assert service.counts == before  # not even a query
    assert (tmp_path / "deep/out/results.jsonl").read_bytes() == first


async def test_the_results_file_is_whole_at_every_moment(patient: Sandbox, tmp_path: Path) -> None:
    write_jobs(tmp_path, 12)
    running = await start(patient, tmp_path, "batch", "jobs.csv", *with_callbacks())
    path = tmp_path / "jobs-results" / "results.jsonl"
    await until(lambda: len(patient.tasks) == 12)
    await until(path.exists)
    for number in range(12):
        finish(patient, [number])
        await until(lambda number=number: outcomes_in(path)["done"] > number * 0.7 - 2)
        found = results_in(path)
        assert [line["ref"] for line in found] == [f"r{each}" for each in range(12)]
    assert (await running.end())[0] == 0
    assert outcomes_in(path) == {"done": 12}
    assert files_in(path.parent) == {f"r{number}.mp4" for number in range(12)} | BESIDE_THE_FILES


async def test_a_writing_that_was_given_up_on_does_not_undo_a_later_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_end, has_ended, replace = threading.Event(), threading.Event(), results_file.replace_file

    def slowly(path: Path, lines: list[bytes]) -> None:
        if b"running" in lines[0]:
            may_end.wait(5)
        replace(path, lines)
        if b"running" in lines[0]:
            has_ended.set()

    monkeypatch.setattr(results_file, "replace_file", slowly)
    results = results_file.ResultsFile(tmp_path / "results.jsonl", [{"outcome": "running"}])
    given_up = asyncio.create_task(results.write())
    await asyncio.sleep(0.01)
    given_up.cancel()
    results.set_line(0, {"outcome": "done"})
    last = asyncio.create_task(results.write())
    await asyncio.sleep(0.05)
    may_end.set()
    await last
    assert await asyncio.to_thread(has_ended.wait, 5)
    assert outcomes_in(results.path) == {"done": 1}


async def test_a_writing_that_was_overtaken_leaves_the_newer_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, replace = [], results_file.replace_file

    def counted(path: Path, lines: list[bytes]) -> None:
        replace(path, lines)
        written.append(lines)

    monkeypatch.setattr(results_file, "replace_file", counted)
    results = results_file.ResultsFile(tmp_path / "results.jsonl", [{"outcome": "running"}])
    with results._write_lock:
        overtaken = asyncio.create_task(results.write())
        await asyncio.sleep(0.01)
        overtaken.cancel()
        results.set_line(0, {"outcome": "done"})
        replace(results.path, results._lines)  # as the newer one does, whose turn it is
    await until(lambda: written)
    assert outcomes_in(results.path) == {"done": 1}


async def test_a_part_of_the_jobs_can_be_chosen(command: Command, service: Sandbox, tmp_path: Path) -> None:
    write_jobs(tmp_path, 5)
    chosen = ("--only", "r4", "--only", "r1", "--only", "r2", "--limit", "2")
    code, _, err = await command(service, "batch", "jobs.csv", *chosen, *with_callbacks())
    assert (code, err) == (0, "")
    assert prompts_at(service) == {"1": 1, "2": 1}
    found = results_in(tmp_path / "jobs-results" / "results.jsonl")
    assert [line["ref"] for line in found if line["outcome"] == "done"] == ["r1", "r2"]


# --- rows that were made before from other content -------------------------------------------------


async def test_changed_rows_are_found_before_anything_is_sent(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_media(tmp_path)
    (tmp_path / "other.png").write_bytes(read_portrait() + b"another")
    head = "ref,model,image_url,audio_url,prompt\n"
    (tmp_path / "jobs.csv").write_text(
        f"{head}ada,{AVATAR},face.png,voice.wav,a\nbob,{AVATAR},face.png,voice.wav,b\n"
    )
    assert (await command(service, "batch", "jobs.csv", *with_callbacks()))[0] == 0
    (tmp_path / "jobs.csv").write_text(
        f"{head}ada,{AVATAR},other.png,voice.wav,a\nbob,{AVATAR},face.png,voice.wav,c\n"
        f"cyd,{AVATAR},face.png,voice.wav,c\n"
    )
    before = service.counts.copy()
    results = (tmp_path / "jobs-results" / "results.jsonl").read_bytes()
    assert await command(service, "batch", "jobs.csv") == (
        2,
        "",
        "line 2, ref ada: made before from another portrait; a new ref makes and pays it again\n"
        "line 3, ref bob: made before from another prompt; a new ref makes and pays it again\n"
        "error: 2 jobs changed; nothing was sent; --skip-changed leaves them out\n",
    )
    assert service.counts == before
    assert (tmp_path / "jobs-results" / "results.jsonl").read_bytes() == results

    await command(service, "batch", "jobs.csv", "--skip-changed", *with_callbacks())
    assert service.counts["create"] == before["create"] + 1
    found = results_in(tmp_path / "jobs-results" / "results.jsonl")
    assert [line["outcome"] for line in found] == ["done"] * 3


# --- again ------------------------------------------------------------------------------------------


async def run_ending(
    command: Command, service: Sandbox, failing: set[str], *options: str
) -> tuple[int, str, str]:
    """Run a batch in which the tasks of some prompts fail and the others are done."""

    async def end_all() -> None:
        while True:
            for task_id, task in list(service.tasks.items()):
                service.finish(task_id, "fail" if task.input["prompt"] in failing else "success")
            await asyncio.sleep(0.02)

    ending = asyncio.create_task(end_all())
    try:
        return await command(service, "batch", "jobs.csv", *with_callbacks(), *options)
    finally:
        ending.cancel()


async def test_failed_jobs_go_again_when_asked_and_the_journal_shows_every_attempt(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 3)
    assert (await run_ending(command, service, {"1"}))[0] == 1
    code, _, err = await run_ending(command, service, {"1"})
    assert (code, len(service.tasks)) == (1, 3)
    assert "kie.batch" not in err
    code, out, _ = await run_ending(command, service, {"1"}, "--retry-failed")
    assert (code, len(service.tasks)) == (1, 4)
    code, out, _ = await run_ending(command, service, set(), "--retry-failed")
    assert (code, len(service.tasks)) == (0, 5)
    assert out.startswith("3 jobs: 3 done\n")
    assert "kie.batch" not in (tmp_path / "jobs-results" / "results.jsonl").read_text()

    code, out, _ = await command(None, "journal", "show", "jobs.csv.db")
    columns = [re.split(" {2,}", line) for line in out.splitlines()]
    assert sorted((row[1], row[0]) for row in columns if len(row) > 1) == [
        ("r0", "done"),
        ("r1", "done"),
        ("r1 (1)", "failed"),
        ("r1 (2)", "failed"),
        ("r2", "done"),
    ]
    code, out, _ = await command(None, "journal", "show", "jobs.csv.db", "--json")
    assert [json.loads(line)["former_ref"] for line in out.splitlines()].count("r1") == 2
    code, out, _ = await command(None, "top", "jobs.csv.db", "--once")
    assert out.startswith("3 jobs: 3 done\n")


async def test_the_end_names_the_command_that_makes_failed_jobs_again(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 3)
    _, _, err = await run_ending(command, service, {"1"}, "--name", "{ref} again", "--only", "r1")
    named = re.search(r"1 job failed or refused; this makes them again and costs again: (.*)\n", err)
    assert named
    name, *arguments = shlex.split(named[1])
    assert name == "kie-async"
    assert arguments[:2] == ["batch", "jobs.csv"]
    assert (await see_through(service, command(service, *arguments)))[0] == 0
    assert prompts_at(service) == {"1": 2}
    assert {path.name for path in (tmp_path / "jobs-results").glob("*.mp4")} == {"r1 again.mp4"}


@pytest.mark.parametrize("how", ["interrupted", "killed"])
async def test_a_retry_that_ends_early_leaves_what_it_did_not_try_as_it_stood(
    how: str, command: Command, patient: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 4)
    with (tmp_path / "jobs.csv").open("a") as jobs:
        jobs.write("r4,no/model,4\n")
    await run_ending(command, patient, {"1", "2", "3"})
    again = ("batch", "jobs.csv", "--retry-failed", "--max-in-flight", "1", *with_callbacks())
    running = await start(patient, tmp_path, *again)
    await until(lambda: len(patient.tasks) == 5)
    await asyncio.sleep(0.3)  # the answer has left the service: let it be noted
    if how == "killed":
        running.interrupt(signal.SIGKILL)
        await running.end()
        finish(patient, [1])
        _, out, _ = await command(patient, "batch", "jobs.csv", "--only", "r1", *with_callbacks())
    else:
        running.interrupt()
        await running.said("interrupted: ")
        finish(patient, [1])
        code, out, err = await running.end()
        assert code == 130
        assert err.startswith("3 jobs failed or refused; this makes them again and costs again: kie-async")
    assert out.startswith(
        "5 jobs: 2 done; 2 failed; 1 refused\n"
        "this run 1 credit (0.005 USD); all runs 2 credits (0.01 USD)\n"
        "2 failed: Internal Error, Please try again later. (500)\n"
        "1 refused: code 422: The model name you specified is not supported."
    )
    found = results_in(tmp_path / "jobs-results" / "results.jsonl")
    assert [line["outcome"] for line in found] == ["done", "done", "failed", "failed", "refused"]
    assert prompts_at(patient) == {"0": 1, "1": 2, "2": 1, "3": 1}


async def test_a_failed_job_may_be_made_from_other_content_when_it_is_retried(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 2)
    await run_ending(command, service, {"1"})
    (tmp_path / "jobs.csv").write_text("ref,model,prompt\nr0,sandbox/echo,0\nr1,sandbox/echo,7\n")
    code, _, err = await run_ending(command, service, set())
    assert (code, len(service.tasks)) == (2, 2)
    assert "made before from another prompt" in err
    assert (await run_ending(command, service, set(), "--retry-failed"))[0] == 0
    assert prompts_at(service) == Counter({"0": 1, "1": 1, "7": 1})


async def test_files_are_named_as_asked_and_after_their_refs_if_not(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 2)
    assert (await run_ending(command, service, set()))[0] == 0
    assert {"r0.mp4", "r1.mp4"} <= files_in(tmp_path / "jobs-results")
    fetched = service.counts["file"]
    name = ("--name", "{index:02} {ref} of {model}")
    assert (await run_ending(command, service, set(), "--out", "other", *name))[0] == 0
    assert {"00 r0 of sandbox_echo.mp4", "01 r1 of sandbox_echo.mp4"} <= files_in(tmp_path / "other")
    assert service.counts["file"] == fetched + 2
    assert (await run_ending(command, service, set(), "--name", "{task_id}"))[0] == 0
    assert service.counts["file"] == fetched + 2


async def test_a_name_that_cannot_be_is_refused_before_anything_else(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 1)
    code, _, err = await command(service, "batch", "jobs.csv", "--name", "{order}")
    assert code == 2
    assert "--name" in err
    assert "{ref}, {task_id}, {index}, {model}" in " ".join(err.replace("│", " ").split())
    assert not service.counts


# --- nothing sent ----------------------------------------------------------------------------------


async def test_whatever_is_wrong_with_the_file_is_told_before_a_key_is_asked_for(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "jobs.csv").write_text(
        f"ref,model,image_url,audio_url,prompt\na,{AVATAR},face.png,ftp://x/y,\na,{AVATAR}\n,,,,x\n"
    )
    problems = (
        "line 2, column image_url: cannot read face.png: No such file or directory\n"
        "line 2, column audio_url: must be an absolute http(s) URL, got 'ftp://x/y'\n"
        "line 3, column image_url: the line ends too early: the header has 5 cells, this 2\n"
        "line 4, column ref: missing\n"
        "line 4, column model: missing\n"
        "error: jobs.csv: 5 problems; nothing was sent\n"
    )
    assert await command(service, "batch", "jobs.csv") == (2, "", problems)
    assert await command(None, "batch", "jobs.csv") == (2, "", problems)
    assert not service.counts
    assert files_in(tmp_path) == {"jobs.csv"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("batch",), "Missing argument"),
        (("batch", "nowhere.csv"), "cannot read nowhere.csv: No such file or directory"),
        (("batch", "jobs.txt"), "ends in .csv or .jsonl"),
        (("batch", "."), ". is a folder"),
        (("batch", ".."), ".. is a folder"),
        (("batch", "/"), "/ is a folder"),
        (("batch", "empty.jsonl"), "empty.jsonl holds no job"),
        (("batch", "jobs.csv", "--port", "8080"), "goes with --callback-url"),
        (("batch", "jobs.csv", "--budget-credits", "0"), "must be above zero"),
        (("batch", "jobs.csv", "--max-in-flight", "0"), "--max-in-flight"),
        (("batch", "jobs.csv", "--grace", "-1"), "--grace"),
        (("batch", "jobs.csv", "--callback-url", "nowhere"), "callback_url must be"),
        (("batch", "jobs.csv", "--results", "../{}/jobs.csv"), "three files"),
        (("batch", "jobs.csv", "--results", "jobs.csv.db"), "three files"),
        (("batch", "jobs.csv", "--results", "."), "is a folder"),
        (("batch", "jobs.csv", "--out", "taken"), "cannot make the folder taken"),
        (("batch", "jobs.csv", "--only", "r0", "--only", "r9"), "no job has the ref r9"),
        (("batch", "jobs.csv", "--limit", "0"), "--limit"),
        (("batch", "jobs.csv", "--journal", "taken"), "taken"),
        (("journal", "show"), "Missing argument"),
        (("journal", "show", "nowhere.db"), "there is no journal nowhere.db"),
        (("journal", "show", "taken"), "taken"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_what_is_asked_wrongly_sends_nothing(
    command: Command, service: Sandbox, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    write_jobs(tmp_path, 1)
    (tmp_path / "taken").write_text("a file, and no journal")
    (tmp_path / "empty.jsonl").touch()
    code, out, err = await command(service, *(each.format(tmp_path.name) for each in arguments))
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not service.counts


async def test_without_a_key_a_good_file_says_what_to_do(command: Command, tmp_path: Path) -> None:
    write_jobs(tmp_path, 1)
    code, out, err = await command(None, "batch", "jobs.csv")
    assert (code, out) == (2, "")
    assert err == "error: no API key: set KIE_API_KEY to a key from https://kie.ai/api-key\n"
    assert not (tmp_path / "jobs.csv.db").exists()


async def test_a_port_that_is_taken_is_said(command: Command, service: Sandbox, tmp_path: Path) -> None:
    write_jobs(tmp_path, 1)
    options = with_callbacks()
    with socket.socket() as taken:
        taken.bind(("", int(options[1])))
        taken.listen()
        code, _, err = await command(service, "batch", "jobs.csv", *options)
    assert code == 2
    assert err.startswith(f"error: cannot listen on port {options[1]}: ")
    assert not service.counts


# --- not all good ----------------------------------------------------------------------------------


async def test_one_that_fails_and_one_unknown_are_told_and_the_rest_is_done(
    command: Command, patient: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "jobs.csv").write_text(
        "ref,model,prompt\nlost,sandbox/echo,0\nrefused,no/model,1\nfails,sandbox/echo,2\ngood,sandbox/echo,3\n"
    )
    patient.faults.lose_answers_next = 1
    running = asyncio.create_task(command(patient, "batch", "jobs.csv", *with_callbacks()))
    await until(lambda: {"2", "3"} <= prompts_at(patient).keys())
    by_prompt = {task.input["prompt"]: task.task_id for task in patient.tasks.values()}
    patient.finish(by_prompt["2"], "fail", fail_msg=f"too dark, said {KEY}")
    patient.finish(by_prompt["3"])
    code, out, err = await running
    assert code == 1
    assert out.startswith(
        "4 jobs: 1 done; 1 failed; 1 refused; 1 perhaps paid\n"
        "this run 1 credit (0.005 USD); all runs 1 credit (0.005 USD)\n"
        "1 perhaps paid: no answer proved what a create became (the server closed the connection)\n"
    )
    *said, again = err.splitlines()
    assert again.startswith(
        "2 jobs failed or refused; this makes them again and costs again: kie-async batch "
    )
    lines = dict(line.split(", ", 1)[1].split(": ", 1) for line in said)
    assert lines["ref lost"].startswith("perhaps paid: money may have been spent: ")
    assert "kie-async journal resolve jobs.csv.db lost TASK_ID (or write-off, or resubmit)" in err
    assert lines["ref refused"].startswith(
        "refused: code 422: The model name you specified is not supported."
    )
    assert lines["ref fails"] == f"failed: task {by_prompt['2']} failed: too dark, said *** (500)"
    found = {line["ref"]: line for line in results_in(tmp_path / "jobs-results" / "results.jsonl")}
    assert [found[ref]["outcome"] for ref in ("lost", "refused", "fails", "good")] == [
        "perhaps paid",
        "refused",
        "failed",
        "done",
    ]
    assert found["fails"]["task_id"] == by_prompt["2"]
    assert KEY not in json.dumps(found)

    files = (tmp_path / "jobs-results").glob("results.*")
    commands = ("journal show jobs.csv.db", "journal show jobs.csv.db --json", "top jobs.csv.db")
    printed = [(await command(None, *each.split()))[1] for each in commands]
    shown = [out, err, *printed, *(file.read_text("utf-8-sig") for file in files)]
    assert not FORMER_WORDS.findall("\n".join(shown))

    _, out, _ = await command(patient, "batch", "jobs.csv", "--only", "good")
    assert out.startswith(
        "4 jobs: 1 done; 1 failed; 1 refused; 1 perhaps paid\n"
        "this run 0 credits (0.00 USD); all runs 1 credit (0.005 USD)\n"
        "1 perhaps paid: no answer proved what a create became (the server closed the connection)\n"
    )

    code, out, _ = await command(patient, "batch", "jobs.csv")  # no callbacks: nobody to wait for
    assert code == 1
    assert prompts_at(patient) == Counter(
        ["0", "2", "3"]
    )  # what was refused is asked again, nothing paid twice


@pytest.mark.parametrize(
    ("options", "balance", "words"),
    [
        (
            ("--budget-credits", "2"),
            100.0,
            "error: the budget of 2 credits is spent; nothing was sent (2 settled, 0 held for what is not)",
        ),
        ((), 2.0, "error: code 402: Insufficient credits"),
    ],
    ids=["budget", "402"],
)
async def test_when_no_more_can_be_sent_the_rest_waits_for_another_run(
    options: tuple[str, ...],
    balance: float,
    words: str,
    command: Command,
    service: Sandbox,
    tmp_path: Path,
) -> None:
    write_jobs(tmp_path, 8)
    service.balance = balance
    one_by_one = ("--max-in-flight", "1", *with_callbacks())
    code, out, err = await command(service, "batch", "jobs.csv", *options, *one_by_one)
    assert code == 1
    assert f"{words}\n" in err
    assert err.endswith("run the same command again to go on; nothing is paid twice\n")
    assert len(service.tasks) == 2
    assert out.startswith("8 jobs: 2 done; 6 not sent\n")
    assert outcomes_in(tmp_path / "jobs-results" / "results.jsonl")["not sent"] == 6
    table = (tmp_path / "jobs-results" / "results.csv").read_text(encoding="utf-8-sig")
    assert Counter(row["state"] for row in csv.DictReader(table.splitlines())) == {"done": 2, "not sent": 6}
    assert "refused" not in (await command(None, "top", "jobs.csv.db"))[1]

    service.balance = 100.0
    code, out, _ = await command(service, "batch", "jobs.csv", *with_callbacks())
    assert code == 0
    assert set(prompts_at(service).values()) == {1}
    assert len(service.tasks) == 8


async def test_a_download_that_failed_is_made_up_for_by_another_run(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 1)
    gone = "http://127.0.0.1:9/gone.mp4"
    (tmp_path / "jobs.jsonl").write_text(
        json.dumps({"ref": "a", "model": "sandbox/echo", "result_urls": [gone]})
    )
    code, out, err = await command(service, "batch", "jobs.jsonl", *with_callbacks())
    assert code == 1
    assert out.startswith("1 job: 1 done, not saved\n")
    assert "line 1, ref a: done, not saved: " in err
    assert "; run again to fetch it\n" in err
    assert err.endswith("run the same command again to go on; nothing is paid twice\n")
    (line,) = results_in(tmp_path / "jobs-results" / "results.jsonl")
    assert (line["outcome"], line["urls"], line["files"]) == ("done, not saved", [gone], [])
    assert line["task_id"] in service.tasks


async def test_results_that_cannot_be_written_end_nothing_that_is_paid(
    command: Command, service: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = itertools.count()

    def refuse(*_: object) -> None:
        if next(tries):  # the first is before anything is sent
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_file, "replace_file", refuse)
    write_jobs(tmp_path, 2)
    code, out, err = await command(service, "batch", "jobs.csv", *with_callbacks())
    assert code == 1
    assert out.startswith("2 jobs: 2 done\n")
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in err.splitlines()] == [
        "cannot write jobs-results/results.jsonl now: No space left on device",
        "error: cannot write jobs-results/results.jsonl: No space left on device",
    ]


# --- at the end, and beside it -----------------------------------------------------------------------


async def test_a_command_gets_the_sums_at_the_end(command: Command, service: Sandbox, tmp_path: Path) -> None:
    write_jobs(tmp_path, 3)
    tell = """printf '%s\n' "$KIE_BATCH_STATUS" "$KIE_BATCH_JOBS" "$KIE_BATCH_DONE" "$KIE_BATCH_FAILED" """
    tell += """"$KIE_BATCH_CREDITS" "$KIE_BATCH_REPORT" "$KIE_BATCH_SUMMARY" > told; exit 3"""
    code, out, err = await run_ending(command, service, {"1"}, "--on-done", tell)
    assert code == 1
    page = tmp_path / "jobs-results" / "report.html"
    assert (tmp_path / "told").read_text().splitlines() == [
        *("1", "3", "2", "1", "2"),
        str(page),
        *out.splitlines()[:2],
    ]
    assert "--on-done ended with 3: printf" in err


async def test_a_log_file_has_all_with_times_and_quiet_shows_the_end_alone(
    service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 2)
    options = ("--quiet", "--log-file", "night.log", *with_callbacks())
    code, out, err = await (await start(service, tmp_path, "batch", "jobs.csv", *options)).end()
    assert (code, err) == (0, "")
    assert out.startswith("2 jobs: 2 done\n")
    log = (tmp_path / "night.log").read_text().splitlines()
    assert log
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ kie_async\b", line) for line in log)


def test_two_jobs_files_share_nothing_and_an_old_folder_is_used_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = Path("one.csv"), Path("two.csv")
    assert (default_journal(one), default_folder(one)) == (Path("one.csv.db"), Path("one-results"))
    assert (default_journal(two), default_folder(two)) == (Path("two.csv.db"), Path("two-results"))
    Path("kie-batch").mkdir()
    Path("kie-batch/results.jsonl").touch()
    default_journal(one).touch()
    assert (default_folder(one), default_folder(two)) == (Path("kie-batch"), Path("two-results"))


# --- interrupts ------------------------------------------------------------------------------------


async def test_interrupted_once_it_waits_for_what_is_paid_and_goes_on_when_run_again(
    patient: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 30)  # ten more than the limit lets through at once
    path = tmp_path / "jobs-results" / "results.jsonl"
    running = await start(patient, tmp_path, "batch", "jobs.csv", *with_callbacks())
    await until(lambda: len(patient.tasks) == 20)
    await asyncio.sleep(0.5)  # the last answer has left the service: let it be noted
    running.interrupt()
    await running.said("interrupted: nothing more is sent; waiting for what is paid, 60 s at most")
    finish(patient, range(30))
    code, out, err = await running.end()
    assert code == 130
    assert out.startswith(
        "30 jobs: 20 done; 10 not sent\nthis run 20 credits (0.10 USD); all runs 20 credits"
    )
    assert "run the same command again" in err
    assert len(patient.tasks) == 20  # nothing was created after the interrupt
    assert outcomes_in(path) == {"done": 20, "not sent": 10}
    assert "stop() was called" not in path.read_text()

    again = await start(patient, tmp_path, "batch", "jobs.csv", *with_callbacks())
    code, out, err = await see_through(patient, again.end())
    assert (code, err) == (0, "")
    assert set(prompts_at(patient).values()) == {1}
    assert outcomes_in(path) == {"done": 30}


@pytest.mark.parametrize("how", ["twice", "grace", "killed"])
async def test_however_it_ends_another_run_completes_it_and_pays_nothing_twice(
    how: str, patient: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 6)
    path = tmp_path / "jobs-results" / "results.jsonl"
    grace = "0.2" if how == "grace" else "60"
    arguments = ("batch", "jobs.csv", "--grace", grace, "--max-in-flight", "4", *with_callbacks())
    running = await start(patient, tmp_path, *arguments)
    await until(lambda: len(patient.tasks) == 4)
    finish(patient, [0])
    await until(lambda: len(patient.tasks) == 5 and patient.counts["file"])
    await asyncio.sleep(0.5)  # the answer and the file have left the service: let them be noted
    if how == "killed":
        running.interrupt(signal.SIGKILL)
        await running.end()
    else:
        running.interrupt(signal.SIGTERM if how == "grace" else signal.SIGINT)
        await running.said("interrupted: ")
        if how == "twice":
            running.interrupt()
        code, out, err = await running.end()
        assert code == 130
        assert out.startswith("6 jobs: 1 done; 4 running; 1 not sent\nthis run 1 credit ")
        assert err == "run the same command again to go on; nothing is paid twice\n"
        assert outcomes_in(path) == {"done": 1, "running": 4, "not sent": 1}
        assert {line["task_id"] for line in results_in(path)} == {*patient.tasks, ""}

    again = await start(patient, tmp_path, *arguments)
    code, out, err = await see_through(patient, again.end())
    assert (code, err) == (0, "")
    assert prompts_at(patient) == Counter(str(number) for number in range(6))
    assert outcomes_in(path) == {"done": 6}


async def test_a_create_that_was_left_without_an_answer_is_perhaps_paid(tmp_path: Path) -> None:
    write_jobs(tmp_path, 2)
    async with Sandbox(api_key=KEY, durations=Never()) as service:
        service.faults.create_answer_gate = asyncio.Event()
        running = await start(service, tmp_path, "batch", "jobs.csv", "--max-in-flight", "1")
        await until(lambda: service.tasks)
        running.interrupt()
        await running.said("interrupted: ")
        running.interrupt()
        await asyncio.sleep(0.2)
    code, out, _ = await running.end()
    assert code == 130
    assert out.startswith(
        "2 jobs: 1 perhaps paid; 1 not sent\n"
        "this run 0 credits (0.00 USD); all runs 0 credits (0.00 USD)\n"
        "1 perhaps paid: no answer proved what a create became\n"
    )
    assert outcomes_in(tmp_path / "jobs-results" / "results.jsonl") == {"perhaps paid": 1, "not sent": 1}


# --- what is tried first, and what stops a batch -------------------------------------------------------


async def test_a_wrong_key_is_found_before_anything_is_uploaded_or_created(
    command: Command, tmp_path: Path
) -> None:
    write_media(tmp_path)
    (tmp_path / "jobs.csv").write_text(f"ref,model,image_url,audio_url\na,{AVATAR},face.png,voice.wav\n")
    async with Sandbox(api_key="another-key", durations=Fixed(0.05)) as service:
        code, _, err = await command(service, "batch", "jobs.csv")
    assert code == 1
    assert "check KIE_API_KEY" in err
    assert service.counts["credit"] == service.counts.total() - service.counts["credit.401"] == 1
    assert results_in(tmp_path / "jobs-results" / "results.jsonl")[0]["outcome"] == "not sent"


async def test_a_batch_that_was_rehearsed_is_not_taken_for_done(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 3)
    assert (await command(service, "batch", "jobs.csv"))[0] == 0
    code, out, err = await command(SimpleNamespace(url="https://api.kie.ai"), "batch", "jobs.csv")
    assert (code, out) == (2, "")
    assert err == (
        f"error: journal {tmp_path}/jobs.csv.db belongs to {service.url}, this session speaks to "
        "https://api.kie.ai; use another journal\n"
    )


@pytest.mark.parametrize("is_in_environment", [False, True])
async def test_a_rotated_key_goes_on_with_a_batch_under_the_name_of_its_account(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_environment: bool
) -> None:
    write_jobs(tmp_path, 3)
    async with Sandbox(api_key=None, durations=Fixed(0.05)) as service:
        assert (await command(service, "batch", "jobs.csv", "--limit", "1"))[0] == 0
        monkeypatch.setattr(sys.modules[__name__], "KEY", "kie-key-rotated")
        code, _, err = await command(service, "batch", "jobs.csv")
        assert code == 2
        assert "--account NAME" in err
        if is_in_environment:
            monkeypatch.setenv("KIE_ACCOUNT", "work")
        named = () if is_in_environment else ("--account", "work")
        assert (await command(service, "batch", "jobs.csv", *named))[0] == 0
    assert service.counts["create.bodies"] == 3


async def test_a_results_file_that_cannot_be_written_ends_a_batch_before_it_sends(
    command: Command, service: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 3)
    code, _, err = await command(service, "batch", "jobs.csv", "--results", "x" * 300)
    assert code == 1
    assert "error: cannot write xxx" in err
    assert not service.counts


@pytest.mark.parametrize(("options", "failed"), [((), 8), (("3",), 3), (("0",), 8)])
async def test_a_model_that_only_fails_stops_a_batch(
    command: Command, service: Sandbox, tmp_path: Path, options: tuple[str, ...], failed: int
) -> None:
    service.faults.fail_rate, service.faults.fail_msg = 1.0, "out of memory"
    write_jobs(tmp_path, 8)
    given = [*with_callbacks(), *(f"--max-failures-in-a-row={number}" for number in options)]
    code, out, err = await command(service, "batch", "jobs.csv", "--max-in-flight", "1", *given)
    assert code == 1
    assert len(service.tasks) == failed
    not_sent = f"; {8 - failed} not sent" if failed < 8 else ""
    assert out.startswith(
        f"8 jobs: {failed} failed{not_sent}\nthis run 0 credits (0.00 USD); all runs 0 credits"
    )
    assert f"\n{failed} failed: out of memory (500)\n" in out
    words = f"error: {failed} tasks of sandbox/echo failed in a row without a success, the last: task "
    assert (words in err) == (failed < 8)
    assert err.count("out of memory (500)") == failed + (failed < 8)


# --- journal show ----------------------------------------------------------------------------------


async def test_the_journal_shows_every_intent(command: Command, patient: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "ref,model,prompt\ndone,sandbox/echo,0\nrefused,no/model,1\nlost,sandbox/echo,2\n"
    )
    running = asyncio.create_task(
        command(patient, "batch", "jobs.csv", "--max-in-flight", "1", *with_callbacks())
    )
    await until(lambda: patient.tasks)
    (task_id,) = patient.tasks
    patient.faults.lose_answers_next = 1
    patient.finish(task_id)
    await running

    code, out, err = await command(None, "journal", "show", "jobs.csv.db")
    assert (code, err) == (0, "")
    done, refused, lost, total, spent = (line.split() for line in out.splitlines())
    assert done[:4] == ["done", "done", task_id, "1"]
    assert refused[:4] == ["refused", "refused", "-", "-"]
    assert lost[:5] == ["perhaps", "paid", "lost", "-", "-"]
    assert " ".join(total) == "3 jobs: 1 done; 1 refused; 1 perhaps paid"
    assert " ".join(spent) == "1 credit (0.005 USD)"

    code, out, err = await command(None, "journal", "show", "jobs.csv.db", "--json")
    facts = [json.loads(line) for line in out.splitlines()]
    assert [(fact["state"], fact["ref"], fact["task_id"]) for fact in facts] == [
        ("done", "done", task_id),
        ("refused", "refused", ""),
        ("perhaps paid", "lost", ""),
    ]
    assert facts[0]["credits"] == 1
    assert facts[1]["code"] == 422
    assert len({fact["intent"] for fact in facts}) == 3


async def test_a_journal_in_use_is_shown_and_not_shared(
    command: Command, patient: Sandbox, tmp_path: Path
) -> None:
    write_jobs(tmp_path, 1)
    running = await start(patient, tmp_path, "batch", "jobs.csv", *with_callbacks())
    path = tmp_path / "jobs-results" / "results.jsonl"
    await until(lambda: path.exists() and outcomes_in(path) == {"running": 1})
    code, out, err = await command(None, "journal", "show", "jobs.csv.db")
    assert (code, err) == (0, "")
    assert out.startswith("running")
    code, out, err = await command(patient, "batch", "jobs.csv")
    assert (code, out) == (2, "")
    assert "is open in another session or process: pid " in err
    assert outcomes_in(path) == {"running": 1}  # still the first one's
    finish(patient, [0])
    assert (await running.end())[0] == 0
    assert len(patient.tasks) == 1
