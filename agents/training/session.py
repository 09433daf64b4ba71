"""What every trainer starts from: the policy, the source of tasks, the reward, the evaluation and the run folder, made from its config."""

from __future__ import annotations

import os
import pkgutil
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.policy.model import Lora, Policy, load_policy
from agents.training.config import TrainConfig
from agents.training.run import Run, new_name
from envs.source import Source, make_source
from envs.types import InputError, Reward
from rewards import make_reward

# The evaluation knows what is right, so no training module imports it: it is named here, made when a run starts, and called through
# a narrow door. Training hands it the policy and logs the numbers that come back.
EVALUATION = "agents.evaluate:HeldOut"
POOL = 200  # task texts by which the similarity reward finds its scale


@dataclass
class Session:
    """A run under way. `state`: what the last checkpoint kept, empty for a new run."""

    policy: Policy
    source: Source
    reward: Reward
    evaluate: Callable[..., dict[str, float | None]]
    run: Run
    state: Mapping[str, Any]


def open_session(agent: str, config: TrainConfig) -> Session:
    """Loads everything, after all input was checked, and creates the run folder or goes back to its last checkpoint.

    Raises:
        InputError: what is wrong with the configuration, in one line.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluation = pkgutil.resolve_name(EVALUATION)(
        config.domain, config.eval_tasks, config.eval_samples, config.temperature, config.max_new_tokens
    )
    if config.task_source != "model":  # a mistake in the user's file should not wait for a model to load
        make_source(config.task_source, config.domain, exclude=evaluation.texts)
    if config.resume:
        run, _ = Run.open(Path(config.resume))
    else:
        name = config.name or new_name(config.domain, config.reward, config.seed)
        run = Run.create(Path(config.output or f"runs/{agent}") / name, asdict(config))
    try:
        return _load(config, evaluation, run)
    except InputError:
        run.close()
        if not config.resume:
            shutil.rmtree(run.folder)  # nothing was started
        raise


def _load(config: TrainConfig, evaluation: Any, run: Run) -> Session:
    restored = run.restore() if config.resume else None
    policy = load_policy(
        config.model or "embedded",
        adapter=str(restored[1]) if restored else config.adapter,
        lora=Lora(config.lora_r, config.lora_alpha, config.lora_dropout),
        load_in_4bit=config.load_in_4bit,
        seed=config.seed,
    )
    source = make_source(config.task_source, config.domain, policy, evaluation.texts)
    pool: list[str] = []
    if config.reward == "similarity":
        with policy.adapter("off"):  # tasks that the model proposes must not depend on when the run was resumed
            pool = [task.text for task in source.tasks(POOL, config.seed, "pool")]
    reward = make_reward(
        config.reward,
        policy,
        pool,
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=config.embedder,
    )
    for note in run.notes:
        print(note, flush=True)
    return Session(policy, source, reward, evaluation, run, restored[0] if restored else {})
