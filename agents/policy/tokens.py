"""Between text and tokens: prompts in the chat template, and the one line that a completion is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from envs.types import Completion


class Tokens:
    """A tokenizer, and what each of its tokens means for a one-line completion.

    Args:
        tokenizer: of the model; its chat template is used where it has one.
        size: rows of the model's embedding, which may be more than the tokenizer has tokens.
        eos: the model's own end-of-sequence tokens, next to the tokenizer's.
        device: where the model is.

    Attributes:
        texts: what each token writes alone; nothing for special tokens.
        eos: token ids that end a sequence.
        pad: token id that fills up the rows of a batch.
    """

    def __init__(self, tokenizer: Any, size: int, eos: int | list[int] | None, device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.device = device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        own_eos = eos if isinstance(eos, list) else [eos]
        self.eos = {tokenizer.eos_token_id, *own_eos} - {None}
        single_tokens = [[token] for token in range(len(tokenizer))]
        self.texts: list[str] = tokenizer.batch_decode(single_tokens, skip_special_tokens=True)
        self.texts += [""] * (size - len(self.texts))
        # For `EndOfLine`, which looks tokens up at every step: what a token writes, as true or false.
        self.visible = self._where([bool(text.strip()) for text in self.texts])
        self.line_feed = self._where(["\n" in text for text in self.texts])
        self.ends_own_line = self._where(["\n" in text.lstrip() for text in self.texts])

    def _where(self, values: list[bool]) -> Tensor:
        return torch.tensor(values, device=self.device)

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Token ids that end a completion that others generate: end of sequence, or any with a line feed."""
        with_line_feed = {token for token, text in enumerate(self.texts) if "\n" in text}
        return frozenset(self.eos | with_line_feed)

    def of_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, ready for a completion to follow.

        The prompt is a user's message in the chat template. Without a template, a line feed ends it.
        """
        if not prompts:
            return []
        if not self.tokenizer.chat_template:
            return list(self.tokenizer([prompt + "\n" for prompt in prompts])["input_ids"])
        texts = []
        for prompt in prompts:
            message = [{"role": "user", "content": prompt}]
            texts.append(
                self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            )
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def of_completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it would follow a prompt, without an end-of-sequence token."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        """Generated token ids and their log-probabilities -> the completion: its first line with text."""
        length, truncated = self._first_line(ids)
        ids, logprobs = ids[:length], logprobs[:length]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        line = text.strip().split("\n")[0].strip()
        return Completion(line, tuple(ids), tuple(logprobs), truncated)

    def _first_line(self, ids: list[int]) -> tuple[int, bool]:
        """How many tokens the first line with text takes, and whether it was cut before its end."""
        begun = False  # whether something visible was written
        for position, token in enumerate(ids):
            if token in self.eos:
                return position, False
            text = self.texts[token] if begun else self.texts[token].lstrip()
            if "\n" in text:
                # A token such as `)\n` writes a part of the line that it ends.
                belongs_to_line = text.split("\n")[0].strip() != ""
                return position + belongs_to_line, False
            begun = begun or text.strip() != ""
        return len(ids), True


class EndOfLine(StoppingCriteria):
    """Ends each row at the first line feed after something visible. One token may hold both, as `)\\n` does.

    Args:
        tokens: says what each token writes.
        start: position at which the completions begin.
    """

    def __init__(self, tokens: Tokens, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        last = input_ids[:, -1]
        begun = self.tokens.visible[input_ids[:, self.start : -1]].any(dim=1)
        return self.tokens.ends_own_line[last] | (self.tokens.line_feed[last] & begun)
