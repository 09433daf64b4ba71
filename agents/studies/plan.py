"""A study as its YAML file describes it: arms, seeds and comparisons, all checked before anything starts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from agents.cli.command import parse
from agents.studies.settings import SAME_START, SAME_TASKS, difference_of, is_labelled
from agents.training.config import TrainConfig
from envs.domain import domain_names, load_domain
from envs.messages import did_you_mean, short
from envs.types import InputError
from envs.yamlfile import YamlFile, read_yaml

SET_BY_STUDY = {
    "seed": "list the seeds under `seeds`",
    "output": "give the study's folder by --output",
    **dict.fromkeys(("name", "resume", "config"), "remove it"),
}
TOP = (
    "about",
    "trainer",
    "seeds",
    "settings",
    "arms",
    "groups",
    "reference",
    "ceiling",
    "candidates_of",
    "transfer_tasks",
    "theory",
)
LONGEST_ABOUT = 10_000
MOST_SEEDS = 1000
OF_ARM = ("trainer", "seeds", "evaluate_on", "reference", "ceiling", "candidates_of")


@dataclass(frozen=True)
class Arm:
    """One line of the study's table.

    Attributes:
        settings: what the trainer is given, flag names with underscores; the seed is added.
        resolved: every setting of the trainer, defaults included.
        labelled: it learns from references or verdicts: no competitor of those that do not.
        evaluate_on: domains on which its start and end are evaluated as well.
        reference, ceiling: the arms that its gain is compared with; None where nothing fits.
        candidates_of: the arm whose candidates it learns from, seed by seed; None if it writes its own.
    """

    name: str
    trainer: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    resolved: Mapping[str, Any]
    labelled: bool
    evaluate_on: tuple[str, ...]
    reference: str | None
    ceiling: str | None
    candidates_of: str | None = None


@dataclass(frozen=True)
class Plan:
    """A whole study.

    `groups`: sections of the report -> names of arms. `theory`: arms whose models are evaluated both ways.
    """

    name: str
    about: str
    arms: Mapping[str, Arm]
    groups: Mapping[str, tuple[str, ...]]
    transfer_tasks: int
    theory: tuple[str, ...]


class _File:
    """The study's YAML file: its values, and errors that name a line of it."""

    def __init__(self, yaml_file: YamlFile) -> None:
        self.yaml_file = yaml_file

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether the file has a key at just this place."""
        return self.yaml_file.existing(path) == path

    def error(self, path: tuple[str, ...], text: str) -> InputError:
        """An error at a key, or at the nearest key above it that is in the file. The text names the key."""
        return InputError(f"{self.yaml_file.name}:{self.yaml_file.line(path)}: {text}")


Trainers = Mapping[str, type[TrainConfig]]


def read_plan(path: Path, trainers: Trainers) -> Plan:
    """Reads a study and checks every arm against its trainer.

    Args:
        trainers: name of a trainer -> its configuration.

    Raises:
        InputError: `FILE:LINE: key: what is wrong and what to do`.
    """
    file, data = _read(path)
    _known(file, (), data, TOP)
    arms = data.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise file.error(("arms",), "arms: a study needs at least one: `NAME: {setting: value}`")
    common = data.get("settings") or {}
    if not isinstance(common, dict):
        raise file.error(("settings",), "settings: must be a mapping, one `flag: value` a line")
    trainer = data.get("trainer", "rejection_sft")
    seeds = _seeds(file, ("seeds",), data.get("seeds", [0, 1, 2, 3, 4]))
    known = {field.name for field in fields(_trainer(file, ("trainer",), trainer, trainers))}
    _known(file, ("settings",), common, known)
    found = {
        name: _arm(file, name, arm, data, trainer, seeds, common, trainers) for name, arm in arms.items()
    }
    for name, arm in found.items():
        for role in ("reference", "ceiling"):
            _exists(
                file,
                ("arms", name, role) if role in (arms[name] or {}) else (role,),
                getattr(arm, role),
                found,
            )
    groups = data.get("groups") or {"arms": list(found)}
    if not isinstance(groups, dict) or not all(
        isinstance(names, list) and names for names in groups.values()
    ):
        raise file.error(
            ("groups",),
            "groups: must be a mapping of names to lists of arms: `rewards: [similarity, likelihood]`",
        )
    for group, names in groups.items():
        for arm_name in names:
            _exists(file, ("groups", group), arm_name, found)
    if rest := [name for name in found if not any(name in names for names in groups.values())]:
        groups = {**groups, "others": rest}
    tasks = data.get("transfer_tasks", 100)
    if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < 1:
        raise file.error(("transfer_tasks",), f"transfer_tasks: {tasks}: must be a whole number of 1 or more")
    theory = _theory(file, data.get("theory", False), found)
    paired = {name: _paired(file, found, arm, arms[name] or {}) for name, arm in found.items()}
    for arm in found.values():
        _check_candidates(file, arm, found)
    about = data.get("about") or ""
    if not isinstance(about, str) or len(about) > LONGEST_ABOUT:
        problem = f"about: must be a text of at most {LONGEST_ABOUT:,} characters: what the study asks"
        raise file.error(("about",), problem)
    about = " ".join(about.split())
    return Plan(
        path.stem, about, paired, {name: tuple(names) for name, names in groups.items()}, tasks, theory
    )


def _read(path: Path) -> tuple[_File, dict[str, Any]]:
    try:
        yaml_file = read_yaml(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file: give the YAML file of a study, as configs/studies/smoke.yaml"
        ) from None
    file = _File(yaml_file)
    if not isinstance(yaml_file.data, dict):
        raise file.error((), "must hold a study: `arms:`, and under it `NAME: {setting: value}`")
    return file, _with_text_keys(yaml_file.data)


def _with_text_keys(value: Any) -> Any:
    """The same values with texts as keys: an arm may be called 3."""
    if not isinstance(value, dict):
        return value
    return {str(key): _with_text_keys(inner) for key, inner in value.items()}


def _arm(
    file: _File,
    name: str,
    given: Any,
    data: Mapping[str, Any],
    trainer: str,
    seeds: tuple[int, ...],
    common: Mapping[str, Any],
    trainers: Trainers,
) -> Arm:
    where = ("arms", name)
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise file.error(
            where, f"{name}: an arm's name is that of a folder: letters, digits and . _ + - alone"
        )
    given = given if given is not None else {}
    if not isinstance(given, dict):
        raise file.error(where, f"{name}: must be a mapping: `{name}: {{setting: value}}`, or `{name}: {{}}`")
    own = given.get("trainer", trainer)
    config_type = _trainer(file, (*where, "trainer"), own, trainers)
    known = {field.name for field in fields(config_type)}
    # What another trainer has no use for is left out.
    settings = {key: value for key, value in common.items() if key in known}
    settings |= {key: value for key, value in given.items() if key not in OF_ARM}
    resolved = _checked(file, where, own, config_type, settings)
    on = given.get("evaluate_on", [])
    if not isinstance(on, list) or not all(isinstance(domain, str) for domain in on):
        raise file.error(
            (*where, "evaluate_on"), "evaluate_on: must be a list of domains: [network, shell, sql]"
        )
    try:
        on = [domain for part in on for domain in domain_names(part)]
        for domain in on:
            load_domain(domain)
    except InputError as error:
        raise file.error(
            (*where, "evaluate_on"), f"evaluate_on: {str(error).removeprefix('--domain ')}"
        ) from None
    reward = str(resolved["reward"])
    return Arm(
        name,
        own,
        _seeds(file, (*where, "seeds"), given["seeds"]) if "seeds" in given else seeds,
        settings,
        resolved,
        config_type(**resolved).supervised or is_labelled(reward),
        tuple(on),
        given.get("reference", data.get("reference")),
        given.get("ceiling", data.get("ceiling")),
        _writer(name, given, data),
    )


def _writer(name: str, given: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """The arm whose candidates an arm learns from: its own choice or the study's, never itself."""
    writer = given.get("candidates_of", data.get("candidates_of"))
    return None if writer == name else writer


def _check_candidates(file: _File, arm: Arm, arms: Mapping[str, Arm]) -> None:
    """An arm can learn from the candidates of another if that one writes as many, as the same model."""
    key = ("arms", arm.name, "candidates_of")
    where = key if file.has(key) else ("candidates_of",)
    name = arm.candidates_of
    if name is None:
        return
    _exists(file, where, name, arms)
    writer = arms[name]
    problem = ""
    if "rollouts" not in arm.resolved:
        problem = f"{arm.trainer} learns from what it writes itself"
    elif writer.candidates_of is not None:
        problem = f"{name} learns from the candidates of {writer.candidates_of}: name that one"
    elif missing := sorted(set(arm.seeds) - set(writer.seeds)):
        problem = f"{name} has no seed {missing[0]}"
    elif different := difference_of([writer.resolved, arm.resolved], SAME_START):
        problem = f"{different}: both must begin with the same model and prompts"
    elif arm.resolved["top_k"] != 0 or arm.resolved["top_p"] != 1:
        problem = "top_k and top_p are for an arm that writes its own: give it `candidates_of: null`"
    else:
        problem = _too_few(writer.resolved, arm.resolved)
    if problem:
        raise file.error(where, f"candidates_of: {name}: not for {arm.name}: {problem}")


def _too_few(writer: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """Where the candidates of a writer's first cycle are not enough for an arm; empty where they are."""
    needed = arm["cycles"] * arm["tasks"]
    if needed > writer["tasks"]:
        asked = f"cycles {arm['cycles']} x tasks {arm['tasks']} need {needed}"
        return f"its first cycle has {writer['tasks']} tasks, and {asked}"
    if arm["candidates"] > writer["candidates"]:
        return f"it writes {writer['candidates']} candidates of a task, not {arm['candidates']}"
    return ""


def _checked(
    file: _File,
    where: tuple[str, ...],
    trainer: str,
    config_type: type[TrainConfig],
    settings: Mapping[str, Any],
) -> Any:
    """All settings of the trainer, as its own command line reads them from a file."""

    def at(key: str) -> tuple[str, ...]:
        return (*where, key) if file.has((*where, key)) else ("settings", key)

    for key in settings:
        if key in SET_BY_STUDY:
            raise file.error(at(key), f"{key}: is set by the study itself: {SET_BY_STUDY[key]}")
        if key not in (known := [field.name for field in fields(config_type)]):
            raise file.error(at(key), f"{key}: unknown key: {did_you_mean(key, [*known, *OF_ARM])}")
    model = str(settings.get("model", ""))
    if model.startswith(("/", ".", "runs/")) and not Path(model).exists():
        how = "make it first as the head of this file says, or give embedded"
        raise file.error(at("model"), f"model: {model}: no such folder: {how}")
    keys = list(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arm.yaml"
        path.write_text(as_yaml(settings), encoding="utf-8")
        try:
            return asdict(parse(config_type, ["--config", str(path)], trainer)[0])
        except InputError as error:
            found = re.match(rf"{re.escape(str(path))}:(\d+): (.*)", str(error), re.DOTALL)
            key = keys[int(found[1]) - 1] if found else ""
            text = found[2] if found else str(error)
            text = re.sub(r"^--([\w-]+)", lambda flag: flag[1].replace("-", "_") + ":", text)
            raise file.error(at(key) if key else where, text) from None


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as a file for a trainer's --config, one a line."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())


def _trainer(file: _File, where: tuple[str, ...], name: Any, trainers: Trainers) -> type[TrainConfig]:
    if not isinstance(name, str) or name not in trainers:
        raise file.error(where, f"trainer: {name}: no such trainer: {did_you_mean(name, trainers)}")
    return trainers[name]


def _seeds(file: _File, where: tuple[str, ...], value: Any) -> tuple[int, ...]:
    whole = (
        isinstance(value, list)
        and value
        and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in value)
    )
    if not whole or len(set(value)) < len(value):
        raise file.error(
            where, f"seeds: {short(value)}: must be a list of different whole numbers of 0 or more: [0, 1, 2]"
        )
    if len(value) > MOST_SEEDS or max(value) >= 2**63:
        raise file.error(where, f"seeds: at most {MOST_SEEDS:,}, each below 2**63: list fewer")
    return tuple(value)


def _theory(file: _File, value: Any, arms: Mapping[str, Arm]) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (next(iter(arms)),) if value else ()
    if not isinstance(value, list) or not value:
        raise file.error(
            ("theory",),
            "theory: must be true, or a list of the arms whose models are to be evaluated in both directions",
        )
    for name in value:
        _exists(file, ("theory",), name, arms)
    return tuple(value)


def _paired(file: _File, arms: Mapping[str, Arm], arm: Arm, given: Mapping[str, Any]) -> Arm:
    """The arm without the study's comparisons that do not fit it. Its own comparisons must fit."""
    fitting: dict[str, str | None] = {}
    for role in ("reference", "ceiling"):
        name = getattr(arm, role)
        why = unfit(arm, arms[name]) if name is not None else ""
        if why and role in given:
            raise file.error(
                ("arms", arm.name, role), f"{role}: {name}: cannot be compared with {arm.name}: {why}"
            )
        fitting[role] = None if why else name
    return replace(arm, **fitting)  # type: ignore[arg-type]


def unfit(arm: Arm, other: Arm) -> str:
    """Why two arms' gains cannot be compared: other tasks, start or budget. Empty where they can."""
    for key in (*SAME_TASKS, "model", "adapter"):
        if arm.resolved[key] != other.resolved[key]:
            return f"{key} {arm.resolved[key]} and {other.resolved[key]}"
    budgets = [
        row.resolved["cycles"] * row.resolved["tasks"] * row.resolved["candidates"] for row in (arm, other)
    ]
    return f"budgets of {budgets[0]} and {budgets[1]} candidates" if budgets[0] != budgets[1] else ""


def _known(file: _File, where: tuple[str, ...], given: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise file.error((*where, key), f"{key}: unknown key: {did_you_mean(key, known)}")


def _exists(file: _File, where: tuple[str, ...], name: Any, arms: Mapping[str, Arm]) -> None:
    if name is not None and (not isinstance(name, str) or name not in arms):
        raise file.error(where, f"{where[-1]}: {name}: no such arm: {did_you_mean(name, arms)}")
