"""The run folder: killed at every durable operation, a run ends with the bytes it would have had anyway."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.training import disk as disk_module
from agents.training import run as run_module
from agents.training.environment import ROOT
from agents.training.run import Run, new_name
from envs.types import InputError

CONFIG = {"cycles": 3, "seed": 0, "lr": 1e-5, "name": None}
CYCLES = 3


class Killed(BaseException):
    """The process dies. Not an Exception, so that no handler takes it for an error."""


class Disk:
    """Counts the durable operations and dies at one: no later one happens. What was not synced is torn."""

    def __init__(self, folder: Path, die_at: int | None = None, torn: bool = True) -> None:
        self.folder, self.die_at, self.torn, self.count = folder, die_at, torn, 0
        self.synced: dict[int, int] = {}

    def operation(self, name: str, path: Path) -> None:
        self.count += 1
        if self.die_at is not None and self.count >= self.die_at:
            if self.torn and self.count == self.die_at:
                self._tear()
            raise Killed(f"{name} {path}")
        if name == "fsync" and path.is_file():
            self.synced[path.stat().st_ino] = path.stat().st_size

    def remember(self) -> None:
        """What a process finds on the disk when it starts was synced before, or has been torn already."""
        self.synced = {
            path.stat().st_ino: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()
        }

    def _tear(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_size > (safe := self.synced.get(path.stat().st_ino, 0)):
                os.truncate(path, safe + (path.stat().st_size - safe) // 2)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a Disk below the run folder. Nothing is synced for real, since the machine stays up."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(run_module, "environment", lambda: {"versions": {}})

    def use(folder: Path, die_at: int | None = None, torn: bool = True) -> Disk:
        made = Disk(folder, die_at, torn)
        made.remember()
        monkeypatch.setattr(disk_module, "operation", made.operation)
        return made

    yield use


def digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def train(folder: Path) -> None:
    """Three cycles of a toy whose policy, scores and logs follow from what came before; or the rest."""
    policy, first = digest("base"), 1
    if (folder / "config.yaml").exists():
        run, config = Run.open(folder, tensorboard=False)
        assert config == CONFIG
    else:
        run = Run.create(folder, CONFIG, tensorboard=False)
    try:
        if (found := run.restore()) is not None:
            state, checkpoint = found
            policy, first = (checkpoint / "weights" / "adapter.bin").read_text(), state["cycle"] + 1
            assert state["policy"] == policy
        for cycle in range(first, CYCLES + 1):
            rewards = [int(digest(policy, i)[:4], 16) / 65535 for i in range(4)]
            for half in (rewards[:2], rewards[2:]):
                run.append(
                    "rollouts", [{"cycle": cycle, "task": "größe?", "score": reward} for reward in half]
                )
            # Its width differs from run to run, as that of a measured time does.
            clock = float(f"1.{'5' * random.SystemRandom().randint(1, 9)}")
            run.scalars(
                cycle * 4, cycle, {"reward/mean": sum(rewards) / 4, "time/cycle": clock, "reward/none": None}
            )
            policy = digest(policy, *rewards)

            def save(path: Path, policy: str = policy) -> None:
                (path / "weights").mkdir()
                (path / "weights" / "adapter.bin").write_text(policy)
                (path / "adapter_config.json").write_text("{}")

            run.write_json("progress.json", {"cycle": cycle, "policy": policy})
            run.commit(cycle, {"policy": policy}, save)
        run.write_json("self_improvement_results.json", {"policy": policy})
    finally:
        run.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but the wall clock."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    timings = files.pop("timings.jsonl").decode().splitlines()
    assert [json.loads(line)["cycle"] for line in timings] == [1, 2, 3]
    return files


@pytest.mark.slow
@pytest.mark.parametrize("torn", [True, False], ids=["torn", "whole"])
def test_a_run_killed_at_any_operation_ends_with_the_same_bytes(
    tmp_path: Path, disk: Any, torn: bool
) -> None:
    counter = disk(tmp_path / "whole")
    train(tmp_path / "whole")
    total, expected = counter.count, contents(tmp_path / "whole")
    assert total > 60
    assert sorted(name for name in expected if name.endswith("COMPLETE")) == [
        f"checkpoints/cycle-000{c}/COMPLETE" for c in (2, 3)
    ]

    for k in range(1, total + 1):
        folder = tmp_path / f"killed-{k}"
        disk(folder, die_at=k, torn=torn)
        with pytest.raises(Killed):
            train(folder)
        # Half of the runs are killed a second time, in or soon after the resume.
        if k % 2:
            disk(folder, die_at=1 + k % 11, torn=torn)
            with contextlib.suppress(Killed):
                train(folder)
        disk(folder)
        train(folder)
        assert contents(folder) == expected, f"killed at operation {k}"


def test_a_process_that_is_gone_leaves_a_run_that_can_go_on(tmp_path: Path) -> None:
    """The same with a real death: os._exit in the middle of the second commit."""
    folder = tmp_path / "run"
    script = f"""
import os, sys
from pathlib import Path
from agents.training import disk
from tests.test_run import train
def operation(name, path):
    if name == "rename" and path.name == "cycle-0002":
        os._exit(9)
disk.operation = operation
train(Path({str(folder)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 9
    assert (folder / "checkpoints" / ".tmp-cycle-0002").exists()
    train(folder)
    train(tmp_path / "whole")
    drop = {"environment.json"}
    killed, whole = contents(folder), contents(tmp_path / "whole")
    assert {k: v for k, v in killed.items() if k not in drop} == {
        k: v for k, v in whole.items() if k not in drop
    }


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    train(tmp_path / "run")
    return tmp_path / "run"


def reopened(folder: Path) -> Run:
    return Run.open(folder, tensorboard=False)[0]


def break_sum(checkpoint: Path) -> None:
    (checkpoint / "weights" / "adapter.bin").write_text("flipped")


def break_file(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").unlink()


def break_marker(checkpoint: Path) -> None:
    (checkpoint / "COMPLETE").unlink()


def break_marker_text(checkpoint: Path) -> None:
    (checkpoint / "COMPLETE").write_text("[]")


@pytest.mark.parametrize("damage", [break_sum, break_file, break_marker, break_marker_text])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(trained: Path, damage: Any) -> None:
    expected = contents(trained)
    damage(trained / "checkpoints" / "cycle-0003")
    run = reopened(trained)
    found = run.restore()
    run.close()
    assert (
        found is not None
        and found[0]["cycle"] == 2
        and found[0]["step"] == 8
        and found[1].name == "cycle-0002"
    )
    assert len(run.notes) == 1 and "cycle-0003" in run.notes[0] and "resuming from cycle-0002" in run.notes[0]
    assert not (trained / "checkpoints" / "cycle-0003").exists()
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    train(trained)
    # Cycle 1's checkpoint had been pruned, so only cycle 2's and 3's can be there, as without the damage.
    assert contents(trained) == expected


def test_leftovers_of_a_death_are_removed(trained: Path) -> None:
    expected = contents(trained)
    shutil.copytree(trained / "checkpoints" / "cycle-0003", trained / "checkpoints" / ".tmp-cycle-0004")
    (trained / ".tmp-progress.json").write_text("{")
    shutil.copytree(trained / "checkpoints" / "cycle-0002", trained / "checkpoints" / "cycle-0001")
    (trained / "checkpoints" / "cycle-0001" / "COMPLETE").unlink()  # its pruning had begun
    run = reopened(trained)
    found = run.restore()
    run.close()
    assert found is not None and found[0]["cycle"] == 3 and not run.notes
    assert contents(trained) == expected
    assert not (trained / "checkpoints" / ".tmp-cycle-0004").exists()


def test_a_short_log_falls_back_and_a_missing_one_is_an_error_that_changes_nothing(trained: Path) -> None:
    log = trained / "rollouts.jsonl"
    os.truncate(log, log.stat().st_size - 5)
    run = reopened(trained)
    found = run.restore()
    run.close()
    assert (
        found is not None
        and found[0]["cycle"] == 2
        and "rollouts.jsonl has 741 bytes, fewer than the 746 recorded" in run.notes[0]
    )

    log.unlink()
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    run = reopened(trained)
    fix = f"start a new run with another --name and --adapter {trained}/checkpoints/cycle-0002"
    with pytest.raises(InputError, match=rf"no checkpoint is intact .*rollouts.jsonl is missing.*{fix}"):
        run.restore()
    run.close()
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def flip(path: Path, place: int) -> None:
    """Turns over one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_any_flipped_bit_of_the_newest_checkpoint_is_found(trained: Path, tmp_path: Path) -> None:
    draw, newest = random.Random(0), Path("checkpoints/cycle-0003")
    files = [path.relative_to(trained) for path in (trained / newest).rglob("*") if path.is_file()]
    for file in sorted(files):
        size = (trained / file).stat().st_size
        for place in draw.sample(range(size), min(size, 10)):
            copy = tmp_path / "copy"
            shutil.copytree(trained, copy)
            data = bytearray((copy / file).read_bytes())
            data[place] ^= 1 << draw.randrange(8)
            (copy / file).write_bytes(data)
            run = reopened(copy)
            found = run.restore()
            run.close()
            assert found is not None and found[0]["cycle"] == 2, (file, place)
            assert "resuming from cycle-0002: cycle-0003: " in run.notes[0]
            shutil.rmtree(copy)


@pytest.mark.parametrize("log", ["metrics.jsonl", "rollouts.jsonl"])
def test_a_flipped_bit_in_a_log_is_found(trained: Path, log: str) -> None:
    """In the last cycle's lines the run goes one cycle back; before them there is nothing to go back to."""
    expected = contents(trained)
    flip(trained / log, -2)
    run = reopened(trained)
    found = run.restore()
    run.close()
    assert found is not None and found[0]["cycle"] == 2
    assert f"cycle-0003: {log} does not match its sha256 sum in state.json" in run.notes[0]
    train(trained)
    assert contents(trained) == expected

    flip(trained / log, 2)
    run = reopened(trained)
    with pytest.raises(InputError, match=f"cycle-0003: {log} .*cycle-0002: {log} .*--adapter"):
        run.restore()
    run.close()


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda path: path.unlink(), 3),
        (lambda path: os.truncate(path, path.stat().st_size - 1), 1),
        (lambda path: flip(path, 0), 1),
        (lambda path: path.write_bytes(b"\xff\n[]\n{}\n" + path.read_bytes().splitlines(True)[2]), 2),
    ],
)
def test_a_run_goes_on_without_its_wall_clock(trained: Path, damage: Any, lost: int) -> None:
    path, before = trained / "timings.jsonl", (trained / "timings.jsonl").read_bytes().splitlines(True)
    damage(path)
    run = reopened(trained)
    found = run.restore()
    run.close()
    assert found is not None and found[0]["cycle"] == 3
    assert run.notes == [
        f"{path}: damaged, the times of {lost} of 3 cycles are lost: "
        "the run goes on, since nothing needs the wall clock"
    ]
    kept = path.read_bytes().splitlines(True) if path.exists() else []
    assert len(kept) == 3 - lost and set(kept) <= set(before)


def test_a_checkpoint_of_an_older_version_is_told_from_a_damaged_one(trained: Path) -> None:
    for checkpoint in (trained / "checkpoints").iterdir():
        record = json.loads((checkpoint / "state.json").read_text())
        record["lines"] = record.pop("logs")
        (checkpoint / "state.json").write_text(json.dumps(record))
        sums = json.loads((checkpoint / "COMPLETE").read_text())
        sums["sha256"]["state.json"] = disk_module.sha256(checkpoint / "state.json")
        (checkpoint / "COMPLETE").write_text(json.dumps(sums))
    run = reopened(trained)
    with pytest.raises(InputError, match=r"cycle-0003: state.json has no sums of the logs: an older version"):
        run.restore()
    run.close()


def test_without_a_checkpoint_the_logs_are_emptied(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, tensorboard=False)
    run.append("rollouts.jsonl", [{"a": 1}])
    run.scalars(4, 0, {"reward/mean": 0.5})
    run.close()
    run = reopened(tmp_path / "run")
    assert run.restore() is None
    assert (
        (tmp_path / "run" / "rollouts.jsonl").read_bytes()
        == b""
        == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    )
    run.close()


def test_a_protected_checkpoint_outlives_pruning_and_resuming(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())

    run = Run.create(tmp_path / "run", CONFIG, tensorboard=False)
    run.protected = {1}
    for cycle in range(5):
        run.commit(cycle, {}, lambda path: None)
    assert names() == ["cycle-0001", "cycle-0003", "cycle-0004"]
    with pytest.raises(ValueError, match="committed already"):
        run.commit(4, {}, lambda path: None)
    run.close()
    run = reopened(tmp_path / "run")
    assert run.restore() is not None and run.protected == {1}
    run.protected = set()
    run.commit(5, {}, lambda path: None)
    assert names() == ["cycle-0004", "cycle-0005"]
    run.close()


def test_a_kept_checkpoint_that_is_damaged_is_not_loaded(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, tensorboard=False)
    run.protected = {0}
    for cycle in range(3):
        run.commit(cycle, {}, lambda path: (path / "weights").write_text("good"))
    assert run.intact_checkpoint(0) == run.checkpoint(0)
    (run.checkpoint(0) / "weights").write_text("evil")
    with pytest.raises(InputError, match=r"cycle-0000: damaged, and kept as the best: weights does not"):
        run.intact_checkpoint(0)
    run.close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "timings.jsonl"])
def test_a_log_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path: Path, name: str) -> None:
    run = Run.create(tmp_path / "run", CONFIG, tensorboard=False)
    run.close()
    letter = tmp_path / "letter"
    letter.write_text("all my words")
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name).symlink_to(letter)
    with pytest.raises(InputError, match=rf"{name}: is a link: put the file itself in its place"):
        Run.open(run.folder, tensorboard=False)
    assert letter.read_text() == "all my words"


def test_logs_keep_the_wall_clock_apart_and_refuse_what_is_not_a_number(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, tensorboard=False)
    run.scalars(150, 1, {"train/loss": 0.25, "time/generate": 1.5, "reward/mean": None, "count": 3})
    run.scalars(150, 1, {"reward/mean": None})
    assert (
        tmp_path / "run" / "metrics.jsonl"
    ).read_text() == '{"count": 3, "cycle": 1, "step": 150, "train/loss": 0.25}\n'
    assert (
        tmp_path / "run" / "timings.jsonl"
    ).read_text() == '{"cycle": 1, "step": 150, "time/generate": 1.5}\n'
    with pytest.raises(ValueError, match="train/loss is nan at step 150"):
        run.scalars(150, 1, {"train/loss": float("nan")})
    with pytest.raises(ValueError):
        run.append("rollouts", [{"score": float("inf")}])
    assert not (tmp_path / "run" / "rollouts.jsonl").exists()
    run.close()


def test_create_writes_the_configuration_and_the_environment(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "run", CONFIG, tensorboard=False)
    run.close()
    again, config = Run.open(tmp_path / "a" / "run", tensorboard=False)
    assert config == CONFIG and not again.notes
    environment = json.loads((tmp_path / "a" / "run" / "environment.json").read_text())
    assert (
        set(environment) == {"versions", "platform", "git", "command"} and "torch" in environment["versions"]
    )
    again.close()

    environment["versions"]["torch"] = "1.0"
    again.write_json("environment.json", environment)
    again = reopened(tmp_path / "a" / "run")
    assert "torch 1.0 then" in again.notes[0]
    again.close()


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_run_that_cannot_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "environment", fail)  # config.yaml is there already
        with pytest.raises(type(error)):
            Run.create(folder, CONFIG, tensorboard=False)
    assert not folder.exists()
    Run.create(folder, CONFIG, tensorboard=False).close()


def test_wrong_folders_are_named_with_the_fix(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, CONFIG, tensorboard=False)
    us = rf"in use by process {os.getpid()} on {re.escape(socket.gethostname())} since 20\d\d-.*: wait for it"
    with pytest.raises(InputError, match=us):
        Run.open(folder, tensorboard=False)
    note = folder / ".holder"
    note.write_text("{")
    with pytest.raises(InputError, match="in use by another process: wait for it"):
        Run.open(folder, tensorboard=False)
    run.close()
    assert not note.exists()
    with pytest.raises(InputError, match=rf"{folder} is not empty: .*--resume {folder}.*--name"):
        Run.create(folder, CONFIG, tensorboard=False)
    with pytest.raises(InputError, match="no run is there"):
        Run.open(tmp_path / "none")
    for text, message in (
        ("lr: 1\na: [", r"config.yaml:2: not valid YAML: .*: fix or quote this line"),
        ("lr: 1\nlr: 2", r"config.yaml:2: lr: this key is there twice"),
        ("- 1", r"config.yaml: holds no keys: restore the file"),
    ):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            Run.open(folder)


def test_the_note_of_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".holder").write_text('{"pid": 1, "host": "elsewhere", "since": "long ago"}')
    Run.create(folder, CONFIG, tensorboard=False).close()
    (folder / ".holder").write_text('{"pid": 1, "host": "elsewhere", "since": "long ago"}')
    reopened(folder).close()
    assert not (folder / ".holder").exists()


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (
        new_name("configs/my net.yaml", "similarity", 3),
        new_name("configs/my net.yaml", "similarity", 3),
    )
    assert (
        first.startswith("my_net-similarity-s3-")
        and len(first) == len("my_net-similarity-s3-") + 6
        and first != second
    )


def test_damaged_curves_of_tensorboard_are_written_again(tmp_path: Path) -> None:
    shown = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    folder = tmp_path / "run"
    run = Run.create(folder, CONFIG)
    run.scalars(10, 1, {"eval/greedy": 0.5, "time/cycle": 1.0})
    run.scalars(20, 2, {"eval/greedy": 0.25, "time/cycle": 2.0})
    run.commit(2, {}, lambda path: None)
    run.close()

    for damaged in (False, True):
        [events] = (folder / "tensorboard").iterdir()
        if damaged:
            flip(events, events.stat().st_size // 2)
        run, _ = Run.open(folder)
        assert run.restore() is not None
        run.close()
        assert [folder.name in note and "written again" in note for note in run.notes] == [True] * damaged
        found = shown.EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
        for tag in ("eval/greedy", "time/cycle"):
            assert [event.step for event in found.Tensors(tag)] == [10, 20]


@pytest.mark.parametrize("set_back", [0, 86_400])
def test_tensorboard_shows_each_step_once_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_back: int
) -> None:
    """TensorBoard reads files in the order of their names, which hold the time; the clock may be set back."""
    processing = "tensorboard.backend.event_processing"
    accumulator = pytest.importorskip(f"{processing}.event_accumulator")
    shown = pytest.importorskip(f"{processing}.plugin_event_accumulator")  # TensorBoard's own
    folder = tmp_path / "run"
    run = Run.create(folder, CONFIG)
    run.hparams({"lr": 1e-3, "name": None, "resume": Path("x")}, ["eval/greedy"])
    run.layout({"reward": {"all": ["Multiline", ["reward/mean"]]}})
    run.text(0, "config", "lr 1e-3")
    for cycle in (1, 2):
        run.scalars(cycle * 10, cycle, {"eval/greedy": cycle / 10, "time/cycle": 1.0})
        run.commit(cycle, {}, lambda path: None)
    run.scalars(30, 3, {"eval/greedy": 0.9})  # logged and lost: it is not in a checkpoint
    run.text(30, "samples", "lost")
    run.hparams({"lr": 1e-3}, ["eval/greedy"])
    run.close()

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - set_back)
    run, _ = Run.open(folder)
    assert run.restore() is not None
    for cycle in (3, 4):
        run.scalars(cycle * 10, cycle, {"eval/greedy": cycle / 10})
    run.text(30, "samples", "kept")
    run.hparams({"lr": 1e-3}, ["eval/greedy"])
    run.close()

    assert not [path for path in (folder / "tensorboard").iterdir() if path.is_dir()]
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    points = [(event.step, round(event.value, 3)) for event in events.Scalars("eval/greedy")]
    assert points == [(10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4)]
    assert set(events.Tags()["scalars"]) == {"eval/greedy", "time/cycle"}
    assert set(events.PluginTagToContent("hparams")) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    assert "config/text_summary" in events.Tags()["tensors"]
    events = shown.EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert steps["eval/greedy"] == [10, 20, 30, 40] and steps["samples/text_summary"] == [30]
    assert len(steps["_hparams_/session_start_info"]) == 2  # one of the start, one of the end
