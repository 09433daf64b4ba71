"""Self-Rewarding: points by hand, pairs of verdicts, and pairs with weights in TRL's loss."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stir
from scripted import RIGHT, TASK

from agents.cli.command import run_command
from agents.policy.load import load_policy
from agents.policy.lora import Lora
from agents.self_rewarding import Config, judged_pairs, main
from agents.training.rollouts import Batch, Rollout
from envs.grammar import CRITERIA
from envs.prompts import forward_prompt, points_prompt
from envs.types import Completion, Score, Task
from rewards.intrinsic import SelfRating, expected_points

pytest.importorskip("trl")

from agents.training import trl_dpo
from agents.training.trl_dpo import Preference, train_on_pairs


class Judge:
    """Gives each answer a probability by the criterion with which the prompt begins."""

    def __init__(self, by_first: dict[str, dict[str, float]]) -> None:
        self.by_first = by_first
        self.used: list[str] = []

    @contextlib.contextmanager
    def inverter(self, which: str) -> Iterator[None]:
        self.used.append(which)
        yield

    def logprobs(self, prompts: Sequence[Any], continuations: Sequence[str]) -> list[list[float]]:
        rows = []
        for prompt, answer in zip(prompts, continuations, strict=True):
            first = prompt.text.split("- ")[1].strip()
            rows.append([math.log(self.by_first[first].get(answer, 1e-30))])
        return rows


def group(*scores: float | None, task: str = "list all files") -> list[Rollout]:
    about = Task(task, "shell", task)
    return [Rollout(about, Completion(f"ls {row}", (row,)), Score(value)) for row, value in enumerate(scores)]


def test_points_by_hand() -> None:
    assert expected_points([math.log(0.5), -math.inf, math.log(0.5)]) == pytest.approx(1.0)
    assert expected_points([-800.0, -800.0, -800.0 + math.log(2)]) == pytest.approx(1.25)  # no underflow
    assert math.isnan(expected_points([-math.inf, -math.inf]))


def test_a_verdict_is_the_mean_over_three_orders_of_the_criteria() -> None:
    probabilities = [{"5": 1.0}, {"3": 0.3, "4": 0.3}, {"0": 0.2, "5": 0.2}]
    judge: Any = Judge(dict(zip(CRITERIA[::2], probabilities, strict=True)))
    [[score, empty]] = SelfRating(judge)([TASK], [[RIGHT, " "]])
    assert score.parts["points"] == pytest.approx((5 + 3.5 + 2.5) / 3)
    assert score.value == pytest.approx((5 + 3.5 + 2.5) / 15)
    assert empty.value is None
    assert SelfRating(judge, "base")([TASK], [[RIGHT]])[0][0] == score
    assert judge.used == ["current", "base"]
    texts = [points_prompt(TASK, RIGHT, first).text for first in range(5)]
    assert len(set(texts)) == 5
    for text in texts:
        assert TASK.text in text and RIGHT in text and all(criterion in text for criterion in CRITERIA)


def test_pairs_are_the_highest_against_the_lowest_verdict() -> None:
    batch = Batch(
        [group(0.2, 0.9, 0.1, task="a"), group(0.4, 0.4, task="b"), group(0.3, None, 0.8, task="c")]
    )
    assert judged_pairs(batch, None) == [(1, 2, pytest.approx(0.8)), (7, 5, pytest.approx(0.5))]
    assert judged_pairs(batch, 0.85) == [(1, 2, pytest.approx(0.8))]


def test_votes_as_scpo_has_them() -> None:
    """Shares of votes: 3 of 4 against 1; half against a quarter; four that differ are under half."""
    batch = Batch([group(0.75, 0.75, 0.25, 0.75), group(0.5, 0.25, 0.5, 0.25), group(0.25, 0.25, 0.25, 0.25)])
    assert judged_pairs(batch, 0.5) == [(0, 2, 0.5), (4, 5, 0.25)]


def test_the_weight_of_a_pair_is_its_weight_in_the_loss(pocket: Path, tmp_path: Path) -> None:
    """One step on two pairs by hand: our log-probabilities, weights, AdamW's first step."""
    policy = load_policy(str(pocket), lora=Lora(dropout=0.0))
    stir(policy)
    [prompt] = policy.prompt_ids([forward_prompt(TASK)])
    texts = policy.completion_ids(["ls -a", "ping web1.test", "wc -l notes.txt", "x"])
    first, second = (texts[0], texts[1], 0.9), (texts[2], texts[3], 0.2)
    settings: dict[str, Any] = {"lr": 1e-3, "beta": 0.3, "sft": 0.5, "reference": "base", "batch_size": 2}
    start = policy.snapshot()
    pairs = [Preference(prompt, *first), Preference(prompt, *second)]
    train_on_pairs(policy, pairs, **settings, epochs=1, stream_parts=(0, 1, "t"), folder=tmp_path)
    found = policy.snapshot()
    policy.restore(start)

    losses = []
    for chosen, rejected, weight in (first, second):
        sequences = [(prompt, chosen), (prompt, rejected)]
        with policy.adapter("off"):
            held = [math.fsum(row) for row in policy.logprobs_of_ids(sequences)]
        values, mask = policy.token_logprobs(sequences)
        sums = (values * mask).sum(1)
        delta = sums[0] - sums[1] - held[0] + held[1]
        likelihood = sums[0] / mask[0].sum()
        losses.append(weight * (-torch.nn.functional.logsigmoid(0.3 * delta) - 0.5 * likelihood))
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3, weight_decay=0.0)
    (sum(losses) / 2).backward()  # type: ignore[union-attr]
    torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
    optimizer.step()
    policy.model.zero_grad(set_to_none=True)
    wanted = policy.snapshot()
    policy.restore(start)
    close = torch.cat([(wanted[name] - found[name]).abs().flatten() < 1e-4 for name in start])
    moved = torch.cat([(wanted[name] - start[name]).abs().flatten() for name in start])
    assert moved.max() > 9e-4 and close.float().mean() > 0.999


def test_a_run_weighs_its_pairs_by_the_difference_of_their_scores(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def noted(policy: Any, pairs: Any, **settings: Any) -> Any:
        given.append((pairs, settings))
        return train_on_pairs(policy, pairs, **settings)

    monkeypatch.setattr(trl_dpo, "train_on_pairs", noted)
    argv = ["--model", str(brief), "--output", str(tmp_path), "--name", "a", "--force", "--no-gates"]
    argv += ["--domain", "network", "--tasks", "8", "--cycles", "1", "--max-new-tokens", "12", "--sft", "1"]
    argv += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1", "--reward", "random"]
    argv += ["--min-score", "0.7", "--weighted"]
    assert run_command(Config, main, argv, "self_rewarding") == 0
    [(pairs, settings)] = given
    assert (settings["sft"], settings["reference"]) == (1.0, "cycle")
    rows = [json.loads(line) for line in (tmp_path / "a" / "rollouts.jsonl").read_text().splitlines()]
    whole = [row for row in rows if row["score"] is not None and not row["truncated"]]
    weights = []
    for chosen in (row for row in rows if row["accepted"]):
        scores = [row["score"] for row in whole if row["task_id"] == chosen["task_id"]]
        assert chosen["score"] == max(scores) >= 0.7
        weights.append(chosen["score"] - min(scores))
    assert [pair.weight for pair in pairs] == weights != []


@pytest.mark.slow
def test_a_trivial_preference_is_learnt(tmp_path: Path) -> None:
    flags = ["--model", "embedded", "--domain", "shell", "--tasks", "40", "--cycles", "3", "--lr", "3e-3"]
    flags += ["--max-new-tokens", "32", "--no-gates", "--eval-tasks", "3", "--eval-subset", "2"]
    flags += ["--eval-samples", "1", "--reward", "test_star:no_dash", "--epochs", "3"]
    argv = [*flags, "--output", str(tmp_path), "--name", "a"]
    assert run_command(Config, main, argv, "self_rewarding") == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    means = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert means[0] < 0.4
    assert means[-1] > 0.7


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--beta", "0"], ["--candidates", "1"], ["--min-score", "nan"], ["--sft", "-1"]):
        assert run_command(Config, main, flags, "self_rewarding") == 2
        assert capsys.readouterr().err.count("\n") == 1
