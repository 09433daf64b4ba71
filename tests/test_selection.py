"""Selection and update of a run, apart: what was right among written and accepted, and who may know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import make_run, write_lines
from references import reference

from agents import rejection_sft
from agents.cli.command import run_command
from agents.compare import Config as Compare
from agents.compare import main as compare
from agents.evaluate import Config, main
from agents.evaluation import selection
from agents.evaluation.report import make_report
from agents.evaluation.selection import CAP, measure_selection
from agents.evaluation.terminal import CYCLES, show
from agents.pages.evaluation import write_evaluation
from agents.studies.runs import read_run, read_selection
from envs.domain import load_domain
from envs.types import InputError, Task

TASKS = load_domain("network").tasks("train", 30, "selection")


def rollout(cycle: int, task: Task, right: bool, accepted: bool, phase: str = "before") -> dict[str, Any]:
    return {
        "cycle": cycle,
        "phase": phase,
        "task_id": task.id,
        "domain": task.domain,
        "task": task.text,
        "tool": task.tool,
        "command": reference(task) if right else "nmap --nonsense",
        "accepted": accepted,
    }


def rollouts(cycles: int, *, good: bool) -> list[dict[str, Any]]:
    """Of two candidates of each of 30 tasks one is right; accepted are those, or every second of those."""
    rows = []
    for cycle in range(1, cycles + 1):
        for place, task in enumerate(TASKS):
            for right in (True, False):
                takes = right if good else right == bool(place % 2)
                rows.append(rollout(cycle, task, right, takes))
    return rows


def run_with(folder: Path, rows: list[dict[str, Any]], start: float, end: float, **settings: Any) -> Path:
    """A run whose held-out accuracy goes from `start` to `end`, of 20 tasks."""
    make_run(folder, start, end, **settings)
    write_lines(folder / "rollouts.jsonl", rows)
    return folder


def test_by_hand(tmp_path: Path) -> None:
    rows = rollouts(4, good=True) + [rollout(1, TASKS[0], False, True, "after")] * 30
    found = measure_selection(run_with(tmp_path / "run", rows, 0.75, 0.25))
    assert found is not None
    assert [row["cycle"] for row in found["cycles"]] == [1, 2, 3, 4]
    for row in found["cycles"]:
        assert row["written"]["verified"] == row["accepted"]["verified"] == CAP
        assert row["accepted"]["value"] == 1.0
        assert 0.2 < row["written"]["value"] < 0.8
    assert found["accepted"] == {"value": 1.0, "right": 4 * CAP, "verified": 4 * CAP}
    assert found["written"]["right"] == sum(row["written"]["right"] for row in found["cycles"])
    assert (found["start"], [row["held_out"] for row in found["cycles"]]) == (
        0.75,
        pytest.approx([0.625, 0.5, 0.375, 0.25]),
    )
    assert found["held_out"]["value"] == -0.5 and found["held_out"]["verdict"] == "worse"
    assert found["p"] < 1e-6
    assert found["line"].startswith("accepted commands are right more often than written ones (1.000, 0.")
    assert found["line"].endswith("the selection works, and the update loses it")
    assert found == measure_selection(tmp_path / "run")


@pytest.mark.parametrize(
    ("good", "end", "says"),
    [
        (True, 0.0, "held-out accuracy fell (-0.500 ["),
        (True, 0.5, "no rise of held-out accuracy is shown (0.000 ["),
        (True, 1.0, ""),
        (False, 0.0, ""),
    ],
)
def test_the_line_is_there_where_it_should_be(tmp_path: Path, good: bool, end: float, says: str) -> None:
    found = measure_selection(run_with(tmp_path / "run", rollouts(2, good=good), 0.5, end, cycles=2))
    assert found is not None
    assert says in found["line"] and bool(says) == bool(found["line"])
    assert "\n" not in found["line"]
    if not good:
        assert abs(found["accepted"]["value"] - found["written"]["value"]) < 0.3


def test_a_trainer_that_accepts_none_and_tasks_without_references(tmp_path: Path) -> None:
    rows = [{**row, "accepted": False} for row in rollouts(1, good=True)]
    found = measure_selection(run_with(tmp_path / "ppo", rows, 0.5, 0.25, cycles=1))
    assert found is not None
    assert found["accepted"] == {"value": None, "right": 0, "verified": 0}
    assert (found["p"], found["line"]) == (None, "")
    assert found["written"]["verified"] == CAP
    rows = [{**row, "task_id": f"model/{place}"} for place, row in enumerate(rollouts(1, good=True))]
    found = measure_selection(run_with(tmp_path / "model", rows, 0.5, 0.25, cycles=1))
    assert found is not None
    assert found["written"]["verified"] == found["accepted"]["verified"] == 0


def test_few_commands_are_verified_however_many_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = selection.verify

    def counting(tasks: Any, commands: Any) -> Any:
        asked.append(len(commands))
        return real(tasks, commands)

    monkeypatch.setattr(selection, "verify", counting)
    measure_selection(run_with(tmp_path / "run", rollouts(2, good=True) * 20, 0.5, 0.5, cycles=2))
    assert asked == [CAP] * 4


def test_a_cycle_that_has_not_ended_and_a_run_without_one(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", rollouts(3, good=True), 0.5, 0.5, done=2)
    found = measure_selection(folder)
    assert found is not None
    assert [row["cycle"] for row in found["cycles"]] == [1, 2]
    assert measure_selection(make_run(tmp_path / "new", done=0)) is None
    (folder / "rollouts.jsonl").write_text('{"cycle": 1}\n')
    with pytest.raises(InputError, match=r"rollouts\.jsonl:1: the line is damaged, a field is missing: "):
        measure_selection(folder)


def test_comparisons_read_what_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.studies.comparison.overlay", lambda *_: None)  # its chart
    folder = run_with(tmp_path / "run", rollouts(4, good=True), 0.5, 0.75)
    other = run_with(tmp_path / "other", rollouts(4, good=False), 0.5, 0.75)
    assert read_selection(read_run(folder)) is None
    found = measure_selection(folder)
    assert found is not None
    argv = [str(folder), str(other), "--output", str(tmp_path / "out")]
    assert run_command(Compare, compare, argv, "compare") == 0
    first, second = json.loads((tmp_path / "out" / "compare.json").read_text())["runs"]
    assert first["selection"] == {"written": found["written"]["value"], "accepted": 1.0}
    assert second["selection"] is None
    assert "right: written" in (tmp_path / "out" / "index.html").read_text()
    # A run that went on since then has no such figures.
    progress = json.loads((folder / "self_improvement_results.json").read_text())
    progress["cycles"].append({"cycle": 5})
    (folder / "progress.json").write_text(json.dumps(progress))
    assert read_selection(read_run(folder)) is None
    for damaged in ("{", "[]", '{"cycles": 3}'):
        (folder / "selection.json").write_text(damaged)
        assert read_selection(read_run(folder)) is None


def test_the_page_and_the_terminal_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cycles = 2 * CYCLES + 1
    found = measure_selection(
        run_with(tmp_path / "run", rollouts(cycles, good=True), 0.75, 0.25, cycles=cycles)
    )
    about = {"name": "run, end", "model": "embedded", "adapter": None, "labels": 0, "selection": found}
    settings = {"domain": "network", "reward": "length", "labelled": False, "tasks_file": None}
    report = make_report(settings, 1, [(about, [])])
    show(report)
    said = capsys.readouterr().out
    assert "run, end: what it wrote, accepted and became" in said
    assert f"run, end: {found['line']}" in said  # type: ignore[index]
    rows = [
        line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│") and " of 25" in line
    ]
    assert str(cycles) in rows and len(rows) <= CYCLES + 1
    write_evaluation(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="selection"' in page and "the update loses it" in page
    assert page.count(">25 verified") == 2 * cycles


def test_a_run_is_measured_after_the_fact(
    sql_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.evaluation.measure.measure", lambda *_, **__: [])  # no answers of its models
    argv = ["--tasks", "2", "--samples", "1", "--output", str(tmp_path), str(sql_run)]
    assert run_command(Config, main, argv, "evaluate") == 0
    start, end = json.loads((tmp_path / "report.json").read_text())["subjects"]
    assert start["selection"] is None
    assert end["selection"]["written"]["verified"] > 0
    assert end["selection"] == json.loads((sql_run / "selection.json").read_text())


@pytest.mark.slow
def test_a_run_says_at_its_end_what_its_updates_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selection, "in_words", lambda measured: f"verified {measured['written']['verified']}")
    budget = "--model embedded --cycles 1 --tasks 4 --eval-tasks 4 --eval-subset 2 --eval-samples 1"
    argv = f"{budget} --reward random --domain network --output {tmp_path} --name a --force".split()
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    said = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "a" / "selection.json").read_text())["written"]["verified"]
    assert 0 < written <= CAP and f"verified {written}" in said
    logged = [path.read_text() for path in (tmp_path / "a").glob("*.jsonl")]
    assert not any("verified" in text for text in logged)
