"""Run folders with made-up numbers, as a trainer writes them, so that reports are tested without training."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SETTINGS = {
    "agent": "rejection_sft",
    "cycles": 4,
    "tasks": 50,
    "candidates": 3,
    "threshold": 0.5,
    "temperature": 0.7,
    "model": "embedded",
    "adapter": None,
    "lr": 0.001,
    "max_new_tokens": 48,
    "domain": "all",
    "reward": "likelihood",
    "inverter": "current",
    "inverse_temperature": 0.0,
    "embedder": "all-MiniLM-L6-v2",
    "keep": "last",
    "eval_tasks": 20,
    "eval_subset": 8,
    "eval_samples": 2,
    "seed": 0,
}
INTENTS = ("shell: copy", "shell: count-lines", "sql: join-above", "network: ping-count")


def make_run(
    folder: Path,
    start: float = 0.5,
    end: float = 0.75,
    *,
    score: tuple[float, float] = (0.6, 0.7),
    done: int | None = None,
    alarms: Sequence[str] = (),
    noise: float = 0.0,
    **settings: Any,
) -> Path:
    """A run whose held-out accuracy goes from `start` to `end`; of 20 tasks, so give multiples of 0.05.

    Args:
        score: its own score in the first cycle and the last.
        done: cycles that are done; with fewer than all of them the run is still at work.
        alarms: alarms that hold in the last cycle.
        noise: how far the curve may stray.
    """
    config = {**SETTINGS, **settings}
    cycles, done = config["cycles"], config["cycles"] if done is None else done
    step, subset, tasks = (
        2 * config["tasks"] * config["candidates"],
        config["eval_subset"],
        config["eval_tasks"],
    )
    rng = random.Random(f"{folder.name}{config['reward']}{config['seed']}")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def at(cycle: int, ends: tuple[float, float]) -> float:
        return ends[0] + (ends[1] - ends[0]) * cycle / cycles

    def evaluation(share: float, auc: float) -> dict[str, float]:
        return {
            "eval/greedy": share,
            "eval/pass@1": share - 0.05,
            "eval/auc": auc,
            "eval/auc_within": auc - 0.1,
        }

    metrics: list[dict[str, Any]] = [{"step": 0, "cycle": 0, **evaluation(start, 0.8)}]
    timings: list[dict[str, Any]] = []
    for cycle in range(1, done + 1):
        truth = min(1.0, max(0.0, at(cycle, (start, end)) + rng.uniform(-noise, noise)))
        metrics.append(
            {
                "step": step * cycle,
                "cycle": cycle,
                **evaluation(truth, 0.8 + 0.02 * cycle),
                "reward/mean": at(cycle - 1, score),
                "policy/distinct": 0.5 - 0.05 * cycle,
                "policy/entropy": 0.1 - 0.01 * cycle,
                "policy/kl": 0.01 * cycle,
                "policy/length": 16.0,
                **{
                    f"alarm/{name}": float(name in alarms and cycle == done)
                    for name in ("divergence", "entropy", "private_code")
                },
            }
        )
        timings.append({"step": step * cycle, "cycle": cycle, "time/generate": 2.0, "time/train": 0.5})
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "timings.jsonl", timings)
    rows = truth_rows(0, "subset", start, subset) + truth_rows(0, "whole", start, tasks)
    rows += [
        row
        for cycle in range(1, done + 1)
        for row in truth_rows(cycle, "subset", at(cycle, (start, end)), subset)
    ]
    results: dict[str, Any] = {
        "cycles": [{"cycle": cycle} for cycle in range(1, done + 1)],
        "eval": {"start": evaluation(start, 0.8)},
    }
    results["improvement"] = score[1] - score[0]
    if done == cycles:
        results["eval"]["end"], results["kept"] = evaluation(end, 0.9), cycles
        rows += truth_rows(cycles, "whole", end, tasks)
        (folder / "self_improvement_results.json").write_text(json.dumps(results))
    (folder / "progress.json").write_text(json.dumps(results))
    write_lines(folder / "truth.jsonl", rows)
    return folder


def truth_rows(cycle: int, part: str, share: float, tasks: int) -> list[dict[str, Any]]:
    """Lines of truth.jsonl: the first tasks are right; both samples are as the greedy command."""
    rows = []
    for index in range(tasks):
        domain, intent = INTENTS[index % len(INTENTS)].split(": ")
        judged = {"command": "ls", "status": "correct" if index < round(share * tasks) else "wrong"}
        rows.append(
            {
                "cycle": cycle,
                "part": part,
                "task_id": f"heldout-{index}",
                "domain": domain,
                "intent": intent,
                "task": f"task {index}",
                "reference": "ls",
                "greedy": judged,
                "samples": [judged, judged],
            }
        )
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A log: sorted keys, a record a line."""
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
