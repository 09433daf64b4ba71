"""Where tasks come from: templates, files, datasets, the model. Held-out texts always stay out."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from references import reference

from envs.domain import load_domain
from envs.schema import EMBEDDED
from envs.source import FromTexts, Proposed, Templates, make_source, share
from envs.types import Completion, InputError, LanguageModel, Task

ALL = [load_domain(name) for name in EMBEDDED]


def complaint(build: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- templates


def test_templates_are_the_same_for_the_same_stream_only() -> None:
    source = Templates(ALL)
    tasks = source.tasks(60, 0, 1, "before")
    assert Templates(ALL).tasks(60, 0, 1, "before") == tasks
    for other in ((0, 1, "after"), (0, 2, "before"), (1, 1, "before"), (0, 1)):
        assert {task.text for task in source.tasks(60, *other)} != {task.text for task in tasks}
    assert source.dropped() == {}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 61])
def test_templates_are_spread_evenly(count: int) -> None:
    counts = Counter(task.domain for task in Templates(ALL).tasks(count, 0))
    assert sum(counts.values()) == count
    assert max(counts.values(), default=0) - min((counts[name] for name in EMBEDDED), default=0) <= 1


def test_who_gets_the_remainder_is_random() -> None:
    favoured = {name for seed in range(30) for name, count in share(4, ALL, seed).items() if count == 2}
    assert favoured == set(EMBEDDED)


def test_templates_are_shuffled_and_of_their_split() -> None:
    tasks = Templates(ALL).tasks(300, 0)
    assert len({task.text for task in tasks}) == 300
    changes = sum(a.domain != b.domain for a, b in itertools.pairwise(tasks))
    assert changes > 150  # of 200 expected; 2 if the domains came one after the other
    assert all(task.id.startswith("train/") and reference(task) for task in tasks)
    held_out = Templates(ALL, "heldout").tasks(300, 0)
    assert all(task.id.startswith("heldout/") for task in held_out)
    assert not {task.text for task in tasks} & {task.text for task in held_out}


# --- files


def write(path: Path, *rows: object) -> str:
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
        ),
        encoding="utf-8",
    )
    return str(path)


def test_a_file_of_tasks(tmp_path: Path) -> None:
    spec = write(
        tmp_path / "my.jsonl",
        {"task": "show  the first\t3 lines of a.txt "},
        "",
        "   ",
        {
            "task": "zähle 📄 die Zeilen\u2028in ä.txt\x85jetzt",
            "note": [1],
        },  # ends of lines only for those who split at them
        {"task": "copy a.txt to b.txt", "domain": "shell"},
        {"task": "日本語 の 行 を 数える", "domain": None},
    )
    tasks = make_source(spec, "shell").tasks(4, 0)
    assert {task.text: task.id for task in tasks} == {
        "show the first 3 lines of a.txt": "my.jsonl/1",
        "zähle 📄 die Zeilen in ä.txt jetzt": "my.jsonl/4",
        "copy a.txt to b.txt": "my.jsonl/5",
        "日本語 の 行 を 数える": "my.jsonl/6",
    }
    assert {(task.domain, task.tool) for task in tasks} == {("shell", "")}
    assert all(reference(task) is None for task in tasks)


def test_tasks_of_a_file_are_drawn_without_repetition_as_far_as_they_reach(tmp_path: Path) -> None:
    source = make_source(
        write(tmp_path / "t.jsonl", *[{"task": f"task number {i}"} for i in range(7)]), "sql"
    )
    tasks = source.tasks(20, 0, 1)
    assert sorted(Counter(task.text for task in tasks).values()) == [2, 3, 3, 3, 3, 3, 3]
    assert len({task.text for task in tasks[:7]}) == len({task.text for task in tasks[7:14]}) == 7
    assert tasks == source.tasks(20, 0, 1) != source.tasks(20, 0, 2)
    assert [task.text for task in source.tasks(7, 0, 1)] != [f"task number {i}" for i in range(7)]
    assert source.tasks(0, 0) == []


@pytest.mark.parametrize(
    "encode", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace("\n", "\r\n").encode()]
)
def test_files_of_other_systems(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(encode('{"task": "count the lines of a"}\n{"task": "count the words of a"}'))
    assert len({task.text for task in make_source(str(path), "shell").tasks(2, 0)}) == 2


def test_each_task_of_a_file_may_name_its_domain(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.jsonl", *[{"task": f"do {name} things", "domain": name} for name in EMBEDDED])
    assert {task.text: task.domain for task in make_source(spec, "all").tasks(3, 0)} == {
        f"do {name} things": name for name in EMBEDDED
    }


def test_a_file_for_evaluation_is_a_source_too(tmp_path: Path) -> None:
    row = {
        "task": "show a.txt",
        "reference": "cat a.txt",
        "domain": "shell",
        "source": "s",
        "tree": {"a": ""},
    }
    [task] = make_source(write(tmp_path / "t.jsonl", row), "all").tasks(1, 0)
    assert task == Task("t.jsonl/1", "shell", "show a.txt")


GOOD = '{"task": "count the lines of a.txt"}'


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("count the lines", ("not JSON", 'write {"task": "..."} on one line')),
        ('{"task": "x"', ("not JSON",)),
        ('{"task": "x"} {"task": "y"}', ("not JSON",)),
        ("[" * 100_000, ("too deeply nested",)),
        ('{"task": ' + "9" * 5000 + "}", ("too many digits",)),
        ('{"tasks": "x"}', ('write {"task": "..."}',)),
        ('{"task": 7}', ("task: is missing or not a text",)),
        ('{"task": null}', ("task: is missing or not a text",)),
        ('{"task": " \\n"}', ("task: is missing or not a text",)),
        ('["task"]', ("not a JSON object",)),
        ('"task"', ("not a JSON object",)),
        ("null", ("not a JSON object",)),
        ('{"task": "half \\ud83d pair"}', ("task: has half of a surrogate pair",)),
        ('{"task": "x", "domain": "sql"}', ("domain: 'sql' is not one of --domain", "shell")),
        ('{"task": "x", "domain": ["shell"]}', ("domain: ['shell'] is not one of --domain", "shell")),
        ('{"task": "x", "domain": ""}', ("domain: '' is not one of --domain",)),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, wanted: tuple[str, ...]) -> None:
    spec = write(tmp_path / "t.jsonl", GOOD, "", line, "worse")
    message = complaint(lambda: make_source(spec, "shell"))
    assert message.startswith(f"{spec}:3: ")
    assert all(part in message for part in wanted), message
    assert len(message) < len(spec) + 200


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"task": "z\xe4hle"}\n')
    message = complaint(lambda: make_source(str(path), "shell"))
    assert message.startswith(f"{path}:2: not UTF-8 (byte 0xe4)")


def test_a_task_of_several_domains_must_say_which(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.jsonl", {"task": "x y z", "domain": "sql"}, GOOD)
    message = complaint(lambda: make_source(spec, "shell,sql"))
    assert message.startswith(f"{spec}:2: domain: ")
    assert '"domain": "shell"' in message


def test_files_without_tasks(tmp_path: Path) -> None:
    assert "1: the file has no tasks" in complaint(
        lambda: make_source(write(tmp_path / "t.jsonl", "", " "), "shell")
    )
    assert "no such file" in complaint(lambda: make_source(str(tmp_path / "none.jsonl"), "shell"))
    (tmp_path / "folder.jsonl").mkdir()
    assert "a folder, not a file" in complaint(lambda: make_source(str(tmp_path / "folder.jsonl"), "shell"))
    assert "--task-source" in complaint(lambda: make_source("x" * 5000 + ".jsonl", "shell"))


def test_held_out_texts_are_left_out_of_a_file_and_counted(tmp_path: Path) -> None:
    held_out = ["print the first 3 lines of é.txt", "count the words of b.txt"]
    spec = write(
        tmp_path / "t.jsonl",
        {"task": "  print the first   3 lines of é.txt"},
        {
            "task": "Print the first 3 lines of e\u0301.txt."
        },  # a capital, a full stop and another way to compose é hide nothing
        {"task": "COUNT THE WORDS OF B.TXT"},
        {"task": "print the first 4 lines of é.txt"},
    )
    source = make_source(spec, "shell", exclude=held_out)
    assert source.dropped() == {"held_out": 3}
    assert {task.text for task in source.tasks(10, 0)} == {"print the first 4 lines of é.txt"}
    assert make_source(spec, "shell").dropped() == {"held_out": 0}
    assert "every task in it is one of the evaluation's" in complaint(
        lambda: FromTexts([Task("1", "shell", held_out[0])], held_out)
    )


def test_leaving_out_does_not_take_long() -> None:
    texts = [f"do the {i}th thing" for i in range(3000)]
    started = time.perf_counter()
    source = FromTexts([Task(str(i), "shell", text) for i, text in enumerate(texts)], texts[::2])
    assert source.dropped() == {"held_out": 1500}
    assert time.perf_counter() - started < 2


# --- datasets


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The datasets library without a network and without the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_a_dataset_that_cannot_be_reached_fails_in_one_line(offline: Any) -> None:
    started = time.perf_counter()
    message = complaint(lambda: make_source("hf:nobody/nothing:text", "shell"))
    assert time.perf_counter() - started < 5
    assert message.startswith("--task-source hf:nobody/nothing:text: cannot be loaded: ")
    assert "check the name and the network, or give a folder" in message


def test_a_folder_of_data_files_is_a_dataset(offline: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"question": "count the  lines of a.txt", "n": 1},
        {"question": "", "n": 2},
        {"question": None, "n": 3},
        {"question": "ü b c", "n": 4},
    ]
    write(folder / "train.jsonl", *rows)
    source = make_source(f"hf:{folder}:question", "shell", exclude=["Ü b c"])
    assert source.tasks(1, 0) == [Task(f"{folder}/0", "shell", "count the lines of a.txt")]
    assert source.dropped() == {"held_out": 1}
    assert make_source(f"hf:{folder}:question:train", "shell").dropped() == {"held_out": 0}
    assert "no column 'task': use one of question, n" in complaint(
        lambda: make_source(f"hf:{folder}:task", "shell")
    )
    assert "column 'n' has no text" in complaint(lambda: make_source(f"hf:{folder}:n", "shell"))
    assert "cannot be loaded" in complaint(lambda: make_source(f"hf:{folder}:question:validation", "shell"))
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in complaint(lambda: make_source(f"hf:{tmp_path / 'empty'}:question", "shell"))
    write(folder / "train.jsonl", *rows, '{"broken')
    assert "cannot be loaded" in complaint(lambda: make_source(f"hf:{folder}:question", "shell"))


@pytest.mark.parametrize("spec", ["hf:", "hf:data", "hf::text", "hf:data:", "hf:a:b:c:d", "hf:a:b:", "hf:::"])
def test_a_dataset_named_wrongly(spec: str) -> None:
    assert "write hf:DATASET:COLUMN" in complaint(lambda: make_source(spec, "shell"))


def test_a_dataset_needs_one_domain() -> None:
    assert "name the one --domain" in complaint(lambda: make_source("hf:data:text", "all"))


# --- the model itself


class Proposer:
    """Writes the next of its lines for each prompt, and remembers the prompts."""

    def __init__(self, lines: Sequence[str | Completion]) -> None:
        self.lines = [line if isinstance(line, Completion) else Completion(line) for line in lines]
        self.prompts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def generate(self, prompts: Sequence[str], n: int = 1, **options: Any) -> list[list[Completion]]:
        start = len(self.prompts)
        self.prompts += prompts
        self.calls.append(options)
        return [[self.lines[(start + i) % len(self.lines)]] for i in range(len(prompts))]

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        raise AssertionError("proposals are not scored")

    def entropies(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        raise AssertionError("proposals are not scored")

    def inverter(self, which: str) -> Any:
        return nullcontext()


NUMBERS = [f"print the first {i} lines of notes.txt" for i in range(200)]


def test_a_model_proposes_tasks_for_the_tools_of_the_domains() -> None:
    model = Proposer(NUMBERS)
    assert isinstance(model, LanguageModel)
    source = make_source("model", "shell,sql", model)
    tasks = source.tasks(50, 0, 1, "before")
    assert [task.text for task in tasks] == NUMBERS[:50]
    assert len({task.id for task in tasks}) == 50
    assert tasks[7].id == "proposed/0/1/before/7"
    assert {task.domain for task in tasks} == {"shell", "sql"}
    assert all(task.tool in load_domain(task.domain).tools for task in tasks)
    assert len({task.tool for task in tasks}) > 5
    for prompt, task in zip(model.prompts, tasks, strict=False):
        assert prompt == load_domain(task.domain).prompt("propose", tool=task.tool)
    assert model.calls[0]["temperature"] == 1.0
    assert all(reference(task) is None for task in tasks)
    assert source.dropped() == {"missing": 0}


def test_proposals_depend_on_the_stream_alone() -> None:
    first, second, other = Proposer(NUMBERS), Proposer(NUMBERS), Proposer(NUMBERS)
    assert Proposed(first, ALL).tasks(40, 0, 1) == Proposed(second, ALL).tasks(40, 0, 1)
    assert (first.prompts, first.calls) == (second.prompts, second.calls)
    Proposed(other, ALL).tasks(40, 0, 2)
    assert first.calls[0]["seed"] != other.calls[0]["seed"]
    assert first.prompts != other.prompts


def test_the_next_call_starts_afresh() -> None:
    source = Proposed(Proposer(NUMBERS[:1]), ALL)
    assert (
        len(source.tasks(1, 0)) == len(source.tasks(1, 1)) == 1
    )  # the same text in two cycles is no duplicate
    assert source.tasks(0, 2) == []


LONG = "word " * 41
DROPPED: list[tuple[str | Completion, str]] = [
    ("", "malformed"),
    ("too short", "malformed"),
    (LONG, "malformed"),
    ("print the \x1b[31mred\x1b[0m lines of it", "malformed"),
    ("print the bell \x07 of it", "malformed"),
    ("print a lone \ud83d surrogate of it", "malformed"),
    (Completion("print the first 7 lines of", truncated=True), "malformed"),
    ("print the secret 3 lines of vault.txt", "held_out"),
    ("  Print the  secret 3 lines of VAULT.txt.", "held_out"),
    ("print the first 3 lines of notes.txt", "duplicate"),
    ("print the  first 3 lines of notes.txt ", "duplicate"),
    ("Print the first 3 lines of notes.txt.", "duplicate"),
    ("print the first 3 line of notes.txt", "near_duplicate"),
    ("prints the first 3 lines of notes.txt", "near_duplicate"),
    ("print the first 3 lines, of notes.txt", "near_duplicate"),
]


@pytest.mark.parametrize(("line", "why"), DROPPED)
def test_what_is_dropped_of_the_proposals_and_why(line: str | Completion, why: str) -> None:
    model = Proposer(["print the first 3 lines of notes.txt", line])
    source = Proposed(model, ALL, exclude=["print the secret 3 lines of vault.txt"])
    assert [task.text for task in source.tasks(2, 0)] == ["print the first 3 lines of notes.txt"]
    dropped = source.dropped()
    assert dropped[why] > 0
    assert dropped["missing"] == 1
    assert set(dropped) <= {why, "duplicate", "missing"}


@pytest.mark.parametrize(
    "line",
    [
        "print the first 4 lines of notes.txt",  # another number
        "print the first 33 lines of notes.txt",
        "print the first 3 lines of note.txt",  # another name
        "print the first 3 lines of notes.log",
        "copy the first 3 lines of notes.txt to the end of it",  # other words
        "give me just 3 lines from the top of notes.txt",
        "zeig die ersten 3 Zeilen von notes.txt",
        "打印 notes.txt 的前 3 行",
    ],
)
def test_what_is_not_dropped(line: str) -> None:
    source = Proposed(Proposer(["print the first 3 lines of notes.txt", line]), ALL)
    assert [task.text for task in source.tasks(2, 0)] == ["print the first 3 lines of notes.txt", line]


def test_too_few_proposals_are_fewer_tasks_and_said_so() -> None:
    model = Proposer([*NUMBERS[:5], "no"])
    source = Proposed(model, ALL)
    assert [task.text for task in source.tasks(20, 0)] == NUMBERS[:5]
    assert len(model.calls) == 10
    assert source.dropped()["missing"] == 15
    assert source.dropped()["malformed"] > 0
    assert source.dropped()["duplicate"] > 0


def test_no_usable_proposal_is_an_error() -> None:
    message = complaint(lambda: Proposed(Proposer(["no"]), ALL).tasks(3, 0))
    assert "no usable proposal in 10 rounds" in message
    assert "malformed" in message
    assert "use --task-source templates" in message


def test_many_proposals_do_not_take_long() -> None:
    started = time.perf_counter()
    tasks = Proposed(
        Proposer([f"print the {'very ' * (i % 9)}first lines of the file again" for i in range(3)] + NUMBERS),
        ALL,
    ).tasks(200, 0)
    assert len(tasks) > 195
    assert time.perf_counter() - started < 3


# --- which source


def test_a_source_is_chosen_by_its_name(tmp_path: Path) -> None:
    assert isinstance(make_source("templates", "all"), Templates)
    assert {task.domain for task in make_source("templates", "sql").tasks(5, 0)} == {"sql"}
    assert Counter(task.domain for task in make_source("templates", "shell,shell").tasks(10, 0)) == {
        "shell": 10
    }
    assert len({task.text for task in make_source("templates", "shell,shell").tasks(10, 0)}) == 10
    assert "needs a model" in complaint(lambda: make_source("model", "all"))
    assert "did you mean templates?" in complaint(lambda: make_source("template", "all"))
    assert "use templates, model, a .jsonl file" in complaint(lambda: make_source("tasks.csv", "all"))
    assert "name at least one domain" in complaint(lambda: make_source("templates", " ,"))
    assert "did you mean shell?" in complaint(lambda: make_source("templates", "shelf"))


def test_two_domains_of_one_name_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text((Path(__file__).parent.parent / "configs/domains/shell.yaml").read_text())
    assert "two domains have the name 'shell'" in complaint(lambda: make_source("templates", f"shell,{copy}"))
    assert {task.domain for task in make_source("templates", str(copy)).tasks(3, 0)} == {str(copy)}
