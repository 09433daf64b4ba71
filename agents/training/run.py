"""The crash-safe run folder: what a run writes, and how it resumes after it was killed at any moment.

    runs/<agent>/<domain>-<reward>-s<seed>-<id>/
      .holder              who is at work here; gone when nobody is
      config.yaml          the trainer (`agent`) and all settings
      environment.json     versions, git state, command line, numbers and threads
      metrics.jsonl        one line per logged step, without wall-clock values: the same seed, the same bytes
      timings.jsonl        the wall-clock values
      rollouts.jsonl       every candidate with its scores
      truth.jsonl          every held-out command with its verdict: evaluation's, never read in training
      preferences.jsonl    of a reward model: every preference that it learnt
      selection.json       what was right among written and accepted commands, verified after the run's end
      tensorboard/         events; the x-axis is the number of candidates that were scored to learn from
      checkpoints/cycle-0003/   what `save` wrote, state.json, and COMPLETE: the sha256 sum of every file

A checkpoint is written to a temporary folder, synced and renamed: it is complete or absent. It records
how many bytes each log had, and their sum. `restore` cuts the logs back to that, and the run repeats what it
had done since. A log that is damaged before that point belongs to no intact checkpoint. The wall clock is no
part of that: its bytes differ from run to run, a checkpoint's must not, and a run can do without them.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from agents.cli.lock import HOLDER, HeldError, Lock
from agents.training import disk
from agents.training.disk import Sum
from agents.training.environment import changes, environment, recorded
from agents.training.tensorboard import Events
from envs.jsonl import from_json
from envs.messages import one_line
from envs.types import InputError
from envs.yamlfile import read_yaml

KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "preferences.jsonl")
CLOCK = "timings.jsonl"


def new_name(domain: str, reward: str, seed: int) -> str:
    """The default name of a run's folder; a random id at its end makes it unique.

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
        protected: cycles whose checkpoints are never pruned, such as the best so far. Set it before
            `commit`; `restore` brings it back.
    """

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.protected: set[int] = set()
        self._events = Events(folder / "tensorboard") if tensorboard else None
        self._step = 0
        self._logs: dict[str, Sum] = {}
        self._lock: Lock | None = None
        self._made: list[Path] = []  # folders above it that were made for it, the nearest first

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], tensorboard: bool = True) -> Run:
        """Starts a run in a new or empty folder and writes its config.yaml and environment.json.

        Args:
            config: a flat mapping of plain values, as `dataclasses.asdict` gives it.
            tensorboard: False leaves TensorBoard (and with it the import of torch) out.

        Raises:
            InputError: the folder is not empty, or another process is using it.
        """
        run = cls(Path(folder), tensorboard)
        if run.folder.exists() and not run.folder.is_dir():
            raise InputError(f"{folder} is a file: choose another --name or --output")
        try:
            run._made = [above for above in run.folder.parents if not above.exists()]
            run.folder.mkdir(parents=True, exist_ok=True)
            run._acquire()
        except OSError as error:
            where = f"--output: {folder} cannot be written ({error.strerror})"
            raise InputError(f"{where}: choose another --output or --name") from None
        # A run that died before it wrote its configuration leaves only temporary files, which hold
        # nothing to lose.
        if not all(disk.is_temporary(path) or path.name == HOLDER for path in run.folder.iterdir()):
            run.close()
            raise InputError(f"{folder} is not empty: use --resume {folder}, or choose another --name")
        try:
            disk.sync(run.folder.parent)
            run.write_config(config)
            run.write_json("environment.json", environment())
        except BaseException:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, folder: Path, tensorboard: bool = True) -> tuple[Run, dict[str, Any]]:
        """Opens a run to resume it -> (run, the configuration it was started with). Call `restore` next.

        Raises:
            InputError: there is no run, its config.yaml cannot be read, or another process is using it.
        """
        path = Path(folder) / "config.yaml"
        try:
            config = read_yaml(path).data
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no run is there (it has no config.yaml): give --resume the folder of a run"
            ) from None
        if not isinstance(config, dict):
            raise InputError(f"{path}: holds no keys: restore the file or start a new run")
        for name in (*LOGS, CLOCK, "tensorboard"):  # they are cut back, and a link may lead anywhere
            if (Path(folder) / name).is_symlink():
                raise InputError(f"{Path(folder) / name}: is a link: put the file itself in its place")
        run = cls(Path(folder), tensorboard)
        run._acquire()
        try:
            run._note_environment()
        except BaseException:
            run.close()
            raise
        return run, config

    def discard(self) -> None:
        """Removes the folder of a run that could not start, so that its name can be used again."""
        self.close()
        disk.remove(self.folder)
        for above in self._made:
            with contextlib.suppress(OSError):  # another run is in it by now
                above.rmdir()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(self._checkpoints())

    def close(self) -> None:
        """Closes TensorBoard's file and releases the folder to other processes. Safe to call twice."""
        try:
            if self._events is not None:
                self._events.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    # What a run writes

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml: when a run starts, and when a resumed one is to have more cycles."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        disk.replace(self.folder / "config.yaml", text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run so that a reader finds the old content or the new, never a part.

        Raises:
            ValueError: the value holds a NaN or an infinity.
        """
        disk.replace(self.folder / name, disk.as_json(value))

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        """Adds what holds for the whole run to its environment.json; what is recorded already stays."""
        known = from_json((self.folder / "environment.json").read_text(encoding="utf-8"))
        if key not in known:
            self.write_json("environment.json", {**known, key: dict(value)})

    def began_with(self, key: str, value: Mapping[str, Any]) -> bool:
        """Whether the run began with this value under a key, which must not change. Records a first one."""
        then = recorded(self.folder, key)
        if then is None:
            self.record(key, value)
        return then is None or then == dict(value)

    def append(self, log: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends one JSON line per record to a log of the run; durable after the next `commit`.

        Args:
            log: a file name such as `rollouts.jsonl`; `.jsonl` may be left out.

        Raises:
            ValueError: a record holds a NaN or an infinity.
        """
        name = log if log.endswith(".jsonl") else f"{log}.jsonl"
        lines = []
        for record in records:
            lines.append(json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
        if lines:
            data = "".join(lines).encode()
            disk.write(self.folder / name, data, append=True)
            if name != CLOCK:
                self._logs.setdefault(name, Sum()).add(data)

    def scalars(self, step: int, cycle: int, values: Mapping[str, float | None]) -> None:
        """Logs metrics: `time/*` to timings.jsonl, others to metrics.jsonl, all to TensorBoard.

        None is left out.

        Args:
            step: candidates scored so far to learn from, the x-axis; those that only measure are not counted.

        Raises:
            ValueError: a value is NaN or infinite; the message names the metric.
        """
        metrics: dict[str, float] = {}
        timings: dict[str, float] = {}
        for name, value in values.items():
            if value is None:
                continue
            if not math.isfinite(value):
                raise ValueError(f"metric {name} is {value} at step {step}")
            log = timings if name.startswith("time/") else metrics
            log[name] = value if isinstance(value, int) else float(value)
        for file, logged in (("metrics.jsonl", metrics), (CLOCK, timings)):
            if logged:
                self.append(file, [{"step": step, "cycle": cycle, **logged}])
        self._step = max(self._step, step)
        if self._events is not None:
            self._events.scalars(step, {**metrics, **timings})

    def text(self, step: int, tag: str, text: str) -> None:
        """Shows a text (Markdown) in TensorBoard."""
        if self._events is not None:
            self._events.text(step, tag, text)

    def hparams(self, settings: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Shows the run's settings on TensorBoard's HPARAMS page, next to the named metrics."""
        if self._events is not None:
            self._events.hparams(settings, metrics, self._step)

    def layout(self, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Lays out TensorBoard's CUSTOM SCALARS page: {category: {chart: ["Multiline", [tag, ...]]}}."""
        if self._events is not None:
            self._events.layout(layout)

    # Checkpoints

    def checkpoint(self, cycle: int) -> Path:
        """Where the checkpoint of a cycle is, or would be."""
        return self.folder / "checkpoints" / f"cycle-{cycle:04d}"

    def intact_checkpoint(self, cycle: int) -> Path:
        """The folder of a checkpoint; InputError if a file in it is missing or damaged."""
        folder = self.checkpoint(cycle)
        try:
            disk.verify_sums(folder)
        except (OSError, ValueError) as error:
            fix = "restore the file, or start a new run with another --name"
            raise InputError(f"{folder}: damaged, and kept as the best: {one_line(error)}: {fix}") from None
        return folder

    def commit(self, cycle: int, state: Mapping[str, Any], save: Callable[[Path], None]) -> Path:
        """Makes the logs durable, writes the checkpoint of a finished cycle, and removes old checkpoints.

        The last two are kept, and those of protected cycles.

        Args:
            cycle: the cycle that is finished; each has one checkpoint.
            state: plain JSON values that the trainer needs to resume.
            save: writes the policy's files into the folder it is given.

        Returns:
            The checkpoint's folder, which is durable when this returns.

        Raises:
            ValueError: the cycle has a checkpoint already.
        """
        final = self.checkpoint(cycle)
        if final.exists():
            raise ValueError(f"cycle {cycle} is committed already: {final}")
        self._sync_logs()
        final.parent.mkdir(exist_ok=True)
        disk.sync(self.folder)

        temporary = final.with_name(f".tmp-{final.name}")
        disk.remove(temporary)
        temporary.mkdir()
        save(temporary)
        record = {
            "cycle": cycle,
            "step": self._step,
            "logs": {name: self._logs[name].plain for name in sorted(self._logs)},
            "protected": sorted(self.protected),
            "state": dict(state),
        }
        # Keys stay in the trainer's order, so that a resumed run writes the same bytes.
        disk.write(temporary / "state.json", disk.as_json(record))
        _seal(temporary)
        disk.rename(temporary, final)
        disk.sync(final.parent)
        self._prune()
        return final

    def restore(self) -> tuple[dict[str, Any], Path] | None:
        """Goes back to the newest intact checkpoint -> (state with `cycle` and `step`, its folder).

        The logs are cut back to where they were, later checkpoints and temporary files are removed, and
        TensorBoard drops the steps that will be repeated. A damaged checkpoint adds a line to `notes`,
        and the one before it is taken.
        Being killed in here does no harm: the next call does the same again.

        Returns:
            None if the run has no checkpoint yet: its logs are emptied, and it starts over.

        Raises:
            InputError: there are checkpoints and none is intact; nothing is changed then.
        """
        chosen, record, self._logs, damaged = self._newest_intact()
        if chosen is None and damaged:
            why = f"no checkpoint is intact ({'; '.join(damaged)})"
            raise InputError(f"{self.folder}: {why}: restore a file, or {self._without_this_run()}")
        if damaged and chosen is not None:
            self.notes.append(f"{self.folder}: damaged, so resuming from {chosen.name}: {'; '.join(damaged)}")

        self._cut_logs()
        self._cut_clock(record["cycle"])
        self._remove_later(chosen)
        self._step = record["step"]
        if chosen is None:
            disk.remove(self.folder / "tensorboard")
            return None
        self.protected = set(record["protected"])
        self._prune()
        self._repair_events()
        return {"cycle": record["cycle"], "step": record["step"], **record["state"]}, chosen

    def _newest_intact(self) -> tuple[Path | None, dict[str, Any], dict[str, Sum], list[str]]:
        """Newest intact checkpoint -> (folder, record, the logs as they were then, faults of newer ones)."""
        damaged: list[str] = []
        for folder in self._checkpoints():
            try:
                record = _verified(folder)
                logs = self._verified_logs(record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                damaged.append(f"{folder.name}: {one_line(error)}")
            else:
                return folder, record, logs, damaged
        return None, {"cycle": -1, "step": 0}, {}, damaged

    def _without_this_run(self) -> str:
        """What can be done where the run cannot go on: the adapter may be whole though a log is not."""
        for folder in self._checkpoints():
            with contextlib.suppress(OSError, ValueError):
                _verified(folder)
                return f"start a new run with another --name and --adapter {folder}"
        return "start a new run with another --name"

    def _verified_logs(self, record: Mapping[str, Any]) -> dict[str, Sum]:
        """The logs as a checkpoint recorded them; ValueError if one is not so any more."""
        if "logs" not in record:
            raise ValueError("state.json has no sums of the logs: an older version wrote it")
        logs = {}
        for name, plain in record["logs"].items():
            if name != Path(name).name:  # of a run that somebody made: it would cut a file of ours
                raise ValueError(f"state.json names {name!r}, which is no log of the run")
            logs[name] = disk.sum_of(self.folder / name, plain["bytes"])
            if logs[name].plain != plain:
                raise ValueError(f"{name} does not match its sha256 sum in state.json")
        return logs

    def _cut_logs(self) -> None:
        for name in sorted({*LOGS, *self._logs}):
            path, size = self.folder / name, self._logs[name].size if name in self._logs else 0
            if path.exists() and path.stat().st_size > size:
                disk.truncate(path, size)

    def _cut_clock(self, cycle: int) -> None:
        """Keeps the times up to a cycle, and notes where some of them are lost."""
        path = self.folder / CLOCK
        content = path.read_bytes() if path.is_file() else b""
        kept, cycles = [], set()
        for line in content.splitlines(keepends=True):
            found = _cycle_of(line)
            if found is not None and found <= cycle:
                kept.append(line)
                cycles.add(found)
        if lost := len(set(range(1, cycle + 1)) - cycles):
            without = "the run goes on, since nothing needs the wall clock"
            self.notes.append(f"{path}: damaged, the times of {lost} of {cycle} cycles are lost: {without}")
        if b"".join(kept) != content:
            disk.replace(path, b"".join(kept))

    def _repair_events(self) -> None:
        """Lets TensorBoard drop what will be repeated; writes its curves again where they are damaged."""
        if self._events is None:
            return
        self._events.purge_step = self._step + 1
        rows: list[Mapping[str, float]] = []
        for path in (self.folder / "metrics.jsonl", self.folder / CLOCK):
            if path.exists():
                rows += [json.loads(line) for line in path.read_bytes().splitlines()]
        if self._events.repair(rows):
            curves = f"{self.folder / 'tensorboard'}: damaged, its curves are written again from the logs"
            self.notes.append(f"{curves}; its texts and HPARAMS are lost")

    def _remove_later(self, chosen: Path | None) -> None:
        """Removes checkpoints after the chosen one, those without COMPLETE, and temporary files."""
        for folder in self._checkpoints():
            if chosen is None or _cycle(folder) > _cycle(chosen) or not (folder / "COMPLETE").exists():
                _discard(folder)
        for path in [*self.folder.iterdir(), *(self.folder / "checkpoints").glob("*")]:
            if disk.is_temporary(path):
                disk.remove(path)

    def _sync_logs(self) -> None:
        if self._events is not None:
            for path in self._events.flush():
                disk.sync(path)
        for path in [self.folder / name for name in (*sorted(self._logs), CLOCK)]:
            if path.exists():
                disk.sync(path)

    def _checkpoints(self) -> list[Path]:
        """The folders of checkpoints, newest first, intact or not."""
        folders = [path for path in (self.folder / "checkpoints").glob("cycle-*") if path.name[6:].isdigit()]
        return sorted(folders, key=_cycle, reverse=True)

    def _prune(self) -> None:
        for old in self._checkpoints()[KEPT:]:
            if _cycle(old) not in self.protected:
                _discard(old)

    def _acquire(self) -> None:
        """Holds the folder until `close`."""
        try:
            self._lock = Lock(self.folder)
        except HeldError as holder:
            in_use = f"{self.folder} is in use by {holder}"
            raise InputError(f"{in_use}: wait for it, or choose another --name") from None
        if self._lock.missing:
            no_locks = f"{self.folder}: this file system has no locks"
            self.notes.append(f"{no_locks}, so do not resume the run twice at once")

    def _note_environment(self) -> None:
        """Adds a note if versions have changed since the run began. A damaged record is replaced."""
        now, then = environment(), recorded(self.folder, "versions")
        if then is None:
            self.write_json("environment.json", now)
        elif changed := changes(then, now["versions"]):
            differ = f"versions differ ({', '.join(changed)})"
            self.notes.append(f"{self.folder}: {differ}, so its numbers may not be reproducible")


def _cycle(checkpoint: Path) -> int:
    return int(checkpoint.name[6:])


def _cycle_of(line: bytes) -> int | None:
    """The cycle in a line of a log; None where the line is damaged or half written."""
    try:
        return int(from_json(line)["cycle"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _discard(checkpoint: Path) -> None:
    """Removes a checkpoint, its marker first, so that an incomplete one never passes for complete."""
    disk.remove(checkpoint / "COMPLETE")
    disk.sync(checkpoint)
    disk.remove(checkpoint)


def _seal(checkpoint: Path) -> None:
    """Syncs every file and adds COMPLETE with their sums."""
    sums = {}
    for path in sorted(checkpoint.rglob("*")):
        disk.sync(path)
        if path.is_file():
            sums[path.relative_to(checkpoint).as_posix()] = disk.sha256(path)
    disk.write(checkpoint / "COMPLETE", disk.as_json({"sha256": sums}))
    disk.sync(checkpoint / "COMPLETE")
    disk.sync(checkpoint)


def _verified(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json; ValueError or OSError if a file is missing or damaged."""
    disk.verify_sums(checkpoint)
    record: dict[str, Any] = from_json((checkpoint / "state.json").read_text(encoding="utf-8"))
    return record
