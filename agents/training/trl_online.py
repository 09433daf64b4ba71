"""GRPO and RLOO: one of TRL's online trainers on our policy, tasks, reward and checkpoints.

TRL's trainer is made once, and its `train` is called again in each cycle, on that cycle's tasks. It
writes tasks x candidates, calls back `Online._score` for their rewards, and takes its steps. The
candidates are recorded as for any other trainer, and whatever TRL changes on the model apart from the
adapter is undone. TRL's own logs, checkpoints, seeds and evaluation are not used.

- TRL writes at --temperature without any cut (top_p 1, top_k 0), after the tokens of our own prompts. The
  token that ends an answer is trained, as it was written. What is scored is the command in the answer. A
  model that answers in one line ends it with any token that has a line feed in it: if it begins with an
  empty line it has written an empty command, where our own generation would wait for the next line.
- A truncated candidate counts among the scores of its task, but none of its tokens is trained or held to
  the base.
- A candidate on which the reward abstains counts nowhere. Under an unbounded reward that includes closed
  gates: they earn no advantage, positive or negative. A floor in their place would have to come from the
  batch, so that a score would depend on the other candidates, and the reward that is logged would not be
  the one that is trained.
- The reference of the KL penalty is the base model, the adapter turned off, whatever adapter the run
  began with.
- Every cycle reseeds torch and restores the optimizer's moments, so a resumed run writes the same bytes.
  What some options of TRL keep (`use_adaptive_entropy`) is not in the checkpoint, and vLLM draws random
  numbers of its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback

from agents.cli.display import say
from agents.policy.seeds import seeded
from agents.training.config import TrainingError
from agents.training.loop import Loop
from agents.training.rollouts import Batch, scored
from agents.training.session import Evaluation, Session, open_session
from agents.training.trl_config import OnlineConfig
from agents.training.trl_policy import contained, logged_steps, precise
from agents.training.update import (
    adamw,
    divisor,
    fitted,
    must_have_changed,
    save_optimizer,
    training_mode,
)
from envs.messages import one_line
from envs.prompts import forward_prompt
from envs.streams import seed_of
from envs.types import Completion, InputError, Prompt, Reward, Task
from rewards.base import Effects
from rewards.registry import shown
from rewards.trl import columns_of

# TRL's name -> ours. Its scores and lengths are logged from the rollouts, as for every trainer.
METRICS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "clip_ratio/region_mean": "train/clip_fraction",
    "reward_std": "train/reward_std",
    "frac_reward_zero_std": "train/frac_reward_zero_std",
    # vLLM's log-probabilities against the model's:
    "sampling/sampling_logp_difference/mean": "train/sampling_logp_difference",
    "sampling/importance_sampling_ratio/mean": "train/importance_sampling_ratio",
}
NOTHING = (
    "all candidates of every task got the same score or were truncated, so the reward taught nothing: "
    "raise --temperature or --max-new-tokens"
)


def run(
    config: OnlineConfig,
    *,
    evaluation: Callable[..., Evaluation],
    truth: Callable[[], Reward],
    effects: Effects,
) -> int:
    """Runs the cycles, or resumes them, and prints the table of cycles and the run's folder.

    Args:
        evaluation, truth, effects: as in `open_session`.
    """
    arguments = config.arguments()
    say(f"reward: {shown(config.reward)}, {config.steps_in_words}, KL weight {config.beta:g}")
    agent = config.algorithm.lower()
    with open_session(agent, config, evaluation=evaluation, truth=truth, effects=effects) as session:
        with Loop(config, session) as loop:
            online = Online(config, arguments, session, loop.restored)
            loop.save = online.save
            for cycle in loop.cycles():
                with loop.training():
                    batch, trained = online.train_on_tasks(cycle)
                    loop.spent(batch.seconds)
                if not informative(batch):
                    loop.line(NOTHING)
                loop.finish(batch, trained)
        return loop.end()


class Online:
    """TRL's trainer on a session's policy; `train_on_tasks` does one cycle.

    Args:
        arguments: from `OnlineConfig.arguments`.
        restored: the folder of the checkpoint that the run resumes from, with the optimizer's moments.

    Raises:
        InputError: TRL refuses the model or an option.
    """

    def __init__(self, config: OnlineConfig, arguments: Any, session: Session, restored: Path | None) -> None:
        self.config, self.session = config, session
        self.optimizer = adamw(session.policy.trainable(), config.lr, restored)
        self.trainer = self._make_trainer(arguments)
        # Of the cycle in progress: what `train_on_tasks` hands to `_score`, and the batch that comes back
        # from it.
        self._cycle = 0
        self._began = 0.0
        self._tasks: list[Task] = []
        self._batch: Batch | None = None

    def save(self, folder: Path) -> None:
        """Writes the optimizer's moments into a checkpoint's folder."""
        save_optimizer(self.optimizer, folder)

    def train_on_tasks(self, cycle: int) -> tuple[Batch, dict[str, float | None]]:
        """Draws a cycle's tasks, lets TRL write, score and train -> (the candidates, `train/*`).

        Returns:
            `train/loss`, `train/grad_norm`, those of `METRICS` that TRL logged, each a mean over the
            steps, and `train/steps`. KL and entropy are at the sampling temperature, in nats per token.
            From a batch that is not `informative` only the KL penalty was learnt.

        Raises:
            TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change
                though scores differed.
        """
        policy, config = self.session.policy, self.config
        self._cycle, self._began, self._batch = cycle, time.perf_counter(), None
        drawn = self.session.source.tasks(config.tasks, config.seed, cycle, "before")
        # A model may propose fewer tasks; TRL takes no fewer.
        self._tasks = list(itertools.islice(itertools.cycle(drawn), config.tasks))
        rows = [columns_of(task) | {"prompt": task.id} for task in self._tasks]
        self.trainer.train_dataset = Dataset.from_list(rows)
        before = policy.adapter_hash()

        def part(size: int) -> int:
            return divisor(config.step_size, min(size, config.micro_batch or config.step_size))

        def update(size: int) -> None:
            self._begin(size)
            with training_mode(policy, config.seed, cycle, "train"), contained(policy):
                self._train()

        fitted(policy, policy.trainable(), self.optimizer, part, update)
        trained = step_means(self.trainer.state.log_history)
        batch = self._batch
        if batch is None:
            raise TrainingError(
                "TRL did not ask for scores in this cycle: use a version that pyproject.toml allows"
            )
        if informative(batch):
            must_have_changed(policy, before, config.lr)
        return batch, trained

    def _begin(self, size: int) -> None:
        """Makes TRL's trainer ready for a cycle, and forgets one that memory did not suffice for.

        Args:
            size: candidates per forward pass.
        """
        trainer, config = self.trainer, self.config
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = size
        trainer.args.gradient_accumulation_steps = config.step_size // size
        trainer.args.steps_per_generation = config.tasks * config.candidates // size
        trainer._step, trainer._buffered_inputs = 0, None
        trainer._metrics["train"].clear()
        # Steps count from 0 in each cycle, so TRL would believe that vLLM has the newest weights.
        trainer._last_loaded_step = -1

    def _make_trainer(self, arguments: Any) -> Any:
        policy = self.session.policy
        if arguments.use_vllm:  # vLLM's completions must end where those of transformers end
            ends = {"stop_token_ids": sorted(policy.ends)}
            arguments.generation_kwargs = {**ends, **(arguments.generation_kwargs or {})}
        trainer_type = getattr(trl, f"{self.config.algorithm}Trainer")
        # Without its own methods TRL would tell the Hub that it runs, and render prompts in its own way.
        own = {"_send_telemetry": _send_nothing, "_tokenize_prompts": self._tokenize}
        if not arguments.use_vllm:
            own["_generate_single_turn"] = self._in_parts(trainer_type._generate_single_turn)
        silent = type(trainer_type.__name__, (trainer_type,), own)
        try:
            with contained(policy), precise(policy):
                policy.model.generation_config.eos_token_id = sorted(policy.ends)
                trainer = silent(
                    policy.model,
                    reward_funcs=self._score,
                    args=arguments,
                    train_dataset=Dataset.from_list([{"prompt": ""}]),  # each cycle has its own
                    processing_class=copy.deepcopy(policy.tokenizer),
                    optimizers=(self.optimizer, LambdaLR(self.optimizer, lambda step: 1.0)),
                )
        except (ValueError, NotImplementedError, ImportError) as error:
            raise InputError(f"--trl: TRL says: {one_line(error)}") from None
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _in_parts(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """TRL's method that writes, in parts once memory has run out."""
        writing = self.session.policy.writing

        def written(trainer: Any, prompt_ids: Sequence[list[int]], *more: Any) -> Any:
            def write(batch: Sequence[list[int]], first: int) -> list[list[int]]:
                seed = (self.config.seed, self._cycle, first)
                with seeded("generate", *seed) if writing.tight else contextlib.nullcontext():
                    found = generate(trainer, batch, *more)
                return found[0] if isinstance(found, tuple) else found

            ids = writing.run(prompt_ids, write, whole=True)
            # The other value of GRPO's is None without vLLM.
            return (ids, None) if self.config.algorithm == "GRPO" else ids

        return written

    def _train(self) -> None:
        """TRL's own, which looks at some options only now."""
        try:
            self.trainer.train()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if not self.config.trl:
                raise
            why = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"--trl {' '.join(self.config.trl)}: TRL says: {why}") from error

    def _score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float | None]:
        """The reward function that TRL calls back -> N scores. It leaves the scored candidates in `_batch`.

        Args:
            prompts, completions: texts, not used: the tokens are what was written.
            completion_ids: N rows of tokens, the candidates of a task one after the other.
            columns: not used: they are those of the tasks.
        """
        started = time.perf_counter()
        written_N = iter(self._read(completion_ids))
        written_P_G = [list(itertools.islice(written_N, self.config.candidates)) for _ in self._tasks]
        seed = seed_of(self.config.seed, self._cycle, "before", "reward")
        groups = scored(self.session.reward, self._tasks, written_P_G, seed)
        seconds = {"generate": started - self._began, "reward": time.perf_counter() - started}
        self._batch = Batch(groups, self.session.source.dropped(), seconds)
        return [rollout.score.value for rollout in self._batch.rollouts]

    def _tokenize(self, prompts: Sequence[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """In place of TRL's own: our tokens of the tasks whose ids it knows as prompts."""
        by_id = {task.id: task for task in self._tasks}
        asked = [forward_prompt(by_id[name]) for name in prompts]
        return self.session.policy.prompt_ids(asked), None, {}

    def _read(self, completion_ids: Sequence[Sequence[int]]) -> list[Completion]:
        """TRL's tokens as completions, with log-probabilities. What ended for TRL has ended."""
        policy = self.session.policy
        asked_N: list[Prompt] = []
        for task in self._tasks:
            asked_N += [forward_prompt(task)] * self.config.candidates
        read_N = []
        for prompt, ids in zip(asked_N, completion_ids, strict=True):
            read_N.append(policy.completion(list(ids), [0.0] * len(ids), prompt))
        policy.usage.wrote([len(read.token_ids) for read in read_N])
        prompts_N = policy.prompt_ids(asked_N)
        pairs = [(prompt, read.token_ids) for prompt, read in zip(prompts_N, read_N, strict=True)]
        logprobs_N = policy.logprobs_of_ids(pairs)
        written_N = []
        for read, ids, logprobs in zip(read_N, completion_ids, logprobs_N, strict=True):
            ended = len(ids) > 0 and ids[-1] in policy.ends
            written_N.append(dataclasses.replace(read, logprobs=tuple(logprobs), truncated=not ended))
        return written_N


def informative(batch: Batch) -> bool:
    """Whether the candidates of some task got different scores, and one of them was not truncated.

    Tokens of truncated candidates are not in the loss.
    """
    for group in batch.groups:
        scored = [rollout for rollout in group if rollout.score.value is not None]
        values = {rollout.score.value for rollout in scored}
        if len(values) > 1 and not all(rollout.completion.truncated for rollout in scored):
            return True
    return False


def step_means(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """TRL's log of one cycle -> `train/*`, means over its steps; TrainingError as in `logged_steps`."""
    steps = logged_steps(history)
    found: dict[str, float | None] = {}
    for its, ours in METRICS.items():
        logged = [row[its] for row in steps if row.get(its) is not None]
        values = [value for value in logged if math.isfinite(value)]
        if values:
            found[ours] = math.fsum(values) / len(values)
    found["train/steps"] = float(len(steps))
    return found


def _send_nothing(trainer: Any) -> None:
    pass
