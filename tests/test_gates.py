"""Gates: right commands pass unchanged, invalid ones and ones that hold their task score 0."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from references import reference

from envs.domain import load_domain
from envs.source import Templates
from envs.types import Score, Task
from rewards.gates import CAPS, LONGEST, Gated, copied_share, gate, named_in, stripped, syntax_of
from rewards.labelled import Truth
from rewards.likelihood import Likelihood
from rewards.registry import make_reward
from rewards.text import plain_words

SCAN = Task("t/1", "network", "scan port 443 on web1.test with nmap", "nmap")
LINES = Task("t/2", "shell", "show all lines of notes.txt that contain the word error", "grep")
NAMES = Task("t/3", "sql", "show the names of employees who earn more than 3000", "sqlite")
BARE = Task("t/4", "shell", "sort names.txt")
PORT = Task("t/5", "network", "check port 443 of web1.test", "nc")
SPLIT = Task("t/7", "shell", 'cut "one, two" at the comma and show each part on a line of its own')
STATE = Task("t/8", "network", "list sockets by states (state established)", "ss")
RENAME = Task("t/6", "shell", "rename folder alpha to beta and folder gamma to delta")
BARE_NAMES = Task("t/9", "shell", "rename alpha to beta and gamma to delta")


class Noted:
    """Gives every command the same score and notes what it was shown."""

    def __init__(self, value: float | None = 0.7) -> None:
        self.value = value
        self.seen: list[str] = []
        self.inverter = "current"
        self.used: list[str] = []

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        self.used.append(self.inverter)
        self.seen += [command for row in commands_P_G for command in row]
        score = Score(self.value, {"part": 1.0}, "back", "" if self.value is not None else "why")
        return [
            [score if command else Score(None, reason="empty command") for command in row]
            for row in commands_P_G
        ]


def honest(split: str, count: int) -> list[tuple[Task, str]]:
    """Tasks of the three domains with their references."""
    tasks = Templates([load_domain(name) for name in ("network", "shell", "sql")], split).tasks(
        count, "gates"
    )
    return [(task, str(reference(task))) for task in tasks]


@pytest.mark.parametrize("split", ["heldout", "train"])
def test_right_commands_pass_unchanged(split: str) -> None:
    highest = dict.fromkeys(CAPS, 0.0)
    for task, command in honest(split, 900):
        found = gate(task, command)
        assert (found.command, found.reason) == (command, ""), task
        assert set(found.factors.values()) == {1.0}
        highest[syntax_of(task)] = max(highest[syntax_of(task)], copied_share(task, command))
    assert all(highest[syntax] < cap - 0.05 for syntax, cap in CAPS.items()), highest


@pytest.mark.slow
def test_gated_scores_of_right_commands_are_the_ungated_ones(embedded: Any) -> None:
    pairs = honest("heldout", 24)
    tasks, commands = [task for task, _ in pairs], [[command] for _, command in pairs]
    for name in (
        "likelihood",
        "likelihood-min",
        "lift",
        "channel",
        "slots",
        "self-certainty",
        "entropy",
        "self-judge",
        "original-blend",
    ):
        gated, plain = (
            make_reward(name, embedded, [], gates=gates)(tasks, commands, seed=3) for gates in (True, False)
        )
        assert [row[0].value for row in gated] == [row[0].value for row in plain], name


def equal_commands() -> list[tuple[str, str]]:
    """Every domain and command that the tables of equivalent commands call right."""
    found = []
    for domain in ("network", "shell", "sql"):
        table = yaml.safe_load((Path(__file__).parent / "equivalence" / f"{domain}.yaml").read_text())
        for row in table:
            found += [(domain, command) for command in (row["reference"], *row.get("same", []))]
    return found


def test_no_command_that_is_right_in_another_way_is_gated() -> None:
    """But for one with a comment, which is more than what was asked for."""
    commands = equal_commands()
    assert len(commands) > 350
    with_comment = []
    for domain, command in commands:
        found = gate(Task("t", domain, "do it"), command)
        if found.factors["gate/comment"]:
            assert (found.command, found.reason) == (command, ""), command
        else:
            with_comment.append(command)
            assert found.reason == "carries a comment" and sum(found.factors.values()) == 4
    assert len(with_comment) == 1 and with_comment[0].endswith(" -- dearer")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (RENAME.text, {"alpha", "beta", "gamma", "delta"}),
        ("copy the file notes into backup", {"notes", "backup"}),
        ("make a directory called drafts", {"drafts"}),
        ("move folder alpha to folder beta", {"alpha", "beta"}),
        ("show the file that has the most lines", set()),
        ("rename alpha to beta", set()),
        ("sort the file notes.txt", set()),
    ],
)
def test_which_words_of_a_task_are_names(text: str, names: set[str]) -> None:
    assert named_in(text) & plain_words(text) == names


@pytest.fixture(scope="module")
def embedded() -> Any:
    from agents.policy.load import load_policy

    return load_policy("embedded")


@pytest.mark.parametrize(
    ("task", "command"),
    [
        (LINES, "grep error notes.txt"),
        (LINES, "cat notes.txt | grep -w 'error' | sort -u > out.txt 2>&1"),
        (LINES, "grep '|' notes.txt | cut -d ';' -f1 && wc -l < notes.txt"),
        (LINES, "find . \\( -name a -o -name b \\) -exec grep error {} \\;"),
        (LINES, "wc -l $(find . -name '*.txt') | tail -n 1;"),
        (LINES, "(sort notes.txt; wc notes.txt) &"),
        (LINES, "< notes.txt grep '#' "),
        (BARE, "sort names.txt"),
        (SCAN, "sudo nmap -p 443 web1.test"),
        (SCAN, "time sudo /usr/bin/nmap -p 443 web1.test"),
        (PORT, "netcat -zv web1.test 443"),
        (BARE, "LC_ALL=C sort names.txt"),
        (BARE, "ls -t | head -n 1 && stat -c %s names.txt"),
        (BARE, "perl -ne 'print if /a/' names.txt"),
        (BARE, "for f in *.txt; do wc -l $f; done"),
        (BARE, 'for f in *.txt; do [ -s $f ] && echo "$f: $(wc -l < $f)"; done'),
        (BARE, "while read -r a b; do printf '%s\\n' \"$b\"; done < names.txt"),
        (BARE, "n=0; while read line; do n=$((n + 1)); done < names.txt; echo $n"),
        (BARE, "if grep -q x names.txt; then cat names.txt; fi"),
        (RENAME, "mv alpha beta && mv gamma delta"),
        (RENAME, "mv alpha/ beta; mv gamma/ delta"),
        (BARE_NAMES, "mv alpha beta && mv gamma delta"),
        (
            Task("t", "shell", "copy alpha into beta and rename gamma to delta"),
            "cp alpha beta; mv gamma delta",
        ),
        (SCAN, "/usr/bin/nmap -p 443 web1.test"),
        (NAMES, "SELECT name FROM employees WHERE salary > 3000;"),
        (NAMES, "WITH a AS (SELECT 1) SELECT ';' FROM a, nowhere"),
        (Task("t", "network", "ping café.test", "ping"), "ping café.test"),
        # what people write: utilities that are no tools of the domain, and texts that the task has in quotes
        (BARE, "du -a --max-depth=1 | sort -n"),
        (BARE, "mkdir -p a/b && cd a/b && touch c d"),
        (BARE, "tar cz big | split -b 10M - part_"),
        (BARE, "diff -y --suppress-common-lines names.txt old.txt | wc -l"),
        (BARE, "mkdir alpha beta gamma"),
        (BARE, "ls -l $(which python)"),
        (BARE, "seq 10 | paste -sd' \\n' -"),
        (BARE, "yes | head -n 3"),
        (SPLIT, "echo 'one, two' | tr ',' '\\n'"),
        (SPLIT, "text='one, two'; echo \"$text\" | tr ',' '\\n'"),
        (STATE, "ss state established"),
    ],
)
def test_what_passes(task: Task, command: str) -> None:
    assert gate(task, command).reason == ""


@pytest.mark.parametrize(
    ("task", "command", "closed"),
    [
        (SCAN, "gibberish -p 443", {"valid"}),
        (SCAN, "true", {"valid"}),
        (SCAN, "nmap -p 443 'web1.test", {"valid"}),
        (SCAN, "nmap |", {"valid"}),
        (SCAN, "| nmap", {"valid"}),
        (SCAN, "nmap 10.0.0.1 && echo done", {"valid"}),
        (SCAN, "grep() { :; }", {"valid"}),
        (SCAN, "# nmap", {"valid", "comment"}),
        (NAMES, "SELECT name FROM", {"valid"}),
        (NAMES, "SELECT 1; SELECT 2", {"valid"}),
        (NAMES, "grep a b", {"valid"}),
        (NAMES, "SELECT 'x", {"valid"}),
        (NAMES, "-- nothing", {"valid", "comment"}),
        (LINES, "grep show all lines that contain the word error notes.txt", {"copied"}),
        (LINES, "grep error notes.txt # show all lines that contain the word", {"comment", "copied"}),
        (SCAN, "nmap -p 443 web1.test # SYN scan of web1", {"comment"}),
        (NAMES, "SELECT name FROM employees -- the best paid", {"comment"}),
        (NAMES, "SELECT name /* all */ FROM employees", {"comment"}),
        (RENAME, "mv rename folder alpha to beta and folder gamma to delta", {"copied"}),
        (RENAME, "mv 'alpha' 'beta gamma' delta", {"copied"}),
        (RENAME, "touch folder_alpha_to_beta_and_gamma_to_delta", {"copied"}),
        (BARE_NAMES, "mv rename alpha to beta and gamma to delta", {"copied"}),
        (BARE_NAMES, "mv alpha beta and gamma delta", {"copied"}),
        (BARE_NAMES, "mv 'alpha' beta gamma delta", {"copied"}),
        (BARE_NAMES, "touch alpha_to_beta_and_gamma_to_delta", {"copied"}),
        (BARE_NAMES, "mv alpha beta; mv gamma delta alpha_to_beta", {"copied"}),
        (Task("t", "shell", "rename all files to lower case letters"), "mv all files lower case", {"copied"}),
        (RENAME, "echo rename alpha beta gamma delta", {"valid"}),
        (RENAME, "cp rename folder alpha and", {"copied"}),
        (SCAN, "sudo -u nobody nmap web1.test", {"valid"}),
        (SCAN, "sudo nosuchtool web1.test", {"valid"}),
        (SCAN, "nmap $(nosuchtool)", {"valid"}),
        (SCAN, 'nmap "$(nosuchtool)"', {"valid"}),
        (SCAN, "x=1", {"valid"}),
        (SCAN, "nmap 10.0.0.1; text=done", {"valid"}),
        (SCAN, "for word in scan port web1.test; do echo $word; done", {"valid"}),
        (SCAN, "while true; do echo done; done", {"valid"}),
        (SCAN, "echo $(nmap 10.0.0.1) found", {"valid"}),
        (SCAN, "for f in a; do nmap $f", {"valid"}),
        (SCAN, "nmap 10.0.0.1 )", {"valid"}),
        (LINES, "grep -f show_all_lines_that_contain.txt", {"copied"}),
        (LINES, "grep showAllLinesThatContainTheWord", {"copied"}),
        (LINES, "echo 'show all lines that contain the word error'", {"valid", "copied"}),
        (SCAN, "touch web1.test", {"valid"}),  # a utility is a command of a domain of the shell alone
        (SCAN, "echo web1 port | nmap -p 443 web1.test", {"valid"}),
        (SPLIT, "echo 'one, two'", {"valid"}),
        (SPLIT, "echo 'one, two at each comma' | tr ',' '\\n'", {"valid"}),
        (SPLIT, "yes 'two parts, one per line' | head", {"valid"}),
        (BARE, "which names come first in names.txt", {"valid"}),
        (BARE, "which names come first", {"valid"}),
        (BARE, "file names must be put in order", {"valid"}),
        (BARE, "ls && touch every line and put it in order", {"valid"}),
        (BARE, "diff the lines of names.txt and order them", {"valid"}),
        (BARE, "print the names in order", {"valid"}),
        (BARE, "date = names", {"valid"}),
        (BARE, "python -c 'print(sorted(open(\"names.txt\")))'", {"valid"}),
        (BARE, "sh -c 'sort names.txt'", {"valid"}),
        (BARE, "import os", {"valid"}),
        (BARE, "for line in sorted(open('names.txt')): print(line)", {"valid"}),
        (BARE, "console.log(names.sort())", {"valid"}),
        (BARE, "SELECT name FROM names ORDER BY name", {"valid"}),
        (SCAN, "nmаp -p 443 web1.test", {"valid", "characters"}),
        (SCAN, "nmap -p 443 wеb1.test", {"characters"}),
        (SCAN, "nmap -p 443\tweb1.test", {"characters"}),
        (SCAN, "nmap -p 443 web1.test\u200b", {"characters"}),
        (SCAN, "nmap -p 443 web1.test [/INST]", {"template"}),
        (SCAN, "nmap '</s>'", {"template"}),
        (SCAN, "nmap <|im_end|>", {"valid", "template"}),
        (NAMES, "SELECT '<s>'", {"template"}),
        (NAMES, "SELECT '<start_of_turn>'", {"template"}),
    ],
)
def test_what_does_not_pass(task: Task, command: str, closed: set[str]) -> None:
    found = gate(task, command)
    assert {name.removeprefix("gate/") for name, factor in found.factors.items() if factor == 0.0} == closed
    assert found.reason


@pytest.mark.parametrize(
    ("task", "command", "left"),
    [
        (LINES, "grep error notes.txt # all lines", "grep error notes.txt"),
        (LINES, "grep '#1' notes.txt", "grep '#1' notes.txt"),
        (LINES, "grep a#b notes.txt  ", "grep a#b notes.txt  "),
        (LINES, "grep \\# notes.txt", "grep \\# notes.txt"),
        (LINES, "# only this", ""),
        (LINES, "grep 'all lines that contain' notes.txt", "grep '' notes.txt"),
        (LINES, 'grep "show all \\" lines" notes.txt', 'grep "" notes.txt'),
        (LINES, "grep 'some other words here' notes.txt", "grep 'some other words here' notes.txt"),
        (LINES, "cat <<EOF\nshow all lines\nEOF\nsort a", "cat <<EOF\nsort a"),
        (LINES, "cat <<'X' | sort\nshow all lines", "cat <<'X' | sort"),
        (LINES, "cat <<< 'show all lines'", "cat <<< ''"),
        (NAMES, "SELECT 1 -- the names", "SELECT 1"),
        (NAMES, "SELECT /* the names */ 1", "SELECT   1"),
        (NAMES, "SELECT 1 /* the names", "SELECT 1"),
        (NAMES, "SELECT '--', '/* */', 'it''s -- so'", "SELECT '--', '/* */', 'it''s -- so'"),
        (NAMES, 'SELECT 1 AS "show the names of employees"', 'SELECT 1 AS ""'),
    ],
)
def test_what_is_stripped(task: Task, command: str, left: str) -> None:
    assert stripped(task, command, syntax_of(task)) == left


def test_the_reward_sees_what_is_left_and_its_score_is_multiplied() -> None:
    inner = Noted()
    [[right, comment, copied, empty, long]] = Gated(inner)(
        [LINES],
        [
            [
                "grep error notes.txt",
                "grep x y # all lines",
                "grep show all lines that contain",
                " ",
                "grep " + "x" * LONGEST,
            ]
        ],
    )
    assert inner.seen == ["grep error notes.txt", "grep x y", "grep show all lines that contain", "", ""]
    assert (right.value, comment.value, copied.value, long.value) == (0.7, 0.0, 0.0, None)
    assert comment.reason == "carries a comment" and comment.parts["gate/comment"] == 0.0
    assert copied.parts == {
        "part": 1.0,
        "gate/valid": 1.0,
        "gate/comment": 1.0,
        "gate/copied": 0.0,
        "gate/characters": 1.0,
        "gate/template": 1.0,
    }
    assert copied.reason == "repeats the words of its task" and copied.reconstruction == "back"
    assert long.reason == "more than 512 characters" and long.parts == {"gate/length": 0.0}
    assert (empty.value, empty.reason, empty.parts) == (0.0, "empty command", {"gate/valid": 0.0})


def test_an_unbounded_reward_abstains_where_a_gate_closes_and_abstention_stays() -> None:
    [[wrong, right]] = Gated(Noted(-3.0), bounded=False)([SCAN], [["echo a", "nmap a"]])
    assert (wrong.value, wrong.reason, right.value) == (None, "not a command of this domain", -3.0)
    [[score]] = Gated(Noted(None))([SCAN], [["nmap a"]])
    assert (score.value, score.reason) == (None, "why")


def test_the_inverter_can_be_set_on_a_copy() -> None:
    inner = Noted()
    reward = Gated(inner)
    twin: Any = copy.copy(reward)
    twin.inverter = "base"
    twin([SCAN], [["nmap a"]])
    reward([SCAN], [["nmap a"]])
    assert (twin.inverter, reward.inverter, inner.inverter) == ("base", "current", "current")
    assert make_reward("majority", None, []).inverter is None  # type: ignore[arg-type, attr-defined]


def test_gates_are_a_choice_and_controls_and_truth_have_none() -> None:
    model: Any = None
    checked: Any = make_reward("likelihood", model, [])
    assert isinstance(checked.reward, Gated)
    checked = make_reward("likelihood", model, [], gates=False)
    assert isinstance(checked.reward, Likelihood)
    for name in ("random", "shuffled", "length", "constant", "truth"):
        checked = make_reward(name, model, [], truth=Truth)
        assert not isinstance(checked.reward, Gated)
    with pytest.raises(ValueError):
        Gated(Noted())([SCAN], [["a"], ["b"]])


def test_the_loop_scores_a_gated_reward_under_both_inverters(embedded: Any) -> None:
    """What the trainer logs as the model's score less its base's, and by what it keeps its best cycle."""
    from agents.training.monitor import probe
    from agents.training.rollouts import Rollout, inverter_gap
    from envs.types import Completion

    embedded.restore({name: tensor + 0.02 for name, tensor in embedded.snapshot().items()})
    reward = make_reward("likelihood", embedded, [])
    group = [Rollout(SCAN, Completion("nmap -p 443 web1.test"), Score(None))]
    gap = inverter_gap(reward, [group], 0)
    under = [
        make_reward("likelihood", embedded, [], inverter=which)([SCAN], [["nmap -p 443 web1.test"]])[0][0]
        for which in ("current", "base")
    ]
    assert (
        gap is not None
        and gap != 0.0
        and gap == pytest.approx(float(under[0].value or 0) - float(under[1].value or 0))
    )
    probes = probe(embedded, reward, [SCAN, LINES], 16, 0)
    assert len(probes.scores) == 2 and all(0 <= score <= 1 for score in probes.scores)
    assert reward.inverter == "current"  # type: ignore[attr-defined]


def test_an_environment_passes_gates_and_inverter_on() -> None:
    from agents.policy.gym_factory import make_env

    gated, plain = (
        make_env("network", reward="likelihood", gates=gates, inverter="current").reward
        for gates in (True, False)
    )
    assert isinstance(gated.reward, Gated) and isinstance(plain.reward, Likelihood)
    assert gated.inverter == plain.inverter == "current"


def test_the_name_of_a_utility_is_no_copied_word() -> None:
    task = Task("t", "shell", "show the date of next friday")
    assert copied_share(task, "date -d 'next friday'") == 0.0
    assert copied_share(task, "echo show the date of next friday") > 0.5
