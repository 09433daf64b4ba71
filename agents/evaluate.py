"""How good is a policy really, and is one better than another: held-out tasks, what its commands do, intervals over tasks.

    python -m agents.evaluate --model embedded
    python -m agents.evaluate runs/rejection_sft/NAME                       # its start against its end
    python -m agents.evaluate runs/rejection_sft/A runs/rejection_sft/B --reward likelihood --json
    python -m agents.evaluate --model embedded --domain shell --tasks-file my-tasks.jsonl

A subject is the folder of a run (its last or kept adapter), a checkpoint in one, or a model. Several are compared task by task; "better"
is said only where a 95 % paired-bootstrap interval lies above 0. Held-out tasks have a paraphrase or slot values that no training
text has. Writes report.html and report.json, and prints the same in short. This is the only command that knows what is right, beside
pre-training and a run with the labelled reward `truth`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from tyro.conf import Positional

from agents.cli.command import MODEL_FILES, model_defaults, run_command
from envs.domain import domain_names, load_domain
from envs.types import InputError
from envs.verify.truth import Case, read_cases

if TYPE_CHECKING:
    from agents.evaluation.answers import Answer

OUTPUT = "runs/evaluate"
FALLBACK = {
    "domain": "all",
    "reward": "likelihood",
    "inverter": "current",
    "inverse_temperature": 0.3,
    "embedder": "all-MiniLM-L6-v2",
    "temperature": 0.7,
    "max_new_tokens": 64,
}


@dataclass(frozen=True)
class Config:
    """Evaluates models or runs on held-out tasks by what their commands do, and compares them task by task."""

    subjects: Positional[tuple[str, ...]] = ()
    """Folders of runs or of their checkpoints, or models. A single run is compared with its own start."""
    model: str | None = None
    """In place of subjects: embedded, mistral-7b, or a Hugging Face name or folder. By default as trainers choose."""
    adapter: str | None = None
    """With --model: folder of a PEFT adapter."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    domain: str | None = None
    """An embedded domain, all of them, or paths of YAML files, separated by commas. By default the run's, else all."""
    tasks: int = 300
    """Held-out tasks of each domain."""
    tasks_file: str | None = None
    """In place of held-out tasks: a JSONL file with `task` and `reference` a line, and `ordered` where order counts."""
    samples: int = 4
    """Commands sampled for each: the K of pass@K."""
    best_of: int | None = None
    """In place of --samples: sample so many, let the reward choose one, and compare its choice with the greedy command."""
    temperature: float | None = None
    """Sampling temperature. By default the run's, else 0.7."""
    max_new_tokens: int | None = None
    """Longest command, in tokens. By default the run's, else 64."""
    reward: str | None = None
    """The reward whose agreement with truth is measured. By default the run's, else likelihood."""
    gates: bool = True
    """Put the gates before the reward, unless the run was made without them."""
    inverter: Literal["current", "base", "ema"] | None = None
    """Who reads commands back. By default as in the run, else current."""
    inverse_temperature: float | None = None
    """Sampling temperature of the reading back; 0 is greedy. By default the run's, else 0.3."""
    embedder: str | None = None
    """Sentence-embedding model of the similarity reward. By default the run's, else all-MiniLM-L6-v2."""
    output: str | None = None
    """Folder for report.html and report.json. By default runs/evaluate/<subjects>."""
    json: bool = False
    """Print the report as JSON and nothing else."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward, a faulty domain or tasks file, or a subject that is not there."""
        from rewards.registry import reward_info

        if self.best_of is not None and self.best_of < 2:
            raise InputError(f"--best-of {self.best_of}: must be 2 or more, for the reward to have a choice")
        for name in ("tasks", "samples", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature}: must be above 0")
        if self.inverse_temperature is not None and not 0 <= self.inverse_temperature < float("inf"):
            raise InputError(f"--inverse-temperature {self.inverse_temperature}: must be 0 (greedy) or more")
        if self.reward is not None:
            reward_info(self.reward)
        if self.subjects and (self.model or self.adapter):
            raise InputError(
                f"--{'model' if self.model else 'adapter'}: give either subjects or --model and --adapter: a model can be a subject"
            )
        for subject in self.subjects:
            if not Path(subject).exists() and subject.startswith(("runs/", ".", "/", "~")):
                raise InputError(f"{subject}: no such folder: give a run, one of its checkpoints, or a model")
        if self.tasks_file is not None and self.domain is not None and len(domain_names(self.domain)) != 1:
            raise InputError(
                f"--tasks-file {self.tasks_file}: needs --domain with the one domain that its tasks belong to"
            )
        if self.domain is not None:
            for name in domain_names(self.domain):
                load_domain(name)


@dataclass(frozen=True)
class Subject:
    """A model to evaluate. `settings`: those of the run it comes from, else those that suit the model."""

    name: str
    model: str
    adapter: str | None
    settings: Mapping[str, Any]
    load_in_4bit: bool = False


def subjects_of(config: Config) -> list[Subject]:
    """What is to be evaluated; a single run is its start and its end."""
    if not config.subjects:
        model = config.model or "embedded"
        name = f"{model} + {config.adapter}" if config.adapter else model
        return [Subject(name, model, config.adapter, _suited(model), config.load_in_4bit)]
    if len(config.subjects) == 1 and (Path(config.subjects[0]) / "config.yaml").is_file():
        end = _subject(config.subjects[0], config)
        started = Subject(
            f"{end.name}, start", end.model, end.settings.get("adapter"), end.settings, end.load_in_4bit
        )
        last = (
            "end"
            if (Path(config.subjects[0]) / "self_improvement_results.json").is_file()
            else Path(str(end.adapter)).name
        )
        return [
            started,
            Subject(f"{end.name}, {last}", end.model, end.adapter, end.settings, end.load_in_4bit),
        ]
    found = [_subject(subject, config) for subject in config.subjects]
    if len({subject.name for subject in found}) < len(found):  # runs of the same name in different folders
        found = [replace(subject, name=where) for subject, where in zip(found, config.subjects, strict=True)]
    return found


def _subject(where: str, config: Config) -> Subject:
    folder = Path(where)
    above = folder.resolve().parent
    run = (
        folder
        if (folder / "config.yaml").is_file()
        else above.parent
        if above.name == "checkpoints"
        else None
    )
    if run is None or not (run / "config.yaml").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{where}: an adapter that is in no run: give its base as --model and the folder as --adapter"
            )
        suited = _suited(where)
        return Subject(where, where, None, suited, config.load_in_4bit or bool(suited.get("load_in_4bit")))
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        model = settings["model"]
        for name, default in {"model": "embedded", **FALLBACK}.items():
            if not isinstance(
                settings.get(name, default), (int, float) if isinstance(default, float) else type(default)
            ):
                raise TypeError(name)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        raise InputError(
            f"{run / 'config.yaml'}: cannot be read: restore the file, or give another run"
        ) from None
    adapter = folder if folder != run else _last_checkpoint(run)
    name = folder.absolute().name if folder == run else f"{run.name}, {folder.absolute().name}"
    return Subject(name, model, str(adapter), settings, bool(settings.get("load_in_4bit")))


def _last_checkpoint(run: Path) -> Path:
    """The adapter of the cycle that the run kept, else of its last one."""
    folders = sorted((run / "checkpoints").glob("cycle-[0-9]*"))
    try:
        kept = json.loads((run / "progress.json").read_text(encoding="utf-8")).get("kept")
    except (OSError, ValueError, AttributeError):
        kept = None
    wanted = run / "checkpoints" / f"cycle-{kept:04d}" if isinstance(kept, int) else None
    if wanted is not None and wanted.is_dir():
        return wanted
    if not folders:
        raise InputError(f"{run}: has no checkpoint yet: give a run that has finished a cycle")
    return folders[-1]


def _suited(model: str) -> dict[str, Any]:
    return model_defaults(model, get_type_hints(Config))[0] if model in MODEL_FILES else {}


def resolved(config: Config, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The settings that all subjects are measured with: the flag, else what the last run has, else what suits the model, else the default.

    Raises:
        InputError: the runs were made on different domains and --domain does not say which is meant.
    """
    from rewards.registry import reward_info

    last = next(
        (subject.settings for subject in reversed(subjects) if "domain" in subject.settings),
        subjects[-1].settings,
    )
    settings = {name: getattr(config, name) for name in FALLBACK}
    domains = {subject.settings["domain"] for subject in subjects if "domain" in subject.settings}
    if settings["domain"] is None and len(domains) > 1:
        raise InputError(
            f"--domain: the runs were made on different ones ({'; '.join(sorted(domains))}): say which is meant"
        )
    found = {
        name: value if value is not None else last.get(name, FALLBACK[name])
        for name, value in settings.items()
    }
    if reward_info(found["reward"]).needs_group and config.samples < 2:
        raise InputError(
            f"--samples {config.samples}: must be 2 or more, since the reward {found['reward']} compares candidates"
        )
    return {**found, "gates": config.gates and bool(last.get("gates", True))}


def main(config: Config) -> int:
    """Measures every subject, compares each with the first, writes the report and prints it in short."""
    from agents.evaluation.html import write_page
    from agents.evaluation.report import make_report
    from rewards.registry import reward_info

    config = replace(config, samples=config.best_of or config.samples)
    subjects = subjects_of(config)
    settings = resolved(config, subjects)
    cases = cases_of(config, settings["domain"])
    # The command line fills in the folder of all evaluations where none is given.
    output = (
        Path(OUTPUT) / _file_name(subjects) if config.output in (None, OUTPUT) else Path(str(config.output))
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {output}: cannot be written ({error.strerror}): choose another folder"
        ) from None
    measured = [
        (
            {"name": subject.name, "model": subject.model, "adapter": subject.adapter},
            measure(subject, settings, config, cases),
        )
        for subject in subjects
    ]
    labelled = reward_info(settings["reward"]).labelled
    shown = {**settings, "labelled": labelled, "samples": config.samples, "tasks_file": config.tasks_file}
    report = make_report(shown, config.samples, measured)
    try:
        (output / "report.json").write_text(
            json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        write_page(report, output / "report.html")
    except OSError as error:
        raise InputError(
            f"--output {output}: cannot be written ({error.strerror}): choose another folder"
        ) from None
    if config.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        show(report)
        print(f"{output}/report.html")
    return 0


def cases_of(config: Config, domain: str) -> list[Case]:
    """The tasks: held-out ones of each domain, or those of the file."""
    from agents.evaluation.answers import held_out_cases

    if config.tasks_file is None:
        return [case for name in domain_names(domain) for case in held_out_cases(name, config.tasks)]
    if len(domain_names(domain)) != 1:
        raise InputError(
            f"--tasks-file {config.tasks_file}: needs --domain with the one domain that its tasks belong to"
        )
    return read_cases(Path(config.tasks_file), domain)


def measure(
    subject: Subject, settings: Mapping[str, Any], config: Config, cases: Sequence[Case]
) -> list[Answer]:
    """What one subject makes of the tasks, in both directions."""
    from agents.evaluation.answers import ask, ask_inverse
    from agents.policy.load import load_policy
    from envs.source import make_source
    from rewards.labelled import Truth
    from rewards.registry import POOL, make_reward

    policy = load_policy(subject.model, adapter=subject.adapter, load_in_4bit=subject.load_in_4bit)
    reward = make_reward(
        settings["reward"],
        policy,
        make_source("templates", settings["domain"]).tasks(POOL, 0, "pool"),
        inverter=settings["inverter"],
        inverse_temperature=settings["inverse_temperature"],
        embedder=settings["embedder"],
        gates=settings["gates"],
        truth=Truth,
    )
    tokens = settings["max_new_tokens"]
    answers = ask(
        policy,
        cases,
        sampled=len(cases),
        samples=config.samples,
        temperature=settings["temperature"],
        max_new_tokens=tokens,
        reward=reward,
    )
    inverse = ask_inverse(policy, cases, tokens)
    return [replace(answer, inverse=right) for answer, right in zip(answers, inverse, strict=True)]


def _file_name(subjects: Sequence[Subject]) -> str:
    names = "--".join(
        dict.fromkeys(
            "".join(c if c.isalnum() or c in "-._" else "-" for c in subject.name) for subject in subjects
        )
    )
    return names[:100].strip("-.") or "report"


# ---- what is printed ----


def show(report: Mapping[str, Any]) -> None:
    """Prints the report in short: the metrics of every subject, the comparisons, what was not executed."""
    from agents.cli.display import show_table

    k = report["k"]
    names = (
        "greedy",
        "pass@1",
        f"pass@{k}",
        "inverse",
        "invalid",
        "not_executed",
        "reward",
        "auc",
        "auc_within",
        "best_of_k",
        "risk_area",
    )
    for subject in report["subjects"]:
        groups = {**subject["domains"], **{f"unseen {name}": row for name, row in subject["unseen"].items()}}
        header = (f"{report['tasks']} tasks", "all", "95 % interval", *groups)
        show_table(
            subject["name"],
            header,
            [
                (
                    name.replace("_", " "),
                    *_with_ends(subject["all"][name]),
                    *(_number(row[name]["value"]) for row in groups.values()),
                )
                for name in dict.fromkeys(names)
            ],
        )
        if subject["not_executed"]:
            why = next((row["reason"] for row in subject["reasons"] if row["status"] == "not_executed"), "")
            print(f"{subject['not_executed']} commands were not executed and count neither way: {why}")
        if row := subject["best_of_k"]:
            p = "" if row["p"] is None else f", McNemar p = {row['p']:.3g}"
            about = f"best of {k} by {report['settings']['reward']} against greedy"
            print(f"{subject['name']}, {about}: {_with_interval(row, sign='+')}{p}: {row['verdict']}")
    for comparison in report["comparisons"]:
        for metric, row in comparison["all"].items():
            p = (
                ""
                if row["p"] is None
                else f", {row['gained']} gained, {row['lost']} lost, McNemar p = {row['p']:.3g}"
            )
            verdict = (
                {"better": "higher", "worse": "lower"}.get(row["verdict"], row["verdict"])
                if metric == "reward"
                else row["verdict"]
            )
            print(
                f"{comparison['second']} against {comparison['first']}, {metric}: {_with_interval(row, sign='+')}{p}: {verdict}"
            )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_ends(row: Mapping[str, Any]) -> tuple[str, str]:
    return _number(row["value"]), "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def _with_interval(row: Mapping[str, Any], sign: str = "") -> str:
    if row["value"] is None:
        return "-"
    ends = "" if row["low"] is None else f" [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"
    return f"{row['value']:{sign}.3f}{ends}"


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
