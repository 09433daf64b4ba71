"""PPO on a reward without labels, in one file: write, score, estimate advantages with a value head, take clipped steps, again.

    python -m agents.ppo --cycles 10
    python -m agents.ppo --reward likelihood --domain shell --seed 1

A completion is an episode, a token (the end of sequence included) an action. Per token t, with log-probabilities under the policy
that wrote (old), the one that trains (new) and the base with the adapter off (ref), and with values V of the head:

    reward      r_t = -coefficient (log old_t - log ref_t), and at the last token the score besides
    advantage   A_t = sum over k of lambda^k (r_{t+k} + V_{t+k+1} - V_{t+k}); there is no discount
    policy      mean over tokens of max(-W ratio, -W clip(ratio, 1 - c, 1 + c)), with ratio = new / old, W = A whitened over the batch
    value       half the mean of max((V - G)^2, (clip(V, old V - c, old V + c) - G)^2), with the return G = A + old V
    loss        policy + value_coef value - entropy_coef entropy

Sources: Schulman et al. 2017, arXiv:1707.06347 (PPO) and 2016, arXiv:1506.02438 (GAE); Ziegler et al. 2019, arXiv:1909.08593 (KL
penalty and its controller); Huang et al. 2024, arXiv:2403.17031 (what matters in RLHF). After these, decided here:

- Log-probabilities, old, new and ref, are those of the sampling temperature's policy: it is the one that wrote. All of them, and the
  values, come from one function, and the old ones from the minibatches of the first epoch, so the first ratio is exactly 1.
- Dropout is off in all forward passes. Otherwise old and new would differ before anything was learnt.
- The end of a line counts as the end-of-sequence token, even where the model ended it by a line feed: for that last token old is not what
  wrote. A command that was cut has no end: it gets a fixed low score, which `train/reward` counts and `reward/mean` does not.
- The value head is one linear layer on the last hidden state, under the same LoRA backbone; unless rewards are scaled, it starts at the
  mean of the first scores.
- The optimizer and its moments last for the whole run; the learning rate is constant, so that a run can be extended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.training.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from agents.policy.policy import Policy
    from agents.training.rollouts import Rollout
    from agents.training.session import Session

VALUE_HEAD_FILE = "value_head.safetensors"  # beside the adapter in a checkpoint; PEFT does not look at it


@dataclass(frozen=True)
class Config(TrainConfig):
    """PPO: the model learns from the scores of its own commands by clipped policy-gradient steps against a learnt value."""

    lr: float = 2e-4
    """Learning rate of the adapter and the value head. The embedded model has its own default, 1e-3."""
    batch_size: int = 50
    """Candidates in a minibatch, for which one step is taken."""
    micro_batch: int | None = None
    """Candidates in one forward pass; gradients are summed up to the minibatch. By default the whole minibatch: less saves memory."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter, for trainers that go on from this run: PPO itself trains without any."""
    epochs: int = 4
    """Passes over the candidates of a cycle."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation: 1 trusts the returns alone, 0 the value head alone."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move a token's loss."""
    value_clip: float = 0.2
    """How far a value may move from the old one in a cycle, in units of the reward."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of a bonus for entropy."""
    kl_coef: float = 0.05
    """Coefficient of the KL penalty to the base, to begin with."""
    kl_target: float | None = 6.0
    """KL to the base, in nats a command, that the coefficient is adapted to; None keeps the coefficient."""
    kl_rate: float = 0.1
    """How fast it is adapted: in a cycle by a fifth of this at most, so that ten cycles change it by a fifth."""
    stop_kl: float = 0.05
    """Ends a cycle's steps when a minibatch's approximate KL of the new to the old policy, in nats a token, is above this."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    reward_scaling: Literal["none", "scores", "whiten"] = "none"
    """none; scores: less the mean and over the deviation of the cycle's scores; whiten: of all tokens' rewards the distance from
    their mean, over their deviation."""
    cut_score: float | None = 0.0
    """Score of a command that was cut before its end, or the cycle's lowest score where that is less. None leaves such commands out."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("micro_batch", self.micro_batch is None or self.micro_batch >= 1, "must be 1 or more")
        self._require("gae_lambda", 0 <= self.gae_lambda <= 1, "must be in [0, 1]")
        for name in ("clip", "value_clip", "stop_kl", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be above 0")
        for name in ("value_coef", "entropy_coef", "kl_coef"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")
        self._require(
            "kl_target", self.kl_target is None or 0 < self.kl_target < math.inf, "must be above 0, or None"
        )
        self._require("kl_rate", 0 <= self.kl_rate < 1, "must be in [0, 1)")
        self._require(
            "cut_score", self.cut_score is None or math.isfinite(self.cut_score), "must be a number, or None"
        )


@dataclass(frozen=True)
class Episode:
    """A candidate to learn from: token ids of its prompt and of its completion, and its score."""

    prompt: Sequence[int]
    completion: Sequence[int]
    score: float


# ---- the pieces; N tokens are those of a batch's completions, one after the other, T those of one completion


def gae(rewards_T: Sequence[float], values_T: Sequence[float], lam: float) -> list[float]:
    """Advantages [T] of one completion, after whose last token nothing follows, without discount (Schulman et al. 2016, equation 16)."""
    advantages_T = [0.0] * len(rewards_T)
    following = next_value = 0.0
    for step in reversed(range(len(rewards_T))):
        following = rewards_T[step] + next_value - values_T[step] + lam * following
        advantages_T[step], next_value = following, values_T[step]
    return advantages_T


def whiten(values_N: Tensor, shift_mean: bool = True) -> Tensor:
    """Values (N,) of variance 1, and of mean 0 unless `shift_mean` is False; all the same where they are equal."""
    mean = values_N.mean()
    whitened_N = (values_N - mean) * (values_N.var(correction=0) + 1e-8).rsqrt()
    return whitened_N if shift_mean else whitened_N + mean


def policy_loss(new_N: Tensor, old_N: Tensor, advantages_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss of each token (N,) and whether the clipping decides it (N,), from log-probabilities (N,)."""
    ratio_N = (new_N - old_N).exp()
    free_N, clipped_N = -advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    return free_N.maximum(clipped_N), clipped_N > free_N


def value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped squared error of each value (N,), halved, and whether the clipping decides it (N,)."""
    free_N = (values_N - returns_N).square()
    clipped_N = (values_N.clamp(old_N - clip, old_N + clip) - returns_N).square()
    return 0.5 * free_N.maximum(clipped_N), clipped_N > free_N


def approximate_kl(new_N: Tensor, old_N: Tensor) -> Tensor:
    """KL(old || new) of each token (N,), from log-probabilities of what old sampled: ratio - 1 - log ratio, never below 0 (Schulman)."""
    log_ratio_N = new_N - old_N
    return log_ratio_N.exp() - 1 - log_ratio_N


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float | None:
    """1 - var(returns - values) / var(returns): 1 is a perfect value head, 0 no better than a constant; None of equal returns."""
    variance = float(returns_N.var(correction=0))
    return 1 - float((returns_N - values_N).var(correction=0)) / variance if variance > 0 else None


def adapted(coefficient: float, kl: float, target: float | None, rate: float) -> float:
    """The KL coefficient for the next cycle: times 1 + rate * clip(kl / target - 1, -0.2, 0.2) (Ziegler et al. 2019, section 2.2)."""
    return coefficient * (1 + rate * min(max(kl / target - 1, -0.2), 0.2)) if target else coefficient


# ---- the model


def new_value_head(policy: Policy, seed: int, restored: Path | None) -> torch.nn.Linear:
    """A linear layer from the last hidden state to a scalar, small at first; or that of the checkpoint that a run goes on from."""
    import torch
    from safetensors.torch import load_file

    from agents.policy.seeds import seeded

    with seeded("value head", seed), torch.no_grad():
        head = torch.nn.Linear(policy.model.get_output_embeddings().weight.shape[1], 1)
        head.weight.normal_(std=1 / (head.in_features + 1))
        head.bias.zero_()
    if restored is not None:
        head.load_state_dict(load_file(str(restored / VALUE_HEAD_FILE)))
    return head.to(policy.device)


def forward(
    policy: Policy, head: torch.nn.Linear, episodes: Sequence[Episode], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass over the N completion tokens of some episodes, in bfloat16 on CUDA or where the model is kept in it.

    Returns:
        Log-probability of each token (N,) and entropy of the distribution that it was drawn from (N,), at the sampling temperature, in
        nats; value (N,) of what stands before the token.
    """
    import torch

    hidden: list[Tensor] = []
    # What goes into the output embeddings is the last hidden state, in any causal language model.
    hook = policy.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: hidden.append(inputs[0])
    )
    half = (
        torch.cuda.is_bf16_supported()
        if policy.device.type == "cuda"
        else policy.model.dtype == torch.bfloat16
    )
    try:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=half):
            logits_N_V, tokens_N, mask_B_T = policy.token_logits(
                [(episode.prompt, episode.completion) for episode in episodes]
            )
    finally:
        hook.remove()
    logprobs_N_V = (logits_N_V / temperature).log_softmax(-1)
    entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
    values_N = head(hidden[0][:, :-1][mask_B_T].float())[:, 0]
    return logprobs_N_V.gather(1, tokens_N[:, None])[:, 0], entropy_N, values_N


def episodes_of(policy: Policy, rollouts: Sequence[Rollout], cut_score: float | None) -> list[Episode]:
    """The candidates to learn from: those that have a score, with an end of sequence or, where they were cut, with a low score."""
    from envs.prompts import forward_prompt

    scored = [
        (rollout.completion, rollout.task, rollout.score.value)
        for rollout in rollouts
        if rollout.score.value is not None
    ]
    lowest = min((value for _, _, value in scored), default=0.0)
    prompts = policy.prompt_ids([forward_prompt(task) for _, task, _ in scored])
    episodes = []
    for prompt, (completion, _, value) in zip(prompts, scored, strict=True):
        if not completion.truncated:
            episodes.append(Episode(prompt, [*completion.token_ids, policy.tokenizer.eos_token_id], value))
        elif cut_score is not None and completion.token_ids:
            episodes.append(Episode(prompt, completion.token_ids, min(cut_score, lowest)))
    return episodes


# ---- the algorithm


@dataclass(frozen=True)
class Estimates:
    """What the steps of a cycle start from, for each token of each episode: lists of tensors (T,), and the mean KL of an episode."""

    logprobs: list[Tensor]
    values: list[Tensor]
    advantages: list[Tensor]
    returns: list[Tensor]
    kl: float


def estimate(
    policy: Policy,
    head: torch.nn.Linear,
    episodes: Sequence[Episode],
    batches: Sequence[list[int]],
    config: Config,
    coefficient: float,
) -> Estimates:
    """Log-probabilities and values before the first step, and from them and the scores the advantages and returns.

    Args:
        batches: positions of the episodes in each forward pass, every episode once. Last bits of a result depend on them.
        coefficient: of the KL penalty.
    """
    import torch

    lengths = [len(episode.completion) for episode in episodes]
    old: dict[int, Tensor] = {}  # episode -> (3, T): log-probabilities, values, log-probabilities of the base
    with torch.no_grad():
        for rows in batches:
            batch = [episodes[row] for row in rows]
            logprobs_N, _, values_N = forward(policy, head, batch, config.temperature)
            with policy.adapter("off"):
                base_N, _, _ = forward(policy, head, batch, config.temperature)
            old |= zip(
                rows,
                torch.stack([logprobs_N, values_N, base_N]).split([lengths[row] for row in rows], dim=1),
                strict=True,
            )
    logprobs, values, base = zip(*(old[row] for row in range(len(episodes))), strict=True)

    log_ratios = [logprobs_T - base_T for logprobs_T, base_T in zip(logprobs, base, strict=True)]
    rewards = [-coefficient * log_ratio_T for log_ratio_T in log_ratios]
    scores = torch.tensor([episode.score for episode in episodes], device=policy.device)
    for rewards_T, score in zip(
        rewards, whiten(scores) if config.reward_scaling == "scores" else scores, strict=True
    ):
        rewards_T[-1] += score
    if config.reward_scaling == "whiten":
        rewards = list(whiten(torch.cat(rewards), shift_mean=False).split(lengths))
    advantages = [
        torch.tensor(gae(rewards_T.tolist(), values_T.tolist(), config.gae_lambda), device=policy.device)
        for rewards_T, values_T in zip(rewards, values, strict=True)
    ]
    return Estimates(
        list(logprobs),
        list(values),
        list(whiten(torch.cat(advantages)).split(lengths)),
        [advantages_T + values_T for advantages_T, values_T in zip(advantages, values, strict=True)],
        math.fsum(float(log_ratio_T.sum()) for log_ratio_T in log_ratios) / len(episodes),
    )


def update(
    policy: Policy,
    head: torch.nn.Linear,
    optimizer: torch.optim.Optimizer,
    episodes: Sequence[Episode],
    config: Config,
    coefficient: float,
    *stream_parts: object,
) -> dict[str, float | None]:
    """One cycle's update of adapter and value head, of at least one step -> `train/*`.

    Args:
        coefficient: of the KL penalty.
        stream_parts: (seed, cycle, purpose), from which the order of the episodes derives.

    Returns:
        Of the batch, before the first step: `reward`, the mean score that is learnt from; `kl` to the base, in nats a token, and
        `kl_command`, in nats a command; `kl_coef`, `explained_variance`, `examples`. Of the steps: their mean `loss`, `policy_loss`,
        `value_loss`, `entropy`, `clip_fraction`, `value_clip_fraction` and `grad_norm`; `steps`; `approx_kl` of the last minibatch that
        was looked at, in nats a token.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    import torch

    from agents.training.update import finite, updating
    from envs.streams import stream

    micro = config.micro_batch or config.batch_size
    minibatches: list[
        list[list[int]]
    ] = []  # each of one step, as the forward passes that its gradient is summed over
    for epoch in range(config.epochs):
        order = list(range(len(episodes)))
        stream("order", epoch, *stream_parts).shuffle(order)
        minibatches += [_parts(rows, micro) for rows in _parts(order, config.batch_size)]
    first_epoch = minibatches[: len(minibatches) // config.epochs]

    with updating(policy, config.lr, *stream_parts):
        checkpointing = policy.checkpointing
        for (
            module
        ) in policy.model.modules():  # no dropout; gradient checkpointing works in training mode alone
            if not checkpointing or isinstance(module, torch.nn.Dropout):
                module.training = False
        old = estimate(
            policy,
            head,
            episodes,
            [rows for minibatch in first_epoch for rows in minibatch],
            config,
            coefficient,
        )
        parameters = [*policy.trainable(), *head.parameters()]
        steps: list[dict[str, float]] = []
        for minibatch in minibatches:
            optimizer.zero_grad(set_to_none=True)
            tokens = sum(len(episodes[row].completion) for rows in minibatch for row in rows)
            means: dict[str, float] = {}
            for rows in minibatch:
                old_N, old_values_N, advantages_N, returns_N = (
                    torch.cat([values[row] for row in rows])
                    for values in (old.logprobs, old.values, old.advantages, old.returns)
                )
                new_N, entropy_N, values_N = forward(
                    policy, head, [episodes[row] for row in rows], config.temperature
                )
                policy_N, clipped_N = policy_loss(new_N, old_N, advantages_N, config.clip)
                value_N, value_clipped_N = value_loss(values_N, old_values_N, returns_N, config.value_clip)
                loss_N = policy_N + config.value_coef * value_N - config.entropy_coef * entropy_N
                (loss_N.sum() / tokens).backward()
                measured = {
                    "loss": loss_N,
                    "policy_loss": policy_N,
                    "value_loss": value_N,
                    "entropy": entropy_N,
                    "clip_fraction": clipped_N,
                    "value_clip_fraction": value_clipped_N,
                    "approx_kl": approximate_kl(new_N.detach(), old_N),
                }
                means = {
                    name: means.get(name, 0.0) + part_N.sum().item() / tokens
                    for name, part_N in measured.items()
                }
            finite("loss", means["loss"], len(steps) + 1)
            approx_kl = means.pop("approx_kl")
            if approx_kl > config.stop_kl:
                break
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
            steps.append({**means, "grad_norm": finite("gradient", norm, len(steps) + 1)})
            optimizer.step()

    of_batch = {
        "reward": math.fsum(episode.score for episode in episodes) / len(episodes),
        "kl": old.kl * len(episodes) / sum(len(episode.completion) for episode in episodes),
        "kl_command": old.kl,
        "kl_coef": coefficient,
        "explained_variance": explained_variance(torch.cat(old.values), torch.cat(old.returns)),
        "approx_kl": approx_kl,
        "steps": float(len(steps)),
        "examples": float(len(episodes)),
    }
    of_steps = {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {f"train/{name}": value for name, value in {**of_steps, **of_batch}.items()}


def _parts(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def main(config: Config) -> int:
    """Runs PPO, or goes on with it, and prints the table of cycles and the run's folder."""
    from agents.training.session import open_session
    from rewards.labelled import Truth

    session = open_session("ppo", config, truth=Truth)
    try:
        return train(config, session)
    finally:
        session.run.close()


def train(config: Config, session: Session) -> int:
    """The loop itself."""
    import torch
    from safetensors.torch import save_file

    from agents.training.loop import Loop
    from agents.training.update import adamw, save_optimizer

    policy = session.policy
    with Loop(config, session) as loop:
        head = new_value_head(policy, config.seed, loop.restored)
        optimizer = adamw([*policy.trainable(), *head.parameters()], config.lr, loop.restored)

        def save(folder: Path) -> None:
            save_file(head.state_dict(), str(folder / VALUE_HEAD_FILE))
            save_optimizer(optimizer, folder)

        loop.save = save
        for cycle in loop.cycles():
            batch = loop.collect("before")
            episodes = episodes_of(policy, batch.rollouts, config.cut_score)
            coefficient = loop.memory.get("kl_coef", config.kl_coef)
            trained: dict[str, float | None] = {"train/examples": 0.0}
            with loop.training():
                if episodes:
                    if "kl_coef" not in loop.memory and config.reward_scaling == "none":  # the first update
                        torch.nn.init.constant_(
                            head.bias, math.fsum(episode.score for episode in episodes) / len(episodes)
                        )
                    trained = update(
                        policy, head, optimizer, episodes, config, coefficient, config.seed, cycle, "train"
                    )
                    loop.memory["kl_coef"] = adapted(
                        coefficient, trained["train/kl_command"] or 0.0, config.kl_target, config.kl_rate
                    )
                else:
                    loop.line("no candidate had a score, so nothing was trained")
            loop.finish(batch, trained)
    return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
