"""Best of N by hand: type a task, see the commands that a model writes, their scores, and which one to take.

    python -m agents.play --domain shell
    python -m agents.play --domain sql --task "how many employees in sales are older than 30" --json
    python -m agents.play --adapter runs/rejection_sft/NAME/checkpoints/cycle-0010 --candidates 16

The policy writes a greedy command and several sampled ones. A reward that needs no labels ranks them. If the
best score is below `--trust`, a warning says so. Nothing is trained and no command is run.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.cli.command import run_command
from agents.cli.display import as_json, number, say, show_table
from agents.cli.values import require, require_counts, require_sampling
from agents.policy.chat import read_options
from agents.policy.folders import check_adapter, check_model
from envs.answers import command_in, take_out
from envs.domain import domain_names, load_domain
from envs.files import not_utf8
from envs.jsonl import read_jsonl
from envs.messages import visible
from envs.prompts import forward_prompt
from envs.schema import EMBEDDED
from envs.source import check_length, make_source
from envs.streams import seed_of
from envs.types import InputError, Reward, Task
from rewards.reconstruction import reconstruct
from rewards.registry import POOL, make_reward, reward_info

if TYPE_CHECKING:
    from agents.policy.policy import Policy

# If the best of 8 commands scores at least this much, the choice is wrong in 5 % of the cases, as measured
# with the embedded model on 900 held-out tasks. For another model, reward or kind of task, see the report of
# python -m agents.evaluate --best-of 8.
TRUST = {"likelihood": 0.53}


@dataclass(frozen=True)
class Config:
    """Write commands for a task, rank them without labels, and say when not to trust the choice."""

    model: str | None = None
    """embedded, embedded-hard, smollm2, mistral-7b, or a Hugging Face name or folder. Default: embedded."""
    adapter: str | None = None
    """Folder of a PEFT adapter, for example a checkpoint of a run."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the base model. auto: the faster one on a CPU, as measured; 16 bits on a GPU."""
    threads: int | None = None
    """Threads of the CPU. Default: one for a small model, else all of them where they are faster."""
    domain: str = "shell"
    """Domain of the task: shell, sql, network, or the path of a YAML file. Its prompts are used."""
    task: str | None = None
    """The task. Without it, tasks are read from standard input, one per line."""
    extract: str | None = None
    """JSONL file of {"answer": ...}: print {"command": ...} per line, null where there is none, and end."""
    candidates: int = 8
    """Commands to sample per task, in addition to the greedy one."""
    reward: str = "likelihood"
    """Reward that ranks the commands: docs/REWARDS.md lists them."""
    gates: bool = True
    """Score 0 for output that is not a valid command or that copies the task text into the command."""
    inverter: Literal["current", "base"] = "current"
    """Weights that reconstruct the task: the model with its adapter, or its base model."""
    inverse_temperature: float = 0.0
    """Sampling temperature of the reconstruction; 0 is greedy."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-embedding model, for the reward similarity."""
    temperature: float = 0.7
    """Sampling temperature of the commands."""
    max_new_tokens: int = 64
    """Maximum length of a command, in tokens."""
    shots: int = 0
    """Labelled examples of the domain before every prompt."""
    prefill: str | None = None
    """How every command's answer begins. Default: as the domain says."""
    chat_template_kwargs: str | None = None
    """Variables of the chat template, as JSON. Default: what switches thinking off."""
    trust: float | None = None
    """Warn if the best score is below this. Default: 0.53 for the embedded model with likelihood."""
    seed: int = 0
    """Seed of the samples."""
    json: bool = False
    """Print one JSON object per task and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range, a reward that cannot rank, or a faulty domain."""
        require_counts(self, "candidates")
        require_counts(self, "seed", least=0, most=2**63 - 1)
        require_sampling(self)
        require(self, "trust", self.trust is None or math.isfinite(self.trust), "must be a number")
        read_options(self.chat_template_kwargs)
        if self.task is not None and not self.task.strip():
            raise InputError("--task: must not be empty: to type tasks, leave it out")
        check_length("--task", self.task or "")
        if reward_info(self.reward).labelled:
            raise InputError(
                f"--reward {self.reward}: needs labels, which a typed task lacks: use likelihood"
            )
        if len(domain_names(self.domain)) != 1:
            raise InputError(f"--domain {self.domain}: must be one domain: its prompts ask for the commands")
        load_domain(self.domain)
        check_model(self.model or "embedded")
        if self.adapter:
            check_adapter(Path(self.adapter).expanduser(), self.model or "embedded")


def main(config: Config) -> int:
    """Answers each task; ends with the input."""
    if config.extract is not None:
        extract(Path(config.extract))
        return 0
    # They load torch, which --help must not wait for.
    from agents.evaluation.shots import draw_shots
    from agents.policy.load import load_policy
    from agents.policy.reward_model import load_reward_model

    policy = load_policy(
        config.model or "embedded",
        adapter=config.adapter,
        load_in_4bit=config.load_in_4bit,
        dtype=config.dtype,
        threads=config.threads,
        chat_options=read_options(config.chat_template_kwargs),
        prefill=config.prefill,
        shots=draw_shots(config.domain, config.shots),
    )
    if config.adapter and reward_info(config.reward).needs_start:
        policy.load_start(Path(config.adapter).expanduser())
    reward = make_reward(
        config.reward,
        policy,
        make_source("templates", config.domain).tasks(POOL, 0, "pool"),
        inverter=config.inverter,
        inverse_temperature=config.inverse_temperature,
        embedder=config.embedder,
        gates=config.gates,
        learnt=functools.partial(load_reward_model, beside=policy),
    )
    where = load_domain(config.domain).where
    for text in [config.task] if config.task is not None else typed(config):
        answer = best_of(policy, reward, Task("typed", where, " ".join(text.split())), config)
        if config.json:
            print(as_json(answer), flush=True)
        else:
            show(answer)
    return 0


def extract(path: Path) -> None:
    """Prints the command in each answer of a file, one JSON object per line; null where there is none."""
    fix = 'write {"answer": "..."} on one line'
    try:
        for number, row in read_jsonl(path, "--extract", fix):
            if not isinstance(row.get("answer"), str):
                raise InputError(f"{path}:{number}: answer: must be a text: {fix}")
            print(as_json({"command": take_out(row["answer"]).command}))
    except FileNotFoundError:
        raise InputError(f"--extract {path}: no such file: give the path of a JSONL file") from None


def typed(config: Config) -> Iterator[str]:
    """Lines of standard input that are not blank. On a terminal a blank line ends the input."""
    at_terminal = sys.stdin.isatty()
    for line_number in itertools.count(1):
        if at_terminal:
            print(visible(f"{config.domain} task (an empty line ends): "), end="", flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise not_utf8("standard input", line_number, error, "type or pipe it as UTF-8") from None
        if not line or (at_terminal and not line.strip()):
            return
        if line.strip():
            check_length(f"standard input:{line_number}", line)
            yield line


def best_of(policy: Policy, reward: Reward, task: Task, config: Config) -> dict[str, Any]:
    """The choice for a task, and all different commands, best first.

    Returns:
        What `--json` prints. `written` is how often a command was written, `prompt` what the model reads,
        `answer` its greedy answer as it wrote it.
    """
    answers = write(policy, task, config)
    commands = [command_in(answer) for answer in answers]
    greedy = commands[0]
    scores = reward([task], [commands], seed=seed_of(config.seed, "play reward"))[0]
    different = list(dict.fromkeys(commands))
    with policy.inverter(config.inverter):
        pairs = [(task, command) for command in different]
        texts = reconstruct(policy, pairs, 0.0, 0, config.max_new_tokens)

    rows: list[dict[str, Any]] = []
    for command, text in zip(different, texts, strict=True):
        score = scores[commands.index(command)]
        row = {
            "command": command,
            "score": score.value,
            "reconstruction": text if command.strip() else "",
            "written": commands.count(command),
            "greedy": command == greedy,
            "reason": score.reason,
        }
        rows.append(row)
    rows.sort(key=_score_or_lowest, reverse=True)  # of equal scores, the first one written is first

    choice, score_of_choice = None, None
    if rows[0]["score"] is not None:
        choice, score_of_choice = rows[0]["command"], rows[0]["score"]
    trust = config.trust if config.trust is not None else known_trust(config)
    trusted = None
    if trust is not None:
        trusted = score_of_choice is not None and score_of_choice >= trust
    return {
        "task": task.text,
        "choice": choice,
        "score": score_of_choice,
        "trusted": trusted,
        "trust": trust,
        "candidates": rows,
        "prompt": policy.tokens.as_text(forward_prompt(task)),
        "answer": answers[0],
    }


def write(policy: Policy, task: Task, config: Config) -> list[str]:
    """The greedy answer, then the sampled ones."""
    prompts = [forward_prompt(task)]
    [greedy] = policy.generate(prompts, temperature=0.0, max_new_tokens=config.max_new_tokens)
    [sampled] = policy.generate(
        prompts,
        config.candidates,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=seed_of(config.seed, "play"),
    )
    return [completion.text for completion in [*greedy, *sampled]]


def _score_or_lowest(row: dict[str, Any]) -> float:
    return -math.inf if row["score"] is None else float(row["score"])


def known_trust(config: Config) -> float | None:
    """The score from which a choice can be trusted, if that was measured with these settings; else None.

    Only the number of candidates may be another one.
    """
    as_measured = (
        config.model in (None, "embedded")
        and config.adapter is None
        and config.gates
        and config.domain in EMBEDDED
    )
    return TRUST.get(config.reward) if as_measured else None


def show(answer: dict[str, Any]) -> None:
    """Prints the candidates as a table, then the choice, then whether to trust it.

    Where the greedy answer is more than a command, what was asked and answered comes first.
    """
    if not take_out(answer["answer"]).plain:
        for name in ("prompt", "answer"):
            say(f"{name}:")
            for line in answer[name].split("\n"):
                say(f"    {line}")
    rows = []
    for row in answer["candidates"]:
        written = f"{row['written']} greedy" if row["greedy"] else str(row["written"])
        rows.append((number(row["score"]), written, row["command"], row["reconstruction"]))
    header = ("score", "written", "command", "reconstruction")
    show_table(answer["task"], header, rows, sentences=("command", "reconstruction"))

    if answer["choice"] is None:
        reason = answer["candidates"][0]["reason"] or "the reward abstained"
        say(f"no command could be scored: {reason}")
        return
    say(f"choice: {answer['choice']}")
    if answer["trusted"] is None:
        say("trust: unknown for these settings: measure it with python -m agents.evaluate, then set --trust")
    elif not answer["trusted"]:
        say(f"WARNING: do not trust it: its score {number(answer['score'])} is below {answer['trust']:g}")


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
