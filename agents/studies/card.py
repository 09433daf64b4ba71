"""The model card of a run: what the model learnt from, how good it is by execution, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agents.cli.display import interval, number, signed
from agents.policy.labels import learnt_from
from agents.policy.names import ALIASES
from agents.studies.comparison import OF_THE_PLACE, describe
from agents.studies.runs import RunRecord, read_truth
from rewards.learnt import PREFIX, is_learnt

LIMITS = """- The tasks of training and of evaluation are those of the domain. On tasks that people wrote
  it was not measured here; `python -m agents.evaluate --tasks-file` does that.
- A command of it may be wrong and do harm. Read it before it is run, or run it in a sandbox.
- The interval is over held-out tasks. It does not cover other seeds."""

USED = {  # a counter -> its words
    "tokens_written": "tokens written",
    "tokens_scored": "tokens scored",
    "judge_calls": "judge calls",
    "preferences": "labelled preferences",
    "other_models": "parameters of other models",
}


def card(record: RunRecord) -> str:
    """The card of a finished run, in Markdown, with the metadata that the Hugging Face hub reads."""
    settings, usage = record.settings, record.usage
    name = str(settings["model"])
    base = ALIASES.get(name, name)
    start, end = read_truth(record, "start"), read_truth(record, "end")
    facts = describe(record, start, end)
    rows = []
    for metric, label in (("greedy", "greedy"), ("pass@1", "pass@1")):
        before, after = facts[metric]
        rows.append(f"| {label} | {number(before)} | {number(after)} |")
    gain = f"{signed(facts['gain']['value'])} {interval(facts['gain'], True)}"
    used = [f"{usage[key]:,} {words}" for key, words in USED.items()]
    kept = {}
    for key, value in settings.items():
        if key not in (*OF_THE_PLACE, "agent"):
            kept[key] = without_folders(key, value)
    written = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()
    metadata = {"library_name": "transformers", "tags": ["inversion", record.trainer]}
    if "/" in base and not Path(base).exists():
        metadata["base_model"] = base
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---
# {Path(name).name}, after `agents.{record.trainer}`

The model turns a task into one command. It was made by `python -m agents.{record.trainer}`.

- **Cycles**: {record.cycles}, with the domain `{kept["domain"]}` and the reward `{kept["reward"]}`.
- **Learnt from**: {learnt_from(record.results)}.
- **Consumed**: {record.candidates:,} candidates, {", ".join(used)}.

## Accuracy

Share of {len(end)} held-out tasks whose command does what the reference does, by execution:

| | before | after |
|---|---|---|
{chr(10).join(rows)}

Greedy, after minus before, paired by task, with its 95 % interval: {gain}.

## Limits

{LIMITS}

## Settings

```yaml
{written}
```
"""


def without_folders(key: str, value: Any) -> Any:
    """A setting with the ends of its paths alone, since the rest is of the machine of the run."""
    if not isinstance(value, str):
        return value
    prefix = PREFIX if is_learnt(value) else ""
    paths = value.removeprefix(prefix)
    names = []
    for path in paths.split(",") if key == "domain" else [paths]:
        names.append(Path(path).name if path.startswith("/") else path)
    return prefix + ",".join(names)
