"""The example that a reader opens first: it runs as it stands, learns, and stays short."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import minimal_loop

FILE = Path(minimal_loop.__file__)


def test_it_is_short_and_uses_no_machinery() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "agents.training" not in text and "agents.evaluation" not in text


@pytest.mark.slow
def test_it_learns(sandbox: None, capsys: pytest.CaptureFixture[str]) -> None:
    result = minimal_loop.main(cycles=4, tasks=30, held_out=40)
    assert result["last"] > result["first"]
    assert result["after"] > result["before"]
    printed = capsys.readouterr().out
    assert printed.count("    reconstruction  ") == 4 and "held-out accuracy after" in printed
