"""The Gymnasium environments: the contract, spaces for any text, determinism, abstention, batches."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded, UnsupportedMode
from gymnasium.spaces import Text
from gymnasium.spaces.utils import flatten, flatten_space, unflatten
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from agents.policy.gym_factory import make_env, make_vector_env
from envs.gym_env import BLOCK, MAX_LENGTH, InversionEnv, InversionVectorEnv, UnicodeText
from envs.types import InputError, Score, Task
from rewards.labelled import Truth

NETWORK = "envs:inversion/network-v0"
ODD = [
    "",
    " ",
    "ls -l | grep 'x' > \"$HOME/y\"",
    "a\tb",
    "line\nline",
    "naïve café",
    "中文 日本語",
    "echo 🚀👩‍🔬",
    "\x00\x07",
]
LONE = "rm \ud83d end"


class Words:
    """The share of the task's words that the command has; abstains without a command. Remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Task], list[list[str]], int]] = []

    def __call__(
        self, tasks: Sequence[Task], commands: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        self.calls.append((list(tasks), [list(row) for row in commands], seed))
        scores = []
        for task, row in zip(tasks, commands, strict=True):
            scores.append([self._score(task, command) for command in row])
        return scores

    @staticmethod
    def _score(task: Task, command: str) -> Score:
        if not command:
            return Score(None, reason="empty command")
        words = set(task.text.split())
        value = len(words & set(command.split())) / len(words)
        return Score(value, {"overlap": value, "length": len(command)}, f"back: {command}")


class Noise:
    """A score from the seed alone."""

    def __call__(
        self, tasks: Sequence[Task], commands: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        rng = np.random.default_rng(seed)
        return [[Score(float(rng.random())) for _ in row] for row in commands]


class Listed:
    """A source of given texts that hands out `size` at a time at most."""

    def __init__(self, *texts: str, size: int = BLOCK) -> None:
        self.texts, self.size = texts, size

    def tasks(self, count: int, *stream: object) -> list[Task]:
        texts = self.texts[: min(count, self.size)]
        return [Task(f"{stream}/{row}", "shell", text) for row, text in enumerate(texts)]

    def dropped(self) -> dict[str, int]:
        return {}


def play(env: gymnasium.Env[str, str], seed: int | None, episodes: int) -> list[tuple[str, float]]:
    """(task, reward) of the first episodes, always with the same command."""
    seen = []
    for episode in range(episodes):
        text, _ = env.reset(seed=seed if episode == 0 else None)
        seen.append((text, float(env.step("ping the host")[1])))
    return seen


# Spaces


@pytest.mark.parametrize("text", ODD)
def test_the_space_has_any_text(text: str) -> None:
    space = UnicodeText(MAX_LENGTH)
    assert text in space
    assert unflatten(space, flatten(space, text)) == text
    assert flatten(space, text) in flatten_space(space)
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable([text])))) == [text]


def test_the_space_has_bounds() -> None:
    space = UnicodeText(3)
    assert "🚀🚀🚀" in space and "🚀🚀🚀🚀" not in space
    assert LONE not in UnicodeText(99) and "\ud800" not in space
    assert 3 not in space and None not in space and b"ls" not in space and np.array("ls") not in space


def test_samples_are_members_and_repeat_with_the_seed() -> None:
    space = UnicodeText(20, seed=1)
    samples = [space.sample() for _ in range(300)]
    assert all(sample in space for sample in samples)
    assert {len(sample) for sample in samples} == set(range(21))
    characters = "".join(samples)
    assert all(kind in characters for kind in "a\té中🚀|")
    space.seed(1)
    assert [space.sample() for _ in range(300)] == samples
    assert len(space.sample(mask=(7, None))) == 7


def test_the_space_is_equal_copied_pickled_and_batched() -> None:
    space = UnicodeText(20, seed=1)
    again = pickle.loads(pickle.dumps(space))
    assert again == space and again.sample() == space.sample()
    assert len(pickle.dumps(space)) < 20_000
    assert space != UnicodeText(21) and space != Text(20) and Text(20) != space
    batched = batch_space(space, 3)
    sample = batched.sample()
    assert len(sample) == 3 and sample in batched and tuple(ODD[:3]) in batch_space(UnicodeText(99), 3)
    assert repr(space) == "UnicodeText(20)"


# The single environment


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["network", "shell", "sql", "all"])
def test_the_checker_has_no_complaint(name: str) -> None:
    check_env(gymnasium.make(f"envs:inversion/{name}-v0", reward=Words()).unwrapped)


@pytest.mark.filterwarnings("error", "ignore:.*different from the unwrapped version")
def test_the_checker_has_no_complaint_when_wrapped_and_rendered() -> None:
    check_env(gymnasium.make(NETWORK, reward=Noise(), render_mode="ansi"))


def test_an_episode_is_one_step() -> None:
    env = gymnasium.make(NETWORK, reward=Words(), seed=0)
    text, info = env.reset()
    assert text in env.observation_space
    assert set(info) == {"task_id", "domain", "tool"}
    assert info["domain"] == "network"
    assert env.step(text) == (
        text,
        1.0,
        True,
        False,
        {
            **info,
            "reconstruction": f"back: {text}",
            "parts": {"overlap": 1.0, "length": float(len(text))},
            "abstained": False,
            "reason": "",
            "truncated_action": False,
        },
    )
    with pytest.raises(ResetNeeded):
        env.step(text)
    env.reset()
    env.step(text)


def test_a_step_needs_a_reset() -> None:
    for env in (gymnasium.make(NETWORK, reward=Words()), make_env("network", reward=Words())):
        with pytest.raises(ResetNeeded):
            env.step("ls")
    with pytest.raises(ResetNeeded):
        make_env("network", reward=Words(), render_mode="ansi").render()


def test_the_seed_decides_the_episodes() -> None:
    env, other = make_env("all", reward=Noise()), make_env("all", reward=Noise(), seed=7)
    first = play(env, 7, BLOCK + 3)
    assert play(env, 7, BLOCK + 3) == first  # restarted
    assert play(other, None, 5) == first[:5]  # the constructor's seed
    assert play(env, 8, 5) != first[:5]
    assert len({text for text, _ in first}) > BLOCK * 0.9
    assert len({reward for _, reward in first}) == len(first)  # the reward's seed differs between episodes
    assert play(make_env("all", reward=Noise()), None, 3) != play(make_env("all", reward=Noise()), None, 3)


def test_a_short_source_goes_on_and_an_empty_one_is_refused() -> None:
    env = InversionEnv(Listed("a", "b", "c", size=2), Words())
    assert [text for text, _ in play(env, 0, 5)] == ["a", "b", "a", "b", "a"]
    with pytest.raises(InputError, match="no task"):
        InversionEnv(Listed(), Words()).reset()


@pytest.mark.parametrize("action", ODD)
def test_odd_commands_reach_the_reward_as_they_are(action: str) -> None:
    reward = Words()
    env = make_env("shell", reward=reward)
    env.reset(seed=0)
    info = env.step(action)[4]
    assert reward.calls[-1][1] == [[action]] and not info["truncated_action"]


def test_what_is_outside_the_action_space_is_brought_into_it() -> None:
    reward = Words()
    env = make_env("shell", reward=reward)
    env.reset(seed=0)
    assert not env.step(LONE)[4]["truncated_action"] and reward.calls[-1][1] == [["rm \ufffd end"]]
    env.reset()
    assert env.step("🚀" * (MAX_LENGTH + 1))[4]["truncated_action"]
    assert reward.calls[-1][1] == [["🚀" * MAX_LENGTH]]
    env.reset()
    with pytest.raises(InvalidAction, match="ndarray"):
        env.step(np.array([1, 2]))  # type: ignore[arg-type]
    env.step("ls")  # the episode is still there


def test_odd_tasks_are_brought_into_the_observation_space() -> None:
    reward = Words()
    env = InversionEnv(Listed(LONE, "x" * 5000), reward)
    for wanted in ("rm \ufffd end", "x" * MAX_LENGTH):
        text, _ = env.reset()
        assert text == wanted and text in env.observation_space
        env.step("ls")
        assert reward.calls[-1][0][0].text == wanted  # the reward judges by what was seen


def test_abstention_is_zero_and_says_so() -> None:
    env = make_env("network", reward=Words())
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("")
    assert (reward, terminated) == (0.0, True)
    assert (info["abstained"], info["reason"]) == (True, "empty command")
    assert (info["reconstruction"], info["parts"]) == (None, {})


def test_a_reward_that_raises_is_not_hushed() -> None:
    def group(tasks: Any, commands: Any, seed: int = 0) -> Any:
        raise InputError("--reward majority: needs at least two candidates of a task")

    env = make_env("network", reward=group)
    env.reset(seed=0)
    with pytest.raises(InputError, match="two candidates"):
        env.step("ls")


def test_render() -> None:
    env = gymnasium.make(NETWORK, reward=Words(), render_mode="ansi")
    text, _ = env.reset(seed=0)
    assert env.render() == f"task            {text}"
    env.step("ls 🚀")
    assert str(env.render()).splitlines() == [
        f"task            {text}",
        "command         ls 🚀",
        "reconstruction  back: ls 🚀",
        "score           0.000",
    ]
    env.reset()
    env.step("")
    assert str(env.render()).endswith(
        "command         \nreconstruction  -\nscore           abstained: empty command"
    )
    env = make_env("network", reward=Words())
    env.reset()
    assert env.render() is None
    with pytest.raises(UnsupportedMode, match="ansi"):
        make_env("network", reward=Words(), render_mode="human")


# The batched environment


def vector(num_envs: int = 4, **options: Any) -> Any:
    return gymnasium.make_vec(
        NETWORK, num_envs=num_envs, vectorization_mode="vector_entry_point", **{"reward": Words(), **options}
    )


def test_the_batch_is_scored_in_one_call() -> None:
    reward = Words()
    envs = vector(reward=reward)
    assert isinstance(envs, InversionVectorEnv) and envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    texts, infos = envs.reset(seed=0)
    assert texts in envs.observation_space and envs.action_space.sample() in envs.action_space
    assert list(infos["domain"]) == ["network"] * 4 and infos["_domain"].all()
    new, rewards, terminations, truncations, infos = envs.step([texts[0], "", "ls", "🚀" * 2000])
    assert len(reward.calls) == 1 and [task.text for task in reward.calls[0][0]] == list(texts)
    assert rewards.dtype == np.float64 and rewards.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert terminations.dtype == truncations.dtype == np.bool_
    assert terminations.all()
    assert not truncations.any()
    assert new in envs.observation_space and new != texts
    final = infos["final_info"]
    assert list(infos["final_obs"]) == list(texts)
    assert final["abstained"].tolist() == [False, True, False, False]
    assert final["truncated_action"].tolist() == [False, False, False, True]
    assert final["reconstruction"][1] is None and final["reconstruction"][2] == "back: ls"
    assert final["parts"]["overlap"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert final["parts"]["_overlap"].tolist() == [True, False, True, True]
    assert infos["task_id"].tolist() != final["task_id"].tolist()


def test_a_seed_has_the_same_tasks_in_single_and_batched_environments() -> None:
    single = make_env("network", reward=Words())
    expected = [text for text, _ in play(single, 5, 3 * 7)]
    envs = vector(7)
    seen = [*envs.reset(seed=5)[0]]
    for _ in range(2):
        seen += envs.step(["ls"] * 7)[0]
    assert seen == expected
    assert list(envs.reset(seed=5)[0]) == expected[:7]
    assert list(vector(7, seed=5).reset()[0]) == expected[:7]
    assert vector(7).reset()[0] != vector(7).reset()[0]


def test_the_batch_repeats_with_the_seed() -> None:
    envs = vector(3, reward=Noise())

    def rewards(seed: int) -> list[float]:
        envs.reset(seed=seed)
        return [value for _ in range(2) for value in envs.step(["ls"] * 3)[1]]

    first = rewards(1)
    assert rewards(1) == first and rewards(2) != first and len(set(first)) == 6


def test_the_batch_refuses_what_does_not_fit() -> None:
    envs = vector(3)
    with pytest.raises(ResetNeeded):
        envs.step(["ls"] * 3)
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(seed=0)
    for actions in (["ls"] * 2, "abc", ["ls", "ls", 3]):
        with pytest.raises(InvalidAction):
            envs.step(actions)
    envs.step(np.array(["ls"] * 3))
    with pytest.raises(ValueError, match="at least 1"):
        make_vector_env(0, "network", reward=Words())


def test_the_batch_renders_what_it_finished() -> None:
    envs = vector(2, render_mode="ansi")
    texts, _ = envs.reset(seed=0)
    assert envs.render() == tuple(f"task            {text}" for text in texts)
    envs.step(["ls", ""])
    assert "ls" in envs.render()[0] and texts[0] in envs.render()[0] and "abstained" in envs.render()[1]
    plain = vector(2)
    plain.reset()
    assert plain.render() is None


def test_the_batch_works_with_gymnasiums_wrappers() -> None:
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector(2))
    texts, _ = envs.reset(seed=0)
    infos = envs.step([texts[0], "ls"])[4]
    assert infos["episode"]["r"].tolist() == [1.0, 0.0] and infos["episode"]["l"].tolist() == [1, 1]
    listed = gymnasium.wrappers.vector.DictInfoToList(vector(2))
    assert [info["domain"] for info in listed.reset(seed=0)[1]] == ["network", "network"]
    envs.close()
    envs.close()


def test_gymnasiums_own_vector_environments_work_without_shared_memory() -> None:
    def build() -> gymnasium.Env[str, str]:
        return gymnasium.make(NETWORK, reward=Words())

    both: list[Any] = [SyncVectorEnv([build] * 2), AsyncVectorEnv([build] * 2, shared_memory=False)]
    seen = []
    for envs in both:
        texts = envs.reset(seed=0)[0]
        seen.append((texts, envs.step(list(texts))[1].tolist()))
        envs.close()
    assert seen[0] == seen[1] and seen[0][1] == [1.0, 1.0]
    with pytest.raises(TypeError, match="shared_memory=False"):
        AsyncVectorEnv([build] * 2)


# Composition


def test_sources_and_rewards_by_name_and_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"task": "count the lines of a.txt"}) + "\n")
    env = gymnasium.make("envs:inversion/shell-v0", source=str(file), reward=Words())
    assert env.reset()[0] == "count the lines of a.txt"
    env = gymnasium.make("envs:inversion/shell-v0", source=Listed("mine"), reward=Words())
    assert env.reset()[0] == "mine"
    with pytest.raises(InputError, match="did you mean likelihood"):
        gymnasium.make(NETWORK, reward="likelyhood")
    with pytest.raises(InputError, match="task-source"):
        gymnasium.make(NETWORK, source="nowhere", reward=Words())


def test_the_labelled_reward_is_given_as_an_object() -> None:
    with pytest.raises(InputError, match=r"^--reward truth: needs labels"):
        gymnasium.make(NETWORK, reward="truth")
    env = gymnasium.make(NETWORK, reward=Truth())
    env.reset(seed=0)
    assert env.step("gibberish")[1] == 0.0


def test_registering_and_playing_need_no_torch() -> None:
    script = f"""
import sys
import envs
assert not {{"torch", "rewards", "agents"}} & set(sys.modules)
import gymnasium
from envs.types import Score
env = gymnasium.make({NETWORK!r}, reward=lambda tasks, commands, seed: [[Score(1.0)]])
env.reset(seed=0)
assert env.step("ls")[1] == 1.0 and not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)


# With the embedded policy


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*WARN")
def test_the_embedded_policy_and_the_default_reward() -> None:
    env = gymnasium.make(NETWORK)
    text, _ = env.reset(seed=0)
    _, reward, _, _, info = env.step("ping -c 3 10.0.0.1")
    assert 0 <= float(reward) <= 1
    assert info["reconstruction"]
    assert set(info["parts"]) > {"cosine", "gate/valid"}
    for action in ("", "echo 🚀 中文\t" + LONE):
        env.reset()
        assert 0 <= float(env.step(action)[1]) <= 1
    assert env.unwrapped.reward is gymnasium.make(NETWORK).unwrapped.reward  # type: ignore[attr-defined]
    envs = gymnasium.make_vec(NETWORK, num_envs=3)
    assert envs.reset(seed=0)[0][0] == text
    _, rewards, _, _, infos = envs.step(["ping -c 3 10.0.0.1", "ping " + "x" * 600, ""])
    assert infos["final_info"]["abstained"].tolist() == [False, True, False]
    assert rewards.tolist()[1:] == [0.0, 0.0]


@pytest.mark.filterwarnings("error")
def test_the_checker_has_no_complaint_about_the_embedded_policy() -> None:
    check_env(gymnasium.make("envs:inversion/all-v0", reward="likelihood").unwrapped)
