"""The one reader of JSONL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from envs import jsonl
from envs.jsonl import read_jsonl
from envs.types import InputError


def read(tmp_path: Path, content: bytes, **options: Any) -> list[tuple[int, dict[str, Any]]]:
    path = tmp_path / "my.jsonl"
    path.write_bytes(content)
    return list(read_jsonl(path, **options))


def test_rows_come_with_their_lines(tmp_path: Path) -> None:
    content = '\ufeff{"a": "\\ud83d\\ude00"}\r\n\n  \n{"a": "x\u2028y"}'.encode()
    assert read(tmp_path, content) == [(1, {"a": "\U0001f600"}), (4, {"a": "x\u2028y"})]
    assert read(tmp_path, b"") == []


def test_the_last_line_of_a_growing_file_may_be_half_written(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": 1}\n{"a": ', log=True) == [(1, {"a": 1})]
    assert read(tmp_path, b'{"a": 1}\n{"a": 2}', log=True) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": ', "not JSON (Expecting value, column 7): write an object"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 0xff): save the file as UTF-8"),
        (b"[1]", "not a JSON object: write an object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has too many digits: write a shorter one"),
        (b"[" * 100_000, "too deeply nested: write an object"),
        (b'{"a": 1, "b": ["\\ud83d"]}', "b: has half of a surrogate pair: write the whole character"),
        (b'{"\\udc00": 1}', "\\udc00: has half of a surrogate pair: write the whole character"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, b'{"a": 1}\n\n' + line + b"\n", fix="write an object")
    assert str(caught.value) == f"{tmp_path / 'my.jsonl'}:3: {problem}"


def test_files_and_lines_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MOST_BYTES_PER_LINE", 2**20)
    with pytest.raises(InputError, match=r"my.jsonl:2: the line is too long \(1 MiB are allowed\): "):
        read(tmp_path, b'{"a": 1}\n"' + b"x" * 2**20 + b'"\n')
    monkeypatch.setattr(jsonl, "MOST_BYTES", 2**20)
    with pytest.raises(
        InputError, match=r"--x .*my.jsonl: too large \(1.0 MiB, 1 MiB are allowed\): split it"
    ):
        read(tmp_path, b" " * (2**20 + 1), flag="--x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        list(read_jsonl(tmp_path / "pipe"))
    with pytest.raises(FileNotFoundError):
        list(read_jsonl(tmp_path / "none"))
