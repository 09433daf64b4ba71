"""How good is a policy really: held-out tasks, scored against their references. Training sees none of it but the printed numbers.

    python -m agents.evaluate --model embedded
    python -m agents.evaluate --model embedded --adapter runs/rejection_sft/NAME/checkpoints/cycle-0010 --reward likelihood --json

Held-out tasks have a paraphrase or slot values that no training text has. A command is right when it equals the reference but for
white space. This is the only command, beside pre-training, that may import `envs.verify`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents.training.command import run_command
from envs.domain import domain_names, load_domain
from envs.source import Templates, make_source
from envs.types import Completion, InputError, Reward, Task
from envs.verify import exact_match, reconstruction_match

if TYPE_CHECKING:
    from agents.policy.model import Policy


JUDGED = 100  # tasks on whose samples a run measures its reward's AUC; reading back is dearer than writing


@dataclass(frozen=True)
class Config:
    """Evaluates a model on held-out tasks: greedy, pass@1, pass@K, and how well a reward finds the right commands."""

    model: str = "embedded"
    """embedded, mistral-7b, or a Hugging Face name or folder."""
    adapter: str | None = None
    """Folder of a PEFT adapter, for instance a checkpoint of a run."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    domain: str = "all"
    """An embedded domain, all of them, or paths of YAML files, separated by commas."""
    reward: str = "likelihood"
    """The reward whose agreement with truth is measured."""
    inverter: Literal["current", "base"] = "current"
    """Who reads commands back."""
    inverse_temperature: float = 0.3
    """Sampling temperature of the reading back; 0 is greedy."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-embedding model of the similarity reward."""
    tasks: int = 900
    """Held-out tasks, spread evenly over the domains."""
    samples: int = 4
    """Commands sampled for each: the K of pass@K."""
    temperature: float = 0.7
    """Sampling temperature."""
    max_new_tokens: int = 64
    """Longest command, in tokens."""
    json: bool = False
    """Print JSON and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        from rewards import check_reward

        for name in ("tasks", "samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if self.temperature <= 0:
            raise InputError(f"--temperature {self.temperature}: must be above 0")
        check_reward(self.reward)
        for name in domain_names(self.domain):
            load_domain(name)


class HeldOut:
    """Held-out tasks and what a policy makes of them. The tasks are the same for every run, seed and model.

    Trainers are handed one by `agents.training.session`; they call it and log the numbers.

    Args:
        domain: as in the command's flag.
        tasks: how many, spread evenly over the domains.
        samples: commands sampled for each, the K of pass@K.
    """

    def __init__(self, domain: str, tasks: int, samples: int, temperature: float, max_new_tokens: int) -> None:
        self.tasks = Templates([load_domain(name) for name in domain_names(domain)], "heldout").tasks(tasks, "held-out")
        self.samples, self.temperature, self.max_new_tokens = samples, temperature, max_new_tokens

    @property
    def texts(self) -> frozenset[str]:
        """The sentences that no training task may have."""
        return frozenset(task.text for task in self.tasks)

    def __call__(self, policy: Policy, reward: Reward, count: int | None = None) -> dict[str, float | None]:
        """`eval/greedy`, `eval/pass@1`, `eval/pass@K`, `eval/auc`, `eval/auc_within` over the first `count` tasks (all by default).

        The random streams are always the same, so that two policies differ by their weights alone.
        """
        return self.measure(policy, reward, self.tasks[:count], JUDGED)

    def measure(self, policy: Policy, reward: Reward, tasks: Sequence[Task], judged: int | None = None) -> dict[str, float | None]:
        """The same over given tasks, which must have references; the reward scores the samples of the first `judged` of them."""
        from agents.policy.model import seed_of
        from agents.training.metrics import auc, mean, pass_at_k, within_task_auc

        greedy_P, sampled_P_G, right_P_G = self.answers(policy, tasks)
        commands_P_G = [[completion.text for completion in row] for row in sampled_P_G]
        scores_P_G = reward(tasks[:judged], commands_P_G[:judged], seed=seed_of("evaluation reward"))
        counts = [sum(right) for right in right_P_G]
        truths, values = kept(right_P_G[:judged], [[score.value for score in row] for row in scores_P_G])
        return {
            "eval/greedy": mean([float(right) for right in greedy_P]),
            "eval/pass@1": mean([pass_at_k(count, self.samples, 1) for count in counts]),
            f"eval/pass@{self.samples}": mean([pass_at_k(count, self.samples, self.samples) for count in counts]),
            "eval/auc": auc([t for row in truths for t in row], [v for row in values for v in row]),
            "eval/auc_within": within_task_auc(truths, values),
            "eval/reward": mean([v for row in values for v in row]),
            "eval/abstained": 1 - sum(map(len, values)) / max(1, sum(map(len, scores_P_G))),
            **self._intervals(greedy_P, counts, judged is None),
            "eval/distinct": len({text for row in commands_P_G for text in row}) / sum(map(len, commands_P_G)),
        }

    def _intervals(self, greedy_P: Sequence[bool], counts_P: Sequence[int], wanted: bool) -> dict[str, float]:
        """95 % bootstrap intervals over tasks, where there are enough of them."""
        from agents.training.metrics import bootstrap_interval

        if not wanted or len(greedy_P) < 2:
            return {}
        values = {"greedy": [float(right) for right in greedy_P], "pass@1": [count / self.samples for count in counts_P]}
        ends = {name: bootstrap_interval(rows) for name, rows in values.items()}
        return {f"eval/{name}/{end}": ends[name][place] for name in ends for place, end in enumerate(("low", "high"))}

    def answers(self, policy: Policy, tasks: Sequence[Task]) -> tuple[list[bool], list[list[Completion]], list[list[bool]]]:
        """What the policy makes of P tasks -> is the greedy command right [P]; sampled completions [P][K]; are they right [P][K]."""
        from agents.policy.model import seed_of
        from agents.training.rollouts import forward_prompt

        prompts = [forward_prompt(task) for task in tasks]
        greedy = policy.generate(prompts, temperature=0.0, max_new_tokens=self.max_new_tokens)
        sampled_P_G = policy.generate(
            prompts, self.samples, temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=seed_of("evaluation")
        )
        greedy_P = [bool(right) for right in exact_match(tasks, [row[0].text for row in greedy])]
        right_P_G = [
            [bool(right) for right in exact_match([task] * len(row), [completion.text for completion in row])]
            for task, row in zip(tasks, sampled_P_G, strict=True)
        ]
        return greedy_P, sampled_P_G, right_P_G


def kept(truths_P_G: Sequence[Sequence[bool]], values_P_G: Sequence[Sequence[float | None]]) -> tuple[list[list[bool]], list[list[float]]]:
    """Truths and scores without the candidates on which the reward abstained."""
    truths: list[list[bool]] = []
    values: list[list[float]] = []
    for truth_row, value_row in zip(truths_P_G, values_P_G, strict=True):
        pairs = [(truth, value) for truth, value in zip(truth_row, value_row, strict=True) if value is not None]
        truths.append([truth for truth, _ in pairs])
        values.append([value for _, value in pairs])
    return truths, values


def inverse_accuracy(policy: Policy, tasks: Sequence[Task], max_new_tokens: int = 64) -> float:
    """Share of tasks that the policy reads back rightly, greedily, from their reference commands."""
    from envs.verify import reference
    from rewards.inversion import reconstruct

    pairs = [(task, reference(task) or "") for task in tasks]
    texts = reconstruct(policy, pairs, 0.0, 0, max_new_tokens)
    return sum(bool(reconstruction_match(task, text)) for task, text in zip(tasks, texts, strict=True)) / len(tasks)


def main(config: Config) -> int:
    """Prints the held-out numbers, over all domains and for each."""
    from agents.policy.model import load_policy
    from rewards import POOL, make_reward

    policy = load_policy(config.model, adapter=config.adapter, load_in_4bit=config.load_in_4bit)
    held_out = HeldOut(config.domain, config.tasks, config.samples, config.temperature, config.max_new_tokens)
    reward = make_reward(
        config.reward,
        policy,
        [task.text for task in make_source("templates", config.domain).tasks(POOL, 0, "pool")],
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=config.embedder,
    )
    report: dict[str, Any] = {"model": config.model, "adapter": config.adapter, "reward": config.reward}
    for name in ["all", *domain_names(config.domain)]:
        tasks = [task for task in held_out.tasks if name in ("all", task.domain)]
        report[name] = {
            "tasks": len(tasks),
            **held_out.measure(policy, reward, tasks),
            "eval/inverse": inverse_accuracy(policy, tasks, config.max_new_tokens),
        }
    if config.json:
        print(json.dumps(report, indent=1))
        return 0
    for name, values in report.items():
        if isinstance(values, dict):
            shown = "  ".join(f"{key.removeprefix('eval/')} {value:.3f}" for key, value in values.items() if isinstance(value, float))
            print(f"{name:10} {values['tasks']:4} tasks  {shown}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
