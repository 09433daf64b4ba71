"""What every trainer starts from: policy, source of tasks, reward, evaluation, run folder."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from agents.cli.display import say
from agents.policy.chat import DATE, read_options
from agents.policy.load import load_policy
from agents.policy.lora import ALL_LINEAR, Lora, adapted
from agents.policy.names import EMBEDDED
from agents.policy.policy import Policy
from agents.policy.reward_model import load_reward_model
from agents.policy.tokens import Shots
from agents.policy.usage import Usage
from agents.training.config import TrainConfig
from agents.training.environment import recorded
from agents.training.monitor import PROBES
from agents.training.plan import planned
from agents.training.preflight import preflight
from agents.training.run import Run, new_name
from agents.training.saved import saved
from envs.domain import domain_names
from envs.source import Source, make_source
from envs.types import InputError, Reward, Task
from rewards.base import Effects
from rewards.blend import is_blend
from rewards.learnt import PREFIX, Scorer, fingerprint, is_learnt
from rewards.registry import POOL, make_reward, reward_info

# Settings of a run that may differ after a resume: how far it goes, and where it is.
MAY_CHANGE = ("cycles", "resume", "config", "output", "name")


class Evaluation(Protocol):
    """What a trainer may know of the held-out evaluation: numbers to log, and a line for the user.

    The evaluation knows the labels, so nothing in training imports it. The command makes it and hands it in.
    """

    note: str

    @property
    def texts(self) -> Collection[str]:
        """Texts of held-out tasks, which no training task may have."""
        ...

    def shots(self, count: int) -> Shots:
        """Labelled examples of each domain, to stand before its prompts."""
        ...

    def attach(self, run: Run) -> None:
        """Logs to a run, after it was restored."""
        ...

    def __call__(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """Evaluates a fixed subset of the held-out tasks."""
        ...

    def whole(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """Evaluates all of them, with intervals."""
        ...

    def afterwards(self) -> str:
        """A line for the user about a run that has ended; empty where there is nothing to say."""
        ...


@dataclass
class Session:
    """A run in progress.

    Attributes:
        agent: the trainer's name.
        state: what the last checkpoint kept, empty for a new run.
        checkpoint: the folder of that checkpoint.
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


@contextlib.contextmanager
def open_session(
    agent: str,
    config: TrainConfig,
    *,
    evaluation: Callable[..., Evaluation],
    truth: Callable[[], Reward],
    effects: Effects,
    learnt: Callable[..., Scorer] = load_reward_model,
) -> Iterator[Session]:
    """Checks all input, creates the run folder or goes back to its last checkpoint, and loads everything.

    A run that cannot start leaves no folder, whatever the reason. Whatever ends one that has started carries
    a note that says how to go on with it.

    Args:
        agent: the trainer's name.
        evaluation: makes the held-out evaluation, as `agents.evaluation.heldout.HeldOut` does.
        truth: makes the labelled reward, as `rewards.labelled.Truth` does.
        effects: says what commands do, as `envs.verify.effects.effects_of` does; it knows no label.
        learnt: loads the reward model of `--reward rm:FOLDER`, to stand beside the policy.

    Raises:
        InputError: what is wrong with the configuration, in one line.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluate = evaluation(*config.held_out)
    if config.task_source != "model":  # a mistake in the user's file should not wait for a model to load
        make_source(config.task_source, config.domain, exclude=evaluate.texts)
    if reward_info(config.reward).executes:
        _must_execute(config, effects)
    if config.plan:
        say(planned(config, lora_of(config), evaluate.shots(config.shots)))
        raise SystemExit(0)
    run = _open_run(agent, config)
    resume = f"python -m agents.{agent} --resume {shlex.quote(str(run.folder))}"
    try:
        session = _load(agent, config, evaluate, truth, effects, learnt, run)
    except BaseException as error:
        if config.resume:
            run.close()
            error.add_note(f"go on with {resume}")
        else:
            run.discard()
        raise
    try:
        with contextlib.closing(run):
            yield session
    except BaseException as error:
        if isinstance(error, InputError) and not config.resume and not run.has_checkpoint:
            run.discard()  # such as an option that TRL looks at only in training
        error.add_note(f"go on from the last finished cycle with {resume}")
        raise


def _must_execute(config: TrainConfig, effects: Effects) -> None:
    """Raises InputError where commands of some domain cannot be executed: its tasks would teach nothing."""
    for domain in domain_names(config.domain):
        if effects(domain, [""]) is None:
            fix = "see python -m agents.selftest, or use --reward majority"
            raise InputError(
                f"--reward {config.reward}: commands of the domain {domain} cannot be executed here: {fix}"
            )


def lora_of(config: TrainConfig) -> Lora:
    """The shape of a run's adapter."""
    targets = ALL_LINEAR if config.lora_targets == "all-linear" else Lora.targets
    layers: Literal["upper"] | None = "upper" if config.lora_layers == "upper" else None
    return Lora(config.lora_r, config.lora_alpha, config.lora_dropout, targets, layers)


def _must_be_the_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError where the settings of a run's file are not those of its last checkpoint."""
    as_kept: dict[str, Any] = json.loads(json.dumps(now))  # lists in place of tuples
    for name, value in as_kept.items():
        if name not in MAY_CHANGE and then.get(name) != value:
            problem = f"{name} was {then.get(name)} when the run was saved, and is {value} now"
            raise InputError(f"{path}: {problem}: restore the file")


def _open_run(agent: str, config: TrainConfig) -> Run:
    if config.resume:
        return Run.open(Path(config.resume))[0]
    reward = config.reward
    if is_blend(reward):
        reward = Path(reward).stem
    elif is_learnt(reward):
        reward = f"{PREFIX}{Path(reward.removeprefix(PREFIX)).name}"
    name = config.name or new_name(config.domain, reward, config.seed)
    return Run.create(Path(config.output or f"runs/{agent}") / name, {"agent": agent, **saved(config)})


def _must_be_the_same_reward_model(run: Run, reward: str) -> None:
    """Raises InputError where the reward model of a run is not the one that the run began with."""
    now = fingerprint(reward)
    if now and not run.began_with("reward_model", {"sha256": now}):
        problem = "the reward model has changed since the run began"
        raise InputError(f"--reward {reward}: {problem}: restore it, or start a new run")


def _load(
    agent: str,
    config: TrainConfig,
    evaluate: Evaluation,
    truth: Callable[[], Reward],
    effects: Effects,
    learnt: Callable[..., Scorer],
    run: Run,
) -> Session:
    state: Mapping[str, Any] = {}
    checkpoint = None
    if config.resume and (restored := run.restore()):
        state, checkpoint = restored
    if config.cycles < state.get("cycle", 0):
        raise InputError(
            f"--cycles {config.cycles}: the run has done {state['cycle']}: ask for that many or more"
        )
    if state:
        _must_be_the_same(run.folder / "config.yaml", state["results"]["config"], saved(config))
    if config.resume:
        # A run that is extended and killed again must know how far it was to go.
        run.write_config({"agent": agent, **saved(config)})
    _must_be_the_same_reward_model(run, config.reward)
    chosen = recorded(run.folder, "compute") or {"dtype": config.dtype, "threads": config.threads}
    policy = load_policy(
        config.model or "embedded",
        adapter=str(checkpoint) if checkpoint else config.adapter,
        lora=lora_of(config),
        load_in_4bit=config.load_in_4bit,
        dtype=chosen["dtype"],
        threads=chosen["threads"],
        seed=config.seed,
        chat_options=read_options(config.chat_template_kwargs),
        prefill=config.prefill,
        shots=evaluate.shots(config.shots),
    )
    run.record("compute", asdict(policy.compute))
    if config.model is not None and config.model not in EMBEDDED:
        run.notes.append(f"LoRA of rank {config.lora_r} on {adapted(policy.model)}; {policy.compute}")
    if policy.tokens.chat is not None and policy.tokens.chat.dated:
        run.record("prompts", {"date": DATE.isoformat()})
    policy.batch_sizes = state.get("batch_sizes", {})
    policy.usage = Usage(**state.get("results", {}).get("usage", {}))
    if checkpoint is None:
        policy.labels += config.shots * len(domain_names(config.domain)) + reward_info(config.reward).labels
    if checkpoint is None:
        # An average next to --adapter is that of another run; the one of this run begins before its first
        # update.
        policy.ema = policy.snapshot() if config.inverter == "ema" else None
    if config.adapter and reward_info(config.reward).needs_start:
        policy.load_start(Path(config.adapter).expanduser())
    source = make_source(config.task_source, config.domain, policy, evaluate.texts)
    pool: list[Task] = []
    probes: list[Task] = []
    counted = policy.usage.stopped() if checkpoint else contextlib.nullcontext()  # once, not at each resume
    # Tasks that the model proposes must not depend on when the run was resumed.
    with policy.adapter("off"), counted:
        if reward_info(config.reward).needs_pool:
            pool = source.tasks(POOL, config.seed, "pool")
        if config.keep == "best":
            probes = source.tasks(PROBES, config.seed, "keep")
    kept = saved(config)  # with the names that a resumed run has
    reward = make_reward(
        kept["reward"],
        policy,
        pool,
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=kept["embedder"],
        gates=config.gates,
        truth=truth,
        effects=effects,
        learnt=functools.partial(learnt, beside=policy),
        models=policy.usage.models,
    )
    for note in run.notes:
        say(note)
    if not config.resume:
        with policy.usage.stopped():
            preflight(policy, source, reward, config)
    evaluate.attach(run)
    return Session(agent, policy, source, reward, evaluate, run, state, checkpoint, probes)
