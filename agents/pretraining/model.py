"""A small model before it is trained: its tokenizer, its random weights, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from envs.streams import stream

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TOKENIZER_EXAMPLES = 20_000  # the tokenizer is made from the first of them
WINDOW = 16  # batches that are sorted by length together


class Examples(Protocol):
    """What the tokenizer and the batches are made from."""

    def example(self, index: int) -> tuple[str, str]:
        """The `index`-th (prompt, completion)."""
        ...


def make_tokenizer(corpus: Examples, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on the first examples."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>", "<pad>", "[INST]", "[/INST]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_texts(corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        one_line_answers=True,  # for `agents.policy.tokens`: it was trained on the domains' prompts alone
    )


def _texts(corpus: Examples) -> Iterator[str]:
    for index in range(TOKENIZER_EXAMPLES):
        yield from corpus.example(index)


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, seed: int) -> Any:
    """A small model of Mistral's architecture with random weights."""
    torch.manual_seed(seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=int(hidden * 2.5),
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # On a CPU the fused attention spends half of the time in its backward pass.
    model.set_attn_implementation("eager")
    return model


def batches(
    corpus: Examples, tokenizer: PreTrainedTokenizerFast, examples: int, size: int, seed: int, digest: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input ids, labels) of `size` examples each, sorted by length within a window, which saves padding.

    Args:
        digest: a hash that every example is added to.
    """
    window = size * WINDOW
    for start in range(0, examples, window):
        pairs = [corpus.example(index) for index in range(start, min(start + window, examples))]
        for prompt, completion in pairs:
            digest.update(f"{prompt}\0{completion}\n".encode())
        rows = _tokenized(pairs, tokenizer)
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[first : first + size] for first in range(0, len(rows), size)]
        stream("batches", seed, start).shuffle(groups)
        for group in groups:
            yield _padded(group, tokenizer.pad_token_id)


def _tokenized(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[list[int], int]]:
    """(token ids of prompt, completion and end of sequence; length of the prompt) for each example."""
    prompts, completions = [], []
    for prompt, completion in pairs:
        message = [{"role": "user", "content": prompt}]
        prompts.append(tokenizer.apply_chat_template(message, tokenize=False))
        completions.append(completion)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    completion_ids = tokenizer(completions, add_special_tokens=False)["input_ids"]
    rows = []
    for before, after in zip(prompt_ids, completion_ids, strict=True):
        rows.append(([*before, *after, tokenizer.eos_token_id], len(before)))
    return rows


def _padded(rows: Sequence[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """(input ids, labels), padded on the right; only completion tokens have labels."""
    width = max(len(tokens) for tokens, _ in rows)
    inputs = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    for row, (tokens, prompt_length) in enumerate(rows):
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt_length : len(tokens)] = torch.tensor(tokens[prompt_length:])
    return inputs, labels


def completion_loss(model: Any, inputs: Tensor, labels: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy of the completion tokens, in nats."""
    wanted = labels[:, 1:] != -100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(input_ids=inputs, attention_mask=inputs != pad).last_hidden_state
        logits = model.lm_head(states[:, :-1][wanted])  # prompts are not trained on: no need for their logits
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
