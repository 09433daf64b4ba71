"""The documented loop: selection, the protocol's numbers, resume to the same bytes, no label within reach."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import kill_after_the_first_of_three
from fabricated import make_run

from agents.cli.command import parse, run_command
from agents.policy.load import load_policy
from agents.rejection_sft import Config, accepted_of, main, select
from agents.training import loop as loop_module
from agents.training import session as session_module
from agents.training.config import TrainConfig
from agents.training.results import cycle_facts, cycle_table
from agents.training.rollouts import Batch, Rollout, read_accepted, records
from agents.training.run import Run
from agents.training.saved import saved
from envs.schema import CONFIGS
from envs.types import Completion, Score, Task
from rewards.channel import Channel

SMALL = ["--tasks", "6", "--eval-tasks", "9", "--eval-subset", "6", "--eval-samples", "2"]
SMALL += ["--max-new-tokens", "32"]
# For a model with random weights, which writes no command: nothing is executed, and no gate closes.
TINY = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12"]
TINY += ["--tasks", "6", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "2"]
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "progress.json", "self_improvement_results.json")


def run(tmp: Path, name: str, *flags: str, model: Path | None = None) -> Path:
    """Runs the command in this process, by default on the embedded model -> the run's folder."""
    chosen = ["--model", str(model), *TINY] if model else ["--model", "embedded", *SMALL]
    argv = [*chosen, "--output", str(tmp), "--name", name, *flags]
    assert run_command(Config, main, argv, "rejection_sft") == 0
    return tmp / name


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed: logs, results and the last adapter."""
    last = max((folder / "checkpoints").iterdir())
    files = {name: (folder / name).read_bytes() for name in LOGS}
    average = {path.name: path.read_bytes() for path in last.glob("ema.safetensors")}
    return {**files, **average, "adapter": (last / "adapter_model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def finished(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle under the reward `random`. A test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    return run(folder, "a", "--cycles", "1", "--reward", "random", model=brief)


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two cycles of the embedded model under the default reward, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        folder = run(tmp_path_factory.mktemp("protocol"), "a", "--cycles", "2", "--reward", "similarity")
    return folder, printed.getvalue()


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied" / "a"))


VALUES = [[0.9, 0.2, None], [0.4, 0.5, 0.5], [None, None, None], [0.1, 0.05, 0.0]]


def test_selection_rules() -> None:
    assert select(VALUES, "threshold", 0.5, 1.0) == [0, 4, 5]
    assert select(VALUES, "threshold", 0.0, 1.0) == [0, 1, 3, 4, 5, 9, 10, 11]
    assert select(VALUES, "best", 0.5, 1.0) == [0, 4, 9]
    assert select(VALUES, "best", 0.5, 0.6) == [0, 4]
    assert select(VALUES, "quantile", 0.5, 0.25) == [0, 4]
    assert select(VALUES, "quantile", 0.5, 1.0) == [0, 1, 3, 4, 5, 9, 10, 11]
    assert select([[None]], "best", 0.5, 1.0) == select([], "threshold", 0.5, 1.0) == []


TASK = Task("t", "shell", "list the files", "ls")
OPEN, CLOSED = {"gate/valid": 1.0, "gate/copied": 1.0}, {"gate/valid": 1.0, "gate/copied": 0.0}


def gated(value: float | None, parts: dict[str, float], truncated: bool = False) -> Rollout:
    return Rollout(TASK, Completion("ls", (5, 6), truncated=truncated), Score(value, parts))


@pytest.mark.parametrize("rule", ["threshold", "best", "quantile"])
def test_a_command_with_a_closed_gate_is_never_accepted(rule: str) -> None:
    """Six of ten tasks are gated throughout: 0.0 is the best there, and among the top shares of all."""
    rows = [[gated(0.0, CLOSED)] * 3] * 6 + [[gated(0.2, OPEN), gated(0.0, CLOSED), gated(0.0, OPEN)]] * 4
    config = Config(select=rule, keep_share=1.0, threshold=0.0)  # type: ignore[arg-type]
    open_ones = [18, 21, 24, 27] if rule == "best" else [18, 20, 21, 23, 24, 26, 27, 29]
    assert accepted_of(Batch(rows), config) == open_ones
    assert accepted_of(Batch(rows[:6]), config) == []
    assert gated(0.2, OPEN).acceptable == 0.2
    assert gated(0.2, OPEN, truncated=True).acceptable is None
    assert gated(0.0, {"gate/length": 0.0}).acceptable is None
    assert gated(0.0, {"cosine": 0.0}).acceptable == 0.0  # no gate


def test_a_closed_gate_in_the_log_is_not_replayed(tmp_path: Path) -> None:
    rollouts = [gated(0.2, OPEN), gated(0.0, CLOSED), gated(0.4, OPEN)]
    rows = records(rollouts, [0, 1, 2], cycle=1, phase="before")
    rows += records(rollouts, [2], cycle=1, phase="after") + records(rollouts, [2], cycle=2, phase="before")
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_accepted(path, ["before"])
    assert [rollout.score.value for rollout in found] == [0.2, 0.4, 0.4]
    as_read = replace(rollouts[0].completion, logprobs=(0.0,))  # the log has their sum
    assert found[0] == replace(rollouts[0], completion=as_read)
    assert read_accepted(tmp_path / "none.jsonl", ["before"]) == []


def test_without_any_score_the_mean_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """0.0 would be a good score under some rewards and a bad one under others."""
    nothing, something = Batch([[gated(None, {})] * 2]), Batch([[gated(0.25, {}), gated(None, {})]])
    assert loop_module.summary(nothing, [0]) == {
        "total_generated": 2,
        "accepted": 1,
        "acceptance_rate": 0.5,
        "mean_score": None,
    }
    assert loop_module.summary(something, None) == {"total_generated": 2, "mean_score": 0.25}
    before, after = loop_module.summary(nothing, []), loop_module.summary(something, [])
    cycle = {"cycle": 1, "before": before, "after": after, "improvement": None, "eval": {"eval/greedy": 0.5}}
    assert cycle_facts(cycle) == ["score – -> 0.250", "accepted 0%", "held-out greedy 0.500"]
    assert cycle_table([cycle], 9)[1] == [["1", "–", "0.250", "–", "0/2", "0.500"]]


@pytest.mark.slow
def test_the_protocol_and_its_files(protocol: tuple[Path, str]) -> None:
    folder, text = protocol
    printed = text.splitlines()
    assert printed[0].startswith("model: embedded, as --model says; defaults from configs/embedded.yaml")
    assert printed[-1] == str(folder)
    results = json.loads((folder / "self_improvement_results.json").read_text())
    assert results["total_generated"] == 2 * 2 * 6 * 3
    assert results["total_accepted"] == sum(
        cycle[phase]["accepted"] for cycle in results["cycles"] for phase in ("before", "after")
    )
    for cycle in results["cycles"]:
        for phase in ("before", "after"):
            assert cycle[phase]["total_generated"] == 18
            assert cycle[phase]["acceptance_rate"] == cycle[phase]["accepted"] / 18
        assert {"eval/greedy", "eval/pass@1", "eval/pass@2", "eval/auc"} <= set(cycle["eval"])
    assert {"start", "end"} == set(results["eval"])
    assert (
        results["improvement"]
        == results["cycles"][-1]["after"]["mean_score"] - results["cycles"][0]["before"]["mean_score"]
    )
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == results["total_generated"]
    for cycle, phase in ((1, "before"), (2, "after")):
        part = [row for row in rows if (row["cycle"], row["phase"]) == (cycle, phase)]
        assert sum(row["accepted"] for row in part) == results["cycles"][cycle - 1][phase]["accepted"]
        assert all(row["accepted"] == (row["score"] is not None and row["score"] >= 0.5) for row in part)
    assert len({row["task"] for row in rows if row["cycle"] == 1 and row["phase"] == "before"}) == 6
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 18, 36]  # what BEFORE scored: AFTER only measures
    wanted = {
        "reward/mean",
        "reward/cosine",
        "reward/abstained",
        "select/acceptance",
        "train/loss",
        "policy/kl",
        "policy/entropy",
    }
    assert wanted | {"policy/length", "policy/distinct", "eval/greedy"} <= set(metrics[-1])
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    assert {"time/generate", "time/reward", "time/train", "time/evaluate", "time/rest"} <= set(timings[-1])


@pytest.mark.slow
def test_same_seed_same_bytes_and_other_seed_others(tmp_path: Path, brief: Path, finished: Path) -> None:
    flags = ("--cycles", "1", "--reward", "random")
    first, second = written(finished), written(run(tmp_path / "y", "a", *flags, model=brief))
    first.pop("progress.json"), second.pop("progress.json")  # holds --output
    first.pop("self_improvement_results.json"), second.pop("self_improvement_results.json")
    assert first == second
    other = written(run(tmp_path / "z", "a", *flags, "--seed", "1", model=brief))
    assert other["rollouts.jsonl"] != first["rollouts.jsonl"]
    assert other["adapter"] != first["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        # What a run has by default, but that it accepts some of what this model writes.
        "--domain network,sql --reward similarity --select quantile",
        "--reward channel --replay all --inverter ema",
        "--reward majority --candidates 2 --redraw 2",
        "--reward likelihood --alternate",
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, brief: Path, flags: str) -> None:
    more = ["--cycles", "3", *flags.split()]
    whole = run(tmp_path / "whole", "a", *more, model=brief)
    argv = ["--model", str(brief), *TINY, "--output", str(tmp_path / "killed"), "--name", "a", *more]
    kill_after_the_first_of_three("rejection_sft", argv, tmp_path)
    killed = tmp_path / "killed" / "a"
    assert not (killed / "self_improvement_results.json").exists()
    assert run_command(Config, main, ["--resume", str(killed)], "rejection_sft") == 0
    expected, found = written(whole), written(killed)
    for name in ("progress.json", "self_improvement_results.json"):  # the same but for --output
        expected[name] = expected[name].replace(str(whole.parent).encode(), str(killed.parent).encode())
    assert expected == found
    assert ("ema.safetensors" in found) == ("ema" in flags)
    assert (b'"phase": "described"' in found["rollouts.jsonl"]) == ("alternate" in flags)
    assert (b'"phase": "redrawn"' in found["rollouts.jsonl"]) == ("redraw" in flags)
    cycles = json.loads(found["self_improvement_results.json"])["cycles"]
    assert min(cycle["before"]["accepted"] for cycle in cycles) > 0  # each was trained on


@pytest.mark.slow
def test_a_finished_run_can_be_extended(tmp_path: Path, brief: Path, copied: Path) -> None:
    folder = copied
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "rejection_sft") == 0
    straight = run(tmp_path, "b", "--cycles", "2", "--reward", "random", model=brief)
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert written(folder)["adapter"] == written(straight)["adapter"]
    extended, whole = (
        json.loads((path / "self_improvement_results.json").read_text()) for path in (folder, straight)
    )
    assert extended["eval"] == whole["eval"]
    assert extended["config"]["cycles"] == yaml.safe_load((folder / "config.yaml").read_text())["cycles"] == 2
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "1"], "rejection_sft") == 2
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["cycles"] == 2
    )  # a refused wish leaves no trace


@pytest.mark.slow
def test_a_run_from_an_adapter_scores_with_it_to_its_end_and_after_a_resume(
    tmp_path: Path, brief: Path, finished: Path
) -> None:
    """The reward `channel`: neither the base model nor the checkpoint stands for what the run began with."""
    start = finished / "checkpoints" / "cycle-0001"
    flags = ["--reward", "channel", "--adapter", str(start)]
    whole = run(tmp_path, "a", "--cycles", "2", *flags, model=brief)
    resumed = run(tmp_path, "b", "--cycles", "1", *flags, model=brief)
    assert run_command(Config, main, ["--resume", str(resumed), "--cycles", "2"], "rejection_sft") == 0
    for name in ("rollouts.jsonl", "metrics.jsonl"):
        assert written(resumed)[name] == written(whole)[name]
    policy = load_policy(str(brief), adapter=str(start))
    rows = [json.loads(line) for line in (whole / "rollouts.jsonl").read_text().splitlines()]
    row = next(row for row in reversed(rows) if row["score"])
    task = Task(row["task_id"], row["domain"], row["task"], row["tool"])
    [[score]] = Channel(policy, forward="current")([task], [[row["command"]]])
    assert row["parts"]["forward"] == pytest.approx(score.parts["forward"], rel=1e-4)


@pytest.mark.slow
def test_a_command_that_was_cut_is_not_trained_on(tmp_path: Path, brief: Path) -> None:
    flags = ["--cycles", "1", "--reward", "random", "--select", "threshold", "--threshold", "0"]
    folder = run(tmp_path, "a", *flags, model=brief)
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert {row["accepted"] for row in rows if row["truncated"]} == {False}
    assert {row["accepted"] for row in rows if not row["truncated"]} == {True}


@pytest.mark.slow
def test_training_is_the_same_when_every_reference_is_nonsense(tmp_path: Path) -> None:
    """Label-free, shown by its effect: other references change verdicts, and no byte of what is learnt."""
    honest, nonsense = tmp_path / "honest" / "shell.yaml", tmp_path / "nonsense" / "shell.yaml"
    data = {**yaml.safe_load((CONFIGS / "shell.yaml").read_text()), "verify": {"kind": "exact"}}
    for path in (honest, nonsense):
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        for intent in data["intents"]:
            intent["command"] = "nonsense " + intent["command"]
    runs = []
    for path in (honest, nonsense):
        folder = run(
            path.parent,
            "a",
            *("--cycles", "1", "--domain", str(path), "--reward", "likelihood", "--tasks", "12"),
        )
        rollouts = (folder / "rollouts.jsonl").read_text().replace(str(path), "DOMAIN")
        truth = [
            cycle["eval"]["eval/pass@1"]
            for cycle in json.loads((folder / "progress.json").read_text())["cycles"]
        ]
        runs.append((rollouts, written(folder)["adapter"], truth))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]
    assert max(runs[1][2]) == 0.0 < min(runs[0][2])


@pytest.mark.slow
def test_an_average_of_the_adapter_reads_back(tmp_path: Path, brief: Path) -> None:
    """It begins at the weights before the first update, moves by a fifth, and outlasts `--keep best`."""
    from safetensors.torch import load_file

    flags = ["--cycles", "2", "--reward", "likelihood", "--inverter", "ema", "--keep", "best"]
    folder = run(tmp_path, "a", *flags, model=brief)
    weights, average = (
        [load_file(folder / "checkpoints" / f"cycle-000{cycle}" / name) for cycle in (1, 2)]
        for name in ("adapter_model.safetensors", "ema.safetensors")
    )
    for name, tensor in weights[1].items():
        assert torch.allclose(average[1][name], 0.8 * average[0][name] + 0.2 * tensor, atol=1e-7), name
        assert "lora_B" not in name or torch.allclose(average[0][name], 0.2 * weights[0][name], atol=1e-7), (
            name
        )
    other = run(tmp_path, "b", "--cycles", "1", "--reward", "likelihood", model=brief)
    scores = [
        [json.loads(line)["score"] for line in (path / "rollouts.jsonl").read_text().splitlines()]
        for path in (folder, other)
    ]
    assert scores[0][:18] == scores[1][:18]  # before the first update they are the same
    assert scores[0][18:36] != scores[1][18:36]
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "3"], "rejection_sft") == 0


@pytest.mark.slow
def test_truth_as_the_reward_says_that_it_is_labelled(
    tmp_path: Path, brief: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "a", "--cycles", "1", "--reward", "truth", model=brief)
    printed = capsys.readouterr().out
    assert (
        "reward: truth (labelled), accepting scores from 0.5 on" in printed
        and "network, truth (labelled), threshold" in printed
    )


@pytest.mark.slow
def test_a_blend_of_rewards_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("weights: {likelihood: 1, majority: 0}\nselect: quantile\n")
    folder = run(tmp_path, "a", "--cycles", "1", "--reward", str(path), "--domain", "network")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["reward"], config["select"], config["gates"]) == (str(path), "quantile", True)
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"reward/likelihood", "reward/majority", "reward/gate/valid"} <= set(metrics)
    path.unlink()
    assert run_command(Config, main, ["--resume", str(folder)], "rejection_sft") == 2  # and not without it


@pytest.mark.slow
def test_nothing_accepted_trains_nothing_and_says_so(
    tmp_path: Path, brief: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cycles", "1", "--reward", "likelihood", "--select", "threshold", "--threshold", "1.0"]
    folder = run(tmp_path, "a", *flags, model=brief)
    assert "nothing was accepted, so nothing was trained" in capsys.readouterr().out
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["train/examples"] == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agents.policy.policy import Policy

    folder = copied
    before = (folder / "checkpoints" / "cycle-0001" / "adapter_model.safetensors").read_bytes()
    honest = Policy.token_logprobs

    def broken(self: Policy, pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        values, mask = honest(self, pairs)
        return (values * float("nan") if values.requires_grad else values), mask

    monkeypatch.setattr(Policy, "token_logprobs", broken)
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "rejection_sft") == 1
    assert "error: the loss is nan at step 1" in capsys.readouterr().err
    assert (folder / "checkpoints" / "cycle-0001" / "adapter_model.safetensors").read_bytes() == before
    monkeypatch.undo()
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "rejection_sft") == 0


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(
    tmp_path: Path, brief: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.training.run import Run

    whole = finished
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # noqa: PT012
        patch.setattr(Run, "commit", lambda *_: 1 / 0)
        run(tmp_path / "killed", "a", "--cycles", "1", "--reward", "random", model=brief)
    assert run_command(Config, main, ["--resume", str(tmp_path / "killed" / "a")], "rejection_sft") == 0
    expected, found = written(whole), written(tmp_path / "killed" / "a")
    for name in ("progress.json", "self_improvement_results.json"):
        left, right = (json.loads(files.pop(name)) for files in (expected, found))
        assert {**left["config"], "output": ""} == {**right["config"], "output": ""}
    assert expected == found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "/proc/no"], "--output: /proc/no/"),
        (["--reward", "likelyhood"], "--reward likelyhood: no such reward: did you mean likelihood?"),
        (
            ["--reward", "majority", "--candidates", "1"],
            "--candidates 1: must be 2 or more, since the reward majority compares",
        ),
        (["--reward", "no.yaml"], "--reward no.yaml: no such file"),
        (["--domain", "shel"], "--domain shel: no such domain or file: did you mean shell?"),
        (["--keep-share", "2"], "--keep-share 2.0: must be in (0, 1]"),
        (["--keep", "bets"], "--keep bets: must be one of last, best: did you mean best?"),
        (["--cycels", "2"], "unknown flag --cycels: did you mean --cycles?"),
        (["--model", "no/such/folder"], "--model no/such/folder: there is no such folder"),
        (["--task-source", "tasks.txt"], "--task-source tasks.txt: use templates, model"),
        (["--adapter", "nowhere"], "--adapter nowhere: no adapter_model.safetensors there"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in flags else ["--model", "embedded"]
    assert (
        run_command(
            Config, main, [*model, *SMALL, "--output", str(tmp_path / "runs"), *flags], "rejection_sft"
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*"))


def test_an_existing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    argv = ["--model", "embedded", *SMALL, "--output", str(tmp_path), "--name", "a"]
    assert run_command(Config, main, argv, "rejection_sft") == 2
    assert f"--resume {folder}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("error", [AttributeError("vocab_size"), KeyboardInterrupt()])
def test_a_start_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever ends the start: the same --name can be used again."""

    def fail(*_: object, **__: object) -> None:
        raise error

    def interrupted(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    flags = ["--model", "embedded", *SMALL, "--reward", "random", "--output", str(tmp_path), "--name", "a"]
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "load_policy", fail)
        config, _ = parse(Config, flags, "rejection_sft")
        with pytest.raises(type(error)):
            main(config)
        assert not (tmp_path / "a").exists()
        patch.setattr(session_module, "load_policy", interrupted)
        with pytest.raises(ZeroDivisionError):  # not the error that the folder is not empty
            main(config)


def test_only_paths_are_saved_as_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named like a keyword in the working directory must not keep a run from being resumed."""
    monkeypatch.chdir(tmp_path)
    names = ("templates", "model", "embedded", "mistral-7b", "all", "shell", "all-MiniLM-L6-v2", "mine")
    for name in names:
        (tmp_path / name).mkdir()
    for source in ("templates", "model"):
        for model in ("embedded", "mistral-7b"):
            config = TrainConfig(model=model, task_source=source)
            values = saved(config)
            assert {name: values[name] for name in ("model", "task_source", "embedder", "domain")} == {
                "model": model,
                "task_source": source,
                "embedder": "all-MiniLM-L6-v2",
                "domain": "all",
            }
    (tmp_path / "tasks.jsonl").touch()
    config = TrainConfig(
        model="mine", adapter="mine", embedder="mine", task_source="tasks.jsonl", domain="shell,x.yaml"
    )
    values = saved(config)
    assert {values[name] for name in ("model", "adapter", "embedder")} == {str(tmp_path / "mine")}
    assert values["task_source"] == str(tmp_path / "tasks.jsonl")
    assert values["domain"] == f"shell,{tmp_path / 'x.yaml'}"
    assert saved(TrainConfig(model="org/name"))["model"] == "org/name"


def test_defaults_of_the_documented_protocol() -> None:
    config, _ = parse(Config, ["--model", "some/other"], "rejection_sft")
    assert (config.cycles, config.tasks, config.candidates, config.threshold, config.temperature) == (
        10,
        50,
        3,
        0.5,
        0.7,
    )
    assert (
        config.lr,
        config.batch_size,
        config.epochs,
        config.lora_r,
        config.lora_alpha,
        config.lora_dropout,
    ) == (
        2e-4,
        4,
        1,
        16,
        32,
        0.05,
    )
    assert config.inverse_temperature == 0.3
    assert parse(Config, ["--model", "mistral-7b"], "x")[0].load_in_4bit


@pytest.mark.slow
def test_a_foreign_mistral_from_a_path(tmp_path: Path, foreign_mistral: Path) -> None:
    """Mistral-7B-Instruct's chat format and kind of tokenizer, random weights: the command, start to end."""
    folder = run(tmp_path, "a", "--cycles", "1", "--reward", "likelihood", "--gates", model=foreign_mistral)
    adapter = folder / "checkpoints" / "cycle-0001" / "adapter_model.safetensors"
    assert adapter.stat().st_size > 0
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_resumed_run_has_the_batch_sizes_that_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitting(*arguments: Any, **options: Any) -> Any:
        return load_policy(*arguments, **options, batch_size=4)

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "load_policy", fitting)
        folder = run(tmp_path, "a", "--cycles", "1", "--reward", "random")
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "rejection_sft") == 0
    state, _ = Run.open(folder)[0].restore() or ({}, None)
    assert state["cycle"] == 2
    assert state["batch_sizes"] == {"writing": 4, "scoring": 4, "training": 4}


def test_settings_that_were_edited_after_a_checkpoint_are_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "config.yaml"
    text = path.read_text()
    began = yaml.safe_load(text)["lr"]
    assert began != 0.5 and text.count("\nlr: ") == 1
    path.write_text(re.sub(r"\nlr: .*", "\nlr: 0.5", text))
    assert run_command(Config, main, ["--resume", str(copied), "--cycles", "2"], "rejection_sft") == 2
    said = capsys.readouterr().err
    assert f"{path}: lr was {began} when the run was saved, and is 0.5 now: restore the file" in said


def test_the_settings_for_a_real_model_are_settings_of_this_command() -> None:
    config, _ = parse(Config, ["--config", str(CONFIGS.parent / "real-model.yaml")], "rejection_sft")
    config.check()
    assert (config.reward, config.select, config.warmup, config.tasks) == ("channel", "best", 0.1, 480)
