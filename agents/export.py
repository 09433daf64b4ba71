"""What a run leaves for others: its rollouts as JSONL for TRL's own trainers, or its model as one folder.

    python -m agents.export runs/rejection_sft/A --format sft --output accepted.jsonl
    python -m agents.export runs/rejection_sft/A runs/ppo/B --format sft --select best
    python -m agents.export runs/dpo/A --format dpo --margin 0.1 --output pairs.jsonl
    python -m agents.export runs/sft/A --merge --output warm           # then: --model warm

`sft` writes `prompt` and `completion`, `dpo` writes `prompt`, `chosen` and `rejected`, one example per line,
in the order of the runs. Only candidates that a run learnt from are taken (phase `before`), and none that was
truncated or that the reward did not score. The texts are in rollouts.jsonl and the prompts in the domains, so
no model is loaded and torch is not needed.

For a model with a chat template, prompt and commands are messages (`[{"role": "user", "content": ...}]`): TRL
puts them into the template, as generation does. For a model without one they are plain text: the prompt ends
in a line feed, as in generation, and TRL adds the end-of-sequence token.

`--merge` adds the run's adapter to the weights of its model. What starts from that folder has the trained
model as its base: the KL penalty and `--reference base` hold to it. With `--adapter` they hold to the model
as it was before. The count of labels that the run used goes with it, and a model card: what the model learnt
from, how good it is, its limits and its settings.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from tyro.conf import Positional

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.files import check_folders, check_output, file_name, write_whole, writing
from agents.dpo import Config as DPOConfig
from agents.policy.names import ALIASES
from agents.rejection_sft import Config as SFTConfig
from agents.rejection_sft import select
from agents.studies.runs import RunRecord, read_lines, read_run
from agents.training.contrast import pairs_of
from envs.domain import Domain, load_domain
from envs.jsonl import from_json
from envs.schema import EMBEDDED
from envs.types import InputError, Score

Row = Mapping[str, Any]  # a line of rollouts.jsonl
FIELDS: dict[str, type | tuple[type, ...]] = {
    "cycle": int,
    "phase": str,
    "task_id": str,
    "domain": str,
    "task": str,
    "tool": str,
    "command": str,
    "truncated": bool,
    "score": (int, float, type(None)),
    "accepted": bool,
    "parts": dict,
}


@dataclass(frozen=True)
class Config:
    """Writes the rollouts of runs as JSONL for TRL's SFTTrainer or DPOTrainer, or the model of a run."""

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, finished or still running."""
    merge: bool = False
    """Write the model of one finished run instead, its adapter merged into it: a folder for --model."""
    format: Literal["sft", "dpo"] = "sft"
    """sft: `prompt`, `completion`. dpo: `prompt`, `chosen`, `rejected` (best and worst of a task)."""
    select: Literal["accepted", "threshold", "best"] = "accepted"
    """With sft: what the run accepted, scores >= --threshold, or the best of each task and cycle."""
    threshold: float | None = None
    """With --select threshold: the lowest score. Default: 0.5."""
    margin: float | None = None
    """With dpo: smallest difference of score in a pair; it must be above 0. Default: the run's, else 0.02."""
    style: Literal["auto", "messages", "text"] = "auto"
    """Messages, for a model with a chat template, or plain text. auto: what the model of the runs needs."""
    output: str | None = None
    """File to write; with --merge a folder. Default: runs/export/<names>.<format>.jsonl or <name>-merged."""

    def check(self) -> None:
        """Raises InputError where no run is given, or one twice, or a value is out of range."""
        check_folders(self.runs, "python -m agents.export runs/rejection_sft/A --format sft")
        if self.merge and len(self.runs) > 1:
            raise InputError("--merge: takes one run: give the others in calls of their own")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise InputError(f"--margin {self.margin}: must be 0 or more")
        if self.threshold is not None and not abs(self.threshold) < float("inf"):
            raise InputError(f"--threshold {self.threshold}: must be a number")
        if self.margin is not None and self.format != "dpo":
            raise InputError(f"--margin {self.margin}: is for --format dpo: leave it out")
        if self.threshold is not None and self.select != "threshold":
            flags = "--format sft --select threshold"
            raise InputError(f"--threshold {self.threshold}: is for {flags}: leave it out")
        if self.format == "dpo" and self.select != "accepted":
            why = "pairs are the best and the worst of a task, by --margin"
            raise InputError(f"--select {self.select}: is for --format sft: {why}")


def main(config: Config) -> int:
    """Reads the runs, writes the file and says what is in it."""
    if config.merge:
        return merge(config)
    records = [read_run(Path(folder)) for folder in config.runs]
    messages, why = style_of(config.style, records)
    output = output_of(config, records)
    examples: list[dict[str, Any]] = []
    for record in records:
        examples += examples_of(record, config, messages)
    if not examples:
        fix = "wait for a cycle to end"
        if config.format == "dpo":
            fix = "lower --margin"
        elif config.select == "threshold":
            fix = "lower --threshold"
        raise InputError(f"{', '.join(config.runs)}: no example in it: {fix}")
    lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in examples]
    with writing(output, "file"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, "".join(lines))
    trainer = f"{config.format.upper()}Trainer"
    say(f"{len(examples)} examples for TRL's {trainer}, {', '.join(examples[0])}, as {why}")
    say(output)
    return 0


def output_of(config: Config, records: Sequence[RunRecord]) -> Path:
    """The file to write; InputError for a folder, or a file in a run."""
    if config.output is None:
        return Path("runs/export") / f"{file_name(record.name for record in records)}.{config.format}.jsonl"
    output = Path(config.output)
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder: give the name of a file in it")
    check_output(config.output, what="file")
    return output


# ---- a model ----


def merge(config: Config) -> int:
    """Writes the model of a run with the adapter that it kept, all of the folder or nothing."""
    record = read_run(Path(config.runs[0]))
    if not record.finished:
        raise InputError(f"{record.folder}: has not ended: finish it with --resume, then merge it")
    adapter = record.folder / "checkpoints" / f"cycle-{record.results['kept']:04d}"
    output = Path(config.output or Path("runs/export") / f"{record.name}-merged")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"--output {output}: is there already: choose another folder")
    model = str(record.settings["model"])
    check_output(config.output)
    from agents.policy.load import load_policy  # imports torch, for which no mistake should wait
    from agents.studies.card import card

    # Not in fewer bits, in which small changes of the weights would be lost.
    policy = load_policy(model, adapter=str(adapter), dtype="float32")
    temporary = output.with_name(f".tmp-{output.name}")
    with writing(output):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        policy.save_merged(temporary)
        of_pretraining = folder_of(model) / "pretrain.json"
        if of_pretraining.is_file():  # by which the settings that suit the embedded model are found
            shutil.copy(of_pretraining, temporary)
        (temporary / "README.md").write_text(card(record), encoding="utf-8")
        os.replace(temporary, output)
    say(f"{model} with {adapter}; labels used: {policy.labels:,}")
    say(output)
    return 0


def folder_of(model: str) -> Path:
    """The folder of a model that is none of the hub."""
    return Path(ALIASES.get(model, model))


# ---- examples ----


def examples_of(record: RunRecord, config: Config, messages: bool) -> list[dict[str, Any]]:
    """The examples of one run, in its order.

    Raises:
        InputError: a line of rollouts.jsonl is damaged, a domain is not there, or the run accepted nothing
            where that is asked for.
    """
    groups = groups_of(record)
    rows = list(itertools.chain.from_iterable(groups))
    examples = []
    if config.format == "dpo":
        margin = config.margin
        if margin is None:
            margin = float(record.settings.get("margin", DPOConfig.margin))
        texts = [[row["command"] for row in group] for group in groups]
        for best, worst in pairs_of(_scores(groups), texts, margin, _acceptable(groups)):
            example = {"prompt": _prompt(record, rows[best], messages)}
            example["chosen"] = _answer(rows[best], messages)
            example["rejected"] = _answer(rows[worst], messages)
            examples.append(example)
        return examples
    for position in _selected(record, config, groups):
        example = {"prompt": _prompt(record, rows[position], messages)}
        example["completion"] = _answer(rows[position], messages)
        examples.append(example)
    return examples


def _selected(record: RunRecord, config: Config, groups: Sequence[Sequence[Row]]) -> list[int]:
    """Positions of the candidates to take, counted task after task."""
    if config.select != "accepted":
        threshold = SFTConfig.threshold if config.threshold is None else config.threshold
        return select(_acceptable(groups), config.select, threshold, 1.0)
    rows = list(itertools.chain.from_iterable(groups))
    positions = [position for position, row in enumerate(rows) if row["accepted"] and not _closed(row)]
    if rows and not positions:
        fix = "give --select best or --select threshold"
        raise InputError(f"{record.folder}: nothing in it was accepted: {fix}")
    return positions


def _scores(groups: Sequence[Sequence[Row]]) -> list[list[float | None]]:
    """The scores of the candidates; None for one that was truncated or not scored."""
    scores_P_G = []
    for group in groups:
        scores_P_G.append([None if row["truncated"] else row["score"] for row in group])
    return scores_P_G


def _acceptable(groups: Sequence[Sequence[Row]]) -> list[list[float | None]]:
    """The same, and None for a command with a closed gate: it is never a positive example."""
    scores_P_G = _scores(groups)
    for scores, group in zip(scores_P_G, groups, strict=True):
        for place, row in enumerate(group):
            if _closed(row):
                scores[place] = None
    return scores_P_G


def _closed(row: Row) -> bool:
    return Score(row["score"], row["parts"]).closed


def _prompt(record: RunRecord, row: Row, messages: bool) -> Any:
    text = domain_of(record, row["domain"]).prompt("forward", task=row["task"], tool=row["tool"])
    return [{"role": "user", "content": text}] if messages else text + "\n"


def _answer(row: Row, messages: bool) -> Any:
    return [{"role": "assistant", "content": row["command"]}] if messages else row["command"]


def groups_of(record: RunRecord) -> list[list[Row]]:
    """The candidates that the run learnt from, those of one task and cycle together."""

    def same(row: Row) -> tuple[Any, ...]:
        return row["cycle"], row["task_id"], row["domain"], row["task"]

    rows = read_rollouts(record.folder / "rollouts.jsonl")
    return [list(group) for _, group in itertools.groupby(rows, same)]


def read_rollouts(path: Path) -> Iterator[Row]:
    """The lines of phase `before`; a last one that is only half written is left out.

    Raises:
        InputError: the file or a line is damaged.
    """
    for number, found in read_lines(path):
        row = {"parts": {}, **found}  # which older runs lack
        for name, kind in FIELDS.items():
            if name not in row or not isinstance(row[name], kind):
                fix = "restore the file, or leave the run out"
                raise InputError(f"{path}:{number}: the line is damaged, at {name}: {fix}")
        if row["phase"] == "before":
            yield row


def domain_of(record: RunRecord, where: str) -> Domain:
    """The domain of a task. A path relative to where the run was started is in full in the run's settings.

    Raises:
        InputError: its file is gone or faulty.
    """
    if where not in EMBEDDED and not Path(where).exists():
        for path in str(record.settings.get("domain", "")).split(","):
            if Path(path).name == Path(where).name:
                where = path
                break
    try:
        return load_domain(where)
    except InputError as error:
        why = str(error).removeprefix("--domain ")
        raise InputError(f"{record.folder}: its domain cannot be read: {why}") from None


# ---- messages or text ----


def style_of(style: str, records: Sequence[RunRecord]) -> tuple[bool, str]:
    """Whether examples are messages, and in a few words why."""
    if style != "auto":
        return style == "messages", f"{style}, as --style says"
    found = {}
    for record in records:
        model = str(record.settings.get("model"))
        found[model] = has_template(model)
    with_template = [model for model, has in found.items() if has]
    without = [model for model, has in found.items() if has is False]
    if with_template and without:
        fix = "give messages or text, or export apart"
        raise InputError(f"--style: the models of the runs differ, {without[0]} has no chat template: {fix}")
    if without:
        return False, f"text, since {without[0]} has no chat template"
    if with_template:
        return True, f"messages, since {with_template[0]} has a chat template"
    model = next(iter(found))
    return True, f"messages, for a chat template that {model} is taken to have: else give --style text"


def has_template(model: str) -> bool | None:
    """Whether a model has a chat template, by its files; None where it is not on this machine."""
    folder = folder_of(model)
    try:
        if not folder.is_dir():
            folder = Path(str(try_to_load_from_cache(model, "tokenizer_config.json") or "nowhere")).parent
        settings = from_json((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(settings.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    except (OSError, ValueError, AttributeError):
        return None


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
