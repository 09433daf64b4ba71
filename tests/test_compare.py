"""Comparisons: numbers against made-up runs, what is refused and why, runs at work, the page, TensorBoard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fabricated import make_run
from scipy import stats

from agents.cli.command import run_command
from agents.compare import Config, main


def compare(*words: str) -> int:
    return run_command(Config, main, [*words], "compare")


def page_and_numbers(folder: Path) -> tuple[str, dict[str, Any]]:
    return (folder / "index.html").read_text(), json.loads((folder / "compare.json").read_text())


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two finished runs of one reward: from 10 of 20 tasks right to 11, and to 18."""
    make_run(tmp_path / "first", 0.5, 0.55, seed=0)
    make_run(tmp_path / "second", 0.5, 0.9, seed=1, alarms=["private_code"])
    return [str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(tmp_path / "out")]


def test_over_optimisation_is_said_with_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The alarm holds in the last of four cycles, each of 300 candidates."""
    run = make_run(tmp_path / "first", 0.75, 0.5, score=(0.5, 0.9), alarms=["divergence"])
    assert compare(str(run), "--output", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["diverged"] == 1200
    said = (
        "first over-optimises its reward: after 1,200 candidates its own score rises while held-out accuracy"
    )
    assert said in page_and_numbers(tmp_path / "out")[0]


@pytest.fixture
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers and words: the chart takes most of the time of a comparison."""
    monkeypatch.setattr("agents.studies.comparison.overlay", lambda *_: None)


def test_the_numbers_are_what_one_computes_by_hand(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*pair, "--json") == 0
    page, found = page_and_numbers(tmp_path / "out")
    assert json.loads(capsys.readouterr().out) == found
    first, second = found["runs"]
    assert (first["greedy"], second["greedy"]) == ([0.5, 0.55], [0.5, 0.9])
    assert (second["gain"]["value"], second["gain"]["gained"], second["gain"]["lost"]) == (
        pytest.approx(0.4),
        8,
        0,
    )
    assert (first["state"], first["trainer"], first["candidates"], first["seconds"]) == (
        "finished",
        "rejection_sft",
        1200,
        10.0,
    )
    assert (first["alarms"], second["alarms"]) == ([], ["private_code"])
    (row,) = found["comparisons"]
    assert (row["first"], row["second"]) == ("first", "second")
    assert (row["greedy"]["value"], row["greedy"]["gained"], row["greedy"]["lost"]) == (
        pytest.approx(0.35),
        7,
        0,
    )
    assert (
        row["greedy"]["p"] == pytest.approx(stats.binomtest(7, 7).pvalue)
        and row["greedy"]["verdict"] == "better"
    )
    assert 0.1 < row["greedy"]["low"] < 0.35 < row["greedy"]["high"] < 0.6
    assert found["differing"] == {"seed": [0, 1]} and found["scales"] == ["likelihood"]
    assert (
        "second is better than first: held-out accuracy +0.350" in page
        and "raised an alarm" in page
        and "private code" in page
    )
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(pair: list[str], tmp_path: Path) -> None:
    def report() -> list[bytes]:
        assert compare(*pair) == 0
        return [
            (tmp_path / "out" / name).read_bytes() for name in ("index.html", "compare.json", "curves.png")
        ]

    assert report() == report()
    assert (
        len(list((tmp_path / "out" / "tensorboard").rglob("events*"))) == 2
    )  # those of the first time are gone


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\u202e"
    make_run(tmp_path / name, model="<script>alert(2)</script>")
    make_run(tmp_path / "b")
    assert compare(str(tmp_path / name), str(tmp_path / "b"), "--output", str(tmp_path / "out")) == 0
    page, _ = page_and_numbers(tmp_path / "out")
    assert "<script" not in page and "<img src=x" not in page and "\u202e" not in page and "⟨U+202E⟩" in page
    assert "&lt;script&gt;" in page and set(re.findall(r'src="(.{10})', page)) == {"data:image"}
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", page)
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Sub-run -> tag -> points, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.iterdir()):
        events = EventAccumulator(str(path))
        events.Reload()
        tags = events.Tags()["scalars"]
        found[path.name] = {
            tag: [(point.step, round(point.value, 6)) for point in events.Scalars(tag)] for tag in tags
        }
    return found


def layout_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = EventAccumulator(str(folder))
    events.Reload()
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def test_one_tensorboard_folder_in_which_curves_overlay(
    pair: list[str], tmp_path: Path, no_chart: None
) -> None:
    assert compare(*pair) == 0
    found = curves(tmp_path / "out" / "tensorboard")
    assert set(found) == {"first", "second"} and set(found["first"]) == set(found["second"]) >= {
        "reward/mean",
        "eval/greedy",
    }
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert found["second"]["eval/greedy"] == [(row["step"], round(row["eval/greedy"], 6)) for row in lines]
    layout = layout_of(tmp_path / "out" / "tensorboard" / "first")
    charts = [patterns for category in layout.values() for patterns in category.values()]
    assert ["^eval/greedy$"] in charts
    for patterns in charts:
        assert all(any(re.match(pattern, tag) for tag in found["first"]) for pattern in patterns)


def test_other_rewards_are_compared_by_truth_and_their_scores_are_kept_apart(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_chart: None
) -> None:
    make_run(tmp_path / "other", reward="similarity")
    words = [pair[0], str(tmp_path / "other"), *pair[2:]]
    assert compare(*words) == 0
    page, report = page_and_numbers(tmp_path / "out")
    assert report["scales"] == ["likelihood", "similarity"] and "drawn apart" in page
    found = curves(tmp_path / "out" / "tensorboard")
    assert "eval/greedy" in set(found["first"]) & set(found["other"]) and "reward/mean" not in found["first"]
    assert not {tag for tag in set(found["first"]) & set(found["other"]) if tag.startswith("reward/mean")}
    layout = layout_of(tmp_path / "out" / "tensorboard" / "first")
    for pattern in layout["reward"].values():
        assert sum(bool(re.match(pattern[0], tag)) for tags in found.values() for tag in tags) == 1
    capsys.readouterr()
    assert compare(*words, "--strict") == 2
    assert capsys.readouterr().err == (
        "error: first and other cannot be compared: their rewards are on different scales, "
        "reward likelihood and similarity: leave one out, or leave out --strict\n"
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"domain": "shell"}, "their domains differ, domain all and shell"),
        ({"eval_tasks": 40}, "their evaluations differ, eval_tasks 20 and 40"),
        ({"eval_subset": 4}, "their evaluations differ, eval_subset 8 and 4"),
        ({"eval_samples": 4}, "their evaluations differ, eval_samples 2 and 4"),
        ({"max_new_tokens": 64}, "their evaluations differ, max_new_tokens 48 and 64"),
        ({"temperature": 1.0}, "their evaluations differ, temperature 0.7 and 1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], reason: str
) -> None:
    make_run(tmp_path / "other", **settings)
    assert compare(pair[0], str(tmp_path / "other"), *pair[2:]) == 2
    assert capsys.readouterr().err == f"error: first and other cannot be compared: {reason}: leave one out\n"
    assert not (tmp_path / "out").exists()


def test_other_held_out_tasks_are_refused(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "second" / "truth.jsonl"
    path.write_text(path.read_text().replace('"task 3"', '"another task"'))
    assert compare(*pair) == 2
    assert "their held-out tasks are not the same" in capsys.readouterr().err


@pytest.mark.slow
def test_the_spacing_of_a_log_does_not_matter(pair: list[str], tmp_path: Path, no_chart: None) -> None:
    assert compare(*pair) == 0
    before = page_and_numbers(tmp_path / "out")
    path = tmp_path / "second" / "truth.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    assert compare(*pair) == 0
    assert page_and_numbers(tmp_path / "out") == before


def test_a_run_at_work_is_read_and_not_touched(pair: list[str], tmp_path: Path, no_chart: None) -> None:
    running = make_run(tmp_path / "running", 0.5, 1.0, done=2)
    for name in ("metrics.jsonl", "truth.jsonl", "timings.jsonl"):
        with (running / name).open("a") as file:
            file.write('{"step": 900, "eval/gre')  # half a line
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in running.iterdir()}
    assert compare(pair[0], str(running), *pair[2:]) == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in running.iterdir()} == before
    _, found = page_and_numbers(tmp_path / "out")
    run = found["runs"][1]
    assert (run["state"], run["greedy"], run["candidates"]) == ("cycle 2 of 4", [0.5, None], 600)
    # Its subset of 8 tasks after cycle 2, 6 right, against the same 8 of the first at its end, all right.
    assert (found["comparisons"][0]["greedy"]["tasks"], found["comparisons"][0]["greedy"]["lost"]) == (8, 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda run: (run / "config.yaml").unlink(),
            "no run is there (it has no config.yaml): give the folder of a run",
        ),
        (lambda run: (run / "config.yaml").write_text("- a"), "cannot be read (it holds no settings)"),
        (
            lambda run: (run / "config.yaml").write_text("model: embedded\n"),
            "cannot be read (it has no key `agent`, the trainer of the run): restore it, "
            "or leave the run out",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 1}\n'),
            "metrics.jsonl:2: not JSON (Expecting value, column 1): restore it",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"step": "x"}\n'),
            "metrics.jsonl:1: the line is damaged",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "eval/greedy": NaN}\n'),
            "metrics.jsonl:1: the line is damaged",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n"),
            "metrics.jsonl:1: not UTF-8 (byte 0xff): restore it",
        ),
        (lambda run: (run / "progress.json").write_text("{"), "progress.json: cannot be read"),
        (
            lambda run: (run / "truth.jsonl").write_text('{"cycle": 0, "part": "whole"}\n'),
            "truth.jsonl:1: the line is damaged",
        ),
    ],
)
def test_damage_is_one_line(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(tmp_path / "second")
    assert compare(*pair) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and str(tmp_path / "second") in error


def test_wrong_input(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "new", done=0)
    for words, message in (
        ([], "no run is given"),
        ([pair[0], pair[0]], "is given twice"),
        ([pair[0], str(tmp_path / "new")], "has not finished a cycle yet: wait for it"),
        ([pair[0], "--output", "/proc/no"], "--output /proc/no: cannot be written"),
        ([pair[0], "--output", pair[1]], "is in the folder of a run"),
    ):
        assert compare(*words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_one_run_and_runs_of_one_name(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_chart: None
) -> None:
    assert compare(pair[1], *pair[2:]) == 0
    assert "second is better than its start" in capsys.readouterr().out
    make_run(tmp_path / "b" / "first", seed=2)
    assert compare(pair[0], str(tmp_path / "b" / "first"), *pair[2:]) == 0
    _, found = page_and_numbers(tmp_path / "out")
    assert [run["name"] for run in found["runs"]] == ["first", "b/first"]
    assert {path.name for path in (tmp_path / "out" / "tensorboard").iterdir() if any(path.iterdir())} == {
        "first",
        "b-first",
    }
