"""Shell commands by execution: equivalents are right, look-alikes are not, and the trees tell them apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.domain import load_domain
from envs.schema import load_spec
from envs.verify import shell, trees
from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.run import Execution
from envs.verify.truth import command_of

TABLE = yaml.safe_load((Path(__file__).parent / "equivalence" / "shell.yaml").read_text())
STATUS = {"same": "correct", "other": "wrong", "invalid": "invalid"}


def pairs() -> list[Any]:
    """Every command of the table with its reference. Of every fifth row the first of a kind is not slow."""
    found = []
    for number, row in enumerate(TABLE):
        for kind, status in STATUS.items():
            for place, command in enumerate(row.get(kind, [])):
                reference, ordered = row["reference"], row.get("order") == "matters"
                marks = [pytest.mark.slow] if place or number % 5 else []
                name = f"{status}: {reference} | {command}"[:120]
                found.append(pytest.param(reference, command, ordered, status, id=name, marks=marks))
    return found


def test_the_table_is_large_enough() -> None:
    counts = {kind: sum(len(row.get(kind, [])) for row in TABLE) for kind in STATUS}
    assert counts["same"] >= 60
    assert counts["other"] >= 60
    tools = {intent.tool for intent in load_spec("shell").intents}
    assert tools <= {word for row in TABLE for word in row["reference"].replace("|", " ").split()}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("reference", "command", "ordered", "status"), pairs())
def test_equivalents_and_look_alikes(reference: str, command: str, ordered: bool, status: str) -> None:
    verdict = shell.compare(reference, command, ordered)
    assert verdict.status == status, verdict
    assert bool(verdict.reason) == (status != "correct")
    assert "\n" not in verdict.reason + verdict.differed


@pytest.mark.usefixtures("sandbox")
@pytest.mark.slow
def test_every_intent_differs_from_its_siblings_and_runs() -> None:
    """With equal values no reference does what that of the next intent does."""
    spec, domain = load_spec("shell"), load_domain("shell")
    for place, intent in enumerate(spec.intents):
        draw = domain.draw("heldout", intent.name, 7)
        wanted = command_of("shell", intent.name, draw.values)
        found = shell.reference_results(wanted)
        assert isinstance(found, list), found
        assert any(execution.stdout or execution.tree != tree for tree, execution in found)
        sibling = spec.intents[(place + 1) % len(spec.intents)]
        values = {**domain.draw("heldout", sibling.name, 7).values, **draw.values}
        other = command_of("shell", sibling.name, values)
        assert shell.compare(wanted, other, intent.order == "matters").status == "wrong", (wanted, other)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nosuchtool a.txt", "does not run here"),
        ("find . -size +1M", "nothing of the reference shows"),
        ("rm -f *.tmpp", None),
        ("grep 'no such line' a.txt", "nothing of the reference shows"),
        ("cat /no/such/file", "fails here"),
        ("date +%s%N", "does not do the same twice"),
        ("ln a -s /", "fails here"),
        ("cat ../a.txt", "fails here"),
        ("cat a.txt a.txt/b.txt", "fails here"),
        ("zcat data.gz | wc -l", "fails inside: gzip: data.gz: not in gzip format"),
        ("echo $(zcat data.gz | wc -l)", "fails inside"),
        ("cat no/missing; wc -l < a.txt", "fails inside"),
        ("cat /no/such/file | sort", "fails inside: cat: /no/such/file: No such file or directory"),
    ],
)
def test_a_reference_that_tells_nothing_is_not_executed(reference: str, reason: str | None) -> None:
    for command in ("true", reference):  # not even the reference itself is right where it tells nothing
        verdict = shell.compare(reference, command, False)
        if reason is None:  # the files that a glob means are there
            assert verdict.status == ("correct" if command == reference else "wrong")
        else:
            assert verdict.status == "not_executed"
            assert reason in verdict.reason
            assert verdict.reason.endswith(reference)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    "reference",
    [
        "yes port | head -n 3",  # `yes` ends by a broken pipe
        "cat a.log | grep -c 'no such line'",  # nothing found is a status of 1
        "grep 'no such line' a.log | wc -l",
        "dd bs=10 count=1 < a.log",  # says on standard error how much it copied
        "cat no.such 2>/dev/null || wc -l < a.log",  # a failure that it provides for
        "sort a.log | head -n 1; echo port >&2",
    ],
)
def test_a_reference_may_stop_early_find_nothing_or_write_to_standard_error(reference: str) -> None:
    assert isinstance(shell.reference_results(reference), list)


@pytest.mark.usefixtures("sandbox")
def test_what_names_a_file_that_is_not_there_is_wrong_also_where_it_says_nothing() -> None:
    for command in (
        "cat a.txt b.txt | sort",
        "cat a.txt b.txt 2>/dev/null | sort",
        "sort <(cat a.txt b.txt 2>> /dev/null)",
    ):
        verdict = shell.compare("sort a.txt", command, True)
        assert (verdict.status, verdict.reason) == ("wrong", "names a file that is not there"), command
        assert "b.txt" in verdict.differed
    assert shell.compare("sort a.txt", "cat a.txt 2>/dev/null | sort 2> /dev/null", True).correct


@pytest.mark.usefixtures("sandbox")
def test_a_leading_sudo_counts_on_neither_side() -> None:
    for reference, command in itertools.product(("sort a.txt", "sudo sort a.txt"), repeat=2):
        assert shell.compare(reference, command, True).correct
        assert shell.compare(reference, f"{command} | cat", True).correct
    assert not shell.compare("sort a.txt", "sudo -n sort a.txt", True).correct


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
def test_endless_commands_are_wrong_and_say_so() -> None:
    assert shell.compare("head -n 2 a.txt", "sleep 60", False).reason == "ran longer than 3 s"
    assert shell.compare("head -n 2 a.txt", "yes", False).reason == "wrote too much"
    assert shell.compare("head -n 2 a.txt", "kill -9 $$", False).status == "wrong"


@pytest.mark.usefixtures("sandbox")
def test_a_reference_that_does_not_end_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "WALL", 0.1)
    monkeypatch.setattr(shell, "PATIENCE", 0.2)
    for command in ("true", "sleep 60"):
        verdict = shell.compare("sleep 60", command, False)
        assert verdict.status == "not_executed"
        assert verdict.reason == "the reference does not end within 0.2 s: sleep 60"


def test_what_was_too_slow_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is not wrong because the machine stalls, or because one sandbox missed its end."""
    walls: list[float] = []
    needed = {"reference a.txt": 0.1, "once": 0.1, "slow": 10.0, "endless": 100.0, "true": 1.0}
    missed = {"once"}
    treeless: set[str] = set()  # commands whose tree is not sent back in time

    def fake(command: str, tree: Any = None, *, wall: float = 5.0) -> Execution:
        walls.append(wall)
        slow = needed[command] > wall or command in missed
        missed.discard(command)
        sent = None if command in treeless else dict(tree or {})
        treeless.discard(command)
        return Execution(0, b"x", b"", sent, "timeout" if slow else "exited", min(wall, needed[command]))

    def status(command: str) -> tuple[str, str]:
        shell._reference_results.cache_clear()
        try:
            verdict = shell.compare("reference a.txt", command, False)
        except SandboxError as error:
            return "not_executed", str(error)
        return verdict.status, verdict.reason

    monkeypatch.setattr(shell, "unavailable", lambda: "")
    monkeypatch.setattr(shell, "execute", fake)
    assert status("once") == ("correct", "")
    assert status("slow") == ("correct", "")  # `true` takes a second: the machine is busy
    needed["true"] = 2.0
    busy = "the machine needs 2.0 s to run `true`: evaluate again when it has less to do"
    assert (status("slow"), status("endless")) == (("correct", ""), ("not_executed", busy))
    needed["true"] = 0.02
    treeless.update(("once", "reference a.txt"))
    assert status("once") == ("correct", "")
    assert status("slow") == status("endless") == ("wrong", "ran longer than 3 s")
    missed.add("reference a.txt")
    assert status("once") == ("correct", "")
    needed["reference a.txt"] = 20.0
    walls.clear()
    assert status("once") == ("not_executed", "the reference does not end within 15 s: reference a.txt")
    assert walls == [3.0, 15.0]  # once more with patience, and after that on no other tree
    needed["reference a.txt"] = 0.1  # what timed out is not remembered
    assert shell.compare("reference a.txt", "once", False).status == "correct"
    shell._reference_results.cache_clear()


def test_without_a_sandbox_nothing_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shell, "unavailable", lambda: "bubblewrap is not installed: apt-get install bubblewrap"
    )
    monkeypatch.setattr(shell, "execute", lambda *_, **__: pytest.fail("executed"))
    for command in ("head -n 2 a.txt", "tail -n 2 a.txt", ""):
        verdict = shell.compare("head -n 2 a.txt", command, False)
        assert (verdict.status, verdict.reason) == (
            "not_executed",
            "bubblewrap is not installed: apt-get install bubblewrap",
        )


def test_what_a_reference_names() -> None:
    def names(reference: str) -> tuple[Any, ...]:
        found = trees.names_of(reference)
        return found.files, found.made, found.directories, found.words

    assert names("grep -w port a.log") == (("a.log",), (), (), ("port",))
    assert names("cp a.txt b.txt") == (("a.txt",), ("b.txt",), (), ())
    assert names("mv src/a.txt dst/") == (("src/a.txt",), (), ("dst",), ())
    assert names("sort < a.txt > b.txt") == (("a.txt",), ("b.txt",), (), ())
    assert names("find docs -type f -name '*.txt' | sort") == ((), (), ("docs",), ("txt",))
    assert names("sed 's/port/pearl/g' x.csv | head -n 3") == (("x.csv",), (), (), ("port", "pearl"))
    assert names("echo 'never closed") == ((), (), (), ())
    assert names("cat /etc/passwd ../x.txt") == (("../x.txt",), (), (), ("etc", "passwd"))
    assert names("sudo cp a.txt b.txt # port") == (("a.txt",), ("b.txt",), (), ())
    assert names("LC_ALL=C sort a.txt 2>/dev/null > b.txt") == (("a.txt",), ("/dev/null", "b.txt"), (), ())
    assert names("ls 2>&1") == ((), (), (), ())
    assert names("while read x; do grep $x b.log; done < a.txt") == (("b.log", "a.txt"), (), (), ())
    # names without a suffix, where only files can stand
    assert names("sort file1 file2 | uniq -d") == (("file1", "file2"), (), (), ())
    assert names("tr -d X < infile | wc -c") == (("infile",), (), (), ())
    assert names("head -n 3 notes | grep -c port") == (("notes",), (), (), ("port",))
    assert names("sort -t , -k 2 a.txt | head -n 10") == (("a.txt",), (), (), ())
    assert names("cat <<< word") == ((), (), (), ("word",))


def test_references_that_need_sorted_files_find_them() -> None:
    for reference in ("comm -23 left right", "join left right", "diff left right | grep -c '^<'"):
        assert isinstance(shell.reference_results(reference), list), reference
    assert shell.compare("comm -23 left right", "comm -13 left right", False).status == "wrong"
    tree = trees.make_tree(trees.names_of("comm -3 left right"), 0)
    lines = tree["left"].content.splitlines()
    assert lines == sorted(lines) and tree["left"].content != tree["right"].content


def test_trees_are_the_same_every_time_and_differ_from_each_other() -> None:
    names = trees.names_of("grep port a.log")
    made = [trees.make_tree(names, number) for number in range(trees.TREES)]
    trees.make_tree.cache_clear()
    assert made == [trees.make_tree(names, number) for number in range(trees.TREES)]
    assert (
        len({tree["a.log"].content for tree in made})
        == len({tree["a.log"].mode for tree in made})
        == trees.TREES
        == 3
    )
    assert "../x.txt" not in trees.make_tree(trees.names_of("cat ../x.txt"), 0)


def test_a_tree_tells_look_alikes_apart() -> None:
    for number in range(trees.TREES):
        lines = (
            trees.make_tree(trees.names_of("grep port a.log"), number)["a.log"].content.decode().splitlines()
        )
        having = [line for line in lines if "port" in line]
        words = [line for line in lines if "port" in line.replace(",", " ").split()]
        assert (
            0
            < len(words)
            < len(having)
            < len([line for line in lines if "port" in line.lower()])
            < len(lines)
        )
        assert any(line.count("port") > 1 for line in lines)
        assert (
            lines.count("") == 2
            and any(line.startswith(" ") for line in lines)
            and any(line[:1].isalpha() for line in lines)
        )
        assert 1 < min(len(line.split()) for line in lines if line) < 4
        assert sorted(lines) != sorted(lines, key=str.lower)
        counts = sorted((lines.count(line) for line in set(lines)), reverse=True)
        assert len(set(counts[:9])) == 9 and counts[8] > counts[9]
        assert len(lines) != len("\n".join(lines).split()) and len("\n".join(lines)) != len(
            "\n".join(lines).encode()
        )


def test_what_is_compared_of_a_tree() -> None:
    def differ(wanted: dict[str, Entry], got: dict[str, Entry]) -> str:
        return shell._trees_differ({"a": Entry("file", 0o644)}, wanted, got)

    file = Entry("file", 0o644, b"x")
    assert differ({"a": file}, {"a": file}) == ""
    assert differ({"a": file}, {}) == "'a' is missing"
    assert differ({}, {"a": file}) == "'a' is there"
    assert differ({"a": file}, {"a": Entry("file", 0o644, b"y")}) == "'a' has another content"
    assert differ({"a": file}, {"a": Entry("file", 0o600, b"x")}) == "'a' has mode 600 instead of 644"
    assert (
        differ({"b": file}, {"b": Entry("file", 0o600, b"x")}) == ""
    )  # the modes of new files do not matter
    assert differ({"a": file}, {"a": Entry("link", 0o777, b"x")}) == "'a' is a link instead of a file"
    assert (
        differ({"a": file}, {"a": Entry("file", 0o644, b"x", links=2)}) == "'a' has 2 hard links instead of 1"
    )


def test_order_counts_only_where_it_is_asked_for() -> None:
    assert shell._lines_differ(b"a\nb\n", b"b\na\n", ordered=False) == ""
    assert shell._lines_differ(b"a\nb\n", b"b\na\n", ordered=True) == "the same lines in another order"
    assert shell._lines_differ(b"a\nb\n", b"a \nb", ordered=True) == ""
    assert shell._lines_differ(b"a\na\n", b"a\n", ordered=False).startswith("1 lines instead of 2")
    assert shell._lines_differ(b" a\n", b"a\n", ordered=False) == "line 1: 'a' instead of ' a'"


def test_a_tree_that_cannot_be_read_is_wrong() -> None:
    wanted = Execution(0, b"", b"", {}, "exited", 0.0)
    verdict = shell._judge({}, wanted, Execution(0, b"", b"", None, "exited", 0.0), False, 1)
    assert verdict is not None and verdict.status == "wrong"
