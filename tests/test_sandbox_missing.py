"""Where there is no sandbox: one line says what is missing and the fix."""

from __future__ import annotations

import errno
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxes import ROOT, needs_sandbox, with_bwrap

from envs.verify.sandbox import errors, probe
from envs.verify.sandbox.errors import SandboxError, diagnosis
from envs.verify.sandbox.probe import unavailable
from envs.verify.sandbox.run import execute


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("script", "wanted", "lasting"),
    [
        (None, "bubblewrap is not installed: apt-get install bubblewrap", True),
        (
            "echo 'bwrap: Unknown option --disable-userns' >&2; exit 1",
            "bubblewrap is too old (0.8 or newer is needed)",
            True,
        ),
        (
            "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
            "user namespaces are blocked: allow them",
            True,
        ),
        (
            "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1",
            "user namespaces are blocked: allow them",
            True,
        ),
        (
            "echo 'bwrap: Creating new namespace failed: Resource temporarily unavailable' >&2; exit 1",
            "the sandbox cannot be started",
            False,
        ),
        (
            "echo strange >&2; exit 1",
            "the sandbox cannot be set up: run bwrap by hand to see why (strange)",
            False,
        ),
        ("exit 0", "the sandbox cannot be set up", False),
        ("echo ready >&0; exit 0", "the sandbox cannot be set up", False),
        ("echo ready >&0; read -r go; echo 'code 0' >&0", "the sandbox cannot be set up", False),
    ],
)
def test_one_line_names_what_is_missing(
    script: str | None, wanted: str, lasting: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_bwrap(tmp_path, monkeypatch, script)
    said = unavailable()
    assert said.startswith(wanted) and "\n" not in said
    assert unavailable() == said
    assert (probe._found.until == math.inf) == lasting


@needs_sandbox
@pytest.mark.usefixtures("fresh")
def test_a_failure_that_passes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse := Refuse())
        started = time.monotonic()
        assert unavailable() == "the sandbox cannot be started: [Errno 11] Resource temporarily unavailable"
        assert probe._found.until < time.monotonic() + 10 * (time.monotonic() - started)
        probe._found.until = math.inf  # so long as it holds, nothing is tried
        assert unavailable() and refuse.calls == 1
        probe._found.until = time.monotonic()
    assert unavailable() == ""
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert unavailable() == "" and refuse.calls == 1


class Refuse:
    """In the place of what starts a process: says that there are too many."""

    calls = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.usefixtures("fresh")
def test_a_machine_without_a_filter_or_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    if shutil.which("bwrap"):
        assert unavailable() == "no system-call filter for riscv64: use a machine with x86_64 or aarch64"
    monkeypatch.setattr(probe, "_found", probe._Found())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert unavailable().startswith("commands are executed on Linux only")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets files below /proc/sys."""
    monkeypatch.setattr(errors, "SETTINGS", tmp_path)

    def fabricate(**values: str) -> None:
        for name, value in values.items():
            path = tmp_path / ("user" if name == "max_user_namespaces" else "kernel") / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{value}\n")

    return fabricate


UBUNTU = {  # 24.04, as installed
    "unprivileged_userns_clone": "1",
    "max_user_namespaces": "63413",
    "apparmor_restrict_unprivileged_userns": "1",
}
REFUSALS = [
    b"bwrap: setting up uid map: Permission denied",
    b"bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
    b"bwrap: No permissions to create new namespace",
    b"bwrap: Creating new namespace failed: No space left on device",
]


@pytest.mark.parametrize("said", REFUSALS)
@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({}, "AppArmor restricts them, as on Ubuntu 24.04: load a profile for bwrap"),
        ({}, "or run sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"unprivileged_userns_clone": "0"}, "run sysctl -w kernel.unprivileged_userns_clone=1"),
        ({"max_user_namespaces": "0"}, "run sysctl -w user.max_user_namespaces=10000"),
    ],
)
def test_the_setting_that_blocks_is_named(
    said: bytes, changed: dict[str, str], fix: str, settings: Callable[..., None]
) -> None:
    settings(**(UBUNTU | changed))
    error = diagnosis(said)
    assert error.lasting and "\n" not in str(error)
    assert str(error).startswith("user namespaces are blocked: ") and fix in str(error)
    assert said.decode() in str(error) and "seccomp" not in str(error)


@pytest.mark.parametrize("values", [{}, UBUNTU | {"apparmor_restrict_unprivileged_userns": "0"}])
def test_where_no_setting_blocks_the_container_may(
    values: dict[str, str], settings: Callable[..., None]
) -> None:
    settings(**values)
    error = diagnosis(b"bwrap: No permissions to create new namespace")
    assert error.lasting
    assert str(error).startswith("user namespaces are blocked: allow them; for a container, docs/SANDBOX.md")


def test_settings_that_block_are_not_blamed_for_something_else(settings: Callable[..., None]) -> None:
    settings(**UBUNTU)
    assert str(diagnosis(b"bwrap: strange")).startswith("the sandbox cannot be set up: run bwrap by hand")
    assert str(diagnosis(b"tar: x: too long")).startswith("the file tree cannot be laid out")


def test_the_documentation_has_what_the_message_promises() -> None:
    text = (ROOT / "docs/SANDBOX.md").read_text(encoding="utf-8")
    for word in ("userns,", "/usr/bin/bwrap", "apparmor_parser", "seccomp=unconfined"):
        assert word in text


def test_execute_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    with pytest.raises(SandboxError, match="bubblewrap is not installed: apt-get install bubblewrap"):
        execute("true")
    with_bwrap_that_fails = tmp_path / "fails"
    with_bwrap_that_fails.mkdir()
    with_bwrap(with_bwrap_that_fails, monkeypatch, "echo 'bwrap: Creating new namespace failed' >&2; exit 1")
    with pytest.raises(SandboxError, match="user namespaces are blocked"):
        execute("true")


@pytest.mark.slow
def test_tests_skip_with_the_reason_or_fail_where_a_sandbox_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "tests/test_sandbox.py",
        "-k",
        "test_the_longest_command_runs",
    ]
    skipped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        skipped.returncode == 0
        and "1 skipped" in skipped.stdout
        and "bubblewrap is not installed" in skipped.stdout
    )
    failed = subprocess.run(
        [*command, "--require-sandbox"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 1 and "bubblewrap is not installed" in failed.stdout
