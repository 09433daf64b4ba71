"""PPO on a reward without labels: write, score, estimate advantages, take clipped steps, repeat.

    python -m agents.ppo --cycles 10
    python -m agents.ppo --reward likelihood --domain shell --seed 1

A completion is an episode, a token (the end of sequence included) an action. Per token t, with
log-probabilities under the policy that wrote it (old), the policy that trains (new) and the base model
with the adapter off (ref), and with values V of the head:

    reward      r_t = -coefficient (log old_t - log ref_t), plus the score at the last token
    advantage   A_t = sum over k of lambda^k (r_{t+k} + V_{t+k+1} - V_{t+k}), without discount
    policy      mean over tokens of max(-W ratio, -W clip(ratio, 1 - c, 1 + c))
                with ratio = new / old, and W = A whitened over the batch
    value       half the mean of max((V - G)^2, (clip(V, old V - c, old V + c) - G)^2)
                with the return G = A + old V
    loss        policy + value_coef value - entropy_coef entropy

Sources: Schulman et al. 2017, arXiv:1707.06347 (PPO) and 2016, arXiv:1506.02438 (GAE); Ziegler et al.
2019, arXiv:1909.08593 (KL penalty and its controller); Huang et al. 2024, arXiv:2403.17031 (what matters
in RLHF). After these, decided here:

- The old log-probabilities come from the minibatches of the first epoch, so the first ratio is exactly 1.
- The last token is what ends an answer, even if the model ended its line by a line feed. A truncated
  answer has no end. It gets a fixed low score, which `train/reward` counts and `reward/mean` does not.
- Unless rewards are scaled, the values start at the mean of the first scores.
- The optimizer and its moments last for the whole run, at a constant learning rate.

The policy, its value head and the forward pass: agents/training/actor_critic.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.cli.values import require_counts
from agents.training.config import TrainConfig, finite
from envs.streams import stream

if TYPE_CHECKING:
    from torch import Tensor

    from agents.training.actor_critic import ActorCritic, Episode, Old


@dataclass(frozen=True)
class Config(TrainConfig):
    """PPO: the model learns from the scores of its commands by clipped steps against a learnt value."""

    lr: float = 2e-4
    """Learning rate of the adapter and the value head. Default with the embedded model: 1e-3."""
    batch_size: int = 50
    """Candidates in a minibatch, for which one step is taken."""
    micro_batch: int | None = None
    """Candidates per forward pass; gradients add up to a minibatch. Default: all of it. Fewer save memory."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter, for trainers that start from this run's adapter. PPO itself uses none."""
    epochs: int = 4
    """Passes over the candidates of a cycle."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation: 1 trusts the returns alone, 0 the value head alone."""
    clip: float = 0.2
    """Clip range of the ratio of new to old probability, per token."""
    value_clip: float = 0.2
    """Clip range of a value around its old one, per cycle, in units of the reward."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """First coefficient of the KL penalty to the base model."""
    kl_target: float | None = 6.0
    """Target KL to the base model, in nats per command; None keeps the coefficient."""
    kl_rate: float = 0.1
    """Adaptation rate: the coefficient changes by at most 0.2 x this per cycle."""
    stop_kl: float = 0.05
    """Ends a cycle's steps when a minibatch's KL of new to old policy, in nats per token, exceeds this."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    reward_scaling: Literal["none", "scores", "whiten"] = "none"
    """none; scores: standardise the scores of a cycle; whiten: scale per-token rewards to variance 1."""
    cut_score: float | None = 0.0
    """Score of a truncated command (the cycle's lowest score, if that is lower). None leaves it out."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        require_counts(self, "micro_batch")
        self._require("gae_lambda", 0 <= self.gae_lambda <= 1, "must be in [0, 1]")
        for name in ("clip", "value_clip", "stop_kl", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be above 0")
        for name in ("value_coef", "entropy_coef", "kl_coef"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")
        positive = self.kl_target is None or 0 < self.kl_target < math.inf
        self._require("kl_target", positive, "must be above 0, or None")
        self._require("kl_rate", 0 <= self.kl_rate < 1, "must be in [0, 1)")
        number = self.cut_score is None or math.isfinite(self.cut_score)
        self._require("cut_score", number, "must be a number, or None")


# The pieces. N tokens are those of a batch's completions, one after the other; T those of one completion.


def gae(rewards_T: Sequence[float], values_T: Sequence[float], lam: float) -> list[float]:
    """Advantages [T] of one completion, which ends the episode (Schulman et al. 2016, equation 16)."""
    advantages_T = [0.0] * len(rewards_T)
    following = next_value = 0.0
    for step in reversed(range(len(rewards_T))):
        following = rewards_T[step] + next_value - values_T[step] + lam * following
        advantages_T[step], next_value = following, values_T[step]
    return advantages_T


def whiten(values_N: Tensor, shift_mean: bool = True) -> Tensor:
    """Values (N,) scaled to variance 1, and to mean 0 if `shift_mean`; equal values stay equal."""
    mean = values_N.mean()
    whitened_N = (values_N - mean) * (values_N.var(correction=0) + 1e-8).rsqrt()
    return whitened_N if shift_mean else whitened_N + mean


def policy_loss(new_N: Tensor, old_N: Tensor, advantages_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss (N,) from log-probabilities (N,), and where the clipping decides it (N,)."""
    ratio_N = (new_N - old_N).exp()
    free_N, clipped_N = -advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    return free_N.maximum(clipped_N), clipped_N > free_N


def value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped squared error (N,) of each value, halved, and where the clipping decides it (N,)."""
    free_N = (values_N - returns_N).square()
    clipped_N = (values_N.clamp(old_N - clip, old_N + clip) - returns_N).square()
    return 0.5 * free_N.maximum(clipped_N), clipped_N > free_N


def approximate_kl(new_N: Tensor, old_N: Tensor) -> Tensor:
    """KL(old || new) of each token (N,), from log-probabilities: Schulman's k3, never < 0."""
    log_ratio_N = new_N - old_N
    return log_ratio_N.exp() - 1 - log_ratio_N


def adapted(coefficient: float, kl: float, target: float | None, rate: float) -> float:
    """The KL coefficient for the next cycle (Ziegler et al. 2019, section 2.2), without a target the same."""
    if target is None:
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + rate * error)


# The algorithm


def estimate(old: Old, config: Config, coefficient: float) -> tuple[Tensor, Tensor]:
    """Whitened advantages (N,) and returns (N,), from scores, values and the KL penalty.

    Args:
        coefficient: of the KL penalty.
    """
    rewards_N = -coefficient * (old.logprobs_N - old.base_N)
    scores = rewards_N.new_tensor([episode.score for episode in old.episodes])
    if config.reward_scaling == "scores":
        scores = whiten(scores)
    rewards_N[[end - 1 for end in old.ends]] += scores
    if config.reward_scaling == "whiten":
        rewards_N = whiten(rewards_N, shift_mean=False)
    advantages: list[float] = []
    parts = zip(rewards_N.split(old.lengths), old.values_N.split(old.lengths), strict=True)
    for rewards_T, values_T in parts:
        advantages += gae(rewards_T.tolist(), values_T.tolist(), config.gae_lambda)
    advantages_N = rewards_N.new_tensor(advantages)
    return whiten(advantages_N), advantages_N + old.values_N


def add_gradients(
    model: ActorCritic,
    minibatch: Sequence[list[int]],
    old: Old,
    advantages_N: Tensor,
    returns_N: Tensor,
    config: Config,
) -> dict[str, float]:
    """The gradients of a minibatch, added up over its forward passes -> means over its tokens."""
    model.optimizer.zero_grad(set_to_none=True)
    tokens = sum(old.lengths[row] for rows in minibatch for row in rows)
    means: dict[str, float] = {}
    for rows in minibatch:
        at = old.tokens_of(rows)
        new_N, entropy_N, values_N = model.forward([old.episodes[row] for row in rows])
        policy_N, clipped_N = policy_loss(new_N, old.logprobs_N[at], advantages_N[at], config.clip)
        value_N, value_clipped_N = value_loss(values_N, old.values_N[at], returns_N[at], config.value_clip)
        loss_N = policy_N + config.value_coef * value_N - config.entropy_coef * entropy_N
        (loss_N.sum() / tokens).backward()
        measured = {
            "loss": loss_N,
            "policy_loss": policy_N,
            "value_loss": value_N,
            "entropy": entropy_N,
            "clip_fraction": clipped_N,
            "value_clip_fraction": value_clipped_N,
            "approx_kl": approximate_kl(new_N.detach(), old.logprobs_N[at]),
        }
        for name, part_N in measured.items():
            means[name] = means.get(name, 0.0) + part_N.sum().item() / tokens
    return means


def train_on_episodes(
    model: ActorCritic, episodes: Sequence[Episode], config: Config, coefficient: float, *stream_parts: object
) -> dict[str, float | None]:
    """One cycle's update of adapter and value head, of at least one step -> `train/*`.

    Args:
        coefficient: of the KL penalty.
        stream_parts: (seed, cycle, purpose), from which the order of the episodes derives.

    Returns:
        Before the first step: `reward`, the mean score that is learnt from; `kl` to the base model, in
        nats per token, and `kl_command`, per command; `kl_coef`, `explained_variance`, `examples`. Means
        over the steps: what `add_gradients` gives, and `grad_norm`. Then `steps`, and `approx_kl` of the
        last minibatch that was looked at.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    from agents.training.update import fitted

    most = config.micro_batch or config.batch_size

    def update(size: int) -> dict[str, float | None]:
        return _update(model, episodes, replace(config, micro_batch=size), coefficient, *stream_parts)

    return fitted(model.policy, model.parameters, model.optimizer, lambda size: min(size, most), update)


def _update(
    model: ActorCritic, episodes: Sequence[Episode], config: Config, coefficient: float, *stream_parts: object
) -> dict[str, float | None]:
    epochs = [minibatches_of(len(episodes), config, epoch, *stream_parts) for epoch in range(config.epochs)]
    steps: list[dict[str, float]] = []
    with model.updating(*stream_parts):
        old = model.before(episodes, passes=list(itertools.chain(*epochs[0])))
        advantages_N, returns_N = estimate(old, config, coefficient)
        for minibatch in itertools.chain(*epochs):
            means = add_gradients(model, minibatch, old, advantages_N, returns_N, config)
            finite("loss", means["loss"], len(steps) + 1)
            approx_kl = means.pop("approx_kl")
            if approx_kl > config.stop_kl:
                break
            norm = model.step(config.max_grad_norm, len(steps) + 1)
            steps.append({**means, "grad_norm": norm})
    metrics: dict[str, float | None] = {
        "reward": old.mean_score,
        "kl": old.kl * len(episodes) / sum(old.lengths),
        "kl_command": old.kl,
        "kl_coef": coefficient,
        "explained_variance": old.explained_variance(returns_N),
        "examples": float(len(episodes)),
        "steps": float(len(steps)),
        "approx_kl": approx_kl,
    }
    for name in steps[0]:
        metrics[name] = math.fsum(step[name] for step in steps) / len(steps)
    return {f"train/{name}": value for name, value in metrics.items()}


def minibatches_of(count: int, config: Config, epoch: int, *stream_parts: object) -> list[list[list[int]]]:
    """The minibatches of an epoch, in random order: lists of forward passes, which are lists of episodes."""
    order = list(range(count))
    stream("order", epoch, *stream_parts).shuffle(order)
    micro_batch = config.micro_batch or config.batch_size
    return [_parts(minibatch, micro_batch) for minibatch in _parts(order, config.batch_size)]


def _parts(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def main(config: Config) -> int:
    """Runs PPO, or resumes it, and prints the table of cycles and the run's folder."""
    from agents.evaluation.heldout import HeldOut
    from agents.training.actor_critic import ActorCritic, episodes_of, mean_score
    from agents.training.loop import Loop
    from agents.training.session import open_session
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth

    with open_session("ppo", config, evaluation=HeldOut, truth=Truth, effects=effects_of) as session:
        with Loop(config, session) as loop:
            model = ActorCritic(session.policy, config.lr, config.temperature, config.seed, loop.restored)
            loop.save = model.save
            for cycle in loop.cycles():
                batch = loop.collect("before")
                episodes = episodes_of(session.policy, batch.rollouts, config.cut_score)
                coefficient = loop.memory.get("kl_coef", config.kl_coef)
                trained: dict[str, float | None] = {"train/examples": 0.0}
                with loop.training():
                    if episodes:
                        if "kl_coef" not in loop.memory and config.reward_scaling == "none":
                            model.start_values_at(mean_score(episodes))  # before the first update
                        stream_parts = (config.seed, cycle, "train")
                        trained = train_on_episodes(model, episodes, config, coefficient, *stream_parts)
                        kl = trained["train/kl_command"] or 0.0
                        loop.memory["kl_coef"] = adapted(coefficient, kl, config.kl_target, config.kl_rate)
                    else:
                        loop.line("no candidate had a score, so nothing was trained")
                loop.finish(batch, trained)
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
