"""The evaluation command: one model, runs against their start and each other, own tasks, wrong input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.cli.command import run_command
from agents.evaluate import Config, main, resolved, subjects_of
from agents.evaluation import statistics
from agents.evaluation.answers import Answer, Judged, held_out_cases
from agents.evaluation.report import compare, describe
from agents.evaluation.terminal import show
from agents.policy.labels import write_labels
from envs.types import Task
from envs.verify.truth import Case, _verdict
from envs.verify.verdict import Status, Verdict

Evaluate = Callable[..., dict[str, Any]]
MADE_BY_NONE = ("any right", "most votes", "random pick")
FEW = ["--tasks", "6", "--samples", "2"]
MISSING = "bubblewrap is not installed: apt-get install bubblewrap"


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals have tests of their own; here they need not be good."""
    honest = statistics.resamples
    monkeypatch.setattr(
        statistics, "resamples", lambda tasks, rounds, seed=0: honest(tasks, min(rounds, 20), seed)
    )


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Runs the command, which must succeed and write its report -> the report."""

    def evaluated(*argv: str, output: Path = tmp_path / "report") -> dict[str, Any]:
        assert run_command(Config, main, [*FEW, "--output", str(output), *argv], "evaluate") == 0, (
            capsys.readouterr().err
        )
        report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
        page = (output / "report.html").read_text(encoding="utf-8")
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert all(subject["name"] in page for subject in report["subjects"])
        return report

    return evaluated


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs the command, which must refuse with code 2 and one line before it loads a model -> the line."""

    def error(*argv: str, loads: bool = False) -> str:
        if not loads:
            monkeypatch.setattr(
                "agents.evaluation.measure.load_policy", lambda *_, **__: pytest.fail("a model was loaded")
            )
        capsys.readouterr()
        assert run_command(Config, main, [*FEW, "--output", str(tmp_path / "report"), *argv], "evaluate") == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
        assert not (tmp_path / "report" / "report.json").exists()
        return said.removeprefix("error: ").rstrip("\n")

    return error


# ---- a model ----


def test_a_model(command: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = command("--model", "embedded", "--domain", "network,sql")
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("model: embedded, as --model says")
    assert said.out.splitlines()[-1] == f"{tmp_path}/report/report.html"
    assert "12 tasks" in said.out and "pass@2" in said.out and not said.err
    assert report["tasks"] == 12 and report["k"] == 2 and report["comparisons"] == []
    assert set(report["truth"]) == {"network", "sql"} and "never executed" in report["truth"]["network"]
    (subject,) = report["subjects"]
    assert (subject["name"], subject["model"], subject["adapter"]) == ("embedded", "embedded", None)
    assert set(subject["domains"]) == {"network", "sql"} and set(subject["unseen"]) <= {
        "paraphrase",
        "values",
    }
    wanted = {
        "greedy",
        "pass@1",
        "pass@2",
        "inverse",
        "invalid",
        "not_executed",
        "auc",
        "auc_within",
        "best_of_k",
        "risk_area",
    }
    for row in (subject["all"], *subject["domains"].values(), *subject["unseen"].values()):
        assert wanted | {"calibration_error", "reward_minus_truth", "exact", "distinct"} <= set(row)
        assert all(set(estimate) == {"value", "low", "high", "tasks"} for estimate in row.values())
    assert all({"greedy", "inverse", "pass@1"} <= set(row) for row in subject["intents"].values())
    greedy = subject["all"]["greedy"]
    parts = [subject["domains"][name]["greedy"] for name in ("network", "sql")]
    assert greedy["tasks"] == 12 and greedy["value"] == pytest.approx(
        sum(part["value"] for part in parts) / 2
    )
    assert greedy["low"] <= greedy["value"] <= greedy["high"]
    assert sum(row["greedy"]["tasks"] for row in subject["unseen"].values()) == 12
    assert sum(row["greedy"]["tasks"] for row in subject["intents"].values()) == 12
    assert subject["risk_coverage"][-1]["coverage"] == 1.0
    assert subject["risk_coverage"][-1]["risk"] == pytest.approx(1 - subject["all"]["best_of_k"]["value"])
    assert sum(group["samples"] for group in subject["calibration"]) == 24
    assert subject["not_executed"] == 0
    assert {"task", "reference", "command", "status", "reason", "differed"} == set(subject["failures"][0])
    exact = subject["exact_but"]["network"]
    assert (
        exact["exact but not right"] == 0
        and exact["commands"] >= exact["exact"] + exact["right but not exact"]
    )
    settings = {
        "domain": "network,sql",
        "reward": "likelihood",
        "inverter": "current",
        "temperature": 0.7,
        "samples": 2,
        "tasks_file": None,
    }
    suited = {"inverse_temperature": 0.0, "max_new_tokens": 48}  # as configs/embedded.yaml has them
    assert {name: report["settings"][name] for name in {**settings, **suited}} == settings | suited


@pytest.mark.slow
def test_json_alone_and_the_same_bytes(
    command: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [
        "--model",
        "embedded",
        "--domain",
        "network",
        "--reward",
        "likelihood-min",
        "--temperature",
        "1.1",
    ]
    first = command(*argv, "--json", output=tmp_path / "a")
    said = capsys.readouterr()
    assert json.loads(said.out) == first
    assert said.err.startswith("model: embedded")  # what is for people is not on standard output
    assert first["settings"]["temperature"] == 1.1 and first["settings"]["reward"] == "likelihood-min"
    second = command(*argv, output=tmp_path / "b")
    assert second == first
    for name in ("report.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_task_and_one_sample(command: Evaluate, tmp_path: Path) -> None:
    """pass@k is pass@1, and what is not known is no number, not one that JSON has not."""
    report = command("--model", "embedded", "--domain", "sql", "--samples", "1", "--tasks", "1")
    (subject,) = report["subjects"]
    assert subject["all"]["pass@1"]["tasks"] == 1 and subject["all"]["auc_within"]["value"] is None
    text = (tmp_path / "report" / "report.json").read_text()
    assert not re.search(r"\b(NaN|Infinity)\b", text)


def test_the_default_folder_is_named_after_the_subjects(
    sql_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "agents.evaluation.measure.measure", lambda model, adapter, cases, settings, **_: answers_of(cases)
    )
    for argv, name in (
        (["--model", "embedded", "--domain", "network"], "embedded"),
        ([str(sql_run)], "sql--start--sql--end"),
    ):
        assert run_command(Config, main, argv, "evaluate") == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"runs/evaluate/{name}/report.html"
        assert (tmp_path / "runs" / "evaluate" / name / "report.json").is_file()


# ---- runs ----


def test_labels_of_the_start_and_the_end(
    command: Evaluate,
    sql_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of the weights, and the shots before the prompts. A run's own shots are in its count already."""
    monkeypatch.setattr(
        "agents.evaluation.measure.measure", lambda model, adapter, cases, settings, **_: answers_of(cases)
    )
    run = shutil.copytree(sql_run, tmp_path / "sql")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "shots": 3}))
    write_labels(run / "checkpoints" / "cycle-0001", 1203)
    for argv, wanted in (
        ([str(run)], [3, 1203]),
        ([str(run), "--shots", "5"], [5, 1205]),
        ([str(run), "--shots", "0"], [0, 1203]),
        (["embedded", str(run / "checkpoints" / "cycle-0001")], [3, 1203]),
        (["--model", "embedded", "--domain", "sql,network", "--shots", "2"], [4]),
    ):
        report = command(*argv)
        assert [subject["labels"] for subject in report["subjects"]] == wanted
        said = capsys.readouterr().out.splitlines()
        for subject in report["subjects"]:
            assert f"{subject['name']}, labels used: {subject['labels']:,}" in said


@pytest.mark.slow
def test_a_run_is_its_start_against_its_end(
    command: Evaluate, network_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = command(str(network_run))
    start, end = report["subjects"]
    assert (start["name"], end["name"]) == ("network, start", "network, end")
    assert (start["adapter"], end["adapter"]) == (None, str(network_run / "checkpoints" / "cycle-0001"))
    assert {name: report["settings"][name] for name in ("domain", "reward", "temperature")} == {
        "domain": "network",
        "reward": "random",
        "temperature": 0.9,
    }
    (comparison,) = report["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("network, start", "network, end")
    assert set(comparison["all"]) == {"greedy", "pass@1", "pass@2", "inverse", "reward"}
    greedy = comparison["all"]["greedy"]
    assert greedy["value"] == pytest.approx(end["all"]["greedy"]["value"] - start["all"]["greedy"]["value"])
    assert (
        greedy["tasks"] == 6
        and greedy["p"] is not None
        and greedy["gained"] - greedy["lost"] == round(6 * greedy["value"])
    )
    assert (len(comparison["gained"]), len(comparison["lost"])) == (greedy["gained"], greedy["lost"])
    assert comparison["all"]["reward"]["value"] == 0.0  # noise does not depend on the policy
    assert set(comparison["intents"]) == set(start["intents"]) and set(comparison["domains"]) == {"network"}
    assert greedy["verdict"] in ("better", "worse", "no difference shown")
    assert "network, end against network, start, greedy: " in capsys.readouterr().out


@pytest.mark.slow
def test_two_runs_and_a_checkpoint(command: Evaluate, network_run: Path, sql_run: Path) -> None:
    checkpoint = network_run / "checkpoints" / "cycle-0000"
    report = command(
        str(checkpoint),
        str(network_run),
        str(sql_run),
        "--domain",
        "network",
        "--reward",
        "likelihood",
    )
    assert [subject["name"] for subject in report["subjects"]] == ["network, cycle-0000", "network", "sql"]
    assert [(c["first"], c["second"]) for c in report["comparisons"]] == [
        ("network, cycle-0000", "network"),
        ("network, cycle-0000", "sql"),
    ]
    assert report["subjects"][0]["adapter"] == str(checkpoint)
    assert report["settings"]["reward"] == "likelihood" and report["settings"]["domain"] == "network"


@pytest.mark.slow
def test_an_untrained_adapter_changes_nothing(command: Evaluate, sql_run: Path) -> None:
    """A model and the checkpoint before the first cycle of a run that started from it answer alike."""
    report = command("embedded", str(sql_run / "checkpoints" / "cycle-0000"))
    assert {row["value"] for row in report["comparisons"][0]["all"].values()} == {0.0}
    assert report["comparisons"][0]["all"]["greedy"]["p"] == 1.0
    assert {row["verdict"] for row in report["comparisons"][0]["all"].values()} == {"no difference shown"}


def test_a_run_and_a_model_share_the_runs_settings(sql_run: Path) -> None:
    for order in (("embedded", str(sql_run)), (str(sql_run), "embedded")):
        config = Config(subjects=order)
        settings = resolved(config, subjects_of(config))
        assert (settings["domain"], settings["reward"], settings["temperature"]) == ("sql", "random", 0.9)
    alone = Config(subjects=("embedded",))
    assert resolved(alone, subjects_of(alone))["domain"] == "all"


def test_the_kept_cycle_is_the_runs_end(sql_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sql_run, tmp_path / "sql")
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["kept"] == 1
    for kept, cycle in ((0, "cycle-0000"), (7, "cycle-0001"), ("x", "cycle-0001"), (None, "cycle-0001")):
        (folder / "progress.json").write_text(json.dumps({**progress, "kept": kept}))
        assert str(subjects_of(Config(subjects=(str(folder),)))[1].adapter).endswith(cycle)
    for broken in ("[]", "{", ""):
        (folder / "progress.json").write_text(broken)
        assert str(subjects_of(Config(subjects=(str(folder),)))[1].adapter).endswith("cycle-0001")


def test_runs_of_one_name_have_names_of_their_own(sql_run: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(sql_run, tmp_path / "sql")
    subjects = subjects_of(Config(subjects=(str(sql_run), str(twin))))
    assert [subject.name for subject in subjects] == [str(sql_run), str(twin)]


def test_a_models_name_means_the_same_inside_a_run(sql_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sql_run)
    assert [subject.adapter for subject in subjects_of(Config(subjects=("embedded",)))] == [None]
    assert [subject.name for subject in subjects_of(Config(subjects=(".",)))] == ["sql, start", "sql, end"]
    monkeypatch.chdir(sql_run / "checkpoints")
    assert [subject.name for subject in subjects_of(Config(subjects=("cycle-0001",)))] == ["sql, cycle-0001"]


# ---- one's own tasks ----


def test_own_tasks(command: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"task": "ping db.test 3 times", "reference": "ping -c 3 db.test"},
        {"task": "what is there", "reference": "no-such-tool x"},  # a reference of which nothing can be said
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = command("--model", "embedded", "--domain", "network", "--tasks-file", str(path))
    assert report["tasks"] == 2 and report["settings"]["tasks_file"] == str(path)
    (subject,) = report["subjects"]
    assert subject["unseen"] == subject["intents"] == {}
    assert (
        subject["all"]["inverse"]["value"] is None
    )  # no grammar tells whether such a task was reconstructed
    assert subject["not_executed"] == 3 and subject["all"]["greedy"]["tasks"] == 1
    assert [row["status"] for row in subject["reasons"] if "reference" in row["reason"]] == ["not_executed"]
    assert report["references"] == {
        "tasks": 2,
        "judged": 1,
        "own": 0,
        "reasons": [
            {
                "reason": "the reference is outside the option grammar",
                "tasks": 1,
                "line": "2",
                "example": "unknown tool 'no-such-tool'",
            }
        ],
        "gated": [
            {
                "reason": "not a command of this domain",
                "tasks": 1,
                "line": "2",
                "example": "no-such-tool x",
            }
        ],
    }


def test_own_tasks_of_several_domains_and_sources(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    ping = {"task": "ping db.test 3 times", "reference": "ping -c 3 db.test", "domain": "network"}
    rows = [
        {**ping, "source": "ours ping.md, line 1"},
        {**ping, "source": "ours ping.md, line 2"},
        {
            "task": "how many rows are there",
            "reference": "SELECT COUNT(*) FROM t",
            "domain": "sql",
            "source": "theirs",
            "database": "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1), (2), (3);",
        },
        {**ping, "reference": "no-such-tool x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = command("--model", "embedded", "--tasks-file", str(path), "--samples", "2", "--reward", "length")
    assert report["settings"]["domain"] == "network,sql"
    (subject,) = report["subjects"]
    sources = subject["sources"]
    assert {name: part["exact"]["tasks"] for name, part in sources.items()} == {"ours": 2, "theirs": 1}
    assert report["references"]["own"] == 1 and report["references"]["judged"] == 3
    show(report)
    shown = capsys.readouterr().out
    assert f"{path}: 3 of 4 tasks can be judged (0.75); 1 have a tree or a database of their own" in shown
    assert "1 cannot: the reference is outside the option grammar (the first, on line 4" in shown
    assert "1 have a reference that scores 0 behind the gates: not a command of this domain" in shown
    assert "theirs" in shown and "by source" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task": "x"}', "reference: is missing"),
        ('{"task": "x", "reference": ""}', "reference: must be a text that is not empty"),
        ('{"task": "x", "reference": "y", "orderd": true}', "orderd: unknown key: did you mean ordered?"),
        ("task: x", "not JSON"),
    ],
)
def test_faulty_tasks_are_named_before_a_model_is_loaded(
    tmp_path: Path, refused: Callable[..., str], line: str, message: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"task": "x", "reference": "y"}\n' + line + "\n")
    said = refused("--model", "embedded", "--domain", "network", "--tasks-file", str(path))
    assert said.startswith(f"{path}:2: {message}")


# ---- without a sandbox ----


@pytest.mark.slow
def test_without_a_sandbox_the_rest_goes_on(
    command: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _verdict.cache_clear()
    monkeypatch.setattr("envs.verify.shell.unavailable", lambda: MISSING)
    report = command("--model", "embedded", "--domain", "shell,network")
    said = capsys.readouterr()
    assert (
        f"18 commands could not be executed and are excluded: {MISSING}" in said.out
    )  # 6 greedy and 12 sampled ones
    (subject,) = report["subjects"]
    assert subject["not_executed"] == 18
    shell, network = subject["domains"]["shell"], subject["domains"]["network"]
    assert {
        shell[name]["value"]
        for name in ("greedy", "pass@1", "pass@2", "invalid", "auc", "best_of_k", "reward")
    } == {None}
    assert shell["not_executed"]["value"] == 1.0 and shell["greedy"]["tasks"] == 0
    assert network["greedy"]["tasks"] == 6 and network["greedy"]["value"] is not None
    assert subject["all"]["greedy"] == network["greedy"] | {
        key: subject["all"]["greedy"][key] for key in ("low", "high")
    }
    assert subject["all"]["inverse"]["tasks"] == 12  # reconstruction needs no sandbox
    assert {"domain": "shell", "status": "not_executed", "reason": MISSING, "count": 18} in subject["reasons"]
    assert all(failure["status"] != "not_executed" for failure in subject["failures"])
    assert subject["exact_but"]["shell"]["commands"] == 0


@pytest.mark.slow
def test_shell_with_a_sandbox(command: Evaluate, sandbox: None) -> None:
    _verdict.cache_clear()
    (subject,) = command("--model", "embedded", "--domain", "shell")["subjects"]
    assert subject["not_executed"] == 0 and subject["all"]["greedy"]["tasks"] == 6


# ---- the report ----


def answers_of(cases: list[Case], statuses: str = "", samples: int = 0) -> list[Answer]:
    """Made-up answers: the greedy command of each task has the status of its letter, correct by default."""
    known: dict[str, Status] = {"+": "correct", "-": "wrong", "!": "invalid", "?": "not_executed"}
    marks = statuses or "+" * len(cases)
    return [
        Answer(
            case,
            Judged(
                f"command {mark}", Verdict(known[mark], "" if mark == "+" else f"because {mark}"), mark == "+"
            ),
        )
        for case, mark in zip(cases, marks, strict=True)
    ]


def test_examples_are_of_every_domain() -> None:
    cases = held_out_cases("network", 30) + held_out_cases("sql", 30)
    failures = describe(answers_of(cases, "-" * 60), 2)["failures"]
    queries = [failure for failure in failures if failure["reference"].upper().startswith("SELECT")]
    assert len(failures) == 10 and len(queries) == 5


def test_gained_and_lost_are_what_mcnemar_counts() -> None:
    cases = held_out_cases("network", 8)
    found = compare(answers_of(cases, "+-!?+-?+"), answers_of(cases, "++++-!-?"), 2)
    greedy = found["all"]["greedy"]
    assert (greedy["gained"], greedy["lost"], greedy["tasks"]) == (2, 1, 5)
    assert [row["why"] for row in found["gained"]] == ["because -", "because !"]
    assert [(row["before"], row["command"], row["why"]) for row in found["lost"]] == [
        ("command +", "command -", "because -")
    ]


def test_reasons_and_exact_matches() -> None:
    cases = held_out_cases("network", 4)
    described = describe(answers_of(cases, "--!+"), 2)
    assert described["reasons"] == [
        {"domain": "network", "status": "wrong", "reason": "because -", "count": 2},
        {"domain": "network", "status": "invalid", "reason": "because !", "count": 1},
    ]
    assert described["exact_but"]["network"] == {
        "commands": 4,
        "exact": 1,
        "right but not exact": 0,
        "exact but not right": 0,
    }
    case = Case(Task("t/1", "network", "x"), "r")
    equal = Judged("r", Verdict("wrong"), True)
    other = Judged("q", Verdict("correct"), False)
    exact = describe([Answer(case, equal, (equal, other, other))], 2)["exact_but"]["network"]
    assert exact == {
        "commands": 2,
        "exact": 1,
        "right but not exact": 1,
        "exact but not right": 1,
    }  # different commands, each once


# ---- wrong input ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "0"], "--tasks 0: must be 1 or more"),
        (["--samples", "0"], "--samples 0: must be 1 or more"),
        (["--max-new-tokens", "-1"], "--max-new-tokens -1: must be 1 or more"),
        (["--temperature", "0"], "--temperature 0.0: must be above 0"),
        (["--temperature", "nan"], "--temperature nan: must be above 0"),
        (["--temperature", "inf"], "--temperature inf: must be above 0"),
        (["--temperature", "warm"], "--temperature warm: must be a number"),
        (["--inverse-temperature", "-1"], "--inverse-temperature -1.0: must be 0 (greedy) or more"),
        (["--inverse-temperature", "nan"], "--inverse-temperature nan: must be 0 (greedy) or more"),
        (["--shots", "-1"], "--shots -1: must be 0 or more"),
        (["--reward", "likelyhood"], "--reward likelyhood: no such reward: did you mean likelihood?"),
        (["--inverter", "bass"], "--inverter bass: must be one of current, base"),
        (["--domain", "shel"], "--domain shel: no such domain or file: did you mean shell?"),
        (["--domain", ","], "--domain ',': name at least one domain"),
        (["--tasks-file", "no.jsonl"], "--tasks-file no.jsonl: no such file: give"),
        (["--sample", "3"], "unknown flag --sample: did you mean --samples?"),
        (["--output", "/proc/no"], "--output /proc/no: cannot be written"),
    ],
)
def test_wrong_flags(refused: Callable[..., str], flags: list[str], message: str) -> None:
    assert refused("--model", "embedded", *flags).startswith(message)


def test_wrong_subjects(refused: Callable[..., str], sql_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(sql_run, tmp_path / "other")
    saved = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**saved, "domain": "network"}))
    run, adapter = str(sql_run), str(sql_run / "checkpoints" / "cycle-0001")
    assert refused("runs/no-such-run").startswith(
        "runs/no-such-run: no such folder: give a run, one of its checkpoints, or a model"
    )
    assert refused(str(tmp_path / "no")).startswith(f"{tmp_path}/no: no such folder")
    assert refused(run, "--model", "embedded").startswith(
        "--model: give either subjects or --model and --adapter"
    )
    assert refused(run, "--adapter", adapter).startswith(
        "--adapter: give either subjects or --model and --adapter"
    )
    assert refused(run, str(other)).startswith(
        "--domain: the runs were made on different ones (network; sql): say which"
    )
    lone = shutil.copytree(adapter, tmp_path / "lone")
    assert refused(str(lone)).startswith(
        f"{lone}: it holds an adapter (adapter_config.json): give its base with --model"
    )
    assert refused(run, "--tasks-file", "no.jsonl").startswith(
        "--tasks-file no.jsonl: no such file"
    )  # the run says the domain


def test_models_that_cannot_be_loaded(refused: Callable[..., str], tmp_path: Path) -> None:
    def said(*argv: str) -> str:
        return refused("--domain", "sql", *argv, loads=True)

    assert said("--model", str(tmp_path / "no")).startswith(f"--model {tmp_path}/no: there is no such folder")
    assert said("--model", "embedded", "--adapter", str(tmp_path)).startswith(f"--adapter {tmp_path}: no ")
    assert said("shel").startswith("--model shel: cannot be loaded")


BROKEN = [
    b"- a",
    b"",
    b"model: a",
    b"agent: ppo\ndomain: sql",
    b"agent: ppo\nmodel: 3",
    b"agent: ppo\nmodel: a\ndomain: [sql]",
    b"agent: ppo\nmodel: a\ntemperature: warm",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_run_whose_configuration_is_broken(
    sql_run: Path, tmp_path: Path, refused: Callable[..., str], content: bytes
) -> None:
    folder = shutil.copytree(sql_run, tmp_path / "broken")
    (folder / "config.yaml").write_bytes(content)
    for subject in (folder, folder / "checkpoints" / "cycle-0001"):
        said = refused(str(subject))
        assert said.startswith(f"{folder}/config.yaml: cannot be read (")
        assert said.endswith("): restore it, or give another run")


def test_a_run_whose_configuration_is_no_yaml(
    sql_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = shutil.copytree(sql_run, tmp_path / "broken")
    for content, message in ((b"a: 1\n\xff", "2: not UTF-8"), (b"a: 1\n{", "2: not valid YAML")):
        (folder / "config.yaml").write_bytes(content)
        assert refused(str(folder)).startswith(f"{folder}/config.yaml:{message}")


def test_a_run_without_a_checkpoint(sql_run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = shutil.copytree(sql_run, tmp_path / "young")
    shutil.rmtree(folder / "checkpoints")
    assert refused(str(folder)) == f"{folder}: has no checkpoint yet: give a run that has finished a cycle"


def test_a_run_whose_domain_is_gone(sql_run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = shutil.copytree(sql_run, tmp_path / "moved")
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**saved, "domain": str(tmp_path / "gone.yaml")}))
    assert refused(str(folder)).startswith(f"--domain {tmp_path}/gone.yaml: no such domain or file")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(Config, main, ["--help"], "evaluate")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--tasks-file" in said and "Held-out tasks of each domain" in said


@pytest.mark.slow
def test_best_of_n_against_greedy(command: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    report = command("--model", "embedded", "--domain", "network", "--best-of", "3")
    assert report["k"] == report["settings"]["samples"] == 3
    (subject,) = report["subjects"]
    gain = subject["all"]["best_of_k"]["value"] - subject["all"]["greedy"]["value"]
    assert subject["best_of_k"]["value"] == pytest.approx(gain)
    assert set(subject["headroom"]["sizes"][-1]["choices"]) == {*MADE_BY_NONE, "likelihood"}
    assert "headroom of 3" in capsys.readouterr().out


@pytest.mark.slow
def test_several_rewards_choose_among_the_same_candidates(
    command: Evaluate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--model", "embedded", "--domain", "network", "--best-of", "3", "--temperature", "1.2")
    report = command(*flags, "--reward", "likelihood,length, truth")
    assert report["settings"]["reward"] == "likelihood"
    assert report["settings"]["choosing"] == ["likelihood", "length", "truth"]
    (subject,) = report["subjects"]
    two, three = subject["headroom"]["sizes"]
    assert (two["samples"], three["samples"]) == (2, 3) and 1 <= two["different"] <= three["different"] <= 4
    chosen = {name: row["accuracy"]["value"] for name, row in three["choices"].items()}
    assert list(chosen) == [
        "any right",
        "likelihood",
        "length",
        "truth (labelled)",
        "most votes",
        "random pick",
    ]
    assert chosen["truth (labelled)"] == chosen["any right"] >= chosen["likelihood"]
    assert subject["headroom"]["greedy"] == subject["all"]["greedy"]
    assert subject["all"]["reward"]["value"] == pytest.approx(
        command(*flags)["subjects"][0]["all"]["reward"]["value"]
    )
    said = capsys.readouterr().out
    assert "truth (labelled)" in said and "random pick" in said
    alone = command("--model", "embedded", "--domain", "network")
    assert alone["subjects"][0]["headroom"] is None
    assert "headroom" not in (tmp_path / "report" / "report.html").read_text().lower()


def test_several_rewards_need_something_to_choose(refused: Callable[..., str]) -> None:
    said = refused("--reward", "likelihood,channel")
    assert said == "--reward likelihood,channel: needs --best-of N, for several rewards to choose"
    assert refused("--best-of", "2", "--reward", "likelihood,chanel") == (
        "--reward chanel: no such reward: did you mean channel?"
    )


def test_best_of_one_is_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Config, main, ["--model", "embedded", "--best-of", "1"], "evaluate") == 2
    assert capsys.readouterr().err.startswith("error: --best-of 1: must be 2 or more")
