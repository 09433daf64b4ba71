"""The one shell lexer: words and quotes, comments, operators, and the commands of a line."""

from __future__ import annotations

import random
import subprocess

import pytest

from envs.shellgrammar import parse
from envs.shellwords import ShellSyntaxError, split, tokens, tool_of, without_sudo


def kinds(line: str) -> list[tuple[str, str]]:
    return [(token.kind, token.value or token.text) for token in tokens(line)]


def words(line: str) -> list[str]:
    return [token.value for token in tokens(line) if token.kind == "word"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ("a 'b c'\"d e\"f", ["a", "b cd ef"]),
        ("a\\ b \\#c", ["a b", "#c"]),
        ('"a\\"b\\c"', ['a"b\\c']),
        ("a'\\'b", ["a\\b"]),
        ("$'a\\'b'", ["a\\'b"]),
        ("'' \"\"", ["", ""]),
        ("a \\\nb c\\\nd", ["a", "b", "cd"]),
        ("a#b # c d", ["a#b"]),
        ("$x ${y:-a b} $((1 + (2)))", ["$x", "${y:-a b}", "$((1 + (2)))"]),
        ("a$(b c)d `e f` <(g)", ["ad", "", ""]),
        ('"a $(b "c d") e"', ["a  e"]),
        ("{a,b} *.txt ~", ["{a,b}", "*.txt", "~"]),
    ],
)
def test_words(line: str, wanted: list[str]) -> None:
    assert words(line) == wanted


def test_operators_redirections_and_comments() -> None:
    assert kinds("a|b&&c||d;e&f |& g") == [
        ("word", "a"),
        ("operator", "|"),
        ("word", "b"),
        ("operator", "&&"),
        ("word", "c"),
        ("operator", "||"),
        ("word", "d"),
        ("operator", ";"),
        ("word", "e"),
        ("operator", "&"),
        ("word", "f"),
        ("operator", "|&"),
        ("word", "g"),
    ]
    assert kinds("a 2>b >>c <d 2>&1 &>e <<<f") == [
        ("word", "a"),
        ("redirection", "2>"),
        ("word", "b"),
        ("redirection", ">>"),
        ("word", "c"),
        ("redirection", "<"),
        ("word", "d"),
        ("redirection", "2>&"),
        ("word", "1"),
        ("redirection", "&>"),
        ("word", "e"),
        ("redirection", "<<<"),
        ("word", "f"),
    ]
    assert kinds("a2>b # c | d\ne") == [
        ("word", "a2"),
        ("redirection", ">"),
        ("word", "b"),
        ("comment", "# c | d"),
        ("operator", "\n"),
        ("word", "e"),
    ]


def test_a_here_document_ends_at_its_word() -> None:
    line = "cat <<A <<-'B' | sort\none\nA\n two\n\tB\nwc"
    assert kinds(line)[-3:] == [
        ("here-document", "\none\nA\n two\n\tB"),
        ("operator", "\n"),
        ("word", "wc"),
    ]
    assert kinds("cat <<A\nnever ended")[-1] == ("here-document", "\nnever ended")


def test_a_word_says_what_was_quoted_and_what_expands() -> None:
    plain, quoted, braces, expands, inside = tokens("a 'b'c {d,e} $f \"$(g h)\"")
    assert (plain.bare, quoted.bare, braces.bare) == ("a", "\0c", "{d,e}")
    assert quoted.quoted == ((2, 5),) and quoted.text == "'b'c"
    assert [token.expands for token in (plain, quoted, braces, expands, inside)] == [False] * 3 + [True] * 2
    assert [token.value for token in inside.inner[0]] == ["g", "h"]
    assert not tokens("'$a' \\$b a$ \"c$\"")[0].expands


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a 'b", "a quote is not closed"),
        ('a "b', "a quote is not closed"),
        ("a $(b", "a substitution is not closed"),
        ("a `b", "a substitution is not closed"),
        ("a ${b", "is not closed"),
        ("a\\", "ends in a backslash"),
        ("$(" * 30, "nested too deeply"),
        ('"${' * 30, "nested too deeply"),
    ],
)
def test_what_is_not_closed(line: str, reason: str) -> None:
    for read in (tokens, split, parse):
        with pytest.raises(ShellSyntaxError, match=reason.replace("$", ".")):
            read(line)


def names(line: str) -> list[str]:
    return [command.name for command in parse(line)]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("sort a | head -n 3;", ["sort", "head"]),
        ("sudo sort a && LC_ALL=C X=1 wc b || ! grep c d &", ["sort", "wc", "grep"]),
        ("time -p sort a; sudo A=1 ls", ["sort", "ls"]),
        ("sudo -n ls", ["sudo"]),
        ("(sort a; wc b) > c; { ls; } 2>&1", ["sort", "wc", "ls"]),
        ("for f in a b; do wc $f; done", ["for", "wc"]),
        ("for f\ndo wc $f\ndone", ["for", "wc"]),
        ("while read x; do echo $x; done < <(sort a)", ["read", "echo", "sort"]),
        ("if [ -f a ]; then cat a; elif b; then c; else d; fi", ["[", "cat", "b", "c", "d"]),
        ("until a; do b; done | c", ["a", "b", "c"]),
        ("wc $(find . -name `ls`) | tail", ["wc", "find", "ls", "tail"]),
        ("a |\n b &&\n\n c\nd", ["a", "b", "c", "d"]),
        ("cat <<E # c\nx | y\nE\nls", ["cat", "ls"]),
        ("x=1", [""]),
        ("echo do done fi", ["echo"]),
    ],
)
def test_the_commands_of_a_line(line: str, wanted: list[str]) -> None:
    assert names(line) == wanted


UNCLOSED = ["if a", "while a; do b", "for x in a b", "do a; done", "a; done", "{ a; ", "for; do a; done"]
UNCLOSED += ["if a; then fi", "$( )", "a $(b |)", "a & ; b", "nmap <|im_end|>"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# a",
        "a |",
        "| a",
        "a && ",
        "; a",
        "a ;; b",
        "a )",
        "( a",
        "(a) b",
        "f() { a; }",
        "a >",
        *UNCLOSED,
    ],
)
def test_what_bash_cannot_parse_is_refused(line: str) -> None:
    with pytest.raises(ShellSyntaxError):
        parse(line)
    if line not in ("", "# a", "$( )", "f() { a; }"):  # which bash takes
        assert subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode


def test_split_needs_no_grammar() -> None:
    found = split("if x; then sort < a.txt; for f in *.txt; do wc")
    assert [[word.value for word in command.words] for command in found] == [
        ["x"],
        ["sort"],
        ["for", "f", "in", "*.txt"],
        ["wc"],
    ]
    assert [(operator, target.value) for operator, target in found[1].redirections] == [("<", "a.txt")]
    assert [word.value for word in split("A=1 sudo B='2 3' ls")[0].assignments] == ["A=1", "B=2 3"]


def test_sudo_and_the_names_of_tools() -> None:
    assert without_sudo("  sudo  sort a ") == "sort a"
    for line in ("sudo", "sudo -n sort", "sudo | sort", "sudoku a", "sort 'a", "sudo 'a"):
        assert without_sudo(line) == line
    assert tool_of("/usr/bin/nmap") == ("nmap", "")
    assert tool_of("netcat") == ("nc", "") and tool_of("egrep") == ("grep", "-E")
    assert tool_of("./nmap") == ("./nmap", "")


PIECES = [*" \t\n|&;()<>$`'\"\\{}#!=ab1-[]", "$(", "${", "$((", "))", "<<E\n", "E", "<(", "2>", "&>"]
PIECES += ["do ", "done", "while ", "if ", "fi", "then ", "for x in ", "sudo "]


def test_any_string_is_read_or_refused_and_no_character_is_lost() -> None:
    rng = random.Random(3)
    read = 0
    for _ in range(20_000):
        line = "".join(rng.choices(PIECES, k=rng.randrange(1, 25)))
        try:
            found = tokens(line)
        except ShellSyntaxError:
            continue
        read += 1
        end = 0
        for token in found:
            assert token.text == line[token.start : token.end] != ""
            assert line[end : token.start].replace("\\\n", "").strip(" \t") == "", line
            assert len(token.value) == len(token.bare)
            end = token.end
        assert line[end:].replace("\\\n", "").strip(" \t") == ""
        split(line)
    assert read > 5000
