"""The inversion loop as a Gymnasium environment: the observation is a task, the action a command.

An episode is one step, and its reward the score of the command. The reward and the source of tasks are handed
in; `agents.policy.gym_factory` makes them for `gymnasium.make("envs:inversion/network-v0")`.

    env = gymnasium.make("envs:inversion/network-v0")
    task, info = env.reset(seed=0)
    task, reward, terminated, truncated, info = env.step("ping -c 3 10.0.0.1")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded, UnsupportedMode
from gymnasium.spaces import Text
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_shared_memory

from envs.messages import visible
from envs.source import Source
from envs.streams import stream
from envs.types import InputError, Reward, Score, Task

MAX_LENGTH = 1024  # characters of a task or a command; about ten times the longest of the embedded domains
# Tasks drawn from the source at a time: within a call it repeats few, and a model proposes them in one batch.
BLOCK = 64
SURROGATE = re.compile("[\ud800-\udfff]")
SAMPLED = "".join(map(chr, range(32, 127))) + "\t" + "äçéñøß" + "жλя" + "中文日本語한" + "→€≤" + "😀🚀🧪"


class _EveryCharacter(Sequence[str]):
    """All code points in order, as `Text` wants them, without the memory of 1.1 million strings."""

    def __len__(self) -> int:
        return 0x110000

    def __getitem__(self, index: Any) -> Any:
        return chr(index)

    def __contains__(self, character: object) -> bool:
        return isinstance(character, str) and len(character) == 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EveryCharacter)


class UnicodeText(Text):
    """Any text up to a length: every Unicode string without lone surrogates, also the empty one.

    `Text` keeps a table of its characters: about a hundred megabytes per space for all of Unicode. Here a
    character's number is its code point. Samples, and masks for them, have only the `SAMPLED` characters:
    printable ASCII, the tab, a few accents, Greek, Cyrillic, CJK and emoji.

    Args:
        max_length: in characters (code points), inclusive.
        seed: of the samples.
    """

    def __init__(self, max_length: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=SAMPLED, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a text of at most `max_length` characters without a surrogate."""
        return isinstance(x, str) and len(x) <= self.max_length and not SURROGATE.search(x)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random text of `SAMPLED` characters; `mask` and `probability` are over these, as in `Text`."""
        sampled = Text(self.max_length, min_length=0, charset=SAMPLED, seed=self.np_random)
        return sampled.sample(mask, probability)

    @property
    def character_list(self) -> Any:
        """Every code point, by number."""
        return _EveryCharacter()

    @property
    def character_set(self) -> Any:
        """Every code point."""
        return _EveryCharacter()

    def character_index(self, char: str) -> np.int32:
        """The code point."""
        return np.int32(ord(char))

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length


@create_shared_memory.register(UnicodeText)
def _no_shared_memory(space: UnicodeText, n: int = 1, ctx: Any = None) -> None:
    # Gymnasium 1.4 reads texts from shared memory before they are written, and never again: NUL characters.
    raise TypeError(
        "texts cannot pass through shared memory: "
        "use AsyncVectorEnv(..., shared_memory=False) or vectorization_mode='sync'"
    )


@dataclass(frozen=True)
class _Episode:
    """A finished episode."""

    task: Task
    command: str
    truncated_action: bool
    score: Score

    @property
    def reward(self) -> float:
        """A float, as Gymnasium wants it: 0.0 where the reward abstained, which `info["abstained"]` says."""
        if self.score.value is None:
            return 0.0
        return float(self.score.value)

    def info(self) -> dict[str, Any]:
        """What `step` returns with the reward."""
        return {
            **_about(self.task),
            "reconstruction": self.score.reconstruction,
            "parts": {name: float(value) for name, value in self.score.parts.items()},
            "abstained": self.score.value is None,
            "reason": self.score.reason,
            "truncated_action": self.truncated_action,
        }

    def render(self) -> str:
        """Task, command, reconstruction and score, each on a line."""
        score = f"abstained: {self.score.reason}"
        if self.score.value is not None:
            score = f"{self.score.value:.3f}"
        reconstruction = "-"
        if self.score.reconstruction is not None:
            reconstruction = self.score.reconstruction
        lines = [
            _render_task(self.task),
            visible(f"command         {self.command}"),
            visible(f"reconstruction  {reconstruction}"),
            visible(f"score           {score}"),
        ]
        return "\n".join(lines)


def _render_task(task: Task) -> str:
    return visible(f"task            {task.text}")


def _about(task: Task) -> dict[str, Any]:
    return {"task_id": task.id, "domain": task.domain, "tool": task.tool}


class _Stream:
    """The endless tasks of a seed, drawn in rounds. Their texts are members of the observation space."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed
        self._round = self._blocks = 0
        self._waiting: list[Task] = []

    def draw(self, count: int) -> list[Task]:
        """Begins the next round with the next `count` tasks."""
        while len(self._waiting) < count:
            tasks = self._source.tasks(BLOCK, self._seed, "environment", self._blocks)
            if not tasks:
                raise InputError("--task-source: has no tasks: use another one")
            self._waiting += [replace(task, text=_valid(task.text)) for task in tasks]
            self._blocks += 1
        drawn, self._waiting = self._waiting[:count], self._waiting[count:]
        self._round += 1
        return drawn

    def reward_seed(self) -> int:
        """For the reward's random numbers in this round."""
        return stream("environment reward", self._seed, self._round).getrandbits(62)


def _valid(text: str) -> str:
    return SURROGATE.sub("\ufffd", text[:MAX_LENGTH])


def _command(action: Any) -> tuple[str, bool]:
    """An action as a member of the action space, and whether it had to be cut."""
    if not isinstance(action, str):
        raise InvalidAction(f"a command is a text, not {type(action).__name__}: {action!r}")
    return _valid(str(action)), len(action) > MAX_LENGTH


def _finish(reward: Reward, tasks: Sequence[Task], actions: Sequence[Any], seed: int) -> list[_Episode]:
    """Ends P episodes with one call of the reward."""
    commands = [_command(action) for action in actions]
    scores_P_1 = reward(tasks, [[command] for command, _ in commands], seed=seed)
    episodes = []
    for task, (command, was_cut), [score] in zip(tasks, commands, scores_P_1, strict=True):
        episodes.append(_Episode(task, command, was_cut, score))
    return episodes


def _check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "ansi"):
        raise UnsupportedMode(f"render_mode {render_mode!r}: use 'ansi' or None")
    return render_mode


class InversionEnv(gymnasium.Env[str, str]):
    """One task, one command, one reward. A reward that needs several candidates of a task raises in `step`.

    Observation: the task's text, a `UnicodeText`. `step` returns it again, since nothing follows. `info` has
    `task_id`, `domain` and `tool`, as prompts need them.

    Action: the command, a `UnicodeText` of up to `MAX_LENGTH` characters. A longer action is cut
    (`info["truncated_action"]` is True), and lone surrogates become U+FFFD. Everything else is passed on as
    it is: tabs, line feeds, emoji, the empty text. The texts of tasks are brought into their space in the
    same way.

    Reward: the score, in [0, 1] for most rewards. Where the reward abstains it is 0.0 and `info["abstained"]`
    is True; leave such steps out of averages. `info` of a step also has `reconstruction` (None where the
    reward makes none), `parts` (the numbers that the score is made of) and `reason` (why it abstained, or why
    a gate closed).

    Random numbers: `reset(seed=s)` starts the tasks of seed s at the first one; each further `reset()` takes
    the next. The same seed gives the same tasks, and the same commands then get the same rewards.

    Args:
        source: where tasks come from.
        reward: scores a command, see `envs.types.Reward`.
        seed: of the tasks until `reset` is given one; None draws one.
        render_mode: `ansi` or None.

    Raises:
        gymnasium.error.UnsupportedMode: no such render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 1}  # type: ignore[misc]

    def __init__(
        self, source: Source, reward: Reward, *, seed: int | None = None, render_mode: str | None = None
    ) -> None:
        self.source, self.reward = source, reward
        self.render_mode = _check_render_mode(render_mode)
        self.observation_space = UnicodeText(MAX_LENGTH)
        self.action_space = UnicodeText(MAX_LENGTH)
        self._stream: _Stream | None = None
        self._task: Task | None = None
        self._finished: _Episode | None = None
        super().reset(seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Draws the next task -> (its text, info). `options` are not used."""
        super().reset(seed=seed)
        if self._stream is None or seed is not None:
            self._stream = _Stream(self.source, self.np_random_seed)
        [self._task], self._finished = self._stream.draw(1), None
        return self._task.text, _about(self._task)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Scores a command and ends the episode -> (the task's text, reward, True, False, info).

        Raises:
            gymnasium.error.ResetNeeded: there is no episode under way.
            gymnasium.error.InvalidAction: the action is not a text.
        """
        if self._stream is None or self._task is None or self._finished is not None:
            raise ResetNeeded("call reset() before step(): an episode is one step")
        [self._finished] = _finish(self.reward, [self._task], [action], self._stream.reward_seed())
        return self._task.text, self._finished.reward, True, False, self._finished.info()

    def render(self) -> str | None:
        """With render mode `ansi`: the task, and after the step what became of it. Else None.

        Raises:
            gymnasium.error.ResetNeeded: there is no task yet.
        """
        if self._task is None:
            raise ResetNeeded("call reset() before render()")
        if self.render_mode is None:
            return None
        if self._finished is None:
            return _render_task(self._task)
        return self._finished.render()


class InversionVectorEnv(VectorEnv[tuple[str, ...], Sequence[str], np.ndarray]):
    """N episodes at once, scored by one call of the reward. Spaces and rewards are those of `InversionEnv`.

    Every step ends every episode, so it also resets (`AutoresetMode.SAME_STEP`; in next-step mode every
    second step would do nothing). `step` returns the next tasks and their info; those of the finished
    episodes are in `infos["final_obs"]` and `infos["final_info"]`.

    Random numbers: a seed has the same tasks as in `InversionEnv`, dealt out in turn. With seed s, the k-th
    task of environment i is the (k N + i)-th of a single environment with seed s, counting from 0. (In
    Gymnasium's own vector environments, environment i has seed s + i.) The same seed and commands give the
    same rewards; a reward that draws random numbers draws others than in a single environment.

    Args:
        source: where tasks come from.
        reward: scores commands, see `envs.types.Reward`.
        num_envs: N, at least 1.
        seed: of the tasks until `reset` is given one; None draws one.
        render_mode: `ansi` or None.

    Raises:
        ValueError: `num_envs` is below 1.
        gymnasium.error.UnsupportedMode: no such render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        source: Source,
        reward: Reward,
        num_envs: int,
        *,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs {num_envs}: must be at least 1")
        self.source, self.reward, self.num_envs = source, reward, num_envs
        self.render_mode = _check_render_mode(render_mode)
        self.single_observation_space = UnicodeText(MAX_LENGTH)
        self.single_action_space = UnicodeText(MAX_LENGTH)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._stream: _Stream | None = None
        self._tasks: list[Task] = []
        self._finished: list[_Episode] = []
        super().reset(seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Draws N tasks -> (their texts, infos). `options` are not used."""
        super().reset(seed=seed)
        if self._stream is None or seed is not None:
            self._stream = _Stream(self.source, self.np_random_seed or 0)  # None only for the type checker
        self._finished = []
        return self._draw(self._stream, {})

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Scores N commands and draws N new tasks -> (their texts, rewards, terminated, truncated, infos).

        Rewards are float64, shape (N,). `terminated` is True and `truncated` False for all N.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was not called yet.
            gymnasium.error.InvalidAction: there are not N actions, or one is not a text.
        """
        if self._stream is None:
            raise ResetNeeded("call reset() before step()")
        if isinstance(actions, str) or len(actions) != self.num_envs:
            raise InvalidAction(f"give one command for each of the {self.num_envs} environments")
        self._finished = _finish(self.reward, self._tasks, actions, self._stream.reward_seed())
        infos: dict[str, Any] = {}
        for index, episode in enumerate(self._finished):
            final = {"final_obs": episode.task.text, "final_info": episode.info()}
            infos = self._add_info(infos, final, index)
        texts, infos = self._draw(self._stream, infos)
        rewards = np.array([episode.reward for episode in self._finished], dtype=np.float64)
        terminated = np.ones(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return texts, rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """With render mode `ansi`: the N episodes of the last step; before a step the N tasks. Else None.

        Raises:
            gymnasium.error.ResetNeeded: there are no tasks yet.
        """
        if self._stream is None:
            raise ResetNeeded("call reset() before render()")
        if self.render_mode is None:
            return None
        if not self._finished:
            return tuple(_render_task(task) for task in self._tasks)
        return tuple(episode.render() for episode in self._finished)

    def _draw(self, tasks: _Stream, infos: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
        self._tasks = tasks.draw(self.num_envs)
        for index, task in enumerate(self._tasks):
            infos = self._add_info(infos, _about(task), index)
        return tuple(task.text for task in self._tasks), infos
