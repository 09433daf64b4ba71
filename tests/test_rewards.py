"""Rewards: identity scores highest, a swapped value lower, what cannot be read abstains."""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.domain import load_domain
from envs.types import Completion, InputError, LanguageModel, Score, Task
from rewards.blend import read_blend
from rewards.controls import Random, Shuffled
from rewards.inversion import Choice, Likelihood, OriginalBlend, Similarity, reconstruct
from rewards.labelled import Truth
from rewards.registry import REWARDS, make_reward, reward_info, shown
from rewards.similarity import (
    Embedder,
    corrected,
    neighbour_cosine,
    read_rating,
    sequence_ratio,
    token_overlap,
)
from rewards.words import f1, plain_words, values_of
from rewards.wrappers import with_inverter

DOMAIN = load_domain("network")
TASK = Task("t/1", "network", "scan port 443 on web1.test with nmap", "nmap")
OTHER = Task("t/2", "network", "ping db.test 5 times and then stop", "ping")
RIGHT, SWAPPED, FOREIGN = "nmap -p 443 web1.test", "nmap -p 80 web1.test", "ping -c 5 db.test"
READ = {RIGHT: TASK.text, SWAPPED: "scan port 80 on web1.test with nmap", FOREIGN: OTHER.text}
TEXTS = [*READ.values(), "look up the mail exchange of lab.test", "show all listening tcp sockets"]
POOL = [
    Task(f"p/{place}", "network", text, "nmap" if "scan" in text else "") for place, text in enumerate(TEXTS)
]


class Scripted:
    """A model that reads commands back as a table says, and rates two sentences by their words. With the adapter off, another table."""

    def __init__(
        self, read: dict[str, str], base: dict[str, str] | None = None, rating: str | None = None
    ) -> None:
        self.table = self._prompts(read)
        self.base = self._prompts(read if base is None else base)
        self.rating = rating
        self.asked: list[str] = []
        self.used: list[str] = []
        self.seeds: list[int] = []

    @staticmethod
    def _prompts(read: dict[str, str]) -> dict[str, str]:
        return {
            DOMAIN.prompt("inverse", command=command): text for command, text in {**read, "": "of a"}.items()
        }

    @contextlib.contextmanager
    def inverter(self, which: str) -> Iterator[None]:
        self.used.append(which)
        table = self.table
        self.table = self.base if which == "base" else table
        yield
        self.table = table

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
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
            [math.log(0.9 if word in self.table.get(prompt, "yes").split() else 0.1) for word in text.split()]
            for prompt, text in zip(prompts, continuations, strict=True)
        ]

    def entropies(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        self.asked += prompts
        return [(len(text) / 100, 100 / len(text)) for text in continuations]


class Letters:
    """Embeddings that can be made by hand: counts of the letters and digits, of unit length."""

    ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array(
            [[text.lower().count(character) + 1e-3 for character in self.ALPHABET] for text in texts],
            dtype=np.float32,
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def build(name: str, model: Any, **options: Any) -> Any:
    if name == "similarity":
        return Similarity(model, Letters(), TEXTS, **options)  # type: ignore[arg-type]
    return make_reward(name, model, POOL, gates=False, **options)  # the gates have tests of their own


INVERSIONS = ["similarity", "original-blend", "likelihood", "likelihood-min", "lift", "choice", "slots"]
DECODING = ["similarity", "original-blend", "slots"]
UNBOUNDED = {"lift", "self-certainty", "entropy"}
LABEL_FREE = sorted(set(REWARDS) - {"truth"})
TOGETHER = {"random", "shuffled", "majority"}  # whose scores depend on the other candidates of a call


def value(score: Score) -> float:
    assert score.value is not None, score
    return score.value


# What every inversion reward must do


@pytest.mark.parametrize("name", INVERSIONS)
def test_identity_is_best_and_another_intent_is_worst(name: str) -> None:
    [scores] = build(name, Scripted(READ))([TASK], [[FOREIGN, RIGHT, SWAPPED]])
    foreign, right, swapped = map(value, scores)
    assert foreign <= swapped < right
    assert name == "lift" or 0 <= foreign <= right <= 1
    assert foreign < swapped or name == "likelihood-min"  # of which the weakest token is equally weak in both
    if name in DECODING:
        assert right == pytest.approx(1.0, abs=1e-4) and scores[1].reconstruction == TASK.text


@pytest.mark.parametrize("name", INVERSIONS)
@pytest.mark.parametrize("empty", ["", " ", "\t \n"])
def test_an_empty_command_abstains_and_is_not_read(name: str, empty: str) -> None:
    model = Scripted(READ)
    [[first, right, second]] = build(name, model)([TASK], [[empty, RIGHT, empty]])
    assert first == second == Score(None, reason="empty command") and value(right) > 0.3
    assert DOMAIN.prompt("inverse", command=empty) not in model.asked or (
        name == "lift" and not empty
    )  # which asks what is likely anyway
    assert build(name, model)([TASK], [[empty]]) == [[Score(None, reason="empty command")]]


@pytest.mark.parametrize("name", DECODING)
def test_an_empty_reconstruction_abstains(name: str) -> None:
    model = Scripted({**READ, RIGHT: "", SWAPPED: " "}, rating="10")
    [[first, foreign, second]] = build(name, model)([TASK], [[RIGHT, FOREIGN, SWAPPED]])
    assert first == second == Score(None, reason="empty reconstruction") and foreign.value is not None


@pytest.mark.parametrize("name", LABEL_FREE)
def test_group_first_shapes(name: str) -> None:
    reward = build(name, Scripted(READ))
    commands = [[RIGHT, SWAPPED, ""], [], [FOREIGN, RIGHT]]
    scores = reward([TASK, TASK, OTHER], commands, seed=3)
    assert [len(row) for row in scores] == [3, 0, 2] and all(
        isinstance(score, Score) for row in scores for score in row
    )
    assert scores[0][2] == Score(None, reason="empty command")
    assert reward([], []) == [] and reward([TASK, OTHER], [[], []]) == [[], []]
    with pytest.raises(ValueError):
        reward([TASK], [[RIGHT, RIGHT], [RIGHT, RIGHT]])
    if name not in TOGETHER:
        # A candidate's score depends on nothing but itself and its task.
        alone = [
            reward([task], [[command]])[0][0]
            for task, row in zip([TASK, TASK, OTHER], commands, strict=True)
            for command in row
        ]
        assert [score.value for row in scores for score in row] == pytest.approx(
            [score.value for score in alone]
        )


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
    with pytest.raises(InputError, match=r"^--reward likelyhood: no such reward: did you mean likelihood\?"):
        make_reward("likelyhood", Scripted(READ), POOL)


# With a real model


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("name", LABEL_FREE)
def test_every_reward_runs_on_a_policy(name: str, gates: bool, policy: LanguageModel) -> None:
    reward = make_reward(name, policy, POOL, gates=gates)
    commands = [[RIGHT, SWAPPED, " "], [FOREIGN, "ls 'é' $'\\n' </s> [/INST]"]]
    first = reward([TASK, OTHER], commands, seed=1)
    assert first == reward([TASK, OTHER], commands, seed=1)
    assert all(
        score.value is None or name in UNBOUNDED or 0 <= score.value <= 1 for row in first for score in row
    )
    assert first[0][2].value is None  # the empty command
    if name in (*DECODING, "random", "shuffled"):
        assert any(first != reward([TASK, OTHER], commands, seed=seed) for seed in range(2, 12))
    if gates and REWARDS[name].gated:
        assert (
            not first[1][1].value
            and first[1][1].reason
            and set(first[0][0].parts) >= {"gate/valid", "gate/copied"}
        )


def test_base_and_current_differ_on_a_policy(policy: LanguageModel) -> None:
    scores = [
        make_reward("likelihood", policy, [], inverter=which)([TASK], [[RIGHT]])[0][0]
        for which in ("current", "base")
    ]
    assert scores[0] != scores[1]
    with pytest.raises(InputError, match="--inverter old: use current, base or ema"):
        make_reward("likelihood", policy, [], inverter="old")([TASK], [[RIGHT]])


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
        assert scores[1].parts == pytest.approx(
            {"token_min": 0.1, "token_mean": (0.9**2 * 0.1**5) ** (1 / 7)}
        )
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
    assert score.value == pytest.approx(math.exp(np.mean(values))) and score.parts[
        "token_min"
    ] == pytest.approx(math.exp(min(values)))


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
    assert [corrected(cosine, 0.75) for cosine in (-1.0, 0.75, 0.875, 1.0, 1.0000001)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
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
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and np.array_equal(
        vectors[0], vectors[2]
    )
    for name in ("no/such-model", "/no/such/folder"):
        with pytest.raises(InputError, match=f"^--embedder {name}: cannot be loaded: [^\n]*$"):
            Embedder(name)


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
    assert value(foreign) == 0.0 and value(right) == pytest.approx(1.0, abs=1e-4) and 0 < value(swapped) < 1
    assert right.parts["cosine"] == pytest.approx(1.0, abs=1e-5)


# The original blend


def test_the_blend_by_hand() -> None:
    [[score]] = OriginalBlend(Scripted(READ, rating="7"))([TASK], [[SWAPPED]])
    ratio = difflib.SequenceMatcher(None, TASK.text, READ[SWAPPED]).ratio()
    assert score.parts == pytest.approx({"overlap": 6 / 8, "sequence": ratio, "rating": 0.7})
    assert (
        score.value == pytest.approx(0.2 * 6 / 8 + 0.3 * ratio + 0.5 * 0.7)
        and score.reconstruction == READ[SWAPPED]
    )


@pytest.mark.parametrize("reply", ["", "maybe", "11"])
def test_an_unreadable_rating_abstains(reply: str) -> None:
    [[score]] = OriginalBlend(Scripted(READ, rating=reply))([TASK], [[RIGHT]])
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
            for reply in (
                "",
                "maybe",
                "11",
                "100",
                "-7",
                "4/5",
                "10.5",
                "10 %",
                "100%",
                "ten",
                "the two sentences are 8 alike",
            )
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
    assert (
        len(set(values)) == 1000
        and min(values) >= 0
        and max(values) < 1
        and abs(np.mean(values) - 0.5) < 0.05
    )


def test_shuffled_has_the_scores_and_not_their_places() -> None:
    tasks, commands = [TASK] * 60, [[RIGHT, FOREIGN, ""]] * 60
    plain = build("likelihood", Scripted(READ))(tasks, commands)
    dealt = build("shuffled", Scripted(READ))(tasks, commands, seed=1)
    assert sorted(value(s) for row in dealt for s in row[:2]) == sorted(
        value(s) for row in plain for s in row[:2]
    )
    assert all(row[2] == Score(None, reason="empty command") for row in dealt)
    right, foreign = ([value(row[place]) for row in dealt] for place in (0, 1))
    assert abs(np.mean(right) - np.mean(foreign)) < 0.2 < value(plain[0][0]) - value(plain[0][1])
    assert dealt != build("shuffled", Scripted(READ))(tasks, commands, seed=2)


def test_shuffled_has_the_inverter_of_what_it_shuffles() -> None:
    model = Scripted(READ)
    reward = Shuffled(Likelihood(model))
    twin = copy.copy(reward)
    twin.inverter = "base"
    twin([TASK], [[RIGHT]])
    reward([TASK], [[RIGHT]])
    assert model.used == ["base", "current"]
    assert Shuffled(Random()).inverter is None


def test_length_and_constant() -> None:
    [length] = build("length", Scripted(READ))([TASK], [["ls", "ls -l", "x" * 600, " "]])
    assert value(length[0]) > value(length[1]) > value(length[2]) == 0.0 and length[3].value is None
    [constant] = build("constant", Scripted(READ))([TASK], [["ls", "gibberish", ""]])
    assert [score.value for score in constant] == [1.0, 1.0, None]


# Lift, choice, slots


def test_lift_by_hand() -> None:
    model = Scripted(READ)  # given no command, `of a` is expected: no word of the task
    [[right, swapped]] = build("lift", model)([TASK], [[RIGHT, SWAPPED]])
    assert value(right) == pytest.approx(math.log(0.9) - math.log(0.1))
    assert value(swapped) == pytest.approx((6 * math.log(0.9) + math.log(0.1)) / 7 - math.log(0.1))
    assert right.parts == pytest.approx({"given": math.log(0.9), "prior": math.log(0.1)})
    assert model.asked.count(DOMAIN.prompt("inverse", command="")) == 1


def test_choice_by_hand() -> None:
    other = Task("x", "network", "scan port 80 on web1.test with nmap", "nmap")
    [[right, swapped, foreign]] = Choice(Scripted(READ), [other, TASK], others=1)(
        [TASK], [[RIGHT, SWAPPED, FOREIGN]]
    )
    wanted = 0.9 / (0.9 + (0.9**6 * 0.1) ** (1 / 7))
    assert right.parts == pytest.approx({"probability": wanted, "wins": 1.0}) and value(
        right
    ) == pytest.approx(wanted)
    assert value(swapped) == pytest.approx(1 - wanted) and swapped.parts["wins"] == 0.0
    assert value(foreign) == pytest.approx(0.5) and foreign.parts["wins"] == 0.0  # neither


def test_choice_takes_other_tasks_of_the_tool_then_of_the_domain() -> None:
    pool = [Task(str(n), "network", f"scan {n}", "nmap") for n in range(9)] + [
        Task(f"d{n}", "network", f"dig {n}", "dig") for n in range(3)
    ]
    pool += [Task(f"s{n}", "shell", f"sort {n}", "nmap") for n in range(9)]
    choice = Choice(Scripted(READ), pool)
    drawn = choice.distractors(pool[0], 0)
    assert (
        len(set(drawn)) == 4
        and pool[0] not in drawn
        and {(task.domain, task.tool) for task in drawn} == {("network", "nmap")}
    )
    assert drawn == choice.distractors(pool[0], 0) and any(
        drawn != choice.distractors(pool[0], seed) for seed in range(1, 9)
    )
    few = choice.distractors(pool[9], 0)
    assert (
        len(set(few)) == 4
        and {pool[10], pool[11]} < set(few)
        and {task.domain for task in few} == {"network"}
    )
    assert len(choice.distractors(Task("n", "network", "scan 1", ""), 0)) == 4
    [[alone, empty]] = Choice(Scripted(READ), [TASK])([TASK], [[RIGHT, ""]])
    assert alone == Score(None, reason="no other task to choose from") and empty.reason == "empty command"


@pytest.mark.parametrize("name", ["lift", "choice"])
def test_no_number_abstains(name: str) -> None:
    model = Scripted(READ)
    model.logprobs = lambda prompts, texts: [[math.nan] for _ in prompts]  # type: ignore[assignment, method-assign]
    [[score]] = build(name, model)([TASK], [[RIGHT]])
    assert score == Score(None, reason="not a number")


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


def test_slots_compare_values_alone() -> None:
    model = Scripted({RIGHT: "443 web1.test", SWAPPED: "scan port 80 on web1.test", FOREIGN: "ping a host"})
    [[right, swapped, foreign]] = build("slots", model)([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert (value(right), value(swapped), value(foreign)) == (
        1.0,
        0.5,
        0.0,
    ) and right.reconstruction == "443 web1.test"
    [[none, empty]] = build("slots", model)([Task("t", "network", "show all sockets")], [[RIGHT, ""]])
    assert none == Score(None, reason="no value in the task") and empty.reason == "empty command"


# Intrinsic


def test_certainty_on_a_policy_by_hand(policy: Any) -> None:
    """Entropy and self-certainty of the forward prompt's distributions, token by token."""
    import torch

    prompt = DOMAIN.prompt("forward", task=TASK.text, tool=TASK.tool)
    [prompt_ids], [ids] = policy.prompt_ids([prompt]), policy.completion_ids([RIGHT])
    with torch.no_grad():
        logits = (
            policy.model(input_ids=torch.tensor([[*prompt_ids, *ids]]))
            .logits[0, len(prompt_ids) - 1 : -1]
            .float()
        )
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    uniform = torch.full_like(p, 1 / p.shape[-1])
    certainty = (uniform * (uniform.log() - p.log())).sum(-1).mean()
    for name, wanted in (("entropy", -entropy), ("self-certainty", certainty)):
        [[score, other]] = make_reward(name, policy, [])([TASK], [[RIGHT, SWAPPED]])
        assert value(score) == pytest.approx(float(wanted), rel=1e-4) and value(other) != value(score)
        assert make_reward(name, policy, []).inverter is None  # type: ignore[attr-defined]
    assert policy.entropies([prompt], [""]) == [None] and policy.entropies([], []) == []


def test_entropies_do_not_depend_on_the_batch(policy: Any) -> None:
    prompts, texts = [f"task {n}" for n in range(5)], [RIGHT, "", SWAPPED, "x" * 50, FOREIGN]
    whole = policy.entropies(prompts, texts)
    policy.batch_size = 2
    for first, second in zip(whole, policy.entropies(prompts, texts), strict=True):
        assert first == (second if second is None else pytest.approx(second, rel=1e-3, abs=1e-5))


def test_majority_by_hand() -> None:
    [scores] = build("majority", Scripted(READ))([TASK], [["ls  -l", "ls -l", "ls", " "]])
    assert [score.value for score in scores] == [0.5, 0.5, 0.25, None]
    with pytest.raises(ValueError, match="two or more candidates"):
        build("majority", Scripted(READ))([TASK], [["ls"]])


def test_self_judge_by_hand() -> None:
    model = Scripted(READ)
    model.logprobs = lambda prompts, texts: [
        [math.log(0.6)] if text == "yes" else [-1.0, -1.0] for text in texts
    ]  # type: ignore[assignment, method-assign]
    [[score]] = build("self-judge", model)([TASK], [[RIGHT]])
    assert value(score) == pytest.approx(0.6 / (0.6 + math.exp(-2)))


# Truth


def test_truth_is_marked_and_abstains_where_it_is_not_known() -> None:
    with pytest.raises(InputError, match=r"^--reward truth: needs labels"):
        make_reward("truth", Scripted(READ), [])
    reward = make_reward("truth", Scripted(READ), [], truth=Truth)
    task = DOMAIN.tasks("train", 1, "truth")[0]
    from envs.verify.truth import reference

    right = reference(task)
    assert right is not None
    [[good, bad, invalid]] = reward([task], [[right, f"{right} 9", "gibberish"]])
    assert (good.value, bad.value, invalid.value) == (1.0, 0.0, 0.0)
    assert reward([TASK], [[RIGHT]]) == [[Score(None, reason="the task has no reference")]]
    assert (
        REWARDS["truth"].labelled
        and shown("truth") == "truth (labelled)"
        and shown("likelihood") == "likelihood"
    )
    assert [name for name, info in REWARDS.items() if info.labelled] == ["truth"]


# Blends


def written(folder: Path, text: str) -> str:
    path = folder / "blend.yaml"
    path.write_text(text)
    return str(path)


def test_a_blend_is_the_weighted_mean_and_logs_every_part(tmp_path: Path) -> None:
    name = written(tmp_path, "weights: {likelihood: 0.6, slots: 0.2, majority: 0}\nselect: quantile\n")
    model = Scripted(READ)
    [[right, swapped]] = make_reward(name, model, POOL)([TASK], [[RIGHT, SWAPPED]])
    assert value(right) == pytest.approx((0.6 * 0.9 + 0.2 * 1.0) / 0.8) and right.reconstruction == TASK.text
    assert (
        right.parts["likelihood"] == pytest.approx(0.9)
        and right.parts["slots"] == 1.0
        and right.parts["majority"] == 0.5
    )
    assert right.parts["gate/valid"] == 1.0 and value(swapped) < value(right)
    info = reward_info(name)
    assert (info.select, info.needs_group, info.labelled, info.bounded) == ("quantile", True, False, True)
    assert shown(written(tmp_path, "weights: {likelihood: 1, truth: 0}")).endswith("blend.yaml (labelled)")


def test_a_blend_abstains_where_a_part_that_counts_does(tmp_path: Path) -> None:
    task = Task("t", "network", "show all sockets")
    for weights, abstains in (("{likelihood: 1, slots: 1}", True), ("{likelihood: 1, slots: 0}", False)):
        [[score]] = make_reward(written(tmp_path, f"weights: {weights}"), Scripted(READ), POOL)(
            [task], [[RIGHT]]
        )
        assert (score.value is None) == abstains and (score.reason == "no value in the task") == abstains
        assert "slots" not in score.parts


def test_a_closed_gate_closes_the_whole_blend(tmp_path: Path) -> None:
    reward = make_reward(
        written(tmp_path, "weights: {random: 1, likelihood: 1}"), Scripted({**READ, "echo a": "x"}), POOL
    )
    [[right, closed, long]] = reward([TASK], [[RIGHT, "echo a", "nmap " + "x" * 600]])
    assert value(right) > 0.4 and value(closed) == 0.0 and long.value is None
    assert closed.reason == "not a command of this domain" and closed.parts["random"] > 0
    # A gate of a part that is only logged closes nothing.
    [[alone]] = make_reward(written(tmp_path, "weights: {random: 1}"), Scripted(READ), POOL)(
        [TASK], [["echo a"]]
    )
    [[logged]] = make_reward(
        written(tmp_path, "weights: {random: 1, likelihood: 0}"), Scripted({"echo a": "x"}), POOL
    )([TASK], [["echo a"]])
    assert logged.value == alone.value and logged.parts["gate/valid"] == 0.0 and logged.reason == ""


def test_a_blend_has_the_inverter_of_its_parts(tmp_path: Path) -> None:
    model = Scripted(READ)
    reward = make_reward(written(tmp_path, "weights: {length: 1, likelihood: 1, slots: 1}"), model, POOL)
    twin: Any = copy.copy(reward)
    twin.inverter = "base"
    twin([TASK], [[RIGHT]])
    assert model.used == ["base", "base"] and reward.inverter == "current"  # type: ignore[attr-defined]
    without: Any = make_reward(written(tmp_path, "weights: {length: 1, random: 1}"), model, POOL)
    assert without.inverter is None and with_inverter(without, "base") is without


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "weights: {likelihood: 0.7}\nselct: best",
            ":2: selct: unknown key: did you mean select?",
        ),
        ("select: best", ":1: weights: is missing: write weights: {likelihood: 0.7, slots: 0.3}"),
        (
            "weights:\n  likelyhood: 1",
            ":2: weights.likelyhood: no such reward: did you mean likelihood?",
        ),
        (
            "weights:\n  slots: -1",
            ":2: weights.slots: must be a number, 0 or more (found '-1'): write 0.5, say",
        ),
        ("weights:\n  slots: [1]", ":2: weights.slots: must be a number"),
        ("weights:\n  slots: .nan", ":2: weights.slots: must be a number"),
        ("weights: {slots: 0}", ":1: weights: none is above 0: give one reward a weight"),
        ("weights: 3", ":1: weights: must be a mapping: write likelihood: 0.7"),
        ("weights:\n  slots: 1\n  slots: 2", ":3: slots: is there twice: drop one"),
        (
            "weights: {slots: 1}\n\nselect: bets",
            ":3: select: must be one of threshold, best, quantile (found 'bets'): correct it",
        ),
        ("- a", ":1: the file: must be a mapping"),
        ("", ":1: the file: must be a mapping"),
        ("weights: {slots", ":1: not YAML: "),
    ],
)
def test_a_faulty_blend_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    name = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        reward_info(name)
    assert str(error.value).startswith(name + message) and "\n" not in str(error.value)


def test_blends_that_cannot_be_read(tmp_path: Path) -> None:
    for name, reason in (
        (str(tmp_path / "no.yaml"), "cannot be read (No such file"),
        (str(tmp_path / "bytes.yaml"), "not UTF-8"),
    ):
        (tmp_path / "bytes.yaml").write_bytes(b"\xff")
        with pytest.raises(InputError, match=f"^--reward {name}: {re.escape(reason)}"):
            reward_info(name)


def test_the_example_of_a_blend() -> None:
    example = Path(__file__).resolve().parent.parent / "configs" / "rewards" / "example.yaml"
    assert read_blend(str(example), list(REWARDS)).weights["majority"] == 0
