"""``kie-async batch`` on several hosts at once, each a process with a folder of its own, on one journal."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import processes
from support.postgres import OwnPostgres
from support.processes import Process, nothing_left_running  # noqa: F401  (a fixture)

from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.sandbox import Fixed, Sandbox

KEY = "kie-key-0123456789"
HOSTS = ("one", "two", "three")
ROWS = 12

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("nothing_left_running")]


@pytest.fixture
async def service() -> AsyncIterator[Sandbox]:
    async with Sandbox(api_key=KEY, durations=Fixed(0.5), create_limit=None) as service:
        yield service


def write_jobs(folder: Path) -> None:
    """Write jobs that share a portrait and a voice."""
    folder.mkdir()
    (folder / "face.png").write_bytes(read_portrait())
    (folder / "voice.wav").write_bytes(read_voice())
    rows = (f"r{number},kling/v1-avatar-standard,face.png,voice.wav,p{number}\n" for number in range(ROWS))
    (folder / "jobs.csv").write_text("".join(["ref,model,image_url,audio_url,prompt\n", *rows]))


async def start(service: Sandbox, folder: Path, dsn: str) -> Process:
    arguments = ("batch", "jobs.csv", "--journal", dsn)
    return await processes.start(*arguments, folder=folder, KIE_API_KEY=KEY, KIE_BASE_URL=service.url)


def results_in(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "jobs-results" / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def videos_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "jobs-results").glob("*.mp4")}


async def test_three_hosts_pay_upload_and_fetch_everything_once(
    service: Sandbox, postgres_dsn: str, tmp_path: Path
) -> None:
    folders = [tmp_path / host for host in HOSTS]
    for folder in folders:
        write_jobs(folder)
    hosts = [await start(service, folder, postgres_dsn) for folder in folders]
    ended = [await host.end() for host in hosts]

    assert [(code, out.splitlines()[0]) for code, out, _ in ended] == [(0, f"{ROWS} jobs: {ROWS} done")] * 3
    paid = Counter(task.input["prompt"] for task in service.tasks.values())
    assert paid == {f"p{number}": 1 for number in range(ROWS)}
    assert (service.counts["upload"], service.counts["file"]) == (2, ROWS)
    for folder in folders:
        lines = results_in(folder)
        assert {line["task_id"] for line in lines} == set(service.tasks)
        for line in lines:
            assert bool(line["files"]) != bool(line["saved_by"])
            assert not line["saved_by"].endswith(f"{folder}/jobs-results")
    assert sorted(name for folder in folders for name in videos_in(folder)) == sorted(
        f"r{number}.mp4" for number in range(ROWS)
    )


async def test_a_host_that_comes_later_sees_all_outcomes_and_fetches_nothing(
    service: Sandbox, postgres_dsn: str, tmp_path: Path
) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    for folder in (first, later):
        write_jobs(folder)
        code, out, _ = await (await start(service, folder, postgres_dsn)).end()
        assert (code, out.splitlines()[0]) == (0, f"{ROWS} jobs: {ROWS} done")
    assert (len(service.tasks), service.counts["file"], videos_in(later)) == (ROWS, ROWS, set())
    table = (later / "jobs-results" / "results.csv").read_text()
    assert table.count(f"saved by another host: {results_in(later)[0]['saved_by']}") == ROWS

    # Where the files are, they are fetched again if they are lost.
    (first / "jobs-results" / "r3.mp4").unlink()
    code, _, _ = await (await start(service, first, postgres_dsn)).end()
    assert (code, service.counts["file"]) == (0, ROWS + 1)
    assert "r3.mp4" in videos_in(first)


async def test_what_a_killed_host_had_begun_is_done_by_the_others(
    service: Sandbox, postgres_dsn: str, tmp_path: Path
) -> None:
    folders = [tmp_path / host for host in HOSTS]
    for folder in folders:
        write_jobs(folder)
    hosts = [await start(service, folder, postgres_dsn) for folder in folders]
    async with asyncio.timeout(processes.PATIENCE_S):
        while not service.tasks:  # noqa: ASYNC110  what is waited for happens in other processes
            await asyncio.sleep(0.01)
    hosts[0].interrupt(signal.SIGKILL)

    ended = [await host.end() for host in hosts[1:]]

    paid = Counter(task.input["prompt"] for task in service.tasks.values())
    assert max(paid.values()) == 1
    # What the dead one had on the wire is perhaps paid; everything else is done.
    unclear = {line["ref"] for line in results_in(folders[1]) if line["outcome"] != "done"}
    assert {line["ref"] for line in results_in(folders[2]) if line["outcome"] != "done"} == unclear
    assert len(paid) >= ROWS - len(unclear)
    assert [code for code, _, _ in ended] == [1 if unclear else 0] * 2


async def test_a_batch_waits_visibly_for_a_database_that_is_away_for_longer_than_a_lease(
    service: Sandbox, own_postgres: OwnPostgres, tmp_path: Path
) -> None:
    server = own_postgres()
    rows = "".join(f"r{number},sandbox/echo,{number}\n" for number in range(30))
    (tmp_path / "jobs.csv").write_text(f"ref,model,prompt\n{rows}")
    host = await start(service, tmp_path, server.dsn)
    async with asyncio.timeout(processes.PATIENCE_S):
        while not service.tasks:  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.01)
    await asyncio.to_thread(server.stop)

    await host.said("cannot be reached")
    await asyncio.sleep(11.0)  # a lease is 10 s: others would take it for dead
    before = len(service.tasks)
    await asyncio.sleep(1.0)
    assert len(service.tasks) == before < 30
    await asyncio.to_thread(server.start)

    code, out, err = await host.end()
    assert "the database is away for" in err
    assert "the journal can be written again" in err
    assert (code, out.splitlines()[0]) == (0, "30 jobs: 30 done")
    assert max(Counter(task.input["prompt"] for task in service.tasks.values()).values()) == 1
