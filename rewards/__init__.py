"""How good is a command, with no label. Imports `envs` only.

A reward is called as `scores_P_G = reward(tasks_P, commands_P_G, seed=0)`: P tasks, G candidates of each. A `Score` whose value is
None abstains: it is left out and counted, never replaced by a default. One object serves the environment and every trainer.
What each of them computes, from where it comes and what it costs: docs/REWARDS.md.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.messages import did_you_mean
from envs.types import InputError, LanguageModel, Reward, Task


@dataclass(frozen=True)
class RewardInfo:
    """What a trainer must know of a reward before it is built.

    Attributes:
        select: the acceptance rule that its scale calls for.
        about: what it is, in a line.
        labelled: it uses labels: an upper bound, and shown as such.
        gated: the gates apply. They do not where a control is to know nothing, or the truth all.
        bounded: its values are in [0, 1].
        needs_pool: it needs tasks of the source to compare with.
        needs_group: it needs two or more candidates of a task.
    """

    select: str
    about: str
    labelled: bool = False
    gated: bool = True
    bounded: bool = True
    needs_pool: bool = False
    needs_group: bool = False


POOL = 200  # tasks by which the similarity reward finds its scale, and among which choice finds others
REWARDS = {
    "similarity": RewardInfo(
        "threshold",
        "decode the task from the command, compare embeddings, corrected by the nearest neighbour",
        needs_pool=True,
    ),
    "seed": RewardInfo(
        "threshold", "the original blend: 0.2 token overlap + 0.3 SequenceMatcher + 0.5 self-rated similarity"
    ),
    "likelihood": RewardInfo(
        "best", "exp of the mean log-probability of the task's tokens given the command"
    ),
    "likelihood-min": RewardInfo(
        "best", "exp of the log-probability of the task's weakest token given the command"
    ),
    "lift": RewardInfo(
        "best", "mean log-probability of the task given the command, less that given none", bounded=False
    ),
    "choice": RewardInfo(
        "best", "probability of the true task among it and four others of the same tool", needs_pool=True
    ),
    "slots": RewardInfo("best", "decode the task from the command, F1 of the values in both"),
    "self-certainty": RewardInfo(
        "best", "mean KL of the uniform to the next-token distribution over the command", bounded=False
    ),
    "entropy": RewardInfo(
        "best", "less the mean entropy of the next-token distribution over the command", bounded=False
    ),
    "majority": RewardInfo(
        "best", "share of the task's candidates that are the same command", needs_group=True
    ),
    "self-judge": RewardInfo(
        "best", "probability of yes against no when asked whether the command does the task"
    ),
    "random": RewardInfo("best", "a control: uniform noise", gated=False),
    "shuffled": RewardInfo(
        "best", "a control: the scores of likelihood, dealt out anew over all candidates", gated=False
    ),
    "length": RewardInfo("best", "a control: shorter is better", gated=False),
    "constant": RewardInfo("threshold", "a control: all are accepted alike", gated=False),
    "truth": RewardInfo(
        "threshold",
        "an upper bound: whether the command does what the reference does",
        labelled=True,
        gated=False,
    ),
}


def check_reward(name: str) -> None:
    """Raises InputError, with the nearest name, where there is no such reward, or with the line of a blend's file that is wrong."""
    reward_info(name)


def reward_info(name: str) -> RewardInfo:
    """What is known of a reward or of a blend's file; InputError as in `check_reward`."""
    from rewards.blend import is_blend, read_blend

    if is_blend(name):
        blend = read_blend(name, list(REWARDS))
        parts = [REWARDS[part] for part in blend.weights]
        counted = [REWARDS[part] for part, weight in blend.weights.items() if weight > 0]
        return RewardInfo(
            blend.select,
            " + ".join(f"{weight:g} {part}" for part, weight in blend.weights.items()),
            labelled=any(part.labelled for part in parts),
            gated=any(part.gated for part in parts),
            bounded=all(part.bounded for part in counted),
            needs_pool=any(part.needs_pool for part in parts),
            needs_group=any(part.needs_group for part in parts),
        )
    if name not in REWARDS:
        names = f"use one of {', '.join(REWARDS)}, or a FILE.yaml"
        raise InputError(f"--reward {name}: no such reward: {did_you_mean(name, REWARDS, names)}")
    return REWARDS[name]


def shown(name: str) -> str:
    """A reward's name for a reader: one that uses labels says so."""
    return f"{name} (labelled)" if reward_info(name).labelled else name


def make_reward(
    name: str,
    model: LanguageModel,
    pool: Sequence[Task],
    *,
    inverter: str = "current",
    inverse_temperature: float = 0.3,
    embedder: str = "all-MiniLM-L6-v2",
    gates: bool = True,
) -> Reward:
    """Builds a reward.

    Args:
        name: a key of `REWARDS`, or the path of a blend's YAML file.
        model: writes reconstructions and gives log-probabilities.
        pool: tasks of the source in use, for the rewards with `needs_pool`; others take none.
        inverter: `current` (the model as it trains), `base` (adapter off) or `ema` (an average of the adapter).
        inverse_temperature: of the reconstruction; 0 is greedy.
        embedder: a sentence-transformers name or folder; the default one is installed with this package.
        gates: put the gates before rewards that can be fed the answer (`RewardInfo.gated`).

    Raises:
        InputError: unknown name, a faulty file, or a pool too small.
    """
    from rewards.blend import Blend, is_blend, read_blend
    from rewards.gates import Gated

    info = reward_info(name)
    options: dict[str, Any] = {
        "inverter": inverter,
        "inverse_temperature": inverse_temperature,
        "embedder": embedder,
    }
    if is_blend(name):
        weights = read_blend(name, list(REWARDS)).weights
        return Blend(
            {part: make_reward(part, model, pool, gates=gates, **options) for part in weights}, weights
        )
    if name == "shuffled":
        from rewards.controls import Shuffled

        return Shuffled(make_reward("likelihood", model, pool, gates=gates, **options))
    reward = _bare_reward(name, model, pool, **options)
    return Gated(reward, bounded=info.bounded) if gates and info.gated else reward


def _bare_reward(
    name: str,
    model: LanguageModel,
    pool: Sequence[Task],
    *,
    inverter: str,
    inverse_temperature: float,
    embedder: str,
) -> Reward:
    if name == "similarity":
        from rewards.inversion import Similarity
        from rewards.similarity import Embedder

        return Similarity(
            model,
            Embedder(embedder),
            [task.text for task in pool],
            inverter=inverter,
            temperature=inverse_temperature,
        )
    if name == "seed":
        from rewards.inversion import SeedBlend

        return SeedBlend(model, inverter=inverter, temperature=inverse_temperature)
    if name in ("likelihood", "likelihood-min"):
        from rewards.inversion import Likelihood

        return Likelihood(model, over="mean" if name == "likelihood" else "min", inverter=inverter)
    if name == "lift":
        from rewards.inversion import Lift

        return Lift(model, inverter=inverter)
    if name == "choice":
        from rewards.inversion import Choice

        return Choice(model, pool, inverter=inverter)
    if name == "slots":
        from rewards.inversion import Slots

        return Slots(model, inverter=inverter, temperature=inverse_temperature)
    if name in ("self-certainty", "entropy"):
        from rewards.intrinsic import Certainty

        return Certainty(model, "entropy" if name == "entropy" else "self-certainty")
    if name == "majority":
        from rewards.intrinsic import Majority

        return Majority()
    if name == "self-judge":
        from rewards.intrinsic import SelfJudge

        return SelfJudge(model)
    if name in ("random", "length", "constant"):
        from rewards.controls import Constant, Length, Random

        controls: dict[str, type[Random | Length | Constant]] = {
            "random": Random,
            "length": Length,
            "constant": Constant,
        }
        return controls[name]()
    if name == "truth":
        truth: Reward = pkgutil.resolve_name(
            "rewards.labelled:Truth"
        )()  # no run under another reward loads what is right
        return truth
    raise KeyError(name)
