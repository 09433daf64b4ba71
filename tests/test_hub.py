"""The Hugging Face hub is asked once, and only for what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs import hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a hub that answers was asked for."""
    requests: list[str] = []

    class Answering:
        def head(self, url: str, timeout: float) -> None:
            requests.append(url)

    monkeypatch.setattr(hub, "get_session", Answering)
    return requests


def test_a_hub_that_answers_is_asked_once(asked: list[str]) -> None:
    hub.find_hub("some/model")
    assert len(asked) == 1


def test_a_folder_needs_no_hub(asked: list[str], tmp_path: Path) -> None:
    hub.find_hub(str(tmp_path))
    hub.find_hub("some/model", str(tmp_path))
    assert asked == []


def test_a_model_in_the_cache_needs_no_hub(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(name: str, file: str) -> str | None:
        return f"/cache/{file}" if name == "some/model" else None

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    hub.find_hub("model", "some/model")
    assert asked == []
    hub.find_hub("model")
    assert len(asked) == 1


def test_a_hub_out_of_reach_is_an_error_with_the_reason() -> None:
    # conftest.py forbids the network, so the client refuses.
    with pytest.raises(OSError, match=r"the Hugging Face hub cannot be reached .*HF_HUB_OFFLINE"):
        hub.find_hub("some/model")
    with pytest.raises(ValueError):
        hub.find_hub("no name//at all?")
