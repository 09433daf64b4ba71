"""Looks for sandboxes that miss the end of a command: `python tests/missed_ends.py [COMMANDS]`. No test.

Commands that end at once run in many fresh processes, since the ends that were missed were among the first of
a process on a busy machine. Of one that is missed, the state of the processes is printed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["true", "ls", "echo hi", "false", "cat none", "find . | wc -l", "ls -la | sort", "nosuch"]
COMMANDS += ["exit 3", "kill -9 $$", "sleep 0 & true", "wc -l *"]
WALL = 3.0


def state(pid: int, depth: int = 0) -> list[str]:
    """A line for a process and each of those below it."""
    lines = []
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:60]
        where = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")
        lines.append(f"{'  ' * depth}{pid} {words!r} waits in {where}")
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            lines += state(int(child), depth + 1)
    return lines


def batch(number: int) -> tuple[int, int, int]:
    """Some commands in some threads of a fresh process -> how many, ends missed, trees missed."""
    from envs.verify.sandbox import run

    read = run._Run._read

    def watched(sandbox: Any, *arguments: Any, **options: Any) -> Any:
        stopped = read(sandbox, *arguments, **options)
        if stopped == "timeout":
            print("\n".join(state(sandbox.process.pid)), flush=True)
        return stopped

    run._Run._read = watched  # type: ignore[method-assign]
    rng = random.Random(number)
    chosen = rng.choices(COMMANDS, k=rng.choice([8, 40, 120]))
    with ThreadPoolExecutor(rng.choice([1, 2, 4, 8])) as pool:
        done = list(pool.map(lambda command: run.execute(command, wall=WALL), chosen))
    missed = sum(result.ended == "timeout" for result in done)
    return len(done), missed, sum(result.ended == "exited" and result.tree is None for result in done)


def main(commands: str = "10000") -> None:
    """Prints the counts."""
    sys.path.insert(0, str(ROOT))
    total = missed = treeless = 0
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for number in range(10**9):
            found = pool.apply(batch, (number,))
            total, missed, treeless = total + found[0], missed + found[1], treeless + found[2]
            if total >= int(commands):
                break
    print(f"{total} commands: the end of {missed} was missed, and the tree of {treeless}")


if __name__ == "__main__":
    main(*sys.argv[1:])
