"""Damages each file of a run in turn, and goes on with the run.

    python tests/damage.py

The file must be named. Then the run goes back to the checkpoint before the damage and ends with the same
bytes and curves, or it does without the file, or it says that it cannot go on and leaves everything as it is.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import save_brief, save_pocket
from crash import Trainer, contents, differences

TEXTS = ("tensorboard samples", "tensorboard _hparams_")
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "timings.jsonl")
OTHERS = (
    "config.yaml",
    "environment.json",
    "progress.json",
    "self_improvement_results.json",
    "selection.json",
)


def truncate(path: Path, at: float) -> None:
    """Cuts a file; `at` is the share that is left."""
    os.truncate(path, int(path.stat().st_size * at))


def flip(path: Path, at: float) -> None:
    """Turns over one bit."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def delete(path: Path, at: float) -> None:
    """Removes a file."""
    path.unlink()


KINDS: dict[str, Callable[[Path, float], None]] = {
    "truncated": truncate,
    "one bit flipped": flip,
    "deleted": delete,
}


def everything(folder: Path) -> dict[str, bytes]:
    """All bytes in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def outcome(trainer: Trainer, expected: Mapping[str, Any], names: Sequence[str]) -> str:
    """Goes on with a damaged run -> what became of it."""
    before = everything(trainer.folder)
    code = trainer.run(["--resume", str(trainer.folder)])
    printed = trainer.printed.read_text()
    named = all(name in printed for name in names)
    wrong = differences(expected, trainer.folder)
    if code == 2 and "Traceback" not in printed:
        if everything(trainer.folder) != before:
            return "FAULT: refused, but something was written"
        return "refused" if named else f"FAULT: refused, not named: {printed[-300:]}"
    if code:
        return f"FAULT: exit {code}: {printed[-300:]}"
    if "its curves are written again" in printed:  # and its texts are not
        wrong = [name for name in wrong if not name.startswith(TEXTS)]
        return f"FAULT: differs: {', '.join(wrong)}" if wrong else "curves written again"
    if wrong and wrong != ["timings.jsonl"]:
        return f"FAULT: differs: {', '.join(wrong)}"
    if "resuming from" in printed:
        return "one cycle back, same end" if named else "FAULT: not named"
    if wrong or names[0] in printed:
        return "goes on without it" if named else "FAULT: not named"
    return "same end"


def rows(folder: Path) -> list[tuple[str, list[str], float]]:
    """What is damaged: (row of the table, files, where in them)."""
    newest, older = sorted((folder / "checkpoints").glob("cycle-*"))[:-3:-1]
    found: list[tuple[str, list[str], float]] = []
    for path in sorted(newest.iterdir()):
        found.append((f"{path.name} of the newest checkpoint", [str(path.relative_to(folder))], 0.5))
    for path in sorted(newest.iterdir()):
        both = [str((checkpoint / path.name).relative_to(folder)) for checkpoint in (newest, older)]
        found.append((f"{path.name} of both checkpoints", both, 0.5))
    for log in LOGS:
        found.append((f"{log}, the last cycle", [log], 0.99))
        found.append((f"{log}, before both checkpoints", [log], 0.1))
    events = next((folder / "tensorboard").iterdir()).relative_to(folder)
    found += [(name, [name], 0.5) for name in OTHERS if (folder / name).exists()]
    return [*found, ("TensorBoard's events", [str(events)], 0.5)]


def damage(trainer: Trainer, whole: Path, only: Sequence[str] = ()) -> list[str]:
    """The table's rows for one trainer; `only` those whose name begins so."""
    if code := trainer.run():
        raise SystemExit(f"exit {code}: {trainer.printed.read_text()}")
    expected = contents(trainer.folder)
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(trainer.folder, whole)
    lines = []
    for what, files, at in rows(whole):
        if only and not what.startswith(tuple(only)):
            continue
        outcomes = []
        for harm in KINDS.values():
            if harm is delete and "before" in what:
                outcomes.append("")
                continue
            trainer.clear()
            shutil.copytree(whole, trainer.folder)
            for file in files:
                harm(trainer.folder / file, at)
            outcomes.append(outcome(trainer, expected, [Path(file).name for file in files]))
        lines.append(f"| {what} | {' | '.join(outcomes)} |")
        print(lines[-1], flush=True)
    trainer.clear()
    return lines


def main() -> int:
    """Prints the table of each trainer; 1 if there is a fault."""
    importlib.import_module("agents.rejection_sft")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        for made in ("pocket", "brief"):
            (work / made).mkdir()
        model = save_brief(save_pocket(work / "pocket"), work / "brief")
        print(f"| | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
        for agent, only in (("rejection_sft", ()), ("ppo", ("optimizer", "value_head"))):
            lines += damage(Trainer(agent, model, work), work / "whole", only)
    return int(any("FAULT" in line for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
