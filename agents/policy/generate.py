"""Batched generation: answers, each with the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from agents.policy import prefix
from agents.policy.batches import Batches
from agents.policy.seeds import seeded
from agents.policy.tokens import EndOfLine, Tokens
from envs.types import Completion, Prompt

STEPS = 12  # tokens of an answer after which rows that have ended leave the batch


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_k: only among so many of the likeliest tokens; 0 takes all.
        top_p: only among the likeliest tokens that together have this probability; 1 takes all.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


Row = tuple[list[int], str]  # token ids of a prompt, and the start of its answer


class Generator:
    """Writes completions with a causal language model.

    Args:
        model: the PEFT model, in evaluation mode whenever this is called.
        tokens: its tokenizer.
        batches: how many rows are decoded together.

    Attributes:
        reads_ahead: whether a prompt is read once for all its completions. Not every model allows it.
        window: how many tokens back the model sees in every layer; infinite where nothing limits it.
    """

    def __init__(self, model: Any, tokens: Tokens, batches: Batches) -> None:
        self.model, self.tokens, self.batches = model, tokens, batches
        self.reads_ahead = prefix.reads_ahead(model)
        self.window = prefix.window(model)
        model.get_output_embeddings().register_forward_pre_hook(_in_one_piece)

    def sample(
        self, prompts: Sequence[str | Prompt], n: int, sampling: Sampling, max_new_tokens: int, seed: int
    ) -> list[list[Completion]]:
        """Draws `n` completions of each of P prompts -> [P][n]. With temperature 0 all `n` are the same."""
        rows: list[Row] = []
        for prompt, ids in zip(prompts, self.tokens.of_prompts(prompts), strict=True):
            rows += [(ids, self.tokens.prefill_of(prompt))] * n

        def decode(batch: Sequence[Row], first: int) -> list[Completion]:
            with seeded("generate", seed, first):
                written = self._decode([ids for ids, _ in batch], sampling, max_new_tokens)
            completions = []
            for (ids, logprobs), (_, prefill) in zip(written, batch, strict=True):
                completions.append(self.tokens.completion(ids, logprobs, prefill))
            return completions

        completions = self.batches.longest_first(rows, _prompt_length, decode)
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def greedy(self, prompts: Sequence[str | Prompt], max_new_tokens: int) -> list[Completion]:
        """The most likely token at every step -> [P] completions. Equal prompts are decoded once."""
        distinct = list(dict.fromkeys(reversed(prompts)))
        distinct.reverse()
        completions = self.sample(distinct, 1, Sampling(0.0), max_new_tokens, seed=0)
        by_prompt = dict(zip(distinct, completions, strict=True))
        return [by_prompt[prompt][0] for prompt in prompts]

    def _decode(
        self, prompts_B: Sequence[list[int]], sampling: Sampling, max_new_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """One batch of B rows, each begun by a prompt's token ids -> the tokens after it, with logprobs."""
        prefix.check_room(self.model, max(map(len, prompts_B)), max_new_tokens)
        distinct = list(dict.fromkeys(map(tuple, prompts_B)))
        row_of = {prompt: row for row, prompt in enumerate(distinct)}
        of_row_B = torch.tensor([row_of[tuple(prompt)] for prompt in prompts_B], device=self.tokens.device)
        before = prefix.common(distinct) if self.reads_ahead else 0
        # A window that slides counts the padding in the middle: a prompt would lose its beginning.
        if max(map(len, distinct)) + max_new_tokens > self.window:
            before = 0
        inputs_U_W, mask_U_W = self._padded(distinct, before)
        cache = self._read_ahead(inputs_U_W, mask_U_W, of_row_B, before)
        if cache is None and before:
            inputs_U_W, mask_U_W = self._padded(distinct, 0)

        inputs_B_W, mask_B_W = inputs_U_W[of_row_B], mask_U_W[of_row_B]
        written: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts_B]
        going = list(range(len(prompts_B)))
        # Answers of one line are about equally long, and not every cache has rows that can be chosen.
        at_once = max_new_tokens if self.tokens.one_line or cache is None else STEPS
        for done in range(0, max_new_tokens, at_once):
            steps = min(at_once, max_new_tokens - done)
            output, logprobs_B_T = self._steps(inputs_B_W, mask_B_W, cache, sampling, steps)
            tokens_B_T = output.sequences[:, inputs_B_W.shape[1] :]
            kept = []
            for place, row in enumerate(going):
                ids, logprobs = written[row]
                ids += tokens_B_T[place].tolist()
                logprobs += logprobs_B_T[place].tolist()
                if not self.tokens.has_ended(ids):
                    kept.append(place)
            if not kept or done + steps == max_new_tokens:
                break
            going = [going[place] for place in kept]
            mask_B_W = torch.cat([mask_B_W, torch.ones_like(tokens_B_T)], dim=1)[kept]
            inputs_B_W, cache = output.sequences[kept], output.past_key_values
            cache.batch_select_indices(torch.tensor(kept, device=self.tokens.device))
        return written

    def _steps(
        self, inputs_B_W: Tensor, mask_B_W: Tensor, cache: Any, sampling: Sampling, steps: int
    ) -> tuple[Any, Tensor]:
        """Up to `steps` more tokens of each row -> what transformers returns, and their logprobs (B, T)."""
        logits = LastLogits()
        chosen = ChosenLogprobs(logits)
        stops: list[StoppingCriteria] = [chosen]
        if self.tokens.one_line:
            stops.append(EndOfLine(self.tokens, start=inputs_B_W.shape[1]))
        already_read = {} if cache is None else {"past_key_values": cache}
        output: Any = self.model.generate(
            input_ids=inputs_B_W,
            attention_mask=mask_B_W,
            generation_config=self._settings(sampling, steps),
            logits_processor=LogitsProcessorList([logits]),
            stopping_criteria=StoppingCriteriaList(stops),
            **already_read,
        )
        return output, torch.stack(chosen.logprobs_T_B, dim=1)

    def _padded(self, rows: Sequence[tuple[int, ...]], before: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask. All completions begin in the same column.

        Padding is on the left, or after the first `before` tokens, which all rows have in common.
        """
        width = max(map(len, rows))
        inputs = torch.full((len(rows), width), self.tokens.pad, device=self.tokens.device)
        mask = torch.zeros_like(inputs)
        for row, ids in enumerate(rows):
            start = width - (len(ids) - before)
            tokens = torch.tensor(ids, device=self.tokens.device)
            inputs[row, :before], inputs[row, start:] = tokens[:before], tokens[before:]
            mask[row, :before] = 1
            mask[row, start:] = 1
        return inputs, mask

    def _settings(self, sampling: Sampling, max_new_tokens: int) -> GenerationConfig:
        # By default from the whole distribution: only then do log-probabilities belong to what was drawn.
        drawn = {"do_sample": sampling.temperature > 0, **asdict(sampling)}
        if sampling.temperature == 0:
            drawn = {"do_sample": False}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokens.pad,
            eos_token_id=sorted(self.tokens.eos),
            return_dict_in_generate=True,
            **drawn,
        )

    def _read_ahead(self, inputs_U_W: Tensor, mask_U_W: Tensor, of_row_B: Tensor, before: int) -> Any:
        """Reads what prompts begin with once, and each prompt once, however many completions it gets.

        Args:
            inputs_U_W, mask_U_W: U different prompts, padded. All but the last token of each is read where
                there are more rows than prompts.
            of_row_B: which of them each row of the batch begins with.
            before: how many tokens they have in common.

        Returns:
            keys and values for the rows of the batch; None where nothing is gained, or the model does not
            allow it.
        """
        prompts, width = inputs_U_W.shape
        several = prompts < len(of_row_B)
        if not self.reads_ahead or width < 2 or not (before or several):
            return None
        positions = (mask_U_W.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            cache: Any = None
            if before:
                cache = prefix.read(self.model, inputs_U_W[0, :before].tolist(), prompts)
            if several and before < width - 1:
                cache = self.model(
                    input_ids=inputs_U_W[:, before:-1],
                    attention_mask=mask_U_W[:, :-1],
                    position_ids=positions[:, before:-1],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).past_key_values
        if not prefix.has_rows(cache):
            self.reads_ahead = False
            return None
        cache.batch_select_indices(of_row_B)
        return cache


def _in_one_piece(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hidden states copied, if they are a view: else PyTorch copies the embeddings for each row."""
    states, *others = inputs
    return (states.contiguous(), *others)


def _prompt_length(row: Row) -> int:
    return len(row[0])


class LastLogits(LogitsProcessor):
    """Holds the logits of the current step, as they are before the temperature: (B, V)."""

    def __init__(self) -> None:
        self.logits_B_V: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits_B_V = scores
        return scores


class ChosenLogprobs(StoppingCriteria):
    """Gathers the log-probability of each token when it is chosen, and stops nothing.

    The logits of all steps together would take T times the memory: 8 GB for 128 rows of 64 tokens and a
    vocabulary of 262144.

    Attributes:
        logprobs_T_B: one tensor (B,) for each step.
    """

    def __init__(self, last: LastLogits) -> None:
        self.last = last
        self.logprobs_T_B: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        assert self.last.logits_B_V is not None
        logprobs_B_V = self.last.logits_B_V.log_softmax(-1)
        self.logprobs_T_B.append(logprobs_B_V.gather(1, input_ids[:, -1:])[:, 0])
        self.last.logits_B_V = None
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
