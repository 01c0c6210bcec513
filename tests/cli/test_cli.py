"""The command line against a sandbox: real processes where signals and streams matter, else in here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.ports import free_port
from support.processes import nothing_left_running, start  # noqa: F401  (a fixture)

from kie_async import cli
from kie_async.cli import runtime
from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.sandbox import Fixed, Never, Sandbox

KEY = "kie-key-0123456789"
pytestmark = pytest.mark.usefixtures("nothing_left_running")


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """Run the command line in here, where it starts faster; in a folder of its own, without a key."""
    monkeypatch.chdir(tmp_path)
    for name in ("KIE_API_KEY", "KIE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        shown = capsys.readouterr()
        return left.value.code or 0, shown.out, shown.err  # type: ignore[return-value]

    set_before = dict(os.environ)
    yield run
    os.environ.clear()  # a command may have read a file of variables
    os.environ.update(set_before)


@pytest.fixture
def media(tmp_path: Path) -> list[str]:
    (tmp_path / "face.png").write_bytes(read_portrait())
    (tmp_path / "voice.wav").write_bytes(read_voice())
    return ["--image", str(tmp_path / "face.png"), "--audio", str(tmp_path / "voice.wav")]


@pytest.fixture
async def kie() -> AsyncIterator[Sandbox]:
    async with Sandbox(api_key=KEY, durations=Fixed(0.05)) as kie:
        yield kie


def service(kie: Sandbox) -> dict[str, str]:
    return {"KIE_API_KEY": KEY, "KIE_BASE_URL": kie.url}


def call_in_thread(call: Call, *arguments: str, **environment: str) -> Any:
    """Run a command while this loop goes on serving the sandbox."""
    return asyncio.to_thread(call, *arguments, **environment)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not holds():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.01)


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n")


async def test_a_presigned_url_is_warned_of_on_the_command_line(kie: Sandbox, tmp_path: Path) -> None:
    fields = json.dumps({"audio_url": "https://b.example/v.mp3?X-Amz-Signature=canary"})
    arguments = ("run", "sandbox/echo", "--input", fields, "--out", str(tmp_path))
    code, _, err = await (await start(*arguments, **service(kie))).end()
    assert code == 0
    assert "audio_url is a URL with a query" in err
    assert "canary" not in err


# --- asking ----------------------------------------------------------------------------------------


def test_help_and_version(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for command in ("demo", "run", "status", "credits", "sandbox"):
        assert re.search(rf"^  {command} ", out, re.MULTILINE)
    assert call("--version")[1].startswith("kie_async ")
    assert call("run", "--help")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [("credits",), ("status", "abc"), ("status", "abc", "--wait"), ("run", "m", "--input", "{}")],
    ids=" ".join,
)
def test_without_a_key_one_line_says_what_to_do(call: Call, arguments: tuple[str, ...]) -> None:
    code, out, err = call(*arguments, KIE_API_KEY="  ")
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert "set KIE_API_KEY" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--image is missing"),
        (("--image", "face.png"), "--audio is missing"),
        (("--image", "nowhere.png", "--audio", "https://x.example/v.mp3"), "image_url: cannot read"),
        (("--image", "ftp://x.example/a", "--audio", "v.wav"), "image_url must be an absolute http"),
        (("--model", "kling/nine", "--image", "a.png", "--audio", "v.wav"), "model must be one of"),
        (("one/model", "--model", "two/model", "--input", "{}"), "two models"),
        (("--input", "{}"), "a model is missing"),
        (("a/b", "--input", "{"), "not JSON"),
        (("a/b", "--input", "[1]"), "JSON object"),
        (("a/b", "--input", "@nowhere.json"), "cannot read nowhere.json: No such file"),
        (("a/b", "--input", "{}", "--prompt", "x"), "either --input"),
        (("foo/bar",), """foo/bar takes its fields by --input '{"prompt": ...}' or -f prompt=..."""),
        (("a/b", "-f", "prompt"), "-f must look like NAME=TEXT, got 'prompt'"),
        (("a/b", "-f", "=x"), "-f must look like NAME=TEXT"),
        (("a/b", "-f", "n:json=1,"), "n:json is not JSON"),
        (("a/b", "-f", "prompt=x", "-f", "prompt=y"), "the field prompt is given twice"),
        (("a/b", "--input", '{"prompt": 1}', "-f", "prompt=y"), "the field prompt is given twice"),
        (("not a model", "--input", "{}"), "model must look like"),
        (("a/b", "--input", "{}", "--timeout", "0"), "timeout_s must be"),
        (("a/b", "--input", "{}", "--out", "taken"), "cannot make the folder taken"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)
async def test_a_wrong_request_is_one_line_and_sends_nothing(
    call: Call, kie: Sandbox, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    code, out, err = await call_in_thread(call, "run", *arguments, **service(kie))
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert words in err
    assert not kie.counts


@pytest.mark.parametrize(
    "bad", [{"KIE_API_KEY": "a key with blanks"}, {"KIE_BASE_URL": "http://far.example"}]
)
def test_a_wrong_environment_is_one_line(call: Call, bad: dict[str, str]) -> None:
    code, out, err = call("credits", **{"KIE_API_KEY": KEY, **bad})
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert KEY not in err
    assert "a key with blanks" not in err


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("typer", ("--help",), "pip install 'kie_async[cli]'"),
        ("rich", ("demo",), "pip install 'kie_async[cli]'"),
        ("av", ("demo",), "pip install 'kie_async[sandbox]'"),
    ],
)
def test_without_an_extra_one_line_says_what_to_install(
    tmp_path: Path, missing: str, arguments: tuple[str, ...], words: str
) -> None:
    block = f"import sys; sys.modules[{missing!r}] = None; from kie_async.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", block, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert is_one_line(ended.stderr)
    assert words in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_sandbox_that_renders_needs_the_extra_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    code, out, err = call("sandbox", "--render")
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert "pip install 'kie_async[sandbox]'" in err


def test_a_demo_with_a_portrait_that_is_not_there_is_one_line(call: Call) -> None:
    pytest.importorskip("av")
    code, _, err = call("demo", "--image", "missing.png")
    assert code == 2
    assert is_one_line(err)
    assert "missing.png" in err


# --- run -------------------------------------------------------------------------------------------


async def test_run_shows_the_id_at_once_and_then_what_became_of_it(tmp_path: Path, media: list[str]) -> None:
    """Side by side, since each waits two seconds for its first poll."""
    (tmp_path / "input.json").write_text('{"result_object": {"words": "späße 你好"}}', encoding="utf-8")
    out = tmp_path / "new" / "deep"
    async with Sandbox(api_key=KEY, durations=Never()) as kie:
        runs = [
            await start("run", *arguments, "--out", str(out), **service(kie))
            for arguments in (
                media,
                ("--model", "sandbox/echo", "--input", f"@{tmp_path / 'input.json'}"),
                (*media, "--prompt", "a smile", "--json"),
                ("z-image", "--input", '{"prompt": "x", "aspect_ratio": "1:1"}', "--json"),
            )
        ]
        for run in runs[:2]:
            name, task_id = (await run.line()).split()
            assert (name, kie.tasks[task_id].state) == ("task", "waiting")
        await until(lambda: len(kie.tasks) == 4)
        for task in kie.tasks.values():
            kie.finish(task.task_id, "fail" if task.model == "z-image" else "success", fail_msg="too dark")
        film, words, smile, failed = await asyncio.gather(*(run.end() for run in runs))

    assert (film[0], film[2]) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in film[1].splitlines())
    assert rows["expected"] == "about 5 min"
    assert rows.keys() == {"expected", "model", "state", "credits", "took", "url", "file"}
    assert (rows["state"], rows["credits"]) == ("done", "16")
    assert re.fullmatch(r"\d+(\.\d+)? s", rows["took"])
    assert rows["file"] in {str(file) for file in out.iterdir()}

    assert (words[0], words[2]) == (0, "")
    assert 'result   {"words": "späße 你好"}\n' in words[1]

    facts = json.loads(smile[1])
    assert is_one_line(smile[1])
    assert (smile[0], smile[2]) == (0, f"task {facts['task_id']}\n")
    assert (facts["state"], facts["credits"], len(facts["files"])) == ("done", 16, 1)
    assert kie.tasks[facts["task_id"]].input["prompt"] == "a smile"
    assert kie.tasks[facts["task_id"]].callback_url is None

    facts = json.loads(failed[1])
    assert (failed[0], facts["state"], facts["fail_message"]) == (1, "failed", "too dark")
    assert failed[2].endswith(f"error: task {facts['task_id']} failed: too dark (500)\n")


async def test_a_lost_answer_says_that_money_may_be_gone_and_sends_nothing_again(
    call: Call, kie: Sandbox
) -> None:
    kie.faults.lose_answers_next = 1
    code, out, err = await call_in_thread(call, "run", "sandbox/echo", "--input", "{}", **service(kie))
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert "money may have been spent" in err
    assert kie.counts["create.bodies"] == 1


async def test_too_long_a_wait_says_how_to_get_the_result_later(call: Call) -> None:
    async with Sandbox(api_key=KEY, durations=Never()) as kie:
        code, out, err = await call_in_thread(
            call, "run", "sandbox/echo", "--input", "{}", "--timeout", "0.3", **service(kie)
        )
    (task_id,) = kie.tasks
    assert code == 1
    assert out.split() == ["task", task_id]
    assert is_one_line(err)
    assert err.endswith(f"later: kie-async status {task_id} --wait\n")


async def test_the_key_is_never_shown_even_if_the_service_says_it(call: Call, kie: Sandbox) -> None:
    message = json.dumps({"code": 422, "msg": f"no such\nmodel for {KEY}"})
    kie.faults.create_answers_next = [(200, message.encode())]
    code, out, err = await call_in_thread(call, "--verbose", "run", "a/b", "--input", "{}", **service(kie))
    assert code == 1
    assert KEY not in out + err
    assert "error: code 422: no such model for ***\n" in err


# --- interrupts ------------------------------------------------------------------------------------


async def test_an_interrupted_wait_says_how_to_get_the_result_later() -> None:
    async with Sandbox(api_key=KEY, durations=Never()) as kie:
        running = await start("run", "sandbox/echo", "--input", "{}", **service(kie))
        task_id = (await running.line()).split()[1]
        running.interrupt()
        code, out, err = await running.end()
        assert (code, out) == (130, "")
        assert is_one_line(err)
        assert f"task {task_id} goes on" in err
        assert f"kie-async status {task_id} --wait" in err

        waiting = await start("status", task_id, "--wait", **service(kie))
        queries = kie.counts["query"]
        await until(lambda: kie.counts["query"] > queries)
        waiting.interrupt()
        code, _, err = await waiting.end()
        assert code == 130
        assert is_one_line(err)
        assert f"kie-async status {task_id} --wait" in err


async def test_an_interrupt_during_the_create_still_learns_the_id(kie: Sandbox) -> None:
    kie.faults.create_answer_gate = asyncio.Event()
    running = await start("run", "sandbox/echo", "--input", "{}", **service(kie))
    await until(lambda: bool(kie.tasks))
    running.interrupt()
    await asyncio.sleep(0.2)
    kie.faults.create_answer_gate.set()
    code, out, err = await running.end()
    (task_id,) = kie.tasks
    assert code == 130
    assert out.split() == ["task", task_id]
    assert f"kie-async status {task_id} --wait" in err
    assert "Traceback" not in err


async def test_a_second_interrupt_says_that_money_may_be_gone(kie: Sandbox) -> None:
    kie.faults.create_answer_gate = asyncio.Event()
    running = await start("run", "sandbox/echo", "--input", "{}", **service(kie))
    await until(lambda: bool(kie.tasks))
    running.interrupt()
    await asyncio.sleep(0.2)
    running.interrupt()
    code, _, err = await running.end()
    kie.faults.create_answer_gate.set()
    assert code == 130
    assert "money may have been spent" in err
    assert "Traceback" not in err


async def test_an_interrupt_before_the_create_says_that_nothing_was_created(kie: Sandbox) -> None:
    kie.faults.create_429_next = 1000
    running = await start("run", "sandbox/echo", "--input", "{}", **service(kie))
    await until(lambda: kie.counts["create.429"] > 0)
    running.interrupt()
    code, _, err = await running.end()
    assert code == 130
    assert err.endswith("interrupted: no task was created\n")


async def test_run_with_a_ref_in_a_journal_pays_once(call: Call, kie: Sandbox, tmp_path: Path) -> None:
    arguments = ("run", "sandbox/echo", "-f", "prompt=hello", "--ref", "order:7", "--journal", "run.db")
    first = await call_in_thread(call, *arguments, **service(kie))
    again = await call_in_thread(call, *arguments, **service(kie))
    assert first[0] == again[0] == 0
    assert first[1].splitlines()[0] == again[1].splitlines()[0]
    assert kie.counts["create.bodies"] == 1
    code, _, err = await call_in_thread(call, *arguments[:-2], **service(kie))
    assert code == 2
    assert "goes with --journal only" in err


async def test_a_ref_of_other_content_is_told_in_the_words_of_a_row(
    call: Call, kie: Sandbox, tmp_path: Path
) -> None:
    arguments = ("run", "sandbox/echo", "--ref", "x", "--journal", str(tmp_path / "run.db"))
    assert (await call_in_thread(call, *arguments, "-f", "prompt=a", **service(kie)))[0] == 0
    code, out, err = await call_in_thread(call, *arguments, "-f", "prompt=b", **service(kie))
    assert (code, out) == (2, "")
    assert err == (
        "error: row 'x' was made before from other content (its prompt changed); "
        "a new ref makes and pays it again\n"
    )
    assert kie.counts["create.bodies"] == 1


async def test_run_reads_fields_one_by_one(call: Call, kie: Sandbox) -> None:
    fields = ("-f", "prompt=a = b", "-f", "seconds:json=5", "--field", "empty=")
    assert (await call_in_thread(call, "run", "sandbox/echo", *fields, **service(kie)))[0] == 0
    (task,) = kie.tasks.values()
    assert task.input == {"prompt": "a = b", "seconds": 5, "empty": ""}


@pytest.mark.parametrize("form", ["{}", ' "{}"\n', "'{}'\r"])
async def test_run_gets_callbacks_at_a_port_of_its_own(call: Call, tmp_path: Path, form: str) -> None:
    port = free_port()
    async with Sandbox(api_key=KEY, durations=Fixed(0.1), hmac_key="signs") as kie:
        code, _, err = await call_in_thread(
            call,
            *("-v", "run", "sandbox/echo", "-f", "prompt=x", "--port", str(port)),
            **service(kie),
            KIE_CALLBACK_URL=form.format(f"http://127.0.0.1:{port}/kie"),
            KIE_WEBHOOK_HMAC_KEY=form.format("signs"),
        )
        (task,) = kie.tasks.values()
    assert code == 0, err
    assert (task.callback_url or "").startswith(f"http://127.0.0.1:{port}/kie/")
    assert kie.counts["query"] == 0  # the signed callback was all it took


async def test_an_interrupt_names_the_command_that_fetches_the_video(tmp_path: Path) -> None:
    async with Sandbox(api_key=KEY, durations=Never()) as kie:
        running = await start(
            "run", "sandbox/echo", "-f", "prompt=x", "--out", f"{tmp_path}/my films", **service(kie)
        )
        task_id = (await running.line()).split()[1]
        running.interrupt()
        code, _, err = await running.end()
    assert code == 130
    assert err.endswith(f"later: kie-async status {task_id} --wait --out '{tmp_path}/my films'\n")


# --- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "KIE_API_KEY={key}\nKIE_BASE_URL={url}\n",
        "\ufeff# mine\r\nexport KIE_API_KEY='{key}'\r\n\r\nKIE_BASE_URL = \"{url}\"  # here\r\n",
        "KIE_API_KEY={key} # a remark\nKIE_BASE_URL={url}",
    ],
)
async def test_variables_can_come_from_a_file(call: Call, kie: Sandbox, tmp_path: Path, text: str) -> None:
    file = tmp_path / ".env"
    file.write_text(text.format(key=KEY, url=kie.url), encoding="utf-8")
    kie.balance = 12
    assert await call_in_thread(call, "--env-file", str(file), "credits") == (0, "12\n", "")


async def test_a_variable_that_is_set_counts_more_than_a_file(
    call: Call, kie: Sandbox, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text(f"KIE_API_KEY=another\nKIE_BASE_URL={kie.url}\n")
    kie.balance = 12
    assert await call_in_thread(call, "--env-file", str(file), "credits", KIE_API_KEY=KEY) == (0, "12\n", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"KIE_API_KEY secret-key", "line 1 is not NAME=value"), (b"\xff\xfe", "not UTF-8"), (None, "No such")],
)
def test_a_file_of_variables_that_cannot_be_read_is_named_and_not_shown(
    call: Call, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / ".env"
    if content is not None:
        file.write_bytes(content)
    code, _, err = call("--env-file", str(file), "credits")
    assert code == 2
    assert words in err
    assert "secret" not in err


def test_the_shell_can_complete_commands(call: Call) -> None:
    code, out, _ = call(_KIE_ASYNC_COMPLETE="complete_bash", COMP_WORDS="kie-async cre", COMP_CWORD="1")
    assert (code, out) == (0, "credits\n")


# --- status, credits, sandbox ----------------------------------------------------------------------


async def created(kie: Sandbox, call: Call, input: str = "{}") -> str:
    """Return the id of a task that somebody else created."""
    await call_in_thread(
        call, "run", "sandbox/echo", "--input", input, "--timeout", "0.01", "--json", **service(kie)
    )
    return list(kie.tasks)[-1]


async def test_status_reads_once_or_waits_and_downloads(call: Call, tmp_path: Path) -> None:
    async with Sandbox(api_key=KEY, durations=Never()) as kie:
        task_id = await created(kie, call)
        code, out, err = await call_in_thread(call, "status", task_id, **service(kie))
        assert (code, err) == (0, "")
        assert out.split()[:2] == ["task", task_id]
        assert "state    running" in out

        waiting = asyncio.ensure_future(
            call_in_thread(call, "status", task_id, "--wait", "--out", "got", "--json", **service(kie))
        )
        await asyncio.sleep(0.1)
        kie.finish(task_id)
        code, out, err = await waiting
        assert (code, err) == (0, "")
        assert [Path(file).parent.name for file in json.loads(out)["files"]] == ["got"]

        failed = await created(kie, call)
        kie.finish(failed, "fail", fail_msg="too dark")
        code, out, _ = await call_in_thread(call, "status", failed, **service(kie))
        assert code == 1
        assert "reason   500 too dark\n" in out

        gone = json.dumps({"result_urls": [f"{kie.url}/files/results/none.png"]})
        expired = await created(kie, call, gone)
        kie.finish(expired)
        code, out, err = await call_in_thread(call, "status", expired, "--out", "got", **service(kie))
        assert code == 1
        assert "state    done" in out
        assert is_one_line(err)
        assert "no longer has the file" in err


@pytest.mark.parametrize("options", [(), ("--wait",)], ids=" ".join)
async def test_status_of_an_unknown_id_is_one_line_at_once(
    call: Call, kie: Sandbox, options: tuple[str, ...]
) -> None:
    code, out, err = await call_in_thread(call, "status", "nobody", *options, **service(kie))
    assert (code, out) == (1, "")
    assert err == "error: the service knows no task nobody\n"


async def test_status_of_what_is_no_id_sends_nothing(call: Call, kie: Sandbox) -> None:
    code, _, err = await call_in_thread(call, "status", "no/id", **service(kie))
    assert code == 2
    assert is_one_line(err)


async def test_credits(call: Call, kie: Sandbox) -> None:
    kie.balance = 1234567.5
    assert await call_in_thread(call, "credits", **service(kie)) == (0, "1234567.5\n", "")
    kie.faults.revoke_key = True
    code, out, err = await call_in_thread(call, "credits", **service(kie))
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert err == "error: the key was refused (401); check KIE_API_KEY\n"


async def test_the_sandbox_serves_until_it_is_interrupted(call: Call) -> None:
    serving = await start("sandbox", "--port", "0", "--credits", "77", "--durations", "fixed:0.1")
    line = await serving.line()
    given = dict(word.split("=", 1) for word in line.split() if "=" in word)
    assert await call_in_thread(call, "credits", **given) == (0, "77\n", "")
    port = given["KIE_BASE_URL"].rpartition(":")[2]
    code, _, err = await (await start("sandbox", "--port", port)).end()
    assert code == 2
    assert err == f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    serving.interrupt()
    assert await serving.end() == (0, "", "")


@pytest.mark.parametrize("arguments", [("--durations", "soon"), ("--fail-rate", "2"), ("--port", "70000")])
def test_a_wrong_option_of_the_sandbox_is_refused(call: Call, arguments: tuple[str, ...]) -> None:
    code, _, err = call("sandbox", *arguments)
    assert code == 2
    assert arguments[0] in err


@pytest.mark.parametrize("name", ["uvloop", "asyncio"])
def test_commands_run_on_uvloop_where_it_is_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not
    loops = []

    async def work() -> int:
        loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        return 0

    with pytest.raises(typer.Exit):
        runtime.run_command(work())
    assert loops == [name]
