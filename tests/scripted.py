"""A model and embeddings that can be followed by hand, for the tests of the rewards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from envs.domain import load_domain
from envs.types import Completion, Prompt, Score, Task
from envs.verify.effects import effects_of
from rewards.reconstruction import Similarity
from rewards.registry import make_reward
from rewards.semantic import Semantic
from rewards.text import token_overlap

DOMAIN = load_domain("network")
TASK = Task("t/1", "network", "scan port 443 on web1.test with nmap", "nmap")
OTHER = Task("t/2", "network", "ping db.test 5 times and then stop", "ping")
RIGHT = "nmap -p 443 web1.test"
SWAPPED = "nmap -p 80 web1.test"
FOREIGN = "ping -c 5 db.test"
READ = {RIGHT: TASK.text, SWAPPED: "scan port 80 on web1.test with nmap", FOREIGN: OTHER.text}
TEXTS = [*READ.values(), "look up the mail exchange of lab.test", "show all listening tcp sockets"]
POOL = [
    Task("p/0", "network", TEXTS[0], "nmap"),
    Task("p/1", "network", TEXTS[1], "nmap"),
    Task("p/2", "network", TEXTS[2], ""),
    Task("p/3", "network", TEXTS[3], ""),
    Task("p/4", "network", TEXTS[4], ""),
]


EMBEDDING = {"similarity": Similarity, "semantic": Semantic}


class Scripted:
    """A model that reconstructs tasks by a table, and rates two sentences by their words.

    Args:
        read: command -> its reconstruction.
        base: the same with the adapter off; by default the same table.
        rating: what it replies when asked for a rating; by default the overlap of the words.
    """

    def __init__(
        self, read: Mapping[str, str], base: Mapping[str, str] | None = None, rating: str | None = None
    ) -> None:
        self.table = by_prompt(read)
        self.base = by_prompt(read if base is None else base)
        self.rating = rating
        self.asked: list[str] = []
        self.used: list[str] = []
        self.seeds: list[int] = []

    @contextlib.contextmanager
    def inverter(self, which: str) -> Iterator[None]:
        self.used.append(which)
        table = self.table
        if which == "base":
            self.table = self.base
        yield
        self.table = table

    def generate(
        self,
        prompts: Sequence[str | Prompt],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        texts = texts_of(prompts)
        self.asked += texts
        self.seeds.append(seed)
        return [[Completion(self._answer(text))] * n for text in texts]

    def _answer(self, prompt: str) -> str:
        if prompt in self.table:
            return self.table[prompt]
        assert "similar" in prompt, prompt
        if self.rating is not None:
            return self.rating
        first, second = (line.split(": ", 1)[1] for line in prompt.splitlines()[1:])
        return str(round(10 * token_overlap(first, second)))

    def logprobs(self, prompts: Sequence[str | Prompt], continuations: Sequence[str]) -> list[list[float]]:
        """Words of the reconstruction have probability 0.9, others 0.1."""
        asked = texts_of(prompts)
        self.asked += asked
        rows = []
        for prompt, text in zip(asked, continuations, strict=True):
            expected = self.table.get(prompt, "yes").split()
            rows.append([math.log(0.9) if word in expected else math.log(0.1) for word in text.split()])
        return rows

    def entropies(
        self, prompts: Sequence[str | Prompt], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        self.asked += texts_of(prompts)
        return [(len(text) / 100, 100 / len(text)) for text in continuations]


def texts_of(prompts: Sequence[str | Prompt]) -> list[str]:
    """The messages of prompts."""
    return [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]


def by_prompt(read: Mapping[str, str]) -> dict[str, str]:
    table = {DOMAIN.prompt("inverse", command=""): "of a"}
    for task, command in ((TASK, RIGHT), (OTHER, FOREIGN)):
        table[DOMAIN.prompt("forward", task=task.text, tool=task.tool)] = command
    for command, text in read.items():
        table[DOMAIN.prompt("inverse", command=command)] = text
    return table


class Letters:
    """Embeddings that can be made by hand: counts of the letters and digits, of unit length."""

    ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            rows.append([text.lower().count(character) + 1e-3 for character in self.ALPHABET])
        counts = np.array(rows, dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def build(name: str, model: Any, **options: Any) -> Any:
    """A reward without gates, which have tests of their own."""
    if name in EMBEDDING:
        return EMBEDDING[name](model, Letters(), TEXTS, **options)  # type: ignore[arg-type]
    return make_reward(name, model, POOL, gates=False, effects=effects_of, **options)


def value(score: Score) -> float:
    assert score.value is not None, score
    return score.value
