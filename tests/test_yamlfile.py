"""The one reader of YAML: lines of keys, and mistakes that end in one line, not in a hang or a traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from envs import yamlfile
from envs.types import InputError
from envs.yamlfile import YamlFile, read_yaml


def read(tmp_path: Path, text: str | bytes) -> YamlFile:
    path = tmp_path / "my.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path, name="my.yaml")


def complaint(tmp_path: Path, text: str | bytes) -> str:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    return message


def test_values_and_the_lines_of_their_keys(tmp_path: Path) -> None:
    file = read(tmp_path, "\ufeff# a note\na: 1\nb:\n  c: [x, true]\n  d:\n  - 0.5\n  - null\n3: three\n")
    assert file.data == {"a": 1, "b": {"c": ["x", True], "d": [0.5, None]}, 3: "three"}
    assert [file.line(where) for where in (["a"], ["b"], ["b", "c", 1], ["b", "d", 1], [3])] == [
        2,
        3,
        4,
        7,
        8,
    ]
    assert file.line(["b", "d", 9, "e"]) == 5 and file.line(["z"]) == 1
    assert file.existing(["b", "union", "c", 0, "z"]) == ("b", "c", 0)
    assert str(file.error(("b", "d", 1), "is empty: fill it in")) == "my.yaml:7: b.d[1]: is empty: fill it in"
    assert str(file.error((), "is odd")) == "my.yaml:1: the file: is odd"


def test_a_file_that_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "").data is None
    assert read(tmp_path, "# nothing\n").data is None


def test_an_alias_is_the_value_again(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &x [1, 2]\nb: *x\n").data == {"a": [1, 2], "b": [1, 2]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "my.yaml:5: a4: the file has more than 100,000 values"),
        ("a: 1\nb: &b [*b]\n", "my.yaml:2: b: more than 50 levels deep"),
        ("b: &b\n  c: *b\n", "my.yaml:1: b: more than 50 levels deep"),
        ("a: 1\nb: " + "[" * 10_000 + "]" * 10_000, "my.yaml:2: nested more than 50 levels deep"),
        ("a: 1\nb: " + "{a: " * 10_000 + "}" * 10_000, "my.yaml:2: nested more than 50 levels deep"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", "my.yaml:3: b.<<: YAML's merge key is not supported"),
        ("a: *nobody\n", "my.yaml:1: not valid YAML: found undefined alias"),
        ("a: 1\nb: 2024-01-31\n", "my.yaml:2: b: YAML reads '2024-01-31' as a date: put it in quotes"),
        ("a: 2024-99-99\n", "my.yaml:1: a: YAML reads '2024-99-99' as a date"),
        ("a: 1\nb: " + "7" * 5000, "my.yaml:2: b: '7777"),
        ("a: 0x" + "f" * 5000, "my.yaml:1: a: '0xff"),
        ("a: !!int word\n", "my.yaml:1: a: 'word' is not a number that can be read"),
        ("a: =\n", "my.yaml:1: a: '=' has the YAML tag value: remove it or use quotes"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "my.yaml:1: a: the tag tag:yaml.org,2002:python/object",
        ),
        ("a: 1\n\na: 2\n", "my.yaml:3: a: this key is there twice, first in line 1: remove or rename one"),
        ("a: {b: 1, b: 2}\n", "my.yaml:1: a.b: this key is there twice, first in line 1"),
        ("a:\n  1: x\n  '1': y\n", "my.yaml:3: a.1: this key is there twice, first in line 2"),
        ("a: 1\nno: 2\n", "my.yaml:2: no: YAML reads this key as False: put it in quotes"),
        ("True: 2\n", "my.yaml:1: True: YAML reads this key as True: put it in quotes"),
        ("010: 2\n", "my.yaml:1: 010: YAML reads this key as 8: put it in quotes"),
        ("[a, b]: 2\n", "my.yaml:1: the file: a key must be a text"),
        ("a: 1\nb: [1\n", "my.yaml:3: not valid YAML: expected ',' or ']'"),
        ("a: 1\nb:\t2\n\tc: 3\n", "my.yaml:2: not valid YAML: a tab cannot stand here, use spaces"),
        ("a: 1\n---\nb: 2\n", "my.yaml:2: not valid YAML: found another document"),
        ("a: 1\nb: \x07\n", "my.yaml:2: not valid YAML: the character U+0007 must not be in a YAML file"),
        (b"a: 1\nb: \xef\n", "my.yaml:2: not UTF-8 (byte 0xef): save the file as UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert complaint(tmp_path, text).startswith(message)


def test_the_limits_are_the_same_without_libyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamlfile, "FAST_LOADER", yamlfile.yaml.SafeLoader)
    assert ":2: nested more than 50" in complaint(tmp_path, "a: 1\nb: " + "[" * 10_000)
    assert ":5: a4: the file has more than" in complaint(tmp_path, BOMB)


def test_only_regular_files_of_reasonable_size_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (yamlfile.MOST_BYTES + 1))
    wanted = {
        pipe: f"--config {pipe}: not a regular file: save the text in a file and give its path",
        Path(
            "/dev/zero"
        ): "--config /dev/zero: not a regular file: save the text in a file and give its path",
        tmp_path: f"--config {tmp_path}: a folder, not a file: give the path of a file in it",
        large: f"--config {large}: too large (1.0 MiB, 1 MiB are allowed): split it",
        Path("a" * 5000): "File name too long",
        Path("a\0b"): "embedded null byte",
    }
    for path, message in wanted.items():
        with pytest.raises(InputError) as caught:
            read_yaml(path, flag="--config")
        assert message in str(caught.value)
    for missing in (tmp_path / "none.yaml", large / "none.yaml"):
        with pytest.raises(FileNotFoundError):
            read_yaml(missing)
