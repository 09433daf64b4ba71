"""Other projects have a package `agents` too: who gets the wrong one is told in a line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import agents

ROOT = Path(__file__).parents[1]


def test_a_name_of_another_projects_agents_is_refused_with_a_line() -> None:
    hidden = f"^no Agent in the package agents of the project inversion .{agents.__path__[0]}., which hides"
    with pytest.raises(ImportError, match=hidden):
        exec("from agents import Agent")
    with pytest.raises(ImportError, match="give each an environment of its own"):
        exec("from agents import Agent, rejection_sft")


def test_what_is_there_can_be_imported_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bench", "cli"):
        monkeypatch.delattr(agents, name, raising=False)
        monkeypatch.delitem(sys.modules, f"agents.{name}", raising=False)
        names: dict[str, object] = {}
        exec(f"from agents import {name}", names)
        assert names[name] is importlib.import_module(f"agents.{name}")
    assert not hasattr(agents, "__wrapped__")  # as inspect asks


def test_commands_installed_over_another_projects_agents_refuse(tmp_path: Path) -> None:
    """Two projects in one site-packages share the folder; the one that came last wrote `__init__.py`."""
    foreign = tmp_path / "agents" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text(f"class Agent: ...\n__path__.append({str(ROOT / 'agents')!r})\n")
    process = subprocess.run(
        [sys.executable, "-m", "agents.rejection_sft", "--cycles", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"error: the package agents is another project's ({foreign}), installed over this one:"
        " give each an environment of its own\n"
    )
