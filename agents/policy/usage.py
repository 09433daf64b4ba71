"""What a run consumes beside its tasks. The policy counts it, whichever trainer or reward asks.

Evaluation on held-out tasks, and what only watches a run, are left out: nothing is learnt from these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from envs.types import Prompt

JUDGED = ("judge", "rate")  # kinds of prompts that ask for an opinion of a command


@dataclass
class Usage:
    """Counters of one run, over all its cycles.

    Attributes:
        preferences: labelled preferences: of two commands, which one is better.
        judge_calls: prompts that asked a model for its opinion of a command.
        answers: those that were written, of any kind: commands, reconstructions, revisions.
        tokens_written: tokens of these.
        tokens_scored: tokens of prompts and continuations whose probability was computed.
        models: other models that were loaded: name -> parameters.
    """

    preferences: int = 0
    judge_calls: int = 0
    answers: int = 0
    tokens_written: int = 0
    tokens_scored: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopped = 0

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Context in which nothing is counted."""
        self._stopped += 1
        try:
            yield
        finally:
            self._stopped -= 1

    def wrote(self, lengths: Sequence[int]) -> None:
        """Answers were written, of so many tokens each."""
        if not self._stopped:
            self.answers += len(lengths)
            self.tokens_written += sum(lengths)

    def scored(self, tokens: int) -> None:
        """The probabilities of some tokens were computed, their prompts included."""
        if not self._stopped:
            self.tokens_scored += tokens

    def asked(self, prompts: Sequence[str | Prompt]) -> None:
        """A model was asked something; opinions of commands are counted, each prompt once."""
        if self._stopped:
            return
        for prompt in set(prompts):
            if isinstance(prompt, Prompt) and prompt.kind in JUDGED:
                self.judge_calls += 1
