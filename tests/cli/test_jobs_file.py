"""A jobs file is read whole and judged whole: what it means, and what is wrong with it, to the word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kie_async.cli.demo_media import read_portrait, read_voice
from kie_async.cli.jobs_file import Problem, read_jobs
from kie_async.cli.runtime import CannotRun

AVATAR = "kling/v1-avatar-standard"
URL = "https://x.example/a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "face.png").write_bytes(read_portrait())
    (tmp_path / "media" / "voice.wav").write_bytes(read_voice())
    (tmp_path / "notes.txt").write_text("no media at all")
    (tmp_path / "empty.png").touch()
    return tmp_path


def read(path: Path) -> list[tuple[int, str | None, str, dict[str, Any]]]:
    def refuse(problem: Problem) -> None:
        raise AssertionError(problem)

    with read_jobs(path, report=refuse) as jobs:
        assert [request for _, request in jobs] == list(jobs.requests())
        assert [jobs.index_of(request.ref or "") for _, request in jobs] == list(range(len(jobs)))
        assert jobs.index_of("nobody") is None
        return [(line, job.ref, job.model, dict(job.input)) for line, job in jobs]


def problems_in(path: Path) -> list[str]:
    problems: list[Problem] = []
    with pytest.raises(CannotRun, match=r"problems?; nothing was sent"):
        read_jobs(path, report=problems.append)
    return [str(problem) for problem in problems]


def jobs_file(folder: Path, text: str | bytes, name: str = "jobs.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- what it means ---------------------------------------------------------------------------------


def test_an_avatars_files_are_read_from_beside_the_jobs_file(folder: Path) -> None:
    absolute = folder / "media" / "voice.wav"
    path = jobs_file(
        folder,
        "ref,model,image_url,audio_url,prompt\n"
        f"a,{AVATAR},media/face.png,{absolute},hi\n"
        f"b,kling/ai-avatar-pro,{URL}.png,media/voice.wav,\n",
    )
    assert read(path) == [
        (2, "a", AVATAR, {"image_url": folder / "media/face.png", "audio_url": absolute, "prompt": "hi"}),
        (
            3,
            "b",
            "kling/ai-avatar-pro",
            {"image_url": f"{URL}.png", "audio_url": folder / "media/voice.wav", "prompt": ""},
        ),
    ]


def test_a_csv_holds_text_and_an_empty_cell_is_no_field_but_an_empty_prompt_is(folder: Path) -> None:
    path = jobs_file(
        folder,
        "ref,model,prompt,count,size:json,on:json,image_url\n"
        'a,m/x,,007,"{""w"": [1, null]}",true,https://e.org/f.png\n'
        "b,m/x, spaces stay ,,,false,\n",
    )
    assert [fields for *_, fields in read(path)] == [
        {
            "prompt": "",
            "count": "007",
            "size": {"w": [1, None]},
            "on": True,
            "image_url": "https://e.org/f.png",
        },
        {"prompt": " spaces stay ", "on": False},
    ]


def test_a_path_where_any_model_takes_a_url_is_a_problem_of_its_column(folder: Path) -> None:
    head = "ref,model,prompt,image_url,input_urls:json\n"
    path = jobs_file(folder, head + 'a,m/x,p,C:\\face.png,"[""b.png""]"\n')
    one, two = problems_in(path)
    assert one.startswith("line 2, column image_url: is no URL: ")
    assert two.startswith("line 2, column input_urls: input_urls[0] is no URL: 'b.png'")


def test_jsonl_means_what_it_says(folder: Path) -> None:
    path = jobs_file(
        folder,
        '{"ref": "a", "model": "m/x", "n": 7, "none": null, "text": "", "deep": [{"ü": "\\u00fc"}]}\n'
        "\n"
        f'{{"model": "{AVATAR}", "ref": "b", "image_url": "media/face.png", "audio_url": "{URL}"}}\r\n',
        "jobs.JSONL",
    )
    assert read(path) == [
        (1, "a", "m/x", {"n": 7, "none": None, "text": "", "deep": [{"ü": "ü"}]}),
        (3, "b", AVATAR, {"image_url": folder / "media/face.png", "audio_url": URL, "prompt": ""}),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_line_numbers_are_those_of_the_file(folder: Path, newline: str, mark: bytes) -> None:
    text = 'ref,model,prompt\na,m,"one\ntwo\n\nthree"\n\n,,\nb,m,last'.replace("\n", newline)
    path = jobs_file(folder, mark + text.encode())
    assert [(line, ref) for line, ref, *_ in read(path)] == [(2, "a"), (8, "b")]
    assert read(path)[0][3] == {"prompt": newline.join(["one", "two", "", "three"])}


def test_columns_may_stand_in_any_order_with_blanks_around_and_without_a_name(folder: Path) -> None:
    path = jobs_file(folder, "prompt, model ,ref,,\nhi,m,a,,\n")
    assert read(path) == [(2, "a", "m", {"prompt": "hi"})]


def test_many_jobs_are_held_on_disk(folder: Path) -> None:
    path = jobs_file(folder, "ref,model,prompt\n" + "".join(f"r{n},m,{n}\n" for n in range(5000)))
    found = read(path)
    assert len(found) == 5000
    assert found[4321] == (4323, "r4321", "m", {"prompt": "4321"})


# --- what is wrong ---------------------------------------------------------------------------------


def test_all_that_is_wrong_in_a_csv_is_told_at_once(folder: Path) -> None:
    long = "x" * 5001
    path = jobs_file(
        folder,
        "ref,model,image_url,audio_url,prompt,extra,n:json\n"
        f"a,{AVATAR},media/face.png,{URL},fine,,\n"
        f"a,{AVATAR},{URL},{URL},,,\n"  # the ref again
        f",{AVATAR},{URL},{URL},,,\n"
        f"b,,{URL},{URL},,,\n"
        f"c,not a model,{URL},{URL},,,\n"
        f"d,{AVATAR},,,,,\n"
        f'e,{AVATAR},ftp://x.example/f,"http://x y","two\nlines",7,1\n'
        f"f,{AVATAR},nowhere.png,notes.txt,{long},,\n"
        f"g,{AVATAR},media/voice.wav,media/face.png,,,\n"
        f"h,{AVATAR},empty.png,media,,,\n"
        "i,m,,,,,{\n"
        "j,m,,\n"
        "k,m,,,,,,8\n"
        f"{'l' * 513},m,,,,,\n",
    )
    media = folder / "media"
    assert problems_in(path) == [
        "line 3, column ref: 'a' is the ref of line 2 already",
        "line 4, column ref: missing",
        "line 5, column model: missing",
        "line 6, column model: must look like 'family/name', got 'not a model'",
        "line 7, column image_url: missing",
        "line 7, column audio_url: missing",
        f"line 8, column extra: {AVATAR} has no such field; it takes image_url, audio_url, prompt",
        f"line 8, column n: {AVATAR} has no such field; it takes image_url, audio_url, prompt",
        "line 8, column image_url: must be an absolute http(s) URL, got 'ftp://x.example/f'",
        "line 8, column audio_url: must be an http(s) URL without blanks, got 'http://x y'",
        f"line 10, column image_url: cannot read {folder / 'nowhere.png'}: No such file or directory",
        f"line 10, column audio_url: {folder / 'notes.txt'} is neither JPEG, PNG, WebP"
        " nor MP3, WAV, AAC, M4A, OGG by its content",
        "line 10, column prompt: must have at most 5000 characters, got 5001",
        f"line 11, column image_url: {media / 'voice.wav'} is audio, not image, by its content",
        f"line 11, column audio_url: {media / 'face.png'} is image, not audio, by its content",
        f"line 12, column image_url: {folder / 'empty.png'} is empty",
        f"line 12, column audio_url: {media} is not a file",
        "line 13, column n:json: not JSON: Expecting property name enclosed in double quotes",
        "line 14, column prompt: the line ends too early: the header has 7 cells, this 4",
        "line 15, column 8: one cell too many: the header has 7, this 8",
        f"line 16, column ref: must be a text of 1 to 512 characters that is not blank, got '{'l' * 513}'",
    ]


def test_all_that_is_wrong_in_jsonl_is_told_at_once(folder: Path) -> None:
    path = jobs_file(
        folder,
        b'{"ref": "a", "model": "m"}\n'
        b'{"ref": "a", "model": "m"}\n'
        b'{"ref": "b", "model" "m"}\n'
        b"[1]\n"
        b'{"ref": 7, "model": ["m"]}\n'
        b'{"ref": "c"\n'
        b'{"ref": "d", "ref": "e", "model": "m"}\n'
        b'{"ref": "f", "model": "m", "t": "\xff"}\n'
        b'{"ref": "g", "model": "m", "n": NaN}\n'
        b'{"ref": "h", "model": "kling/v1-avatar-standard", "image_url": 1, "audio_url": null,'
        b' "prompt": 2}\n',
        "jobs.jsonl",
    )
    found = problems_in(path)
    assert found[:3] == [
        "line 2, column ref: 'a' is the ref of line 1 already",
        "line 3, column 22: not JSON: Expecting ':' delimiter",
        'line 4, column 1: a line is one JSON object: {"ref": ..., "model": ..., ...}',
    ]
    assert found[3:6] == [
        "line 5, column ref: must be a text of 1 to 512 characters that is not blank, got 7",
        "line 5, column model: must look like 'family/name', got ['m']",
        "line 6, column 12: not JSON: Expecting ',' delimiter",
    ]
    assert found[6:] == [
        "line 7, column 1: not JSON: a key stands twice in one object",
        "line 8, column 34: not UTF-8 text",
        "line 9, column 1: not JSON: NaN is not JSON",
        "line 10, column image_url: must be an http(s) URL without blanks, got int",
        "line 10, column audio_url: must be an http(s) URL without blanks, got NoneType",
        "line 10, column prompt: must be text, got int; use '' for none",
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            b"name,model\na,m\n",
            ["line 1, column ref: missing in the header, which has: name, model"],
        ),
        (
            b"name;other\na;m\n",
            [
                "line 1, column ref: missing in the header, which has: name;other",
                "line 1, column model: missing in the header, which has: name;other",
            ],
        ),
        *(
            (
                f"ref{mark}model{mark}prompt, or none\n".encode(),
                [f"line 1, column 1: its cells are divided by {name}; save it as a CSV with commas"],
            )
            for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"))
        ),
        *(
            (text, ["line 1, column 1: its cells are divided by semicolons; save it as a CSV with commas"])
            for text in (b'"ref";"model"\n"a";"m"\n', b"sep=;\r\nref;model\r\na;m\r\n")
        ),
        (b"", ["line 1, column ref: missing in the header, which has: nothing"] * 2),
        (b"ref,prompt\n,\na,hi\n", ["line 1, column model: missing in the header, which has: ref, prompt"]),
        (b"ref,model,ref\n", ["line 1, column ref: stands in the header twice"]),
        (b"ref,model,n,n:json\n", ["line 1, column n:json: stands in the header twice"]),
        (b"ref,model,\nq,m,x\n", ["line 2, column 3: the header has no name for this column"]),
        (b"ref,model,t\na,m,\xe4\n", ["line 2, column t: not UTF-8 text; save the file as CSV in UTF-8"]),
        (b"ref,model\n\xe4,m\n", ["line 2, column ref: not UTF-8 text"]),
        (
            b"ref,model,image_url,audio_url\na,kling/v1-avatar-standard,\xe4,http://x.org/y\n",
            ["line 2, column image_url: not UTF-8 text"],
        ),
        (b"ref,model,t\xe4\n", ["line 1, column 3: not UTF-8 text"]),
        (b"ref,model,\x1b[1m\na,m\n", ["line 2, column '\\x1b[1m': the line ends too early: the header has"]),
        (
            b'ref,model,prompt\na,m,"he said "hi" to me"\nb,m,fine\n',
            ["line 2, column prompt: the quotes are not closed or doubled (',' expected after '\"')"],
        ),
        (
            b'ref,model,prompt\na,m,fine\nb,"m,never closed\nc,m,swallowed\n',
            ["line 3, column model: the quotes are not closed or doubled (unexpected end of data)"],
        ),
        (
            b"\n\nref,model\n\n,m\n",
            ["line 5, column ref: missing"],
        ),
    ],
)
def test_a_csv_is_wrong(folder: Path, text: bytes, problems: list[str]) -> None:
    found = problems_in(jobs_file(folder, text))
    assert len(found) == len(problems)
    for shown, expected in zip(found, problems, strict=True):
        assert shown.startswith(expected) or expected.replace("column ref", "column model") == shown


def test_a_quote_that_is_never_closed_does_not_take_minutes(folder: Path) -> None:
    text = 'ref,model,prompt\na,m,"open\n' + 'b,m,"x ""y"" z"\n' * 20_000
    found = problems_in(jobs_file(folder, text))
    assert found[0].startswith("line 2, column prompt: the quotes are not closed or doubled")


def test_where_nothing_can_be_kept_meanwhile_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(CannotRun, match=r"temporary file, .*set TMPDIR.*: No usable temp"):
        read_jobs(jobs_file(folder, "ref,model\na,m\n"), report=print)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("jobs.txt", "ref,model\na,m\n", "jobs.txt: a jobs file ends in .csv or .jsonl"),
        ("jobs.csv", "ref,model\n", "holds no job"),
        ("jobs.jsonl", "\n \n", "holds no job"),
        ("jobs.csv", None, "No such file or directory"),
    ],
)
def test_there_is_nothing_to_do(folder: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        jobs_file(folder, text, name)
    with pytest.raises(CannotRun, match=words):
        read_jobs(folder / name, report=print)


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "jobs.csv").mkdir()
    with pytest.raises(CannotRun, match=r"cannot read .*: Is a directory"):
        read_jobs(folder / "jobs.csv", report=print)


# --- what is no jobs file at all -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.xlsx", b"PK\x03\x04...", "is a workbook (xlsx or ods), not a CSV; save it as CSV in UTF-8"),
        ("jobs.csv", b"PK\x03\x04...", "is a workbook (xlsx or ods), not a CSV; save it as CSV in UTF-8"),
        ("jobs.xls", b"\xd0\xcf\x11\xe0...", "is an old workbook (xls), not a CSV"),
        ("jobs.csv", "ref,model\n".encode("utf-16"), "is text in UTF-16; save it as CSV in UTF-8"),
        ("jobs.jsonl", "{}".encode("utf-16-be").join([b"\xfe\xff", b""]), "is text in UTF-16"),
        ("jobs.csv", "ref,model\n".encode("utf-16-le"), "is text in UTF-16; save it as CSV in UTF-8"),
        ("jobs.csv", "ref,model\n".encode("utf-16-be"), "is text in UTF-16; save it as CSV in UTF-8"),
        ("jobs.csv", "ref,model\n".encode("utf-32"), "is text in UTF-32"),
        ("jobs.tsv", b"ref\tmodel\n", "ends in .csv or .jsonl; save a table as CSV with commas, in UTF-8"),
        ("jobs.tsv", b"ref\tmodel\n", "a jobs file ends in .csv or .jsonl"),
    ],
)
def test_a_file_of_another_kind_is_named_with_how_to_save_it(
    folder: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(CannotRun) as refused:
        read_jobs(jobs_file(folder, content, name), report=lambda problem: None)
    assert words in str(refused.value)


# --- what only looks mistaken ----------------------------------------------------------------------

NEARLY = [
    ("kling/v1-avatar-standrd", "kling/v1-avatar-standard"),
    ("Kling/V1-Avatar-Standard", "kling/v1-avatar-standard"),
    ("google/nano-bananna", "google/nano-banana"),
]


@pytest.mark.parametrize(("model", "known"), NEARLY)
def test_a_model_that_is_nearly_a_known_one_is_asked_about(folder: Path, model: str, known: str) -> None:
    path = jobs_file(folder, f"ref,model\na,{model}\n")
    assert problems_in(path) == [
        f"line 2, column model: {model!r} is not known here, did you mean {known!r}? "
        "If it is meant so, --as-it-stands sends it"
    ]
    with read_jobs(path, report=lambda problem: None, as_it_stands=True) as jobs:
        assert len(jobs) == 1


@pytest.mark.parametrize(
    "model", ["kling/v2-avatar-standard", "nano-banana-3", "suno/v5", "sandbox/echo", "google/nano-banana"]
)
def test_another_version_and_another_model_are_no_mistake(folder: Path, model: str) -> None:
    assert [row[2] for row in read(jobs_file(folder, f"ref,model\na,{model}\n"))] == [model]


def test_the_name_of_a_file_that_would_go_as_text_is_asked_about(folder: Path) -> None:
    path = jobs_file(folder, "ref,model,prompt,start\na,m/x,media,media/face.png\n")
    assert problems_in(path) == [
        "line 2, column start: 'media/face.png' is a file here; a column start:file uploads it. "
        "If it is meant so, --as-it-stands sends it"
    ]


@pytest.mark.parametrize("model", ["m/x", AVATAR])
def test_a_column_of_files_is_uploaded_for_any_model(folder: Path, model: str) -> None:
    head = "ref,model,image_url:file,audio_url:file\n"
    path = jobs_file(folder, f"{head}a,{model},media/face.png,media/voice.wav\n")
    fields = read(path)[0][3]
    assert fields["image_url"] == folder / "media/face.png"
    assert fields["audio_url"] == folder / "media/voice.wav"


def test_a_column_of_files_names_files(folder: Path) -> None:
    path = jobs_file(folder, "ref,model,start:file\na,m/x,nowhere.png\n")
    assert problems_in(path) == ["line 2, column start:file: 'nowhere.png' is not a file"]
