"""The policy: any Hugging Face causal language model with one LoRA adapter, and all that is asked of it.

How it writes is in generate.py, how it scores text in score.py, its weights in adapter.py, and what tokens
mean in tokens.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from agents.policy import adapter, score
from agents.policy.adapter import Snapshot
from agents.policy.batches import Batches
from agents.policy.compute import Compute
from agents.policy.generate import Generator, Sampling
from agents.policy.labels import write_labels
from agents.policy.score import Pair
from agents.policy.tokens import Tokens
from agents.policy.usage import Usage
from envs.types import Completion, InputError, Prompt

# Decay of the averaged adapter per training phase: the last three phases are half of the average.
EMA = 0.8
BATCH_SIZE = 128  # sequences that are written or scored together, to begin with


class Policy:
    """A causal language model with one LoRA adapter named `default`.

    Args:
        model: the PEFT model.
        tokenizer: its tokenizer; its chat template is used where it has one.
        batch_size: sequences in one forward pass, halved from then on whenever memory runs out.
        compute: with which numbers and threads the model computes.
        chat_options: variables of the chat template.

    Attributes:
        ema: exponential moving average of the adapter's weights, for the inverter `ema`, or None.
        start: the adapter with which the run began; None where it began with the base model.
        labels: how many labels its weights have consumed, those of the base model included.
        usage: what was asked of it.
        tokens: what the tokenizer's tokens mean.
        generator: writes completions.
        writing, scoring, training: how many sequences go through the model together.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Any,
        batch_size: int = BATCH_SIZE,
        compute: Compute | None = None,
        chat_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.compute = compute or Compute(str(model.dtype).removeprefix("torch."), torch.get_num_threads())
        self.tokenizer = tokenizer
        self.ema: Snapshot | None = None
        self.start: Snapshot | None = None
        self.labels = 0
        self.usage = Usage()
        self.device = next(model.parameters()).device
        self.writing = Batches(batch_size, "writing")
        self.scoring = Batches(batch_size, "scoring")
        self.training = Batches(batch_size, "training")
        eos = model.generation_config.eos_token_id
        size = model.config.get_text_config().vocab_size
        self.tokens = Tokens(tokenizer, size, eos, self.device, chat_options)
        self.generator = Generator(model, self.tokens, self.writing)
        # Many models come with a repetition penalty and the like, with which samples do not follow the
        # log-probabilities.
        model.generation_config = GenerationConfig()
        model.eval()

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Those of writing, scoring and training, which get smaller where memory runs out."""
        return {batches.what: batches.size for batches in (self.writing, self.scoring, self.training)}

    @batch_sizes.setter
    def batch_sizes(self, sizes: Mapping[str, int]) -> None:
        for batches in (self.writing, self.scoring, self.training):
            batches.size = sizes.get(batches.what, batches.size)

    @property
    def pad(self) -> int:
        """Token id that fills up the rows of a batch."""
        return int(self.tokens.pad)

    @property
    def ends(self) -> frozenset[int]:
        """Token ids that end an answer that others generate."""
        return self.tokens.ends

    @property
    def end(self) -> list[int]:
        """Token ids that are trained after an answer: those that the chat template writes there."""
        return self.tokens.end

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass, to save memory."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())

    def prompt_ids(self, prompts: Sequence[str | Prompt]) -> list[list[int]]:
        """Token ids of each prompt, ready for a completion to follow."""
        return self.tokens.of_prompts(prompts)

    def completion_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it would follow a prompt, without the token that ends it."""
        return self.tokens.of_completions(texts)

    def answer_ids(self, prompts: Sequence[str | Prompt], answers: Sequence[str]) -> list[list[int]]:
        """The same for answers, of which the prompt may hold the beginning already (`--prefill`)."""
        rests = []
        for prompt, answer in zip(prompts, answers, strict=True):
            rests.append(self.tokens.after_prefill(prompt, answer))
        return self.completion_ids(rests)

    def completion(self, ids: list[int], logprobs: list[float], prompt: str | Prompt = "") -> Completion:
        """Token ids that were generated after a prompt, and their log-probabilities -> the answer."""
        return self.tokens.completion(ids, logprobs, self.tokens.prefill_of(prompt))

    # ---- writing ----

    def generate(
        self,
        prompts: Sequence[str | Prompt],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[Completion]]:
        """Writes `n` answers to each of P prompts. Samples depend on `seed` alone.

        Log-probabilities are always those of the whole distribution, `top_k` and `top_p` (see `Sampling`)
        or not.

        An answer is the model's whole turn. Models without a chat template, and the embedded one, answer in
        one line: it ends at a line feed, and blank lines before it are skipped. With temperature 0 (greedy)
        all answers to a prompt are the same.

        Returns:
            [P][n] completions.
        """
        if n < 1:
            return [[] for _ in prompts]
        self.usage.asked(prompts)
        with self._evaluating():
            if temperature > 0:
                sampling = Sampling(temperature, top_k, top_p)
                written = self.generator.sample(prompts, n, sampling, max_new_tokens, seed)
            else:
                greedy = self.generator.greedy(prompts, max_new_tokens)
                written = [[completion] * n for completion in greedy]
        self.usage.wrote([len(completion.token_ids) for row in written for completion in row])
        return written

    # ---- scoring ----

    def logprobs(self, prompts: Sequence[str | Prompt], continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of each token of each continuation after its prompt -> [P][T_p].

        What the prompt holds of a continuation already, by its prefill, is not counted.
        """
        self.usage.asked(prompts)
        return self.logprobs_of_ids(self._pairs(prompts, continuations))

    def logprobs_of_ids(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """The same for (prompt ids, completion ids)."""
        self._count(pairs)
        with self._evaluating():
            return score.logprobs(self.model, pairs, self.pad, self.scoring)

    def entropies(
        self, prompts: Sequence[str | Prompt], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        """Mean entropy and self-certainty (nats) along each continuation -> [P]; None for an empty one."""
        pairs = self._pairs(prompts, continuations)
        self._count(pairs)
        with self._evaluating():
            return score.entropies(self.model, pairs, self.pad, self.scoring)

    def entropy_and_kl(self, pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
        """Mean entropy and mean KL to the base model, nats, over all completion tokens, or None"""
        with self._evaluating():
            return score.entropy_and_kl(self.model, pairs, self.pad, self.scoring)

    def token_logprobs(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Log-probabilities with gradients, for losses.

        Args:
            pairs: (prompt ids, completion ids) of B sequences.

        Returns:
            logprobs_B_T and a Boolean mask_B_T, True at completion tokens; T is the longest sequence minus 1.
        """
        return score.token_logprobs(self.model, pairs, self.pad)

    def token_logits(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 logits (N, V) of all completion tokens, these tokens (N,), and mask_B_T."""
        return score.token_logits(self.model, pairs, self.pad)

    # ---- the adapter ----

    def adapter(self, which: Literal["on", "off"] | Snapshot) -> contextlib.AbstractContextManager[None]:
        """Context with the adapter `on` (as it is), `off` (the base model), or with a snapshot's weights."""
        return adapter.using(self.model, which)

    def inverter(self, which: str) -> contextlib.AbstractContextManager[None]:
        """Context with the weights that reconstruct tasks.

        `current`: the policy as it trains. `base`: the adapter off. `ema`: its average, if one is kept.
        `start`: the policy as the run began.
        """
        if which not in ("current", "base", "ema", "start"):
            raise InputError(f"--inverter {which}: use current, base or ema")
        if which == "start" and self.start is not None:
            return self.adapter(self.start)
        if which in ("base", "start"):
            return self.adapter("off")
        if which == "ema" and self.ema is not None:
            return self.adapter(self.ema)
        return self.adapter("on")

    def update_ema(self, decay: float) -> None:
        """average = decay * average + (1 - decay) * weights. The average starts at the weights."""
        now = self.snapshot()
        self.ema = now if self.ema is None else adapter.moved_average(self.ema, now, decay)

    def snapshot(self) -> Snapshot:
        """A copy of the adapter's weights."""
        return adapter.snapshot(self.model)

    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot's weights back; ValueError if it is of another adapter."""
        adapter.restore(self.model, snapshot)

    def save(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format, its average where one is kept, and its count of labels."""
        adapter.save(self.model, self.ema, folder)
        write_labels(folder, self.labels)

    def save_merged(self, folder: Path) -> None:
        """Writes a model that needs no adapter any more, with its count of labels. Ends the policy's use."""
        merged: Any = self.model.merge_and_unload()
        ends = sorted(self.tokens.eos)
        merged.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self.pad)
        merged.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))
        write_labels(folder, self.labels)

    def load(self, folder: Path) -> None:
        """Loads a PEFT adapter's folder, with its average if there is one. The adapter stays trainable.

        Raises:
            InputError: what is wrong with the folder, in one line.
        """
        self.ema = adapter.load(self.model, folder)

    def load_start(self, folder: Path) -> None:
        """Reads the adapter with which the run began, and leaves the adapter in use alone.

        Raises:
            InputError: what is wrong with the folder, in one line.
        """
        self.start = adapter.read(self.model, folder)

    def adapter_hash(self) -> str:
        """sha256 of the adapter's weights: equal hashes, equal weights."""
        return adapter.weights_hash(self.model)

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _pairs(self, prompts: Sequence[str | Prompt], continuations: Sequence[str]) -> list[Pair]:
        return list(zip(self.prompt_ids(prompts), self.answer_ids(prompts, continuations), strict=True))

    def _count(self, pairs: Sequence[Pair]) -> None:
        self.usage.scored(sum(len(prompt) + len(continuation) for prompt, continuation in pairs))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, whatever mode the model was in."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
