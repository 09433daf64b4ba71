"""What a run prints about its results: a line per cycle, and at the end a table and the held-out accuracy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.cli.display import number, say, show_table, signed
from agents.policy.labels import all_labels
from agents.training.config import TrainConfig
from agents.training.run import Run
from rewards.registry import reward_info, shown


def cycle_facts(entry: Mapping[str, Any]) -> list[str]:
    """One cycle: its score, acceptance and held-out accuracy."""
    score = f"score {number(entry['before']['mean_score'])}"
    if "after" in entry:
        score += f" -> {number(entry['after']['mean_score'])}"
    facts = [score]
    if "accepted" in entry["before"]:
        facts.append(f"accepted {entry['before']['acceptance_rate']:.0%}")
    return [*facts, held_out_facts(entry["eval"])]


def held_out_facts(metrics: Mapping[str, float | None]) -> str:
    """The held-out accuracy in one evaluation: greedy and pass@k."""
    facts = ["held-out"]
    for name, value in metrics.items():
        if name.startswith(("eval/greedy", "eval/pass")) and value is not None:
            facts.append(f"{name.removeprefix('eval/')} {value:.3f}")
    return " ".join(facts)


def show_results(config: TrainConfig, results: Mapping[str, Any], run: Run, note: str) -> None:
    """Prints the table of cycles, held-out accuracy before and after, and last the run's folder."""
    title = f"{config.domain}, {shown(config.reward)}"
    if select := getattr(config, "select", None):  # of the one trainer that has such a setting
        title += f", {select}"
    show_table(title, *cycle_table(results["cycles"], min(config.eval_subset, config.eval_tasks)))
    start, end = results["eval"]["start"], results["eval"]["end"]
    accepted = f", {results['total_accepted']} accepted" if "total_accepted" in results else ""
    say(f"{results['total_generated']} candidates{accepted}; its own score {signed(results['improvement'])}")
    greedy = f"greedy {number(start['eval/greedy'])} -> {number(end['eval/greedy'])}"
    sampled = f"pass@1 {number(start['eval/pass@1'])} -> {number(end['eval/pass@1'])}"
    say(f"held-out accuracy, {config.eval_tasks} tasks: {greedy}, {sampled}")
    say(labels_used(results))
    say(consumed(results["usage"]))
    if note:
        say(note)
    if config.keep != "last":
        how = "its own score" if reward_info(config.reward).from_labels else "a score without labels"
        if config.keep != "best":
            how = "the validation loss"
        say(f"kept: cycle {results['kept']} of {len(results['cycles'])}, by {how}")
    curves = f"tensorboard --logdir {shlex.quote(str(run.folder.parent))}"
    say(f"curves: {curves}; adapter: {run.checkpoint(results['kept'])}")
    say(run.folder)


def labels_used(results: Mapping[str, Any]) -> str:
    """How many labels went into a run, labelled preferences included, and how many when it began."""
    line = f"labels used: {all_labels(results):,}"
    if results["labels"]["start"]:
        line += f" ({results['labels']['start']:,} at its start)"
    return line


def consumed(usage: Mapping[str, Any]) -> str:
    """What a run consumed beside labels, evaluation aside."""
    words = f"consumed: {usage['answers']:,} answers of {usage['tokens_written']:,} tokens"
    words += f", {usage['tokens_scored']:,} tokens scored, {usage['judge_calls']:,} judge calls"
    if usage["preferences"]:
        words += f", {usage['preferences']:,} labelled preferences"
    for name, parameters in usage["models"].items():
        words += f"; with {Path(name).name} ({parameters:,} parameters)"
    return words


def cycle_table(
    cycles: Sequence[Mapping[str, Any]], held_out_tasks: int
) -> tuple[list[str], list[list[str]]]:
    """Header and a row per cycle: scores, acceptance where the trainer chooses, held-out accuracy."""
    has_after, chooses = "after" in cycles[0], "accepted" in cycles[0]["before"]
    header = ["cycle", "score"]
    if has_after:
        header = ["cycle", "before", "after", "change"]
    if chooses:
        header.append("accepted")
    header.append(f"held-out greedy ({held_out_tasks} tasks)")
    rows = []
    for cycle in cycles:
        before = cycle["before"]
        row = [str(cycle["cycle"]), number(before["mean_score"])]
        if has_after:
            row += [number(cycle["after"]["mean_score"]), signed(cycle["improvement"])]
        if chooses:
            row.append(f"{before['accepted']}/{before['total_generated']}")
        row.append(number(cycle["eval"]["eval/greedy"]))
        rows.append(row)
    return header, rows
