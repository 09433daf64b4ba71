"""Log-probabilities: by hand, in any batch, with gradients for losses alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROMPTS, close, ids_of, save_model, stir

from agents.policy import prefix, score
from agents.policy.load import load_policy
from agents.policy.policy import Policy


def by_hand(policy: Policy, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.no_grad():
        ids = torch.tensor([prompt + completion], device=policy.device)
        logits = policy.model(input_ids=ids).logits[0].float()
    table = logits.log_softmax(-1)
    return [float(table[len(prompt) - 1 + step, token]) for step, token in enumerate(completion)]


def test_logprobs_by_hand_in_any_batch(policy: Policy) -> None:
    texts = ["ls -a docs", "", "find . -name x | wc -l", "é", "ls"]
    for batch_size in (128, 2, 1):
        policy.scoring.size = batch_size
        values = policy.logprobs(PROMPTS, texts)
        for prompt, text, row in zip(
            policy.prompt_ids(PROMPTS), policy.completion_ids(texts), values, strict=True
        ):
            assert len(row) == len(text) and close(row, by_hand(policy, prompt, text))
    assert values[1] == [] and all(value < 0 for row in values for value in row)
    assert policy.logprobs(["a", "b"], ["", ""]) == [[], []]


def test_a_common_beginning_is_read_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    same = "list the files of a folder and count them. " * 4
    prompts = [same + prompt for prompt in PROMPTS]
    texts = ["ls -a docs", "", "find . -name x | wc -l", "é", "ls"]
    pairs = list(zip(policy.prompt_ids(prompts), policy.completion_ids(texts), strict=True))
    stir(policy)
    widths: list[int] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        widths.append(given["input_ids"].shape[1])

    with policy.model.register_forward_pre_hook(note, with_kwargs=True):
        values, entropies = policy.logprobs(prompts, texts), policy.entropies(prompts, texts)
        means = policy.entropy_and_kl(pairs)
        shared = widths.copy()
        monkeypatch.setattr(prefix, "WORTH_IT", 10**6)
        widths.clear()
        wholly, apart = policy.logprobs(prompts, texts), policy.entropies(prompts, texts)
        assert close(list(means), list(policy.entropy_and_kl(pairs)))
    for row, other in zip(values, wholly, strict=True):
        assert close(row, other)
    for pair, others in zip(entropies, apart, strict=True):
        assert (pair is None and others is None) or close(list(pair or ()), list(others or ()))
    # A pass over the beginning, and one over the rest, that together are as long as the whole.
    assert shared[0] > 50 and shared[0] + shared[1] == widths[0]
    assert len(shared) == 2 * len(widths)


def test_what_prompts_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "WORTH_IT", 2)
    assert prefix.common([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4, 5]]) == 3
    assert prefix.common([[1, 2, 3], [1, 2, 3]]) == 2  # the last token predicts the completion
    assert prefix.common([[1, 2, 3], [1, 3, 3]]) == 0
    assert prefix.common([[1, 2, 3]]) == 0


def test_as_many_continuations_as_prompts(policy: Policy) -> None:
    with pytest.raises(ValueError):
        policy.logprobs(["a", "b"], ["c"])


def test_only_losses_have_gradients(policy: Policy) -> None:
    pairs = [
        (policy.prompt_ids(["x"])[0], ids_of(policy, "ls -a")),
        (policy.prompt_ids(["yyyy"])[0], ids_of(policy, "ls")),
    ]
    assert torch.is_grad_enabled()
    values = policy.logprobs_of_ids(pairs)
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in policy.trainable())
    logprobs, mask = policy.token_logprobs(pairs)
    assert logprobs.requires_grad and mask.sum(dim=1).tolist() == [len(completion) for _, completion in pairs]
    assert all(
        close(row[wanted].tolist(), value) for row, wanted, value in zip(logprobs, mask, values, strict=True)
    )
    assert not logprobs[~mask].any()


def test_only_the_logits_of_completions_are_computed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ls -a docs", "ls", ""]
    wanted = policy.logprobs(PROMPTS[:3], texts)
    shapes: list[tuple[int, ...]] = []
    output = policy.model.get_output_embeddings()
    with output.register_forward_hook(lambda module, inputs, logits: shapes.append(tuple(logits.shape))):
        assert policy.logprobs(PROMPTS[:3], texts) == wanted
        tokens = sum(map(len, policy.completion_ids(texts)))
        assert [shape[:2] for shape in shapes] == [(1, tokens)]
    # A model that does not call its output embeddings computes all of them, and they are chosen then.
    monkeypatch.setattr(policy.model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    for values, others in zip(policy.logprobs(PROMPTS[:3], texts), wanted, strict=True):
        assert close(values, others)


def test_distributions_are_made_a_few_at_a_time(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ls -a docs", "ls", ""]
    pairs = list(zip(policy.prompt_ids(PROMPTS[:3]), policy.completion_ids(texts), strict=True))
    logprobs, entropies = policy.logprobs(PROMPTS[:3], texts), policy.entropies(PROMPTS[:3], texts)
    means = policy.entropy_and_kl(pairs)
    monkeypatch.setattr(score, "NUMBERS", 2 * len(policy.tokens.texts))
    assert policy.logprobs(PROMPTS[:3], texts) == logprobs
    assert policy.entropies(PROMPTS[:3], texts) == entropies
    assert close(policy.entropy_and_kl(pairs), means, 1e-5)


def test_padding_that_is_the_end_of_sequence_token_is_no_context(foreign_mistral: Path) -> None:
    policy = load_policy(str(foreign_mistral))
    assert policy.tokenizer.pad_token_id is None and policy.pad == policy.tokenizer.eos_token_id
    alone = policy.logprobs(["x"], ["ls"])
    assert close(alone[0], policy.logprobs(["x", "x" * 60], ["ls", "ls -a" * 9])[0])


def test_save_model_is_not_uniform(tmp_path: Path, policy: Policy) -> None:
    """The tests above would show little on a model that thinks everything equally likely."""
    assert save_model(tmp_path, policy.tokenizer).is_dir()
    values = [value for row in policy.logprobs(PROMPTS, PROMPTS) for value in row]
    assert np.std(values) > 1.0
