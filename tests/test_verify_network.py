"""Network commands are compared by meaning: a table of equal and look-alike ones, and any string."""

from __future__ import annotations

import itertools
import random
import string
from pathlib import Path

import pytest
import yaml

from envs.domain import load_domain
from envs.verify.network import options, tables
from envs.verify.network.compare import compare, parse
from envs.verify.network.values import NoMeaning
from envs.verify.truth import command_of

TABLE = yaml.safe_load((Path(__file__).parent / "equivalence" / "network.yaml").read_text())
PAIRS = {
    part: [(entry["reference"], command) for entry in TABLE for command in entry.get(part, [])]
    for part in ("same", "other", "invalid")
}


def references(index: int) -> dict[str, str]:
    """The reference of every intent, all with the same slot values where they have the same slots."""
    domain = load_domain("network")
    values = {}
    for intent in domain.intents:
        values |= domain.draw("train", intent, index).values
    return {intent: command_of("network", intent, values) for intent in domain.intents}


@pytest.mark.parametrize(("reference", "command"), PAIRS["same"])
def test_same(reference: str, command: str) -> None:
    assert compare(reference, command).status == "correct", compare(reference, command)
    assert compare(command, reference).status == "correct"


@pytest.mark.parametrize(("reference", "command"), PAIRS["other"])
def test_other(reference: str, command: str) -> None:
    verdict = compare(reference, command)
    assert verdict.status == "wrong" and verdict.reason == "other meaning" and verdict.differed
    assert compare(command, reference).status == "wrong"


@pytest.mark.parametrize(("reference", "command"), PAIRS["invalid"])
def test_invalid(reference: str, command: str) -> None:
    verdict = compare(reference, command)
    assert verdict.status == "invalid" and verdict.reason and not verdict.differed
    assert compare(command, reference).status == "not_executed"


def test_the_table_is_large_and_has_every_tool() -> None:
    assert len(PAIRS["same"]) >= 60 and len(PAIRS["other"]) >= 60 and len(PAIRS["invalid"]) >= 25
    assert len({command for part in PAIRS.values() for _, command in part}) >= 0.9 * sum(
        map(len, PAIRS.values())
    )
    for part, pairs in PAIRS.items():
        assert {reference.split()[0] for reference, _ in pairs} == set(load_domain("network").tools), part


@pytest.mark.parametrize("index", range(3))
def test_references_equal_themselves_alone(index: int) -> None:
    commands = references(index)
    assert len(commands) == 24
    for (name, one), (other, two) in itertools.product(commands.items(), repeat=2):
        assert parse(one) and compare(one, two).correct == (name == other), (one, two)
        shuffled = f" {two} ".replace(" -", "  -")  # not the very same text, so that it is parsed
        assert compare(one, shuffled).status == ("correct" if name == other else "wrong")


def test_what_differed_is_named() -> None:
    assert compare("nmap -p 443 h", "nmap -p 80 -sU h").differed == "-p: 80 instead of 443; -sU is extra"
    assert compare("ping -c 5 h", "ping h").differed == "-c 5 is missing"
    assert compare("ping -c 5 h", "nc -z h 80").differed == "tool: nc instead of ping"
    assert compare("ss -tn | grep :22", "ss -tn").differed == "| grep is missing"
    assert (
        compare("ss -tn | grep :22", "ss -tn | grep :23").differed == "grep pattern: ':23' instead of ':22'"
    )
    assert compare("ping h", "ping -k h").reason == "ping has no option -k"
    long = compare("nmap 10.0.0.1", "nmap " + " ".join(f"host{n}.test" for n in range(500)))
    assert long.status == "wrong" and len(long.differed) <= 240 and "\n" not in long.differed


def test_a_reference_outside_the_grammar_says_nothing_of_the_command() -> None:
    verdict = compare("curl -s http://h 2> page", "curl -s http://h")
    assert verdict.status == "not_executed" and verdict.reason.startswith(
        "the reference is outside the option grammar: "
    )
    assert (
        compare("curl -s http://h 2> page", " curl -s http://h > page\n").status == "not_executed"
    )  # a broken reference proves nothing
    assert compare("ping -c 5 h.test", "ping -c 5 h.test ; ").correct
    assert compare("", "").status == "not_executed"


@pytest.mark.parametrize(
    "command",
    ["", "  ", "|", "ping h | ", "ping h\nping h", "ping h &", "ping 'h", "ping h\\", "ping {a,b}.test"],
)
def test_what_is_no_single_pipeline_is_invalid(command: str) -> None:
    assert compare("ping h", command).status == "invalid"


def test_tables_read() -> None:
    found = {
        name: value
        for name, value in vars(tables).items()
        if name.isupper() and isinstance(value, str) and name[0] != "_"
    }
    assert set(found) == {"PING", "TRACEROUTE", "NC", "SS", "NMAP", "DIG", "DIG_PLUS", "CURL", "GREP"}
    for name, table in found.items():
        for spelling, option in options.read_table(table).items():
            assert option.default is None or option.read(name, option.default) == option.default
            assert spelling.startswith("-") != (name == "DIG_PLUS"), spelling
            assert option.kind or not (option.optional or option.default or option.often == "!"), spelling
    assert set(tables.CURL_FIXED) <= set(options.read_table(tables.CURL))
    with pytest.raises(ValueError, match="twice"):
        options.read_table("-a -b/-a")
    with pytest.raises(ValueError, match="bad entry"):
        options.read_table("-a:nokind")


@pytest.mark.parametrize("tool", ["PING", "TRACEROUTE", "NC", "SS", "NMAP", "CURL", "GREP"])
def test_letters_outside_the_table_are_invalid(tool: str) -> None:
    table = options.read_table(getattr(tables, tool))
    command = {"GREP": "ss | grep {} x", "NC": "nc {} h 80", "SS": "ss {}", "CURL": "curl {} h"}.get(
        tool, f"{tool.lower()} {{}} h"
    )
    unknown = [letter for letter in string.ascii_letters if f"-{letter}" not in table]
    assert unknown or tool in ("CURL", "GREP")
    for letter in unknown:
        assert compare(command.format(""), command.format(f"-{letter}")).status == "invalid", letter
    assert compare(command.format(""), command.format("--no-such-option")).status == "invalid"


def strings(rng: random.Random, count: int) -> list[str]:
    """Random text, and references cut short, shuffled, glued together and with characters put in."""
    known = [
        *references(0).values(),
        *(command for pairs in PAIRS.values() for pair in pairs for command in pair),
    ]
    letters = string.printable + "éß²٣\u2013\u3000\ud800\0" + "-+@:/,.0123456789" * 3
    made = []
    for index in range(count):
        base = rng.choice(known)
        words = base.split() + rng.choice(known).split()
        rng.shuffle(words)
        cut = rng.randrange(len(base) + 1)
        noise = "".join(rng.choices(letters, k=rng.randrange(1, 30)))
        made.append(
            [
                noise,
                base[:cut],
                base[:cut] + noise + base[cut:],
                " ".join(words),
                f"{base.split()[0]} {noise}",
                base + noise,
            ][index % 6]
        )
    return made


def test_no_string_raises() -> None:
    rng = random.Random(5)
    reference = list(references(1).values())
    for command in strings(rng, 3000):
        verdict = compare(rng.choice(reference), command)
        assert verdict.status in ("correct", "wrong", "invalid")
        for text in (verdict.reason, verdict.differed):
            assert len(text) <= 240 and (not text or text.isprintable())
    nasty = [
        "ss " + "'( ' " * 3000,
        "ss " + "not " * 2000,
        "ping -c " + "9" * 5000 + " h",
        "nmap " + "*.*.*.1,2 " * 200,
        "nmap -p " + "1-," * 3000,
    ]
    nasty += [
        "curl " + "-: " * 4000,
        "dig " + "a " * 4000,
        "x" * 100_000,
        "nmap -p " + "1-65535," * 1200 + "1 h",
        "nmap " + "1-9.1-9.1-9.1,3 " * 500,
    ]
    for command in nasty:
        assert compare("ping h", command).status in ("wrong", "invalid")


def test_both_ways_round_agree() -> None:
    rng = random.Random(6)
    commands = [
        text for text in strings(rng, 3000) if compare(text, text + " ").correct and network_parses(text)
    ]
    assert len(commands) > 100
    for _ in range(1000):
        one, two = rng.choice(commands), rng.choice(commands)
        assert compare(one, two).correct == compare(two, one).correct


def network_parses(text: str) -> bool:
    try:
        parse(text)
    except NoMeaning:
        return False
    return True
