"""The page of an evaluation: what it says, that it is self-contained, and empty, huge and hostile reports."""

from __future__ import annotations

import copy
import html
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agents.cli.display import p_value, signed
from agents.evaluation import statistics
from agents.evaluation.answers import Answer, Judged
from agents.evaluation.report import make_report
from agents.pages.evaluation import changed, marked, weakest_first, write_evaluation
from agents.pages.page import LONGEST, visible
from envs.types import Score, Task
from envs.verify.truth import Case
from envs.verify.verdict import Verdict

RIGHT = Verdict("correct")
WRONG = Verdict("wrong", "other output", "tree 1: 2 lines instead of 3")
SKIPPED = Verdict("not_executed", "bubblewrap is missing: run `make setup`")
SETTINGS = {"domain": "all", "reward": "likelihood", "labelled": False, "temperature": 0.7}
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}


def answer(
    index: int, verdict: Verdict, score: float | None = 0.5, samples: int = 2, intents: int = 4, **case: Any
) -> Answer:
    domain = ("shell", "sql")[index % 2]
    kinds = {
        "intent": f"intent-{index % intents}" if intents else "",
        "unseen": ("values", "paraphrase")[index // 2 % 2],
        **case,
    }
    task = Task(f"heldout/x/{index}", domain, f"count the lines of file {index}")
    command = f"wc -l < f{index}" if verdict.correct else f"wc -c < f{index}"
    judged = Judged(command, verdict, verdict.correct)
    given = (
        Score(score)
        if score is None
        else Score(min(1.0, score * (1 if verdict.correct else 0.5) + index / 1000))
    )
    return Answer(
        Case(task, f"wc -l < f{index}", **kinds),
        judged,
        (Judged(command, verdict, verdict.correct, given),) * samples,
        True,
    )


def answers(verdicts: Sequence[Verdict], **kinds: Any) -> list[Answer]:
    return [answer(index, verdict, **kinds) for index, verdict in enumerate(verdicts)]


def report_of(
    *subjects: list[Answer], samples: int = 2, names: Sequence[str] = ("start", "end", "third", "fourth")
) -> dict[str, Any]:
    described = [
        ({"name": name, "model": "embedded", "adapter": None, "labels": 1200 * place}, rows)
        for place, (name, rows) in enumerate(zip(names, subjects, strict=False))
    ]
    return json.loads(
        json.dumps(
            make_report({**SETTINGS, "samples": samples, "tasks_file": None}, samples, described),
            allow_nan=False,
        )
    )


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            statistics,
            "resamples",
            lambda tasks, rounds, seed=0, draw=statistics.resamples: draw(tasks, min(rounds, 20), seed),
        )
        yield


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return report_of(answers([RIGHT, WRONG, RIGHT, WRONG, RIGHT, RIGHT]))


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    first = [WRONG] * 14 + [RIGHT] * 6
    second = [RIGHT] * 13 + [WRONG] * 2 + [RIGHT] * 5
    return report_of(answers(first), answers(second))


def page_of(report: dict[str, Any], folder: Path) -> str:
    path = folder / "report.html"
    write_evaluation(report, path)
    page = path.read_text(encoding="utf-8")
    Balanced().feed(page)
    return page


def test_labels_are_said_of_each_subject(one: dict[str, Any], two: dict[str, Any], tmp_path: Path) -> None:
    assert "Labels used: 0.</p>" in page_of(one, tmp_path)
    assert "Labels used: start 0, end 1,200.</p>" in page_of(two, tmp_path)


def test_a_reward_that_knows_the_truth_is_marked(one: dict[str, Any], tmp_path: Path) -> None:
    assert "sees no label" in page_of(one, tmp_path)
    settings = {**one["settings"], "reward": "truth", "labelled": True}
    page = page_of({**one, "settings": settings}, tmp_path)
    assert "is labelled" in page and "sees no label" not in page


def words_of(page: str) -> str:
    """What a reader sees, in one line."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


class Balanced(HTMLParser):
    """Fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_one_model_is_told_how_good_it_is_and_not_whether_it_is_better(
    one: dict[str, Any], tmp_path: Path
) -> None:
    words = words_of(page_of(one, tmp_path))
    assert "start is right on 0.667 [" in words and "One model alone says nothing about improvement" in words
    assert "What changed" not in words and "McNemar" not in words
    for heading in (
        "The answer",
        "Metrics",
        "by intent",
        "How well the reward tells right from wrong",
        "Reasons for failures",
        "Settings",
    ):
        assert heading in words
    assert "unseen paraphrases" in words and "unseen values" in words and "executed in a sandbox" in words
    assert "tree 1: 2 lines instead of 3" in words


def test_a_comparison_begins_with_its_verdict(two: dict[str, Any], tmp_path: Path) -> None:
    row = two["comparisons"][0]["all"]["greedy"]
    assert row["verdict"] == "better" and (row["gained"], row["lost"]) == (13, 1)
    words = words_of(page_of(two, tmp_path))
    ends = f"[{signed(row['low'])}, {signed(row['high'])}]"
    said = f"end is better than start . Greedy accuracy 0.300 → 0.900: difference +0.600 {ends}"
    assert said in words
    assert words.index("is better than") < words.index("Metrics Each number")
    assert f"McNemar {p_value(row['p'])}; 13 of 20 tasks gained, 1 lost." in words
    assert "Gained: 10 of 13" in words and "Lost: 1" in words


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("worse", "end is worse than start"),
        ("no difference shown", "No difference is shown between start and end"),
    ],
)
def test_other_verdicts(two: dict[str, Any], tmp_path: Path, verdict: str, said: str) -> None:
    report = copy.deepcopy(two)
    report["comparisons"][0]["all"]["greedy"]["verdict"] = verdict
    words = words_of(page_of(report, tmp_path))
    assert said in words and "is better than" not in words


def test_a_reward_that_rises_while_truth_falls_is_said(two: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(two)
    report["comparisons"][0]["all"]["greedy"]["verdict"] = "worse"
    report["comparisons"][0]["all"]["reward"]["verdict"] = "better"
    words = words_of(page_of(report, tmp_path))
    assert "The reward's own score rises while accuracy falls." in words
    assert "mean score of the reward (not accuracy)" in words


def test_a_difference_that_only_the_interval_shows_is_explained(tmp_path: Path) -> None:
    report = report_of(answers([WRONG] * 6), answers([RIGHT] * 4 + [WRONG] * 2))
    row = report["comparisons"][0]["all"]["greedy"]
    assert row["low"] > 0 and row["p"] > 0.05 and row["verdict"] == "no difference shown"
    assert "The interval excludes 0, but with so few tasks" in words_of(page_of(report, tmp_path))


def test_every_section_says_how_to_read_it(two: dict[str, Any], tmp_path: Path) -> None:
    sections = page_of(two, tmp_path).split("<h2 ")[1:]
    assert len(sections) == 8 and all('<p class="how">' in section for section in sections)


def test_the_same_report_gives_the_same_bytes(two: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(two, tmp_path / "a.html")
    write_evaluation(json.loads(json.dumps(two)), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_needs_nothing_else(two: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(two, tmp_path)
    assert not re.search(r"https?:|src=|@import|url\(|<script|<link|<iframe| on[a-z]+=", page)
    assert set(re.findall(r'href="(.)', page)) == {"#"}
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    assert "default-src 'none'" in page


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202etxt\u2066\u200b\x00\ud800 \"' onload=x & {{ 7*7 }} <img src=http://a.test/x>"


def test_what_models_write_is_escaped_and_hidden_characters_are_shown(
    two: dict[str, Any], tmp_path: Path
) -> None:
    def spoilt(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            ending = HOSTILE if name in ("domains", "intents", "exact_but", "truth") else ""
            return {key + ending: spoilt(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [spoilt(item, name) for item in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) and name not in ("status", "verdict") else value

    page = page_of(spoilt(two), tmp_path)
    assert page.count("&lt;script&gt;alert(1)") > 50
    assert "<script" not in page and "<img" not in page and "49" not in page.split("{{ 7*7 }}")[1][:10]
    assert not re.search("[\x00-\x09\x0b-\x1f\u200b\u202e\u2066\ud800]", page)
    assert "⟨U+001B⟩[31m⟨U+202E⟩txt⟨U+2066⟩⟨U+200B⟩⟨U+0000⟩⟨U+D800⟩" in page
    assert not re.search(r"<[^>]* onload", page)


def test_visible() -> None:
    assert visible("ls -l ~/añb 文件 🙂") == "ls -l ~/añb 文件 🙂"
    assert visible("a\nb\tc\xa0d\u3164\ufe0f\U000e0041") == "a↵\nb⟨U+0009⟩c⟨U+00A0⟩d⟨U+3164⟩⟨U+FE0F⟩⟨U+E0041⟩"
    assert visible("x" * (LONGEST + 5)) == "x" * LONGEST + " … and 5 more characters"
    assert visible(1.5) == 1.5


def test_numbers() -> None:
    assert [signed(value) for value in (0.25, -0.25, 0.0, -0.0001, None)] == [
        "+0.250",
        "-0.250",
        "0.000",
        "0.000",
        "–",
    ]
    assert [p_value(p) for p in (0.5, 0.0049, 1e-9, None)] == ["p = 0.50", "p = 0.0049", "p < 0.0001", "–"]


def test_marked_words_are_those_the_other_command_has_not() -> None:
    assert marked("sort -n f | head", "sort f | head") == [
        ("sort", False),
        (" ", False),
        ("-n", True),
        (" f | head", False),
    ]
    assert "".join(text for text, _ in marked("  a\n b ", "a c")) == "  a\n b "
    assert marked("", "a") == []
    assert marked("x " * 5000, "y") == [("x " * 5000, False)]


def test_commands_that_are_empty_or_endless(two: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(two)
    report["comparisons"][0]["gained"][0]["before"] = " "
    report["comparisons"][0]["lost"][0]["command"] = "a" * 100_000
    page = page_of(report, tmp_path)
    assert "(empty)" in page and f"and {100_000 - LONGEST} more characters" in page and len(page) < 200_000


def test_nothing_executed(tmp_path: Path) -> None:
    words = words_of(page_of(report_of(answers([SKIPPED] * 4), answers([SKIPPED] * 4)), tmp_path))
    assert (
        "start: 12 of 12 commands could not be executed" in words
        and "bubblewrap is missing: run `make setup`" in words
    )
    assert "end cannot be compared with start : no task was verified for both" in words
    assert "No sampled command was both scored and verified" in words
    assert "Nothing could be measured" in words_of(page_of(report_of(answers([SKIPPED] * 4)), tmp_path))


def test_only_some_samples_not_executed(one: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(one)
    report["subjects"][0]["not_executed"] = 3
    words = words_of(page_of(report, tmp_path))
    assert "start: 3 of 18 commands could not be executed" in words and "No reason was recorded" in words


def test_a_reward_that_abstains_everywhere(tmp_path: Path) -> None:
    words = words_of(page_of(report_of(answers([RIGHT, WRONG] * 3, score=None)), tmp_path))
    assert "No sampled command was both scored and verified" in words and "start is right on 0.500" in words


def test_scores_outside_0_and_1(one: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(one)
    report["subjects"][0]["calibration"] = [
        {"score": score, "right": 0.5, "samples": 1} for score in (-30.0, -2.0, 7.5)
    ]
    page = page_of(report, tmp_path)
    chart = page[page.index("<b>Calibration</b>") :]
    places = [float(x) for x in re.findall(r"([\d.-]+),[\d.-]+ ", chart[: chart.index("</figure>")])]
    assert places and all(0 <= x <= 300 for x in places)


def test_tasks_of_a_file_have_no_intents(tmp_path: Path) -> None:
    first, second = answers([WRONG] * 3, intents=0, unseen=""), answers([RIGHT] * 3, intents=0, unseen="")
    report = report_of(first, second)
    report["settings"]["tasks_file"] = "mine.jsonl"
    words = words_of(page_of(report, tmp_path))
    assert (
        "3 tasks of mine.jsonl" in words
        and "Accuracy of each direction" not in words
        and "Gained: 3" in words
    )


def test_one_task_and_one_sample(tmp_path: Path) -> None:
    first, second = answers([WRONG], samples=1), answers([RIGHT], samples=1)
    page = page_of(report_of(first, second, samples=1), tmp_path)
    words = words_of(page)
    assert (
        "one task has none" in words and "cannot be compared with start : one task gives no interval" in words
    )
    assert (
        "pass@1" in words and page.count('<th scope="row">pass@1<small>sampled commands that are right') == 2
    )


def test_several_comparisons_and_more_models_than_styles(tmp_path: Path) -> None:
    rows = [answers([RIGHT] * n + [WRONG] * (6 - n)) for n in (1, 2, 6, 3, 4, 5, 0)]
    names = ["first", "same", "third", "fourth", "fifth", "sixth", "seventh"]
    words = words_of(page_of(report_of(*rows, names=names), tmp_path))
    assert "not widened for 6 comparisons" in words
    assert all(f"{name} against first" in words for name in names[1:])


def test_many_intents_come_weakest_first(tmp_path: Path) -> None:
    first, second = answers([WRONG] * 146, intents=73), answers([RIGHT] * 80 + [WRONG] * 66, intents=73)
    report = report_of(first, second)
    page = page_of(report, tmp_path)
    words = words_of(page)
    order = weakest_first(report["subjects"])
    assert len(report["subjects"][1]["intents"]) >= 73 and sorted(order) == sorted(
        report["subjects"][1]["intents"]
    )
    accuracies = [report["subjects"][1]["intents"][name]["greedy"]["value"] for name in order]
    assert accuracies == sorted(accuracies) and all(name in words for name in order)
    differing, same = changed(report["comparisons"][0]["intents"])
    assert len(differing) + len(same) == len(order) and f"{len(same)} intents without change" in words
    assert len(page) < 500_000


def test_domains_that_are_paths(one: dict[str, Any], tmp_path: Path) -> None:
    report = json.loads(json.dumps(one).replace('"shell"', '"/a very/long path/to/my_domain.yaml"'))
    assert "/a very/long path/to/my_domain.yaml" in words_of(page_of(report, tmp_path))


def test_metrics_that_are_not_there_are_dashes(one: dict[str, Any], tmp_path: Path) -> None:
    report = copy.deepcopy(one)
    subject = report["subjects"][0]
    for row in (
        subject["all"],
        *subject["domains"].values(),
        *subject["unseen"].values(),
        *subject["intents"].values(),
    ):
        for name, estimate in row.items():
            row[name] = {"value": None, "low": None, "high": None, "tasks": estimate["tasks"]}
    assert "nan" not in words_of(page_of(report, tmp_path)).lower()
