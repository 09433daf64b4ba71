"""Gives every command the wrong inputs of bad_inputs.yaml, and says how each was refused.

    python tests/bad_inputs.py                 # the counts of docs/RELIABILITY.md
    python tests/bad_inputs.py --processes 10  # each tenth, in a Python of its own, for the times there
    python tests/bad_inputs.py --json          # what the test reads
    python tests/bad_inputs.py --all play      # also what was right, of one command

A refusal is right if the command ends with 2, prints nothing but one line on stderr, which is as the table
says, loads neither torch nor a model, and leaves every file as it was. Each case is a fork of one process
that has loaded what all commands need.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from fabricated import make_run, write_lines

from agents.cli.command import run_command
from envs.domain import load_domain
from envs.schema import EMBEDDED

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".yaml")
LIMIT = 60.0  # seconds on a busy machine, after which a command hangs
HEAVY = ("torch", "transformers", "trl", "datasets", "sentence_transformers")
REPEATED = re.compile(r"<([^<>]+)\*(\d+)>")  # <7*5000> stands for 5,000 sevens


@dataclass(frozen=True)
class Case:
    """A command line that must be refused. `says`: what the line must hold; `...` stands for anything."""

    command: str
    argv: str
    says: str


@dataclass(frozen=True)
class Outcome:
    """What a command did. `faults`: what was wrong about it, empty where it was refused as it should be."""

    case: Case
    said: str
    seconds: float
    faults: list[str]


def expanded(text: str) -> str:
    """A text of the table with its repetitions written out."""
    return REPEATED.sub(lambda match: match[1] * int(match[2]), text)


def read_table() -> tuple[dict[str, str], list[Case]]:
    """The files that the commands are given, and the cases of every command."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    cases = []
    for names, rows in table["cases"].items():
        for name in names.split(", "):
            group = table["groups"].get(name, [name])
            cases += [Case(command, str(argv), says) for command in group for argv, says in rows.items()]
    return table["files"], cases


# ---- the folder that they run in ----


def lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """Writes the files of the table, and those that a table cannot hold."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(expanded(text), encoding="utf-8")
    for ending in ("yaml", "jsonl"):
        os.mkfifo(folder / f"pipe.{ending}")
        (folder / f"link-to-pipe.{ending}").symlink_to(f"pipe.{ending}")
        (folder / f"device.{ending}").symlink_to("/dev/zero")
        (folder / f"dangling.{ending}").symlink_to("nowhere")
        (folder / f"circle.{ending}").symlink_to(f"circle.{ending}")
        (folder / f"folder.{ending}").mkdir()
        (folder / f"latin.{ending}").write_bytes('{"task": "größe"}\n'.encode("latin-1"))
        (folder / f"utf16.{ending}").write_bytes('{"task": "x"}\n'.encode("utf-16"))
        with (folder / f"large.{ending}").open("wb") as file:
            file.truncate(2**33)  # no byte of which is on the disk
    aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (folder / "bomb.yaml").write_text("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + aliases)
    (folder / "many.yaml").write_text(f"seeds: [{', '.join(map(str, range(300_000)))}]\n")
    lay_out_runs(folder / "runs")
    for name in ("good", "ia3", "other-base", "flipped"):
        (folder / "adapters" / name / "adapter_model.safetensors").touch()


def lay_out_runs(folder: Path) -> None:
    """Runs of made-up numbers: whole ones, and each of them with one fault."""
    for name in ("a", "no-metrics", "half", "flipped", "no-adapter", "bad-metrics", "bad-progress"):
        run = make_run(folder / name)
        rollout = {"phase": "before", "cycle": 1}
        write_lines(run / "rollouts.jsonl", [rollout] * 10)
        checkpoint = run / "checkpoints" / "cycle-0004"
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_model.safetensors").touch()
        base = {"peft_type": "LORA", "base_model_name_or_path": "embedded"}
        (checkpoint / "adapter_config.json").write_text(json.dumps(base))
        whole = (run / "rollouts.jsonl").read_bytes()
        logs = {"rollouts.jsonl": {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}}
        (checkpoint / "state.json").write_text(json.dumps({"logs": logs}))
        names = sorted(path.name for path in checkpoint.iterdir())
        sums = {each: hashlib.sha256((checkpoint / each).read_bytes()).hexdigest() for each in names}
        (checkpoint / "COMPLETE").write_text(json.dumps({"sha256": sums}))
    (folder / "no-metrics" / "metrics.jsonl").unlink()
    os.truncate(folder / "half" / "rollouts.jsonl", len(whole) // 2)
    (folder / "flipped/checkpoints/cycle-0004/adapter_model.safetensors").write_bytes(b"x")
    (folder / "no-adapter/checkpoints/cycle-0004/adapter_model.safetensors").unlink()
    (folder / "bad-metrics" / "metrics.jsonl").write_text('{"step": 0}\n{"step": "one"}\n')
    (folder / "bad-progress" / "progress.json").write_text("{")
    (folder / "bad-progress" / "self_improvement_results.json").unlink()
    make_run(folder / "of-dpo", agent="dpo")
    make_run(folder / "begun", done=0)
    make_run(folder / "at-work", done=2)
    make_run(folder / "elsewhere", domain="network")
    make_run(folder / "longer", max_new_tokens=64)
    make_run(folder / "other-scale", reward="slots")


# ---- running ----


def words_of(case: Case) -> list[str]:
    """The command line after the command's name."""
    return [expanded(word) for word in shlex.split(case.argv)]


def ended(pid: int) -> tuple[int | None, float]:
    """Waits for a child -> (its exit status; None for one that hung and was killed, seconds of a core)."""
    handle = os.pidfd_open(pid)
    try:
        hung = not select.select([handle], [], [], LIMIT)[0]
    finally:
        os.close(handle)
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return None if hung else os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


class Poison:
    """A finder of modules that ends the process as soon as one of HEAVY is imported."""

    def find_spec(self, name: str, *_: object) -> None:
        """Nothing is found here; who only asks where a module lies is left alone."""
        caller = sys._getframe(1)
        while caller.f_code.co_filename.startswith("<frozen importlib._"):
            caller = caller.f_back
        if name in HEAVY and caller.f_globals["__name__"] != "importlib.util":
            sys.stdout.flush()
            print(f"(loads {name})", flush=True)
            os._exit(75)


def forked(case: Case, out: Path, error: Path) -> int:
    """Starts a fork that does what `python -m agents.COMMAND` does."""
    pid = os.fork()
    if pid:
        return pid
    for descriptor, path in ((0, Path(os.devnull)), (1, out), (2, error)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.meta_path.insert(0, Poison())
    try:
        status = called(case.command, words_of(case))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def called(command: str, words: list[str]) -> int:
    """What the last line of a command's file does."""
    module: Any = importlib.import_module(f"agents.{command}")
    if command == "bench":
        return int(module.main(words))
    return run_command(module.Config, module.main, words, command)


def in_a_process(case: Case, out: Path, error: Path) -> int:
    """Starts it in a Python of its own."""
    words = [sys.executable, "-m", f"agents.{case.command}", *words_of(case)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with out.open("wb") as stdout, error.open("wb") as stderr:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment
        )
    return process.pid


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, its size and when it was changed."""
    found = {}
    for above, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(above) / name
            about = path.lstat()
            found[str(path)] = (about.st_size, about.st_mtime_ns)
    return found


def model_line(text: str) -> str:
    """The line that names the model and why; `main` comes after it."""
    return text[: text.find("\n") + 1] if text.startswith("model: ") else ""


def outcome_of(case: Case, folder: Path, log: Path, processes: bool) -> Outcome:
    """Runs a case and compares what it did with what it should do."""
    before = snapshot(folder)
    start = in_a_process if processes else forked
    status, seconds = ended(start(case, log / "out", log / "error"))
    out, said = ((log / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "error"))
    faults = []
    if status is None:
        faults.append("hangs")
    elif status != 2:
        faults.append(f"ends with {status}")
    out, said = out.removeprefix(model_line(out)), said.removeprefix(model_line(said))
    if out:
        faults.append(f"prints {out.strip()[:200]}")
    line = said.removeprefix("error: ").removesuffix("\n")
    if not said.startswith("error: ") or "\n" in line:
        faults.append("is not one line")
    elif not line.isprintable():
        faults.append("has characters that a terminal obeys")
    elif len(line) > 600:
        faults.append(f"has {len(line)} characters")
    if not re.fullmatch(".*".join(map(re.escape, case.says.split("..."))), line, re.DOTALL):
        faults.append("says something else")
    after = snapshot(folder)
    if after != before:
        changed = sorted(set(before.items()) ^ set(after.items()))
        faults.append(f"changes {os.path.relpath(changed[0][0], folder)}")
    return Outcome(case, line, round(seconds, 3), faults)


def all_outcomes(processes: bool = False, only: str = "", every: int = 1) -> Iterator[Outcome]:
    """Every case of the table, those of one command, or each `every`-th, one after the other."""
    files, cases = read_table()
    with tempfile.TemporaryDirectory() as above:
        folder, log = Path(above) / "here", Path(above) / "log"
        folder.mkdir()
        log.mkdir()
        lay_out(folder, files)
        os.chdir(folder)
        if not processes:
            load_what_all_need({case.command for case in cases})
        for case in cases[::every]:
            if not only or case.command == only:
                yield outcome_of(case, folder, log, processes)
        os.chdir(ROOT)


def load_what_all_need(commands: set[str]) -> None:
    """Has the commands read a flag and the domains once: a fork then need not import what they need."""
    importlib.import_module("agents.studies.plan")
    for name in EMBEDDED:
        load_domain(name)
    for command in commands:
        with contextlib.redirect_stderr(io.StringIO()):
            called(command, ["env"] * (command == "bench") + ["--seed", "word"])


def main(argv: list[str]) -> int:
    """Prints a line for each that is wrong, then a table of counts; or all of it as JSON."""
    words = [word for word in argv if not word.startswith("--")]
    only = next((word for word in words if not word.isdigit()), "")
    every = next((int(word) for word in words if word.isdigit()), 1)
    rows: list[dict[str, Any]] = []
    counts: dict[str, list[float]] = {}  # tried, right, slowest
    for found in all_outcomes("--processes" in argv, only, every):
        rows.append({**asdict(found), "faults": found.faults})
        count = counts.setdefault(found.case.command, [0, 0, 0.0])
        count[0] += 1
        count[1] += not found.faults
        count[2] = max(count[2], found.seconds)
        if "--json" not in argv and (found.faults or "--all" in argv):
            print(f"{found.case.command} {found.case.argv[:100]}  ({found.seconds} s)")
            print(f"    {'; '.join(found.faults) or 'right'}")
            print(f"    {found.said[:1500]}", flush=True)
    if "--json" in argv:
        print(json.dumps(rows))
        return 0
    print("| command | tried | right | most of a core, s |\n|---|---|---|---|")
    for command, (tried, right, slowest) in sorted(counts.items()):
        print(f"| {command} | {tried:.0f} | {right:.0f} | {slowest:.2f} |")
    tried, right = (sum(count[place] for count in counts.values()) for place in (0, 1))
    print(f"| all | {tried:.0f} | {right:.0f} | {max(count[2] for count in counts.values()):.2f} |")
    return int(right < tried)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
