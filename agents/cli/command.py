"""The flat command line of every command: `python -m agents.NAME --flag value`, from a frozen dataclass.

The fields are the flags, and their docstrings are the help. Later layers win: the dataclass's defaults, the
model's own file in configs/, `--config FILE.yaml`, the flags. With `--resume` the run's saved configuration
replaces the first three. tyro parses the flags and writes the help. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import threading
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import agents
from agents.cli.faults import Terminated, fault
from agents.cli.flags import field_names, given_flags, positional
from agents.cli.values import model_defaults, read_settings, yaml_text
from agents.training.config import TrainingError
from envs.messages import one_line, visible
from envs.types import InputError

Config = TypeVar("Config")
Main = Callable[[Config], "int | None"]


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
        What `main` returned; 2 for wrong input, 1 for a failed training, a full disk or too little memory,
        each with one line on stderr; 130 when interrupted (SIGINT), 143 when terminated (SIGTERM); 141 when
        nobody reads its output any more.
    """
    agent = agent or Path(sys.argv[0]).stem
    try:
        with _terminable():
            _refuse_a_foreign_package()
            config, line = parse(config_type, argv, agent)
            if line:
                for_programs = getattr(config, "json", False) or getattr(config, "extract", None)
                print(visible(line), flush=True, file=sys.stderr if for_programs else sys.stdout)
            return main(config) or 0
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(visible(f"interrupted: {_how_to_go_on(stop)}"), file=sys.stderr)
        return 130
    except Terminated as stop:
        print(visible(f"terminated: {_how_to_go_on(stop)}"), file=sys.stderr)
        return 143
    except BrokenPipeError:
        if not _abandoned(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not (said := fault(error)):
            raise
        print(visible(f"error: {said}, then {_how_to_go_on(error)}"), file=sys.stderr)
        return 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated, once, so that what Ctrl-C cleans up is cleaned up."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _how_to_go_on(stop: BaseException) -> str:
    """What the run that was stopped has noted on the exception; another command begins again."""
    notes = getattr(stop, "__notes__", None)
    return notes[-1] if notes else "start it again"


def _refuse_a_foreign_package() -> None:
    """Two projects that were installed over each other share the folder `agents`, and one overwrote files.

    Raises:
        InputError: where the package's own file is another project's.
    """
    if getattr(agents, "PROJECT", None) != "inversion":
        raise InputError(
            f"the package agents is another project's ({agents.__file__}), installed over this one:"
            " give each an environment of its own"
        )


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
    all_hints = typing.get_type_hints(config_type)
    hints = {name: all_hints[name] for name in all_hints if name in field_names(config_type)}
    given = given_flags(config_type, hints, list(sys.argv[1:] if argv is None else argv), agent)
    if given.get("resume") is not None:
        return _resumed(config_type, hints, given, agent)

    overrides: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if given.get("config") is not None:
        overrides, origins = read_settings(Path(given["config"]), hints, forbidden=("config", "resume"))
    if {"output", "resume"} <= set(hints) and (given.get("output") or overrides.get("output")) is None:
        overrides["output"] = f"runs/{agent}"
    config = _build(config_type, {**overrides, **given}, given, origins)
    words = positional(config_type)  # type: ignore[arg-type]  # mypy knows no hash of a type[Config]
    names_models_itself = any(getattr(config, name) for name in words)
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


def _build(
    config_type: type[Config], values: Mapping[str, Any], given: Iterable[str], origins: Mapping[str, str]
) -> Config:
    """Makes and checks a configuration. An error about a value of a file names file and line."""
    for name, value in values.items():
        for text in value if isinstance(value, (list, tuple)) else (value,):
            where = f"--{name.replace('_', '-')}"
            if name in origins and name not in given:
                where = f"{origins[name]}: {name}"
            elif name in positional(config_type):  # type: ignore[arg-type]
                where = name.upper()
            _check_text(where, text)
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


def _check_text(where: str, text: Any) -> None:
    """Raises InputError for a text that cannot be written to a file, or that a terminal would obey."""
    for letter in text if isinstance(text, str) else ():
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t":
            found = f"the character U+{ord(letter):04X}" if letter <= "\x9f" else "a byte that is not UTF-8"
            raise InputError(f"{where}: has {found}: remove it")


# Resuming a run


def _resumed(
    config_type: type[Config], hints: Mapping[str, Any], given: Mapping[str, Any], agent: str
) -> tuple[Config, str]:
    """The saved configuration of the run that --resume means. Its `cycles` may be changed, nothing else."""
    alone = given["resume"] == ""
    folder = _find_run(given, agent) if alone else Path(given["resume"])
    path = folder / "config.yaml"
    if not path.is_file():
        newest = _newest(folder.parent)
        hint = f"did you mean {newest}?" if newest else "give the folder of a run"
        raise InputError(f"--resume {folder}: no run is there (it has no config.yaml): {hint}")
    trainer = read_settings(path, {"agent": str}, skip_unknown=True)[0].get("agent", agent)
    if trainer != agent:
        raise InputError(f"--resume {folder}: is a run of agents.{trainer}: resume it with that command")
    saved, origins = read_settings(path, {**hints, "agent": str})
    saved.pop("agent", None)  # the command itself, no setting
    missing = [name for name in hints if name not in saved and name != "config"]
    if missing:
        lost = "a part of it is lost (restore it), or it is of an older version (start a new run)"
        raise InputError(f"{path}: has no {missing[0]}: {lost}")
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("cycles", "resume"):
            continue
        if name in ("output", "name"):
            if value and not _is_place_of(folder.resolve(), name, value):
                raise InputError(f"{flag} {value}: --resume goes on with {folder}: leave {flag} out")
            continue
        same = [value]
        if name == "model":
            same.append(model_defaults(value, hints)[0]["model"])  # its full name
        if saved.get(name) not in same:
            began = yaml_text(saved.get(name))
            raise InputError(
                f"{flag} {yaml_text(value)}: the run was started with {began}: "
                "leave it out, or start a new run"
            )
    changes = {"cycles": given["cycles"]} if "cycles" in given else {}
    config = _build(config_type, {**saved, **changes, "resume": str(folder)}, given, origins)
    return config, f"model: {saved['model']}, as in {path}" if "model" in saved else ""


def _is_place_of(folder: Path, name: str, value: str) -> bool:
    """Whether --output or --name names the place where the run is."""
    if name == "output":
        return Path(value).resolve() == folder.parent
    return value == folder.name


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


def _newest(output: Path) -> Path | None:
    """The run below `output` that was started last."""
    started = []
    for path in output.glob("*/config.yaml"):
        started.append((path.stat().st_mtime_ns, path.parent))
    return max(started)[1] if started else None
