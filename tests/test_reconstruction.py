"""Rewards that reconstruct the task, and what they compare it by: embeddings and text."""

from __future__ import annotations

import difflib
import socket
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scripted import (
    DOMAIN,
    FOREIGN,
    OTHER,
    READ,
    RIGHT,
    SWAPPED,
    TASK,
    Letters,
    Scripted,
    build,
    value,
)

from envs.types import InputError, LanguageModel, Score, Task
from rewards.embedding import Embedder, _load, corrected, neighbour_cosine
from rewards.reconstruction import OriginalBlend, Similarity, reconstruct
from rewards.text import f1, plain_words, read_rating, sequence_ratio, token_overlap, values_of

DECODING = ["similarity", "original-blend", "slots"]


@pytest.mark.parametrize("name", DECODING)
def test_an_empty_reconstruction_abstains(name: str) -> None:
    model = Scripted({**READ, RIGHT: "", SWAPPED: " "}, rating="10")
    [[first, foreign, second]] = build(name, model)([TASK], [[RIGHT, FOREIGN, SWAPPED]])
    assert first == second == Score(None, reason="empty reconstruction")
    assert foreign.value is not None


@pytest.mark.parametrize("name", DECODING)
def test_the_task_is_hidden_from_the_inverter(name: str) -> None:
    model = Scripted(READ)
    build(name, model)([TASK], [[FOREIGN]], seed=9)
    assert model.asked[0] == DOMAIN.prompt("inverse", command=FOREIGN)
    assert TASK.text not in model.asked[0]
    assert model.seeds[0] == 9


def test_a_command_cannot_fill_in_the_prompt() -> None:
    assert "{task}" in DOMAIN.prompt("inverse", command="echo {task} {command}")


def test_reconstructions_are_texts_of_the_same_order(policy: LanguageModel) -> None:
    pairs = [(TASK, RIGHT), (OTHER, FOREIGN), (TASK, "x" * 80), (TASK, RIGHT)]
    texts = reconstruct(policy, pairs, 0.0, 0, 8)
    assert texts[0] == texts[3]
    assert texts == [reconstruct(policy, [pair], 0.0, 0, 8)[0] for pair in pairs]
    assert reconstruct(policy, [], 0.3, 0, 8) == []


def test_neighbour_cosine_by_hand() -> None:
    pool = ["aab", "abb", "ccc", "aab"]
    a, b, c = Letters()(["aab", "abb", "ccc"])
    wanted = (a @ b + b @ a + max(c @ a, c @ b)) / 3
    assert neighbour_cosine(Letters(), pool, "semantic") == pytest.approx(float(wanted), abs=1e-6)  # type: ignore[arg-type]
    assert neighbour_cosine(Letters(), pool[::-1], "") == neighbour_cosine(Letters(), pool, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", [[], ["a"], ["a", "a", "a"], ["Abc", "abc", "cab"]])
def test_a_pool_without_two_different_texts_has_no_scale(pool: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--reward similarity: needs two different tasks"):
        Similarity(Scripted(READ), Letters(), pool)  # type: ignore[arg-type]


def test_the_scale() -> None:
    values = [corrected(cosine, 0.75) for cosine in (-1.0, 0.75, 0.875, 1.0, 1.0000001)]
    assert values == pytest.approx([0, 0, 0.5, 1, 1])
    assert max(corrected(cosine, 0.75) for cosine in np.linspace(-1.01, 1.01, 99)) == 1.0


def test_similarity_has_the_plain_cosine_as_its_part() -> None:
    reward = build("similarity", Scripted(READ))
    [[score]] = reward([TASK], [[SWAPPED]])
    a, b = Letters()([TASK.text, READ[SWAPPED]])
    assert score.parts == pytest.approx({"cosine": float(a @ b)})
    assert score.reconstruction == READ[SWAPPED]
    assert score.value == pytest.approx(corrected(float(a @ b), reward.floor))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_the_embedder_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    _load.cache_clear()
    vectors = Embedder()(["list all files", "ping the host", "list all files"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    for name in ("no/such-model", "/no/such/folder"):
        with pytest.raises(InputError, match=f"^--embedder {name}: cannot be loaded: [^\n]*$"):
            Embedder(name)
    with pytest.raises(InputError, match="hub cannot be reached"):
        Embedder("no/such-model")


def test_embeddings_do_not_depend_on_earlier_calls(embedder: Embedder) -> None:
    texts = [
        "list all files in the folder docs",
        "count the lines",
        "show the open ports of 10.0.0.1 and be quick about it",
    ]
    fresh = embedder(texts)
    embedder([*texts[:1], "something else that is a good deal longer than any of the other sentences here"])
    assert np.array_equal(embedder(texts), fresh)
    assert embedder([]).shape[0] == 0


def test_similarity_with_real_embeddings(embedder: Embedder) -> None:
    pool = [task.text for task in DOMAIN.tasks("train", 40, "test")]
    reward = Similarity(Scripted(READ), embedder, pool)
    assert 0.4 < reward.floor < 0.95
    [[foreign, right, swapped]] = reward([TASK], [[FOREIGN, RIGHT, SWAPPED]])
    assert value(foreign) == 0.0
    assert value(right) == pytest.approx(1.0, abs=1e-4)
    assert 0 < value(swapped) < 1
    assert right.parts["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_the_original_blend_by_hand() -> None:
    [[score]] = OriginalBlend(Scripted(READ, rating="7"))([TASK], [[SWAPPED]])
    ratio = difflib.SequenceMatcher(None, TASK.text, READ[SWAPPED]).ratio()
    assert score.parts == pytest.approx({"overlap": 6 / 8, "sequence": ratio, "rating": 0.7})
    assert score.value == pytest.approx(0.2 * 6 / 8 + 0.3 * ratio + 0.5 * 0.7)
    assert score.reconstruction == READ[SWAPPED]


def test_an_empty_reconstruction_is_not_rated() -> None:
    model = Scripted({**READ, SWAPPED: ""})
    [[right, empty, foreign]] = OriginalBlend(model)([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert empty == Score(None, reason="empty reconstruction")
    assert (right.parts["rating"], foreign.parts["rating"]) == (1.0, 0.0)
    assert len(model.asked) == 3 + 2


@pytest.mark.parametrize("reply", ["", "maybe", "11"])
def test_an_unreadable_rating_abstains(reply: str) -> None:
    [[score]] = OriginalBlend(Scripted(READ, rating=reply))([TASK], [[RIGHT]])
    assert (score.value, score.reason) == (None, "unreadable rating")
    assert score.reconstruction == TASK.text
    assert set(score.parts) == {"overlap", "sequence"}


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("0", 0.0),
        ("1", 0.1),
        ("2", 0.2),
        ("3", 0.3),
        ("4", 0.4),
        ("5", 0.5),
        ("6", 0.6),
        ("7", 0.7),
        ("8", 0.8),
        ("9", 0.9),
        ("10", 1.0),
        ("7/10", 0.7),
        ("10/10", 1.0),
        ("7 out of 10", 0.7),
        ("Rating: 8", 0.8),
        ("8, since", 0.8),
        ("10.", 1.0),
        (" 3 ", 0.3),
        ("7.5", 0.75),
        ("", None),
        ("maybe", None),
        ("11", None),
        ("100", None),
        ("-7", None),
        ("4/5", None),
        ("10.5", None),
        ("10 %", None),
        ("100%", None),
        ("ten", None),
        ("the two sentences are 8 alike", None),
    ],
)
def test_ratings(reply: str, rating: float | None) -> None:
    assert read_rating(reply) == rating


def test_words_and_characters() -> None:
    assert token_overlap("List Files", "list files") == sequence_ratio("List Files", "list files") == 1.0
    assert token_overlap("", "") == token_overlap("a", "b") == token_overlap("", "a") == 0.0
    assert token_overlap("a b c", "b c d") == 0.5 and sequence_ratio("abcd", "bcde") == 0.75


def test_slots_compare_values_alone() -> None:
    model = Scripted({RIGHT: "443 web1.test", SWAPPED: "scan port 80 on web1.test", FOREIGN: "ping a host"})
    [[right, swapped, foreign]] = build("slots", model)([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert (value(right), value(swapped), value(foreign)) == (1.0, 0.5, 0.0)
    assert right.reconstruction == "443 web1.test"


def test_slots_do_not_ask_about_a_task_without_values() -> None:
    model = Scripted(READ)
    without = Task("t", "network", "show all sockets")
    scores = build("slots", model)([without, TASK], [[RIGHT, ""], [RIGHT, ""]])
    assert scores[0][0] == Score(None, reason="no value in the task")
    assert scores[1][0] == Score(1.0, {}, TASK.text)
    assert scores[0][1] == scores[1][1] == Score(None, reason="empty command")
    assert model.asked == [DOMAIN.prompt("inverse", command=RIGHT)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("scan port 443 on web1.test with nmap", ["443", "web1.test"]),
        ("ping 10.0.0.1, then 10.0.0.0/24.", ["10.0.0.1", "10.0.0.0/24"]),
        ("fetch http://lab.test:8080/a_b.html (only headers)", ["http://lab.test:8080/a_b.html"]),
        ("Show employees in Vienna above 30, not in Oslo", ["Vienna", "30", "Oslo"]),
        ("all files ending in .log below site_tests, and grep for :53", [".log", "site_tests", ":53"]),
        ("use -v and --all twice: -v", ["-v", "--all", "-v"]),
        ("replace 'old name' by \"new one\" in it's place", ["old name", "new one"]),
        ("list the lines where error occurs", []),
        ("", []),
    ],
)
def test_values_of_a_sentence(text: str, values: list[str]) -> None:
    assert values_of(text) == Counter(values)
    assert not plain_words(text) & set(values)


def test_f1_by_hand() -> None:
    assert f1(Counter(["a", "a", "b"]), Counter(["a", "b", "c"])) == pytest.approx(2 * 2 / 6)
    assert f1(Counter("a"), Counter()) == 0.0
    with pytest.raises(ValueError):
        f1(Counter(), Counter())
