"""Pieces of error messages."""

from __future__ import annotations

from envs.messages import did_you_mean, one_line, short


def test_the_similar_word_is_named() -> None:
    assert did_you_mean("--cycels", ["--cycles", "--tasks"], "see --help") == "did you mean --cycles?"
    assert did_you_mean(5, [50, 900]) == "did you mean 50?"


def test_without_a_similar_word_comes_the_advice_or_the_list() -> None:
    assert did_you_mean("zzz", ("task", "domain")) == "use one of task, domain"
    assert did_you_mean("zzz", ("task", "domain"), "see --help") == "see --help"


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("one\n\ttwo  three ")) == "one two three"
    assert one_line(KeyError()) == "KeyError"


def test_a_long_value_is_cut() -> None:
    assert short("abc") == "'abc'"
    assert short("x" * 99) == "'" + "x" * 56 + "..."
