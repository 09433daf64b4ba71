"""Between text and tokens: prompts as the model knows them, and where its answer ends.

There are three kinds of model:

- With a chat template, an answer is the model's whole turn.
- A base model has no template. It reads the prompt as text, with a cue at its end, and answers in one line.
- The embedded model and its kin were trained on the domains' prompts, so their tokenizers have the mark
  `one_line_answers`. They answer in one line and are told no system message: they know their domains.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from agents.policy.chat import Chat, control_tokens
from envs.types import Completion, Prompt

# (domain, kind) -> what was asked and answered, to stand before a prompt of that kind.
Shots = Mapping[tuple[str, str], Sequence[tuple[str, str]]]


class Tokens:
    """A tokenizer, and what each of its tokens means for an answer.

    Args:
        tokenizer: of the model; its chat template is used where it has one.
        size: rows of the model's embedding, which may be more than the tokenizer has tokens.
        eos: the model's own end-of-sequence tokens, next to the tokenizer's.
        device: where the model is.
        options: variables of the chat template, from `--chat-template-kwargs`.

    Attributes:
        chat: the chat template; None for a base model.
        one_line: whether an answer ends with its first line.
        shots: examples that stand before prompts.
        prefill: how every command begins, in place of the domain's own prefill; None for the domain's.
        texts: what each token writes alone; nothing for special tokens.
        end: token ids that are trained after an answer.
        eos: token ids that end an answer.
        pad: token id that fills up the rows of a batch.
    """

    def __init__(
        self,
        tokenizer: Any,
        size: int,
        eos: int | list[int] | None,
        device: torch.device,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.device = device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.chat = Chat(tokenizer, options) if tokenizer.chat_template else None
        self.knows_domains = bool(tokenizer.init_kwargs.get("one_line_answers", False))
        self.one_line = self.chat is None or self.knows_domains
        self.shots: Shots = {}
        self.prefill: str | None = None
        self.end = [int(tokenizer.eos_token_id)] if self.chat is None else self.chat.end
        own_eos = eos if isinstance(eos, list) else [eos]
        self.eos = {tokenizer.eos_token_id, *own_eos, self.end[-1]} - {None}
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
        """Token ids that end an answer that others generate; of one line, any with a line feed too."""
        if not self.one_line:
            return frozenset(self.eos)
        with_line_feed = {token for token, text in enumerate(self.texts) if "\n" in text}
        return frozenset(self.eos | with_line_feed)

    def of_prompts(self, prompts: Sequence[str | Prompt]) -> list[list[int]]:
        """Token ids of each prompt, ready for an answer to follow."""
        if not prompts:
            return []
        asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if self.chat is None:
            return self._encoded([self.as_text(prompt) for prompt in asked], special=True)
        conversations = []
        for prompt in asked:
            conversations.append(self.chat.messages(prompt.text, self._system(prompt), self._shots(prompt)))
        return self.chat.prompt_ids(conversations, [self.prefill_of(prompt) for prompt in asked])

    def prefill_of(self, prompt: str | Prompt) -> str:
        """How the answer to a prompt begins, which the model does not write itself."""
        if isinstance(prompt, str) or prompt.kind != "forward":
            return ""
        return prompt.prefill if self.prefill is None else self.prefill

    def after_prefill(self, prompt: str | Prompt, answer: str) -> str:
        """An answer as it follows its prompt, which holds already what the answer is begun with."""
        return answer.removeprefix(self.prefill_of(prompt))

    def as_text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it."""
        if self.chat is not None:
            messages = self.chat.messages(prompt.text, self._system(prompt), self._shots(prompt))
            return self.chat.render(messages) + self.chat.opening + self.prefill_of(prompt)
        # Only a prompt about a domain says what kind of answer it wants.
        cue = f"\n{prompt.cue}\n" if prompt.domain else "\n"
        parts = [f"{asked}{cue}{answered}\n\n" for asked, answered in self._shots(prompt)]
        if prompt.system:
            parts.insert(0, f"{prompt.system}\n\n")
        return "".join(parts) + prompt.text + cue + self.prefill_of(prompt)

    def of_completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it would follow a prompt, without the token that ends it."""
        return self._encoded(texts, special=False) if texts else []

    def completion(self, ids: list[int], logprobs: list[float], prefill: str = "") -> Completion:
        """Generated token ids and their log-probabilities -> the answer, with what it was begun with."""
        length, truncated = self._length(ids)
        ids, logprobs = ids[:length], logprobs[:length]
        # Control tokens inside a turn stay visible: they tell a thought from an answer.
        text = self.tokenizer.decode(
            ids, skip_special_tokens=self.one_line, clean_up_tokenization_spaces=False
        )
        answer = (prefill + text).strip()
        if self.one_line:
            answer = answer.split("\n")[0].strip()
        return Completion(answer, tuple(ids), tuple(logprobs), truncated)

    def _system(self, prompt: Prompt) -> str:
        return "" if self.knows_domains else prompt.system

    def _shots(self, prompt: Prompt) -> Sequence[tuple[str, str]]:
        return self.shots.get((prompt.domain, prompt.kind), ())

    def _encoded(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Token ids of texts, in which control tokens are text; with `special`, after what begins a text."""
        rows: list[list[int]] = list(self.tokenizer(list(texts), add_special_tokens=special)["input_ids"])
        control = self._control
        for place, text in enumerate(texts):
            if any(token in text for token in control):
                apart = self.tokenizer(text, add_special_tokens=special, split_special_tokens=True)
                rows[place] = list(apart["input_ids"])
        return rows

    @functools.cached_property
    def _control(self) -> list[str]:
        return control_tokens(self.tokenizer)

    def has_ended(self, ids: list[int]) -> bool:
        """Whether generated token ids hold the end of the answer."""
        return not self._length(ids)[1]

    def _length(self, ids: list[int]) -> tuple[int, bool]:
        """How many tokens the answer takes, and whether it was cut before its end."""
        if self.one_line:
            return self._first_line(ids)
        for position, token in enumerate(ids):
            if token in self.eos:
                return position, False
        return len(ids), True

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
