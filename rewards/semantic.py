"""The reward `semantic`: the candidates of a task are clustered by meaning, and the largest cluster wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from envs.types import Reward, Score, Task
from rewards.base import EMPTY, Ingredients, grouped, pairs_of
from rewards.embedding import corrected, embedder_of
from rewards.reconstruction import NO_RECONSTRUCTION, Embedding

if TYPE_CHECKING:
    import numpy as np

SAME = 0.5  # on the scale of `similarity`: 0 is the nearest other task, 1 the same words


def semantic(given: Ingredients) -> Reward:
    """Makes the reward `semantic`; InputError for an unknown embedder, or too few tasks in the pool."""
    pool = [task.text for task in given.pool]
    temperature = given.inverse_temperature
    return Semantic(given.model, embedder_of(given), pool, inverter=given.inverter, temperature=temperature)


def clusters(vectors: np.ndarray, floor: float) -> list[int]:
    """The cluster of each of G unit vectors, shape (G, width): numbers in the order in which they appear.

    Greedy, as for semantic entropy (Kuhn et al. 2023, arXiv:2302.09664): a vector joins the first cluster
    whose first member it is as close to as `SAME`, else it begins one.

    Args:
        floor: the cosine that is the zero of the scale.
    """
    firsts: list[int] = []
    found = []
    for row in range(len(vectors)):
        for number, first in enumerate(firsts):
            if corrected(float(vectors[row] @ vectors[first]), floor) >= SAME:
                found.append(number)
                break
        else:
            found.append(len(firsts))
            firsts.append(row)
    return found


class Semantic(Embedding):
    """The share of the task's candidates that mean the same: the size of the candidate's cluster.

    This is the reward of EMPO (Zhang et al. 2025, arXiv:2504.05812), the probability of an answer's meaning,
    which minimises semantic entropy. The paper clusters the answers: by their values in maths, else by a
    model of entailment. An embedder of sentences does not know what a command means, so what is clustered
    here is its reconstruction, which is a sentence. The paper leaves out tasks of very high or low entropy;
    for that see `--redraw`.

    In [0, 1]. A single wrong value hardly moves an embedding, so commands that differ in one often share a
    cluster. Abstains where the command or its reconstruction is empty.
    """

    name = "semantic"

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction. ValueError for a group of one."""
        pairs = pairs_of(tasks_P, commands_P_G)
        if any(len(commands) == 1 for commands in commands_P_G):
            raise ValueError("the reward semantic needs two or more candidates of a task")
        if not pairs:
            return grouped([], commands_P_G)
        with self.model.inverter(self.inverter):
            texts = self._reconstructions(pairs, seed)
        vectors = self.embedder(texts)
        scores_P_G = []
        start = 0
        for commands in commands_P_G:
            end = start + len(commands)
            scores_P_G.append(self._shares(commands, texts[start:end], vectors[start:end]))
            start = end
        return scores_P_G

    def _shares(self, commands: Sequence[str], texts: Sequence[str], vectors: np.ndarray) -> list[Score]:
        readable = [row for row, text in enumerate(texts) if text.strip()]
        cluster_of = dict(zip(readable, clusters(vectors[readable], self.floor), strict=True))
        sizes = Counter(cluster_of.values())
        scores = []
        for row, (command, text) in enumerate(zip(commands, texts, strict=True)):
            if not command.strip():
                scores.append(EMPTY)
            elif row not in cluster_of:
                scores.append(NO_RECONSTRUCTION)
            else:
                share = sizes[cluster_of[row]] / len(commands)
                scores.append(Score(share, {"clusters": float(len(sizes))}, text))
        return scores
