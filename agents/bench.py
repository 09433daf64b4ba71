"""How fast the parts are on this machine.

    python -m agents.bench env                  # the batched environment against single ones
    python -m agents.bench env --num-envs 16 --repetitions 9 --json
    python -m agents.bench sandbox              # a command in the sandbox against one in plain bash
    python -m agents.bench model --model smollm2      # writing, scoring and training (docs/PERFORMANCE.md)
    python -m agents.bench gpu                  # a model of 7 billion weights on a CUDA device, 4 bits too

Both sides are timed in one process, in turns, and medians are reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from agents.benchmarks.gpu import GpuConfig, gpu
from agents.benchmarks.model import ModelConfig, model
from agents.cli.command import run_command
from agents.cli.values import require_counts
from envs.answers import command_in
from envs.messages import did_you_mean
from envs.prompts import forward_prompt
from envs.schema import EMBEDDED
from envs.types import InputError, Task
from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.probe import unavailable
from envs.verify.sandbox.run import execute
from rewards.registry import reward_info


def seconds_of(work: Callable[..., object], *arguments: object) -> float:
    """Calls `work` -> how long it took."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def print_json(result: dict[str, Any]) -> None:
    """Prints a result as one object, without the setting `json`."""
    print(json.dumps({name: value for name, value in result.items() if name != "json"}))


# The environment


@dataclass(frozen=True)
class EnvConfig:
    """Episodes per second, batched and one by one, on the embedded policy's greedy commands."""

    num_envs: int = 64
    """Environments in the batch. The single environment plays as many episodes, one after another."""
    repetitions: int = 5
    """How often each side is timed, each time on other tasks."""
    domain: str = "all"
    """An embedded domain, or all of them."""
    reward: str = "similarity"
    """Name of the reward (docs/REWARDS.md)."""
    seed: int = 0
    """Seed of the tasks."""
    json: bool = False
    """Print only JSON."""

    def check(self) -> None:
        """Raises InputError for a value out of range, or no such domain or reward."""
        require_counts(self, "num_envs", "repetitions")
        require_counts(self, "seed", least=0, most=2**63 - 1)
        if self.domain not in (*EMBEDDED, "all"):
            allowed = (*EMBEDDED, "all")
            raise InputError(f"--domain {self.domain}: {did_you_mean(self.domain, allowed)}")
        reward_info(self.reward)


def measure_env(config: EnvConfig) -> dict[str, Any]:
    """Times both sides -> medians in episodes per second, their ratio, and the value of every repetition.

    An episode scores a command and draws the next task. The commands are written before the clock starts.
    """
    import gymnasium
    import torch

    from agents.policy.gym_factory import shared_policy

    name = f"envs:inversion/{config.domain}-v0"
    single = gymnasium.make(name, reward=config.reward)
    batched = gymnasium.make_vec(name, num_envs=config.num_envs, reward=config.reward)
    policy = shared_policy("embedded")

    def commands_for(seed: int) -> list[str]:
        # A seed gives the same tasks in both environments, so one can plan for the other.
        texts, infos = batched.reset(seed=seed)
        prompts = []
        for row in zip(infos["task_id"], infos["domain"], texts, infos["tool"], strict=True):
            prompts.append(forward_prompt(Task(*row)))
        completions_P_G = policy.generate(prompts, temperature=0.0)
        return [command_in(completions_G[0].text) for completions_G in completions_P_G]

    def single_rate(seed: int) -> float:
        commands = commands_for(seed)
        single.reset(seed=seed)

        return config.num_envs / seconds_of(play_one_by_one, single, commands)

    def batched_rate(seed: int) -> float:
        commands = commands_for(seed)
        batched.reset(seed=seed)
        return config.num_envs / seconds_of(batched.step, commands)

    rates: dict[str, list[float]] = {"single": [], "batched": []}
    for repetition in range(config.repetitions + 1):
        seed = 2 * (config.seed * (config.repetitions + 1) + repetition)
        single_value, batched_value = single_rate(seed), batched_rate(seed + 1)
        if repetition > 0:  # the first only warms up
            rates["single"].append(single_value)
            rates["batched"].append(batched_value)
    medians = {side: median(values) for side, values in rates.items()}

    device = f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "benchmark": "env",
        **asdict(config),
        "episodes_per_second": medians,
        "ratio": medians["batched"] / medians["single"],
        "repetitions_episodes_per_second": rates,
        "device": device,
    }


def play_one_by_one(single: Any, commands: Sequence[str]) -> None:
    """An episode for each command."""
    for command in commands:
        single.step(command)
        single.reset()


def env(config: EnvConfig) -> int:
    """Prints what `measure_env` found."""
    result = measure_env(config)
    if config.json:
        print_json(result)
        return 0
    for side, about in (("single", "one after another"), ("batched", f"{config.num_envs} at once")):
        values = result["repetitions_episodes_per_second"][side]
        rate = result["episodes_per_second"][side]
        print(f"{side:<8} {rate:9.1f} episodes/s ({min(values):.1f} to {max(values):.1f}), {about}")
    print(f"ratio    {result['ratio']:9.1f} times, medians of {config.repetitions} on {result['device']}")
    return 0


# The sandbox

FILES = {  # what the timed commands work on
    "notes.txt": "alpha beta\ngamma delta\nbeta beta\nepsilon\n" * 20,
    "todo.txt": "buy milk\ncall alpha\n",
    "data.csv": "name,port\nweb,443\ndb,5432\nmail,25\n",
    "app.log": "INFO start\nERROR disk full\nINFO stop\nERROR no route\n" * 30,
    "src/main.py": "import sys\n\nprint(sys.argv)\n",
    "src/util.py": "def double(x):\n    return 2 * x\n",
    "docs/readme.md": "# Title\n\nSome text.\n",
    "docs/old/draft.md": "A draft.\n",
}
FOLDERS = ("src", "docs", "docs/old")
COMMANDS = (
    "ls -la",
    "grep -c beta notes.txt",
    "grep ERROR app.log | wc -l",
    "find . -name '*.py'",
    "sort -u notes.txt > sorted.txt",
    "cut -d, -f2 data.csv | sort -n | tail -n 1",
    "head -n 5 app.log",
    "wc -l *.txt",
    "mkdir -p backup && cp notes.txt backup/",
    "awk '{ count[$1]++ } END { for (word in count) print word, count[word] }' app.log | sort",
)


@dataclass(frozen=True)
class SandboxConfig:
    """Milliseconds per shell command in a sandbox and in plain bash, and commands per second in threads."""

    commands: int = 200
    """Commands that each side is timed on. The threads together run as many again."""
    threads: int = 4
    """Threads that run commands at the same time."""
    json: bool = False
    """Print only JSON."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        require_counts(self, "commands")
        require_counts(self, "threads", most=4096)


def measure_sandbox(config: SandboxConfig) -> dict[str, Any]:
    """Times both sides -> medians and 95th percentiles in milliseconds, and commands per second.

    The sandbox's side includes sending the file tree in and out.

    Raises:
        InputError: there is no sandbox on this machine.
    """
    if missing := unavailable():
        raise InputError(missing)
    tree = {name: Entry("directory", 0o755) for name in FOLDERS}
    for name, text in FILES.items():
        tree[name] = Entry("file", 0o644, text.encode())

    times: dict[str, list[float]] = {"sandbox": [], "bash": []}
    with TemporaryDirectory() as plain:
        lay_out(Path(plain))

        def in_sandbox(command: str) -> None:
            check_status("the sandbox", command, execute(command, tree).exit_code)

        def in_bash(command: str) -> None:
            argv = ["bash", "--noprofile", "--norc", "-c", command]
            check_status("bash", command, subprocess.run(argv, cwd=plain, capture_output=True).returncode)

        for index, command in enumerate(in_turn(len(COMMANDS) + config.commands)):
            for side, run in (("sandbox", in_sandbox), ("bash", in_bash)):
                seconds = seconds_of(run, command)
                if index >= len(COMMANDS):  # the first of each only warm up
                    times[side].append(1000 * seconds)

    def in_threads() -> None:
        with ThreadPoolExecutor(config.threads) as pool:
            list(pool.map(in_sandbox, in_turn(config.commands)))

    rate = config.commands / seconds_of(in_threads)
    return {
        "benchmark": "sandbox",
        **asdict(config),
        "median_ms": {side: median(values) for side, values in times.items()},
        "p95_ms": {side: percentile_95(values) for side, values in times.items()},
        "commands_per_second": rate,
        "device": f"{len(os.sched_getaffinity(0))} CPUs",
    }


def lay_out(folder: Path) -> None:
    """Writes FILES to a folder."""
    for name in FOLDERS:
        (folder / name).mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)


def in_turn(count: int) -> list[str]:
    """`count` commands."""
    return list(islice(cycle(COMMANDS), count))


def check_status(where: str, command: str, status: int | None) -> None:
    """Raises RuntimeError where a command failed: they are ours, and none should."""
    if status != 0:
        raise RuntimeError(f"failed in {where}: {command}")


def percentile_95(values: list[float]) -> float:
    """The value that 95 % do not exceed."""
    return quantiles(values * 2, n=20)[-1]  # twice: one value alone has no quantiles


def sandbox(config: SandboxConfig) -> int:
    """Prints what `measure_sandbox` found."""
    result = measure_sandbox(config)
    if config.json:
        print_json(result)
        return 0
    for side in ("sandbox", "bash"):
        middle, slow = result["median_ms"][side], result["p95_ms"][side]
        print(f"{side:<8} {middle:7.1f} ms per command at the median, 95 % within {slow:.1f} ms")
    rate = result["commands_per_second"]
    print(f"sandbox  {rate:7.1f} commands/s with {config.threads} threads on {result['device']}")
    return 0


BENCHMARKS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "env": (EnvConfig, env),
    "sandbox": (SandboxConfig, sandbox),
    "model": (ModelConfig, model),
    "gpu": (GpuConfig, gpu),
}


def main(argv: Sequence[str]) -> int:
    """The first word names the benchmark, the rest are its flags."""
    usage = f"python -m agents.bench {{{','.join(BENCHMARKS)}}} [--help] [--flag value ...]"
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {usage}\n")
        for name, (config_type, _) in BENCHMARKS.items():
            print(f"{name:<8} {config_type.__doc__}")
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        given = f"{argv[0]}: no such benchmark" if argv else "which benchmark?"
        print(f"error: {given}: use {usage}", file=sys.stderr)
        return 2
    config, run = BENCHMARKS[argv[0]]
    return run_command(config, run, argv[1:], agent=f"bench {argv[0]}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
