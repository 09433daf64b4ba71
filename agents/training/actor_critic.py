"""PPO's model: a policy with a value head, both in one forward pass, and the optimizer of the two.

- Log-probabilities are those at the sampling temperature, the temperature of the policy that wrote. They
  and the values come from one function, `ActorCritic.forward`, before an update and in it. If the forward
  passes have the same episodes, the results are the same to the last bit.
- Dropout is off. With it, old and new log-probabilities would differ before anything was learnt.
- The value head is one linear layer on the last hidden state, under the same LoRA backbone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.policy.policy import Policy
from agents.policy.score import hidden_states, scalar_head
from agents.training.rollouts import Rollout
from agents.training.update import adamw, clipped_step, save_optimizer, updating
from envs.prompts import forward_prompt

VALUE_HEAD_FILE = "value_head.safetensors"  # next to the adapter in a checkpoint; PEFT does not look at it


@dataclass(frozen=True)
class Episode:
    """A candidate to learn from: token ids of its prompt and of its completion, and its score."""

    prompt: Sequence[int]
    completion: Sequence[int]
    score: float


@dataclass(frozen=True)
class Old:
    """Episodes, and what holds for their N completion tokens before an update, one episode after the other.

    Attributes:
        logprobs_N, values_N: of the policy that is to be updated.
        base_N: log-probabilities under the base model.
    """

    episodes: Sequence[Episode]
    logprobs_N: Tensor
    values_N: Tensor
    base_N: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens in each episode."""
        return [len(episode.completion) for episode in self.episodes]

    @property
    def ends(self) -> list[int]:
        """The position after the last token of each episode."""
        return list(itertools.accumulate(self.lengths))

    @property
    def kl(self) -> float:
        """Mean KL to the base model, in nats per episode, estimated by the log-ratio of what was written."""
        parts = (self.logprobs_N - self.base_N).split(self.lengths)
        return math.fsum(float(part_T.sum()) for part_T in parts) / len(self.episodes)

    @property
    def mean_score(self) -> float:
        """The mean score of the episodes."""
        return mean_score(self.episodes)

    def explained_variance(self, returns_N: Tensor) -> float | None:
        """1 - var(returns - values) / var(returns): 1 for perfect values, 0 for constant ones.

        None for equal returns.
        """
        variance = float(returns_N.var(correction=0))
        if variance == 0:
            return None
        return 1 - float((returns_N - self.values_N).var(correction=0)) / variance

    def tokens_of(self, rows: Sequence[int]) -> list[int]:
        """Positions of the tokens of some episodes."""
        lengths, ends = self.lengths, self.ends
        return [token for row in rows for token in range(ends[row] - lengths[row], ends[row])]


def mean_score(episodes: Sequence[Episode]) -> float:
    """The mean score of some episodes."""
    return math.fsum(episode.score for episode in episodes) / len(episodes)


def episodes_of(policy: Policy, rollouts: Sequence[Rollout], cut_score: float | None) -> list[Episode]:
    """The candidates to learn from: all that have a score, with the tokens that were generated.

    What ends an answer follows each, but for a truncated one, which did not end. That one gets `cut_score`,
    or the lowest score of all if that is lower; without a `cut_score` it is left out.
    """
    scored = [rollout for rollout in rollouts if rollout.score.value is not None]
    scores = [float(rollout.score.value or 0.0) for rollout in scored]
    episodes = []
    prompts = policy.prompt_ids([forward_prompt(rollout.task) for rollout in scored])
    for prompt, rollout, score in zip(prompts, scored, scores, strict=True):
        written = rollout.completion.token_ids
        if not rollout.completion.truncated:
            episodes.append(Episode(prompt, [*written, *policy.end], score))
        elif cut_score is not None and written:
            episodes.append(Episode(prompt, written, min(cut_score, *scores)))
    return episodes


class ActorCritic:
    """A policy, its value head, and their optimizer.

    Args:
        temperature: the sampling temperature of the policy that is trained.
        seed: of the head's first weights.
        restored: the folder of the checkpoint that a run resumes from: head and optimizer are read from it.
    """

    def __init__(
        self, policy: Policy, lr: float, temperature: float, seed: int, restored: Path | None = None
    ) -> None:
        self.policy, self.temperature, self.lr = policy, temperature, lr
        self.head = scalar_head(policy.model, "value head", seed)
        if restored is not None:
            self.head.load_state_dict(load_file(str(restored / VALUE_HEAD_FILE)))
        self.head.to(policy.device)
        self.parameters = [*policy.trainable(), *self.head.parameters()]
        self.optimizer: torch.optim.Optimizer = adamw(self.parameters, lr, restored)

    def save(self, folder: Path) -> None:
        """Writes the value head and the optimizer's moments into a checkpoint's folder."""
        save_file(self.head.state_dict(), str(folder / VALUE_HEAD_FILE))
        save_optimizer(self.optimizer, folder)

    def start_values_at(self, value: float) -> None:
        """Lets a new value head, whose weights are small, begin near a value."""
        torch.nn.init.constant_(self.head.bias, value)

    @contextlib.contextmanager
    def updating(self, *stream_parts: object) -> Iterator[None]:
        """Around an update: `agents.training.update.updating`, without dropout.

        Gradient checkpointing works in training mode alone, so with it only the dropout modules are
        switched off.
        """
        with updating(self.policy, self.lr, *stream_parts):
            checkpointing = self.policy.checkpointing
            for module in self.policy.model.modules():
                if not checkpointing or isinstance(module, torch.nn.Dropout):
                    module.training = False
            yield

    def forward(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
        """One forward pass over the N completion tokens of some episodes.

        It runs in bfloat16 on CUDA, or where the model is kept in bfloat16.

        Returns:
            Log-probability of each token (N,), and entropy of the distribution that it was drawn from
            (N,), at the sampling temperature, in nats; value (N,) of the state before the token.
        """
        policy = self.policy
        if policy.device.type == "cuda":
            half = torch.cuda.is_bf16_supported()
        else:
            half = policy.model.dtype == torch.bfloat16
        pairs = [(episode.prompt, episode.completion) for episode in episodes]
        with (
            hidden_states(policy.model) as hidden,
            torch.autocast(policy.device.type, torch.bfloat16, enabled=half),
        ):
            logits_N_V, tokens_N, mask_B_T = policy.token_logits(pairs)
        logprobs_N_V = (logits_N_V / self.temperature).log_softmax(-1)
        entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
        values_N = self.head(hidden[0][:, :-1][mask_B_T].float())[:, 0]
        return logprobs_N_V.gather(1, tokens_N[:, None])[:, 0], entropy_N, values_N

    def before(self, episodes: Sequence[Episode], passes: Sequence[list[int]]) -> Old:
        """What holds before an update, without gradients.

        Args:
            passes: positions of the episodes in each forward pass, every episode once. The last bits of a
                result depend on them.
        """
        found: dict[int, Tensor] = {}  # episode -> (3, T)
        with torch.no_grad():
            for rows in passes:
                batch = [episodes[row] for row in rows]
                logprobs_N, _, values_N = self.forward(batch)
                with self.policy.adapter("off"):
                    base_N, _, _ = self.forward(batch)
                lengths = [len(episode.completion) for episode in batch]
                parts = torch.stack([logprobs_N, values_N, base_N]).split(lengths, dim=1)
                found |= zip(rows, parts, strict=True)
        in_order = [found[row] for row in range(len(episodes))]
        return Old(episodes, *torch.cat(in_order, dim=1))

    def step(self, max_grad_norm: float, number: int) -> float:
        """Clips the gradients and takes a step -> their norm before; TrainingError if it is not finite."""
        return clipped_step(self.optimizer, self.parameters, max_grad_norm, number)
