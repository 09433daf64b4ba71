"""The records that cross module boundaries: frozen, typed, and free of labels and reference commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable


class InputError(Exception):
    """The input is wrong: one line that names file, key and fix. Commands print it and exit with code 2."""


@dataclass(frozen=True)
class Task:
    """One thing to do, in words. Training sees these strings and nothing else.

    Attributes:
        id: opaque and unique; `envs.verify` can find the reference command from it, nothing else can.
        domain: name of an embedded domain or the path of a domain's YAML file.
        text: what to do, one line.
        tool: the tool that the domain may show in its prompts; empty where it does not say.
        system: what a model must know for this task, in place of what its domain says; empty for that.
    """

    id: str
    domain: str
    text: str
    tool: str = ""
    system: str = field(default="", repr=False)  # a whole schema


Kind = Literal["forward", "inverse", "judge", "rate"]
# What a base model, which knows no turns, is to go on with after a prompt.
CUES = {"forward": "Command:", "inverse": "Task:", "judge": "Answer:", "rate": "Number:"}


@dataclass(frozen=True)
class Prompt:
    """A user's message, and what stands around it.

    Attributes:
        text: the message.
        domain: whose examples may stand before it (`--shots`); empty for none.
        kind: whether it asks for a command, for a task, or for an opinion of one of these.
        system: what the model must know to answer, such as a database's schema; empty for nothing.
        prefill: how the answer begins. The model goes on from there.
    """

    text: str
    domain: str = ""
    kind: Kind = "forward"
    system: str = ""
    prefill: str = ""

    @property
    def cue(self) -> str:
        """The line after which a base model answers."""
        return CUES[self.kind]


@dataclass(frozen=True)
class Completion:
    """What a language model wrote after one prompt.

    Attributes:
        text: the answer, stripped; of a model that answers in one line, the first line that is not empty.
            The command is yet to be taken out of it: see `envs.answers`.
        token_ids: the tokens of the answer as generated, without the token that ended it.
        logprobs: natural-log probability of each of `token_ids` at temperature 1, same length.
        truncated: True where the token limit cut the answer before it ended.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Score:
    """A reward for one command. `value` is None where the reward abstains: it is left out and counted.

    Attributes:
        value: in [0, 1] for rewards with a bounded scale, or None.
        parts: the numbers that `value` was made of, for logs.
        reconstruction: the task as the model names it for the command, where the reward decodes one.
        reason: why the reward abstained, or why a gate closed; empty where neither happened.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reconstruction: str | None = None
    reason: str = ""

    @property
    def closed(self) -> bool:
        """Whether a gate is closed: the command is no positive example."""
        return any(name.startswith("gate/") and not passed for name, passed in self.parts.items())


@runtime_checkable
class LanguageModel(Protocol):
    """What rewards and sources need of a policy: see `agents.policy.policy.Policy` for the implementation."""

    def generate(
        self,
        prompts: Sequence[str | Prompt],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Writes `n` completions after each of P prompts -> [P][n]. Temperature 0 is greedy."""
        ...

    def logprobs(self, prompts: Sequence[str | Prompt], continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of each token of each continuation after its prompt -> [P][T_p]."""
        ...

    def entropies(
        self, prompts: Sequence[str | Prompt], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        """Mean entropy and self-certainty along each continuation, nats -> [P]; None for an empty one."""
        ...

    def inverter(self, which: str) -> AbstractContextManager[Any]:
        """Context in which the model has other weights.

        `current`: as they are. `base`: adapter off. `ema`: adapter averaged. `start`: as the run began.
        """
        ...


# One reward serves the environment, trainers and TRL: scores_P_G = reward(tasks_P, commands_P_G, seed=...).
Reward = Callable[..., list[list[Score]]]
