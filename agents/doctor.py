"""What will work on this machine and what will not, and the fix.

    python -m agents.doctor
    python -m agents.doctor --quick      # without the attacks on the sandbox and the short run
    python -m agents.doctor --json

It looks at Python, packages, processor, GPU, memory, disk, the sandbox and the model hub; attacks the sandbox
as `python -m agents.selftest` does; and runs two short cycles of the loop in a folder that it removes. The
exit status is 0 if the loop works and its commands are executed, 1 if not. What is optional never changes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from agents.cli.command import run_command
from agents.cli.display import say
from envs.messages import one_line

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--model embedded --domain shell --reward likelihood --cycles 2 --tasks 10"
FLAGS += " --eval-tasks 10 --eval-subset 5"
RUN = f"python -m agents.rejection_sft {FLAGS}"
MEMORY = 2.0  # GiB that a run of the embedded model takes, with room
DISK = 1.0  # GiB of a run's folder, likewise


@dataclass(frozen=True)
class Config:
    """Says what will work on this machine and what will not, and the fix. Exit status 0: the loop works."""

    quick: bool = False
    """Leave out the attacks on the sandbox (a minute) and the short run."""
    json: bool = False
    """Print only JSON: a list of objects with name, state, found and fix."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        state: `good`; `missing`, where something optional will not work; `broken`, where the loop will not.
        found: in a few words.
        fix: what to do; empty where it is good.
    """

    name: str
    state: Literal["good", "missing", "broken"]
    found: str
    fix: str = ""


def main(config: Config) -> int:
    """Prints a finding a line -> 1 if any is broken."""
    findings = []
    for finding in examined(config.quick):
        findings.append(finding)
        if not config.json:
            fix = f": {finding.fix}" if finding.fix else ""
            say(f"{finding.state:<8} {finding.name:<12} {finding.found}{fix}")
    broken = any(finding.state == "broken" for finding in findings)
    if config.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        works = "Nothing keeps the loop from working here." if config.quick else "The loop works here."
        say("The loop will not work here as it should." if broken else works)
    return int(broken)


def examined(quick: bool) -> Iterator[Finding]:
    """One finding after the other; the slow ones come last."""
    checks: list[Callable[[], Finding]] = [python, packages, processor, gpu, memory, disk, sandbox]
    checks += [trl, small_model, hub]
    if not quick:
        checks += [attacks, short_run]
    for check in checks:
        yield check()


def python() -> Finding:
    """The version of Python."""
    return Finding("Python", "good", f"{platform.python_version()}, {sys.executable}")


def packages() -> Finding:
    """Whether each package is there, in a version that it may have; and which were not tested together."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires("inversion") or []
    except metadata.PackageNotFoundError:
        return Finding("packages", "broken", "inversion is not installed", "make setup, or pip install -e .")
    wrong, others = [], []
    tested = tested_versions()
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
        elif tested.get(requirement.name, version) != version.partition("+")[0]:
            others.append(f"{requirement.name} {version} ({tested[requirement.name]} was tested)")
    if wrong:
        return Finding("packages", "broken", ", ".join(wrong), "pip install -c constraints.txt -e .")
    if others:
        return Finding("packages", "good", f"in range, though not all as tested: {', '.join(others)}")
    return Finding("packages", "good", "as tested")


def tested_versions() -> dict[str, str]:
    """Package -> the version in constraints.txt; nothing where the project is installed without it."""
    found = {}
    with contextlib.suppress(OSError):
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
            name, _, version = line.partition("==")
            found[name.strip()] = version.strip()
    return found


def processor() -> Finding:
    """How many processors there are for this process, and with which numbers they are faster."""
    import torch

    from agents.policy.compute import ROWS, bfloat16_speed

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    times = bfloat16_speed(torch.randn(ROWS, 576), torch.randn(1536, 576))
    return Finding("processor", "good", f"{count} for this process; bfloat16 is {times:.2g} times as fast")


def gpu() -> Finding:
    """The CUDA device."""
    import torch

    if not torch.cuda.is_available():
        why = "PyTorch was built without CUDA" if torch.version.cuda is None else "no CUDA device"
        return Finding("GPU", "missing", why, "the embedded models and SmolLM2 run on a CPU; 7B takes a GPU")
    free, total = torch.cuda.mem_get_info()
    numbers = "bfloat16" if torch.cuda.is_bf16_supported() else "float16 alone"
    four = "4 bits" if importlib.util.find_spec("bitsandbytes") else "no 4 bits (pip install '.[gpu]')"
    room = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return Finding("GPU", "good", f"{torch.cuda.get_device_name()}, {room}, {numbers}, {four}")


def memory() -> Finding:
    """What is free of the memory."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < MEMORY:
        return Finding("memory", "broken", f"{free:.1f} GiB free", f"free some: a run takes {MEMORY:g} GiB")
    return Finding("memory", "good", f"{free:.0f} GiB free")


def disk() -> Finding:
    """What is free where runs are written."""
    place = Path("runs") if Path("runs").is_dir() else Path()
    if not os.access(place, os.W_OK):
        return Finding("disk", "broken", f"{place.absolute()} cannot be written", "use --output elsewhere")
    free = shutil.disk_usage(place).free / 2**30
    if free < DISK:
        return Finding(
            "disk", "broken", f"{free:.1f} GiB free for runs", "free some, or use --output elsewhere"
        )
    return Finding("disk", "good", f"{free:.0f} GiB free for runs")


def sandbox() -> Finding:
    """Whether commands can be executed."""
    from envs.verify.sandbox.probe import unavailable

    if missing := unavailable():
        found, _, fix = missing.partition(": ")
        return Finding("sandbox", "broken", f"shell commands are not executed: {found}", fix)
    return Finding("sandbox", "good", "commands are executed")


def trl() -> Finding:
    """What agents.dpo, grpo, rloo, spin, self_rewarding and constitutional need."""
    if importlib.util.find_spec("trl") is None:
        return Finding("TRL", "missing", "no agents.dpo, grpo, rloo and rivals", "pip install '.[trl]'")
    return Finding("TRL", "good", metadata.version("trl"))


def small_model() -> Finding:
    """Whether `--model smollm2` is here."""
    from agents.policy import smollm2

    if (smollm2.folder() / "config.json").is_file():
        return Finding("SmolLM2", "good", "--model smollm2 needs no download")
    return Finding("SmolLM2", "missing", "not here yet", "make smollm2, or python -m agents.fetch")


def hub() -> Finding:
    """Whether the Hugging Face hub answers."""
    from agents.policy.names import SMOLLM2
    from envs.hub import find_hub

    try:
        find_hub(SMOLLM2)
    except (OSError, ValueError):
        fix = "use folders and the models that ship here, or a network that reaches it"
        return Finding("hub", "missing", "does not answer", fix)
    return Finding("hub", "good", "answers, or has been read before")


def attacks() -> Finding:
    """Attacks the sandbox."""
    from envs.verify.attacks.judge import run_all
    from envs.verify.sandbox.probe import unavailable

    if unavailable():
        return Finding("attacks", "missing", "none, since there is no sandbox", "see above")
    outcomes = list(run_all())
    escaped = [outcome.name for outcome in outcomes if not outcome.contained]
    if escaped:
        fix = "execute nothing here, and tell us (SECURITY.md)"
        return Finding("attacks", "broken", f"not contained: {', '.join(escaped)}", fix)
    return Finding("attacks", "good", f"{len(outcomes)} of {len(outcomes)} contained")


def short_run() -> Finding:
    """Two short cycles of `agents.rejection_sft`, in a folder that is removed."""
    from agents import rejection_sft

    started = time.monotonic()
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        words = [*FLAGS.split(), "--output", folder, "--name", "doctor"]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = run_command(rejection_sft.Config, rejection_sft.main, words, "rejection_sft")
            except Exception as error:
                return Finding("short run", "broken", one_line(error), f"run {RUN}")
        if status != 0:
            last = said.getvalue().strip().splitlines()[-1:]
            return Finding("short run", "broken", "".join(last), f"run {RUN}")
        results = json.loads((Path(folder) / "doctor" / "self_improvement_results.json").read_text())
    right = results["eval"]["end"]["eval/greedy"]
    took = f"{time.monotonic() - started:.0f} s for two cycles"
    if right is None:
        return Finding("short run", "broken", f"{took}; nothing was executed", "see the sandbox above")
    return Finding("short run", "good", took)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main, sys.argv[1:]))
