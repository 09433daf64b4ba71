"""Studies: mistakes in the file, numbers by hand, failed arms, resuming, no child left behind, the page."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated import make_run
from scipy import stats

from agents.cli.command import run_command
from agents.studies.jobs import Job, run_jobs
from agents.studies.plan import read_plan
from agents.studies.runs import read_run
from agents.studies.schedule import all_jobs
from agents.studies.summary import candidates_to, collapse_step, gap_closed, over_seeds, rank_correlation
from agents.study import COMMANDS, TRAINERS, Config, main
from envs.schema import CONFIGS
from envs.types import InputError

ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "settings: {model: embedded, cycles: 4, eval_tasks: 20, eval_subset: 8, eval_samples: 2}\n"
    "seeds: [0, 1, 2]\n"
)
THREE = HEAD + (
    "reference: random\nceiling: upper\ngroups:\n  main: [similar, random, upper]\n"
    "arms:\n  similar: {reward: similarity}\n  random: {reward: random}\n  upper: {reward: likelihood}\n"
)


def study(path: Path, text: str, *flags: str) -> tuple[int, Path]:
    """Runs a study of this YAML text -> (exit code, its folder)."""
    file = path / "study.yaml"
    file.write_text(text)
    folder = path / "out"
    return run_command(Config, main, [str(file), "--output", str(folder), *flags], "study"), folder


def fabricate(folder: Path, arm: str, ends: list[float], reward: str, **more: Any) -> None:
    for seed, end in enumerate(ends):
        make_run(folder / "runs" / arm / f"s{seed}", 0.5, end, reward=reward, seed=seed, **more)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three arms and three seeds of made-up runs; gains .15 .20 .25, .0 .05 .1 and .30 .20 .25."""
    fabricate(
        tmp_path / "out", "similar", [0.65, 0.7, 0.75], "similarity", alarms=["entropy"], score=(0.4, 0.5)
    )
    fabricate(tmp_path / "out", "random", [0.5, 0.55, 0.6], "random")
    fabricate(tmp_path / "out", "upper", [0.8, 0.7, 0.75], "likelihood")
    return tmp_path


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers and words: charts take most of the time of a report."""
    monkeypatch.setattr("agents.studies.output.draw", lambda study, folder: None)


def test_the_table_is_what_one_computes_by_hand(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = study(three, THREE, "--jobs", "0")
    assert code == 0
    found = json.loads((folder / "study.json").read_text())
    similar, upper = found["arms"]["similar"], found["arms"]["upper"]
    assert (similar["start"], similar["end"]) == pytest.approx((0.5, 0.7))
    half = stats.t.ppf(0.975, 2) * 0.05 / 3**0.5  # standard deviation 0.05, three seeds
    assert similar["gain"]["value"] == pytest.approx(0.2)
    assert (similar["gain"]["low"], similar["gain"]["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert similar["gain"]["verdict"] == "better"
    # Against random with the same seed: 0.15 each time, so no interval; the upper arm: 0.30, 0.15, 0.15.
    assert similar["against_reference"]["value"] == pytest.approx(0.15)
    half = stats.t.ppf(0.975, 2) * 0.0866025 / 3**0.5
    against = upper["against_reference"]
    assert (against["value"], against["low"], against["high"]) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half), abs=1e-6
    )
    assert against["verdict"] == "no difference shown"
    assert similar["gap_closed"]["value"] == pytest.approx(0.15 / 0.2)
    assert similar["score_change"]["value"] == pytest.approx(0.1)
    assert (similar["auc"], similar["auc_within"]) == (pytest.approx([0.8, 0.9]), pytest.approx([0.7, 0.8]))
    assert (similar["distinct"], similar["entropy"], similar["length"]) == (
        pytest.approx([0.45, 0.3]),
        pytest.approx([0.09, 0.06]),
        [16.0, 16.0],
    )
    assert (similar["alarms"], similar["candidates"], similar["seconds"]) == ({"entropy": 3}, 1200, 10.0)
    assert similar["diverged"] is None
    # 20 tasks, every fourth of one intent; the first ones are right, from 10 at the start to 13, 14 and 15.
    gains = {name: row["gain"] * row["pairs"] for name, row in similar["intents"].items()}
    assert gains == pytest.approx(
        {"shell: copy": 3, "shell: count-lines": 3, "sql: join-above": 3, "network: ping-count": 3}, abs=1
    )
    assert sum(gains.values()) == pytest.approx(3 + 4 + 5)
    assert (
        found["arms"]["random"]["against_reference"]["value"] is None and upper["gap_closed"]["value"] is None
    )
    printed = capsys.readouterr().out
    assert "Greatest gain without labels: upper, +0.250" in printed and printed.splitlines()[-1] == str(
        folder / "index.html"
    )
    table = (folder / "STUDY.md").read_text()
    assert (
        "| similar | 3/3 | 0.500 → 0.700 | **+0.200** [+0.076, +0.324] |" in table and "entropy (3)" in table
    )
    for name in ("forest-1.png", "curves-1.png", "score.png", "reward.png", "intents.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(three: Path) -> None:
    def report() -> dict[str, bytes]:
        _, folder = study(three, THREE, "--jobs", "0")
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    assert report() == report()


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_escapes_what_it_shows(three: Path) -> None:
    _, folder = study(three, 'about: "<script>alert(1)</script> \\u202e"\n' + THREE, "--jobs", "0")
    page = (folder / "index.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page and "⟨U+202E⟩" in page
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", page) and "default-src 'none'" in page
    assert set(re.findall(r'src="(.{10})', page)) == {"data:image"}
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    assert "better" in page and "of 2 comparisons" in page


def test_labelled_arms_are_marked_everywhere(
    three: Path, no_charts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.studies.plan.is_labelled", lambda reward: reward == "likelihood")
    _, folder = study(three, THREE, "--jobs", "0")
    assert "| upper (labelled) |" in (folder / "STUDY.md").read_text()
    assert 'upper <span class="tag">labelled</span>' in (folder / "index.html").read_text()
    assert "Greatest gain without labels: similar" in (folder / "STUDY.md").read_text()


def test_runs_of_other_defaults_are_refused(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = three / "out" / "runs" / "similar" / "s1" / "config.yaml"
    path.write_text(path.read_text().replace("temperature: 0.7", "temperature: 1.7"))
    code, _ = study(three, THREE, "--jobs", "0")
    assert code == 2
    assert "similar: temperature was 1.7 when" in capsys.readouterr().err


def test_runs_of_another_trainer_are_refused(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = three / "out" / "runs" / "similar" / "s1" / "config.yaml"
    path.write_text(path.read_text().replace("agent: rejection_sft", "agent: ppo"))
    assert study(three, THREE, "--jobs", "0")[0] == 2
    assert (
        f"similar: {path.parent} is one of ppo, not rejection_sft: choose another --output"
        in capsys.readouterr().err
    )


def test_candidates_to_a_rise(three: Path, no_charts: None) -> None:
    _, folder = study(three, THREE, "--jobs", "0")
    found = json.loads((folder / "study.json").read_text())[
        "arms"
    ]  # 300 candidates a cycle, four cycles from 0.5 to 0.7 on average
    assert [candidates_to(rise, found["similar"]["curve"]) for rise in (0.0, 0.05, 0.11, 0.2, 0.3)] == [
        0,
        300,
        900,
        1200,
        None,
    ]
    assert (found["similar"]["candidates_to_rise"], found["random"]["candidates_to_rise"]) == (600, None)


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ([0.5, 0.6, 0.7], None),
        ([0.5, 0.4, 0.5], None),  # it came back
        ([0.5, 0.6, 0.4, 0.3], 200),
        ([0.5, 0.4, 0.6, 0.4], 300),  # for good only at the end
        ([0.5, 0.4, 0.3], 100),
        ([], None),
    ],
)
def test_the_step_from_which_accuracy_is_below_its_start(curve: list[float], step: int | None) -> None:
    points = [{"step": 100.0 * place, "mean": value} for place, value in enumerate(curve)]
    assert collapse_step(points) == step


def test_a_run_remembers_that_it_was_labelled(three: Path) -> None:
    folder = three / "out" / "runs" / "similar" / "s1"
    record = read_run(folder)
    assert not record.labelled
    assert dataclasses.replace(
        record, results={**record.results, "labelled": True}, settings={"reward": "gone.yaml"}
    ).labelled


def test_intervals() -> None:
    assert over_seeds([0.1])["verdict"] == "not measured" and over_seeds([0.1, 0.1])["low"] is None
    assert over_seeds([-0.2, -0.21, -0.22])["verdict"] == "worse"
    assert over_seeds([])["value"] is None


def test_fieller_interval_of_a_ratio() -> None:
    """Its ends are those ratios at which a t test of numerator - ratio x denominator has p = 0.05."""
    own, reference, ceiling = (
        [0.16, 0.19, 0.15, 0.17, 0.14],
        [0.04, 0.0, 0.07, 0.01, 0.02],
        [0.18, 0.2, 0.19, 0.16, 0.2],
    )
    found = gap_closed(*(dict(enumerate(values)) for values in (own, reference, ceiling)))
    assert found["value"] == pytest.approx((sum(own) - sum(reference)) / (sum(ceiling) - sum(reference)))
    for ratio in (found["low"], found["high"]):
        rest = [(a - r) - ratio * (c - r) for a, r, c in zip(own, reference, ceiling, strict=True)]
        assert stats.ttest_1samp(rest, 0).pvalue == pytest.approx(0.05)
    assert (
        gap_closed({0: 0.1, 1: 0.2}, {0: 0.0, 1: 0.0}, {0: 0.3, 1: -0.1})["low"] is None
    )  # the ceiling itself is not above
    assert gap_closed({0: 0.1}, {0: 0.2}, {0: 0.1})["value"] is None


def test_rank_correlation() -> None:
    pairs = [(x / 10, x / 10 + 0.1 * (x % 2)) for x in range(10)]
    found = rank_correlation(pairs)
    assert found["value"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert found["low"] <= found["value"] <= found["high"] + 1e-9
    assert rank_correlation([(1.0, 0.5), (1.0, 0.6), (1.0, 0.7)])["value"] is None


def test_arms_on_other_tasks_or_budgets_are_not_compared(tmp_path: Path) -> None:
    text = THREE.replace(
        "arms:\n",
        "arms:\n  shell: {reward: similarity, domain: shell}\n  long: {reward: similarity, cycles: 50}\n",
    )
    (tmp_path / "a.yaml").write_text(text)
    plan = read_plan(tmp_path / "a.yaml", TRAINERS)
    assert [(plan.arms[name].reference, plan.arms[name].ceiling) for name in ("shell", "long")] == [
        (None, None)
    ] * 2
    assert (plan.arms["similar"].reference, plan.arms["similar"].ceiling) == ("random", "upper")
    assert plan.groups == {"main": ("similar", "random", "upper"), "others": ("shell", "long")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{reward: random}", "{reward: randm}", "9: reward: randm: no such reward: did you mean random?"),
        ("{reward: random}", "{reward: random, cycels: 3}", "9: cycels: unknown key: did you mean cycles?"),
        ("{reward: random}", "{reward: random, lr: high}", "9: lr: high: must be a number"),
        ("{reward: random}", "{reward: random, threshold: 2}", "9: threshold: 2.0: must be in [0, 1]"),
        (
            "{reward: random}",
            "{reward: random, seed: 3}",
            "9: seed: is set by the study itself: list the seeds under `seeds`",
        ),
        (
            "{reward: random}",
            "{reward: random, seeds: 3}",
            "9: seeds: 3: must be a list of different whole numbers",
        ),
        (
            "{reward: random}",
            "{trainer: rejecton_sft}",
            "9: trainer: rejecton_sft: no such trainer: did you mean rejection_sft?",
        ),
        (
            "{reward: random}",
            "{evaluate_on: [shel]}",
            "9: evaluate_on: shel: no such domain or file: did you mean shell?",
        ),
        ("{reward: random}", "{model: ./nowhere}", "9: model: ./nowhere: no such folder"),
        (
            "{reward: random}",
            "{cycles: 9, reference: upper}",
            "9: reference: upper: cannot be compared with random: budgets of 1350",
        ),
        ("{reward: random}", "5", "9: random: must be a mapping"),
        (
            "{reward: random}",
            "{candidates_of: upper, trainer: ppo}",
            "9: candidates_of: upper: not for random: ppo learns from what it writes itself",
        ),
        (
            "{reward: random}",
            "{candidates_of: upper, seeds: [0, 7]}",
            "9: candidates_of: upper: not for random: upper has no seed 7",
        ),
        (
            "{reward: random}",
            "{candidates_of: upper, domain: sql}",
            "9: candidates_of: upper: not for random: domain all and sql: both must begin with the same",
        ),
        (
            "{reward: random}",
            "{candidates_of: upper}",
            "9: candidates_of: upper: not for random: its first cycle has 50 tasks, and cycles 4 x tasks 50",
        ),
        ("{reward: random}", "{candidates_of: uper}", "9: candidates_of: uper: no such arm: did you mean"),
        ("random: {", "a/b: {", "9: a/b: an arm's name is that of a folder"),
        ("upper: {", "random: {", "10: arms.random: this key is there twice, first in line 9"),
        ("cycles: 4", "cycles: 0", "1: cycles: 0: must be 1 or more"),
        ("cycles: 4", "cylces: 4", "1: cylces: unknown key: did you mean cycles?"),
        (
            "reference: random",
            "reference: rnadom",
            "3: reference: rnadom: no such arm: did you mean random?",
        ),
        (
            "[similar, random, upper]",
            "[similr]",
            "6: main: similr: no such arm: did you mean similar?",
        ),
        ("groups:", "gruops:", "5: gruops: unknown key: did you mean groups?"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "2: seeds: [0, 0]: must be a list of different whole numbers"),
        ("ceiling: upper", "theory: [nobody]", "4: theory: nobody: no such arm: use one of"),
        ("ceiling: upper", "transfer_tasks: 0", "4: transfer_tasks: 0: must be a whole number of 1 or more"),
        ("ceiling: upper", "ceiling: [", "not valid YAML"),
        ("cycles: 4", "about: 2026-99-99, cycles: 4", "1: settings.about: YAML reads"),
        ("ceiling: upper", "ceiling: &x [*x]", "levels deep"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_nothing_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in THREE
    code, folder = study(tmp_path, THREE.replace(old, new, 1), "--jobs", "0")
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and not folder.exists()
    assert message in error and error.startswith(f"error: {tmp_path / 'study.yaml'}:")


def test_other_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        ([str(tmp_path / "no.yaml")], "there is no such file"),
        ([str(tmp_path / "study.yaml"), "--jobs", "-1"], "--jobs -1: must be"),
        ([str(tmp_path / "study.yaml"), "--output", "/proc/no"], "--output /proc/no: cannot be written"),
    ):
        (tmp_path / "study.yaml").write_text(THREE)
        assert run_command(Config, main, argv, "study") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_why_it_works_by_intent_and_over_models(three: Path) -> None:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "tasks": 20}

    def theory(name: str, inverse: float) -> None:
        intents = {
            f"shell: {row}": {
                "inverse": estimate(inverse - 0.1 * row),
                "auc_within": estimate(0.9 - 0.1 * row),
                "greedy": estimate(0.5),
            }
            for row in range(4)
        }
        whole = {key: estimate(inverse) for key in ("inverse", "auc", "auc_within", "greedy")}
        report = {
            "subjects": [{"model": name, "all": whole, "intents": intents}],
            "settings": {"reward": "similarity"},
        }
        folder = three / "out" / "theory" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.html").write_text("")

    theory("similar", 0.9)
    theory("upper", 0.6)
    _, folder = study(three, THREE + "theory: [similar, upper]\n", "--jobs", "0")
    found = json.loads((folder / "study.json").read_text())["theory"]
    assert (
        found["similar"]["correlation"]["value"] == pytest.approx(1.0)
        and found["similar"]["correlation"]["pairs"] == 4
    )
    assert found["upper"]["against_reference"]["value"] == pytest.approx(0.2)
    table = (folder / "STUDY.md").read_text()
    assert (
        "| arm | reward | inverse accuracy | AUC | AUC within a task | gain | gain minus reference |" in table
    )
    row = next(
        line
        for line in table.splitlines()
        if line.startswith("| similar | similarity | 0.900 | 0.900 | 0.900 | +0.200")
    )
    assert "+0.150" in row and row.rstrip(" |").endswith("+1.000 [+1.000, +1.000]")
    for name in ("theory.png", "boundary.png"):
        assert (folder / name).is_file() and f"]({name})" in table
    assert 'id="theory"' in (folder / "index.html").read_text()


def test_the_studies_that_come_with_the_project_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models/shared-0.6", "models/shared-0.9", "smollm2-warm"):
        (tmp_path / "runs" / name).mkdir(parents=True)  # the head of its file says how to make it
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    card = {"base": "embedded", "dtype": "float32", "labels": 3, "center": 0.0, "sha256": {}}
    for name in ("truth", "judge"):
        (tmp_path / "runs" / "reward_model" / name).mkdir(parents=True)
        (tmp_path / "runs" / "reward_model" / name / "reward_model.json").write_text(json.dumps(card))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    paths = sorted((CONFIGS.parent / "studies").glob("*.yaml"))
    assert {"boundary", "embedded", "smoke"} <= {path.stem for path in paths}
    plans = {path.stem: read_plan(path, TRAINERS) for path in paths}
    arms = plans["embedded"].arms
    assert all(
        arms[name].resolved["cycles"] * arms[name].resolved["tasks"] * 3 == 1500
        for name in ("likelihood", "similarity", "truth")
    )
    assert len(arms["likelihood"].seeds) == 5 and arms["truth"].labelled


def test_other_settings_than_the_runs_were_started_with_are_refused(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = study(three, THREE.replace("reward: random}", "reward: random, lr: 0.5}"), "--jobs", "0")
    assert code == 2
    assert (
        f"random: lr was 0.001 when {folder / 'runs' / 'random' / 's0'} was started and is 0.5 now"
        in capsys.readouterr().err
    )


def test_damaged_runs_are_reported_and_the_rest_counts(
    three: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (three / "out" / "runs" / "random" / "s1" / "metrics.jsonl").write_text("{\n")
    code, folder = study(three, THREE, "--jobs", "0")
    found = json.loads((folder / "study.json").read_text())
    assert (
        code == 1
        and found["arms"]["random"]["gain"]["seeds"] == 2
        and found["arms"]["similar"]["against_reference"]["seeds"] == 2
    )
    assert "FAILED random, seed 1" in capsys.readouterr().out


def test_arms_learn_from_the_candidates_of_one_that_comes_first(tmp_path: Path) -> None:
    file, folder = tmp_path / "study.yaml", tmp_path / "out"
    arms = "arms:\n  chooses: {reward: likelihood, tasks: 10}\n  writes: {reward: random}\n"
    file.write_text(HEAD + "candidates_of: writes\n" + arms)
    plan = read_plan(file, TRAINERS)
    assert [arm.candidates_of for arm in plan.arms.values()] == ["writes", None]
    jobs = all_jobs(plan, folder, COMMANDS)
    assert [job.name for job in jobs] == ["writes s0", "writes s1", "writes s2"]
    assert [[after.name for after in job.then] for job in jobs] == [[f"chooses s{seed}"] for seed in range(3)]
    assert "--rollouts" not in jobs[1].command
    words = list(jobs[1].then[0].command)
    assert words[words.index("--rollouts") + 1] == str(folder / "runs" / "writes" / "s1")

    fabricate(folder, "writes", [0.5, 0.5], "random")  # has ended: the others need not wait
    jobs = all_jobs(plan, folder, COMMANDS)
    assert [job.name for job in jobs] == ["chooses s0", "chooses s1", "writes s2"]
    assert [after.name for after in jobs[2].then] == ["chooses s2"]


# --- with runs that train: two arms of a tiny budget, in one study that fails, goes on and is extended


TINY = (
    "seeds: [0]\nreference: random\n"
    "settings: {model: embedded, cycles: 1, tasks: 3, eval_tasks: 6, eval_subset: 3, eval_samples: 2,"
    " max_new_tokens: 24}\n"
    "transfer_tasks: 3\n"
    "arms:\n"
    "  random: {reward: random, domain: shell, evaluate_on: [sql]}\n"
    "  broken: {reward: random, model: no-such/model}\n"
)


@pytest.mark.slow
def test_a_failed_arm_does_not_stop_the_rest_and_a_study_goes_on(
    tmp_path: Path, no_charts: None, jobs_start_at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = study(tmp_path, TINY, "--jobs", "2", "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == 1 and found == json.loads((folder / "study.json").read_text())
    assert [(row["arm"], row["seed"]) for row in found["failed"]] == [("broken", 0)]
    assert re.fullmatch(r"--model no-such/model: .*\(exit code 2\)", found["failed"][0]["why"])
    assert "FAILED: --model no-such/model" in said.err
    assert found["arms"]["random"]["transfer"]["sql"]["seeds"] == 1
    page = (folder / "index.html").read_text()
    assert "1 run failed" in page and "Transfer between domains" in page
    assert found["wall_seconds"] > 0 and found["at_once"] == 2 and ", 2 at a time" in page
    assert study(tmp_path, TINY, "--jobs", "0")[0] == 1  # what failed is remembered
    assert "FAILED broken, seed 0: --model no-such/model" in capsys.readouterr().out
    run = folder / "runs" / "random" / "s0"
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}

    # Again with the arm repaired: a run that was killed before its results continues, finished ones stay.
    shutil.copytree(
        run,
        folder / "runs" / "broken" / "s0",
        ignore=shutil.ignore_patterns("self_improvement_results.json", "cycle-0001"),
    )
    code, _ = study(tmp_path, TINY.replace(", model: no-such/model", ", domain: shell"), "--jobs", "1")
    said = capsys.readouterr()
    assert code == 0 and "1/1  broken s0  held-out accuracy" in said.out and "FAILED" not in said.out
    assert json.loads((folder / "study.json").read_text())["failed"] == []
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert read_run(folder / "runs" / "broken" / "s0").finished
    assert (folder / "runs/broken/s0/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


# --- children


def alive(marker: str) -> list[int]:
    """Processes whose command line holds the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """However the parent ends, its sleeping children end with it."""
    marker = f"marker-{tmp_path.name}-{int(number)}"
    code = (
        "import sys; from pathlib import Path\n"
        "from agents.cli.faults import Terminated\nfrom agents.studies.jobs import Job, run_jobs\n"
        f"words = ['-c', 'import time; time.sleep(60)', {marker!r}]\n"
        f"jobs = [Job(f'j{{n}}', words, Path({str(tmp_path)!r}) / f'j{{n}}') for n in range(3)]\n"
        "try:\n    run_jobs(jobs, 2, sys.stdout)\n"
        "except (KeyboardInterrupt, Terminated) as stop:\n    print(type(stop).__name__)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert wait_for(lambda: len(alive(f"time.sleep(60)\0{marker}")) == 2)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert wait_for(lambda: not alive(f"time.sleep(60)\0{marker}"))
    assert out.strip() == {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "Terminated"}.get(number, "")


def test_jobs_fail_one_by_one_and_others_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = Job("after", ["-c", "print(1)"], tmp_path / "after")
    never = Job("never", ["-c", "print(1)"], tmp_path / "never")
    jobs = [
        Job("good", ["-c", "pass"], tmp_path / "good", then=[after], facts=lambda: "went well"),
        Job("bad", ["-c", "import sys; sys.exit('error: it is broken')"], tmp_path / "bad", then=[never]),
        Job("killed", ["-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "killed"),
    ]
    ended: dict[str, str | None] = {}
    run_jobs(jobs, 2, sys.stdout, ended.__setitem__)
    assert ended.pop("good") is None and ended.pop("after") is None
    assert ended == {"bad": "it is broken (exit code 1)", "killed": "it said nothing (ended by SIGKILL)"}
    assert (tmp_path / "after.out").read_text() == "1\n" and not (tmp_path / "never.out").exists()
    lines = capsys.readouterr().out.splitlines()
    assert any("good  went well" in line for line in lines) and lines[-1].lstrip().startswith("5/5")


@pytest.mark.slow
def test_an_interrupted_study_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(TINY)
    words = [
        "-m",
        "agents.study",
        str(tmp_path / "study.yaml"),
        "--output",
        str(tmp_path / "out"),
        "--jobs",
        "1",
    ]
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert wait_for(lambda: (tmp_path / "out" / "logs" / "random-s0.out").exists())
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    again = f"python -m agents.study {tmp_path / 'study.yaml'} --output {tmp_path / 'out'}"
    assert error == f"interrupted: go on with {again}\n"
    assert wait_for(lambda: not alive(str(tmp_path / "out")))


def test_two_studies_do_not_share_a_folder(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    descriptor = os.open(three / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert study(three, THREE, "--jobs", "0")[0] == 2
        assert "is in use by another process" in capsys.readouterr().err
    finally:
        os.close(descriptor)


def test_runs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run is there"):
        read_run(tmp_path)
