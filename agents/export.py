"""Rollouts as data for other trainers: JSONL that TRL's SFTTrainer and DPOTrainer take as it is.

    python -m agents.export runs/rejection_sft/A --format sft --output accepted.jsonl
    python -m agents.export runs/rejection_sft/A runs/ppo/B --format sft --select best
    python -m agents.export runs/dpo/A --format dpo --margin 0.1 --output pairs.jsonl

`sft` writes `prompt` and `completion`, `dpo` writes `prompt`, `chosen` and `rejected`, one example a line, in the order in which the
runs wrote them. Taken are the candidates that a run learnt from, those of its phase `before`; of them never one that was cut or on
which the reward abstained. The texts are in rollouts.jsonl and the prompts in the domains, so no model is loaded and torch not needed.

For a model with a chat template, prompt and commands are messages (`[{"role": "user", "content": ...}]`): TRL puts them into the
template, which is what generation does, and ends them as it does. For one without they are plain text: the prompt ends in a line feed,
as in generation, and TRL adds the end-of-sequence token.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from agents.cli.command import run_command
from envs.schema import EMBEDDED
from envs.types import InputError

if TYPE_CHECKING:
    from agents.studies.runs import RunRecord
    from envs.domain import Domain

OUTPUT = "runs/export"
MODEL = Path(__file__).parent / "policy" / "embedded"  # the files of the embedded one
Row = Mapping[str, Any]  # a line of rollouts.jsonl


@dataclass(frozen=True)
class Config:
    """Writes the rollouts of runs as JSONL for TRL: examples for its SFTTrainer, or pairs for its DPOTrainer."""

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, finished or still running."""
    format: Literal["sft", "dpo"] = "sft"
    """sft: `prompt` and `completion`. dpo: `prompt`, `chosen` and `rejected`, the best and the worst candidate of a task of a cycle."""
    select: Literal["accepted", "threshold", "best"] = "accepted"
    """With sft: what the run itself accepted, scores from --threshold on, or the best candidate of each task of a cycle."""
    threshold: float | None = None
    """With --select threshold: the least score. By default 0.5."""
    margin: float | None = None
    """With dpo: least difference of score between the two commands of a pair; equal scores never make one. By default the run's own, else
    0.02."""
    style: Literal["auto", "messages", "text"] = "auto"
    """Messages, for a model with a chat template, or plain text. By default what the model of the runs needs, as far as it is here."""
    output: str | None = None
    """File to write. By default runs/export/<names of the runs>.<format>.jsonl."""

    def check(self) -> None:
        """Raises InputError where no run is given, or one twice, or a value is out of range."""
        if not self.runs:
            raise InputError("no run is given: python -m agents.export runs/rejection_sft/A --format sft")
        places = [Path(run).resolve() for run in self.runs]
        if len(set(places)) < len(places):
            twice = next(run for run, place in zip(self.runs, places, strict=True) if places.count(place) > 1)
            raise InputError(f"{twice}: is given twice: leave one out")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise InputError(f"--margin {self.margin}: must be 0 or more")
        if self.threshold is not None and not abs(self.threshold) < float("inf"):
            raise InputError(f"--threshold {self.threshold}: must be a number")
        if self.margin is not None and self.format != "dpo":
            raise InputError(f"--margin {self.margin}: is for --format dpo: leave it out")
        if self.threshold is not None and self.select != "threshold":
            raise InputError(
                f"--threshold {self.threshold}: is for --format sft --select threshold: leave it out"
            )
        if self.format == "dpo" and self.select != "accepted":
            raise InputError(
                f"--select {self.select}: is for --format sft: pairs are the best and the worst of a task, by --margin"
            )


def main(config: Config) -> int:
    """Reads the runs, writes the file and says what is in it."""
    from agents.studies.runs import read_run

    records = [read_run(Path(folder)) for folder in config.runs]
    messages, why = _style(config, records)
    output = _output(config, records)
    examples = [example for record in records for example in examples_of(record, config, messages)]
    if not examples:
        fix = (
            "lower --margin"
            if config.format == "dpo"
            else "lower --threshold"
            if config.select == "threshold"
            else "wait for a cycle to end"
        )
        raise InputError(f"{', '.join(config.runs)}: no example in it: {fix}")
    write(output, examples)
    print(
        f"{len(examples)} examples for TRL's {config.format.upper()}Trainer, {', '.join(examples[0])}, as {why}"
    )
    print(output)
    return 0


def write(output: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    """Writes the whole file or nothing, one example a line; InputError where that cannot be done."""
    temporary = output.with_name(f".tmp-{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples), encoding="utf-8"
        )
        os.replace(temporary, output)
    except OSError as error:
        raise InputError(
            f"--output {output}: cannot be written ({error.strerror}): choose another file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def examples_of(record: RunRecord, config: Config, messages: bool) -> Iterator[dict[str, Any]]:
    """The examples of one run, in its order.

    Raises:
        InputError: a line of rollouts.jsonl is damaged, a domain is not there, or the run accepted nothing where that is asked for.
    """
    from agents import dpo, rejection_sft

    groups = groups_of(record)
    rows = [row for group in groups for row in group]
    values = [[None if row["truncated"] else row["score"] for row in group] for group in groups]
    if config.format == "dpo":
        margin = (
            float(record.settings.get("margin", dpo.Config.margin))
            if config.margin is None
            else config.margin
        )
        for chosen, rejected in dpo.pairs_of(
            values, [[row["command"] for row in group] for group in groups], margin
        ):
            yield _example(
                record, rows[chosen], {"chosen": rows[chosen], "rejected": rows[rejected]}, messages
            )
        return
    if config.select == "accepted":
        positions = [position for position, row in enumerate(rows) if row["accepted"]]
        if rows and not positions:
            raise InputError(
                f"{record.folder}: nothing in it was accepted: give --select best or --select threshold"
            )
    else:
        threshold = rejection_sft.Config.threshold if config.threshold is None else config.threshold
        positions = rejection_sft.select(values, config.select, threshold, 1.0)
    for position in positions:
        yield _example(record, rows[position], {"completion": rows[position]}, messages)


def groups_of(record: RunRecord) -> list[list[Row]]:
    """The candidates that the run learnt from, those of one task of one cycle together."""
    rows = list(read_rollouts(record.folder / "rollouts.jsonl"))
    return [
        list(group)
        for _, group in itertools.groupby(
            rows, lambda row: (row["cycle"], row["task_id"], row["domain"], row["task"])
        )
    ]


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
}


def read_rollouts(path: Path) -> Iterator[Row]:
    """The lines of phase `before`; a last one that is only half written is left out.

    Raises:
        InputError: the file or a line is damaged.
    """
    from agents.studies.runs import read_lines

    for number, row in read_lines(path):
        wrong = [name for name, kind in FIELDS.items() if not isinstance(row.get(name, path), kind)]
        if wrong:
            raise InputError(
                f"{path}:{number}: the line is damaged, at {wrong[0]}: restore the file, or leave the run out"
            )
        if row["phase"] == "before":
            yield row


def _example(record: RunRecord, asked: Row, answers: Mapping[str, Row], messages: bool) -> dict[str, Any]:
    prompt = _domain(record, asked["domain"]).prompt("forward", task=asked["task"], tool=asked["tool"])
    if not messages:
        return {"prompt": prompt + "\n", **{name: row["command"] for name, row in answers.items()}}
    said = {name: [{"role": "assistant", "content": row["command"]}] for name, row in answers.items()}
    return {"prompt": [{"role": "user", "content": prompt}], **said}


def _domain(record: RunRecord, where: str) -> Domain:
    """The domain of a task. A path that was relative to where the run was started is a whole one in the run's settings."""
    from envs.domain import load_domain

    if where not in EMBEDDED and not Path(where).exists():
        known = str(record.settings.get("domain", "")).split(",")
        where = next((path for path in known if Path(path).name == Path(where).name), where)
    try:
        return load_domain(where)
    except InputError as error:
        raise InputError(
            f"{record.folder}: its domain cannot be read: {str(error).removeprefix('--domain ')}"
        ) from None


def _style(config: Config, records: Sequence[RunRecord]) -> tuple[bool, str]:
    """Whether examples are messages, and a word on why."""
    if config.style != "auto":
        return config.style == "messages", f"{config.style}, as --style says"
    models = dict.fromkeys(str(record.settings.get("model")) for record in records)
    found = {model: has_template(model) for model in models}
    if len(set(found.values()) - {None}) > 1:
        plain = next(model for model, has in found.items() if has is False)
        raise InputError(
            f"--style: the models of the runs differ, {plain} has no chat template: give messages or text, or export apart"
        )
    model = next(iter(models))
    if all(has is None for has in found.values()):
        return True, f"messages, for a chat template that {model} is taken to have: else give --style text"
    if False in found.values():
        return False, f"text, since {model} has no chat template"
    return True, f"messages, since {model} has a chat template"


def has_template(model: str) -> bool | None:
    """Whether a model has a chat template, by its files; None where it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    folder = MODEL if model == "embedded" else Path(model)
    try:
        if not folder.is_dir():
            folder = Path(str(try_to_load_from_cache(model, "tokenizer_config.json") or "nowhere")).parent
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(settings.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    except (OSError, ValueError, AttributeError):
        return None


def _output(config: Config, records: Sequence[RunRecord]) -> Path:
    """The file to write; InputError for a folder, or a file in a run."""
    if config.output in (
        None,
        OUTPUT,
    ):  # the command line fills in the folder of all exports where no file is given
        names = "--".join(re.sub(r"[^\w.-]+", "-", record.name) for record in records)[:100].strip("-.")
        return Path(OUTPUT) / f"{names}.{config.format}.jsonl"
    output = Path(str(config.output))
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder: give the name of a file in it")
    if (output.parent / "config.yaml").exists():
        raise InputError(f"--output {output}: is in the folder of a run: choose another place")
    return output


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
