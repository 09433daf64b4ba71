"""The flat command line of every command: `python -m agents.NAME --flag value`, from a frozen dataclass.

The fields are the flags, and their docstrings are the help. Later layers win: the dataclass's defaults, the
model's own file in configs/, `--config FILE.yaml`, the flags. With `--resume` the run's saved configuration
replaces the first three. tyro parses the flags and writes the help. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import select
import shlex
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, Union

import yaml

from agents.training.config import TrainingError
from envs.messages import did_you_mean, one_line
from envs.types import InputError
from envs.yamlfile import as_number, read_yaml

Config = TypeVar("Config")
Main = Callable[[Config], "int | None"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
MODEL_FILES = {"embedded": "embedded.yaml", "mistral-7b": "mistral-7b.yaml", MISTRAL: "mistral-7b.yaml"}


def run_command(
    config_type: type[Config], main: Main[Config], argv: Sequence[str] | None = None, agent: str | None = None
) -> int:
    """Reads the command line, says which model was taken and why, and runs `main` -> the exit code.

    Args:
        config_type: a frozen dataclass. Its `check()`, if any, raises InputError for values out of range.
        main: gets the configuration; returns an exit code, None meaning 0.
        argv: by default the words after the program's name.
        agent: the command's name, by default that of the file that runs.

    Returns:
        What `main` returned; 2 for wrong input, with one line on stderr; 130 when interrupted; 141 when
        nobody reads its output any more.
    """
    agent = agent or Path(sys.argv[0]).stem
    started = time.time()
    read: Config | None = None
    try:
        config, line = parse(config_type, argv, agent)
        read = config
        if line:
            print(line, flush=True, file=sys.stderr if getattr(config, "json", False) else sys.stdout)
        return main(config) or 0
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_how_to_go_on(read, agent, started), file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _abandoned(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _abandoned(stream: TextIO) -> bool:
    """Whether the other end of a pipe has been closed, as `head` does when it has seen enough."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except OSError:  # it is no file at all
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def parse(
    config_type: type[Config], argv: Sequence[str] | None = None, agent: str = "command"
) -> tuple[Config, str]:
    """Reads the command line -> (configuration, a line that names the model and why; empty without a model).

    A trainer's `output` is filled in as runs/<agent> where it is None.

    Raises:
        InputError: a flag, a value or a YAML file is wrong.
        SystemExit: the help was asked for and printed.
    """
    hints = {
        name: hint for name, hint in typing.get_type_hints(config_type).items() if name in _names(config_type)
    }
    given = _flags(config_type, hints, list(sys.argv[1:] if argv is None else argv), agent)
    if given.get("resume") is not None:
        return _resumed(config_type, hints, given, agent)

    overrides: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if given.get("config") is not None:
        overrides, origins = _read_yaml(Path(given["config"]), hints, forbidden=("config", "resume"))
    if {"output", "resume"} <= set(hints) and (given.get("output") or overrides.get("output")) is None:
        overrides["output"] = f"runs/{agent}"
    config = _build(config_type, {**overrides, **given}, given, origins)
    names_models_itself = any(getattr(config, name) for name in _positional(config_type))
    if "model" not in hints or names_models_itself:
        return config, ""

    model = config.model or "embedded"  # type: ignore[attr-defined]
    if given.get("model"):
        why = "as --model says"
    elif "model" in origins:
        why = f"as {origins['model']} says"
    else:
        why = "the default"
    defaults, name = model_defaults(model, hints)
    config = _build(
        config_type, {**defaults, **overrides, **given, "model": defaults["model"]}, given, origins
    )
    origin = f"defaults from {name}" if name else "no defaults of its own"
    return config, f"model: {defaults['model']}, {why}; {origin}"


def _names(config_type: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config_type)]


def _build(
    config_type: type[Config], values: Mapping[str, Any], given: Iterable[str], origins: Mapping[str, str]
) -> Config:
    """Makes and checks a configuration. An error about a value of a file names file and line."""
    config = config_type(**values)
    check = getattr(config, "check", None)
    if check is not None:
        try:
            check()
        except InputError as error:
            flag = re.match(r"--([\w-]+)", str(error))
            name = flag[1].replace("-", "_") if flag else ""
            if name in origins and name not in given:
                raise InputError(f"{origins[name]}: {error}") from None
            raise
    return config


# Flags


def _flags(config_type: type, hints: Mapping[str, Any], argv: list[str], agent: str) -> dict[str, Any]:
    """The fields that flags were given for, and their values."""
    import tyro

    words: dict[str, str] = {}  # field -> the word after its flag
    arguments: list[str] = []
    for index, word in enumerate(argv):
        arguments.append(word)
        if not word.startswith("--") or word in ("--help", "--"):
            continue
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name.startswith("no_") and hints.get(name[3:]) is bool:
            name = name[3:]
        if name not in hints:
            flags = ["--" + known.replace("_", "-") for known in hints]
            raise InputError(f"unknown flag {flag}: {did_you_mean(flag, flags, 'see --help')}")
        following = argv[index + 1 : index + 2]
        if not equals and following and not _is_flag(following[0]):
            value = following[0]
        elif not equals and name == "resume":
            arguments.append("")  # tyro has no flag with an optional value; empty stands for "find the run"
        words[name] = value

    errors = io.StringIO()
    # A wide screen keeps tyro from breaking its message inside a word. Help is for the screen that is there.
    wide = {} if {"-h", "--help"} & set(argv) else {"COLUMNS": "1000"}
    try:
        with _environment(wide), contextlib.redirect_stderr(errors):
            parsed: Any = tyro.cli(config_type, args=arguments, prog=f"python -m agents.{agent}")
    except SystemExit as stop:
        if not stop.code:
            raise
        for name, word in words.items():
            try:
                _convert(word, hints[name], text=True)
            except ValueError as error:
                shown = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{shown}: a value is missing" if not word else f"{shown} {word}: {error}"
                ) from None
        raise InputError(_condensed(errors.getvalue())) from None
    return {
        name: getattr(parsed, name)
        for name in (*words, *_positional(config_type))
        if name in words or getattr(parsed, name)
    }


def _positional(config_type: type) -> list[str]:
    """The fields that are words without a flag: those whose type is marked `tyro.conf.Positional`."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    return [name for name in _names(config_type) if typing.get_origin(hints[name]) is typing.Annotated]


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word == "-h"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> typing.Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _condensed(box: str) -> str:
    """The first paragraph below the title of a message that tyro framed, as one line."""
    # A frame and a rule hold no word; what characters draw them depends on the terminal.
    lines = [line.strip("│| ") for line in box.splitlines()]
    paragraphs = [
        list(group)
        for words, group in itertools.groupby(lines, lambda line: bool(re.search(r"\w", line)))
        if words
    ]
    if paragraphs and re.match(
        r"[^\w\s]", paragraphs[0][0]
    ):  # the title stands in the frame: it and the paragraph touch
        paragraphs[0] = paragraphs[0][1:]
    elif len(paragraphs) > 1:
        paragraphs = paragraphs[1:]
    message = " ".join(paragraphs[0]) if paragraphs else "the command line cannot be read"
    return message.rstrip(".").replace("Unrecognized options:", "unexpected") + ": see --help"


def _convert(value: Any, hint: Any, text: bool = False) -> Any:
    """A value as its field's type has it.

    Args:
        text: the value is a word of the command line rather than a YAML value.

    Raises:
        ValueError: it is not of that type; the message says what it must be.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and (value is None or (text and value == "None")):
            return None
        return _convert(value, next(argument for argument in arguments if argument is not type(None)), text)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise ValueError(f"must be one of {allowed}: {did_you_mean(value, arguments, 'see --help')}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list):
            if text:
                return value
            raise ValueError("must be a list: [a, b]")
        return origin(_convert(item, arguments[0]) for item in value)
    if hint is bool and not isinstance(value, bool) and not text:
        raise ValueError("must be true or false")
    if (
        hint is int
        and not (text and re.fullmatch(r"[+-]?\d+", value))
        and (text or isinstance(value, bool) or not isinstance(value, int))
    ):
        raise ValueError("must be a whole number")
    if hint is float:
        number = as_number(value)
        if number is None:
            raise ValueError("must be a number")
        return number
    if hint is str and not isinstance(value, str):
        raise ValueError("must be text: put it in quotes")
    return value


# YAML files


def _read_yaml(
    path: Path,
    hints: Mapping[str, Any],
    forbidden: Sequence[str] = (),
    shown: str = "",
    skip_unknown: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in a YAML file -> (values, where each stands: `FILE:LINE`).

    Args:
        forbidden: keys that only make sense as flags.
        shown: the file's name for messages.
        skip_unknown: leave out the keys that this command has no field for.
    """
    try:
        file = read_yaml(path, shown, flag="--config")
    except FileNotFoundError:
        raise InputError(f"--config {shown or path}: no such file: give the path of a YAML file") from None
    if file.data is None:
        return {}, {}
    if not isinstance(file.data, dict):
        raise file.error((), "must hold settings, one `key: value` per line")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in file.data.items():
        if key in forbidden:
            raise file.error((key,), f"cannot be set in a file: give it as --{key}")
        if key not in hints:
            if skip_unknown:
                continue
            allowed = [name for name in hints if name not in forbidden]
            raise file.error((key,), f"unknown key: {did_you_mean(key, allowed, 'see --help')}")
        try:
            values[key] = _convert(value, hints[key])
        except ValueError as error:
            raise file.error((key,), f"{_yaml_text(value)}: {error}") from None
        origins[key] = f"{file.name}:{file.line((key,))}"
    return values, origins


def _yaml_text(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n...\n").strip()


# The model


def model_defaults(model: str, hints: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings that suit a model -> (values, the file's name; empty for a model that has none).

    `model` is among the values: a file may give the full name of a short one. Fields that the command lacks
    are left out. A model made by `agents.pretrain` has the settings of the embedded one.
    """
    file = MODEL_FILES.get(model) or (
        MODEL_FILES["embedded"] if (Path(model) / "pretrain.json").is_file() else ""
    )
    if not file:
        return {"model": model}, ""
    name = f"configs/{file}"
    values, _ = _read_yaml(CONFIGS / file, hints, shown=name, skip_unknown=True)
    return {"model": model, **values}, name


# Going on with a run


def _resumed(
    config_type: type[Config], hints: Mapping[str, Any], given: Mapping[str, Any], agent: str
) -> tuple[Config, str]:
    """The saved configuration of the run that --resume means. Its `cycles` may be changed, nothing else."""
    alone = given["resume"] == ""
    folder = _find_run(given, agent) if alone else Path(given["resume"])
    path = folder / "config.yaml"
    if not path.is_file():
        newest = _newest(folder.parent)
        raise InputError(
            f"--resume {folder}: no run is there (it has no config.yaml)"
            + (f": did you mean {newest}?" if newest else "")
        )
    trainer = _read_yaml(path, {"agent": str}, skip_unknown=True)[0].get("agent", agent)
    if trainer != agent:
        raise InputError(f"--resume {folder}: is a run of agents.{trainer}: resume it with that command")
    saved, origins = _read_yaml(path, {**hints, "agent": str})
    saved.pop("agent", None)  # the command itself, no setting
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("cycles", "resume"):
            continue
        if name in ("output", "name"):
            there = folder.resolve()
            same = (
                (Path(value).resolve() == there.parent if name == "output" else value == there.name)
                if value
                else True
            )
            if not same:
                raise InputError(f"{flag} {value}: --resume goes on with {folder}: leave {flag} out")
        elif saved.get(name) not in (
            (value, model_defaults(value, hints)[0]["model"]) if name == "model" else (value,)
        ):
            began = _yaml_text(saved.get(name))
            raise InputError(
                f"{flag} {_yaml_text(value)}: the run was started with {began}: "
                "leave it out, or start a new run"
            )
    changes = {"cycles": given["cycles"]} if "cycles" in given else {}
    config = _build(config_type, {**saved, **changes, "resume": str(folder)}, given, origins)
    return config, f"model: {saved['model']}, as in {path}" if "model" in saved else ""


def _find_run(given: Mapping[str, Any], agent: str) -> Path:
    output = Path(given.get("output") or f"runs/{agent}")
    if given.get("name"):
        return output / str(given["name"])
    newest = _newest(output)
    if newest is None:
        raise InputError(
            f"--resume: there is no run below {output}: give the folder of one, or start one without --resume"
        )
    return newest


def _newest(output: Path, since: float = 0.0) -> Path | None:
    """The run below `output` that was started last."""
    times = [(path.stat().st_mtime_ns, path.parent) for path in output.glob("*/config.yaml")]
    return max(((moment, folder) for moment, folder in times if moment >= since * 1e9), default=(0, None))[1]


def _how_to_go_on(config: Any, agent: str, started: float) -> str:
    output, name, folder = (getattr(config, field, None) for field in ("output", "name", "resume"))
    if folder is None and output is not None:
        named = Path(output) / name if name else None
        folder = (
            named
            if named is not None and (named / "config.yaml").is_file()
            else None
            if named
            else _newest(Path(output), started)
        )
    if folder is None:
        return "interrupted: nothing was started"
    resume = f"python -m agents.{agent} --resume {shlex.quote(str(folder))}"
    return f"interrupted: go on from the last finished cycle with {resume}"
