"""What GRPO and RLOO share: one of TRL's online trainers on our policy, tasks, reward and checkpoints, a cycle at a time.

TRL's trainer is made once and its `train` called again each cycle, on that cycle's tasks: it writes tasks x candidates, has them scored
by our reward through `reward_funcs`, and takes its steps. Here the candidates are taken down as any other trainer's, and whatever TRL
changes on the model besides the adapter is undone. TRL's own logs, checkpoints, seeds and evaluation are not used.

- TRL writes at --temperature with nothing cut off (top_p 1, top_k 0), in the template that evaluation uses. A completion ends with a token
  that has a line feed in it, or with the end-of-sequence token; this last token is trained, as it was written. So a model that begins
  with an empty line has written an empty command, where our own generation would wait for the next line.
- A candidate that was cut counts among the scores of its task, and none of its tokens is trained, nor held to the base. One on which the
  reward abstained counts nowhere.
- The reference of the KL penalty is the base, the adapter turned off, whatever adapter the run began with.
- Every cycle begins with torch's randomness reseeded and with the optimizer's moments restored, so a resumed run gives the same bytes.
  What some options of TRL keep besides (`use_adaptive_entropy`) is not in the checkpoint, and vLLM draws random numbers of its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import math
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import yaml

from agents.training.config import TrainConfig, TrainingError
from envs.messages import did_you_mean, one_line
from envs.types import InputError

if TYPE_CHECKING:
    import torch

    from agents.policy.policy import Policy
    from agents.training.rollouts import Batch
    from agents.training.session import Session
    from envs.types import Task

# TRL's name -> ours. Its scores and lengths are logged from the rollouts, as for every trainer.
METRICS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "clip_ratio/region_mean": "train/clip_fraction",
    "reward_std": "train/reward_std",
    "frac_reward_zero_std": "train/frac_reward_zero_std",
    "sampling/sampling_logp_difference/mean": "train/sampling_logp_difference",  # vLLM's log-probabilities against the model's
    "sampling/importance_sampling_ratio/mean": "train/importance_sampling_ratio",
}
FLAGS = {
    "beta": "--beta",
    "epsilon": "--clip",
    "num_iterations": "--epochs",
    "learning_rate": "--lr",
    "temperature": "--temperature",
    "max_completion_length": "--max-new-tokens",
    "num_generations": "--candidates",
    "generation_batch_size": "--tasks and --candidates",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--micro-batch",
    "num_train_epochs": "--cycles",
    "seed": "--seed",
    "output_dir": "--output",
}
# Ours alone: a run is logged, evaluated and saved by `Loop`, and its optimizer is AdamW at a constant rate.
FIXED: dict[str, Any] = {
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "shuffle_dataset": False,
    "remove_unused_columns": False,
    "dataloader_num_workers": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
}
# Better for most, and open to --trl.
DEFAULTS: dict[str, Any] = {
    "bf16": False,  # the policy trains in the precision that it generates in
    "gradient_checkpointing": False,
    "mask_truncated_completions": True,
    "dataloader_pin_memory": False,
    "top_p": 1.0,
    "top_k": 0,
}
# Of TRL's too, but the run's own optimizer, model and folder leave nothing for these to do.
USELESS = [
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_args",
    "lr_scheduler_kwargs",
    "model_init_kwargs",
    "resume_from_checkpoint",
    "eval_on_start",
    "num_generations_eval",
    "load_best_model_at_end",
    "log_completions",
    "push_to_hub",
    "run_name",
    "do_train",
    "do_eval",
    "do_predict",
]
NOTHING = "no task has whole candidates that scored differently, so no score taught anything: raise --temperature or --max-new-tokens"
LOGGERS = ("trl", "transformers", "accelerate", "peft")


def import_trl(name: str) -> Any:
    """A class of TRL by its name; InputError, one line, where TRL cannot be imported."""
    try:
        import trl

        return getattr(trl, name)
    except ImportError as error:
        raise InputError(
            f"{name.removesuffix('Config')} is TRL's, which cannot be imported ({error}): pip install '.[trl]'"
        ) from None


def trl_arguments(
    name: str, config: TrainConfig, micro_batch: int | None, options: Sequence[str], **own: Any
) -> Any:
    """TRL's configuration for a run, and with it the check of `--trl`. Needs no model.

    Args:
        name: `GRPOConfig` or `RLOOConfig`.
        micro_batch: candidates in a forward pass; None for a whole step's.
        options: `--trl`, `key=value` each.
        own: what the algorithm sets itself, under TRL's names.

    Raises:
        InputError: TRL is missing, or one of these is wrong; one line.
    """
    import torch

    config_type = import_trl(name)
    batch = step_size(config)
    micro = batch if micro_batch is None else micro_batch
    if batch % micro:
        raise InputError(f"--micro-batch {micro}: must divide the {batch} candidates of a training step")
    values: dict[str, Any] = {
        "output_dir": str(config.output),
        "learning_rate": config.lr,
        "temperature": config.temperature,
        "max_completion_length": config.max_new_tokens,
        "num_generations": config.candidates,
        "generation_batch_size": config.tasks * config.candidates,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "num_train_epochs": 1,  # of one cycle's tasks
        "seed": config.seed % 2**32,
        "use_cpu": not torch.cuda.is_available(),
        **own,
    }
    known = [field.name for field in fields(config_type) if field.init]
    extra = read_options(
        options,
        known,
        {**dict.fromkeys([*values, *FIXED, *USELESS, "max_steps", "steps_per_generation"], ""), **FLAGS},
    )
    if extra.get("use_vllm") and find_spec("vllm") is None:
        raise InputError("--trl use_vllm: vLLM is not installed: pip install 'trl[vllm]', or leave it out")
    try:
        with quiet():
            arguments = config_type(**{**DEFAULTS, **FIXED, **values, **extra})
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise InputError(f"--trl: TRL says: {one_line(error)}") from None
    arguments._n_gpu = 1  # the policy is on one, however many there are
    return arguments


def read_options(options: Sequence[str], known: Sequence[str], taken: Mapping[str, str]) -> dict[str, Any]:
    """`key=value` each, the value as YAML has it (`true`, `0.5`, `{a: 1}`) -> a mapping.

    Args:
        known: TRL's keys.
        taken: those that this command sets, with the flag that sets them, or "".

    Raises:
        InputError: a key that is unknown, set already or set twice, or a value that is not YAML.
    """
    read: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"--trl {option}: write key=value")
        if key not in known:
            raise InputError(
                f"--trl {option}: TRL has no option {key}: {did_you_mean(key, known, 'see its documentation')}"
            )
        if key in taken:
            raise InputError(
                f"--trl {option}: "
                + (f"use {taken[key]}" if taken[key] else "is set by this command: leave it out")
            )
        if key in read:
            raise InputError(f"--trl {option}: {key} is given twice: leave one out")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(
                f"--trl {option}: {text} is not YAML: put a text with special characters in quotes"
            ) from None
        with contextlib.suppress(ValueError):
            value = float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a text
        read[key] = value
    return read


def step_size(config: TrainConfig) -> int:
    """Candidates in a training step: of the divisors of tasks x candidates the one nearest to --batch-size, by their ratio.

    TRL cuts what was generated into steps of equal size.
    """
    total = config.tasks * config.candidates
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    return min(divisors, key=lambda size: (abs(math.log(size / config.batch_size)), size))


def step_line(config: TrainConfig, epochs: int) -> str:
    """For the user: the steps of a cycle, and where --batch-size could not be kept."""
    size, total = step_size(config), config.tasks * config.candidates
    other = (
        ""
        if size == config.batch_size
        else f" (nearest to --batch-size {config.batch_size} among the divisors of {total})"
    )
    return f"{epochs * total // size} steps a cycle, {size} candidates in each{other}"


def train(name: str, config: TrainConfig, session: Session, arguments: Any) -> int:
    """The cycles of a run with one of TRL's online trainers, by its name, and with what `trl_arguments` gave."""
    from agents.training.loop import Loop
    from agents.training.update import adamw, save_optimizer

    with Loop(config, session) as loop:
        optimizer = adamw(session.policy.trainable(), config.lr, loop.restored)
        loop.save = functools.partial(save_optimizer, optimizer)
        online = Online(import_trl(name), arguments, config, session, optimizer)
        for cycle in loop.cycles():
            with loop.training():
                batch, trained = online.learn(cycle)
            loop.spent({**batch.seconds, "train": -math.fsum(batch.seconds.values())})
            if not informative(batch):
                loop.line(NOTHING)
            loop.finish(batch, trained)
    return loop.end()


class Online:
    """TRL's trainer on a session's policy; `learn` does one cycle.

    Args:
        trainer_type: `GRPOTrainer` or `RLOOTrainer`.
        arguments: from `trl_arguments`.
        optimizer: over the adapter; the run's own, since its moments go into the checkpoint.

    Raises:
        InputError: TRL refuses the model or an option.
    """

    def __init__(
        self,
        trainer_type: Any,
        arguments: Any,
        config: TrainConfig,
        session: Session,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        from datasets import Dataset
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import PrinterCallback

        self.config, self.session, self.optimizer, policy = config, session, optimizer, session.policy
        self._cycle = 0
        self._tasks: list[Task] = []
        self._began = 0.0
        self._batch: Batch | None = None
        # TRL would tell the hub that it runs.
        silent = type(trainer_type.__name__, (trainer_type,), {"_send_telemetry": lambda self: None})
        if arguments.use_vllm:  # what vLLM writes ends where what transformers writes ends
            arguments.generation_kwargs = {
                "stop_token_ids": sorted(policy.ends),
                **(arguments.generation_kwargs or {}),
            }
        values = [parameter.data for parameter in policy.trainable()]
        try:
            with contained(policy):
                policy.model.generation_config.eos_token_id = sorted(policy.ends)
                self.trainer = silent(
                    policy.model,
                    reward_funcs=self._score,
                    args=arguments,
                    train_dataset=Dataset.from_list([{"prompt": ""}]),  # `learn` gives each cycle's
                    processing_class=copy.deepcopy(policy.tokenizer),
                    optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
                )
        except (ValueError, NotImplementedError, ImportError) as error:
            raise InputError(f"--trl: TRL says: {one_line(error)}") from None
        for parameter, value in zip(policy.trainable(), values, strict=True):
            parameter.data = (
                value  # TRL makes the adapter of a 4-bit model bfloat16, in which small steps are lost
            )
        self.trainer.remove_callback(PrinterCallback)

    def learn(self, cycle: int) -> tuple[Batch, dict[str, float | None]]:
        """Draws a cycle's tasks, lets TRL write, score and train -> (the candidates, `train/*`).

        Returns:
            `train/loss`, `train/grad_norm`, and of `METRICS` what TRL logged: means over the steps; `train/steps`. KL and entropy are at
            the sampling temperature, in nats a token. A batch that is not `informative` has nothing to teach but the KL penalty.

        Raises:
            TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change though scores differed.
        """
        from datasets import Dataset

        from agents.training.update import updating

        policy, config = self.session.policy, self.config
        self._cycle, self._batch, self._began = cycle, None, time.perf_counter()
        drawn = self.session.source.tasks(config.tasks, config.seed, cycle, "before")
        self._tasks = list(
            itertools.islice(itertools.cycle(drawn), config.tasks)
        )  # a model may propose fewer, TRL takes no fewer
        self.trainer.train_dataset = Dataset.from_list([_row(policy, task) for task in self._tasks])
        trained: dict[str, float | None] = {}
        try:
            with updating(policy, config.lr, config.seed, cycle, "train"), contained(policy):
                self.trainer._last_loaded_step = (
                    -1
                )  # steps count from 0 each cycle, so TRL would take vLLM's weights for the newest
                self._train()
                trained = means(self.trainer.state.log_history)
        except TrainingError:
            if self._batch is None or informative(self._batch) or not trained:
                raise
        if self._batch is None:
            raise TrainingError(
                "TRL trained on candidates of an earlier cycle: is this version of TRL one that pyproject.toml allows?"
            )
        return self._batch, trained

    def _train(self) -> None:
        """TRL's own, which looks at some options only now."""
        try:
            self.trainer.train()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            given = self.config.trl  # type: ignore[attr-defined]
            if not given:
                raise
            why = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"--trl {' '.join(given)}: TRL says: {why}") from error

    def _score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any],
        **columns: Any,
    ) -> list[float | None]:
        """The reward function that TRL calls: N rows, the candidates of a task one after the other."""
        from agents.training.rollouts import Batch, Rollout
        from envs.prompts import forward_prompt
        from envs.streams import seed_of
        from rewards.trl import score_rows

        started = time.perf_counter()
        policy, group = self.session.policy, self.config.candidates
        asked = policy.prompt_ids([forward_prompt(task) for task in self._tasks])
        bare = [policy.completion(list(ids), [0.0] * len(ids)) for ids in completion_ids]
        pairs = [(asked[row // group], completion.token_ids) for row, completion in enumerate(bare)]
        written = [  # what ended for TRL has ended, an empty line included
            replace(completion, logprobs=tuple(logprobs), truncated=not ids or ids[-1] not in policy.ends)
            for completion, ids, logprobs in zip(
                bare, completion_ids, policy.logprobs_of_ids(pairs), strict=True
            )
        ]
        seed = seed_of(self.config.seed, self._cycle, "before", "reward")
        scores = score_rows(self.session.reward, [completion.text for completion in written], columns, seed)
        rollouts = [
            Rollout(self._tasks[row // group], completion, score)
            for row, (completion, score) in enumerate(zip(written, scores, strict=True))
        ]
        groups = [rollouts[start : start + group] for start in range(0, len(rollouts), group)]
        seconds = {"generate": started - self._began, "reward": time.perf_counter() - started}
        self._batch = Batch(groups, self.session.source.dropped(), seconds)
        return [score.value for score in scores]


def informative(batch: Batch) -> bool:
    """Whether there is a task whose candidates scored differently, and among them one that was not cut: those have no token in the loss."""
    for group in batch.groups:
        scored = [rollout for rollout in group if rollout.score.value is not None]
        if len({rollout.score.value for rollout in scored}) > 1 and not all(
            rollout.completion.truncated for rollout in scored
        ):
            return True
    return False


def means(history: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """TRL's log of one cycle's steps -> `train/*`; TrainingError where a loss or a gradient is not finite."""
    from agents.training.update import finite

    steps = [row for row in history if "loss" in row]
    for number, row in enumerate(steps, 1):
        finite("loss", float(row["loss"] or 0.0), number)
        finite("gradient", float(row["grad_norm"] or 0.0), number)
    found: dict[str, float | None] = {}
    for its, ours in METRICS.items():
        values = [value for row in steps if (value := row.get(its)) is not None and math.isfinite(value)]
        if values:
            found[ours] = math.fsum(values) / len(values)
    return {**found, "train/steps": float(len(steps))}


@contextlib.contextmanager
def contained(policy: Policy) -> Iterator[None]:
    """After it the model is as before, its adapter's weights aside, and so are all global random states.

    TRL makes the model's configurations agree with the tokenizer, adds a frozen copy of the adapter as a reference, and seeds whatever
    can be seeded. Without that copy it takes the base, the adapter turned off.
    """
    import numpy as np
    import torch
    from transformers import GenerationConfig

    model, special = policy.model, ("pad_token_id", "bos_token_id", "eos_token_id")
    before = {name: getattr(model.config, name, None) for name in special}
    python, numpy = random.getstate(), np.random.get_state()
    checkpointed = policy.checkpointing
    try:
        with quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
            model.set_adapter("default")
        if policy.checkpointing and not checkpointed:
            model.gradient_checkpointing_disable()
        model.generation_config = GenerationConfig()  # type: ignore[assignment]
        for name, value in before.items():
            setattr(model.config, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TRL and of what it stands on: what the user must know is said in our own lines."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _row(policy: Policy, task: Task) -> dict[str, Any]:
    """A task for TRL, so that it reads the tokens of `Policy.prompt_ids`."""
    from envs.prompts import forward_prompt
    from rewards.trl import task_row

    return (
        task_row(task)
        if policy.tokenizer.chat_template
        else {**task_row(task), "prompt": forward_prompt(task) + "\n"}
    )
