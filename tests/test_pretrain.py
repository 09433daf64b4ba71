"""The noisy text of the embedded model, its training in small, and its card."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from agents.pretrain import Config, command_line, main
from agents.pretraining import noise
from agents.pretraining.corpus import Corpus, CorpusConfig
from envs.domain import load_domain
from envs.streams import stream
from envs.types import InputError

EMBEDDED = Path(__file__).parents[1] / "agents/policy/embedded"
COUNT = 400
NO_NOISE = {
    "forward_noise": 0.0,
    "inverse_noise": 0.0,
    "confused": 0.0,
    "made_up": 0.0,
    "varied": 0.0,
    "slips": 0.0,
}


def examples(**settings: Any) -> list[tuple[str, str]]:
    corpus = Corpus(CorpusConfig(**settings))
    return [corpus.example(index) for index in range(COUNT)]


def digest(**settings: Any) -> str:
    text = ""
    for prompt, completion in examples(**settings):
        text += f"{prompt}\0{completion}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def is_inverse(example: tuple[str, str]) -> bool:
    return example[0].startswith("Say in one line what")


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (
            {},
            "d72e453c2d13992d",
        ),  # the first examples of the embedded model, whose card names the hash of all
        ({"inverse_noise": 0.9}, "1bd1312810735b27"),  # those of configs/studies/boundary.yaml
        ({"shared_mistakes": 0.6}, "5f83ef8f9b8089e2"),
    ],
)
def test_the_text_is_what_it_was(settings: dict[str, Any], start: str) -> None:
    assert digest(**settings).startswith(start)


def test_shared_mistakes_show_the_siblings_command_and_keep_the_task() -> None:
    plain, shared = examples(), examples(shared_mistakes=0.999, inverse_noise=0.0)
    changed = inverse = 0
    for before, after in zip(plain, shared, strict=True):
        if is_inverse(before):
            inverse += 1
            changed += before[0] != after[0]
        if before[0].startswith("Write one"):
            assert before == after
    assert inverse > 80 and changed > 0.9 * inverse


def test_inverse_noise_changes_what_is_said_and_not_what_is_asked() -> None:
    plain, noisy = examples(inverse_noise=0.0), examples(inverse_noise=0.999)
    other_answers = 0
    for before, after in zip(plain, noisy, strict=True):
        if is_inverse(before):
            assert before[0] == after[0]
        other_answers += before[1] != after[1]
    assert other_answers > 0.3 * COUNT


def test_siblings_are_mild_or_strong() -> None:
    domain = load_domain("shell")
    rates = [rate for _, rate in noise.siblings(domain, 0.4).values()]
    strong = [rate for rate in rates if 0.58 <= rate <= 0.65]
    mild = [rate for rate in rates if 0.10 <= rate <= 0.30]
    assert len(strong) == round(0.4 * len(domain.intents)) and len(strong) + len(mild) == len(rates)
    for intent, (sibling, _) in noise.siblings(domain, 0.4).items():
        assert sibling != intent and sibling in domain.intents


def test_changed_words_leave_the_values_alone() -> None:
    values = {"dir": ("show", "show")}  # a value that is also a word with others of the same meaning
    rng = stream("test")
    varied = {noise.vary("print every file in show", values, rng) for _ in range(50)}
    assert len(varied) > 3 and all(text.endswith(" in show") for text in varied)
    slipped = {noise.slip("print every file in show", values, ["quux"], rng) for _ in range(50)}
    assert len(slipped) > 3 and all(text.endswith("show") for text in slipped)
    assert noise.slip("show", values, ["quux"], rng) == "show"


def test_ratings_count_the_values_that_differ() -> None:
    domain = load_domain("network")
    rng = stream("test")
    drawn = domain.draw("pretrain", sorted(domain.intents)[0], 1)
    ratings = {noise.rated(domain, (drawn.intent, drawn.values), rng)[1] for _ in range(200)}
    assert {8, 10} <= ratings <= set(range(11)) and min(ratings) < 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_mistakes": 1.0}, "--shared-mistakes 1.0: must be at least 0 and below 1"),
        ({"inverse_noise": -0.1}, "--inverse-noise -0.1: must be at least 0 and below 1"),
        ({"examples": 0}, "--examples 0: must be 1 or more"),
        ({"vocabulary": 299}, "--vocabulary 299: must be 300 or more"),
        ({"hidden": 30}, "--hidden 30: must be a multiple of 4"),
        ({"output": None}, "--output: name a folder for the model"),  # it once replaced the model that ships
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Config(**{"output": "my-model", **settings}).check()


@pytest.mark.slow
def test_a_model_is_trained_saved_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agents.policy.load import load_policy
    from agents.pretraining import card, model

    monkeypatch.setattr(model, "TOKENIZER_EXAMPLES", 300)
    monkeypatch.setattr(card, "measure", lambda folder, domain: {"inverse, greedy": 0.25})
    config = Config(
        output=str(tmp_path), domain="shell", examples=960, batch_size=16, hidden=16, layers=1, vocabulary=384
    )
    config.check()
    assert main(config) == 0
    steps = re.findall(r"step (\d+) of 60  loss ([\d.]+)", capsys.readouterr().out)
    facts = json.loads((tmp_path / "pretrain.json").read_text())
    assert steps == [("60", f"{facts['final_loss']:.4f}")]
    assert facts["final_loss"] < 5.7  # an average that starts near chance, log 384 = 5.95
    assert facts["config"]["domain"] == "shell" and "output" not in facts["config"]
    policy = load_policy(str(tmp_path))
    assert policy.generate(["list files"], temperature=0.0, max_new_tokens=4)[0][0].token_ids
    text = (tmp_path / "README.md").read_text()
    assert command_line(config) in text and "--hidden 16" in text and str(tmp_path) not in text
    assert "not an easy test bed" in text


def test_the_card_of_the_embedded_model_is_written_by_the_code() -> None:
    from agents.pretraining.card import card

    text = (EMBEDDED / "README.md").read_text()
    measured = {name: float(value) for name, value in re.findall(r"^\| (.+) \| ([\d.]+) \|$", text, re.M)}
    facts = json.loads((EMBEDDED / "pretrain.json").read_text())
    assert card(command_line(Config()), facts, measured) == text
    assert "It is an easy test bed" in text
