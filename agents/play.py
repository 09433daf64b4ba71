"""Best of N by hand: type a task, see the candidates, their reconstructions and scores, and the choice.

    python -m agents.play --domain shell
    python -m agents.play --domain sql --task "how many employees in sales are older than 30" --json
    python -m agents.play --adapter runs/rejection_sft/NAME/checkpoints/cycle-0010 --candidates 16

The policy writes a greedy command and sampled ones, and the reward ranks them. Where the best score is below
`--trust` it says so. No command is run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents.cli.command import run_command
from envs.domain import domain_names, load_domain
from envs.schema import EMBEDDED
from envs.types import InputError, Reward, Task

if TYPE_CHECKING:
    from agents.policy.policy import Policy

# From this score on 5 % of the best of 8 were wrong (900 held-out tasks, embedded model). For other models,
# rewards or tasks measure it: python -m agents.evaluate --best-of 8 reports the risk-coverage curve.
TRUST = {"likelihood": 0.53}


@dataclass(frozen=True)
class Config:
    """Writes commands for a task, ranks them without labels, and says when not to trust the choice."""

    model: str | None = None
    """embedded, mistral-7b, or a Hugging Face name or folder. By default as trainers choose."""
    adapter: str | None = None
    """Folder of a PEFT adapter, for instance a checkpoint of a run."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    domain: str = "shell"
    """The domain whose prompts are used: an embedded one or the path of a YAML file."""
    task: str | None = None
    """The task. Without it, tasks are read from standard input, one a line."""
    candidates: int = 8
    """Commands sampled for a task, besides the greedy one."""
    reward: str = "likelihood"
    """The reward that ranks them: docs/REWARDS.md."""
    gates: bool = True
    """Put the gates before the reward."""
    inverter: Literal["current", "base"] = "current"
    """Who reads commands back: the model with its adapter, or its base."""
    inverse_temperature: float = 0.0
    """Sampling temperature of the reading back; 0 is greedy."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-embedding model of the similarity reward."""
    temperature: float = 0.7
    """Sampling temperature of the commands."""
    max_new_tokens: int = 64
    """Longest command, in tokens."""
    trust: float | None = None
    """Warn where the best score is below this. Default: as measured for the embedded model and likelihood."""
    seed: int = 0
    """Of the samples."""
    json: bool = False
    """Print one JSON object a task and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range, a reward that cannot rank, or a faulty domain."""
        from rewards.registry import reward_info

        for name in ("candidates", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: must be above 0")
        if not 0 <= self.inverse_temperature < math.inf:
            raise InputError(f"--inverse-temperature {self.inverse_temperature}: must be 0 (greedy) or more")
        if self.task is not None and not self.task.strip():
            raise InputError("--task: must not be empty: leave the flag out to type tasks")
        if reward_info(self.reward).labelled:
            raise InputError(
                f"--reward {self.reward}: needs labels, which a task that is typed has not: use likelihood"
            )
        if len(domain_names(self.domain)) != 1:
            raise InputError(f"--domain {self.domain}: must be one domain: its prompts ask for the commands")
        load_domain(self.domain)


def main(config: Config) -> int:
    """Answers each task; ends with the input."""
    from agents.policy.load import load_policy
    from envs.source import make_source
    from rewards.registry import POOL, make_reward

    policy = load_policy(config.model or "embedded", adapter=config.adapter, load_in_4bit=config.load_in_4bit)
    reward = make_reward(
        config.reward,
        policy,
        make_source("templates", config.domain).tasks(POOL, 0, "pool"),
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=config.embedder,
        gates=config.gates,
    )
    for text in [config.task] if config.task is not None else typed(config):
        answer = best_of(
            policy, reward, Task("typed", load_domain(config.domain).where, " ".join(text.split())), config
        )
        print(json.dumps(answer, ensure_ascii=False), flush=True) if config.json else show(answer)
    return 0


def typed(config: Config) -> Iterator[str]:
    """Lines of standard input that hold something."""
    while True:
        if sys.stdin.isatty():
            print(f"{config.domain} task (an empty line ends): ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or (sys.stdin.isatty() and not line.strip()):
            return
        if line.strip():
            yield line


def best_of(policy: Policy, reward: Reward, task: Task, config: Config) -> dict[str, Any]:
    """The different commands for a task, best first, each with its score and reconstruction."""
    from envs.prompts import forward_prompt
    from envs.streams import seed_of
    from rewards.reconstruction import reconstruct

    prompts, tokens = [forward_prompt(task)], config.max_new_tokens
    written = [
        *policy.generate(prompts, temperature=0.0, max_new_tokens=tokens)[0],
        *policy.generate(
            prompts,
            config.candidates,
            temperature=config.temperature,
            max_new_tokens=tokens,
            seed=seed_of(config.seed, "play"),
        )[0],
    ]
    commands = [completion.text for completion in written]
    scores = reward([task], [commands], seed=seed_of(config.seed, "play reward"))[0]
    different = list(dict.fromkeys(commands))
    first = {command: scores[commands.index(command)] for command in different}
    with policy.inverter(config.inverter):
        texts = reconstruct(policy, [(task, command) for command in different], 0.0, 0, tokens)
    rows: list[dict[str, Any]] = [
        {
            "command": command,
            "score": first[command].value,
            "read_back": text if command.strip() else "",
            "written": commands.count(command),
            "greedy": command == commands[0],
            "reason": first[command].reason,
        }
        for command, text in zip(different, texts, strict=True)
    ]
    rows.sort(
        key=lambda row: -math.inf if row["score"] is None else row["score"], reverse=True
    )  # equal scores: the first one written
    best = rows[0] if rows[0]["score"] is not None else None
    trust = config.trust if config.trust is not None else known_trust(config)
    return {
        "task": task.text,
        "choice": best["command"] if best else None,
        "score": best["score"] if best else None,
        "trusted": None if trust is None else bool(best and best["score"] >= trust),
        "trust": trust,
        "candidates": rows,
    }


def known_trust(config: Config) -> float | None:
    """The score from which on a choice can be trusted, where that was measured with these settings."""
    as_measured = (
        config.model in (None, "embedded")
        and config.adapter is None
        and config.gates
        and config.domain in EMBEDDED
    )
    return TRUST.get(config.reward) if as_measured else None


def show(answer: dict[str, Any]) -> None:
    """Prints the candidates as a table, then the choice, then whether to trust it."""
    from rich.markup import escape

    from agents.cli.display import number, show_table

    rows = [
        (
            number(row["score"]),
            f"{row['written']}{' greedy' if row['greedy'] else ''}",
            escape(visible(row["command"])),
            escape(visible(row["read_back"])),
        )
        for row in answer["candidates"]
    ]
    show_table(escape(visible(answer["task"])), ("score", "written", "command", "read back as"), rows)
    if answer["choice"] is None:
        print(
            "no candidate could be scored: " + (answer["candidates"][0]["reason"] or "the reward abstained")
        )
        return
    print(f"choice: {visible(answer['choice'])}")
    if answer["trusted"] is None:
        print(
            "how far to trust this score is not known: "
            "measure it with python -m agents.evaluate and give --trust"
        )
    elif not answer["trusted"]:
        print(f"WARNING: do not trust it: its score {number(answer['score'])} is below {answer['trust']:g}")


def visible(text: str) -> str:
    """Text that a model wrote, safe for a terminal: what is not printable is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
