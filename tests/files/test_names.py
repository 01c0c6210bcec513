"""Names of files out of a template: safe on every file system, and never another task's."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async import InvalidRequest
from kie_async.files.names import candidates, check_template, fill, key_of, make_safe
from kie_async.files.saved_files import LIST_NAME, SavedFiles

TASK = "task_avatar_0123456789abcdef"
FIELDS = {"ref": "anna", "task_id": TASK, "index": 7, "model": "kling/v1-avatar-standard"}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{ref}", "anna"),
        ("{task_id}", TASK),
        ("{index}", "7"),
        ("{index:03}-{ref}", "007-anna"),
        ("{model} of {ref}", "kling_v1-avatar-standard of anna"),
        ("{{{ref}}}", "{anna}"),
        ("plain", "plain"),
        ("videos/{ref}", "videos_anna"),
    ],
)
def test_a_template_is_filled_with_what_is_known(template: str, name: str) -> None:
    check_template("name", template)
    assert fill(template, FIELDS) == name


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{order}", r"names {order}; there is {ref}, {task_id}, {index}, {model}"),
        ("{}", r"names {}"),
        ("{ref.__class__}", r"names {ref.__class__}"),
        ("{ref[0]}", r"names {ref\[0\]}"),
        ("{ref!r}", "only {index} takes a width"),
        ("{ref:>500}", "only {index} takes a width"),
        ("{index:999999999}", "only {index} takes a width"),
        ("{index:{ref}}", "only {index} takes a width"),
        ("{ref", "a brace that is meant is written twice"),
        (" ", "must be the name of a file"),
        ("", "must be the name of a file"),
        (7, "must be the name of a file"),
    ],
)
def test_what_is_no_template_is_refused_by_name(template: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^--name .*{words}"):
        check_template("--name", template)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("order 1001", "order 1001"),
        ("Żółć-日本", "Żółć-日本"),
        ("e\N{COMBINING ACUTE ACCENT}", "é"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a\\b:c*d?", "a_b_c_d_"),
        ("a\0b\nc", "a_b_c"),
        (".hidden", "hidden"),
        ("ends. .", "ends"),
        ("con", "_con"),
        ("COM1.old", "_COM1.old"),
        ("lpt9 ", "_lpt9"),
        ("console", "console"),
        ("...", ""),
        ("   ", ""),
        ("gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe", "gpj._exe"),
        ("half \ud800", "half _"),
        ("x" * 500, "x" * 120),
        ("日" * 100, "日" * 40),
    ],
)
def test_a_name_is_made_safe_and_stays_readable(given: str, name: str) -> None:
    assert make_safe(given) == name


@given(st.text(max_size=300))
def test_any_text_makes_a_name_that_a_folder_takes(text: str) -> None:
    name = make_safe(text)
    assert name == make_safe(name)
    assert os.path.basename(name) == name
    assert not name.startswith((".", " "))
    assert len(name.encode()) <= 121


@pytest.mark.parametrize(
    ("one", "other"), [("Anna.mp4", "anna.MP4"), ("é.mp4", "e\N{COMBINING ACUTE ACCENT}.mp4")]
)
def test_names_that_some_file_system_takes_for_one_have_one_key(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


def test_the_best_name_comes_first_and_there_is_always_another() -> None:
    assert [*islice(candidates("anna", TASK, 1, 1), 4)] == ["anna", "anna-89abcdef", TASK, f"{TASK}-2"]
    assert [*islice(candidates("anna", TASK, 2, 3), 3)] == ["anna-2", "anna-89abcdef-2", f"{TASK}-2"]
    assert next(candidates("", TASK, 1, 1)) == TASK


# --- the list of a folder ---------------------------------------------------------------------------


def claim(folder: Path, task_id: str, name: str = "anna.mp4", *, content: bytes = b"film") -> str:
    """Do as a download does, in a process of its own."""
    claimed = SavedFiles(folder).claim([name, f"{task_id}.mp4"], task_id, 1)
    (folder / claimed).write_bytes(content)
    return claimed


def test_a_task_has_its_name_again_and_another_task_another(tmp_path: Path) -> None:
    assert claim(tmp_path, "t1") == "anna.mp4"
    assert claim(tmp_path, "t2", "Anna.mp4") == "t2.mp4"
    assert claim(tmp_path, "t1") == "anna.mp4"
    assert claim(tmp_path, "t2") == "t2.mp4"
    saved = SavedFiles(tmp_path)
    assert saved.find("t1", 1) == tmp_path / "anna.mp4"
    assert saved.find("t1", 2) is None
    assert saved.by_task() == {"t1": [tmp_path / "anna.mp4"], "t2": [tmp_path / "t2.mp4"]}


def test_what_lies_there_and_is_on_no_list_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "anna.mp4").write_bytes(b"a film of the user's own")
    assert claim(tmp_path, "t1") == "t1.mp4"
    (tmp_path / LIST_NAME).unlink()
    assert claim(tmp_path, "t3", "t1.mp4") == "t3.mp4"


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "anna.mp4").symlink_to(tmp_path / "nowhere")
    assert claim(tmp_path, "t1") == "t1.mp4"


def test_of_two_processes_at_once_the_first_line_has_the_name(tmp_path: Path) -> None:
    here, there = SavedFiles(tmp_path), SavedFiles(tmp_path)
    assert here.find("t1", 1) is there.find("t2", 1) is None
    assert here.claim(["anna.mp4"], "t1", 1) == "anna.mp4"
    assert there.claim(["anna.mp4", "other.mp4"], "t2", 1) == "other.mp4"


def test_a_file_that_is_gone_is_not_found_and_its_name_stays_its_own(tmp_path: Path) -> None:
    claim(tmp_path, "t1")
    (tmp_path / "anna.mp4").unlink()
    assert SavedFiles(tmp_path).find("t1", 1) is None
    assert claim(tmp_path, "t2") == "t2.mp4"
    assert claim(tmp_path, "t1") == "anna.mp4"


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"name": "../../x", "task_id": "t9", "number": 1}',
        b'{"name": "..", "task_id": "t9", "number": 1}',
        b'{"name": 5, "task_id": "t9", "number": 1}',
        b'{"name": "x.mp4", "task_id": [], "number": 1}',
        b'{"name": "x.mp4", "task_id": "t9", "num',
    ],
)
def test_a_line_that_cannot_be_right_is_passed_over(line: bytes, tmp_path: Path) -> None:
    claim(tmp_path, "t1")
    with (tmp_path / LIST_NAME).open("ab") as file:
        file.write(line)
    assert claim(tmp_path, "t2") == "t2.mp4"
    assert claim(tmp_path, "t1") == "anna.mp4"
    assert set(SavedFiles(tmp_path).by_task()) == {"t1", "t2"}
