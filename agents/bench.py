"""How fast are the parts on this machine: what is compared runs in one process, in turns, and medians are reported.

python -m agents.bench env                  # batched environment against single ones
python -m agents.bench env --num-envs 16 --repetitions 9 --json
python -m agents.bench sandbox              # a command in the sandbox against one in plain bash
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from agents.cli.command import run_command
from envs.types import InputError


@dataclass(frozen=True)
class EnvConfig:
    """Episodes per second of the batched environment and of single ones, on the embedded policy's own greedy commands."""

    num_envs: int = 64
    """Environments in the batch; the single side plays as many episodes, one after another."""
    repetitions: int = 5
    """How often each side is timed, in turns, each time on other tasks."""
    domain: str = "all"
    """An embedded domain or all of them."""
    reward: str = "similarity"
    """How commands are scored."""
    seed: int = 0
    """Of the tasks."""
    json: bool = False
    """Print JSON and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        from envs.schema import EMBEDDED
        from rewards.registry import reward_info

        for name in ("num_envs", "repetitions"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if self.domain not in (*EMBEDDED, "all"):
            raise InputError(f"--domain {self.domain}: use one of {', '.join((*EMBEDDED, 'all'))}")
        reward_info(self.reward)


def measure_env(config: EnvConfig) -> dict[str, Any]:
    """Times both sides -> medians in episodes per second, their ratio, and every repetition's value.

    An episode is scoring a command and drawing the next task. The commands are made before the clock starts.
    """
    import gymnasium
    import torch

    from agents.policy.gym_factory import shared_policy
    from envs.prompts import forward_prompt
    from envs.types import Task

    name = f"envs:inversion/{config.domain}-v0"
    single = gymnasium.make(name, reward=config.reward)
    batched = gymnasium.make_vec(name, num_envs=config.num_envs, reward=config.reward)

    def commands(seed: int) -> list[str]:
        # A seed has the same tasks in both environments, so that one can plan for the other.
        texts, infos = batched.reset(seed=seed)
        rows = zip(infos["task_id"], infos["domain"], texts, infos["tool"], strict=True)
        written = shared_policy("embedded").generate(
            [forward_prompt(Task(*row)) for row in rows], temperature=0.0
        )
        return [row[0].text for row in written]

    def play_single(actions: Sequence[str]) -> None:
        for action in actions:
            single.step(action)
            single.reset()

    def rate(env: Any, play: Callable[[Sequence[str]], object], seed: int) -> float:
        actions = commands(seed)
        env.reset(seed=seed)
        started = time.perf_counter()
        play(actions)
        return config.num_envs / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {"single": [], "batched": []}
    # Tasks are new each time. The first round only warms up.
    for repetition in range(config.repetitions + 1):
        seed = 2 * (config.seed * (config.repetitions + 1) + repetition)
        values = {"single": rate(single, play_single, seed), "batched": rate(batched, batched.step, seed + 1)}
        for side, value in values.items():
            rates[side] += [value] if repetition else []
    medians = {side: median(values) for side, values in rates.items()}
    return {
        "benchmark": "env",
        **asdict(config),
        "episodes_per_second": medians,
        "ratio": medians["batched"] / medians["single"],
        "repetitions_episodes_per_second": rates,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()}",
    }


def env(config: EnvConfig) -> int:
    """Prints what `measure_env` found."""
    result = measure_env(config)
    if config.json:
        print(json.dumps({name: value for name, value in result.items() if name != "json"}))
        return 0
    for side, about in (("single", "one after another"), ("batched", f"{config.num_envs} at once")):
        values = result["repetitions_episodes_per_second"][side]
        print(
            f"{side:<8} {result['episodes_per_second'][side]:9.1f} episodes/s ({min(values):.1f} to {max(values):.1f}), {about}"
        )
    print(f"ratio    {result['ratio']:9.1f} times, medians of {config.repetitions} on {result['device']}")
    return 0


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
    """Milliseconds per shell command in a sandbox and in plain bash, and commands per second with several threads."""

    commands: int = 200
    """Commands that each side is timed on, in turns; the threads together run as many again."""
    threads: int = 4
    """Threads for the rate."""
    json: bool = False
    """Print JSON and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("commands", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be 1 or more")


def measure_sandbox(config: SandboxConfig) -> dict[str, Any]:
    """Times both sides, with the file tree in and out on the sandbox's -> medians and 95th percentiles in ms, and commands per second.

    Raises:
        InputError: there is no sandbox on this machine.
    """
    from concurrent.futures import ThreadPoolExecutor
    from statistics import quantiles
    from tempfile import TemporaryDirectory

    from envs.verify.sandbox.archive import Entry
    from envs.verify.sandbox.probe import unavailable
    from envs.verify.sandbox.run import execute

    if missing := unavailable():
        raise InputError(missing)
    folders = sorted({str(parent) for name in FILES for parent in Path(name).parents if parent != Path()})
    tree = {name: Entry("directory", 0o755) for name in folders}
    tree |= {name: Entry("file", 0o644, text.encode()) for name, text in FILES.items()}
    with TemporaryDirectory() as plain:
        for name, text in FILES.items():
            (Path(plain) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(plain) / name).write_text(text)

        def sandboxed(command: str) -> int | None:
            return execute(command, tree).exit_code

        def bare(command: str) -> int | None:
            return subprocess.run(
                ["bash", "--noprofile", "--norc", "-c", command], cwd=plain, capture_output=True
            ).returncode

        times: dict[str, list[float]] = {"sandbox": [], "bash": []}
        warm_up = len(COMMANDS)
        for index in range(warm_up + config.commands):
            for side, run in (("sandbox", sandboxed), ("bash", bare)):
                started = time.perf_counter()
                if run(COMMANDS[index % len(COMMANDS)]) != 0:
                    raise RuntimeError(f"failed in {side}: {COMMANDS[index % len(COMMANDS)]}")
                times[side] += [1000 * (time.perf_counter() - started)] if index >= warm_up else []
    with ThreadPoolExecutor(config.threads) as pool:
        started = time.perf_counter()
        list(pool.map(sandboxed, (COMMANDS[index % len(COMMANDS)] for index in range(config.commands))))
        rate = config.commands / (time.perf_counter() - started)
    return {
        "benchmark": "sandbox",
        **asdict(config),
        "median_ms": {side: median(values) for side, values in times.items()},
        "p95_ms": {
            side: quantiles(values * 2, n=20)[-1] for side, values in times.items()
        },  # twice: one value alone has no quantiles
        "commands_per_second": rate,
        "device": f"{len(os.sched_getaffinity(0))} CPUs",
    }


def sandbox(config: SandboxConfig) -> int:
    """Prints what `measure_sandbox` found."""
    result = measure_sandbox(config)
    if config.json:
        print(json.dumps({name: value for name, value in result.items() if name != "json"}))
        return 0
    for side in ("sandbox", "bash"):
        print(
            f"{side:<8} {result['median_ms'][side]:7.1f} ms a command at the median, 95 % within {result['p95_ms'][side]:.1f} ms"
        )
    print(
        f"sandbox  {result['commands_per_second']:7.1f} commands/s with {config.threads} threads on {result['device']}"
    )
    return 0


BENCHMARKS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "env": (EnvConfig, env),
    "sandbox": (SandboxConfig, sandbox),
}


def main(argv: Sequence[str]) -> int:
    """The first word names the benchmark, the rest are its flags."""
    usage = f"python -m agents.bench {{{','.join(BENCHMARKS)}}} [--help] [--flag value ...]"
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {usage}")
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        given = f"{argv[0]}: no such benchmark" if argv else "which benchmark?"
        print(f"error: {given}: use {usage}", file=sys.stderr)
        return 2
    config, run = BENCHMARKS[argv[0]]
    return run_command(config, run, argv[1:], agent=f"bench {argv[0]}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
