"""Runs attacks and judges from outside whether they were contained."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.verify.attacks.host import Host, outlived, watched
from envs.verify.attacks.table import Attack, attacks_here
from envs.verify.sandbox.run import MAX_STDERR, MAX_STDOUT, SEND_BACK, Execution, execute

SLACK = SEND_BACK + 2  # seconds beyond the wall clock: a tree may be hard to read, and the machine busy
MAX_LOSS = 2 << 30  # bytes of memory or disk that a greedy attack may take from the host while it runs
TRIES = 3  # a greedy attack is judged by its best try: the machine may be busy with something else
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")

Executor = Callable[..., Execution]


@dataclass(frozen=True)
class Outcome:
    """Whether one attack was contained, and why not or how it ended."""

    name: str
    contained: bool
    detail: str


def run_all() -> Iterator[Outcome]:
    """Runs every attack of this machine; where the sandbox does not isolate at all, none."""
    if common := shared_namespaces():
        detail = f"shared with the host: {', '.join(common)}; no attack was started"
        yield Outcome("namespaces", False, detail)
        return
    with Host() as host:
        for attack in attacks_here():
            yield run(attack, host)


def shared_namespaces() -> list[str]:
    """The kinds of namespace that a sandboxed command has in common with us."""
    files = [f"/proc/self/ns/{kind}" for kind in NAMESPACES]
    theirs = execute(f"readlink {' '.join(files)}").stdout.decode().split()
    ours = [str(Path(file).readlink()) for file in files]
    if not theirs:
        return list(NAMESPACES)
    shared = []
    for kind, their_namespace, our_namespace in zip(NAMESPACES, theirs, ours, strict=True):
        if their_namespace == our_namespace:
            shared.append(kind)
    return shared


def run(attack: Attack, host: Host, executor: Executor = execute) -> Outcome:
    """Runs one attack and judges it."""
    detail = ""
    for _ in range(TRIES if attack.greedy else 1):
        with watched() as loss:
            for script in (attack.script, attack.again):
                if script:
                    contained, detail = _try(attack, script, host, executor)
                    if not contained:
                        return Outcome(attack.name, False, detail)
        memory, disk = (taken >> 20 for taken in loss)  # MiB
        if not attack.greedy:
            return Outcome(attack.name, True, detail)
        if max(loss) <= MAX_LOSS:
            return Outcome(attack.name, True, f"{detail}, {memory} MiB at most")
        detail = f"it took {memory} MiB of memory, {disk} MiB of disk from the host"
    return Outcome(attack.name, False, detail)


def _try(attack: Attack, script: str, host: Host, executor: Executor) -> tuple[bool, str]:
    """Runs one script -> whether it was contained, and why not or how it ended."""
    tag = f"{secrets.randbelow(10**12):012}"
    for word, meaning in host.words(tag).items():
        script = script.replace(word, meaning)
    started = time.monotonic()
    try:
        execution = executor(f"{script}\n# {tag}", wall=attack.wall)
    except Exception as error:  # whatever a command does is a result
        return False, f"it raised {type(error).__name__}: {str(error)[:200]}"
    seconds = time.monotonic() - started
    if reason := breach(attack, execution, host, seconds):
        return False, reason
    if left := outlived(tag):
        return False, f"{len(left)} processes outlived it"
    return True, f"{execution.ended} after {seconds:.2f} s"


def breach(attack: Attack, execution: Execution, host: Host, seconds: float) -> str:
    """Why an attack was not contained, from what came back and the planted things; empty where it was."""
    returned = _returned(execution)
    if host.secret.encode() in returned:
        return "the secret came back"
    if b"BREACH" in execution.stdout or b"BREACH" in execution.stderr:
        return next(repr(line) for line in returned.splitlines() if b"BREACH" in line)
    if harm := host.harm():
        return harm
    if execution.ended not in attack.ended:
        return f"it ended in a way that is not allowed: {execution.ended}"
    if seconds > attack.wall + SLACK:
        return f"it took {seconds:.1f} s"
    if len(execution.stdout) > MAX_STDOUT or len(execution.stderr) > MAX_STDERR:
        return "more output than is allowed"
    if wrong := attack.check(execution):
        return wrong
    if attack.refused:
        if execution.exit_code != attack.refused:
            return f"exit status {execution.exit_code}, not {attack.refused}"
    elif b"tried" not in execution.stdout:
        return f"it was not tried: {execution.stderr[:200]!r}"
    return ""


def _returned(execution: Execution) -> bytes:
    """All that came back, output and tree."""
    parts = [execution.stdout, execution.stderr]
    for path, entry in (execution.tree or {}).items():
        parts += [os.fsencode(path), entry.content]
    return b"\n".join(parts)
