"""Rewards: identity scores highest, a swapped value lower, what cannot be read abstains."""

from __future__ import annotations

import contextlib
import difflib
import math
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from envs.domain import load_domain
from envs.types import Completion, InputError, LanguageModel, Score, Task
from rewards import REWARDS, make_reward
from rewards.controls import Random
from rewards.inversion import Likelihood, SeedBlend, Similarity, reconstruct
from rewards.similarity import Embedder, corrected, neighbour_cosine, read_rating, sequence_ratio, token_overlap

DOMAIN = load_domain("network")
TASK = Task("t/1", "network", "scan port 443 on web1.test with nmap", "nmap")
OTHER = Task("t/2", "network", "ping db.test 5 times and then stop", "ping")
RIGHT, SWAPPED, FOREIGN = "nmap -p 443 web1.test", "nmap -p 80 web1.test", "ping -c 5 db.test"
READ = {RIGHT: TASK.text, SWAPPED: "scan port 80 on web1.test with nmap", FOREIGN: OTHER.text}
POOL = [*READ.values(), "look up the mail exchange of lab.test", "show all listening tcp sockets"]


class Scripted:
    """A model that reads commands back as a table says, and rates two sentences by their words. With the adapter off, another table."""

    def __init__(self, read: dict[str, str], base: dict[str, str] | None = None, rating: str | None = None) -> None:
        self.table = self._prompts(read)
        self.base = self._prompts(read if base is None else base)
        self.rating = rating
        self.asked: list[str] = []
        self.used: list[str] = []
        self.seeds: list[int] = []

    @staticmethod
    def _prompts(read: dict[str, str]) -> dict[str, str]:
        return {DOMAIN.prompt("inverse", command=command): text for command, text in read.items()}

    @contextlib.contextmanager
    def inverter(self, which: str) -> Iterator[None]:
        self.used.append(which)
        table = self.table
        self.table = self.base if which == "base" else table
        yield
        self.table = table

    def generate(
        self, prompts: Sequence[str], n: int = 1, *, temperature: float, max_new_tokens: int = 64, seed: int = 0
    ) -> list[list[Completion]]:
        self.asked += prompts
        self.seeds.append(seed)
        return [[Completion(self._answer(prompt))] * n for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        if prompt in self.table:
            return self.table[prompt]
        assert "similar" in prompt, prompt
        if self.rating is not None:
            return self.rating
        first, second = (line.split(": ", 1)[1] for line in prompt.splitlines()[1:])
        return str(round(10 * token_overlap(first, second)))

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        self.asked += prompts
        return [
            [math.log(0.9 if word in self.table[prompt].split() else 0.1) for word in text.split()]
            for prompt, text in zip(prompts, continuations, strict=True)
        ]


class Letters:
    """Embeddings that can be made by hand: counts of the letters and digits, of unit length."""

    ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.lower().count(character) + 1e-3 for character in self.ALPHABET] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def build(name: str, model: Any, **options: Any) -> Any:
    if name == "similarity":
        return Similarity(model, Letters(), POOL, **options)  # type: ignore[arg-type]
    return make_reward(name, model, POOL, **options)


INVERSIONS = ["similarity", "seed", "likelihood", "likelihood-min"]
DECODING = ["similarity", "seed"]


def value(score: Score) -> float:
    assert score.value is not None, score
    return score.value


# What every inversion reward must do


@pytest.mark.parametrize("name", INVERSIONS)
def test_identity_is_best_and_another_intent_is_worst(name: str) -> None:
    [scores] = build(name, Scripted(READ))([TASK], [[FOREIGN, RIGHT, SWAPPED]])
    foreign, right, swapped = map(value, scores)
    assert 0 <= foreign <= swapped < right <= 1
    assert foreign < swapped or name == "likelihood-min"  # of which the weakest token is equally weak in both
    if name in DECODING:
        assert right == pytest.approx(1.0, abs=1e-4) and scores[1].reconstruction == TASK.text


@pytest.mark.parametrize("name", INVERSIONS)
@pytest.mark.parametrize("empty", ["", " ", "\t \n"])
def test_an_empty_command_abstains_and_is_not_read(name: str, empty: str) -> None:
    model = Scripted(READ)
    [[first, right, second]] = build(name, model)([TASK], [[empty, RIGHT, empty]])
    assert first == second == Score(None, reason="empty command") and value(right) > 0.8
    assert DOMAIN.prompt("inverse", command=empty) not in model.asked
    assert build(name, model)([TASK], [[empty]]) == [[Score(None, reason="empty command")]]


@pytest.mark.parametrize("name", DECODING)
def test_an_empty_reconstruction_abstains(name: str) -> None:
    model = Scripted({**READ, RIGHT: "", SWAPPED: " "}, rating="10")
    [[first, foreign, second]] = build(name, model)([TASK], [[RIGHT, FOREIGN, SWAPPED]])
    assert first == second == Score(None, reason="empty reconstruction") and foreign.value is not None


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_group_first_shapes(name: str) -> None:
    reward = build(name, Scripted(READ))
    commands = [[RIGHT, SWAPPED, ""], [], [FOREIGN]]
    scores = reward([TASK, TASK, OTHER], commands, seed=3)
    assert [len(row) for row in scores] == [3, 0, 1] and all(isinstance(score, Score) for row in scores for score in row)
    assert reward([], []) == [] and reward([TASK, OTHER], [[], []]) == [[], []]
    if name != "random":
        # A candidate's score depends on nothing but itself and its task.
        alone = [reward([task], [[command]])[0][0] for task, row in zip([TASK, TASK, OTHER], commands, strict=True) for command in row]
        assert [score.value for row in scores for score in row] == pytest.approx([score.value for score in alone])
        with pytest.raises(ValueError):
            reward([TASK], [[RIGHT], [RIGHT]])


@pytest.mark.parametrize("name", INVERSIONS)
def test_the_inverter_reads(name: str) -> None:
    model = Scripted(READ, base={RIGHT: READ[FOREIGN], FOREIGN: READ[FOREIGN]})
    [[current]] = build(name, model)([TASK], [[RIGHT]])
    assert model.used == ["current"]
    [[base]] = build(name, model, inverter="base")([TASK], [[RIGHT]])
    assert model.used == ["current", "base"] and value(base) < value(current)


@pytest.mark.parametrize("name", DECODING)
def test_the_task_is_hidden_from_the_inverter(name: str) -> None:
    model = Scripted(READ)
    build(name, model)([TASK], [[FOREIGN]], seed=9)
    assert model.asked[0] == DOMAIN.prompt("inverse", command=FOREIGN) and TASK.text not in model.asked[0]
    assert model.seeds[0] == 9


def test_a_command_cannot_fill_in_the_prompt() -> None:
    assert "{task}" in DOMAIN.prompt("inverse", command="echo {task} {command}")


def test_unknown_names_get_one_line() -> None:
    with pytest.raises(InputError, match=r"^--reward likelyhood: did you mean likelihood\?"):
        make_reward("likelyhood", Scripted(READ), POOL)


# With a real model


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_reward_runs_on_a_policy(name: str, policy: LanguageModel) -> None:
    reward = make_reward(name, policy, POOL)
    commands = [[RIGHT, SWAPPED, " "], [FOREIGN, "ls 'é' $'\\n' </s> [/INST]"]]
    first = reward([TASK, OTHER], commands, seed=1)
    assert first == reward([TASK, OTHER], commands, seed=1)
    assert all(score.value is None or 0 <= score.value <= 1 for row in first for score in row)
    assert first[0][2].value is None  # the empty command
    if name in (*DECODING, "random"):
        assert first != reward([TASK, OTHER], commands, seed=2)


def test_base_and_current_differ_on_a_policy(policy: LanguageModel) -> None:
    scores = [make_reward("likelihood", policy, [], inverter=which)([TASK], [[RIGHT]])[0][0] for which in ("current", "base")]
    assert scores[0] != scores[1]
    with pytest.raises(InputError, match="--inverter ema"):
        make_reward("likelihood", policy, [], inverter="ema")([TASK], [[RIGHT]])


def test_reconstructions_are_texts_of_the_same_order(policy: LanguageModel) -> None:
    pairs = [(TASK, RIGHT), (OTHER, FOREIGN), (TASK, "x" * 80), (TASK, RIGHT)]
    texts = reconstruct(policy, pairs, 0.0, 0, 8)
    assert texts[0] == texts[3] and texts == [reconstruct(policy, [pair], 0.0, 0, 8)[0] for pair in pairs]
    assert reconstruct(policy, [], 0.3, 0, 8) == []


# Likelihood


def test_likelihood_by_hand() -> None:
    model = Scripted({RIGHT: TASK.text, SWAPPED: "scan port 80"})  # `scan` and `port` of 7 words
    for over, wanted in (("min", [0.9, 0.1]), ("mean", [0.9, (0.9**2 * 0.1**5) ** (1 / 7)])):
        [scores] = Likelihood(model, over=over)([TASK], [[RIGHT, SWAPPED]])  # type: ignore[arg-type]
        assert [value(score) for score in scores] == pytest.approx(wanted)
        assert scores[1].parts == pytest.approx({"min": 0.1, "mean": (0.9**2 * 0.1**5) ** (1 / 7)})
        assert scores[0].reconstruction is None


def test_likelihood_of_duplicates_is_computed_once() -> None:
    model = Scripted(READ)
    [first, second] = Likelihood(model)([TASK, OTHER], [[RIGHT, SWAPPED, RIGHT], [RIGHT, RIGHT]])
    assert len(model.asked) == 3 and first[0] == first[2] != second[0] == second[1]


def test_likelihood_of_nothing_or_of_no_number_abstains() -> None:
    model = Scripted(READ)
    assert Likelihood(model)([Task("t/0", "network", "")], [[RIGHT]]) == [[Score(None, reason="empty task")]]
    model.logprobs = lambda prompts, texts: [[-1.0, math.nan], [math.nan, -1.0], [-math.inf, -1.0]]  # type: ignore[assignment, method-assign]
    [scores] = Likelihood(model)([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert [score.value for score in scores] == [None, None, 0.0] and scores[0].reason == "not a number"


def test_likelihood_on_a_policy_by_hand(policy: LanguageModel) -> None:
    [[score]] = Likelihood(policy)([TASK], [[RIGHT]])
    [values] = policy.logprobs([DOMAIN.prompt("inverse", command=RIGHT)], [TASK.text])
    assert score.value == pytest.approx(math.exp(np.mean(values))) and score.parts["min"] == pytest.approx(math.exp(min(values)))


# Similarity


def test_neighbour_cosine_by_hand() -> None:
    pool = ["aab", "abb", "ccc", "aab"]
    a, b, c = Letters()(["aab", "abb", "ccc"])
    wanted = (a @ b + b @ a + max(c @ a, c @ b)) / 3
    assert neighbour_cosine(Letters(), pool) == pytest.approx(float(wanted), abs=1e-6)  # type: ignore[arg-type]
    assert neighbour_cosine(Letters(), pool[::-1]) == neighbour_cosine(Letters(), pool)  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", [[], ["a"], ["a", "a", "a"], ["Abc", "abc", "cab"]])
def test_a_pool_without_two_different_texts_has_no_scale(pool: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--reward similarity: needs two different tasks"):
        Similarity(Scripted(READ), Letters(), pool)  # type: ignore[arg-type]


def test_the_scale() -> None:
    assert [corrected(cosine, 0.75) for cosine in (-1.0, 0.75, 0.875, 1.0, 1.0000001)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert max(corrected(cosine, 0.75) for cosine in np.linspace(-1.01, 1.01, 99)) == 1.0


def test_similarity_has_the_plain_cosine_as_its_part() -> None:
    reward = build("similarity", Scripted(READ))
    [[score]] = reward([TASK], [[SWAPPED]])
    a, b = Letters()([TASK.text, READ[SWAPPED]])
    assert score.parts == pytest.approx({"cosine": float(a @ b)}) and score.reconstruction == READ[SWAPPED]
    assert score.value == pytest.approx(corrected(float(a @ b), reward.floor))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_the_embedder_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    vectors = Embedder()(["list all files", "ping the host", "list all files"])
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and np.array_equal(vectors[0], vectors[2])
    for name in ("no/such-model", "/no/such/folder"):
        with pytest.raises(InputError, match=f"^--embedder {name}: cannot be loaded: [^\n]*$"):
            Embedder(name)


def test_embeddings_do_not_depend_on_earlier_calls(embedder: Embedder) -> None:
    texts = ["list all files in the folder docs", "count the lines", "show the open ports of 10.0.0.1 and be quick about it"]
    fresh = embedder(texts)
    embedder([*texts[:1], "something else that is a good deal longer than any of the other sentences here"])
    assert np.array_equal(embedder(texts), fresh)
    assert embedder([]).shape[0] == 0


def test_similarity_with_real_embeddings(embedder: Embedder) -> None:
    pool = [task.text for task in DOMAIN.tasks("train", 40, "test")]
    reward = Similarity(Scripted(READ), embedder, pool)
    assert 0.4 < reward.floor < 0.95
    [[foreign, right, swapped]] = reward([TASK], [[FOREIGN, RIGHT, SWAPPED]])
    assert value(foreign) == 0.0 and value(right) == pytest.approx(1.0, abs=1e-4) and 0 < value(swapped) < 1
    assert right.parts["cosine"] == pytest.approx(1.0, abs=1e-5)


# The original blend


def test_the_blend_by_hand() -> None:
    [[score]] = SeedBlend(Scripted(READ, rating="7"))([TASK], [[SWAPPED]])
    ratio = difflib.SequenceMatcher(None, TASK.text, READ[SWAPPED]).ratio()
    assert score.parts == pytest.approx({"overlap": 6 / 8, "sequence": ratio, "rating": 0.7})
    assert score.value == pytest.approx(0.2 * 6 / 8 + 0.3 * ratio + 0.5 * 0.7) and score.reconstruction == READ[SWAPPED]


@pytest.mark.parametrize("reply", ["", "maybe", "11"])
def test_an_unreadable_rating_abstains(reply: str) -> None:
    [[score]] = SeedBlend(Scripted(READ, rating=reply))([TASK], [[RIGHT]])
    assert score.value is None and score.reason == "unreadable rating" and score.reconstruction == TASK.text
    assert set(score.parts) == {"overlap", "sequence"}


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        *[(str(number), number / 10) for number in range(11)],
        *[
            ("7/10", 0.7),
            ("10/10", 1.0),
            ("7 out of 10", 0.7),
            ("Rating: 8", 0.8),
            ("8, since", 0.8),
            ("10.", 1.0),
            (" 3 ", 0.3),
            ("7.5", 0.75),
        ],
        *[
            (reply, None)
            for reply in ("", "maybe", "11", "100", "-7", "4/5", "10.5", "10 %", "100%", "ten", "the two sentences are 8 alike")
        ],
    ],
)
def test_ratings(reply: str, rating: float | None) -> None:
    assert read_rating(reply) == rating


def test_words_and_characters() -> None:
    assert token_overlap("List Files", "list files") == sequence_ratio("List Files", "list files") == 1.0
    assert token_overlap("", "") == token_overlap("a", "b") == token_overlap("", "a") == 0.0
    assert token_overlap("a b c", "b c d") == 0.5 and sequence_ratio("abcd", "bcde") == 0.75


# Controls


def test_random_scores_know_nothing() -> None:
    first, second = (Random()([TASK, OTHER], [[command] * 500] * 2, seed=4) for command in (RIGHT, SWAPPED))
    assert first == second != Random()([TASK, OTHER], [[RIGHT] * 500] * 2, seed=5)
    values = [value(score) for row in first for score in row]
    assert len(set(values)) == 1000 and min(values) >= 0 and max(values) < 1 and abs(np.mean(values) - 0.5) < 0.05
