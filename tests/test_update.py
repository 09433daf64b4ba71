"""Fine-tuning: what it learns from, what it leaves alone, and what it refuses to call a success."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stir

from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.training import update
from agents.training.config import TrainingError
from agents.training.update import Example, adamw, fine_tune, save_optimizer

TEXTS = [
    ("list files", "ls"),
    ("count the lines of x", "wc -l x"),
    ("show the date", "date"),
    ("who is logged in", "who"),
    ("where am i", "pwd"),
]


@pytest.fixture
def examples(policy: Policy) -> list[Example]:
    prompts = policy.prompt_ids([prompt for prompt, _ in TEXTS])
    completions = policy.completion_ids([text for _, text in TEXTS])
    return [(p, [*c, policy.tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]


@pytest.fixture(scope="module")
def steady(pocket: object) -> Policy:
    """No dropout, so that a loss can be computed by hand."""
    policy = load_policy(str(pocket), lora=Lora(dropout=0.0))
    stir(policy)
    return policy


def train(
    policy: Policy,
    examples: list[Example],
    *,
    lr: float = 1e-2,
    epochs: int = 1,
    batch_size: int = 2,
    parts: tuple[object, ...] = (0, 1, "train"),
) -> dict[str, Any]:
    return fine_tune(policy, examples, lr=lr, batch_size=batch_size, epochs=epochs, stream_parts=parts)


@pytest.mark.slow
def test_the_loss_falls_and_the_model_learns(policy: Policy, examples: list[Example]) -> None:
    prompts, texts = zip(*TEXTS, strict=True)
    first = train(policy, examples, lr=3e-3, batch_size=5)["train/loss"]
    for _ in range(40):  # until it writes them all; how soon depends on the last bits of the machine's sums
        train(policy, examples, lr=3e-3, batch_size=5, epochs=25)
        written = policy.generate(prompts, temperature=0.0, max_new_tokens=12)
        if [row[0].text for row in written] == list(texts):
            break
    assert [row[0].text for row in written] == list(texts)
    last = train(policy, examples, lr=3e-3, batch_size=5)["train/loss"]
    assert last < first / 4
    assert not any(row[0].truncated for row in written)  # it learnt where to stop, too


def test_the_loss_is_that_of_the_completions_alone(steady: Policy, examples: list[Example]) -> None:
    values = [value for row in steady.logprobs_of_ids(examples) for value in row]
    assert len(values) == sum(len(completion) for _, completion in examples)
    before = steady.snapshot()
    metrics = train(
        steady, examples, lr=1e-7, batch_size=2
    )  # hardly moves, so that all steps see the same weights
    assert metrics["train/loss"] == pytest.approx(-np.mean(values), rel=1e-4)
    assert (metrics["train/steps"], metrics["train/examples"]) == (3.0, 5.0) and metrics[
        "train/grad_norm"
    ] > 0
    steady.restore(before)
    # Two epochs and another batch size see the same tokens.
    assert train(steady, examples, lr=1e-7, epochs=2, batch_size=5)["train/loss"] == pytest.approx(
        -np.mean(values), rel=1e-4
    )
    steady.restore(before)


def test_prompts_and_padding_have_no_loss(steady: Policy, examples: list[Example]) -> None:
    """The gradient is that of the completion tokens alone, each computed by hand in a sequence of its own."""
    short, long = examples[0], examples[1]
    for batch in ([short], [short, long]):
        logprobs, mask = steady.token_logprobs(batch)
        found = torch.autograd.grad(-logprobs[mask].mean(), steady.trainable())
        count = sum(len(completion) for _, completion in batch)
        loss = torch.tensor(0.0, device=steady.device)
        for prompt, completion in batch:
            ids = torch.tensor([[*prompt, *completion]], device=steady.device)
            table = steady.model(input_ids=ids).logits[0].log_softmax(-1)
            for step, token in enumerate(completion):
                loss -= table[len(prompt) - 1 + step, token] / count
        wanted = torch.autograd.grad(loss, steady.trainable())
        assert max(float(grad.abs().max()) for grad in wanted) > 0.01
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_a_step_that_does_not_fit_into_memory_is_taken_in_parts(
    steady: Policy,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = steady.snapshot()
    wanted = train(steady, examples, batch_size=5)
    at_once = steady.snapshot()
    steady.restore(before)
    real = steady.token_logprobs
    tried: list[int] = []

    def tight(pairs: list[Example]) -> Any:
        """Runs out of memory after the first part of a step, and for more than two sequences."""
        tried.append(len(pairs))
        if len(pairs) > 2 or len(tried) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pairs)

    monkeypatch.setattr(steady, "token_logprobs", tight)
    found = train(steady, examples, batch_size=5)
    assert tried[:8] == [5, 2, 2, 1, 1, 1, 1, 1] and steady.batch_sizes["training"] == 1
    assert "out of memory in training: going on with 1 sequences at a time" in capsys.readouterr().out
    assert found["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-4)
    assert found["train/grad_norm"] == pytest.approx(wanted["train/grad_norm"], rel=1e-3)
    for name, weights in steady.snapshot().items():
        assert torch.allclose(weights, at_once[name], atol=1e-4)
    steady.restore(before)
    steady.batch_sizes = {"training": 128}


def test_the_stream_decides(policy: Policy, examples: list[Example]) -> None:
    before = policy.snapshot()
    hashes: list[str] = []
    for parts in ((0, 1, "train"), (0, 1, "train"), (0, 2, "train"), (1, 1, "train")):
        policy.restore(before)
        torch.manual_seed(len(hashes))
        train(policy, examples, parts=parts)
        hashes.append(policy.adapter_hash())
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_the_order_comes_from_the_stream(steady: Policy, examples: list[Example]) -> None:
    before = steady.snapshot()
    hashes: set[str] = set()
    for cycle in range(3):
        steady.restore(before)
        train(steady, examples, batch_size=1, parts=(0, cycle))
        hashes.add(steady.adapter_hash())
    steady.restore(before)
    assert len(hashes) == 3


def test_moments_are_kept_without_pickle(tmp_path: Path) -> None:
    def three_steps(optimizer: torch.optim.AdamW, weights: list[torch.nn.Parameter]) -> None:
        for step in range(3):
            for number, weight in enumerate(weights):
                weight.grad = torch.full_like(weight, 0.1 * (number + step + 1))
            optimizer.step()

    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    optimizer = adamw(weights, 1e-2, None)
    three_steps(optimizer, weights)
    save_optimizer(optimizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["optimizer.safetensors"]

    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    restored = adamw(copies, 1e-2, tmp_path)
    for optimizer_, parameters in ((optimizer, weights), (restored, copies)):
        three_steps(optimizer_, parameters)
    for weight, copy in zip(weights, copies, strict=True):
        assert torch.equal(weight, copy)
    assert adamw(copies, 1e-2, tmp_path / "nowhere").state_dict()["state"] == {}


def test_nothing_outside_changes(policy: Policy, examples: list[Example]) -> None:
    with policy.adapter("off"):
        base = policy.logprobs_of_ids(examples)
    state = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    train(policy, examples)
    assert state == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    assert not any(module.training for module in policy.model.modules())
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    with policy.adapter("off"):
        assert policy.logprobs_of_ids(examples) == base


def test_nothing_to_learn_from_is_our_mistake(policy: Policy) -> None:
    with pytest.raises(ValueError, match="no examples"):
        train(policy, [])


@pytest.mark.parametrize(("lr", "epochs"), [(0.0, 1), (1e-2, 0)])
def test_training_that_changes_nothing_is_an_error(
    policy: Policy, examples: list[Example], lr: float, epochs: int
) -> None:
    with pytest.raises(TrainingError, match="the adapter did not change in this update"):
        train(policy, examples, lr=lr, epochs=epochs)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_at_once(
    policy: Policy, examples: list[Example], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = policy.token_logprobs

    def broken(pairs: Any) -> Any:
        logprobs, mask = real(pairs)
        if what == "loss":
            return logprobs * float("nan"), mask
        logprobs.register_hook(lambda grad: grad * float("inf"))
        return logprobs, mask

    monkeypatch.setattr(policy, "token_logprobs", broken)
    name = policy.adapter_hash()
    with pytest.raises(
        TrainingError, match=f"the {what} is (nan|inf) at step 1: lower --lr; the last checkpoint is intact"
    ):
        train(policy, examples)
    assert policy.adapter_hash() == name and not policy.model.training
    monkeypatch.undo()
    train(policy, examples)  # nothing of the failure is left behind
    assert all(torch.isfinite(tensor).all() for tensor in policy.snapshot().values())


def test_a_rate_that_is_far_too_high_does_not_pass_for_training(
    policy: Policy, examples: list[Example]
) -> None:
    with pytest.raises(TrainingError, match="the last checkpoint is intact"):
        train(policy, examples, lr=1e30, epochs=5)
    assert not policy.model.training


@pytest.mark.parametrize(
    ("warmup", "wanted"),
    [
        (None, [1.0] * 6),
        (0.0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (0.4, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
    ],
)
def test_the_learning_rate_rises_and_falls(
    policy: Policy,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    warmup: float | None,
    wanted: list[float],
) -> None:
    rates = []
    real = update.clipped_step

    def step(optimizer: Any, *rest: Any) -> float:
        rates.append(optimizer.param_groups[0]["lr"] / 1e-3)
        return real(optimizer, *rest)

    monkeypatch.setattr(update, "clipped_step", step)
    parts = (0, 1, "train")
    fine_tune(policy, examples[:4], lr=1e-3, batch_size=2, epochs=3, stream_parts=parts, warmup=warmup)
    assert rates == pytest.approx(wanted)
