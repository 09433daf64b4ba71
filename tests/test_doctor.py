"""What the doctor says of a machine, good and bad."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sandboxes import needs_sandbox, with_bwrap

from agents import doctor
from envs.verify.attacks import judge


def test_what_is_there_is_good() -> None:
    assert doctor.python().state == "good"
    assert doctor.packages().state == "good"
    assert doctor.memory().state == "good"


@pytest.mark.parametrize(
    ("version", "state", "found"),
    [
        ("4.0.0", "broken", "transformers 4.0.0 is not >=5"),
        ("99.0.0", "good", "in range, though not all as tested: transformers 99.0.0 (5.23.0 was tested)"),
        (None, "broken", "transformers is not installed"),
    ],
)
def test_packages_of_other_versions(
    version: str | None, state: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def changed(name: str) -> str:
        if name != "transformers":
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(doctor.metadata, "version", changed)
    finding = doctor.packages()
    assert finding.state == state and finding.found.startswith(found)
    assert bool(finding.fix) == (state == "broken")


def test_too_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**30))
    assert (doctor.memory().state, doctor.memory().found) == ("broken", "1.0 GiB free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**29))
    assert (doctor.disk().state, doctor.disk().found) == ("broken", "0.5 GiB free for runs")


@pytest.mark.usefixtures("fresh")
def test_without_a_sandbox_the_loop_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    assert doctor.main(doctor.Config(quick=True)) == 1
    out = capsys.readouterr().out
    missing = "shell commands are not executed: bubblewrap is not installed: apt-get install bubblewrap"
    assert f"broken   sandbox      {missing}\n" in out
    assert out.endswith("The loop will not work here as it should.\n")


@needs_sandbox
def test_a_good_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(doctor.Config(quick=True, json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][:2] == ["Python", "packages"]
    for row in rows:
        assert set(row) == {"name", "state", "found", "fix"}
        assert bool(row["fix"]) == (row["state"] != "good")


@needs_sandbox
def test_an_attack_that_gets_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [judge.Outcome("reads /etc/shadow", False, "did"), judge.Outcome("forks", True, "")]
    monkeypatch.setattr(judge, "run_all", lambda: iter(outcomes))
    finding = doctor.attacks()
    assert (finding.state, finding.found) == ("broken", "not contained: reads /etc/shadow")


@pytest.mark.slow
@needs_sandbox
def test_the_short_run_works_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.short_run().state == "good"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> int:
        print("error: no weights")
        return 2

    monkeypatch.setattr(doctor, "run_command", failing)
    finding = doctor.short_run()
    assert (finding.state, finding.found) == ("broken", "error: no weights")
    assert finding.fix.startswith("run python -m agents.rejection_sft --model embedded")
