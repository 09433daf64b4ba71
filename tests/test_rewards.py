"""What every reward must do, the registry, faulty rewards, and a reward of the user's own."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import DOMAIN, FOREIGN, OTHER, POOL, READ, RIGHT, SWAPPED, TASK, Scripted, build, value

from envs.types import InputError, LanguageModel, Score, Task
from envs.verify.effects import effects_of
from rewards.gates import Gated
from rewards.registry import REWARDS, RewardInfo, make_reward, reward_info, shown
from rewards.wrappers import Checked, Wrapper, inverter_of, with_inverter

ROOT = Path(__file__).resolve().parent.parent
INVERSIONS = [
    "similarity",
    "original-blend",
    "likelihood",
    "likelihood-min",
    "lift",
    "choice",
    "channel",
    "slots",
    "hidden-slot",
]
DECODING = ["similarity", "original-blend", "slots"]
UNBOUNDED = {"lift", "self-certainty", "entropy"}
LABEL_FREE = sorted(set(REWARDS) - {"truth"})
# Whose scores depend on the other candidates of a call.
TOGETHER = {"random", "shuffled", "majority", "majority-effect", "semantic"}
EMPTY = Score(None, reason="empty command")

# What every inversion reward must do


@pytest.mark.parametrize("name", INVERSIONS)
def test_identity_is_best_and_another_intent_is_worst(name: str) -> None:
    [scores] = build(name, Scripted(READ))([TASK], [[FOREIGN, RIGHT, SWAPPED]])
    foreign, right, swapped = map(value, scores)
    assert foreign <= swapped < right
    assert name == "lift" or 0 <= foreign <= right <= 1
    assert foreign < swapped or name == "likelihood-min"  # of which the weakest token is equally weak in both
    if name in DECODING:
        assert right == pytest.approx(1.0, abs=1e-4)
        assert scores[1].reconstruction == TASK.text


@pytest.mark.parametrize("name", INVERSIONS)
@pytest.mark.parametrize("empty", ["", " ", "\t \n"])
def test_an_empty_command_abstains_and_is_not_reconstructed(name: str, empty: str) -> None:
    model = Scripted(READ)
    [[first, right, second]] = build(name, model)([TASK], [[empty, RIGHT, empty]])
    assert first == second == EMPTY
    assert value(right) > 0.3
    if name != "lift" or empty:  # lift asks how likely the task is without a command
        assert DOMAIN.prompt("inverse", command=empty) not in model.asked
    assert build(name, model)([TASK], [[empty]]) == [[EMPTY]]


@pytest.mark.parametrize("name", LABEL_FREE)
def test_group_first_shapes(name: str) -> None:
    reward = build(name, Scripted(READ))
    scores = reward([TASK, TASK, OTHER], [[RIGHT, SWAPPED, ""], [], [FOREIGN, RIGHT]], seed=3)
    assert [len(row) for row in scores] == [3, 0, 2]
    flat = [*scores[0], *scores[2]]
    assert all(isinstance(score, Score) for score in flat)
    assert scores[0][2] == EMPTY
    assert reward([], []) == []
    assert reward([TASK, OTHER], [[], []]) == [[], []]
    with pytest.raises(ValueError):
        reward([TASK], [[RIGHT, RIGHT], [RIGHT, RIGHT]])
    if name not in TOGETHER:
        # A candidate's score depends on nothing but itself and its task.
        pairs = [(TASK, RIGHT), (TASK, SWAPPED), (TASK, ""), (OTHER, FOREIGN), (OTHER, RIGHT)]
        alone = [reward([task], [[command]])[0][0] for task, command in pairs]
        assert [score.value for score in flat] == pytest.approx([score.value for score in alone])


@pytest.mark.parametrize("name", INVERSIONS)
def test_the_inverter_reconstructs(name: str) -> None:
    model = Scripted(READ, base={RIGHT: READ[FOREIGN], FOREIGN: READ[FOREIGN]})
    others = ["start"] if name == "channel" else []  # score the command
    [[current]] = build(name, model)([TASK], [[RIGHT]])
    assert model.used == ["current", *others]
    [[base]] = build(name, model, inverter="base")([TASK], [[RIGHT]])
    assert model.used == ["current", *others, "base", *others]
    assert value(base) < value(current)


# With a real model


@pytest.mark.parametrize("gates", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LABEL_FREE)
def test_every_reward_runs_on_a_policy(name: str, gates: bool, policy: LanguageModel) -> None:
    reward = make_reward(name, policy, POOL, gates=gates, effects=effects_of)
    commands = [[RIGHT, SWAPPED, " "], [FOREIGN, "ls 'é' $'\\n' </s> [/INST]"]]
    first = reward([TASK, OTHER], commands, seed=1)
    assert first == reward([TASK, OTHER], commands, seed=1)
    for score in [*first[0], *first[1]]:
        assert score.value is None or name in UNBOUNDED or 0 <= score.value <= 1
    if name in (*DECODING, "random", "shuffled"):
        assert any(first != reward([TASK, OTHER], commands, seed=seed) for seed in range(2, 12))
    if gates and REWARDS[name].gated:
        assert not first[1][1].value
        assert first[1][1].reason
        assert set(first[0][0].parts) >= {"gate/valid", "gate/copied"}


def test_base_and_current_differ_on_a_policy(policy: LanguageModel) -> None:
    scores = []
    for which in ("current", "base"):
        reward = make_reward("likelihood", policy, [], inverter=which)
        scores.append(reward([TASK], [[RIGHT]])[0][0])
    assert scores[0] != scores[1]
    with pytest.raises(InputError, match=r"--inverter old: use current, base or ema"):
        make_reward("likelihood", policy, [], inverter="old")([TASK], [[RIGHT]])


# Empty commands. Without gates they abstain; behind gates they are invalid, so that emptiness does not pay.


@pytest.mark.parametrize("name", LABEL_FREE)
@pytest.mark.parametrize("empty", ["", " \t"])
def test_an_empty_command_has_the_lowest_score_of_a_bounded_reward(name: str, empty: str) -> None:
    [[right, score]] = make_reward(name, Scripted(READ), POOL, effects=effects_of)([TASK], [[RIGHT, empty]])
    assert score.reason == "empty command"
    info = REWARDS[name]
    if info.gated and info.bounded:
        assert score.value == 0.0 < value(right)
    else:
        assert score.value is None
    if info.gated:
        assert score.parts == {"gate/valid": 0.0}


# The registry


def test_unknown_names_get_one_line() -> None:
    with pytest.raises(InputError, match=r"^--reward likelyhood: no such reward: did you mean likelihood\?$"):
        make_reward("likelyhood", Scripted(READ), POOL)


def test_only_one_reward_is_labelled() -> None:
    assert [name for name, info in REWARDS.items() if info.labelled] == ["truth"]
    assert shown("truth") == "truth (labelled)"
    assert shown("likelihood") == "likelihood"


def test_every_reward_says_whose_weights_reconstruct() -> None:
    for name in REWARDS:
        reward: Any = make_reward(
            name, Scripted(READ), POOL, inverter="base", truth=Labels, effects=effects_of
        )
        # `shuffled` has the scores of likelihood, and `semantic` compares reconstructions.
        reconstructs = name in (*INVERSIONS, "shuffled", "semantic")
        assert reward.inverter == ("base" if reconstructs else None), name
        twin = with_inverter(reward, "ema")
        assert inverter_of(twin) == ("ema" if reconstructs else None), name
        assert reward.inverter == ("base" if reconstructs else None), name


class Labels:
    """Stands for the labelled reward."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        return [[Score(1.0) for _ in row] for row in commands_P_G]


def test_labels_are_handed_in(tmp_path: Path) -> None:
    blend = tmp_path / "blend.yaml"
    blend.write_text("weights: {truth: 1, likelihood: 0}")
    for name in ("truth", str(blend)):
        with pytest.raises(
            InputError, match=r"^--reward truth: needs labels, which are out of reach here: use likelihood$"
        ):
            make_reward(name, Scripted(READ), [])
        [[score]] = make_reward(name, Scripted(READ), [], truth=Labels)([TASK], [[RIGHT]])
        assert score.value == 1.0


# Faulty rewards


class Fixed(Labels):
    """Gives the second of two candidates a fixed score."""

    def __init__(self, score: float | None) -> None:
        self.score = score

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        return [[Score(0.5), Score(self.score)] for _ in tasks_P]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_a_finite_number_is_an_error(
    score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "faulty", RewardInfo(lambda given: Fixed(score)))
    reward = make_reward("faulty", Scripted(READ), [])
    with pytest.raises(ValueError) as error:
        reward([TASK], [[RIGHT, SWAPPED]])
    assert str(error.value) == (
        f"the reward faulty gave {score} to the command {SWAPPED!r} of the task {TASK.text!r}: "
        "return a finite number, or None to abstain"
    )


def test_a_wrong_number_of_scores_is_an_error() -> None:
    for score in (0.0, -1e300, None):
        assert Checked("fine", Fixed(score))([TASK], [[RIGHT, SWAPPED]])[0][1].value == score
    with pytest.raises(
        ValueError, match=r"^the reward short returned 2 scores for the 3 commands of the task 'scan"
    ):
        Checked("short", Fixed(1.0))([TASK], [[RIGHT, RIGHT, RIGHT]])
    with pytest.raises(ValueError, match=r"^the reward short returned 1 groups of scores for 2 tasks$"):
        Checked("short", Fixed(1.0))([TASK], [[RIGHT, RIGHT], [RIGHT, RIGHT]])


# A reward of the user's own

OWN = '''
"""Rewards of a user."""

from envs.types import Score


def by_length(model, pool):
    """The length of the command, in tenths."""

    def reward(tasks_P, commands_P_G, seed=0):
        return [[Score(len(command) / 10) for command in row] for row in commands_P_G]

    return reward


by_length.bounded = False
by_length.gated = False
by_length.select = "quantile"


class Reads:
    """A class can be the factory: its instances are the reward."""

    needs_pool = True

    def __init__(self, model, pool):
        self.model, self.pool, self.inverter = model, pool, "current"

    def __call__(self, tasks_P, commands_P_G, seed=0):
        with self.model.inverter(self.inverter):
            return [[Score(1.0) for _ in row] for row in commands_P_G]


def nothing(model, pool):
    """No reward at all."""


def odd(model, pool):
    return by_length(model, pool)


def many(model, pool):
    return by_length(model, pool)


odd.select = "bets"
many.labels = "many"
number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, importable, with `mine/rewards_of.py` and a module that cannot be imported."""
    package = tmp_path / "mine_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rewards_of.py").write_text(OWN)
    (package / "broken.py").write_text("import nowhere_to_be_found")
    (package / "wrong.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_for_tests")]:
        del sys.modules[name]


def test_a_reward_of_ones_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "mine_for_tests.rewards_of:by_length"
    info = reward_info(name)
    assert (
        capsys.readouterr().err == f"reward: {name} is code of {own / 'mine_for_tests' / 'rewards_of.py'}\n"
    )
    assert (info.select, info.bounded, info.gated) == ("quantile", False, False)
    assert (info.labelled, info.needs_pool, info.needs_group) == (False, False, False)
    assert shown(name) == name
    reward = make_reward(name, Scripted(READ), [])
    [[short, long]] = reward([TASK], [["ls", "x" * 20]])
    assert (short.value, long.value) == (0.2, 2.0)
    assert inverter_of(reward) is None


def test_a_class_of_ones_own_has_gates_a_pool_and_an_inverter(own: Path) -> None:
    name = "mine_for_tests.rewards_of:Reads"
    model = Scripted(READ)
    assert reward_info(name).needs_pool
    reward: Any = make_reward(name, model, POOL, inverter="base")
    [[right, closed]] = reward([TASK], [[RIGHT, "gibberish"]])
    assert (right.value, closed.value) == (1.0, 0.0)
    assert model.used == ["base"]
    twin = copy.copy(reward)
    twin.inverter = "ema"
    assert (twin.inverter, reward.inverter) == ("ema", "base")
    gated = reward.reward
    assert isinstance(gated, Gated)
    assert gated.reward.pool is POOL


def test_the_documented_reward_of_ones_own(own: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/REWARDS.md").read_text(), re.DOTALL)
    (own / "mine_for_tests" / "documented.py").write_text(block)
    name = "mine_for_tests.documented:factory"
    info = reward_info(name)
    assert (info.select, info.bounded, info.gated, info.needs_pool) == ("best", True, True, False)
    [[right, closed]] = make_reward(name, Scripted(READ), [])([TASK], [[RIGHT, "gibberish"]])
    assert (right.value, closed.value) == (1 / (1 + len(RIGHT)), 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no_such_module cannot be imported (ModuleNotFoundError: No module named"),
        ("mine_for_tests.no:f", "mine_for_tests.no cannot be imported (ModuleNotFoundError: No module named"),
        (
            "mine_for_tests.broken:f",
            "mine_for_tests.broken cannot be imported (ModuleNotFoundError: No module",
        ),
        ("mine_for_tests.wrong:f", "mine_for_tests.wrong cannot be imported (SyntaxError: "),
        (
            "mine_for_tests.rewards_of:by_lenght",
            "mine_for_tests.rewards_of has no factory by_lenght: did you mean by_length?",
        ),
        ("mine_for_tests.rewards_of:number", "mine_for_tests.rewards_of has no factory number: "),
        ("mine_for_tests.rewards_of:odd", "its select is 'bets': use one of threshold, best, quantile"),
        ("mine_for_tests.rewards_of:many", "its labels is 'many': use a whole number of 0 or more"),
        ("C:mine", "C cannot be imported (ModuleNotFoundError"),
    ],
)
def test_a_faulty_name_of_ones_own_gets_one_line(own: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        reward_info(name)
    assert str(error.value).startswith(f"--reward {name}: {message}")
    assert "\n" not in str(error.value)


def test_a_factory_that_makes_no_reward_gets_one_line(own: Path) -> None:
    with pytest.raises(InputError, match=r"^--reward mine_for_tests.rewards_of:nothing: returned None"):
        make_reward("mine_for_tests.rewards_of:nothing", Scripted(READ), [])


@pytest.mark.parametrize("name", [r"C:\rewards\mine.yaml", "C:mine.yaml", "mine:rewards.yml", r"D:\mine"])
def test_a_path_is_no_module(name: str) -> None:
    """Files are read, and are not there; the last one has no ending that a blend has."""
    with pytest.raises(InputError) as error:
        reward_info(name)
    message = str(error.value)
    assert message.startswith(f"--reward {name}: ")
    assert ("no such reward" in message) == ("." not in name)
    assert "import" not in message


def test_a_command_refuses_a_faulty_reward_before_it_loads_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "agents.rejection_sft", "--model", "embedded"]
    options = ["--reward", "no_such_module:f", "--output", str(tmp_path)]
    process = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120)
    errors = [line for line in process.stderr.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 2
    assert len(errors) == 1
    assert "--reward no_such_module:f: no_such_module cannot be imported" in errors[0]
    assert "| torch\n" not in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrappers_leave_functions_alone() -> None:
    def plain(tasks: Any, commands: Any, seed: int = 0) -> list[list[Score]]:
        return [[Score(1.0) for _ in row] for row in commands]

    assert inverter_of(plain) is None
    assert with_inverter(plain, "base") is plain
    assert Wrapper(plain).inverter is None
