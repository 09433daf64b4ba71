"""PPO: its pieces by hand and against a float64 reference, its update, learning, resume to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stir

from agents import ppo
from agents.cli.command import run_command
from agents.policy.load import load_policy
from agents.policy.policy import Policy
from agents.policy.score import scalar_head
from agents.ppo import Config, adapted, approximate_kl, gae, main, policy_loss, value_loss, whiten
from agents.training import actor_critic
from agents.training.actor_critic import ActorCritic, Episode, Old, episodes_of
from agents.training.config import TrainingError
from agents.training.rollouts import Rollout, roll_out
from envs.domain import load_domain
from envs.source import Templates
from envs.types import Completion, Score, Task

# For a model with random weights, which writes no command: nothing is executed, and no gate closes.
SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--batch-size", "7"]
SMALL += ["--tasks", "6", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "1"]
FILES = ("adapter_model.safetensors", "value_head.safetensors", "optimizer.safetensors")


def run(model: Path, tmp: Path, name: str, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    argv = ["--model", str(model), *SMALL, "--reward", "random", "--output", str(tmp), "--name", name, *flags]
    assert run_command(Config, main, argv, "ppo") == 0
    return tmp / name


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed: logs, and of the last checkpoint all that was learnt."""
    last = max((folder / "checkpoints").glob("cycle-*"))
    files = {name: (last / name).read_bytes() for name in FILES}
    return {**files, **{name: (folder / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl")}}


def memory(folder: Path) -> dict[str, float]:
    """What else the last checkpoint keeps for the trainer."""
    state = json.loads((max((folder / "checkpoints").glob("cycle-*")) / "state.json").read_text())["state"]
    return dict(state["memory"])


def metrics(folder: Path) -> list[dict[str, float]]:
    """The logged numbers of each cycle."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["cycle"]]


def scored(folder: Path) -> list[dict[str, Any]]:
    """The candidates that have a score: an empty command has none."""
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    return [row for row in rows if row["score"] is not None]


# ---- the pieces


def test_advantages_by_hand() -> None:
    assert gae([0, 0, 1], [0.5, 0.5, 0.5], 1.0) == [0.5, 0.5, 0.5]
    assert gae([0, 0, 1], [0.5, 0.5, 0.5], 0.5) == [0.125, 0.25, 0.5]  # errors 0, 0, 0.5
    assert gae([0, 0, 1], [0.25, 0.5, 0.75], 0.0) == [0.25, 0.25, 0.25]
    assert gae([-0.5, 1], [0.0, 2.0], 0.5) == [1.0, -1.0]  # errors 1.5, -1
    assert gae([0.75], [0.5], 0.95) == [0.25]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_advantages_against_the_sum_that_defines_them(lam: float) -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 17))
    errors = rewards + np.append(values[1:], 0.0) - values
    wanted = [sum(lam**k * errors[t + k] for k in range(17 - t)) for t in range(17)]
    np.testing.assert_allclose(gae(rewards.tolist(), values.tolist(), lam), wanted, rtol=1e-12)
    if lam == 1.0:  # what is still to come, less what was expected
        np.testing.assert_allclose(wanted, np.cumsum(rewards[::-1])[::-1] - values, rtol=1e-12)


def test_whitening() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance 3.5
    deviation = 3.5**0.5
    torch.testing.assert_close(whiten(values), torch.tensor([-2.0, -1.0, 0.0, 3.0]) / deviation)
    torch.testing.assert_close(
        whiten(values, shift_mean=False), torch.tensor([-2.0, -1.0, 0.0, 3.0]) / deviation + 3
    )
    assert whiten(torch.full((5,), 0.25)).tolist() == [0.0] * 5
    reference = np.random.default_rng(1).normal(3.0, 5.0, size=1000)
    found = whiten(torch.tensor(reference)).numpy()
    np.testing.assert_allclose(found, (reference - reference.mean()) / reference.std(), rtol=1e-9)


def test_the_policy_loss_by_hand() -> None:
    """Clipped where the ratio has already gone the way the advantage points, and there without gradient."""
    new = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0, 1.0])
    loss, clipped = policy_loss(new, torch.zeros(5), advantages, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.4, -1.0, 3.0, 1.6, -1.1]))
    assert clipped.tolist() == [True, False, False, True, False]
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([0.0, -1.0, 3.0, 0.0, -1.1]))


def test_the_value_loss_by_hand() -> None:
    """A value may move from the old one by the clip; beyond, the larger of the two errors counts."""
    values = torch.tensor([0.9, 0.9, 0.1, 0.55]).requires_grad_()
    loss, clipped = value_loss(values, torch.full((4,), 0.5), torch.tensor([1.0, 0.0, 1.0, 1.0]), 0.2)
    torch.testing.assert_close(loss, 0.5 * torch.tensor([0.09, 0.81, 0.81, 0.2025]))
    assert clipped.tolist() == [True, False, False, False]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.9, -0.9, -0.45]))


def test_losses_against_numpy() -> None:
    rng = np.random.default_rng(2)
    new, old, advantages, values, before, returns = rng.normal(size=(6, 500))
    ratio = np.exp(new - old)
    wanted = -np.minimum(advantages * ratio, advantages * np.clip(ratio, 0.7, 1.3))
    np.testing.assert_allclose(
        policy_loss(*map(torch.tensor, (new, old, advantages)), 0.3)[0].numpy(), wanted, rtol=1e-12
    )
    near = before + np.clip(values - before, -0.3, 0.3)
    wanted = 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)
    np.testing.assert_allclose(
        value_loss(*map(torch.tensor, (values, before, returns)), 0.3)[0].numpy(), wanted, rtol=1e-12
    )


def test_the_approximate_kl_is_unbiased_and_never_negative() -> None:
    old, new = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], dtype=torch.float64).log()
    estimates = approximate_kl(new, old)
    assert float(estimates.min()) >= 0.0
    assert float((old.exp() * estimates).sum()) == pytest.approx(
        float((old.exp() * (old - new)).sum()), rel=1e-12
    )
    assert approximate_kl(old, old).tolist() == [0.0, 0.0, 0.0]


def test_the_controller_by_hand() -> None:
    assert adapted(0.05, 12.0, 6.0, 0.1) == pytest.approx(
        0.05 * 1.02
    )  # twice the target, but no more than a fifth of it counts
    assert adapted(0.05, 6.6, 6.0, 0.1) == pytest.approx(0.05 * 1.01)
    assert adapted(0.05, 6.0, 6.0, 0.1) == 0.05
    assert adapted(0.05, 5.4, 6.0, 0.5) == pytest.approx(0.05 * 0.95)
    assert adapted(0.05, 0.0, 6.0, 0.5) == pytest.approx(0.05 * 0.9)
    assert adapted(0.05, 9.0, None, 0.1) == 0.05


def test_the_explained_variance_by_hand() -> None:
    def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float | None:
        return Old([], values, values, values).explained_variance(returns)

    returns = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert explained_variance(returns + 7.0, returns) == 1.0  # a constant error is none of the variance
    assert explained_variance(torch.full((4,), 1.5), returns) == 0.0
    assert explained_variance(torch.tensor([0.0, 1.0, 2.0, 1.0]), returns) == pytest.approx(1 - 0.75 / 1.25)
    assert explained_variance(-returns, returns) == -3.0
    assert explained_variance(returns, torch.ones(4)) is None


# ---- the model


def actor_critic_of(policy: Policy, lr: float = 1e-3, temperature: float = 0.7) -> ActorCritic:
    return ActorCritic(policy, lr, temperature, seed=0)


@pytest.fixture
def model(policy: Policy) -> ActorCritic:
    return actor_critic_of(policy)


def episodes(policy: Policy) -> list[Episode]:
    """Eight of different lengths."""
    texts = [
        ("list files", "ls"),
        ("count the lines of x", "wc -l x"),
        ("show the date", "date"),
        ("where am i and who", "pwd; whoami"),
    ]
    prompts, completions = (
        policy.prompt_ids([text for text, _ in texts]),
        policy.completion_ids([text for _, text in texts]),
    )
    ends = [[*completion, policy.tokenizer.eos_token_id] for completion in completions]
    return [Episode(prompts[row % 4], ends[(row + row // 4) % 4], 0.1 * row) for row in range(8)]


def config(**values: Any) -> Config:
    return dataclasses.replace(Config(lr=1e-3, batch_size=3, epochs=2), **values)


def updated(model: ActorCritic, settings: Config, rows: Sequence[Episode] | None = None) -> dict[str, Any]:
    rows = rows or episodes(model.policy)
    return ppo.train_on_episodes(model, rows, settings, settings.kl_coef, 0, 1, "train")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_forward_pass_is_that_of_each_sequence_alone(policy: Policy, temperature: float) -> None:
    model = actor_critic_of(policy, temperature=temperature)
    torch.nn.init.normal_(model.head.weight)
    rows = episodes(policy)
    found = model.forward(rows)
    wanted: list[list[torch.Tensor]] = [[], [], []]
    for episode in rows:
        output: Any = policy.model(
            input_ids=torch.tensor([[*episode.prompt, *episode.completion]]), output_hidden_states=True
        )
        places = slice(len(episode.prompt) - 1, -1)
        table = (output.logits[0, places] / temperature).log_softmax(-1)
        wanted[0].append(table[range(len(table)), list(episode.completion)])
        wanted[1].append(torch.distributions.Categorical(logits=table).entropy())
        wanted[2].append(model.head(output.hidden_states[-1][0, places])[:, 0])
    for values, parts in zip(found, wanted, strict=True):
        torch.testing.assert_close(values, torch.cat(parts), atol=1e-4, rtol=1e-4)
        assert values.requires_grad


def test_any_causal_language_model_has_values(pocket: Path, tmp_path: Path) -> None:
    """Another architecture, whose output embeddings are named and tied in another way."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(pocket)
    with torch.random.fork_rng():
        gpt2 = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128)
        )
    gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path))
    assert policy.model.config.attn_pdrop > 0  # dropout of its own, too
    model = actor_critic_of(policy)
    episode = episodes(policy)[1]
    _, _, values = model.forward([episode])
    output: Any = policy.model(
        input_ids=torch.tensor([[*episode.prompt, *episode.completion]]), output_hidden_states=True
    )
    hidden = output.hidden_states[-1][0, len(episode.prompt) - 1 : -1]
    torch.testing.assert_close(values, model.head(hidden)[:, 0])
    assert updated(model, config(epochs=1, batch_size=8))["train/approx_kl"] == 0.0


def test_a_new_value_head_is_small_and_follows_from_the_seed(policy: Policy) -> None:
    state = torch.get_rng_state()
    first, same, other = (scalar_head(policy.model, "value head", seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.weight, same.weight) and not torch.equal(first.weight, other.weight)
    assert 0 < float(first.weight.abs().max()) < 0.2 and first.bias.item() == 0.0


def test_what_is_learnt_from(policy: Policy) -> None:
    """No score, no episode; a command that was cut has no end, and the fixed score or the lowest one."""
    task = Task("a", "shell", "list the files", "ls")
    eos = policy.tokenizer.eos_token_id
    rollouts = [
        Rollout(task, Completion("ls", (5, 6)), Score(0.75)),
        Rollout(task, Completion("ls", (5, 6)), Score(None)),
        Rollout(task, Completion("ls ls", (5, 6, 7), truncated=True), Score(0.9)),
        Rollout(task, Completion(""), Score(0.25)),
    ]
    found = episodes_of(policy, rollouts, 0.0)
    assert [(list(episode.completion), episode.score) for episode in found] == [
        ([5, 6, eos], 0.75),
        ([5, 6, 7], 0.0),
        ([eos], 0.25),
    ]
    assert policy.tokenizer.decode(found[0].prompt).count("list the files") == 1
    assert [episode.score for episode in episodes_of(policy, rollouts, 0.5)] == [0.75, 0.25, 0.25]
    assert [episode.score for episode in episodes_of(policy, rollouts, None)] == [0.75, 0.25]


# ---- the update


def losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """What every call of `policy_loss` is given from now on: new, old, advantages, clip."""
    calls: list[tuple[Any, ...]] = []

    def spy(*values: Any) -> Any:
        calls.append(values)
        return policy_loss(*values)

    monkeypatch.setattr(ppo, "policy_loss", spy)
    return calls


@pytest.mark.parametrize("settings", [{}, {"batch_size": 8}, {"batch_size": 4, "micro_batch": 3}])
@pytest.mark.parametrize("half", [False, True])
def test_the_first_ratio_is_exactly_one(
    pocket: Path, settings: dict[str, Any], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In spite of padding, of the adapter's dropout, and of bfloat16; and after the first step it is not."""
    policy = load_policy(str(pocket))
    stir(policy)
    assert any(module.p > 0 for module in policy.model.modules() if isinstance(module, torch.nn.Dropout))
    if half:
        policy.model.to(torch.bfloat16)
        for parameter in policy.trainable():
            parameter.data = parameter.data.float()
    calls = losses(monkeypatch)
    found = updated(actor_critic_of(policy), config(**settings))
    micro = settings.get("micro_batch", 8)
    passes = -(-min(settings.get("batch_size", 3), 8) // micro)
    for new, old, *_ in calls[:passes]:
        assert new.dtype == torch.float32 and torch.equal(new, old)
    assert not torch.equal(calls[-1][0], calls[-1][1])
    assert found["train/approx_kl"] > 0
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}


def test_gradients_add_up_over_micro_batches(policy: Policy, model: ActorCritic) -> None:
    before, head = policy.snapshot(), model.head
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    gradients, logged = [], []
    for micro in (None, 1, 3):
        policy.restore(before)
        head.load_state_dict(start)
        model.optimizer = torch.optim.SGD(model.parameters, lr=1.0)
        settings = config(batch_size=8, micro_batch=micro, epochs=1)
        logged.append(ppo.train_on_episodes(model, episodes(policy), settings, 0.05, 0))
        after = policy.snapshot()
        gradients.append(
            [before[name] - after[name] for name in before]
            + [start[name] - head.state_dict()[name] for name in start]
        )
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-3
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients[0], other, strict=True))
    for name, value in logged[0].items():
        assert logged[1][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("scaling", ["none", "scores", "whiten"])
def test_the_estimates_against_numpy(policy: Policy, model: ActorCritic, scaling: str) -> None:
    """From each sequence alone: the penalty per token, the score at the end, GAE, whitening."""
    torch.nn.init.normal_(model.head.weight, std=0.1)
    rows, settings = episodes(policy), config(reward_scaling=scaling, gae_lambda=0.9)
    with torch.no_grad():
        alone = [model.forward([episode]) for episode in rows]
        with policy.adapter("off"):
            base = [model.forward([episode])[0].double().numpy() for episode in rows]
    logprobs, values = ([values[place].double().numpy() for values in alone] for place in (0, 2))
    scores = np.array([episode.score for episode in rows])
    if scaling == "scores":
        scores = (scores - scores.mean()) / scores.std()
    penalties = [0.5 * (own - other) for own, other in zip(logprobs, base, strict=True)]
    rewards = [
        np.append(-penalty[:-1], score - penalty[-1])
        for penalty, score in zip(penalties, scores, strict=True)
    ]
    if scaling == "whiten":
        every = np.concatenate(rewards)
        rewards = [(reward - every.mean()) / every.std() + every.mean() for reward in rewards]
    advantages = [np.array(gae(reward, value, 0.9)) for reward, value in zip(rewards, values, strict=True)]
    every = np.concatenate(advantages)

    found = model.before(rows, [[0, 5, 2], [7, 6], [1, 3, 4]])
    advantages_N, returns_N = ppo.estimate(found, settings, 0.5)
    wanted = [
        ("logprobs", found.logprobs_N, logprobs),
        ("values", found.values_N, values),
        ("advantages", advantages_N, [(advantage - every.mean()) / every.std() for advantage in advantages]),
        (
            "returns",
            returns_N,
            [advantage + value for advantage, value in zip(advantages, values, strict=True)],
        ),
    ]
    for name, tensor, arrays in wanted:
        np.testing.assert_allclose(tensor.numpy(), np.concatenate(arrays), atol=2e-4, err_msg=name)
    for row in (0, 3, 7):
        np.testing.assert_allclose(found.logprobs_N[found.tokens_of([row])].numpy(), logprobs[row], atol=2e-4)
    assert found.kl == pytest.approx(sum(penalty.sum() for penalty in penalties) / 0.5 / 8, abs=1e-4)
    assert abs(found.kl) > 0.1


def test_steps_end_when_the_policy_has_gone_far_enough(model: ActorCritic) -> None:
    whole = updated(model, config(epochs=3, stop_kl=1e6))
    assert whole["train/steps"] == 9.0
    early = updated(model, config(epochs=3, stop_kl=1e-9))
    assert early["train/steps"] == 1.0 and early["train/approx_kl"] > 1e-9  # the first step is always taken


def test_a_bonus_raises_the_entropy(policy: Policy) -> None:
    before, found = policy.snapshot(), []
    for coefficient in (0.0, 10.0):
        policy.restore(before)
        model = actor_critic_of(policy)
        updated(model, config(epochs=10, batch_size=8, entropy_coef=coefficient, stop_kl=1e6))
        with torch.no_grad():
            found.append(float(model.forward(episodes(policy))[1].mean()))
    assert found[1] > found[0] + 0.1


def test_the_value_head_learns(policy: Policy) -> None:
    """Equal scores and no penalty: advantages are those of the values alone, which come to the score."""
    model = actor_critic_of(policy, lr=1e-2)
    rows = [dataclasses.replace(episode, score=1.0) for episode in episodes(policy)]
    settings = config(lr=1e-2, kl_coef=0.0, gae_lambda=1.0, value_coef=1.0, stop_kl=1e6, clip=1e-6)
    first, *_, last = (ppo.train_on_episodes(model, rows, settings, 0.0, 0, cycle) for cycle in range(8))
    assert first["train/value_loss"] > 0.2 > 0.02 > last["train/value_loss"]  # type: ignore[operator]


def test_what_is_not_finite_stops_at_once(policy: Policy, model: ActorCritic) -> None:
    rows = [dataclasses.replace(episode, score=float("nan")) for episode in episodes(policy)]
    name = policy.adapter_hash()
    with pytest.raises(
        TrainingError, match="the loss is nan at step 1: lower --lr; the last checkpoint is intact"
    ):
        updated(model, config(), rows)
    assert policy.adapter_hash() == name and not policy.model.training


# ---- the whole


def few_options(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """1 for a command without a dash, else 0."""
    return [[Score(float("-" not in command)) for command in commands] for commands in commands_P_G]


@pytest.mark.slow
def test_ppo_raises_a_trivial_reward() -> None:
    policy = load_policy("embedded")
    source = Templates([load_domain("shell")])
    settings = Config(lr=5e-3, batch_size=30, kl_coef=0.0)  # nothing pulls back
    model = actor_critic_of(policy, lr=settings.lr)
    means = []
    for cycle in range(5):
        batch = roll_out(
            policy,
            source,
            few_options,
            tasks=24,
            candidates=3,
            temperature=0.7,
            max_new_tokens=32,
            stream=(0, cycle, "before"),
        )
        rows = episodes_of(policy, batch.rollouts, settings.cut_score)
        ppo.train_on_episodes(model, rows, settings, settings.kl_coef, 0, cycle, "train")
        means.append(sum(rollout.score.value or 0.0 for rollout in batch.rollouts) / len(batch.rollouts))
    assert means[0] < 0.4
    assert means[-1] > 0.7


@pytest.fixture(scope="module")
def finished(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle, not to be changed."""
    return run(brief, tmp_path_factory.mktemp("finished"), "a", "--cycles", "1")


@pytest.mark.slow
def test_same_seed_same_bytes_and_other_seed_others(brief: Path, tmp_path: Path, finished: Path) -> None:
    first, second = written(finished), written(run(brief, tmp_path / "y", "a", "--cycles", "1"))
    assert first == second
    other = written(run(brief, tmp_path / "z", "a", "--cycles", "1", "--seed", "1"))
    assert all(other[name] != first[name] for name in first)


@pytest.mark.slow
def test_interrupted_equals_uninterrupted(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after the first cycle, or in the second after steps: the same bytes, value head included."""
    flags = ["--reward", "channel", "--kl-target", "1e-3"]
    whole = written(run(brief, tmp_path / "whole", "a", "--cycles", "2", *flags))

    folder = run(brief, tmp_path / "extended", "a", "--cycles", "1", *flags)
    assert written(folder)["value_head.safetensors"] != whole["value_head.safetensors"]
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "ppo") == 0
    assert written(folder) == whole

    aborted = tmp_path / "aborted" / "a"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # noqa: PT012
        real, seen = value_loss, []

        def broken(*values: Any) -> Any:
            seen.append(values)
            return (
                1 / 0 if len(seen) == 3 * 4 + 5 else real(*values)
            )  # 3 minibatches, 4 epochs, and into the second cycle

        patch.setattr(ppo, "value_loss", broken)
        run(brief, tmp_path / "aborted", "a", "--cycles", "2", *flags)
    assert [path.name for path in sorted((aborted / "checkpoints").iterdir())] == ["cycle-0000", "cycle-0001"]
    assert run_command(Config, main, ["--resume", str(aborted)], "ppo") == 0
    assert written(aborted) == whole

    first, second = metrics(aborted)
    assert (
        first["train/kl_coef"] == 0.05 and first["train/kl_command"] == 0.0
    )  # a new adapter is the base: less than the target
    assert second["train/kl_coef"] == adapted(0.05, 0.0, 1e-3, 0.1)
    for folder in (tmp_path / "whole" / "a", tmp_path / "extended" / "a", aborted):
        assert memory(folder) == {
            "kl_coef": adapted(second["train/kl_coef"], second["train/kl_command"], 1e-3, 0.1)
        }


@pytest.mark.slow
def test_the_reward_that_is_logged_is_the_one_that_is_learnt_from(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[float]] = []
    hashes: list[str] = []

    def spy(model: ActorCritic, rows: Sequence[Episode], *rest: Any) -> Any:
        given.append([episode.score for episode in rows])
        hashes.append(model.policy.adapter_hash())
        found = real(model, rows, *rest)
        hashes.append(model.policy.adapter_hash())
        return found

    real = ppo.train_on_episodes
    monkeypatch.setattr(ppo, "train_on_episodes", spy)
    folder = run(brief, tmp_path, "a", "--cycles", "2", "--max-new-tokens", "64")
    rows = scored(folder)
    assert not any(row["truncated"] for row in rows)
    for cycle, (logged, scores) in enumerate(zip(metrics(folder), given, strict=True), 1):
        assert scores == [row["score"] for row in rows if row["cycle"] == cycle]
        assert logged["reward/mean"] == logged["train/reward"] == pytest.approx(np.mean(scores), rel=1e-12)
    assert (
        hashes[1] == hashes[2] and len(set(hashes)) == 3
    )  # each update moved the adapter, and nothing else did


@pytest.mark.slow
def test_nothing_scored_trains_nothing_and_says_so(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(actor_critic, "episodes_of", lambda *_: [])
    folder = run(brief, tmp_path, "a", "--cycles", "1")
    assert "no candidate had a score, so nothing was trained" in capsys.readouterr().out
    assert metrics(folder)[0]["train/examples"] == 0
    assert "train/loss" not in metrics(folder)[0]


@pytest.mark.slow
def test_it_goes_on_from_the_adapter_of_another_trainer(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents import rejection_sft

    monkeypatch.setitem(sys.modules, "trl", None)  # neither needs TRL
    argv = [
        "--model",
        str(brief),
        *SMALL,
        "--reward",
        "random",
        "--cycles",
        "1",
        "--output",
        str(tmp_path),
        "--name",
        "sft",
    ]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    adapter = tmp_path / "sft" / "checkpoints" / "cycle-0001"
    folder = run(brief, tmp_path, "ppo", "--cycles", "1", "--adapter", str(adapter))
    files = [
        path / "adapter_model.safetensors" for path in (adapter, *sorted((folder / "checkpoints").iterdir()))
    ]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert metrics(folder)[0]["train/kl"] != 0.0  # the base is without any adapter
    again = run(
        brief, tmp_path, "again", "--cycles", "1", "--adapter", str(files[2].parent)
    )  # its own, with a value head next to it
    heads = [
        (path / "checkpoints" / "cycle-0000" / "value_head.safetensors").read_bytes()
        for path in (folder, again)
    ]
    assert heads[0] == heads[1]  # a new run, a new head


@pytest.mark.slow
def test_a_command_that_was_cut_is_learnt_from_with_a_low_score(brief: Path, tmp_path: Path) -> None:
    folder = run(brief, tmp_path, "a", "--cycles", "1", "--max-new-tokens", "16", "--cut-score", "-0.5")
    rows = scored(folder)
    cut = [row["truncated"] for row in rows]
    assert any(cut) and not all(cut)
    scores = [-0.5 if row["truncated"] else row["score"] for row in rows]
    assert metrics(folder)[-1]["train/reward"] == pytest.approx(sum(scores) / len(scores))
    assert metrics(folder)[-1]["reward/mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))


@pytest.mark.slow
def test_the_value_head_starts_at_the_mean_score(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    honest = ppo.train_on_episodes

    def update(model: ActorCritic, *rest: Any) -> Any:
        seen.append(float(model.head.bias.detach()))
        return honest(model, *rest)

    monkeypatch.setattr(ppo, "train_on_episodes", update)
    folder = run(brief, tmp_path, "a", "--cycles", "1")
    run(brief, tmp_path, "b", "--cycles", "1", "--reward-scaling", "scores")
    assert seen == [pytest.approx(metrics(folder)[-1]["train/reward"]), 0.0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip", "0"], "--clip 0.0: must be above 0"),
        (["--clip", "nan"], "--clip nan: must be above 0"),
        (["--value-clip", "-1"], "--value-clip -1.0: must be above 0"),
        (["--stop-kl", "0"], "--stop-kl 0.0: must be above 0"),
        (["--max-grad-norm", "inf"], "--max-grad-norm inf: must be above 0"),
        (["--gae-lambda", "1.5"], "--gae-lambda 1.5: must be in [0, 1]"),
        (["--micro-batch", "0"], "--micro-batch 0: must be 1 or more"),
        (["--value-coef", "-0.1"], "--value-coef -0.1: must be 0 or more"),
        (["--entropy-coef", "inf"], "--entropy-coef inf: must be 0 or more"),
        (["--kl-coef", "-1"], "--kl-coef -1.0: must be 0 or more"),
        (["--kl-target", "0"], "--kl-target 0.0: must be above 0, or None"),
        (["--kl-rate", "1"], "--kl-rate 1.0: must be in [0, 1)"),
        (["--cut-score", "nan"], "--cut-score nan: must be a number, or None"),
        (
            ["--reward-scaling", "score"],
            "--reward-scaling score: must be one of none, scores, whiten: did you mean scores?",
        ),
        (["--batch-size", "0"], "--batch-size 0: must be 1 or more"),
        (["--kl-coeff", "1"], "unknown flag --kl-coeff: did you mean --kl-coef?"),
    ],
)
def test_bad_flags_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(Config, main, ["--model", "embedded", "--output", str(tmp_path), *flags], "ppo") == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_none_switches_off(tmp_path: Path) -> None:
    from agents.cli.command import parse

    settings, _ = parse(Config, ["--model", "embedded", "--kl-target", "None", "--cut-score", "None"], "ppo")
    assert settings.kl_target is settings.cut_score is None
