"""What every trainer starts from: the policy, the source of tasks, the reward, the evaluation and the run folder, made from its config."""

from __future__ import annotations

import os
import pkgutil
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.training.config import TrainConfig
from agents.training.monitor import PROBES
from agents.training.run import Run, new_name
from envs.domain import domain_names
from envs.schema import EMBEDDED
from envs.source import Source, make_source
from envs.types import InputError, Reward, Task
from rewards.blend import is_blend
from rewards.registry import POOL, make_reward, reward_info

# The evaluation knows what is right, so no training module imports it: it is named here, made when a run starts, and called through
# a narrow door. Training hands it the policy and logs the numbers that come back.
EVALUATION = "agents.evaluation.heldout:HeldOut"


class Evaluation(Protocol):
    """What a trainer may know of the evaluation: numbers to log after a cycle, those of all held-out tasks, a line for the user."""

    note: str

    def __call__(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """A fixed subset of the held-out tasks."""
        ...

    def whole(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """All of them, with intervals."""
        ...


@dataclass
class Session:
    """A run under way.

    Attributes:
        agent: the trainer's name.
        state: what the last checkpoint kept, empty for a new run.
        checkpoint: its folder.
        probes: the tasks of `--keep best`.
    """

    agent: str
    policy: Policy
    source: Source
    reward: Reward
    evaluate: Evaluation
    run: Run
    state: Mapping[str, Any]
    checkpoint: Path | None
    probes: list[Task]


def open_session(agent: str, config: TrainConfig, truth: Callable[[], Reward] | None = None) -> Session:
    """Loads everything, after all input was checked, and creates the run folder or goes back to its last checkpoint.

    Args:
        truth: makes the labelled reward `truth`, which training itself cannot reach.

    Raises:
        InputError: what is wrong with the configuration, in one line.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluation = pkgutil.resolve_name(EVALUATION)(
        config.domain,
        config.eval_tasks,
        config.eval_subset,
        config.eval_samples,
        config.temperature,
        config.max_new_tokens,
    )
    if config.task_source != "model":  # a mistake in the user's file should not wait for a model to load
        make_source(config.task_source, config.domain, exclude=evaluation.texts)
    if config.resume:
        run, _ = Run.open(Path(config.resume))
    else:
        reward = Path(config.reward).stem if is_blend(config.reward) else config.reward
        name = config.name or new_name(config.domain, reward, config.seed)
        settings = {"agent": agent, **saved(config)}
        run = Run.create(Path(config.output or f"runs/{agent}") / name, settings)
    try:
        return _load(agent, config, evaluation, run, truth)
    except InputError:
        run.close()
        if not config.resume:
            shutil.rmtree(run.folder)  # nothing was started
        raise


def saved(config: TrainConfig) -> dict[str, Any]:
    """The settings as a run keeps them: without `resume`, and with whole paths, so that it can be resumed from anywhere."""
    values = {**asdict(config), "resume": None}
    for name in ("adapter", "model", "task_source", "embedder"):
        if values[name] and Path(values[name]).exists():
            values[name] = str(Path(values[name]).resolve())
    if is_blend(config.reward):
        values["reward"] = str(Path(config.reward).resolve())
    parts = domain_names(config.domain) if config.domain != "all" else ["all"]
    values["domain"] = ",".join(
        part if part in (*EMBEDDED, "all") else str(Path(part).resolve()) for part in parts
    )
    return values


def _load(
    agent: str, config: TrainConfig, evaluation: Any, run: Run, truth: Callable[[], Reward] | None
) -> Session:
    restored = run.restore() if config.resume else None
    if restored and config.cycles < restored[0]["cycle"]:
        raise InputError(
            f"--cycles {config.cycles}: the run has done {restored[0]['cycle']} already: ask for that many or more"
        )
    if config.resume:
        # A run that is extended and killed again must know how far it was to go.
        run.write_config({"agent": agent, **saved(config)})
    policy = load_policy(
        config.model or "embedded",
        adapter=str(restored[1]) if restored else config.adapter,
        lora=Lora(config.lora_r, config.lora_alpha, config.lora_dropout),
        load_in_4bit=config.load_in_4bit,
        seed=config.seed,
    )
    if not restored:  # the average that may lie beside --adapter is that of another run; this one begins before the first update
        policy.ema = policy.snapshot() if config.inverter == "ema" else None
    source = make_source(config.task_source, config.domain, policy, evaluation.texts)
    with policy.adapter("off"):  # tasks that the model proposes must not depend on when the run was resumed
        pool = source.tasks(POOL, config.seed, "pool") if reward_info(config.reward).needs_pool else []
        probes = source.tasks(PROBES, config.seed, "keep") if config.keep == "best" else []
    reward = make_reward(
        config.reward,
        policy,
        pool,
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=config.embedder,
        gates=config.gates,
        truth=truth,
    )
    for note in run.notes:
        print(note, flush=True)
    evaluation.attach(run)
    state, checkpoint = restored or ({}, None)
    return Session(agent, policy, source, reward, evaluation, run, state, checkpoint, probes)
