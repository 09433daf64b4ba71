"""GRPO and RLOO by TRL: what is logged was trained on, nothing of TRL's leaks, runs repeat and resume."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import kill_after_the_first_of_three, stir

from agents.cli.command import run_command
from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.policy.usage import Usage
from agents.training.config import TrainingError
from envs.domain import load_domain
from envs.prompts import forward_prompt
from envs.source import Templates
from envs.types import Score, Task

trl = pytest.importorskip("trl")

from agents.training import trl_config, trl_online  # noqa: E402
from agents.training.trl_online import Online  # noqa: E402

AGENTS = ("grpo", "rloo")
ONE_FAST = ("grpo", pytest.param("rloo", marks=pytest.mark.slow))  # where both run the same code of ours
TRAINERS = {"grpo": "GRPOTrainer", "rloo": "RLOOTrainer"}
SMALL = ["--domain", "network", "--max-new-tokens", "12", "--tasks", "4", "--batch-size", "6"]
SMALL += ["--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "1"]
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "progress.json", "self_improvement_results.json")


def command(agent: str, argv: Sequence[str]) -> int:
    module = importlib.import_module(f"agents.{agent}")
    return run_command(module.Config, module.main, argv, agent)


def run(tmp: Path, agent: str, model: Path, *flags: str, name: str = "a") -> Path:
    """Runs the command in this process on a tiny model -> the run's folder."""
    argv = ["--model", str(model), "--reward", "random", *SMALL, "--output", str(tmp), "--name", name, *flags]
    assert command(agent, argv) == 0
    return tmp / name


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed: logs, results, last adapter, optimizer's moments."""
    last = max((folder / "checkpoints").iterdir())
    files = {
        name: (folder / name).read_bytes().replace(str(folder.parent).encode(), b"OUTPUT") for name in LOGS
    }
    return {
        **files,
        **{
            name: (last / name).read_bytes()
            for name in ("adapter_model.safetensors", "optimizer.safetensors")
        },
    }


def abstaining(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """A score that depends on the command and the seed; none for the first candidate of every second task."""
    return [
        [
            Score(None if row % 2 == column == 0 else random.Random(f"{seed} {command} {column}").random())
            for column, command in enumerate(commands)
        ]
        for row, commands in enumerate(commands_P_G)
    ]


class Spy:
    """What TRL computed: the rewards it was given, the batches it trained on, and the trainer itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
        self.rewards: list[torch.Tensor] = []
        self.batches: list[dict[str, torch.Tensor]] = []
        self.trainers: list[Any] = []
        trainer = getattr(trl, TRAINERS[agent])
        calculate, generate = trainer._calculate_rewards, trainer._generate_and_score_completions

        def calculated(this: Any, *args: Any) -> torch.Tensor:
            self.rewards.append(calculate(this, *args))
            return self.rewards[-1]

        def generated(this: Any, inputs: Any) -> Any:
            self.trainers.append(this)
            self.batches.append(generate(this, inputs))
            return self.batches[-1]

        monkeypatch.setattr(trainer, "_calculate_rewards", calculated)
        monkeypatch.setattr(trainer, "_generate_and_score_completions", generated)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, brief: Path) -> Callable[[str], Path]:
    """`finished(agent)`: a run of two cycles. A test that changes it takes a copy."""

    @functools.cache
    def make(agent: str) -> Path:
        return run(tmp_path_factory.mktemp(agent), agent, brief, "--cycles", "2")

    return make


@pytest.fixture
def learner(policy: Policy, tmp_path: Path) -> Callable[..., Online]:
    """`learner(agent, ...)`: TRL's trainer on a tiny policy, with 4 shell tasks x 3 candidates per cycle."""

    def make(
        agent: str, model: Policy | None = None, reward: Any = abstaining, source: Any = None, **settings: Any
    ) -> Online:
        module = importlib.import_module(f"agents.{agent}")
        settings = {
            "tasks": 4,
            "candidates": 3,
            "batch_size": 6,
            "max_new_tokens": 48,
            "lr": 1e-2,
            "output": str(tmp_path),
            **settings,
        }
        config = module.Config(**settings)
        session: Any = SimpleNamespace(
            policy=model or policy,
            source=source or Templates([load_domain("shell")]),
            reward=reward,
            run=SimpleNamespace(folder=tmp_path),
        )
        return Online(config, config.arguments(), session, restored=None)

    return make


# --- what is logged is what was trained on


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_the_logged_reward_is_the_trained_reward(
    tmp_path: Path,
    brief: Path,
    monkeypatch: pytest.MonkeyPatch,
    agent: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("agents.training.session.make_reward", lambda *_, **__: abstaining)
    spy = Spy(monkeypatch, agent)
    folder = run(tmp_path, agent, brief, "--cycles", "2", "--beta", "0")
    rows, metrics = lines(folder, "rollouts.jsonl"), lines(folder, "metrics.jsonl")
    assert len(spy.rewards) == 2 and len(rows) == 2 * 12 and [row["step"] for row in metrics] == [0, 12, 24]
    for cycle in (1, 2):
        logged = [row for row in rows if row["cycle"] == cycle]
        trained, batch = spy.rewards[cycle - 1][:, 0], spy.batches[cycle - 1]
        scores = torch.tensor([float("nan") if row["score"] is None else row["score"] for row in logged])
        assert torch.isnan(scores).sum() == 2
        assert torch.equal(trained.nan_to_num(-1), scores.nan_to_num(-1))
        assert metrics[cycle]["reward/mean"] == pytest.approx(float(trained.nanmean()), rel=1e-6)
        assert metrics[cycle]["reward/abstained"] == pytest.approx(2 / 12)
        groups = scores.view(4, 3)
        if agent == "grpo":
            deviation = torch.stack([group[~group.isnan()].std() for group in groups])[:, None]
            wanted = (groups - groups.nanmean(1, keepdim=True)) / (deviation + 1e-4)
        else:
            wanted = groups - (groups.nansum(1, keepdim=True) - groups) / (
                (~groups.isnan()).sum(1, keepdim=True) - 1
            )
        assert torch.allclose(batch["advantages"].view(4, 3), wanted.nan_to_num(0.0), atol=1e-5)
        for row, ids, mask in zip(logged, batch["completion_ids"], batch["completion_mask"], strict=True):
            trained_ids = ids[mask.bool()].tolist()
            assert trained_ids[: len(row["token_ids"])] == ([] if row["truncated"] else row["token_ids"])
            assert len(trained_ids) <= len(row["token_ids"]) + 1  # the token that ended it
        assert {row["truncated"] for row in rows} == {
            True,
            False,
        }  # and one that was cut has no token in the loss
    printed = capsys.readouterr()
    assert "grad_norm" not in printed.out and "train_runtime" not in printed.out
    assert printed.err == ""
    ours = (
        "model:",
        "reward:",
        "LoRA",
        "labels used:",
        "consumed:",
        "start",
        "cycle",
        "network, ",
        "24 candidates",
        "held-out",
        "curves:",
        str(folder),
        *"┏┃┡│└",
    )
    assert all(line.startswith(ours) or "not executed" in line for line in printed.out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_metrics_have_our_names_and_the_adapter_changes_every_cycle(
    finished: Callable[[str], Path], agent: str
) -> None:
    folder = finished(agent)
    wanted = {
        "loss",
        "grad_norm",
        "kl",
        "entropy",
        "clip_fraction",
        "reward_std",
        "frac_reward_zero_std",
        "steps",
    }
    for row in lines(folder, "metrics.jsonl")[1:]:
        assert {name for name in row if name.startswith("train/")} == {f"train/{name}" for name in wanted}
        assert row["train/steps"] == 2 and row["train/grad_norm"] > 0 and row["train/entropy"] > 0
    timings = lines(folder, "timings.jsonl")[-1]
    assert all(timings[f"time/{name}"] > 0 for name in ("generate", "reward", "train"))
    adapters = {
        (folder / "checkpoints" / f"cycle-000{cycle}" / "adapter_model.safetensors").read_bytes()
        for cycle in (1, 2)
    }
    assert len(adapters) == 2
    known = {*LOGS, "config.yaml", "environment.json", "timings.jsonl", "selection.json"}
    known |= {"tensorboard", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == known


@pytest.mark.parametrize("agent", ONE_FAST)
def test_a_rollout_holds_the_probabilities_of_what_was_written(learner: Any, agent: str) -> None:
    learning = learner(agent)
    policy = learning.session.policy
    before, policy.usage = policy.snapshot(), Usage()
    batch, _ = learning.train_on_tasks(1)
    policy.restore(before)
    written = [len(rollout.completion.token_ids) for rollout in batch.rollouts]
    assert (policy.usage.answers, policy.usage.tokens_written) == (12, sum(written))
    prompts = policy.prompt_ids([forward_prompt(group[0].task) for group in batch.groups])
    for prompt, group in zip(prompts, batch.groups, strict=True):
        for rollout in group:
            [expected] = policy.logprobs_of_ids([(prompt, rollout.completion.token_ids)])
            assert np.allclose(rollout.completion.logprobs, expected, atol=1e-4)
            assert (
                rollout.completion.text
                == policy.completion(list(rollout.completion.token_ids), expected).text
            )


# --- TRL writes as the policy does


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_trl_writes_as_the_policy_does(agent: str, tmp_path: Path, learner: Any) -> None:
    """At a temperature near 0 both write the likeliest tokens."""
    settings = {
        "tasks": 6,
        "candidates": 2,
        "batch_size": 12,
        "max_new_tokens": 48,
        "temperature": 0.001,
        "beta": 0.0,
    }
    batch, _ = learner(agent, load_policy("embedded"), by_row, **settings).train_on_tasks(1)
    prompts = [forward_prompt(group[0].task) for group in batch.groups]
    expected = load_policy("embedded").generate(prompts, temperature=0.0, max_new_tokens=48)
    assert [group[0].completion.text for group in batch.groups] == [row[0].text for row in expected]
    assert [group[0].completion.token_ids for group in batch.groups] == [row[0].token_ids for row in expected]
    assert not any(rollout.completion.truncated for rollout in batch.rollouts)


def by_row(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """Scores by position alone."""
    return [[Score(float(column)) for column in range(len(row))] for row in commands_P_G]


@pytest.mark.parametrize("agent", ONE_FAST)
def test_a_line_feed_ends_a_completion(
    agent: str, learner: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line feed of its own, one within a token, the end of sequence, and none: what is read and trained."""
    spy = Spy(monkeypatch, agent)
    learning = learner(agent, tasks=2, candidates=2, batch_size=4, max_new_tokens=6, reward=by_row)
    policy = learning.session.policy
    [ls, feed, inner] = policy.completion_ids(["ls", "\n", 'ls"\n'])
    eos = policy.tokenizer.eos_token_id
    texts = [[*ls, *feed, *ls], [*inner, *ls], [*ls, eos, *ls], ls * 6]
    with monkeypatch.context() as patch:
        patch.setattr(policy, "logprobs_of_ids", lambda pairs: [[0.0] * len(ids) for _, ids in pairs])
        script(policy, texts)
        batch, _ = learning.train_on_tasks(1)
    completions = [rollout.completion for rollout in batch.rollouts]
    assert [completion.text for completion in completions] == [
        "ls",
        'ls"',
        "ls",
        policy.tokenizer.decode((ls * 6)[:6]),
    ]
    assert [completion.truncated for completion in completions] == [False, False, False, True]
    batch_ids, masks = (spy.batches[0][f"completion_{name}"] for name in ("ids", "mask"))
    trained = [ids[mask.bool()].tolist() for ids, mask in zip(batch_ids, masks, strict=True)]
    assert trained == [[*ls, *feed], inner, [*ls, eos], []]


# --- the reference is the base


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_the_reference_is_the_base_whatever_the_run_starts_from(
    tmp_path: Path, brief: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    spy = Spy(monkeypatch, agent)
    policy = load_policy(str(brief))
    stir(policy)
    policy.restore(
        {name: tensor * 0.3 for name, tensor in policy.snapshot().items()}
    )  # far from the base, and it still ends its lines
    policy.save(tmp_path / "stirred")
    flags = ["--adapter", str(tmp_path / "stirred"), "--temperature", "1", "--beta", "0.3"]
    folder = run(tmp_path, agent, brief, "--cycles", "2", *flags)
    assert list(spy.trainers[0].model.peft_config) == ["default"]
    base = load_policy(str(brief))  # an adapter that adds nothing
    for cycle, batch in enumerate(spy.batches, 1):
        assert batch["completion_mask"].sum() > 0
        kl = []
        for row, ids in enumerate(batch["completion_ids"]):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
            completion = ids[batch["completion_mask"][row].bool()].tolist()
            [expected] = base.logprobs_of_ids([(prompt, completion)])
            if agent == "grpo":
                assert np.allclose(batch["ref_per_token_logps"][row][: len(completion)], expected, atol=1e-4)
            else:
                kl.append(float(batch["old_logps"][row]) - sum(expected))
        if agent == "rloo":
            rewards = (spy.rewards[cycle - 1][:, 0] - 0.3 * torch.tensor(kl)).view(4, 3)
            others = (~rewards.isnan()).sum(1, keepdim=True) - 1
            wanted = rewards - (rewards.nansum(1, keepdim=True) - rewards) / others
            assert torch.allclose(batch["advantages"].view(4, 3), wanted.nan_to_num(0.0), atol=1e-3)
    assert lines(folder, "metrics.jsonl")[1]["train/kl"] > 0.1  # far from the base from the first step on


# --- nothing leaks


def look(policy: Policy) -> list[Any]:
    """What generation and evaluation give."""
    prompts = [
        "Write one network command, nothing else.\nTask: scan port 443 on web1.test with nmap",
        "list files",
    ]
    state = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    return [
        policy.generate(prompts, 3, temperature=0.7, max_new_tokens=16, seed=1),
        policy.generate(prompts, temperature=0.0, max_new_tokens=16),
        policy.logprobs(prompts, ["ls -l", "date"]),
        policy.entropies(prompts, ["ls -l", "date"]),
        policy.entropy_and_kl([(prompt, (5, 6)) for prompt in policy.prompt_ids(prompts)]),
        (policy.tokenizer.pad_token, policy.tokenizer.padding_side, policy.pad, policy.prompt_ids(prompts)),
        (
            policy.model.config.pad_token_id,
            policy.model.config.eos_token_id,
            policy.model.generation_config.to_dict(),
        ),
        (list(policy.model.peft_config), policy.model.active_adapters),
        (len(policy.trainable()), {str(parameter.dtype) for parameter in policy.trainable()}),
        any(module.training for module in policy.model.modules()),
        (policy.adapter_hash(), state),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pocket", "plain", "foreign_mistral"])
@pytest.mark.parametrize("agent", AGENTS)
def test_nothing_of_trl_leaks(agent: str, kind: str, request: pytest.FixtureRequest, learner: Any) -> None:
    policy = load_policy(str(request.getfixturevalue(kind)))
    stir(policy)
    before, weights = look(policy), policy.snapshot()
    learning = learner(agent, policy)
    assert look(policy) == before
    for cycle in (1, 2):
        learning.train_on_tasks(cycle)
        assert policy.adapter_hash() != before[-1][0]
        policy.restore(weights)
        assert look(policy) == before
    learner("rloo" if agent == "grpo" else "grpo", policy)  # a second trainer on the same model
    assert look(policy) == before


def test_an_adapter_that_trl_would_make_coarse_keeps_its_precision(learner: Any, policy: Policy) -> None:
    before = policy.adapter_hash()
    base = policy.model.get_base_model()
    base.is_loaded_in_4bit = True
    try:
        learner("grpo")
        assert policy.adapter_hash() == before and {parameter.dtype for parameter in policy.trainable()} == {
            torch.float32
        }
    finally:
        del base.is_loaded_in_4bit


@pytest.mark.slow
def test_trainers_are_chained_on_one_adapter(tmp_path: Path, brief: Path) -> None:
    flags: list[str] = []
    adapters = set()
    for agent in ("rejection_sft", "dpo", "grpo", "ppo", "rloo"):
        folder = run(tmp_path, agent, brief, "--cycles", "1", *flags, name=agent)
        adapter = folder / "checkpoints" / "cycle-0001"
        adapters.add((adapter / "adapter_model.safetensors").read_bytes())
        flags = ["--adapter", str(adapter)]
    assert len(adapters) == 5


# --- the same bytes


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_same_seed_same_bytes_and_other_seed_others(
    tmp_path: Path, brief: Path, finished: Callable[[str], Path], agent: str
) -> None:
    first, second = written(finished(agent)), written(run(tmp_path / "y", agent, brief, "--cycles", "2"))
    assert first == second
    other = written(run(tmp_path / "z", agent, brief, "--cycles", "2", "--seed", "1"))
    assert other["rollouts.jsonl"] != first["rollouts.jsonl"]
    assert other["adapter_model.safetensors"] != first["adapter_model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, brief: Path, agent: str) -> None:
    flags = [
        "--cycles",
        "3",
        "--reward",
        "channel",
        "--no-gates",
        "--inverter",
        "ema",
        "--lora-dropout",
        "0.1",
        "--epochs",
        "2",
    ]
    whole = run(tmp_path / "whole", agent, brief, *flags)
    argv = ["--model", str(brief), *SMALL, "--output", str(tmp_path / "killed"), "--name", "a", *flags]
    kill_after_the_first_of_three(agent, argv, tmp_path)
    killed = tmp_path / "killed" / "a"
    assert not (killed / "self_improvement_results.json").exists()
    assert command(agent, ["--resume", str(killed)]) == 0
    assert written(whole) == written(killed)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_a_cycle_is_generated_once_and_stepped_through_as_asked(
    agent: str, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch, agent)
    learning = learner(agent, epochs=3, micro_batch=2)
    seen = []
    for cycle in (1, 2, 3):
        batch, trained = learning.train_on_tasks(cycle)
        seen.append([rollout.task.id for rollout in batch.rollouts])
        assert len(spy.batches) == cycle  # once in each cycle, at its beginning
        assert trained["train/steps"] == 6  # 3 epochs of 12 candidates in steps of 6
        assert learning.trainer._step == 18
    assert len({tuple(ids) for ids in seen}) == 3 and all(len(set(ids)) == 4 for ids in seen)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_less_at_a_time_is_the_same_step(agent: str, learner: Any, pocket: Path) -> None:
    """Gradients of parts of a step add up to those of the whole."""
    policy = load_policy(str(pocket), lora=Lora(dropout=0.0))
    stir(policy)
    before = policy.snapshot()
    gradients: list[list[torch.Tensor]] = []

    def note(*_: Any) -> None:
        gradients.append(
            [parameter.grad.clone() for parameter in policy.trainable() if parameter.grad is not None]
        )

    for micro_batch in (None, 3, 1):
        policy.restore(before)
        learning = learner(agent, policy, micro_batch=micro_batch, batch_size=12)
        learning.optimizer.register_step_pre_hook(note)
        learning.train_on_tasks(1)
    assert len(gradients) == 3
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for other in gradients[1:]:
        assert all(
            torch.allclose(a, b, atol=1e-4 * largest) for a, b in zip(gradients[0], other, strict=True)
        )


# --- learning


def few_options(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """1 for a command without a dash, else 0."""
    return [[Score(float("-" not in command)) for command in commands] for commands in commands_P_G]


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_a_trivial_reward_rises(agent: str, learner: Any) -> None:
    learning = learner(
        agent,
        load_policy("embedded"),
        few_options,
        tasks=24,
        candidates=3,
        batch_size=12,
        lr=5e-3,
        max_new_tokens=32,
        beta=0.01,
    )
    means = []
    for cycle in range(1, 7):
        batch, _ = learning.train_on_tasks(cycle)
        means.append(sum(rollout.score.value or 0.0 for rollout in batch.rollouts) / 72)
    assert means[0] < 0.4
    assert means[-1] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_equal_scores_teach_nothing_and_it_says_so(
    tmp_path: Path, brief: Path, agent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, agent, brief, "--cycles", "2", "--reward", "constant", "--beta", "0")
    assert capsys.readouterr().out.count(trl_online.NOTHING) == 2
    assert [row["train/frac_reward_zero_std"] for row in lines(folder, "metrics.jsonl")[1:]] == [1.0, 1.0]


@pytest.mark.slow
def test_scores_that_differ_must_change_the_adapter(learner: Any) -> None:
    learning = learner("grpo", beta=0.0)
    for group in learning.trainer.optimizer.param_groups:
        group["lr"] = 0.0
    learning.trainer.lr_scheduler.base_lrs = [0.0]
    with pytest.raises(TrainingError, match="the adapter did not change in this update"):
        learning.train_on_tasks(1)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path,
    finished: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    agent: str,
) -> None:
    folder = Path(shutil.copytree(finished(agent), tmp_path / "a"))
    before = (folder / "checkpoints" / "cycle-0002" / "adapter_model.safetensors").read_bytes()
    trainer = getattr(trl, TRAINERS[agent])
    honest = trainer._compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_compute_loss", lambda self, *args: honest(self, *args) * float("nan"))
        assert command(agent, ["--resume", str(folder), "--cycles", "3"]) == 1
    assert "error: the loss is nan at step 1: lower --lr" in capsys.readouterr().err
    assert (folder / "checkpoints" / "cycle-0002" / "adapter_model.safetensors").read_bytes() == before
    assert command(agent, ["--resume", str(folder), "--cycles", "3"]) == 0


@pytest.mark.slow
def test_a_source_that_gives_fewer_tasks_fills_the_batch(learner: Any) -> None:
    class Few:
        def tasks(self, count: int, *stream_parts: object) -> list[Task]:
            return Templates([load_domain("shell")]).tasks(count - 1, *stream_parts)

        def dropped(self) -> dict[str, int]:
            return {"missing": 1}

    batch, _ = learner("grpo", source=Few()).train_on_tasks(1)
    ids = [group[0].task.id for group in batch.groups]
    assert len(batch.rollouts) == 12 and len(set(ids)) == 3 and ids[3] == ids[0]
    assert batch.dropped == {"missing": 1}


# --- settings


@pytest.mark.parametrize(
    ("tasks", "batch", "size"),
    [(50, 30, 30), (50, 32, 30), (50, 4, 5), (6, 30, 18), (1, 1, 1), (7, 5, 7), (50, 1000, 150)],
)
def test_a_step_is_the_nearest_size_that_divides_the_batch(tasks: int, batch: int, size: int) -> None:
    from agents.grpo import Config

    config = Config(tasks=tasks, batch_size=batch)
    assert config.step_size == size
    nearest = f"nearest to --batch-size {batch} among the divisors of {3 * tasks}"
    assert (nearest in config.steps_in_words) == (size != batch)
    steps = f"{2 * 3 * tasks // size} steps per cycle, {size} candidates in each"
    assert dataclasses.replace(config, epochs=2).steps_in_words.startswith(steps)


def test_options_are_read_as_yaml() -> None:
    options = ["a=true", "b=0.5", "c=1e-3", "d=colocate", "e={x: [1, 2]}", "f="]
    expected = {"a": True, "b": 0.5, "c": 0.001, "d": "colocate", "e": {"x": [1, 2]}, "f": None}
    assert trl_config.read_options(options, list("abcdef"), {}) == expected


def test_a_quoted_number_stays_text() -> None:
    options = ["a='1e3'", 'b="7"', "c=nan", "d=1E3", "e=infinity"]
    expected = {"a": "1e3", "b": "7", "c": "nan", "d": 1000.0, "e": "infinity"}
    assert trl_config.read_options(options, list("abcde"), {}) == expected


@pytest.mark.parametrize("agent", AGENTS)
def test_options_of_trl_pass_through_untouched(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_vllm(monkeypatch)
    options = (
        "use_vllm=true",
        "vllm_mode=server",
        "vllm_server_port=8123",
        "vllm_gpu_memory_utilization=0.4",
        "top_k=7",
    )
    config = importlib.import_module(f"agents.{agent}").Config(output="x", trl=options, beta=0.1)
    arguments = config.arguments()
    assert (arguments.use_vllm, arguments.vllm_mode, arguments.vllm_server_port) == (True, "server", 8123)
    assert (arguments.vllm_gpu_memory_utilization, arguments.top_k, arguments.beta) == (0.4, 7, 0.1)
    assert (arguments.num_generations, arguments.generation_batch_size, arguments.temperature) == (
        3,
        150,
        0.7,
    )


def pretend_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were installed."""
    real = trl_config.find_spec
    monkeypatch.setattr(trl_config, "find_spec", lambda name: name if name == "vllm" else real(name))


class Engine:
    """In vLLM's place: notes which weights it was given, and writes `ls` and a number, properly ended."""

    def __init__(self, policy: Policy, **settings: Any) -> None:
        self.policy, self.settings = policy, settings
        self.weights: list[str] = []

    def sync_weights(self) -> None:
        self.weights.append(self.policy.adapter_hash())

    def generate(
        self, prompts: list[list[int]], **_: Any
    ) -> tuple[Any, list[list[int]], list[list[list[float]]], None]:
        texts, eos = [f"ls {row}" for row in range(len(prompts))], self.policy.tokenizer.eos_token_id
        completions = [[*ids, eos] for ids in self.policy.completion_ids(texts)]
        return prompts, completions, [[[-1.0]] * len(ids) for ids in completions], None


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_an_engine_such_as_vllm_gets_the_weights_of_every_cycle(
    agent: str, learner: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_vllm(monkeypatch)
    monkeypatch.setattr(
        f"trl.trainer.{agent}_trainer.VLLMGeneration", lambda **settings: Engine(policy, **settings)
    )
    learning = learner(
        agent, trl=("use_vllm=true", "vllm_gpu_memory_utilization=0.4", "generation_kwargs={seed: 3}")
    )
    engine, weights = learning.trainer.vllm_generation, []
    assert engine.settings["gpu_memory_utilization"] == 0.4
    assert engine.settings["generation_kwargs"] == {"seed": 3, "stop_token_ids": sorted(policy.ends)}
    for cycle in (1, 2, 3):
        weights.append(policy.adapter_hash())
        batch, trained = learning.train_on_tasks(cycle)
        assert [rollout.completion.text for rollout in batch.rollouts] == [f"ls {row}" for row in range(12)]
        assert ("train/importance_sampling_ratio" in trained) == (agent == "grpo")
    assert engine.weights == weights and len(set(weights)) == 3


def test_an_option_reaches_the_trainer(learner: Any) -> None:
    learning = learner("grpo", trl=("scale_rewards=none", "loss_type=dr_grpo"))
    assert (learning.trainer.scale_rewards, learning.trainer.loss_type) == ("none", "dr_grpo")


def test_every_option_that_is_ours_is_known_to_trl() -> None:
    ours = {*trl_config.FLAGS, *trl_config.FIXED, *trl_config.DEFAULTS}
    for name in ("GRPOConfig", "RLOOConfig"):
        assert ours <= {field.name for field in dataclasses.fields(getattr(trl, name))}


# --- private names of TRL, which another version may change


@pytest.mark.parametrize("agent", AGENTS)
def test_trl_still_tells_the_hub_by_a_method_of_that_name(
    agent: str, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours, which sends nothing, takes its place."""
    calls: list[Any] = []
    [owner] = [each for each in getattr(trl, TRAINERS[agent]).__mro__ if "_send_telemetry" in vars(each)][:1]
    monkeypatch.setattr(owner, "_send_telemetry", calls.append)
    trained = learner(agent).trainer
    assert calls == [] and "_send_telemetry" in vars(type(trained))
    type(trained).__mro__[1]._send_telemetry(trained)
    assert calls == [trained]


@pytest.mark.parametrize("agent", ONE_FAST)
def test_the_step_of_the_newest_vllm_weights_is_still_kept_under_that_name(
    agent: str, learner: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_vllm(monkeypatch)
    engine = functools.partial(Engine, policy)
    monkeypatch.setattr(f"trl.trainer.{agent}_trainer.VLLMGeneration", lambda **settings: engine(**settings))
    learning = learner(agent, trl=("use_vllm=true",))
    assert learning.trainer._last_loaded_step == -1
    learning.train_on_tasks(1)
    assert learning.trainer._last_loaded_step == 0  # set by TRL when it gave the engine the weights of step 0


@pytest.mark.parametrize(
    ("agent", "flags", "message"),
    [
        (
            "grpo",
            ["--trl", "use_vlm=true"],
            "--trl use_vlm=true: TRL has no option use_vlm: did you mean use_vllm?",
        ),
        (
            "rloo",
            ["--trl", "scale_rewards=none"],
            "--trl scale_rewards=none: TRL has no option scale_rewards",
        ),
        ("grpo", ["--trl", "top_k"], "--trl top_k: write key=value"),
        ("grpo", ["--trl", "learning_rate=1e-6"], "--trl learning_rate=1e-6: use --lr"),
        ("rloo", ["--trl", "num_generations=4"], "--trl num_generations=4: use --candidates"),
        (
            "grpo",
            ["--trl", "save_strategy=steps"],
            "--trl save_strategy=steps: is set by this command: leave it out",
        ),
        ("grpo", ["--trl", "top_k=1", "top_k=2"], "--trl top_k=2: top_k is given twice"),
        ("grpo", ["--trl", "top_k=[1"], "--trl top_k=[1: [1 is not YAML"),
        ("grpo", ["--trl", "adam_beta1=0.5"], "--trl adam_beta1=0.5: is set by this command: leave it out"),
        (
            "rloo",
            ["--trl", "log_completions=true"],
            "--trl log_completions=true: is set by this command: leave it out",
        ),
        (
            "grpo",
            ["--trl", "use_vllm=true"],
            "--trl use_vllm: vLLM is not installed: pip install 'trl[vllm]'",
        ),
        (
            "rloo",
            ["--trl", "auto_find_batch_size=true"],
            "--trl: TRL says: auto_find_batch_size is not supported by RLOO",
        ),
        (
            "grpo",
            ["--candidates", "1"],
            "--candidates 1: must be 2 or more: candidates of a task are compared",
        ),
        ("rloo", ["--beta", "-1"], "--beta -1.0: must be 0 or more"),
        ("grpo", ["--clip", "0"], "--clip 0.0: must be above 0"),
        ("rloo", ["--micro-batch", "4"], "--micro-batch 4: must divide the 6 candidates of a training step"),
        ("grpo", ["--micro-batch", "0"], "--micro-batch 0: must be 1 or more"),
        ("grpo", ["--bata", "1"], "unknown flag --bata: did you mean --beta?"),
    ],
)
def test_bad_input_is_one_line_and_loads_no_model(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    agent: str,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(
        "agents.training.session.load_policy", lambda *_, **__: pytest.fail("a model was loaded")
    )
    assert command(agent, ["--model", "embedded", *SMALL, "--output", str(tmp_path / "runs"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("agent", AGENTS)
def test_without_trl_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert command(agent, ["--model", "embedded", *SMALL, "--output", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {agent.upper()} needs TRL, which cannot be imported") and error.endswith(
        "pip install '.[trl]'\n"
    )
    assert error.count("\n") == 1 and not (tmp_path / "runs").exists()
