"""Online DPO: its pairs; TRL trains on just these tokens against this reference and leaves nothing behind."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import kill_after_the_first_of_three, stir

from agents import rejection_sft
from agents.cli.command import parse, run_command
from agents.dpo import Config, main
from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.training.config import TrainingError
from agents.training.contrast import pairs_of, pairs_of_batch, score_margin
from agents.training.rollouts import Batch, Rollout, roll_out
from envs.domain import load_domain
from envs.prompts import forward_prompt
from envs.source import Templates
from envs.types import Completion, Score, Task

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer

from agents.training.trl_dpo import PairTrainer, preferences_of, train_on_pairs
from agents.training.trl_policy import contained, on_one_device

ROOT = Path(__file__).resolve().parent.parent
# For a model with random weights, which writes no command: nothing is executed, and no gate closes.
SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12"]
SMALL += ["--tasks", "8", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "1"]
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "progress.json", "self_improvement_results.json")
STREAM = (0, 1, "train")


def run(model: Path, tmp: Path, name: str, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    argv = ["--model", str(model), *SMALL, "--output", str(tmp), "--name", name, *flags]
    assert run_command(Config, main, argv, "dpo") == 0
    return tmp / name


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed: logs, results and the last adapter."""
    last = max((folder / "checkpoints").iterdir())
    return {name: (folder / name).read_bytes() for name in LOGS} | {
        "adapter": (last / "adapter_model.safetensors").read_bytes()
    }


def prefer(
    policy: Policy, batch: Batch, pairs: Sequence[tuple[int, int]], config: Config, stream: Any, folder: Path
) -> dict[str, float | None]:
    """The update of a cycle with a command's settings."""
    names = ("lr", "beta", "sft", "reference", "batch_size", "epochs")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    preferences = preferences_of(policy, batch, pairs)
    return train_on_pairs(policy, preferences, **settings, stream_parts=stream, folder=folder)


@pytest.fixture(scope="module")
def finished(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle. A test that changes it takes a copy."""
    return run(brief, tmp_path_factory.mktemp("finished"), "a", "--cycles", "1", "--reward", "random")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def _steady(pocket: Path) -> Policy:
    return load_policy(str(pocket), lora=Lora(dropout=0.0))


@pytest.fixture
def policy(_steady: Policy) -> Policy:
    """A tiny policy whose adapter differs from its base, without dropout, as this trainer has it."""
    stir(_steady)
    return _steady


# ---- pairs ----


def test_pairs_by_hand() -> None:
    values = [
        [0.9, 0.2, 0.5],
        [0.4, None, 0.5],
        [None, None, None],
        [0.7, 0.7, 0.7],
        [None, 0.3, None],
        [0.1, 0.8, 0.8],
    ]
    texts = [["a", "b", "c"]] * 6
    assert pairs_of(values, texts, 0.0) == [(0, 1), (5, 3), (16, 15)]  # ties make none; of equals the first
    assert pairs_of(values, texts, 0.2) == [(0, 1), (16, 15)]
    assert pairs_of(values, texts, 0.8) == []
    assert pairs_of([[0.75, 0.25]], [["a", "b"]], 0.5) == [(0, 1)]  # the margin itself is enough
    assert (
        pairs_of(values, [["a", "a", "c"]] * 6, 0.2) == []
    )  # one command twice is no pair, however it scored
    assert pairs_of([], [], 0.0) == []


TASKS = [
    Task(f"train/x/{row}", "shell", f"count the lines of {name}", "wc")
    for row, name in enumerate(("a.txt", "b.txt", "notes"))
]
COMMANDS = [
    ("wc -l a.txt", "ls a.txt", "wc a.txt"),
    ("wc -l b.txt", "cat b.txt", "ls"),
    ("wc -l notes", "date", "wc -l notes -x"),
]
SCORES = [(1.0, 0.0, 0.5), (0.5, 0.25, 0.0), (0.0, 1.0, None)]


def batch_of(policy: Policy) -> Batch:
    """Three tasks with three commands each, in tokens of single characters: no tokenizer gives these."""
    groups = []
    for task, commands, scores in zip(TASKS, COMMANDS, SCORES, strict=True):
        ids = [
            tuple(token for letter in text for token in policy.completion_ids([letter])[0])
            for text in commands
        ]
        groups.append(
            [
                Rollout(task, Completion(text, row), Score(score))
                for text, row, score in zip(commands, ids, scores, strict=True)
            ]
        )
    return Batch(groups)


PAIRS = [(0, 1), (3, 5), (7, 6)]


def test_a_command_that_was_cut_is_in_no_pair(policy: Policy) -> None:
    batch = batch_of(policy)
    assert pairs_of_batch(batch, 0.1) == PAIRS
    group = batch.groups[0]
    cut = replace(group[0], completion=replace(group[0].completion, truncated=True))
    assert pairs_of_batch(Batch([[cut, *group[1:]], *batch.groups[1:]]), 0.1) == [(2, 1), *PAIRS[1:]]


def test_a_command_with_a_closed_gate_may_only_be_rejected() -> None:
    """Whatever the others score: 0.0 is more than a score below 0."""

    def group(*scores: tuple[float | None, bool]) -> list[Rollout]:
        return [
            Rollout(TASKS[0], Completion(f"ls {place}"), Score(value, {"gate/valid": float(opened)}))
            for place, (value, opened) in enumerate(scores)
        ]

    assert pairs_of_batch(Batch([group((0.0, False), (-0.5, True), (-0.9, True))]), 0.1) == [(1, 2)]
    assert pairs_of_batch(Batch([group((0.0, False), (0.4, True), (0.2, True))]), 0.1) == [(1, 0)]
    assert pairs_of_batch(
        Batch([group((0.9, False), (0.0, False)), group((0.5, True), (0.1, True))]), 0.1
    ) == [(2, 3)]


# ---- what TRL makes of them ----


def sequences(policy: Policy, batch: Batch, side: int) -> list[tuple[list[int], list[int]]]:
    """The chosen or the rejected ones: prompt in the template, generated tokens, end of sequence."""
    rollouts = [batch.rollouts[pair[side]] for pair in PAIRS]
    prompts = policy.prompt_ids([forward_prompt(rollout.task) for rollout in rollouts])
    return [
        (p, [*r.completion.token_ids, policy.tokenizer.eos_token_id])
        for p, r in zip(prompts, rollouts, strict=True)
    ]


def sums(policy: Policy, batch: Batch, side: int) -> list[float]:
    return [math.fsum(values) for values in policy.logprobs_of_ids(sequences(policy, batch, side))]


def deltas(policy: Policy, batch: Batch) -> list[float]:
    return [
        chosen - rejected
        for chosen, rejected in zip(sums(policy, batch, 0), sums(policy, batch, 1), strict=True)
    ]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def whole(**settings: Any) -> Config:
    """All pairs in one step."""
    return Config(**{"batch_size": 3, "epochs": 1, "beta": 0.3, "sft": 0.5, "lr": 1e-3, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["cycle", "base"])
def test_the_reference_is_the_start_of_the_cycle_or_the_base(
    policy: Policy, tmp_path: Path, reference: Any
) -> None:
    batch = batch_of(policy)
    with policy.adapter("on" if reference == "cycle" else "off"):
        held = [sums(policy, batch, side) for side in (0, 1)]
    start, own = policy.snapshot(), [sums(policy, batch, side) for side in (0, 1)]
    config = whole(reference=reference)
    first = prefer(policy, batch, PAIRS, config, STREAM, tmp_path)
    assert first["train/chosen_logprob"] == pytest.approx(mean(own[0]), rel=1e-4)
    assert first["train/rejected_logprob"] == pytest.approx(mean(own[1]), rel=1e-4)
    rewards = [
        [0.3 * (mine - base) for mine, base in zip(*side, strict=True)]
        for side in zip(own, held, strict=True)
    ]
    margins = [chosen - rejected for chosen, rejected in zip(*rewards, strict=True)]
    assert first["train/chosen_reward"] == pytest.approx(mean(rewards[0]), abs=1e-4)
    assert first["train/rejected_reward"] == pytest.approx(mean(rewards[1]), abs=1e-4)
    assert first["train/margin"] == pytest.approx(mean(margins), abs=1e-4)
    tokens = sum(len(completion) for _, completion in sequences(policy, batch, 0))
    loss = mean([math.log1p(math.exp(-margin)) for margin in margins]) - 0.5 * math.fsum(own[0]) / tokens
    assert first["train/loss"] == pytest.approx(loss, abs=1e-4)
    assert score_margin(batch, PAIRS) == pytest.approx((1.0 + 0.5 + 1.0) / 3)
    assert (first["train/steps"], reference == "cycle") == (1.0, all(margin == 0 for margin in margins))

    # The second pass sees the policy that the first one left, and the reference of before.
    moved = 0.3 * (mean(deltas(policy, batch)) - mean(held[0]) + mean(held[1]))
    policy.restore(start)
    both = prefer(policy, batch, PAIRS, replace(config, epochs=2), STREAM, tmp_path)
    assert both["train/steps"] == 2.0 and both["train/margin"] is not None
    assert 2 * both["train/margin"] - mean(margins) == pytest.approx(moved, abs=1e-4)
    assert moved > mean(margins) + 0.01  # it learns


@pytest.mark.parametrize("sft", [0.0, 2.0])
def test_the_step_is_that_of_the_formula_on_the_tokens_that_were_generated(
    policy: Policy, tmp_path: Path, sft: float
) -> None:
    """The adapter after a step, by hand: our log-probabilities, AdamW, gradients clipped at 1."""
    batch, config = batch_of(policy), whole(reference="base", sft=sft)
    start = policy.snapshot()
    metrics = prefer(policy, batch, PAIRS, config, STREAM, tmp_path)
    found = policy.snapshot()
    policy.restore(start)
    with policy.adapter("off"):
        held = torch.tensor(deltas(policy, batch))
    logprobs = [policy.token_logprobs(sequences(policy, batch, side)) for side in (0, 1)]
    chosen, rejected = ((values * mask).sum(1) for values, mask in logprobs)
    loss = (
        -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected - held)).mean()
        - sft * chosen.sum() / logprobs[0][1].sum()
    )
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3, weight_decay=0.0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
    optimizer.step()
    policy.model.zero_grad(set_to_none=True)
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    wanted = policy.snapshot()
    # AdamW's first step has the sign of the gradient and the size of lr: near 0 rounding decides.
    moved = torch.cat([(wanted[name] - start[name]).flatten() for name in start])
    close = torch.cat([(wanted[name] - found[name]).abs().flatten() < 1e-4 for name in start])
    assert moved.abs().max() > 9e-4 and close.float().mean() > 0.999


def test_pairs_that_do_not_fit_into_memory_weigh_as_much_in_the_last_step(
    policy: Policy, tmp_path: Path
) -> None:
    """Three pairs in a step of four, whole and two at a time: the third may not weigh as much as two."""
    start, found = policy.snapshot(), []
    for sequences_at_once in (128, 4):
        policy.training.size = sequences_at_once
        config = whole(batch_size=4, sft=0.0)
        metrics = prefer(policy, batch_of(policy), PAIRS, config, STREAM, tmp_path)
        found.append((metrics["train/loss"], metrics["train/grad_norm"]))
        policy.restore(start)
    policy.training.size = 128
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def attributes(policy: Policy) -> dict[str, Any]:
    """All that could leak into generation: attributes, configurations, tokenizer, adapters, parameters."""
    modules = {name: sorted(vars(module)) for name, module in policy.model.named_modules()}
    training = [name for name, module in policy.model.named_modules() if module.training]
    configs = [part.to_dict() for part in (policy.model.config, policy.model.generation_config)]
    tokenizer = (
        policy.tokenizer.pad_token,
        policy.tokenizer.padding_side,
        len(policy.tokenizer),
        policy.tokenizer.chat_template,
    )
    weights = [
        (name, parameter.requires_grad, parameter.dtype)
        for name, parameter in policy.model.named_parameters()
    ]
    return {
        "modules": modules,
        "training": training,
        "configs": configs,
        "tokenizer": tokenizer,
        "weights": weights,
        "adapters": (list(policy.model.peft_config), policy.model.active_adapter),
    }


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["cycle", "base"])
@pytest.mark.parametrize("kind", ["pocket", "plain"])
def test_nothing_of_trl_is_left_behind(
    tmp_path: Path, reference: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    """Generation after it is that of a policy that only loaded the weights. `plain` has no template."""
    folder = str(request.getfixturevalue(kind))
    policy = load_policy(folder)
    stir(policy)
    before = attributes(policy)
    for _ in range(2):
        prefer(policy, batch_of(policy), PAIRS, whole(reference=reference, lr=1e-2), STREAM, tmp_path)
        assert attributes(policy) == before
    policy.save(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]  # and nothing in the run's folder
    fresh = load_policy(folder, adapter=str(tmp_path / "adapter"))
    for temperature in (0.0, 0.7):
        texts = [
            some.generate(
                [forward_prompt(task) for task in TASKS], 3, temperature=temperature, max_new_tokens=12
            )
            for some in (policy, fresh)
        ]
        assert texts[0] == texts[1]


def test_an_error_leaves_nothing_behind_either(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = attributes(policy)
    monkeypatch.setattr(DPOTrainer, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prefer(policy, batch_of(policy), PAIRS, whole(), STREAM, tmp_path)
    assert attributes(policy) == before


@pytest.mark.slow
def test_the_adapter_stays_float32(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL makes that of a 4-bit model bfloat16, in which a step of 1e-3 often changes nothing."""
    start, honest, hashes = policy.snapshot(), DPOTrainer.__init__, []

    def as_in_4_bits(self: Any, model: Any, **others: Any) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        honest(self, model, **others)

    for construct in (honest, as_in_4_bits):
        policy.restore(start)
        monkeypatch.setattr(DPOTrainer, "__init__", construct)
        prefer(policy, batch_of(policy), PAIRS, whole(reference="base"), STREAM, tmp_path)
        assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
        hashes.append(policy.adapter_hash())
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_the_stream_decides(policy: Policy, tmp_path: Path) -> None:
    start, hashes = policy.snapshot(), []
    for stream in (STREAM, STREAM, (1, 1, "train")):
        policy.restore(start)
        torch.manual_seed(len(hashes))  # what was drawn before does not matter
        prefer(policy, batch_of(policy), PAIRS, whole(batch_size=1), stream, tmp_path)
        hashes.append(policy.adapter_hash())
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_what_is_not_finite_or_changes_nothing_is_an_error(policy: Policy, tmp_path: Path) -> None:
    batch, start = batch_of(policy), policy.snapshot()
    with pytest.raises(TrainingError, match="the adapter did not change in this update"):
        prefer(policy, batch, PAIRS, whole(lr=1e-30), STREAM, tmp_path)
    policy.restore({name: tensor * float("inf") for name, tensor in start.items()})
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        prefer(policy, batch, PAIRS, whole(), STREAM, tmp_path)


def test_warnings_and_random_states_are_as_before(policy: Policy) -> None:
    from transformers.utils import logging

    level = logging.get_verbosity()
    states = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    with contained(policy):
        assert logging.get_verbosity() == logging.ERROR
        random.random(), np.random.rand(), torch.rand(1)
    assert logging.get_verbosity() == level
    assert states == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())


# ---- private names of TRL, which another version may change ----


@pytest.mark.slow
def test_trl_still_prepares_the_dataset_by_a_method_of_that_name(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def prepare(self: Any, dataset: Any, *_: Any) -> Any:
        calls.append("_prepare_dataset")
        return dataset

    assert "_prepare_dataset" in vars(DPOTrainer)
    monkeypatch.setattr(PairTrainer, "_prepare_dataset", prepare)
    prefer(policy, batch_of(policy), PAIRS, whole(), STREAM, tmp_path)
    assert calls


@pytest.mark.slow
def test_trl_still_tells_the_hub_by_a_method_of_that_name(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    assert any("_send_telemetry" in vars(each) for each in DPOTrainer.__mro__)
    monkeypatch.setattr(PairTrainer, "_send_telemetry", lambda self: calls.append("_send_telemetry"))
    prefer(policy, batch_of(policy), PAIRS, whole(), STREAM, tmp_path)
    assert calls


def test_the_number_of_gpus_is_still_kept_under_that_name(tmp_path: Path) -> None:
    arguments = DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    assert arguments.n_gpu >= 0 and hasattr(arguments, "_n_gpu")
    arguments._n_gpu = 7
    assert arguments.n_gpu == 7
    assert on_one_device(arguments).n_gpu == 1


# ---- it learns ----


def few_options(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """1 for a command without a dash, else 0."""
    return [[Score(float("-" not in command)) for command in commands] for commands in commands_P_G]


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["cycle", "base"])
def test_a_trivial_reward_rises(tmp_path: Path, reference: Any) -> None:
    policy, source, means = load_policy("embedded"), Templates([load_domain("shell")]), []
    config = Config(lr=3e-3, epochs=3, reference=reference)
    for cycle in range(3):
        batch = roll_out(
            policy,
            source,
            few_options,
            tasks=50,
            candidates=4,
            temperature=0.7,
            max_new_tokens=32,
            stream=(0, cycle, "before"),
        )
        means.append(mean([rollout.score.value or 0.0 for rollout in batch.rollouts]))
        before = policy.adapter_hash()
        if pairs := pairs_of_batch(batch, config.margin):
            prefer(policy, batch, pairs, config, (0, cycle, "train"), tmp_path)
            assert policy.adapter_hash() != before
    assert means[0] < 0.4
    assert means[-1] > 0.7


# ---- the command ----


@pytest.mark.slow
def test_a_run_and_its_files(brief: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = run(brief, tmp_path, "a", "--cycles", "2", "--reward", "random", "--margin", "0.01")
    printed, errors = capfd.readouterr()
    assert printed.splitlines()[-1] == str(folder) and "select/pairs" not in printed and "loss" not in printed
    assert errors == ""
    rows, metrics = rows_of(folder / "rollouts.jsonl"), rows_of(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [0, 24, 48]
    for line in metrics[1:]:
        part = [row for row in rows if row["cycle"] == line["cycle"]]
        groups = [part[start : start + 3] for start in range(0, 24, 3)]
        assert all(len({row["task_id"] for row in group}) == 1 for group in groups)
        # What is logged is what was scored, and what was trained on follows from it.
        known = [row["score"] for row in part if row["score"] is not None]  # an empty command has none
        assert line["reward/mean"] == pytest.approx(mean(known)) and len(known) > 20
        scores = [[None if row["truncated"] else row["score"] for row in group] for group in groups]
        pairs = pairs_of(scores, [[row["command"] for row in group] for group in groups], 0.01)
        assert (line["train/pairs"], line["select/pairs"]) == (len(pairs), len(pairs) / 8) and pairs
        assert line["train/score_margin"] == pytest.approx(
            mean([part[x]["score"] - part[y]["score"] for x, y in pairs])
        )
        assert [row["accepted"] for row in part] == [
            position in {x for x, _ in pairs} for position in range(24)
        ]
        assert line["train/steps"] == 2 * math.ceil(len(pairs) / 4)  # of two epochs
        wanted = {
            "loss",
            "grad_norm",
            "margin",
            "pair_accuracy",
            "chosen_reward",
            "rejected_reward",
            "chosen_logprob",
            "rejected_logprob",
        }
        assert {f"train/{name}" for name in wanted} <= set(line)
    assert {row["phase"] for row in rows} == {"before"}


@pytest.mark.slow
def test_same_seed_same_bytes_and_other_seed_others(brief: Path, tmp_path: Path, finished: Path) -> None:
    first = written(finished)
    second = written(run(brief, tmp_path / "y", "a", "--cycles", "1", "--reward", "random"))
    for files in (first, second):  # hold --output
        files.pop("progress.json"), files.pop("self_improvement_results.json")
    assert first == second
    other = written(run(brief, tmp_path / "z", "a", "--cycles", "1", "--reward", "random", "--seed", "1"))
    assert other["rollouts.jsonl"] != first["rollouts.jsonl"] and other["adapter"] != first["adapter"]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(brief: Path, tmp_path: Path) -> None:
    flags = ["--cycles", "3", "--reward", "channel"]
    whole = run(brief, tmp_path / "whole", "a", *flags)
    argv = ["--model", str(brief), *SMALL, "--output", str(tmp_path / "killed"), "--name", "a", *flags]
    kill_after_the_first_of_three("dpo", argv, tmp_path)
    killed = tmp_path / "killed" / "a"
    assert not (killed / "self_improvement_results.json").exists()
    assert run_command(Config, main, ["--resume", str(killed)], "dpo") == 0
    expected, found = written(whole), written(killed)
    for name in (
        "progress.json",
        "self_improvement_results.json",
    ):  # the same bytes but for --output, which they hold
        expected[name] = expected[name].replace(
            str(tmp_path / "whole").encode(), str(tmp_path / "killed").encode()
        )
    assert expected == found


@pytest.mark.slow
def test_it_goes_on_from_another_trainer_and_another_from_it(brief: Path, tmp_path: Path) -> None:
    def sft(name: str, *flags: str) -> None:
        settings = [*SMALL, "--cycles", "1", "--reward", "random", "--output", str(tmp_path), "--name", name]
        argv = ["--model", str(brief), *settings, *flags]
        assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0

    def dpo(name: str, *flags: str) -> None:
        run(brief, tmp_path, name, "--cycles", "1", "--reward", "random", *flags)

    sft("first")
    folder = tmp_path / "first" / "checkpoints" / "cycle-0001"
    for name, command in (("second", dpo), ("third", dpo), ("fourth", sft)):
        start = load_policy(str(brief), adapter=str(folder)).adapter_hash()
        command(name, "--adapter", str(folder))
        folder = tmp_path / name / "checkpoints" / "cycle-0001"
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
        assert load_policy(str(brief), adapter=str(folder)).adapter_hash() != start


@pytest.mark.slow
def test_no_pair_trains_nothing_and_says_so(
    brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(brief, tmp_path, "a", "--cycles", "1", "--reward", "constant")
    assert "cycle 1: no pair of commands, so nothing was trained: lower --margin" in capsys.readouterr().out
    line = rows_of(folder / "metrics.jsonl")[-1]
    assert (line["train/pairs"], line["select/pairs"]) == (0.0, 0.0) and "train/loss" not in line
    assert not any(row["accepted"] for row in rows_of(folder / "rollouts.jsonl"))


def test_without_trl_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert (
        run_command(Config, main, ["--model", "embedded", *SMALL, "--output", str(tmp_path / "runs")], "dpo")
        == 2
    )
    error = capsys.readouterr().err
    assert (
        error.startswith("error: online DPO needs TRL, which cannot be imported")
        and error.endswith(": pip install '.[trl]'\n")
        and error.count("\n") == 1
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--candidates", "1"], "--candidates 1: must be 2 or more: a pair is made of two"),
        (["--beta", "0"], "--beta 0.0: must be above 0"),
        (["--beta", "inf"], "--beta inf: must be above 0"),
        (["--margin", "-0.1"], "--margin -0.1: must be 0 or more"),
        (["--sft", "-1"], "--sft -1.0: must be 0 or more"),
        (["--reference", "bsae"], "--reference bsae: must be one of cycle, base: did you mean base?"),
        (["--adapter", "nowhere"], "--adapter nowhere: no adapter_model.safetensors there"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert (
        run_command(
            Config, main, ["--model", "embedded", *SMALL, "--output", str(tmp_path / "runs"), *flags], "dpo"
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: " + message) and error.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_a_run_of_another_trainer_is_not_resumed(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "a"))
    argv = ["--resume", str(folder), "--cycles", "2"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 2
    message = f"error: --resume {folder}: is a run of agents.dpo: resume it with that command\n"
    assert capsys.readouterr().err == message
    assert run_command(Config, main, argv, "dpo") == 0  # the refusal has left it as it was


def test_the_settings_that_are_its_own() -> None:
    config, _ = parse(Config, ["--model", "embedded"], "dpo")
    assert (config.reference, config.margin, config.epochs, config.lora_dropout, config.lr) == (
        "cycle",
        0.02,
        2,
        0.0,
        1e-3,
    )
