"""How good is a model, and is one better than another? Held-out tasks, judged by what the commands do.

    python -m agents.evaluate --model embedded
    python -m agents.evaluate runs/rejection_sft/NAME                       # its start against its end
    python -m agents.evaluate runs/rejection_sft/A runs/rejection_sft/B --reward likelihood --json
    python -m agents.evaluate --model embedded --domain shell --tasks-file my-tasks.jsonl

A subject is the folder of a run (its last or kept adapter), one of its checkpoints, or a model. Several are
compared task by task; "better" is said only where a 95 % paired-bootstrap interval lies above 0. Held-out
tasks have a paraphrase or slot values that no training text has. Writes report.html and report.json, and
prints a summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from tyro.conf import Positional

from agents.cli.command import run_command
from agents.cli.display import as_json, say
from agents.cli.files import check_output, file_name, write_json, writing
from agents.cli.values import MODEL_FILES, model_defaults, require_counts, require_sampling
from agents.policy.chat import read_options
from agents.policy.folders import check_adapter, check_model
from agents.studies.settings import read_settings
from envs.domain import domain_names, load_domain
from envs.jsonl import from_json
from envs.types import InputError
from rewards.learnt import OWN, PREFIX
from rewards.registry import reward_info

FALLBACK = {
    "domain": "all",
    "reward": "likelihood",
    "inverter": "current",
    "inverse_temperature": 0.3,
    "embedder": "all-MiniLM-L6-v2",
    "temperature": 0.7,
    "max_new_tokens": 64,
}
# Settings that a run need not have.
OPTIONAL: dict[str, Any] = {"shots": 0, "prefill": None, "chat_template_kwargs": None}


@dataclass(frozen=True)
class Config:
    """Evaluates models or runs on held-out tasks by what their commands do, and compares them by task."""

    subjects: Positional[tuple[str, ...]] = ()
    """Folders of runs or of their checkpoints, or models. A single run is compared with its own start."""
    model: str | None = None
    """Instead of subjects: embedded, embedded-hard, smollm2, mistral-7b, or a Hugging Face name or folder."""
    adapter: str | None = None
    """With --model: folder of a PEFT adapter."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the base model. auto: the faster one on a CPU, as measured; 16 bits on a GPU."""
    threads: int | None = None
    """Threads of the CPU. Default: one for a small model, else all of them where they are faster."""
    domain: str | None = None
    """network, shell, sql, all, or paths of YAML files, separated by commas. Default: the run's, else all."""
    tasks: int = 300
    """Held-out tasks of each domain."""
    tasks_file: str | None = None
    """Instead of held-out tasks: JSONL with `task` and `reference`; further keys in docs/EVALUATION.md."""
    samples: int = 4
    """Commands sampled for each task: the K of pass@K."""
    best_of: int | None = None
    """Headroom: what is gained where a reward chooses among greedy and N samples. Replaces --samples."""
    temperature: float | None = None
    """Sampling temperature. Default: the run's, else 0.7."""
    max_new_tokens: int | None = None
    """Longest command, in tokens. Default: the run's, else 64."""
    shots: int | None = None
    """Labelled examples of each domain before every prompt. Default: the run's, else 0."""
    prefill: str | None = None
    """How every command's answer begins. Default: the run's, else as the domain says."""
    chat_template_kwargs: str | None = None
    """Variables of the chat template, as JSON. Default: the run's, else what switches thinking off."""
    reward: str | None = None
    """Reward whose scores are compared with the verdicts; with --best-of several, separated by commas.
    Default: the run's, which of a reward model is that model itself, else likelihood."""
    gates: bool = True
    """Apply the gates before the reward (docs/REWARDS.md), unless the run was made without them."""
    inverter: Literal["current", "base", "ema"] | None = None
    """Weights that reconstruct the task from a command. Default: as in the run, else current."""
    inverse_temperature: float | None = None
    """Sampling temperature for reconstruction; 0 is greedy. Default: the run's, else 0.3."""
    embedder: str | None = None
    """Sentence-embedding model of the similarity reward. Default: the run's, else all-MiniLM-L6-v2."""
    output: str | None = None
    """Folder for report.html and report.json. Default: runs/evaluate/<subjects>."""
    json: bool = False
    """Print the report as JSON and nothing else."""

    def check(self) -> None:
        """Raises InputError: a value out of range, an unknown reward, a faulty domain, a missing subject."""
        if self.best_of is not None and self.best_of < 2:
            raise InputError(f"--best-of {self.best_of}: must be 2 or more, for the reward to have a choice")
        require_counts(self, "tasks", "samples", "best_of")
        require_sampling(self)
        read_options(self.chat_template_kwargs)
        names = rewards_of(self)
        for name in names:
            reward_info(name)
        if len(names) > 1 and self.best_of is None:
            raise InputError(f"--reward {self.reward}: needs --best-of N, for several rewards to choose")
        if self.subjects and (self.model or self.adapter):
            flag = "--model" if self.model else "--adapter"
            raise InputError(
                f"{flag}: give either subjects or --model and --adapter: a model can be a subject"
            )
        for subject in self.subjects:
            is_path = subject.startswith(("runs/", ".", "/", "~"))
            if is_path and not Path(subject).exists():
                raise InputError(f"{subject}: no such folder: give a run, one of its checkpoints, or a model")
        if not self.subjects:
            check_model(self.model or "embedded")
        if self.adapter:
            check_adapter(Path(self.adapter).expanduser(), self.model or "embedded")
        for name in domain_names(self.domain or "all"):
            load_domain(name)
        check_output(self.output)


def main(config: Config) -> int:
    """Measures every subject, compares each with the first, writes the report and prints a summary."""
    from agents.evaluation.answers import cases_of  # slow to import, as those below, and not for --help

    config = replace(config, samples=config.best_of or config.samples)
    subjects = subjects_of(config)
    settings = resolved(config, subjects)
    cases = cases_of(settings["domain"], config.tasks, config.tasks_file)

    # They load torch, for which no mistake should wait.
    from agents.evaluation.measure import judgeable, measure
    from agents.evaluation.report import make_report
    from agents.evaluation.selection import measure_selection
    from agents.evaluation.terminal import show
    from agents.pages.evaluation import write_evaluation
    from agents.policy.load import labels_of

    references = None
    if config.tasks_file is not None:
        settings["domain"] = ",".join(dict.fromkeys(case.task.domain for case in cases))
        references = judgeable(cases)
    output = Path(config.output or f"runs/evaluate/{file_name(subject.name for subject in subjects)}")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    measured = []
    for subject in subjects:
        answers = measure(
            subject.model,
            subject.adapter,
            cases,
            settings,
            samples=config.samples,
            start=subject.start,
            load_in_4bit=subject.load_in_4bit,
            dtype=config.dtype,
            threads=config.threads,
        )
        about: dict[str, Any] = {
            "name": subject.name,
            "model": subject.model,
            "adapter": subject.adapter,
            "labels": labels_of(subject.model, subject.adapter) + new_shots(subject, settings),
        }
        if subject.run is not None:
            about["selection"] = measure_selection(subject.run)
        measured.append((about, answers))
    labelled = reward_info(settings["reward"]).from_labels
    shown = {**settings, "labelled": labelled, "samples": config.samples, "tasks_file": config.tasks_file}
    report = make_report(shown, config.samples, measured, references)
    with writing(output):
        write_json(output / "report.json", report)
        write_evaluation(report, output / "report.html")
    if config.json:
        print(as_json(report, 1))
    else:
        show(report)
        say(f"{output}/report.html")
    return 0


def rewards_of(config: Config) -> list[str]:
    """The rewards that --reward names, each once."""
    if config.reward is None:
        return []
    return list(dict.fromkeys(name.strip() for name in config.reward.split(",")))


# ---- what is evaluated ----


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        settings: those of the run it comes from, else those that suit the model.
        start: the adapter with which its run began; the adapter itself where it is of no run.
        run: the folder of the whole run that it is the end of.
        shots: how many of each domain are in the adapter's count of labels: those of its run.
    """

    name: str
    model: str
    adapter: str | None
    settings: Mapping[str, Any]
    start: str | None = None
    run: Path | None = None
    load_in_4bit: bool = False
    shots: int = 0


def subjects_of(config: Config) -> list[Subject]:
    """What is to be evaluated; a single run stands for its start and its end.

    Raises:
        InputError: a run cannot be read or has no checkpoint, or a folder is an adapter without its run.
    """
    if not config.subjects:
        model = config.model or "embedded"
        name = f"{model} + {config.adapter}" if config.adapter else model
        settings = suited(model)
        in_4bit = config.load_in_4bit
        return [Subject(name, model, config.adapter, settings, start=config.adapter, load_in_4bit=in_4bit)]
    if len(config.subjects) == 1:
        run = Path(config.subjects[0])
        if (run / "config.yaml").is_file():
            return start_and_end(run)
    found = [subject_at(where, config.load_in_4bit) for where in config.subjects]
    if len({subject.name for subject in found}) < len(found):  # runs of the same name in different folders
        found = [replace(subject, name=where) for subject, where in zip(found, config.subjects, strict=True)]
    return found


def start_and_end(run: Path) -> list[Subject]:
    """A run's model as it started, and with its last or kept adapter."""
    last = subject_of_run(run, run)
    start = replace(last, name=f"{last.name}, start", adapter=last.start, run=None, shots=0)
    is_finished = (run / "self_improvement_results.json").is_file()
    when = "end" if is_finished else Path(str(last.adapter)).name
    return [start, replace(last, name=f"{last.name}, {when}")]


def subject_at(where: str, load_in_4bit: bool) -> Subject:
    """A run, a checkpoint in one, or a model."""
    folder = Path(where)
    if (folder / "config.yaml").is_file():
        return subject_of_run(folder, folder)
    above = folder.resolve().parent
    if above.name == "checkpoints" and (above.parent / "config.yaml").is_file():
        return subject_of_run(above.parent, folder)
    check_model(where, where)
    settings = suited(where)
    in_4bit = load_in_4bit or bool(settings.get("load_in_4bit"))
    return Subject(where, where, None, settings, load_in_4bit=in_4bit)


def subject_of_run(run: Path, folder: Path) -> Subject:
    """The adapter of a run, or of one of its checkpoints.

    Args:
        folder: the run's own, or that of the checkpoint.
    """
    settings = read_settings(run, "restore it, or give another run")
    for name, default in {"model": "embedded", **FALLBACK}.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        needed = name == "model" or name in settings
        if needed and not isinstance(settings.get(name), kinds):
            raise InputError(
                f"{run / 'config.yaml'}: cannot be read ({name}: {settings.get(name)}): "
                "restore it, or give another run"
            )
    if settings.get("reward") == OWN:
        settings["reward"] = f"{PREFIX}{folder}"
    name = folder.absolute().name
    adapter = last_checkpoint(run)
    if folder != run:
        name, adapter = f"{run.name}, {name}", folder
    check_model(settings["model"], f"{run}: its model {settings['model']}")
    check_adapter(adapter, settings["model"], str(adapter))
    return Subject(
        name,
        settings["model"],
        str(adapter),
        settings,
        start=settings.get("adapter"),
        run=run if folder == run else None,
        load_in_4bit=bool(settings.get("load_in_4bit")),
        shots=settings.get("shots", 0),
    )


def last_checkpoint(run: Path) -> Path:
    """The adapter of the cycle that the run kept, else of its last one.

    Raises:
        InputError: the run has none yet.
    """
    try:
        kept = from_json((run / "progress.json").read_text(encoding="utf-8")).get("kept")
    except (OSError, ValueError, AttributeError):
        kept = None
    if isinstance(kept, int):
        wanted = run / "checkpoints" / f"cycle-{kept:04d}"
        if wanted.is_dir():
            return wanted
    folders = sorted((run / "checkpoints").glob("cycle-[0-9]*"))
    if not folders:
        raise InputError(f"{run}: has no checkpoint yet: give a run that has finished a cycle")
    return folders[-1]


def new_shots(subject: Subject, settings: Mapping[str, Any]) -> int:
    """Labels that an evaluation puts before a subject's prompts and that its own count does not hold yet."""
    more = max(0, settings["shots"] - subject.shots)
    return more * len(domain_names(settings["domain"]))


def suited(model: str) -> dict[str, Any]:
    """The settings that suit a model that the project knows; none for others."""
    if model not in MODEL_FILES:
        return {}
    return model_defaults(model, get_type_hints(Config))[0]


def resolved(config: Config, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The settings that all subjects are measured with.

    Each is the flag, else what the last run has, else what suits the model, else the default.

    Raises:
        InputError: the runs were made on different domains and --domain does not say which is meant.
    """
    domains = {}
    last = subjects[-1].settings
    for subject in subjects:
        if "domain" in subject.settings:  # a run
            domains[subject.settings["domain"]] = subject.name
            last = subject.settings
    if config.domain is None and len(domains) > 1:
        names = "; ".join(sorted(domains))
        raise InputError(f"--domain: the runs were made on different ones ({names}): say which is meant")
    found: dict[str, Any] = {}
    for name, default in {**FALLBACK, **OPTIONAL}.items():
        value = getattr(config, name)
        found[name] = last.get(name, default) if value is None else value
    rewards = rewards_of(config) or [found["reward"]]
    found["reward"] = rewards[0]
    found["choosing"] = [] if config.best_of is None else rewards
    if reward_info(found["reward"]).needs_group and config.samples < 2:
        why = f"since the reward {found['reward']} compares candidates"
        raise InputError(f"--samples {config.samples}: must be 2 or more, {why}")
    found["gates"] = config.gates and bool(last.get("gates", True))
    return found


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
