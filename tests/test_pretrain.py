"""The noisy corpus of the pocket model, and going on from a model with a worse inverse."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from agents.pretrain import Config, Corpus
from envs.types import InputError

COUNT = 400


def examples(**settings: Any) -> list[tuple[str, str]]:
    corpus = Corpus(Config(**settings))
    return [corpus.example(index) for index in range(COUNT)]


def test_the_corpus_of_the_embedded_model_is_what_it_was() -> None:
    """Its card names the corpus by its sum; these are its first examples."""
    text = "".join(f"{prompt}\0{completion}\n" for prompt, completion in examples())
    assert hashlib.sha256(text.encode()).hexdigest().startswith("d72e453c2d13992d")


def test_shared_mistakes_show_the_siblings_command_and_keep_the_task() -> None:
    plain, shared = examples(), examples(shared_mistakes=0.999, inverse_noise=0.0)
    inverse = [row for row, (prompt, _) in enumerate(plain) if prompt.startswith("Say in one line what")]
    assert len(inverse) > 80
    assert sum(shared[row][0] != plain[row][0] for row in inverse) > 0.9 * len(inverse)
    assert all(
        shared[row] == plain[row] for row, (prompt, _) in enumerate(plain) if prompt.startswith("Write one")
    )


def test_inverse_noise_changes_what_is_said_and_not_what_is_asked() -> None:
    plain, noisy = examples(inverse_noise=0.0), examples(inverse_noise=0.999)
    assert all(
        a[0] == b[0] for a, b in zip(plain, noisy, strict=True) if a[0].startswith("Say in one line what")
    )
    assert sum(a[1] != b[1] for a, b in zip(plain, noisy, strict=True)) > 0.3 * COUNT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_mistakes": 1.0}, "--shared-mistakes 1.0: must be in [0, 1)"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Config(**settings).check()
