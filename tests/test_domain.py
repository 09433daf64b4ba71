"""The grammar of tasks: what is drawn, that splits never mix, who knows the references, and how mistakes in a file are reported."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from references import exact_match, reference

from envs.domain import SPLITS, Domain, Draw, Intent, domain_names, load_domain
from envs.grammar import fill, wordings
from envs.schema import EMBEDDED, domain_path, load_spec
from envs.types import InputError, Task
from envs.verify.truth import command_of, find_draw, reconstruction_match

DRAWS = 60  # of each intent in each split
# Of the first tasks of every intent and split. It changes with the grammars and with how they are drawn from: then the embedded model
# has to be pre-trained again, and only then may this be changed.
FIRST_TASKS = "79103eb0a7b74cbe729eda391b4307c37eb7b51872ab63b748b8fcfa5dbc4c55"
PRINT_FIRST_TASKS = """
import hashlib
from envs.domain import SPLITS, load_domain
from envs.schema import EMBEDDED
digest = hashlib.sha256()
for name in EMBEDDED:
    domain = load_domain(name)
    for split in SPLITS:
        for task in [domain.task(split, intent, index) for intent in domain.intents for index in range(5)] + domain.tasks(split, 50, 0):
            digest.update(repr(task).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def draws() -> dict[str, dict[str, list[Draw]]]:
    """Domain -> split -> draws."""
    return {
        name: {
            split: [
                load_domain(name).draw(split, intent, i)
                for intent in load_domain(name).intents
                for i in range(DRAWS)
            ]
            for split in SPLITS
        }
        for name in EMBEDDED
    }


# --- what the embedded domains have


def test_the_embedded_domains_have_many_intents_paraphrases_and_use_every_tool() -> None:
    domains = [load_domain(name) for name in EMBEDDED]
    assert sum(len(domain.intents) for domain in domains) >= 60
    for domain in domains:
        assert {intent.tool for intent in domain.intents.values()} == set(domain.tools)
        for intent in domain.intents.values():
            assert intent.slots
            assert (
                len({wordings(paraphrase) for paraphrase in intent.paraphrases})
                == len(intent.paraphrases)
                >= 4
            )


def test_texts_are_one_tidy_line_with_every_value_in_it(draws: dict[str, dict[str, list[Draw]]]) -> None:
    for by_split in draws.values():
        for draw in (draw for split in SPLITS for draw in by_split[split]):
            text = draw.task.text
            assert text == " ".join(text.split())
            assert not re.search(r"[{}|]|\(|\)", text)
            assert all(said in text for said, _ in draw.values.values())
            assert len({said for said, _ in draw.values.values()}) == len(draw.values)


def test_the_commands_fit_their_intents(draws: dict[str, dict[str, list[Draw]]]) -> None:
    for name, by_split in draws.items():
        for draw in by_split["train"]:
            command = command_of(name, draw.intent, draw.values)
            assert all(written in command for _, written in draw.values.values())
            assert "\n" not in command and command == command.strip()


# --- splits


@pytest.mark.parametrize("name", EMBEDDED)
def test_splits_never_mix(name: str, draws: dict[str, dict[str, list[Draw]]]) -> None:
    texts = {split: {draw.task.text for draw in draws[name][split]} for split in SPLITS}
    texts = {
        split: texts[split] | {task.text for task in load_domain(name).tasks(split, 400, "seed", 7)}
        for split in SPLITS
    }
    assert sum(map(len, texts.values())) > 3000
    assert not texts["train"] & texts["pretrain"]
    assert not texts["train"] & texts["heldout"]
    assert not texts["pretrain"] & texts["heldout"]


def has_held_out_value(domain: Domain, draw: Draw) -> bool:
    return any(domain.slots[slot].held_out_value(said) for slot, (said, _) in draw.values.items())


@pytest.mark.parametrize("name", EMBEDDED)
def test_held_out_tasks_have_an_unseen_paraphrase_or_value_and_the_others_neither(
    name: str, draws: dict[str, dict[str, list[Draw]]]
) -> None:
    domain = load_domain(name)
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for draw in draws[name]["train"] + draws[name]["pretrain"]:
        paraphrases = domain.intents[draw.intent].paraphrases
        said = {slot: value for slot, (value, _) in draw.values.items()}
        assert draw.paraphrase < len(paraphrases) - 1
        assert draw.task.text not in {fill(wording, said) for wording in wordings(paraphrases[-1])}
        assert not has_held_out_value(domain, draw)
        for slot, value in said.items():
            seen[slot].add(value)
    kinds: Counter[tuple[str, bool]] = Counter()
    for draw in draws[name]["heldout"]:
        unseen_paraphrase = draw.paraphrase == len(domain.intents[draw.intent].paraphrases) - 1
        unseen_values = {
            slot for slot, (value, _) in draw.values.items() if domain.slots[slot].held_out_value(value)
        }
        assert unseen_paraphrase != bool(unseen_values)
        assert not any(draw.values[slot][0] in seen[slot] for slot in unseen_values)
        kinds[draw.intent, unseen_paraphrase] += 1
    for intent in domain.intents:  # both kinds, in every intent that can have them
        assert kinds[intent, True] > DRAWS / 5
        holdable = any(domain.slots[slot].has_held_out() for slot in domain.intents[intent].slots)
        assert (kinds[intent, False] > DRAWS / 5) == holdable


def test_the_choices_that_the_file_holds_out_are_held_out(draws: dict[str, dict[str, list[Draw]]]) -> None:
    for name in EMBEDDED:
        slots = yaml.safe_load(domain_path(name).read_text(encoding="utf-8"))["slots"]
        held_out = {slot: set(about["held_out"]) for slot, about in slots.items() if "held_out" in about}
        assert held_out
        said = {
            split: {
                (slot, value)
                for draw in draws[name][split]
                for slot, (value, _) in draw.values.items()
                if slot in held_out
            }
            for split in SPLITS
        }
        listed = {(slot, value) for slot, values in held_out.items() for value in values}
        assert listed <= said["heldout"]
        assert not listed & (said["train"] | said["pretrain"])


def test_some_fifth_of_numbers_names_and_addresses_is_held_out() -> None:
    for name in EMBEDDED:
        for slot in load_domain(name).slots.values():
            if slot.kind == "choice":  # type: ignore[attr-defined]
                continue
            rng = random.Random(0)
            values = {slot.candidate(rng)[0] for _ in range(2000)}
            assert 0.05 < sum(map(slot.held_out_value, values)) / len(values) < 0.35


def test_tasks_are_the_same_in_every_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT_FIRST_TASKS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "271828")
    ]
    assert [process.communicate(timeout=100)[0].strip() for process in processes] == [FIRST_TASKS] * 2


def test_drawing_depends_on_nothing_but_its_arguments() -> None:
    domain = load_domain("shell")
    first = domain.task("train", "copy", 5)
    random.seed(1)
    domain.tasks("train", 30, "another stream")
    assert domain.task("train", "copy", 5) == first
    assert domain.task("train", "copy", 6) != first
    assert domain.tasks("train", 20, 0, 1, "before") == domain.tasks("train", 20, 0, 1, "before")
    assert domain.tasks("train", 20, 0, 1, "before") != domain.tasks("train", 20, 0, 1, "after")
    assert domain.tasks("train", 20, 0, 11) != domain.tasks("train", 20, 0, 1, 1)


def test_tasks_are_different_and_take_the_intents_in_turn() -> None:
    domain = load_domain("network")
    tasks = domain.tasks("train", 10 * len(domain.intents), 3)
    assert len({task.text for task in tasks}) == len({task.id for task in tasks}) == len(tasks)
    assert set(Counter(task.id.split("/")[1] for task in tasks).values()) == {10}
    assert domain.tasks("train", 0, 3) == []


# --- ambiguity


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_text_has_two_meanings_and_no_command_two_intents(
    name: str, draws: dict[str, dict[str, list[Draw]]]
) -> None:
    meanings: defaultdict[str, set[str]] = defaultdict(set)
    intents: defaultdict[str, set[str]] = defaultdict(set)
    for draw in (draw for split in SPLITS for draw in draws[name][split]):
        command = command_of(name, draw.intent, draw.values)
        meanings[draw.task.text.lower()].add(command)
        intents[" ".join(command.split())].add(draw.intent)
    assert [text for text, commands in meanings.items() if len(commands) > 1] == []
    assert [command for command, names in intents.items() if len(names) > 1] == []


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_intent_recognises_the_text_of_another(name: str, draws: dict[str, dict[str, list[Draw]]]) -> None:
    """With the very same values, wherever two intents have the same slots."""
    domain = load_domain(name)
    for draw in draws[name]["train"][::12] + draws[name]["heldout"][::12]:
        for other in domain.intents.values():
            if other.name != draw.intent and set(other.slots) <= set(draw.values):
                assert not domain.recognise(other.name, draw.values, draw.task.text), other.name


def test_the_wordings_of_two_intents_differ_even_without_the_names_of_their_slots() -> None:
    for name in EMBEDDED:
        owner: dict[str, str] = {}
        for intent in load_domain(name).intents.values():
            for wording in (wording for paraphrase in intent.paraphrases for wording in wordings(paraphrase)):
                assert owner.setdefault(re.sub(r"\{\w+\}", "{}", wording), intent.name) == intent.name, (
                    wording
                )


# --- truth


def test_the_reference_of_a_drawn_task_fits(draws: dict[str, dict[str, list[Draw]]]) -> None:
    for name in EMBEDDED:
        for draw in [draw for split in SPLITS for draw in draws[name][split][::15]]:
            wanted = command_of(name, draw.intent, draw.values)
            assert reference(draw.task) == wanted
            assert find_draw(draw.task) == draw
            spaced = "  " + wanted.replace(" ", " \t ") + "\n"
            assert exact_match([draw.task] * 4, [wanted, spaced, wanted + " x", ""]) == [
                True,
                True,
                False,
                False,
            ]


def test_a_reconstruction_counts_when_it_says_the_same_in_any_wording(
    draws: dict[str, dict[str, list[Draw]]],
) -> None:
    for name in EMBEDDED:
        domain, some = load_domain(name), [draw for split in SPLITS for draw in draws[name][split][::20]]
        for draw, other in itertools.pairwise(some):
            assert reconstruction_match(draw.task, draw.task.text) is True
            assert reconstruction_match(draw.task, f"  {draw.task.text.upper()} ".replace(" ", "  ")) is True
            for paraphrase in range(len(domain.intents[draw.intent].paraphrases)):
                assert (
                    reconstruction_match(
                        draw.task, domain.say(draw.intent, paraphrase, draw.values, random.Random(1))
                    )
                    is True
                )
            same = (draw.intent, draw.values) == (other.intent, other.values)
            assert reconstruction_match(draw.task, other.task.text) is same
            assert reconstruction_match(draw.task, draw.task.text + " please") is False
            assert reconstruction_match(draw.task, draw.task.text.replace(" ", "")) is False
            assert reconstruction_match(draw.task, "") is False


def test_a_reconstruction_with_another_value_does_not_count(draws: dict[str, dict[str, list[Draw]]]) -> None:
    for name in EMBEDDED:
        domain = load_domain(name)
        for draw in draws[name]["train"][::30]:
            for slot in draw.values:
                other = next(
                    d
                    for d in draws[name]["pretrain"]
                    if slot in d.values and d.values[slot] != draw.values[slot]
                )
                text = domain.say(
                    draw.intent, draw.paraphrase, {**draw.values, slot: other.values[slot]}, random.Random(0)
                )
                assert reconstruction_match(draw.task, text) is False


def test_words_that_run_into_a_value_are_not_recognised() -> None:
    domain = load_domain("network")
    values = {"count": ("2", "2"), "host": ("web1.test", "web1.test")}
    assert domain.recognise("ping-count", values, "ping web1.test 2 times and then stop")
    assert not domain.recognise("ping-count", values, "ping web1.test2 times and then stop")
    assert not domain.recognise(
        "ping-count", values, "ping web1xtest 2 times and then stop"
    )  # a dot is a dot


def test_a_tampered_task_has_no_reference() -> None:
    task = load_domain("sql").task("heldout", "cheapest", 3)
    others = [
        replace(task, text=task.text + "."),
        replace(task, text=load_domain("sql").task("heldout", "cheapest", 4).text),
        replace(task, tool=""),
        replace(task, domain="shell"),
        replace(task, id=task.id.replace("heldout", "train")),
        replace(task, id=task.id.replace("cheapest", "most-expensive")),
    ]
    for other in others:
        assert reference(other) is None
        assert find_draw(other) is None
        assert reconstruction_match(other, other.text) is None
    assert exact_match([*others, task], [reference(task) or ""] * 7) == [None] * 6 + [True]


@pytest.mark.parametrize(
    "odd",
    [
        "", "/", "//", "///", "train", "train/", "train/copy", "train/copy/", "train/copy/x", "train/copy/-1", "train/copy/1.0",
        "train/copy/1/2", "train/copy/²", "train/copy/٣", "train/copy/ 3", "train/copy/3 ", "train/copy/3\n", "train/copy/03",
        "train/copy/" + "9" * 9999,
        "train/nothing/3", "train//3", "test/copy/3", "TRAIN/copy/3", "proposed/0/1/before/3", "proposed/copy/3", "tasks.jsonl/3", "copy/3",
        "org/data/3", "train/../3", "train/copy\x00/3", "heldout/copy/1e3", "\ud800/copy/3",
    ],
)  # fmt: skip
def test_odd_ids_have_no_reference_and_do_no_harm(odd: str) -> None:
    task = Task(odd, "shell", load_domain("shell").task("train", "copy", 3).text, "cp")
    assert find_draw(task) is None
    assert reference(task) is None
    assert exact_match([task], ["cp a b"]) == [None]
    assert reconstruction_match(task, task.text) is None


def test_a_task_of_another_source_has_no_reference_even_with_a_fitting_id() -> None:
    drawn = load_domain("shell").task("train", "copy", 3)
    assert reference(drawn)
    assert (
        reference(Task(drawn.id, "shell", drawn.text)) is None
    )  # from a data set that calls itself train/copy


def test_a_large_index_is_as_good_as_a_small_one() -> None:
    task = load_domain("shell").task("pretrain", "copy", 2**40)
    assert reference(task)


# --- who knows the references


def strings_in(root: object) -> set[str]:
    """Every string that can be reached from an object through its attributes, fields and elements."""
    found: set[str] = set()
    todo, seen = [root], set()
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or callable(item):
            continue
        seen.add(id(item))
        if isinstance(item, str):
            found.add(item)
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
        elif isinstance(item, pydantic.BaseModel):
            todo += [item.__dict__, item.__pydantic_private__, item.__pydantic_extra__]
        elif hasattr(item, "__dict__"):
            todo.append(vars(item))
    return found


def test_nothing_that_training_sees_holds_a_reference() -> None:
    for name in EMBEDDED:
        domain, spec = load_domain(name), load_spec(name)
        tasks = [domain.task(split, intent, 1) for split in SPLITS for intent in domain.intents]
        seen = strings_in([domain, tasks, domain.tasks("train", 50, 0)])
        assert {intent.paraphrases[-1] for intent in spec.intents} <= seen  # so the walk went everywhere
        assert "10.html" not in seen and len(seen) > 300
        for intent in spec.intents:
            starts = {intent.command, intent.command.partition("{")[0].strip()}
            for start in (
                start for start in starts if re.search(r" [-+<@']|SELECT", start)
            ):  # `sort {file}` is also how people speak
                assert not [text for text in seen if start in text], start
    everything = strings_in([load_domain(name) for name in EMBEDDED])
    for fragment in ("-sS", "sort -rn", "SELECT", "+short", "-mindepth", "print $", "nc -z"):
        assert not [text for text in everything if fragment in text], fragment
    assert "sort {file} | uniq -c | sort -rn | head -n {top}" in strings_in(
        load_spec("shell")
    )  # the walk would have found it


def test_the_records_have_no_room_for_a_reference() -> None:
    assert [field.name for field in dataclasses.fields(Task)] == ["id", "domain", "text", "tool", "system"]
    assert [field.name for field in dataclasses.fields(Intent)] == ["name", "tool", "slots", "paraphrases"]
    task = load_domain("shell").task("train", "copy", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.text = "rm"  # type: ignore[misc]


# --- a user's own file

GOOD = """\
name: tiny
description: a tiny domain
tools: [head, cp]
prompts:
  forward: "Write. {task}"
  inverse: "Say. {command}"
  propose: "Propose for {tool}."
  judge: "Right? {task} {command}"
  rate: "Alike? {task} {reconstruction}"
  revise: "Revise. {principle} {task} {command}"
principles:
  - Use the values.
verify:
  kind: sql
  tables:
    people:
      rows: 9
      columns:
        id: {fill: key}
        name: {fill: unique, words: [ann, bob, cid]}
        town: {fill: among, slot: city}
        job: {fill: among, values: [cook, clerk]}
        age: {fill: integer, low: 10, high: 18, repeats: never}
        boss: {fill: refers, to: people}
slots:
  n: {kind: integer, low: 2, high: 40, step: 1}
  file: {kind: name, words: [report, notes], suffixes: [.txt, .log]}
  other: {kind: name, words: [backup, draft]}
  type: {kind: choice, values: {files: f, directories: d}}
  net: {kind: subnet, prefix: 24}
  city:
    kind: choice
    values: [Rome, Oslo, Bern]
    held_out: [Bern]
intents:
  - name: first
    tool: head
    command: head -n {n} {file}
    paraphrases:
      - (show|print|) {n} lines of {file}
      - give {n} lines (from|of) {file}
      - from {file} take {n} lines
  - name: copy
    tool: cp
    command: cp {file} {other}
    paraphrases:
      - copy {file} to {other}
      - (make|create) {other} from {file}
      - duplicate {file} as {other}
"""


def save(folder: Path, text: str | bytes, name: str = "my.yaml") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_good_file_loads(tmp_path: Path) -> None:
    domain = load_domain(save(tmp_path, GOOD))
    task = domain.task("train", "copy", 0)
    assert (domain.name, task.domain, task.tool) == ("tiny", str(tmp_path / "my.yaml"), "cp")
    assert reference(task)
    assert {domain.say("first", 0, {"n": ("2", "2"), "file": ("a", "a")}, random.Random(i)) for i in range(20)} == {
        "show 2 lines of a", "print 2 lines of a", "2 lines of a",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("copy {file} to {other}", "kopiere 📄 {file} nach {other} – schön"),
        GOOD.replace("head -n {n} {file}", "head -n {n} {file} | awk '{ print }' | awk '{print $1}'"),
        GOOD.replace("command: cp {file} {other}", "command: >\n      cp {file}\n      {other}"),
        GOOD.replace("values: [Rome, Oslo, Bern]", "values: [Rome, 7, Bern]"),
        GOOD.replace("{files: f, directories: d}", "{files: '', 1: d}"),
        GOOD.replace("from {file} take {n} lines", "from {file} take {n} lines (all of them)"),
        GOOD.replace("tools: [head, cp]", "tools: &tools [head, cp]").replace(
            "principles:\n  - Use the values.", "principles: *tools"
        ),
    ],
)
def test_unusual_but_good_files_load(tmp_path: Path, text: str) -> None:
    domain = load_domain(save(tmp_path, text))
    for split in SPLITS:
        for task in domain.tasks(split, 6, 0):
            assert reconstruction_match(task, task.text)
            assert "\n" not in str(reference(task))


SAME = "same"  # the mistake is in the line of the replacement
# name: (what is replaced, by what, the line that the message names: the first with this text, what the message says)
MISTAKES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "key missing": ("tools: [head, cp]\n", "", "name: tiny", ("'tools'", "missing", "add it")),
    "key of an intent missing": ("    tool: cp\n", "", "- name: copy", ("intents[1]", "'tool'", "add it")),
    "key of a slot missing": ("low: 2, ", "", "  n: {", ("slots.n", "'low'", "missing")),
    "unknown key": ("description: a", "descripton: a", SAME, ("unknown key 'descripton'", "did you mean description?")),
    "unknown key of an intent": ("    command: cp", "    comand: cp", SAME, ("intents[1].comand", "did you mean command?")),
    "unknown key of a slot": ("step: 1", "stepp: 1", SAME, ("slots.n.stepp", "did you mean step?")),
    "key of another slot kind": ("words: [backup, draft]", "words: [backup, draft], low: 3", SAME, ("slots.other.low", "unknown key")),
    "same key twice": ("tools: [head, cp]\n", "tools: [head, cp]\nname: other\n", "name: other", ("name: this key is", "twice", "first in line 1")),
    "same slot twice": ("  net: {", "  n: {kind: address}\n  net: {", SAME, ("slots.n: this key is there twice",)),
    "same key twice in braces": ("low: 2, high", "low: 2, low: 3, high", SAME, ("slots.n.low", "twice")),
    "text for a list": ("tools: [head, cp]", "tools: head", SAME, ("tools: must be a list", "'head'")),
    "list for a text": ("a tiny domain", "[a, tiny, domain]", SAME, ("description: must be a text",)),
    "number for a text": ("name: tiny", "name: 7", SAME, ("name: must be a text (found 7)",)),
    "list for a mapping": ("  net: {kind: subnet, prefix: 24}", "  net: [subnet]", SAME, ("slots.net", "mapping")),
    "text for an intent": ("  - name: copy", "  - copy it\n  - name: copy", "- copy it", ("intents[1]: must be a mapping",)),
    "text for a number": ("low: 2", "low: two", SAME, ("slots.n.low: must be a whole number", "'two'")),
    "fraction for a number": ("low: 2,", "low: 2.5,", SAME, ("slots.n.low", "2.5", "whole number")),
    "no intents": (GOOD[GOOD.index("intents:") :], "intents: []\n", SAME, ("intents: needs at least 1", "has 0")),
    "unknown slot kind": ("kind: subnet", "kind: subnets", SAME, ("slots.net", "kind 'subnets'", "did you mean subnet?", "address")),
    "slot kind missing": ("{kind: subnet, prefix: 24}", "{prefix: 24}", SAME, ("slots.net", "'kind' is missing", "choice, integer")),
    "bad name of a slot": ("  other: {", "  Other: {", SAME, ("'Other' may have only small letters", "rename")),
    "slot not declared": ("cp {file} {other}", "cp {file} {othr}", SAME, ("intents[1].command", "{othr}", "did you mean other?")),
    "literal braces": ("cp {file} {other}", "awk {print} {file} {other}", SAME, ("{print}", "{ print }")),
    "slot misspelt in a paraphrase": ("copy {file} to {other}", "copy {File} to {other}", SAME, ("{File}", "write {file}")),
    "slot misspelt in both": ("cp {file} {other}", "cp {file} {other} {Net}", SAME, ("intents[1].command", "{Net}", "write {net}")),
    "placeholder missing": ("copy {file} to {other}", "copy {file} away", SAME, ("intents[1].paraphrases[0]", "{other}", "must say it")),
    "placeholder missing in an alternative": ("(make|create) {other}", "(make {other}|create)", SAME, ("{other}", "'create from {file}'")),
    "placeholder in an empty alternative": ("take {n} lines", "take (|{n}) lines", SAME, ("paraphrases[2]", "{n} is missing where")),
    "extra placeholder": ("copy {file} to", "copy {n} {file} to", SAME, ("intents[1].paraphrases[0]", "{n} is not in the command")),
    "placeholder made of pieces": ("copy {file} to", "copy {file} {na(b|)me} to", SAME, ("brackets and braces", "keep each {slot} whole")),
    "duplicate intent": ("name: copy", "name: first", "  - name: first\n    tool: cp", ("intents[1].name", "'first' is used twice")),
    "too few paraphrases": ("      - copy {file} to {other}\n", "", "    paraphrases:\n      - (make", ("needs at least 3", "has 2")),
    "bad name": ("name: tiny", "name: tiny domain", SAME, ("'tiny domain' may have only letters, digits and dashes",)),
    "bad name of an intent": ("name: copy", "name: Copy_it", SAME, ("intents[1].name", "'Copy_it' may have only small letters")),
    "held-out value unknown": ("held_out: [Bern]", "held_out: [Bernn]", SAME, ("slots.city.held_out", "'Bernn'", "did you mean Bern?")),
    "everything held out": ("held_out: [Bern]", "held_out: [Bern, Rome, Oslo]", SAME, ("slots.city.held_out", "nothing to train on")),
    "held_out is a text": ("held_out: [Bern]", "held_out: Bern", SAME, ("slots.city.held_out: must be a list",)),
    "value twice": ("[Rome, Oslo, Bern]", "[Rome, Oslo, Bern, Rome]", SAME, ("slots.city.values", "'Rome' is there twice")),
    "value empty": ("[Rome, Oslo, Bern]", "[Rome, ' ', Bern]", SAME, ("slots.city.values", "empty")),
    "no values": ("values: {files: f, directories: d}", "values: []", SAME, ("slots.type.values: needs at least 1",)),
    "values is a text": ("values: {files: f, directories: d}", "values: files", SAME, ("slots.type.values", "a list, or a mapping")),
    "value is a list": ("[Rome, Oslo, Bern]", "[Rome, [Oslo], Bern]", SAME, ("slots.city.values", "['Oslo'] is neither")),
    "value reads as true": ("[Rome, Oslo, Bern]", "[Rome, yes, Bern]", SAME, ("slots.city.values[1]", "yes", "true or false", "quotes")),
    "value written reads as false": ("directories: d}", "directories: off}", SAME, ("slots.type.values.directories", "off", "quotes")),
    "value said reads as false": ("{files: f", "{no: f", SAME, ("slots.type.values.no", "quotes")),
    "value reads as another number": ("[Rome, Oslo, Bern]", "[Rome, 010, Bern]", SAME, ("reads 010 as 8", "quotes")),
    "value reads as minutes": ("[Rome, Oslo, Bern]", "[Rome, 12:30, Bern]", SAME, ("reads 12:30 as 750", "quotes")),
    "value reads as a date": ("[Rome, Oslo, Bern]", "[Rome, 2026-13-45, Bern]", SAME, ("2026-13-45", "date", "quotes")),
    "value reads as nothing": ("[Rome, Oslo, Bern]", "[Rome, ~, Bern]", SAME, ("slots.city.values[1]", "is empty")),
    "number that is none": ("low: 2", "low: !!int two", SAME, ("slots.n.low", "'two'")),
    "range too small": ("high: 40", "high: 5", SAME, ("slots.n", "fewer than 5 values")),
    "range too small for its step": ("step: 1", "step: 10", SAME, ("slots.n", "fewer than 5 values")),
    "low above high": ("low: 2, high: 40", "low: 40, high: 2", SAME, ("slots.n", "low (40) is above high (2)")),
    "step 0": ("step: 1", "step: 0", SAME, ("slots.n.step: must be 1 or more (found 0)",)),
    "prefix": ("prefix: 24", "prefix: 20", SAME, ("slots.net.prefix: must be 16 or 24 (found 20)",)),
    "one word": ("words: [backup, draft]", "words: [backup]", SAME, ("slots.other.words: needs at least 2",)),
    "no suffixes": ("suffixes: [.txt, .log]", "suffixes: []", SAME, ("slots.file.suffixes: needs at least 1",)),
    "empty word": ("words: [backup, draft]", "words: [backup, '']", SAME, ("slots.other.words[1]", "is empty")),
    "prompt missing": ('  inverse: "Say. {command}"\n', "", "prompts:", ("prompts", "'inverse' is missing")),
    "prompt without its placeholder": ("Write. {task}", "Write.", "  forward:", ("prompts.forward", "{task} is missing")),
    "prompt with an unknown placeholder": ("Say. {command}", "Say. {command} {task}", SAME, ("prompts.inverse", "{task}", "use {command}")),
    "unknown prompt": ("  rate: ", '  rating: "x"\n  rate: ', "rating", ("prompts.rating", "unknown prompt", "did you mean rate?")),
    "empty prompt": ('"Say. {command}"', '" "', SAME, ("prompts.inverse: is empty",)),
    "prompt in bare braces": ('"Say. {command}"', "{command}", SAME, ("prompts.inverse", "{command}", "quotes")),
    "no principles": ("principles:\n  - Use the values.", "principles: []", SAME, ("principles: needs at least 1",)),
    "tool not in tools": ("    tool: cp", "    tool: cpp", SAME, ("intents[1].tool", "'cpp' is not in tools", "did you mean cp?")),
    "empty tool": ("tools: [head, cp]", "tools: [head, '']", SAME, ("tools[1]: is empty",)),
    "empty paraphrase": ("- copy {file} to {other}", "- ''", SAME, ("intents[1].paraphrases[0]: is empty",)),
    "blank paraphrase": ("- copy {file} to {other}", "-", "      -\n", ("intents[1].paraphrases[0]: is empty",)),
    "empty command": ("command: cp {file} {other}", "command: ''", SAME, ("intents[1].command: is empty",)),
    "command of two lines": ("command: cp {file} {other}", "command: |\n      cp {file}\n      cat {other}", SAME, ("must be one line",)),
    "nested brackets": ("copy {file} to", "((now|) copy|dup) {file} to", SAME, ("intents[1].paraphrases[0]", "nested or not closed")),
    "bracket not closed": ("copy {file} to", "(copy|dup {file} to", SAME, ("intents[1].paraphrases[0]", "not closed")),
    "too many wordings": ("copy {file} to", f"{'(a|b) ' * 13}{{file}} to", SAME, ("8,192 wordings", "split it")),
    "held-out paraphrase is trained on": (
        "duplicate {file} as {other}", "(dup|copy) {file} to {other}", SAME,
        ("intents[1].paraphrases[2]", "held out", "'copy {file} to {other}'"),
    ),
    "two intents with one wording": (
        GOOD[GOOD.index("  - name: copy") :],
        GOOD[GOOD.index("  - name: first") : GOOD.index("  - name: copy")].replace("first", "last").replace("head", "cp")
        .replace("(show|print|) {n}", "(see|print) {n}"),
        "(see|print)", ("intents[1].paraphrases[0]", "'print {n} lines of {file}'", "'first'"),
    ),
    "no sentence to train on": (
        GOOD[GOOD.index("  - name: copy") :],
        "  - name: up\n    tool: cp\n    command: uptime\n    paraphrases: [how long, how long, since when]\n",
        "- name: up", ("intents[1]", "'up' has no", "more wordings or more values"),
    ),
    "values cannot differ": (
        GOOD[GOOD.index("  other: {") : GOOD.index("  type")].rstrip("\n"),
        "  other: {kind: choice, values: [Rome]}\n  city2: {kind: choice, values: [Rome]}\n  third: {kind: name, words: [a, b]}",
        "- name: copy", ("intents[1]", "enough different values"),
    ),
    "held-out values cannot differ": (
        "  other: {kind: name, words: [backup, draft]}",
        "  other: {kind: integer, low: 1, high: 5}\n  city2: {kind: integer, low: 1, high: 5}",
        "- name: copy", ("intents[1]", "city2 and other must be held-out ones", "give them more"),
    ),
    "no held-out name": ("words: [backup, draft]", "words: [ant, hen]", SAME, ("slots.other", "has no held-out value", "more values")),
    "not closed": ("tools: [head, cp]", "tools: [head, cp", "prompts:", ("not valid YAML", "fix or quote this line")),
    "no quotes around a colon": ("a tiny domain", "a: tiny: domain", SAME, ("not valid YAML", "mapping values")),
    "bare brace at the start": ("- copy {file} to {other}", "- {file} to {other}", SAME, ("not valid YAML",)),
    "tab": ("  propose:", "\tpropose:", SAME, ("not valid YAML", "tab", "spaces")),
    "tag": ("a tiny domain", "!python/object tiny", SAME, ("description", "'tiny' has the YAML tag !python/object", "remove it")),
    "merged with nothing": ("tools: [head, cp]", "tools: *nothing", SAME, ("not valid YAML", "nothing")),
    "two documents": ("tools: [head, cp]\n", "---\ntools: [head, cp]\n", "---", ("not valid YAML: found another document",)),
    "control character": ("a tiny domain", "a \x07 domain", SAME, ("not valid YAML", "U+0007")),
    "unknown kind of verification": ("kind: sql", "kind: sqll", "verify:", ("kind 'sqll'", "did you mean sql?", "network, exact")),
    "no kind of verification": ("  kind: sql\n", "", "verify:", ("verify", "'kind' is missing", "shell, sql")),
    "no tables": (GOOD[GOOD.index("  tables:") : GOOD.index("slots:")], "", "verify:", ("verify", "'tables' is missing")),
    "tables elsewhere": ("kind: sql\n", "kind: shell\n", "  tables:", ("verify.tables", "unknown key 'tables'")),
    "tables are a list": (GOOD[GOOD.index("  tables:") : GOOD.index("slots:")], "  tables: [a]\n", SAME, ("tables: must be a mapping",)),
    "unknown key of a table": ("rows: 9", "row: 9", SAME, ("people.row:", "did you mean rows?")),
    "too many rows": ("rows: 9", "rows: 90000", SAME, ("people.rows: must be 1000 or less (found 90000)",)),
    "no rows": ("rows: 9", "rows: 0", SAME, ("people.rows: must be 1 or more",)),
    "name of a table": ("    people:", "    the people:", SAME, ("'the people' may have only letters", "underscores", "rename")),
    "name of a column": ("        age:", "        2age:", SAME, ("'2age' may have only letters", "no digit first")),
    "name that SQLite keeps": ("    people:", "    SQLite_x:", SAME, ("verify.tables.SQLite_x", "'SQLite_'", "rename")),
    "columns alike": ("        job:", "        NAME:", SAME, ("columns.NAME", "differs from 'name' in letter case")),
    "unknown filling": ("fill: key", "fill: kye", SAME, ("columns.id", "unknown fill 'kye'", "did you mean key?", "unique, among")),
    "filling missing": ("{fill: key}", "{}", SAME, ("columns.id", "'fill' is missing", "key, unique")),
    "key of another filling": ("fill: key", "fill: key, slot: city", SAME, ("columns.id.slot", "unknown key 'slot'")),
    "key of a filling misspelt": ("slot: city", "slott: city", SAME, ("columns.town.slott", "did you mean slot?")),
    "two keys": ("job: {fill: among, values: [cook, clerk]}", "job: {fill: key}", SAME, ("columns.job", "second key besides 'id'")),
    "values and slot": ("slot: city", "slot: city, values: [a, b]", SAME, ("columns.town", "needs either values or slot")),
    "neither values nor slot": (", slot: city", "", "town:", ("columns.town", "needs either values or slot")),
    "one value": ("values: [cook, clerk]", "values: [cook]", SAME, ("columns.job.values: needs at least 2",)),
    "no such slot": ("slot: city", "slot: cty", SAME, ("columns.town.slot: 'cty' is not a choice slot", "did you mean city?")),
    "slot that is no choice": ("slot: city", "slot: net", SAME, ("columns.town.slot: 'net' is not a choice slot", "write values")),
    "too few words": ("rows: 9", "rows: 10", "        name:", ("columns.name", "9 different values for 10 rows")),
    "too few numbers": ("low: 10,", "low: 12,", SAME, ("columns.age", "7 different values for 9 rows")),
    "numbers swapped": ("low: 10, high: 18", "low: 18, high: 10", SAME, ("columns.age: low (18) is above high (10)",)),
    "repeats": ("repeats: never", "repeats: 'no'", SAME, ("columns.age.repeats: must be 'allowed' or 'never'",)),
    "unknown table": ("to: people", "to: peple", SAME, ("columns.boss.to: 'peple' is not in tables", "did you mean people?")),
    "table without a key": ("{fill: key}", "{fill: among, values: [1, 2]}", "boss:", ("'people' has no column with fill: key",)),
    "key that is a list": ("description:", "[a, b]: c\ndescription:", "name: tiny", ("the file: a key must be a text",)),
}  # fmt: skip
# What both slots of an intent need so that they can collide.
COLLIDING = {"values cannot differ", "held-out values cannot differ"}
JARGON = re.compile(
    r"pydantic|input should|value error|valid (string|list|dict|integer)|union|validat|discriminator|NoneType|Traceback|\bctx\b|extra_",
    re.I,
)


def complaint(where: str) -> str:
    with pytest.raises(InputError) as caught:
        load_domain(where)  # all that is wrong shows here, not when something is drawn
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    assert not JARGON.search(message.replace(where, "")), message
    assert len(message.replace(where, "")) < 260
    return message


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_in_one_line_with_file_line_key_and_fix(tmp_path: Path, name: str) -> None:
    old, new, mark, wanted = MISTAKES[name]
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    if name in COLLIDING:
        text = text.replace("{file}", "{city2}").replace(
            "command: head -n {n} {city2}", "command: head -n {n} {city2} "
        )
    where = save(tmp_path, text)
    place = text.index(new if mark == SAME else mark)
    message = complaint(where)
    line = text[:place].count("\n") + 1
    assert message.startswith(f"{where}:{line}: "), (message, line)
    assert [part for part in wanted if part not in message] == [], message


def test_the_first_mistake_of_a_file_is_reported(tmp_path: Path) -> None:
    text = (
        GOOD.replace("step: 1", "step: 0")
        .replace("tools: [head, cp]", "tools: head")
        .replace("prefix: 24", "prefix: 3")
    )
    assert ":3: tools" in complaint(save(tmp_path, text))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"# nothing\n",
        b"---\n",
        b"- a\n- b\n",
        b"just words\n",
        b"7\n",
        b"null\n",
        b"[name, tools]\n",
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: bytes) -> None:
    message = complaint(save(tmp_path, content))
    assert message.startswith(f"{tmp_path / 'my.yaml'}:1: the file: must be a mapping")
    assert "intents" in message


@pytest.mark.parametrize(
    ("content", "line", "wanted"),
    [
        (GOOD.encode().replace(b"a tiny", b"a t\xefny"), 2, "0xef"),
        (GOOD.encode("utf-16"), 1, "UTF-8"),
        (b"[" * 3000, 1, "nested"),
        (b"\x00\x01\x02", 1, "U+0000"),
        (b"a: &a [*a]\n", 1, "no alias inside its own value"),
    ],
)
def test_files_that_are_hardly_text(tmp_path: Path, content: bytes, line: int, wanted: str) -> None:
    where = save(tmp_path, content)
    message = complaint(where)
    assert message.startswith(f"{where}:{line}: ")
    assert wanted in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, GOOD, "network-lab.yaml")
    assert "did you mean shell?" in complaint("shel")
    assert "did you mean network?" in complaint("netwrok")
    assert f"did you mean {tmp_path / 'network-lab.yaml'}?" in complaint(str(tmp_path / "netwrk-lab.yml"))
    assert "network, shell, sql, all" in complaint("zzz")
    assert "no such domain or file" in complaint(str(tmp_path / "network-lab.yaml" / "x.yaml"))
    assert "folder" in complaint(str(tmp_path))
    assert "--domain" in complaint("x" * 5000)
    assert "--domain" in complaint("shell\x00")


def test_names_of_domains() -> None:
    assert domain_names("all") == list(EMBEDDED)
    assert domain_names(" shell , my.yaml,,shell") == ["shell", "my.yaml"]
    assert domain_names("my.yaml,all") == ["my.yaml", *EMBEDDED]
    for nothing in ("", " ", ",", " , "):
        with pytest.raises(InputError, match="name at least one domain"):
            domain_names(nothing)


def test_wordings_are_all_that_can_be_said() -> None:
    assert wordings("(a|b|) {n} (c|d)") == ("a {n} c", "a {n} d", "b {n} c", "b {n} d", "{n} c", "{n} d")
    assert wordings("plain (not a choice)") == ("plain (not a choice)",)
    domain = load_domain("shell")
    for intent in domain.intents.values():
        values = {slot: (slot, "") for slot in intent.slots}
        for place, paraphrase in enumerate(intent.paraphrases):
            said = {domain.say(intent.name, place, values, random.Random(i)) for i in range(200)}
            assert said <= {
                fill(wording, {slot: slot for slot in values}) for wording in wordings(paraphrase)
            }


def test_broken_files_are_reported_whatever_is_broken(tmp_path: Path) -> None:
    """Lines dropped, doubled, moved, cut or indented at random: a file either loads and draws, or is refused in one line that names it."""
    rng, lines, refused = random.Random(0), GOOD.splitlines(), 0
    for trial in range(150):
        changed: list[Any] = list(lines)
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(changed))
            line = changed[place]
            cut = rng.randrange(len(line) + 1)
            changed[place : place + 1] = rng.choice(
                [
                    [],
                    [line, line],
                    [line[:cut]],
                    [line[cut:]],
                    ["  " + line],
                    [line[:cut] + rng.choice("{}[]|():,'\"#&*!%@`-?~\t") + line[cut:]],
                ]
            )
        where = save(tmp_path, "\n".join(changed) + "\n", f"{trial}.yaml")
        try:
            domain = load_domain(where)
        except InputError:
            assert complaint(where).startswith(f"{where}:")
            refused += 1
        else:
            for split in SPLITS:
                domain.tasks(split, 4, trial)
    assert 50 < refused < 150


def test_a_domain_of_ones_own_is_tools_two_prompts_and_tasks(tmp_path: Path) -> None:
    lines = []
    for line in GOOD.splitlines(keepends=True):
        if not line.startswith(("description", "  propose", "  judge", "  rate", "  revise")):
            lines.append(line)
    text = re.sub(r"principles:.*?(?=^\w)", "", "".join(lines), flags=re.DOTALL | re.MULTILINE)
    domain = load_domain(save(tmp_path, text))
    assert domain.prompt("propose", tool="cp") == "Propose one task for the tool cp, in one line."
    assert domain.prompt("rate", task="x", reconstruction="y").endswith("First: x\nSecond: y")
    assert (domain.system, domain.prefill) == ("", "")
    assert domain.principles


def test_examples_come_before_pairs_of_the_file_and_training_never_sees_them(tmp_path: Path) -> None:
    from envs.verify.truth import labelled_pairs

    extra = "system: Know this.\nprefill: '$ '\nexamples:\n  - {task: show everything, command: cat all}\n"
    where = save(tmp_path, GOOD.replace("tools:", extra + "tools:", 1))
    domain = load_domain(where)
    assert (domain.system, domain.prefill) == ("Know this.", "$ ")
    assert "cat all" not in repr(vars(domain))
    pairs = labelled_pairs(where, 3)
    assert (pairs[0][0].text, pairs[0][1]) == ("show everything", "cat all")
    assert [task.id.split("/")[0] for task, _ in pairs[1:]] == ["pretrain", "pretrain"]
    assert labelled_pairs(where, 0) == []


def test_an_example_without_its_command_is_named(tmp_path: Path) -> None:
    text = GOOD.replace("tools:", "examples:\n  - {task: show everything, comand: x}\ntools:", 1)
    assert "examples[0].comand: unknown key 'comand': did you mean command?" in complaint(
        save(tmp_path, text)
    )


def test_the_schema_in_prompts_is_the_one_of_the_tables() -> None:
    from envs.grammar import ByQuery
    from envs.schema import load_spec

    spec = load_spec("sql")
    assert isinstance(spec.verify, ByQuery)
    for name, table in spec.verify.tables.items():
        [line] = [line for line in spec.system.splitlines() if line.startswith(f"{name}(")]
        found = re.findall(r"(\w+) (?:INTEGER|TEXT)", line)
        assert found == list(table.columns)


def test_whoever_writes_reads_or_judges_a_query_is_told_the_schema() -> None:
    from envs import prompts

    [task] = load_domain("sql").tasks("train", 1, "schema")
    query = "SELECT 1"
    asked = [prompts.forward_prompt(task), prompts.inverse_prompt(task, query)]
    asked += [prompts.judge_prompt(task, query), prompts.points_prompt(task, query, 0)]
    asked += [prompts.critique_prompt(task, query, "p"), prompts.prefer_prompt(task, query, query, "p")]
    asked += [prompts.revise_prompt(task, query, "p", "wrong")]
    assert {prompt.system for prompt in asked} == {load_domain("sql").system}
